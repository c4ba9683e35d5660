"""Nodes live: they start, with packages and start tasks, and are brought to rest."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from airflow_batchwrap.local.control import works
from airflow_batchwrap.local.control.scheduler import finish
from airflow_batchwrap.local.control.world import World
from airflow_batchwrap.local.model.entities import Execution, Node
from airflow_batchwrap.local.node import agentlog, container, environment, layout, packages, process
from airflow_batchwrap.local.node.run import Run, Work
from airflow_batchwrap.local.wire import times

log = logging.getLogger(__name__)

#: What of a node's time from creating to idle it is creating; the rest it is starting.
_CREATING = 0.6
#: How often a node that keeps its tasks' data is looked at, in seconds.
_LOOK = 0.5


class Boots:
    """Starts nodes, and brings them to rest.

    :param world: the state.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    async def boot(self, node: Node) -> None:
        """Start a node: its directories, its start task, and then it can work.

        :param node: the node, creating, rebooting, reimaging or starting.
        """
        if node.state == "leavingpool" or self._world.stopping:
            return
        mark = node.booted = times.now()
        share = _CREATING if node.state == "creating" else 0.0
        await self._wait(share)
        if node.booted != mark or node.state == "leavingpool":
            return
        if node.state != "starting":
            node.move("starting")
        node.booted = mark = times.now()
        try:
            await layout.make_node(self._world.root(node))
        except OSError as error:
            # Something is in its place that is no directory of ours, or the disk is full.
            log.error("The directories of the node %s cannot be made: %s.", node.id, error)
            node.move("unusable")
            self._world.store.touch(node)
            return
        if node.state == "leavingpool":
            # It was removed while its directories were made.
            await self._world.remove(self._world.root(node))
            return
        agentlog.write(self._world.root(node), f"node {node.id} of pool {node.pool.id} is starting")
        await self._wait(1 - share)
        if node.booted != mark or node.state != "starting":
            return
        node.draining = self._world.node_control.leaves(node)
        if not await self._prepare(node, mark):
            return
        agentlog.write(self._world.root(node), f"node is {node.state}")
        self._world.store.touch(node)
        self._world.scheduler.kick(node.pool.id)

    async def _prepare(self, node: Node, mark: float) -> bool:
        """Bring a starting node to where it can work.

        :return: whether it still is the start that was begun.
        """
        failure = await self._bring(node, node.pool.body)
        if node.booted != mark or node.state != "starting":
            return False
        if failure is not None:
            agentlog.write(self._world.root(node), failure)
            node.move("unusable")
            return True
        body = node.pool.body.get("startTask")
        if body is None:
            node.start = None
            node.move(node.resting)
        elif body["waitForSuccess"]:
            node.move("waitingforstarttask")
            self._world.store.touch(node)
            await self._start_task(node, body)
            if self._world.stopping or node.booted != mark or node.state != "waitingforstarttask":
                return False
            if node.start is None:
                return False
            node.move(node.resting if node.start.result == "success" else "starttaskfailed")
        else:
            node.move(node.resting)
            self._world.spawn(self._start_task(node, body))
        return True

    async def _bring(self, node: Node, body: dict[str, Any]) -> str | None:
        """Bring to a node what its pool says; what went wrong, if anything did."""
        if body.get("mountConfiguration"):
            # Better no node than one on which tasks find an empty directory.
            return "the local Batch service cannot mount anything"
        if references := body.get("applicationPackageReferences"):
            data, root = self._world.config.data, self._world.root(node)
            try:
                await packages.deploy(data, root, references)
            except packages.FAULTS as error:
                return f"an application package could not be deployed: {error}"
        return None

    async def _wait(self, share: float) -> None:
        seconds = self._world.pace.here(self._world.pace.node * share)
        if seconds > 0:
            await asyncio.sleep(seconds)

    async def _start_task(self, node: Node, body: dict[str, object]) -> None:
        root = self._world.root(node)
        limit = int(str(body["maxTaskRetryCount"]))
        execution = node.start = Execution(times.now())
        directory = root / "startup"
        variables = works.of_node(self._world, node) | environment.of_task(directory)
        variables |= environment.settings(body.get("environmentSettings"))  # type: ignore[arg-type]
        files: Any = body.get("resourceFiles", [])
        settings: Any = body.get("containerSettings")
        contained = container.of_task(settings, directory, root, None, supported=node.pool.contains)
        work = Work(
            str(body["commandLine"]), directory, root, variables, files, keep=True, how="detach", container=contained
        )
        while node.state != "leavingpool":
            node.start_run = Run(work, self._world.blobs)
            self._world.store.touch(node)
            outcome = await node.start_run.execute()
            if self._world.stopping or node.start_run.reason is not None:
                return
            if not outcome.retriable or 0 <= limit <= execution.retries:
                finish(execution, outcome)
                self._world.store.touch(node)
                return
            execution.retries += 1
            execution.started = execution.last_retry = times.now()

    async def clear(self, node: Node, option: str) -> None:
        """See a node's tasks off.

        :param node: the node, on which no more tasks are placed.
        :param option: requeue, terminate, taskcompletion, retaineddata.
        """
        if option not in ("taskcompletion", "retaineddata"):
            for run in list(node.runs.values()):
                run.stop("terminated" if option == "terminate" else "requeue")
        for run in list(node.runs.values()):
            await run.over.wait()
        while option == "retaineddata" and not self._world.stopping and self._retains(node):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)

    def _retains(self, node: Node) -> bool:
        """Whether the directory of a completed task is still to be kept on a node."""
        now = times.now()
        for job in self._world.jobs:
            for task in job.tasks:
                if task.node_id == node.id and task.state == "completed" and task.ended is not None:
                    kept = times.parse_duration(json.loads(task.body)["constraints"]["retentionTime"])
                    if task.ended + self._world.pace.here(kept) > now:
                        return True
        return False

    async def silence(self, node: Node) -> None:
        """End what runs on a node beside its tasks: start, preparation and release tasks, and what tasks left behind.

        :param node: the node.
        """
        others = [node.start_run] if node.start_run else []
        others += [part.run for job in self._world.jobs if (part := job.nodes.get(node.id)) and part.run]
        for run in others:
            run.stop("discard")
            await run.over.wait()
        if node.tasks_run or node.recent or others:
            await process.HELPER.clear(self._world.root(node))
