"""Nodes come and go: allocation, start tasks, removal."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable

from airflow_batchwrap.local.control.scheduler import finish
from airflow_batchwrap.local.control.world import World
from airflow_batchwrap.local.node import environment, layout
from airflow_batchwrap.local.node.run import Run, Work
from airflow_batchwrap.local.state.entities import Execution, Node, Pool
from airflow_batchwrap.local.wire import times


class Nodes:
    """Brings pools to their targets.

    :param world: the state.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._stop: dict[str, asyncio.Event] = {}
        self._leavings: dict[Node, asyncio.Task[None]] = {}

    def resize(self, pool: Pool, dedicated: int, low_priority: int, option: str = "requeue") -> None:
        """Begin to bring a pool to other targets.

        :param pool: the pool, whose allocation is steady.
        :param dedicated: the number of dedicated nodes.
        :param low_priority: the number of spot nodes.
        :param option: what becomes of tasks on nodes that go: requeue, terminate, taskcompletion, retaineddata.
        """
        pool.target_dedicated, pool.target_low_priority = dedicated, low_priority
        pool.resize_errors = []
        pool.allocate("resizing")
        self._world.store.touch(pool)
        self.resume(pool, option)

    def resume(self, pool: Pool, option: str = "requeue") -> None:
        """Go on with an allocation that was begun.

        :param pool: the pool, whose allocation is not steady.
        :param option: what becomes of tasks on nodes that go.
        """
        self._stop[pool.id] = asyncio.Event()
        self._world.spawn(self._allocate(pool, option))

    def remove(self, pool: Pool, nodes: list[Node], option: str = "requeue") -> None:
        """Begin to take nodes out of a pool; its targets fall with them.

        :param pool: the pool, whose allocation is steady.
        :param nodes: the nodes.
        :param option: what becomes of their tasks.
        """
        pool.target_dedicated = max(0, pool.target_dedicated - sum(node.dedicated for node in nodes))
        pool.target_low_priority = max(0, pool.target_low_priority - sum(not node.dedicated for node in nodes))
        pool.allocate("resizing")
        self._world.store.touch(pool)
        for node in nodes:
            node.draining = True
        self._stop[pool.id] = asyncio.Event()
        self._world.spawn(self._allocate(pool, option, nodes))

    def stop_resize(self, pool: Pool) -> None:
        """Leave a pool with the nodes it has.

        :param pool: the pool, whose allocation is resizing.
        """
        pool.allocate("stopping")
        self._world.store.touch(pool)
        self._stop.setdefault(pool.id, asyncio.Event()).set()

    def delete(self, pool: Pool) -> None:
        """Begin to delete a pool; its tasks go back to their jobs' queues.

        :param pool: the pool.
        """
        self._world.store.touch(pool)
        self._stop.setdefault(pool.id, asyncio.Event()).set()
        self._world.spawn(self._delete(pool))

    async def _delete(self, pool: Pool) -> None:
        await asyncio.gather(*(self._leaving(node, "requeue") for node in pool.nodes))
        self._world.pools.remove(pool)
        self._world.store.drop(pool.uid)
        self._stop.pop(pool.id, None)

    async def _allocate(self, pool: Pool, option: str, leaving: Iterable[Node] = ()) -> None:
        stop = self._stop[pool.id]
        leaving = list(leaving) or self._surplus(pool)
        for node in leaving:
            node.draining = True
        for dedicated, target in ((True, pool.target_dedicated), (False, pool.target_low_priority)):
            present = sum(node.dedicated == dedicated for node in pool.nodes)
            for _ in range(target - present):
                self._world.spawn(self.boot(self._create(pool, dedicated)))
        leavings = [self._leaving(node, option) for node in leaving]
        stopped = asyncio.ensure_future(stop.wait())
        while leavings and not stop.is_set():
            _, pending = await asyncio.wait([*leavings, stopped], return_when=asyncio.FIRST_COMPLETED)
            leavings = [task for task in leavings if task in pending]
        stopped.cancel()
        if pool.state == "deleting":
            return
        if stop.is_set():
            for node in leaving:
                # One that waits for its tasks stays; one that is on its way out goes.
                if node.state != "leavingpool" and (waiting := self._leavings.pop(node, None)):
                    waiting.cancel()
                    node.draining = False
            pool.target_dedicated = sum(node.dedicated for node in pool.nodes)
            pool.target_low_priority = len(pool.nodes) - pool.target_dedicated
            self._world.scheduler.kick(pool.id)
        pool.allocate("steady")
        self._world.store.touch(pool)

    def _surplus(self, pool: Pool) -> list[Node]:
        surplus: list[Node] = []
        for dedicated, target in ((True, pool.target_dedicated), (False, pool.target_low_priority)):
            nodes = [node for node in pool.nodes if node.dedicated == dedicated]
            # Those that cannot work go first, then the idle ones, then those with the least to do; the newest first.
            nodes.sort(key=lambda node: (node.usable, node.used, -node.uid))
            surplus += nodes[: max(0, len(nodes) - target)]
        return surplus

    def _create(self, pool: Pool, dedicated: bool) -> Node:
        taken = {node.index for node in pool.nodes}
        index = next(number for number in range(len(taken) + 1) if number not in taken)
        name = f"tvmps_{secrets.token_hex(32)}_{'d' if dedicated else 'p'}"
        node = Node(self._world.store.next_uid(), name, pool, dedicated=dedicated, index=index)
        pool.nodes.add(node)
        self._world.store.touch(node)
        return node

    async def boot(self, node: Node) -> None:
        """Start a node: its directories, its start task, and then it can work.

        :param node: the node, creating, rebooting, reimaging or starting.
        """
        if node.state == "leavingpool" or self._world.stopping:
            return
        if node.state != "starting":
            node.move("starting")
        node.booted = times.now()
        layout.make_node(self._world.root(node))
        body = node.pool.body.get("startTask")
        if body is None:
            node.move("idle")
        elif body["waitForSuccess"]:
            node.move("waitingforstarttask")
            self._world.store.touch(node)
            await self._start_task(node, body)
            if self._world.stopping or node.state != "waitingforstarttask" or node.start is None:
                return
            node.move("idle" if node.start.result == "success" else "starttaskfailed")
        else:
            node.move("idle")
            self._world.spawn(self._start_task(node, body))
        self._world.store.touch(node)
        self._world.scheduler.kick(node.pool.id)

    async def _start_task(self, node: Node, body: dict[str, object]) -> None:
        root = self._world.root(node)
        limit = int(str(body["maxTaskRetryCount"]))
        execution = node.start = Execution(times.now())
        directory = root / "startup"
        variables = self._world.scheduler.node_variables(node) | environment.of_task(directory)
        variables |= environment.settings(body.get("environmentSettings"))  # type: ignore[arg-type]
        files = body.get("resourceFiles", [])
        work = Work(str(body["commandLine"]), directory, root, variables, files, keep=True)  # type: ignore[arg-type]
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

    def _leaving(self, node: Node, option: str) -> asyncio.Task[None]:
        under_way = self._leavings.get(node)
        if under_way is None:
            under_way = self._leavings[node] = self._world.spawn(self._leave(node, option))
        elif option == "requeue":
            # Its tasks were to be waited for, and no longer are: the pool is being deleted.
            for run in node.runs.values():
                run.stop("requeue")
        return under_way

    async def _leave(self, node: Node, option: str) -> None:
        node.draining = True
        if option not in ("taskcompletion", "retaineddata"):
            for run in list(node.runs.values()):
                run.stop("terminated" if option == "terminate" else "requeue")
        for run in list(node.runs.values()):
            await run.over.wait()
        if self._world.stopping:
            return
        node.move("leavingpool")
        self._world.store.touch(node)
        others = [node.start_run] if node.start_run else []
        others += [part.run for job in self._world.jobs if (part := job.nodes.get(node.id)) and part.run]
        for run in others:
            run.stop("discard")
            await run.over.wait()
        root = self._world.root(node)
        await asyncio.to_thread(layout.remove, root)
        node.pool.nodes.remove(node)
        self._world.store.drop(node.uid)
        self._leavings.pop(node, None)
