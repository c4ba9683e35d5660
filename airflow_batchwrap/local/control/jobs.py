"""How jobs end: terminated, deleted, disabled; by a client, a clock, or their own tasks."""

from __future__ import annotations

import asyncio
import contextlib

from airflow_batchwrap.local.control import works
from airflow_batchwrap.local.control.exits import job_action
from airflow_batchwrap.local.control.scheduler import finish
from airflow_batchwrap.local.control.world import World
from airflow_batchwrap.local.model.entities import Execution, Job, NodeJob, Task
from airflow_batchwrap.local.node.layout import job_directory
from airflow_batchwrap.local.node.run import NO_LIMIT, Outcome, Run
from airflow_batchwrap.local.wire import times


class Jobs:
    """Ends jobs, and runs their release tasks.

    :param world: the state.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._closing: set[Job] = set()

    def watch(self, job: Job) -> None:
        """Start a job's clock, and end it at once if nothing keeps it open.

        :param job: the job, new, changed or loaded.
        """
        if job.timer is not None:
            job.timer.cancel()
            job.timer = None
        if job.state not in ("active", "disabling", "disabled", "enabling"):
            return
        limit = times.parse_duration(job.body["constraints"]["maxWallClockTime"])
        if limit < NO_LIMIT:
            left = max(0.0, job.created + limit - times.now())
            job.timer = asyncio.get_running_loop().call_later(left, self._expired, job)
        self._all_complete(job)

    def _expired(self, job: Job) -> None:
        if job.state in ("active", "disabling", "disabled", "enabling"):
            self.terminate(job, "MaxWallClockTimeExpiry")

    def terminate(self, job: Job, reason: str | None) -> None:
        """Begin to end a job.

        :param job: the job, active or disabled.
        :param reason: what its executionInfo gives as the reason.
        """
        job.reason = reason
        job.move("terminating")
        self._world.store.touch(job)
        self.close(job)

    def delete(self, job: Job) -> None:
        """Begin to delete a job with its tasks and their files.

        :param job: the job.
        """
        ran = job.state != "completed"
        job.move("deleting")
        self._world.store.touch(job)
        self.close(job, release=ran)

    def close(self, job: Job, *, release: bool = True) -> None:
        """Go on with the ending of a job that was begun.

        :param job: the job, terminating or deleting.
        :param release: run its release tasks.
        """
        if job.timer is not None:
            job.timer.cancel()
            job.timer = None
        if job not in self._closing:
            self._closing.add(job)
            self._world.spawn(self._close(job, release))

    async def _close(self, job: Job, release: bool) -> None:
        try:
            reason = "discard" if job.state == "deleting" else "terminated"
            runs = self._world.scheduler.stop(iter(job.tasks), reason)
            parts = list(job.nodes.values())
            runs += [part.run for part in parts if part.run]
            for run in runs:
                run.stop("terminated")
                await run.over.wait()
            if release and "jobReleaseTask" in job.body:
                await asyncio.gather(*(self._release(part) for part in parts if part.ran))
            if self._world.stopping:
                return
            if job.state == "terminating":
                job.move("completed")
                job.ended = times.now()
                self._world.store.touch(job)
            else:
                await self._purge(job)
            self._ended(job)
        finally:
            self._closing.discard(job)

    def _ended(self, job: Job) -> None:
        specification = job.body["poolInfo"].get("autoPoolSpecification") or {}
        if job.auto_pool and specification["poolLifetimeOption"] == "job" and not specification.get("keepAlive"):
            self.drop_pool(job.auto_pool)
        if job.schedule is not None:
            self._world.schedule_control.job_ended(job)

    def drop_pool(self, name: str) -> None:
        """Delete a pool that was made for jobs that are over.

        :param name: its id; one that is gone or going is no error.
        """
        pool = self._world.pools.get(name)
        if pool is not None and pool.state == "active":
            pool.move("deleting")
            self._world.node_control.delete(pool)

    async def _release(self, part: NodeJob) -> None:
        node = self._world.node(part.pool_id, part.node_id)
        if node is None or node.state == "leavingpool" or (part.release and part.release.state == "completed"):
            return
        body = part.job.body["jobReleaseTask"]
        part.release = Execution(times.now())
        part.run = Run(works.of_job(self._world, part.job, node, body, body["maxWallClockTime"]), self._world.blobs)
        self._world.store.touch(part)
        outcome = await part.run.execute()
        if self._world.stopping:
            return
        finish(part.release, outcome)
        part.run = None
        self._world.store.touch(part)

    async def _purge(self, job: Job) -> None:
        for pool in self._world.pools:
            for node in pool.nodes:
                directory = job_directory(self._world.root(node), job.id)
                await self._world.remove(directory)
                # That of its schedule, if it is empty now.
                with contextlib.suppress(OSError):
                    directory.parent.rmdir()
        for part in job.nodes.values():
            self._world.store.drop(part.uid)
        for task in job.tasks:
            self._world.store.drop(task.uid)
        self._world.store.drop(job.uid)
        self._world.jobs.remove(job)

    def disable(self, job: Job, option: str) -> None:
        """Begin to disable a job.

        :param job: the job, active.
        :param option: what becomes of its running tasks: requeue, terminate, wait.
        """
        job.move("disabling")
        self._world.store.touch(job)
        if option != "wait":
            self._world.scheduler.stop(iter(job.tasks), "terminated" if option == "terminate" else "requeue")
        self._disabled(job)

    def _disabled(self, job: Job) -> None:
        if job.state == "disabling" and not job.running:
            job.move("disabled")
            self._world.store.touch(job)

    def enable(self, job: Job) -> None:
        """Let a disabled job's tasks run again.

        :param job: the job, disabled.
        """
        job.move("enabling")
        job.move("active")
        self._world.store.touch(job)
        self._world.scheduler.kick(job.pool_id)
        self._all_complete(job)

    def task_ended(self, task: Task, outcome: Outcome | None) -> None:
        """See what follows for the job from a task that is no longer running.

        :param task: the task.
        :param outcome: how its run ended; None where its command never ran.
        """
        job = task.job
        manager = job.body.get("jobManagerTask")
        if (
            task.state == "completed"
            and manager is not None
            and manager["killJobOnCompletion"]
            and manager["id"].lower() == task.id.lower()
            and job.state in ("active", "disabling", "disabled")
        ):
            self.terminate(job, "JMComplete")
        if task.state == "completed" and outcome is not None and job.state == "active":
            action = job_action(task)
            if action == "terminate":
                self.terminate(job, "TaskFailed")
            elif action == "disable":
                self.disable(job, "requeue")
        self._disabled(job)
        self._all_complete(job)

    def _all_complete(self, job: Job) -> None:
        open_tasks = job.counts["active"] + job.counts["running"]
        if job.state == "active" and job.body["onAllTasksComplete"] == "terminatejob" and not open_tasks:
            self.terminate(job, "AllTasksComplete")


async def forget(world: World, task: Task) -> None:
    """Take a task out of its job, with its run and its files.

    :param world: the state.
    :param task: the task.
    """
    job = task.job
    node = world.node(task.pool_id, task.node_id)
    for run in world.scheduler.stop(iter([task]), "discard"):
        await run.over.wait()
    if job.tasks.get(task.id) is not task:
        return
    job.tasks.remove(task)
    job.ready.remove(task)
    job.dependencies.remove(task)
    job.dependencies.unsatisfy(task.id)
    job.counts[task.standing] -= 1
    job.slot_counts[task.standing] -= task.slots
    world.store.drop(task.uid)
    if node is not None:
        directory = job_directory(world.root(node), job.id) / task.id
        await world.remove(directory)
    world.job_control.task_ended(task, None)
