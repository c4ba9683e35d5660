"""What a job does on a node beside its tasks: job preparation and job release tasks."""

from __future__ import annotations

import asyncio

from airflow_batchwrap.local.control import works
from airflow_batchwrap.local.control.base import Base
from airflow_batchwrap.local.model.entities import Execution, Job, Node, NodeJob
from airflow_batchwrap.local.model.states import Ending, ExecutionState, NodeState
from airflow_batchwrap.local.node.run import Run
from airflow_batchwrap.local.wire import times


class Preparations:
    """Runs job preparation and job release tasks.

    :param base: the state.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self._runs: dict[NodeJob, Run] = {}
        #: Set once a preparation that is under way is over.
        self._over: dict[NodeJob, asyncio.Event] = {}

    def of(self, job: Job, node: Node) -> NodeJob | None:
        """What a job does on a node.

        :param job: the job.
        :param node: the node.
        :return: it; None where the job has no preparation task.
        """
        if "jobPreparationTask" not in job.body:
            return None
        part = job.nodes.get(node.id)
        if part is None:
            part = job.nodes[node.id] = NodeJob(self._base.store.next_uid(), job, node.pool.id, node.id)
        return part

    def begin(self, part: NodeJob, node: Node) -> None:
        """Prepare a node for a job, unless that is done, has failed, or is under way.

        :param part: what the job does on the node.
        :param node: the node.
        """
        if part not in self._over and not part.prepared and not part.barred:
            self._over[part] = asyncio.Event()
            self._base.spawn(self._prepare(part, node))

    async def prepared(self, part: NodeJob, stopped: asyncio.Event) -> None:
        """Wait until a node is prepared, or cannot be.

        :param part: what the job does on the node.
        :param stopped: ends the wait.
        """
        if (over := self._over.get(part)) is not None:
            await _either(over, stopped)

    async def _prepare(self, part: NodeJob, node: Node) -> None:
        body = part.job.body["jobPreparationTask"]
        limit = body["constraints"]["maxTaskRetryCount"]
        execution = part.prepare = Execution(times.now())
        part.stale = False
        while True:
            work = works.of_job(self._base, part.job, node, body, body["constraints"]["maxWallClockTime"])
            run = self._runs[part] = Run(work, self._base.blobs)
            self._base.store.touch(part)
            outcome = await run.execute()
            if self._base.stopping:
                return
            if run.reason is not None or not outcome.retriable or 0 <= limit <= execution.retries:
                break
            execution.retry()
        if part.job.nodes.get(part.node_id) is not part:
            # Its job has left the pool: nobody asks, and nothing of it is kept.
            del self._runs[part]
            self._over.pop(part).set()
            return
        execution.finish(outcome.exit_code, outcome.failure, outcome.container)
        if run.reason in (Ending.REQUEUE, Ending.LOST, Ending.DISCARD):
            part.prepare = None
        del self._runs[part]
        self._base.store.touch(part)
        self._over.pop(part).set()

    async def release(self, job: Job) -> None:
        """Run a job's release task on the nodes that it has prepared.

        :param job: the job.
        """
        if "jobReleaseTask" in job.body:
            await asyncio.gather(*(self._release(part) for part in list(job.nodes.values()) if part.ran))

    async def _release(self, part: NodeJob) -> None:
        node = self._base.node(part.pool_id, part.node_id)
        if node is None or node.state == NodeState.LEAVING:
            return
        if part.release and part.release.state == ExecutionState.COMPLETED:
            return
        await self._base.turnstile.turn()
        body = part.job.body["jobReleaseTask"]
        part.release = Execution(times.now())
        work = works.of_job(self._base, part.job, node, body, body["maxWallClockTime"])
        run = self._runs[part] = Run(work, self._base.blobs)
        self._base.store.touch(part)
        outcome = await run.execute()
        if self._base.stopping:
            return
        part.release.finish(outcome.exit_code, outcome.failure, outcome.container)
        del self._runs[part]
        self._base.store.touch(part)

    async def stop(self, job: Job) -> None:
        """End what a job prepares or releases, and wait for the end.

        :param job: the job.
        """
        for run in [run for part in job.nodes.values() if (run := self._runs.get(part))]:
            run.stop(Ending.TERMINATED)
            await run.over.wait()

    def abandon(self, job: Job) -> None:
        """End and forget what a job has prepared, or prepares still, on the nodes of a pool that it leaves.

        :param job: the job, disabled.
        """
        for part in job.nodes.values():
            self._base.store.drop(part.uid)
            if (run := self._runs.get(part)) is not None:
                run.stop(Ending.DISCARD)
        job.nodes.clear()

    def on(self, node: Node) -> list[Run]:
        """What is prepared or released on a node now.

        :param node: the node.
        :return: the runs.
        """
        return [run for part, run in self._runs.items() if part.node_id == node.id]

    def forget(self, node: Node, *, wiped: bool) -> None:
        """Forget what was prepared on a node, as far as the jobs want it or their files are gone.

        :param node: the node, which is rebooted or wiped.
        :param wiped: whether its files go.
        """
        for job in self._base.jobs:
            part = job.nodes.get(node.id)
            if part is None or part.prepare is None:
                continue
            if wiped:
                part.prepare = part.release = None
            elif part.prepared and job.body["jobPreparationTask"]["rerunOnNodeRebootAfterSuccess"]:
                part.stale = True
            self._base.store.touch(part)

    def runs(self) -> list[Run]:
        """All that is prepared or released now.

        :return: the runs.
        """
        return list(self._runs.values())


async def _either(first: asyncio.Event, second: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(first.wait()), asyncio.ensure_future(second.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
