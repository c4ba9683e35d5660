"""Statistics of tasks and jobs, as far as the state tells: times and numbers, neither processor time nor transfers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from airflow_batchwrap.local.model.entities import Job, JobSchedule, Task
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.times import iso

_UNMEASURED: dict[str, Any] = {
    "userCPUTime": "PT0S",
    "kernelCPUTime": "PT0S",
    "readIOps": "0",
    "writeIOps": "0",
    "readIOGiB": 0.0,
    "writeIOGiB": 0.0,
}


def _duration(seconds: float) -> str:
    return f"PT{max(0.0, seconds):.6f}S"


def _wall_clock(task: Task, now: float) -> float:
    return 0.0 if task.started is None else (task.ended or now) - task.started


def _wait(task: Task, now: float) -> float:
    return (task.started or task.ended or now) - task.created


def of_task(task: Task, url: str) -> dict[str, Any] | None:
    """A task's statistics.

    :param task: the task.
    :param url: its address.
    :return: its ``stats``; None before its first run.
    """
    if task.started is None:
        return None
    now = times.now()
    return {
        "url": f"{url}/stats",
        "startTime": iso(task.created),
        "lastUpdateTime": iso(task.ended or now),
        **_UNMEASURED,
        "wallClockTime": _duration(_wall_clock(task, now)),
        "waitTime": _duration(_wait(task, now)),
    }


def of_job(job: Job, url: str) -> dict[str, Any]:
    """A job's statistics.

    :param job: the job.
    :param url: its address.
    :return: its ``stats``.
    """
    return _of_jobs([job], job.created, url)


def of_schedule(schedule: JobSchedule, jobs: Iterable[Job], url: str) -> dict[str, Any]:
    """A job schedule's statistics: those of its jobs that are there.

    :param schedule: the job schedule.
    :param jobs: its jobs.
    :param url: its address.
    :return: its ``stats``.
    """
    return _of_jobs(list(jobs), schedule.created, url)


def _of_jobs(jobs: list[Job], start: float, url: str) -> dict[str, Any]:
    now = times.now()
    tasks = [task for job in jobs for task in job.tasks]
    return {
        "url": f"{url}/stats",
        "startTime": iso(start),
        "lastUpdateTime": iso(now),
        **_UNMEASURED,
        "wallClockTime": _duration(sum(_wall_clock(task, now) for task in tasks)),
        "waitTime": _duration(sum(_wait(task, now) for task in tasks)),
        "numSucceededTasks": str(sum(job.counts["success"] for job in jobs)),
        "numFailedTasks": str(sum(job.counts["failure"] for job in jobs)),
        "numTaskRetries": str(sum(task.retries for task in tasks)),
    }
