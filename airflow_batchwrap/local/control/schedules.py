"""The life of job schedules: their jobs are created when they are due, and they end."""

from __future__ import annotations

import asyncio
import copy
import logging
from typing import Any

from airflow_batchwrap.local.control.base import Base
from airflow_batchwrap.local.control.events import JobEnded
from airflow_batchwrap.local.control.jobs import Jobs
from airflow_batchwrap.local.control.pools import Pools
from airflow_batchwrap.local.model.entities import Job, JobSchedule
from airflow_batchwrap.local.model.recurrence import Recurrence
from airflow_batchwrap.local.model.rules import schedules as rules
from airflow_batchwrap.local.model.states import JobState, ScheduleState
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

log = logging.getLogger(__name__)


class Schedules:
    """Creates the jobs of schedules, one at a time, and ends schedules.

    :param base: the state.
    :param jobs: what becomes of their jobs.
    :param pools: what becomes of the pools that their jobs share.
    """

    def __init__(self, base: Base, jobs: Jobs, pools: Pools) -> None:
        self._base, self._jobs, self._pools = base, jobs, pools
        self._timers: dict[JobSchedule, asyncio.TimerHandle] = {}
        base.events.on(JobEnded, self._job_ended)

    def make(self, name: str, body: dict[str, Any]) -> JobSchedule:
        """Create a job schedule; its first job may be there at once.

        :param name: its id.
        :param body: the rest of it, as a client gives it.
        :return: the job schedule.
        :raises BatchError: it cannot be.
        """
        rules.check(body)
        if (existing := self._base.schedules.get(name)) is not None:
            deleting = existing.state == ScheduleState.DELETING
            raise BatchError("JobScheduleBeingDeleted" if deleting else "JobScheduleExists")
        if self._base.jobs.get(name) is not None:
            raise BatchError("JobWithSameIdExists")
        self._jobs.within_quota()
        schedule = JobSchedule(self._base.store.next_uid(), name, body)
        self._base.schedules.add(schedule)
        self._base.store.touch(schedule)
        self.advance(schedule)
        return schedule

    def change(self, schedule: JobSchedule, body: dict[str, Any]) -> None:
        """Give a job schedule other properties; jobs that are there stay as they are.

        :param schedule: the job schedule, not over.
        :param body: all of its body.
        :raises BatchError: it cannot be.
        """
        rules.check(body)
        schedule.body = body
        schedule.changed()
        self._base.store.touch(schedule)
        self.advance(schedule)

    def turn(self, schedule: JobSchedule, state: ScheduleState) -> None:
        """Let a schedule create jobs, or none.

        :param schedule: the schedule, in the other of the two states.
        :param state: active or disabled.
        """
        schedule.move(state)
        self._base.store.touch(schedule)
        self.advance(schedule)

    def advance(self, schedule: JobSchedule) -> None:
        """Do what is due for a schedule now, and wait for what comes next.

        :param schedule: the schedule, new, changed, loaded, or with a job that has ended.
        """
        if (timer := self._timers.pop(schedule, None)) is not None:
            timer.cancel()
        if schedule.state in (ScheduleState.TERMINATING, ScheduleState.DELETING):
            self._end(schedule)
        if schedule.state != ScheduleState.ACTIVE or self._base.stopping:
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
            loop = asyncio.get_running_loop()
            self._timers[schedule] = loop.call_later(waking - now + 0.001, self.advance, schedule)

    def active_job(self, schedule: JobSchedule) -> Job | None:
        """The schedule's job that has not ended.

        :param schedule: the schedule.
        :return: the job; None where there is none.
        """
        job = self._base.jobs.get(schedule.job or "")
        return None if job is None or job.state == JobState.COMPLETED else job

    def next_run(self, schedule: JobSchedule) -> float | None:
        """When a schedule is to create its next job.

        :param schedule: the schedule.
        :return: seconds since the epoch; None where it is to create none.
        """
        if schedule.state not in (ScheduleState.ACTIVE, ScheduleState.DISABLED):
            return None
        recurrence = Recurrence.of(schedule.body["schedule"], schedule.created)
        return recurrence.at(max(recurrence.latest(times.now()), schedule.last) + 1)

    def _create(self, schedule: JobSchedule) -> None:
        schedule.number += 1
        name = f"{schedule.id}:job-{schedule.number}"
        try:
            self._jobs.make(name, copy.deepcopy(schedule.body["jobSpecification"]), schedule)
            schedule.job = name
        except BatchError as error:
            # Such as a quota that is reached: the occurrence is lost.
            log.warning("The job schedule %s could not create its job %s: %s", schedule.id, name, error)
        self._base.store.touch(schedule)

    def _job_ended(self, event: JobEnded) -> None:
        """See what follows for the schedule of a job that has completed or is gone."""
        if event.job.schedule is None:
            return
        for schedule in self._base.schedules:
            if schedule.uid == event.job.schedule:
                self.advance(schedule)

    def jobs(self, schedule: JobSchedule) -> list[Job]:
        """The jobs of a schedule.

        :param schedule: the schedule.
        :return: those that are there, oldest first.
        """
        return [job for job in self._base.jobs if job.schedule == schedule.uid]

    def terminate(self, schedule: JobSchedule) -> None:
        """Begin to end a schedule with its active job.

        :param schedule: the schedule, active or disabled.
        """
        schedule.move(ScheduleState.TERMINATING)
        self._base.store.touch(schedule)
        self.advance(schedule)

    def delete(self, schedule: JobSchedule) -> None:
        """Begin to delete a schedule with all its jobs.

        :param schedule: the schedule.
        """
        schedule.move(ScheduleState.DELETING)
        self._base.store.touch(schedule)
        self.advance(schedule)

    def _end(self, schedule: JobSchedule) -> None:
        if schedule.state == ScheduleState.TERMINATING:
            job = self.active_job(schedule)
            if job is None:
                self._complete(schedule)
            elif job.state not in (JobState.TERMINATING, JobState.DELETING):
                self._jobs.terminate(job, "TerminateJobSchedule")
            return
        jobs = self.jobs(schedule)
        for job in jobs:
            if job.state != JobState.DELETING:
                self._jobs.delete(job)
        if not jobs:
            self._drop_pool(schedule)
            self._base.schedules.remove(schedule)
            self._base.store.drop(schedule.uid)

    def _complete(self, schedule: JobSchedule) -> None:
        schedule.move(ScheduleState.COMPLETED)
        schedule.ended = times.now()
        self._base.store.touch(schedule)
        self._drop_pool(schedule)

    def _drop_pool(self, schedule: JobSchedule) -> None:
        specification = schedule.body["jobSpecification"]["poolInfo"].get("autoPoolSpecification") or {}
        if schedule.pool_id is not None and not specification.get("keepAlive"):
            self._pools.drop(schedule.pool_id)
