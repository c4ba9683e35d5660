"""Bodies of job schedules."""

from __future__ import annotations

from typing import Any

from airflow_batchwrap.local.model.rules import jobs
from airflow_batchwrap.local.model.rules.values import invalid
from airflow_batchwrap.local.wire import times

#: Learn: BatchJobScheduleConfiguration, recurrenceInterval and startWindow, in seconds.
SHORTEST = 60.0


def check(body: dict[str, Any]) -> None:
    """Check a job schedule's body, and fill in the defaults of its jobs.

    :param body: the body, but for the id.
    :raises BatchError: something cannot be.
    """
    _configuration(body["schedule"])
    jobs.prepare(body["jobSpecification"], scheduled=True)


def _configuration(body: dict[str, Any]) -> None:
    for name in ("recurrenceInterval", "startWindow"):
        if name in body and times.parse_duration(body[name]) < SHORTEST:
            raise invalid(f"schedule.{name}", "it must be at least 1 minute.")
    until, after = body.get("doNotRunUntil"), body.get("doNotRunAfter")
    if until is not None and after is not None and times.parse_iso(until) > times.parse_iso(after):
        raise invalid("schedule.doNotRunAfter", "it must not be before doNotRunUntil.")
