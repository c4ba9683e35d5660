"""The life of jobs: created, disabled and enabled, ended by a client, a clock, or their own tasks."""

from __future__ import annotations

import asyncio
import copy
import uuid
from typing import Any

from airflow_batchwrap.local.control.base import Base
from airflow_batchwrap.local.control.events import JobEnded, TaskEnded
from airflow_batchwrap.local.control.pools import Pools
from airflow_batchwrap.local.control.preparations import Preparations
from airflow_batchwrap.local.control.tasks import Tasks
from airflow_batchwrap.local.control.turnstile import sliced
from airflow_batchwrap.local.model.entities import Job, JobSchedule
from airflow_batchwrap.local.model.exits import job_action
from airflow_batchwrap.local.model.rules import jobs as rules
from airflow_batchwrap.local.model.rules.values import invalid
from airflow_batchwrap.local.model.states import (
    OVER,
    Dealing,
    DisableTasks,
    JobAction,
    JobState,
    PoolState,
    TaskState,
)
from airflow_batchwrap.local.node import removal, threads
from airflow_batchwrap.local.node.layout import job_directory
from airflow_batchwrap.local.node.run import NO_LIMIT
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

#: What a job manager has that no other task has, and its id.
_MANAGING = frozenset({"id", "killJobOnCompletion", "runExclusive", "allowLowPriorityNode"})

#: How long a job without tasks stays open that is to end when all of them are complete, in seconds: recorded ones were
#: still active half a second after they were made.
EMPTY = 1.0


class Jobs:
    """Creates jobs and ends them.

    :param base: the state.
    :param pools: where their own pools come from.
    :param tasks: what becomes of their tasks.
    :param preparations: their preparation and release tasks.
    """

    def __init__(self, base: Base, pools: Pools, tasks: Tasks, preparations: Preparations) -> None:
        self._base, self._pools, self._tasks, self._preparations = base, pools, tasks, preparations
        self._closing: set[Job] = set()
        self._clocks: dict[Job, asyncio.TimerHandle] = {}
        base.events.on(TaskEnded, self._task_ended)

    # Created and changed

    def within_quota(self) -> None:
        """Check that one more job or job schedule may be active.

        :raises BatchError: it may not.
        """
        active = self._base.active()
        if active >= self._base.config.quotas.jobs:
            raise BatchError(
                "ActiveJobAndScheduleQuotaReached",
                f"{active} jobs and job schedules are active, which is as many as may be: terminate or delete some.",
            )

    def make(self, name: str, body: dict[str, Any], schedule: JobSchedule | None = None) -> Job:
        """Create a job, with the pool it asks for and its job manager.

        :param name: its id.
        :param body: the rest of it, as a client gives it.
        :param schedule: the job schedule it is of, if any.
        :return: the job.
        :raises BatchError: it cannot be.
        """
        rules.prepare(body, scheduled=schedule is not None)
        if (existing := self._base.jobs.get(name)) is not None:
            raise BatchError("JobBeingDeleted" if existing.state == JobState.DELETING else "JobExists")
        if self._base.schedules.get(name) is not None:
            raise BatchError("JobScheduleWithSameIdExists")
        pool = self._base.pools.get(body["poolInfo"].get("poolId", ""))
        if pool is not None and pool.state == PoolState.DELETING:
            raise BatchError("PoolBeingDeleted")
        self.within_quota()
        auto_pool = self._auto_pool(body["poolInfo"].get("autoPoolSpecification"), schedule)
        job = Job(self._base.store.next_uid(), name, body)
        job.auto_pool, job.schedule = auto_pool, schedule.uid if schedule else None
        self._base.jobs.add(job)
        self._base.store.touch(job)
        if "jobManagerTask" in body:
            manager = {key: value for key, value in body["jobManagerTask"].items() if key not in _MANAGING}
            self._tasks.add(job, body["jobManagerTask"]["id"], manager)
        self.watch(job)
        return job

    def _auto_pool(self, specification: dict[str, Any] | None, schedule: JobSchedule | None) -> str | None:
        if specification is None:
            return None
        shared = schedule if specification["poolLifetimeOption"] == "jobschedule" else None
        present = self._base.pools.get(shared.pool_id or "") if shared is not None else None
        if present is not None and present.state == PoolState.ACTIVE:
            return present.id
        prefix = specification.get("autoPoolIdPrefix")
        name = f"{prefix}_{uuid.uuid4()}" if prefix else str(uuid.uuid4())
        name = name[: len(name) - 36] + name[-36:].upper()
        self._pools.make(name, copy.deepcopy(specification["pool"]))
        if shared is not None:
            shared.pool_id = name
        return name

    def change(self, job: Job, body: dict[str, Any]) -> None:
        """Give a job other properties.

        :param job: the job, not over.
        :param body: all of its body.
        :raises BatchError: it cannot be.
        """
        rules.prepare(body, scheduled=job.schedule is not None)
        if job.auto_pool or "autoPoolSpecification" in body["poolInfo"]:
            _same_auto_pool(job, body["poolInfo"])
        elif body["poolInfo"].get("poolId", "").lower() != job.pool_id.lower():
            if job.state != JobState.DISABLED:
                raise BatchError(
                    "OperationInvalidForCurrentState", "The pool can be changed only while the job is disabled."
                )
            self._preparations.abandon(job)
        if job.body["onAllTasksComplete"] == "terminatejob" != body["onAllTasksComplete"]:
            raise invalid("onAllTasksComplete", "terminatejob cannot be taken back.")
        job.body = body
        job.changed()
        self._base.store.touch(job)
        self.watch(job)
        self._tasks.look(job.pool_id)

    # Its clock

    def watch(self, job: Job) -> None:
        """Start a job's clock, and end it if nothing keeps it open: at once, or one without tasks a little later.

        :param job: the job, new, changed or loaded.
        """
        self._stop_clock(job)
        if job.state in OVER:
            return
        limit = times.parse_duration(job.body["constraints"]["maxWallClockTime"])
        if limit < NO_LIMIT:
            left = max(0.0, job.created + limit - times.now())
            self._clocks[job] = asyncio.get_running_loop().call_later(left, self._expired, job)
        if job.tasks:
            self._all_complete(job)
        else:
            asyncio.get_running_loop().call_later(self._base.pace.here(EMPTY), self._all_complete, job)

    def _stop_clock(self, job: Job) -> None:
        if (clock := self._clocks.pop(job, None)) is not None:
            clock.cancel()

    def _expired(self, job: Job) -> None:
        if job.state not in OVER:
            self.terminate(job, "MaxWallClockTimeExpiry")

    # Ended

    def terminate(self, job: Job, reason: str | None) -> None:
        """Begin to end a job.

        :param job: the job, active or disabled.
        :param reason: what its executionInfo gives as the reason.
        """
        job.reason = reason
        job.move(JobState.TERMINATING)
        self._base.store.touch(job)
        self.close(job)

    def delete(self, job: Job) -> None:
        """Begin to delete a job with its tasks and their files.

        :param job: the job.
        """
        ran = job.state != JobState.COMPLETED
        job.move(JobState.DELETING)
        self._base.store.touch(job)
        self.close(job, release=ran)

    def close(self, job: Job, *, release: bool = True) -> None:
        """Go on with the ending of a job that was begun.

        :param job: the job, terminating or deleting.
        :param release: run its release tasks.
        """
        self._stop_clock(job)
        if job not in self._closing:
            self._closing.add(job)
            self._base.spawn(self._close(job, release))

    async def _close(self, job: Job, release: bool) -> None:
        try:
            # Nothing ends, and no file goes, before that is kept.
            await self._base.store.settle(job.uid)
            placed = self._tasks.of_job(job)
            if job.state == JobState.DELETING:
                await self._tasks.discard(placed)
            else:
                self._tasks.stop(placed, Dealing.TERMINATE)
                await self._tasks.left(placed)
            await self._preparations.stop(job)
            if release:
                await self._preparations.release(job)
            if self._base.stopping:
                return
            if job.state == JobState.TERMINATING:
                job.move(JobState.COMPLETED)
                job.ended = times.now()
                self._base.store.touch(job)
            else:
                await self._purge(job)
            self._ended(job)
        finally:
            self._closing.discard(job)

    def _ended(self, job: Job) -> None:
        specification = job.body["poolInfo"].get("autoPoolSpecification") or {}
        if job.auto_pool and specification["poolLifetimeOption"] == "job" and not specification.get("keepAlive"):
            self._pools.drop(job.auto_pool)
        self._base.events.tell(JobEnded(job))

    async def _purge(self, job: Job) -> None:
        for pool in self._base.pools:
            for node in pool.nodes:
                directory = job_directory(self._base.root(node), job.id)
                await self._base.remove(directory)
                # That of its schedule, if it is empty now.
                await threads.apart(removal.remove_empty, directory.parent, self._base.config.nodes)
        for part in job.nodes.values():
            self._base.store.drop(part.uid)
        async for task in sliced(job.tasks):
            self._base.store.drop(task.uid)
        self._base.store.drop(job.uid)
        self._base.jobs.remove(job)

    # Disabled

    def disable(self, job: Job, option: DisableTasks) -> None:
        """Begin to disable a job.

        :param job: the job, active.
        :param option: what becomes of its running tasks.
        """
        job.move(JobState.DISABLING)
        self._base.store.touch(job)
        if option is not DisableTasks.WAIT:
            dealing = Dealing.TERMINATE if option is DisableTasks.TERMINATE else Dealing.REQUEUE
            self._tasks.stop(self._tasks.of_job(job), dealing)
        self._disabled(job)

    def _disabled(self, job: Job) -> None:
        if job.state == JobState.DISABLING and not job.running:
            job.move(JobState.DISABLED)
            self._base.store.touch(job)

    def enable(self, job: Job) -> None:
        """Let a disabled job's tasks run again.

        :param job: the job, disabled.
        """
        job.move(JobState.ENABLING)
        job.move(JobState.ACTIVE)
        self._base.store.touch(job)
        self._tasks.look(job.pool_id)
        self._all_complete(job)

    # What its tasks come to

    def _task_ended(self, event: TaskEnded) -> None:
        """See what follows for the job from a task that is no longer running."""
        task, job = event.task, event.task.job
        if task.state == TaskState.COMPLETED:
            manager = task.manager
            if manager is not None and manager["killJobOnCompletion"] and job.state not in OVER:
                self.terminate(job, "JMComplete")
            if event.ran and job.state == JobState.ACTIVE:
                action = job_action(task)
                if action is JobAction.TERMINATE:
                    self.terminate(job, "TaskFailed")
                elif action is JobAction.DISABLE:
                    self.disable(job, DisableTasks.REQUEUE)
        self._disabled(job)
        self._all_complete(job)

    def _all_complete(self, job: Job) -> None:
        open_tasks = job.counts["active"] + job.counts["running"]
        if job.state == JobState.ACTIVE and job.body["onAllTasksComplete"] == "terminatejob" and not open_tasks:
            self.terminate(job, "AllTasksComplete")


def _same_auto_pool(job: Job, pool_info: dict[str, Any]) -> None:
    present, sent = (
        {**info.get("autoPoolSpecification", {}), "keepAlive": None} for info in (job.body["poolInfo"], pool_info)
    )
    if present != sent:
        raise invalid("poolInfo", "of an auto pool only keepAlive can be changed.")
