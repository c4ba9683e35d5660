"""Statistics of tasks and jobs, as far as the state tells: times and numbers, neither processor time nor transfers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from airflow_batchwrap.local.model.entities import Job, Task
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


class Sums:
    """Statistics of many tasks, of one job or several, summed up one by one: whoever sums may pause in between.

    :param jobs: the jobs.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs, self._now = list(jobs), times.now()
        self._wall_clock = self._wait = 0.0
        self._retries = 0

    def tasks(self) -> Iterator[Task]:
        """The tasks that are to be added.

        :return: those that are there when each job's turn comes.
        """
        for job in self._jobs:
            yield from job.tasks

    def add(self, task: Task) -> None:
        """Add a task.

        :param task: the task.
        """
        self._wall_clock += _wall_clock(task, self._now)
        self._wait += _wait(task, self._now)
        self._retries += task.retries

    def shown(self, start: float, url: str) -> dict[str, Any]:
        """The statistics, once all tasks are added.

        :param start: when what they are about was created, seconds since the epoch.
        :param url: its address.
        :return: its ``stats``.
        """
        return {
            "url": f"{url}/stats",
            "startTime": iso(start),
            "lastUpdateTime": iso(self._now),
            **_UNMEASURED,
            "wallClockTime": _duration(self._wall_clock),
            "waitTime": _duration(self._wait),
            "numSucceededTasks": str(sum(job.counts["success"] for job in self._jobs)),
            "numFailedTasks": str(sum(job.counts["failure"] for job in self._jobs)),
            "numTaskRetries": str(self._retries),
        }
