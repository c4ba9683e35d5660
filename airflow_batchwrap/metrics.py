"""What is counted and timed, through Airflow's own metrics: StatsD, Datadog or OpenTelemetry, as Airflow is set up.

docs/observing.md lists the names. Without a backend nothing is sent, and a backend that fails fails nothing else.
"""

from __future__ import annotations

import logging
import sys
from datetime import datetime, timedelta

log = logging.getLogger(__name__)

REQUESTS = "batchwrap.requests"  # sent to Batch, those that the client sends again included
THROTTLED = "batchwrap.requests_throttled"  # of these, answered with 429 or 503
UPLOADED = "batchwrap.bytes_uploaded"  # to Blob, from Airflow
DOWNLOADED = "batchwrap.bytes_downloaded"  # from Blob, to Airflow
SUBMIT_TIME = "batchwrap.submit_time"  # from the first look at the job to Batch's having the task
QUEUE_TIME = "batchwrap.queue_time"  # from there to its start on a node, by Batch's clock
RUN_TIME = "batchwrap.run_time"  # from its start to its end, by Batch's clock

_warned = False


def count(name: str, number: int = 1, **tags: str) -> None:
    """Add to a counter."""
    if number <= 0:
        return
    try:
        from airflow.sdk.observability import stats

        _begin(stats)
        stats.incr(name, number, tags=tags)
    except Exception as error:  # whatever a backend raises
        _warn(error)


def timing(name: str, seconds: float, **tags: str) -> None:
    """Report how long something took."""
    try:
        from airflow.sdk.observability import stats

        _begin(stats)
        stats.timing(name, timedelta(seconds=seconds), tags=tags)
    except Exception as error:  # whatever a backend raises
        _warn(error)


def batch_task_times(created: str, started: str, ended: str, *, rerun: bool = False, **tags: str) -> None:
    """Report how long a Batch task waited and ran.

    :param created: ISO 8601, as the other two; empty where it is not known.
    :param rerun: whether Batch has run it more than once: then the last start says nothing of the wait.
    """
    spans = [(QUEUE_TIME, "" if rerun else created, started), (RUN_TIME, started, ended)]
    for name, earlier, later in spans:
        if earlier and later:
            timing(name, _between(earlier, later), **tags)


def _between(earlier: str, later: str) -> float:
    return max(0.0, (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds())


def _begin(stats: object) -> None:
    """Set the metrics up where Airflow has not: it does so in a task's process, and not in the triggers'."""
    module = sys.modules[stats.incr.__module__]  # type: ignore[attr-defined]
    # No public name says so; where this one is gone, Airflow is left to itself.
    if getattr(module, "_factory", True) is None:
        from airflow.sdk.configuration import conf
        from airflow.sdk.observability.metrics import stats_utils

        legacy = conf.getboolean("metrics", "legacy_names_on", fallback=True)
        module.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=legacy)


def _warn(error: Exception) -> None:
    """Say once in a process that metrics are lost."""
    global _warned
    log.log(logging.DEBUG if _warned else logging.WARNING, "Metrics are lost: %s", type(error).__name__)
    _warned = True
