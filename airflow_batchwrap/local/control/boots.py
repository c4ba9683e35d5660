"""How nodes start: their directories, their packages, their start task."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from airflow_batchwrap.local.control import works
from airflow_batchwrap.local.control.base import Base
from airflow_batchwrap.local.model.entities import Execution, Node
from airflow_batchwrap.local.model.states import NodeState, NodeWish, Result
from airflow_batchwrap.local.node import agentlog, container, endpoints, environment, layout, packages, threads
from airflow_batchwrap.local.node.run import Run, Work
from airflow_batchwrap.local.wire import times

log = logging.getLogger(__name__)

#: What of a node's time from creating to idle it is creating; the rest it is starting.
_CREATING = 0.6


class Boots:
    """Starts nodes.

    :param base: the state.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self._runs: dict[Node, Run] = {}
        # Nodes of a pool start together.
        self._places = threads.Together(layout.make_nodes)

    def run_of(self, node: Node) -> Run | None:
        """The latest run of a node's start task.

        :param node: the node.
        :return: the run; None where there was none.
        """
        return self._runs.get(node)

    def forget(self, node: Node) -> None:
        """Let a node go.

        :param node: the node.
        """
        self._runs.pop(node, None)

    def runs(self) -> list[Run]:
        """The runs of start tasks.

        :return: them; some may be over.
        """
        return list(self._runs.values())

    async def boot(self, node: Node) -> bool:
        """Start a node: its directories, its start task, and then it can work.

        :param node: the node, creating, rebooting, reimaging or starting.
        :return: whether it has come to rest: False where something else has happened to it meanwhile.
        """
        if node.state == NodeState.LEAVING or self._base.stopping:
            return False
        mark = node.booted = times.now()
        await self._base.turnstile.turn()
        share = _CREATING if node.state == NodeState.CREATING else 0.0
        await self._wait(share)
        if share and self._base.pace.node:
            # Those that were made together have waited together.
            await self._base.turnstile.turn()
        if node.booted != mark or node.state == NodeState.LEAVING or self._base.stopping:
            return False
        if node.state in (NodeState.REBOOTING, NodeState.REIMAGING) and node.wish != NodeWish.LEAVE:
            # What was asked of it is done, but for the start.
            node.wish = NodeWish.NONE
        if node.state != NodeState.STARTING:
            node.move(NodeState.STARTING)
        node.booted = mark = times.now()
        error = await self._places.call(self._base.root(node))
        if node.state == NodeState.LEAVING:
            # It was removed while its directories were made: some of them may be gone already.
            await self._base.remove(self._base.root(node))
            return False
        if node.booted != mark or node.state != NodeState.STARTING or self._base.stopping:
            return False
        if error is not None:
            # Something is in its place that is no directory of ours, or the disk is full.
            log.error("The directories of the node %s cannot be made: %s.", node.id, error)
            node.move(NodeState.UNUSABLE)
            self._base.store.touch(node)
            return False
        await self._base.doors.open(node.id, endpoints.of_pool(node.pool.body, node.index, node.address))
        agentlog.write(self._base.root(node), f"node {node.id} of pool {node.pool.id} is starting")
        await self._wait(1 - share)
        await self._base.turnstile.turn()
        if node.booted != mark or node.state != NodeState.STARTING:
            return False
        if not await self._prepare(node, mark):
            return False
        agentlog.write(self._base.root(node), f"node is {node.state}")
        self._base.store.touch(node)
        return True

    async def _prepare(self, node: Node, mark: float) -> bool:
        """Bring a starting node to where it can work.

        :return: whether it still is the start that was begun.
        """
        failure = await self._bring(node, node.pool.body)
        if node.booted != mark or node.state != NodeState.STARTING:
            return False
        if failure is not None:
            agentlog.write(self._base.root(node), failure)
            node.move(NodeState.UNUSABLE)
            return True
        body = node.pool.body.get("startTask")
        if body is None:
            node.start = None
            node.move(node.resting)
        elif body["waitForSuccess"]:
            node.move(NodeState.WAITING)
            self._base.store.touch(node)
            await self._start_task(node, body)
            if self._base.stopping or node.booted != mark or node.state != NodeState.WAITING:
                return False
            if node.start is None:
                return False
            node.move(node.resting if node.start.result == Result.SUCCESS else NodeState.START_FAILED)
        else:
            node.move(node.resting)
            self._base.spawn(self._start_task(node, body))
        return True

    async def _bring(self, node: Node, body: dict[str, Any]) -> str | None:
        """Bring to a node what its pool says; what went wrong, if anything did."""
        if body.get("mountConfiguration"):
            # Better no node than one on which tasks find an empty directory.
            return "the local Batch service cannot mount anything"
        if references := body.get("applicationPackageReferences"):
            data, root = self._base.config.data, self._base.root(node)
            try:
                await packages.deploy(data, root, references)
            except packages.FAULTS as error:
                return f"an application package could not be deployed: {error}"
        return None

    async def _wait(self, share: float) -> None:
        seconds = self._base.pace.here(self._base.pace.node * share)
        if seconds > 0:
            await asyncio.sleep(seconds)

    async def _start_task(self, node: Node, body: dict[str, object]) -> None:
        root = self._base.root(node)
        limit = int(str(body["maxTaskRetryCount"]))
        execution = node.start = Execution(times.now())
        directory = root / "startup"
        variables = works.of_node(self._base, node) | environment.of_task(directory)
        variables |= environment.settings(body.get("environmentSettings"))  # type: ignore[arg-type]
        files: Any = body.get("resourceFiles", [])
        settings: Any = body.get("containerSettings")
        contained = container.of_task(settings, directory, root, None, supported=node.pool.contains)
        work = Work(
            str(body["commandLine"]), directory, root, variables, files, keep=True, how="detach", container=contained
        )
        while node.state != NodeState.LEAVING:
            run = self._runs[node] = Run(work, self._base.blobs)
            self._base.store.touch(node)
            outcome = await run.execute()
            if self._base.stopping or run.reason is not None:
                return
            if not outcome.retriable or 0 <= limit <= execution.retries:
                execution.finish(outcome.exit_code, outcome.failure, outcome.container)
                self._base.store.touch(node)
                return
            execution.retry()
