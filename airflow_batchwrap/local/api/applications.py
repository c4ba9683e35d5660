"""Operations on applications, whose packages come from a folder of the data directory; and what pools have used."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_batchwrap.local.api.call import Call, Reply, numbered
from airflow_batchwrap.local.model import usage
from airflow_batchwrap.local.node import packages, threads
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

#: Since then the usage of pools is not listed any more (recorded at 2024-02-01.19.0).
_USAGE_ENDS = "2024-02"


@dataclass(frozen=True)
class _Row:
    place: str
    view: dict[str, Any]


def _rows(views: list[dict[str, Any]]) -> list[_Row]:
    return [_Row(str(uid), view) for uid, view in enumerate(views, 1)]


def _described(data: Path) -> list[dict[str, Any]]:
    shown = [packages.describe(data, name) for name in packages.names(data)]
    return [one for one in shown if one["versions"]]


async def list_applications(call: Call) -> Reply:
    """List the applications that have a version."""
    rows = _rows(await threads.apart(_described, call.world.config.data))
    return await call.listing("applications", numbered(rows), lambda row, _: row.view)


async def get_application(call: Call) -> Reply:
    """Show an application."""
    name = call.path["applicationId"]
    try:
        shown = await threads.apart(packages.describe, call.world.config.data, name)
    except packages.PackageMissing:
        raise BatchError("ApplicationNotFound") from None
    return Reply({"odata.metadata": f"{call.base}/$metadata#applications/@Element", **shown})


async def list_pool_usage_metrics(call: Call) -> Reply:
    """List what pools used in each whole hour of a time range; by default the last whole hour.

    Of the versions that a client may speak, those from 2024-02-01 on have it no more.
    """
    if call.version >= _USAGE_ENDS:
        raise BatchError("PoolUsageMetricAPIRetired")
    last = times.now() // usage.HOUR * usage.HOUR
    start = _time(call, "starttime", last - usage.HOUR)
    end = _time(call, "endtime", last)
    if start > end:
        raise BatchError("OutOfRangeQueryParameterValue", "startTime must not be after endtime.")
    pools = call.world.pools
    rows = _rows(list(itertools.chain.from_iterable(usage.intervals(pool, start, end) for pool in pools)))
    return await call.listing("poolusagemetrics", numbered(rows), lambda row, _: row.view)


def _time(call: Call, name: str, usual: float) -> float:
    text = call.query.get(name)
    if text is None:
        return usual
    try:
        return times.parse_iso(text)
    except ValueError:
        raise BatchError("InvalidQueryParameterValue", f"{name} must be an ISO 8601 time.") from None
