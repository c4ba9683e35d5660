"""Job schedules: when a job is due, and what becomes of a schedule when its jobs have ended."""

from __future__ import annotations

import asyncio
import copy
import logging
from dataclasses import dataclass
from typing import Any

from airflow_batchwrap.local.control import making
from airflow_batchwrap.local.control.world import World
from airflow_batchwrap.local.model.entities import Job, JobSchedule
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recurrence:
    """The occurrences of a schedule, counted from 0; all times in seconds since the epoch.

    :param start: the first one.
    :param interval: how far they are apart, in seconds; None where there is only one.
    :param window: how long after an occurrence its job may still be created, in seconds; None for ever.
    :param until: no job is created after this.
    """

    start: float
    interval: float | None = None
    window: float | None = None
    until: float | None = None

    @classmethod
    def of(cls, body: dict[str, Any], created: float) -> Recurrence:
        """Read a schedule's configuration.

        :param body: the configuration.
        :param created: when the schedule was created.
        :return: its occurrences: from doNotRunUntil on, or from its creation.
        """

        def moment(name: str) -> float | None:
            return times.parse_iso(body[name]) if name in body else None

        def length(name: str) -> float | None:
            return times.parse_duration(body[name]) if name in body else None

        start = moment("doNotRunUntil")
        start = created if start is None else start
        return cls(start, length("recurrenceInterval"), length("startWindow"), moment("doNotRunAfter"))

    def at(self, index: int) -> float | None:
        """When an occurrence is.

        :param index: its number.
        :return: the time; None where there is no such occurrence.
        """
        if index < 0 or (index > 0 and self.interval is None):
            return None
        moment = self.start + index * (self.interval or 0)
        return None if self.until is not None and moment > self.until else moment

    def latest(self, now: float) -> int:
        """The last occurrence that has come; an earlier one is not made up for.

        :param now: the time.
        :return: its number; -1 where there was none.
        """
        if now < self.start or (self.until is not None and self.start > self.until):
            return -1
        end = now if self.until is None else min(now, self.until)
        return 0 if self.interval is None else int((end - self.start) // self.interval)

    def open(self, index: int, now: float) -> bool:
        """Whether the job of an occurrence may still be created.

        :param index: its number.
        :param now: the time.
        :return: whether it may.
        """
        moment = self.at(index)
        if moment is None or (self.until is not None and now > self.until):
            return False
        return self.window is None or now - moment <= self.window

    def over(self, last: int, now: float) -> bool:
        """Whether no further job will be created.

        :param last: the last occurrence that had its job; -1 for none.
        :param now: the time.
        :return: whether there is none to come.
        """
        if self.until is not None and now > self.until:
            return True
        return self.interval is None and (last >= 0 or (now >= self.start and not self.open(0, now)))

    def waking(self, last: int, now: float) -> float | None:
        """When there is next something to see to.

        :param last: the last occurrence that had its job; -1 for none.
        :param now: the time.
        :return: the time; None for never.
        """
        latest = self.latest(now)
        moments = [self.at(latest + 1), self.until]
        if latest > last and self.window is not None:
            moments.append(self.start + latest * (self.interval or 0) + self.window)
        coming = [moment for moment in moments if moment is not None and moment >= now]
        return min(coming, default=None)


class Schedules:
    """Creates the jobs of schedules, one at a time, and ends schedules.

    :param world: the state.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def advance(self, schedule: JobSchedule) -> None:
        """Do what is due for a schedule now, and wait for what comes next.

        :param schedule: the schedule, new, changed, loaded, or with a job that has ended.
        """
        if schedule.timer is not None:
            schedule.timer.cancel()
            schedule.timer = None
        if schedule.state in ("terminating", "deleting"):
            self._end(schedule)
        if schedule.state != "active" or self._world.stopping:
            return
        now = times.now()
        recurrence = Recurrence.of(schedule.body["schedule"], schedule.created)
        latest = recurrence.latest(now)
        if self.active_job(schedule) is None:
            if latest > schedule.last and recurrence.open(latest, now):
                schedule.last = latest
                self._create(schedule)
            if self.active_job(schedule) is None and recurrence.over(schedule.last, now):
                self._complete(schedule)
                return
        waking = recurrence.waking(schedule.last, now)
        if waking is not None:
            # A little later, so that the moment has come for certain.
            schedule.timer = asyncio.get_running_loop().call_later(waking - now + 0.001, self.advance, schedule)

    def active_job(self, schedule: JobSchedule) -> Job | None:
        """The schedule's job that has not ended.

        :param schedule: the schedule.
        :return: the job; None where there is none.
        """
        job = self._world.jobs.get(schedule.job or "")
        return None if job is None or job.state == "completed" else job

    def next_run(self, schedule: JobSchedule) -> float | None:
        """When a schedule is to create its next job.

        :param schedule: the schedule.
        :return: seconds since the epoch; None where it is to create none.
        """
        if schedule.state not in ("active", "disabled"):
            return None
        recurrence = Recurrence.of(schedule.body["schedule"], schedule.created)
        return recurrence.at(max(recurrence.latest(times.now()), schedule.last) + 1)

    def _create(self, schedule: JobSchedule) -> None:
        schedule.number += 1
        name = f"{schedule.id}:job-{schedule.number}"
        try:
            making.job(self._world, name, copy.deepcopy(schedule.body["jobSpecification"]), schedule)
            schedule.job = name
        except BatchError as error:
            # Such as a quota that is reached: the occurrence is lost.
            log.warning("The job schedule %s could not create its job %s: %s", schedule.id, name, error)
        self._world.store.touch(schedule)

    def job_ended(self, job: Job) -> None:
        """See what follows for the schedule of a job that has completed or is gone.

        :param job: the job.
        """
        for schedule in self._world.schedules:
            if schedule.uid == job.schedule:
                self.advance(schedule)

    def jobs(self, schedule: JobSchedule) -> list[Job]:
        """The jobs of a schedule.

        :param schedule: the schedule.
        :return: those that are there, oldest first.
        """
        return [job for job in self._world.jobs if job.schedule == schedule.uid]

    def terminate(self, schedule: JobSchedule) -> None:
        """Begin to end a schedule with its active job.

        :param schedule: the schedule, active or disabled.
        """
        schedule.move("terminating")
        self._world.store.touch(schedule)
        self.advance(schedule)

    def delete(self, schedule: JobSchedule) -> None:
        """Begin to delete a schedule with all its jobs.

        :param schedule: the schedule.
        """
        schedule.move("deleting")
        self._world.store.touch(schedule)
        self.advance(schedule)

    def _end(self, schedule: JobSchedule) -> None:
        if schedule.state == "terminating":
            job = self.active_job(schedule)
            if job is None:
                self._complete(schedule)
            elif job.state not in ("terminating", "deleting"):
                self._world.job_control.terminate(job, "TerminateJobSchedule")
            return
        jobs = self.jobs(schedule)
        for job in jobs:
            if job.state != "deleting":
                self._world.job_control.delete(job)
        if not jobs:
            self._drop_pool(schedule)
            self._world.schedules.remove(schedule)
            self._world.store.drop(schedule.uid)

    def _complete(self, schedule: JobSchedule) -> None:
        schedule.move("completed")
        schedule.ended = times.now()
        self._world.store.touch(schedule)
        self._drop_pool(schedule)

    def _drop_pool(self, schedule: JobSchedule) -> None:
        specification = schedule.body["jobSpecification"]["poolInfo"].get("autoPoolSpecification") or {}
        if schedule.pool_id is not None and not specification.get("keepAlive"):
            self._world.job_control.drop_pool(schedule.pool_id)
