"""What pools have used: the time of their nodes, hour by hour."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from airflow_batchwrap.local.model.entities import Node, Pool
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.times import iso

#: The length of an aggregation interval, in seconds.
HOUR = 3600


def cores(vm_size: str) -> int:
    """The cores of a virtual machine, as its size's name tells.

    :param vm_size: such as ``Standard_D2s_v3``.
    :return: such as 2; 1 where the name does not tell.
    """
    found = re.match(r"(?:standard|basic)_[a-z]+(\d+)", vm_size.lower())
    return max(1, int(found[1])) if found else 1


def leave(node: Node) -> None:
    """Note the time of a node that goes.

    :param node: the node.
    """
    for hour, seconds in _hours(node.created, times.now()):
        sums = node.pool.usage.setdefault(str(hour), [0.0, 0.0])
        sums[0 if node.dedicated else 1] += seconds


def intervals(pool: Pool, start: float, end: float) -> Iterator[dict[str, Any]]:
    """A pool's usage metrics.

    :param pool: the pool.
    :param start: the beginning of the time range, seconds since the epoch.
    :param end: its end.
    :return: an entry for each hour of the range in which the pool had nodes.
    """
    size = pool.body["vmSize"]
    for hour, (dedicated, spot) in sorted(_all(pool).items()):
        if start <= hour * HOUR and (hour + 1) * HOUR <= end:
            yield {
                "poolId": pool.id,
                "startTime": iso(hour * HOUR),
                "endTime": iso((hour + 1) * HOUR),
                "vmSize": size,
                "totalCoreHours": (dedicated + spot) * cores(size) / HOUR,
            }


def statistics(pool: Pool, url: str) -> dict[str, Any]:
    """A pool's statistics over its life, as far as they are kept: the time of its dedicated cores.

    :param pool: the pool.
    :param url: the pool's address.
    :return: the ``stats`` of the pool.
    """
    span = {"startTime": iso(pool.created), "lastUpdateTime": iso(times.now())}
    seconds = sum(dedicated for dedicated, _ in _all(pool).values()) * cores(pool.body["vmSize"])
    return {
        "url": f"{url}/stats",
        **span,
        "usageStats": {**span, "dedicatedCoreTime": f"PT{seconds:.3f}S"},
    }


def _all(pool: Pool) -> dict[int, tuple[float, float]]:
    sums = {int(hour): (dedicated, spot) for hour, (dedicated, spot) in pool.usage.items()}
    for node in pool.nodes:
        for hour, seconds in _hours(node.created, times.now()):
            dedicated, spot = sums.get(hour, (0.0, 0.0))
            sums[hour] = (dedicated + seconds, spot) if node.dedicated else (dedicated, spot + seconds)
    return sums


def _hours(start: float, end: float) -> Iterator[tuple[int, float]]:
    while start < end:
        hour = int(start // HOUR)
        until = min(end, float((hour + 1) * HOUR))
        yield hour, until - start
        start = until
