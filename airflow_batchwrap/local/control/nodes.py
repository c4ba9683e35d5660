"""Nodes come and go: allocation, start tasks, removal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Iterable
from typing import Any

from airflow_batchwrap.local.control import usage
from airflow_batchwrap.local.control.scheduler import finish
from airflow_batchwrap.local.control.world import World
from airflow_batchwrap.local.node import agentlog, container, environment, layout, packages, process
from airflow_batchwrap.local.node.run import Run, Work
from airflow_batchwrap.local.state.entities import Execution, Node, Pool
from airflow_batchwrap.local.wire import times

#: Nodes of a kind that a pool may have here: each is a directory and some memory, and a typing error (or a formula)
#: should not fill the disk.
MOST_NODES = 1000
#: What of a node's time from creating to idle it is creating; the rest it is starting.
_CREATING = 0.6
#: How often a node that keeps its tasks' data is looked at, in seconds.
_LOOK = 0.5


class Nodes:
    """Brings pools to their targets.

    :param world: the state.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._stop: dict[str, asyncio.Event] = {}
        self._leavings: dict[Node, asyncio.Task[None]] = {}
        #: Set, and replaced, when a node goes and leaves room for another.
        self._room = asyncio.Event()

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
        pool.resize_errors = []
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
        self._world.autoscaler.end(pool)
        self._stop.setdefault(pool.id, asyncio.Event()).set()
        self._world.spawn(self._delete(pool))

    async def _delete(self, pool: Pool) -> None:
        await asyncio.gather(*(self._leaving(node, "requeue") for node in pool.nodes))
        self._world.pools.remove(pool)
        self._world.store.drop(pool.uid)
        self._stop.pop(pool.id, None)

    async def _allocate(self, pool: Pool, option: str, leaving: Iterable[Node] = ()) -> None:
        stop = self._stop[pool.id]
        chosen = list(leaving)
        leaving = chosen or self._surplus(pool)
        for node in leaving:
            node.draining = True
        leavings = [self._leaving(node, option) for node in leaving]
        if not chosen:
            await self._grow(pool, stop)
        stopped = asyncio.ensure_future(stop.wait())
        while leavings and not stop.is_set():
            _, pending = await asyncio.wait([*leavings, stopped], return_when=asyncio.FIRST_COMPLETED)
            leavings = [task for task in leavings if task in pending]
        stopped.cancel()
        if pool.state == "deleting" or self._world.stopping:
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
        self._world.autoscaler.settled(pool)

    async def _grow(self, pool: Pool, stop: asyncio.Event) -> None:
        """Add the nodes that are missing, as far as they are to be had within the resize timeout."""
        pace, loop = self._world.pace, asyncio.get_running_loop()
        deadline = loop.time() + pace.here(times.parse_duration(pool.body["resizeTimeout"]))
        missing = {dedicated: self._allowed(pool, dedicated) for dedicated in (True, False)}
        if not any(missing.values()):
            return
        await _first(stop, max(0.0, min(pace.here(pace.allocation), deadline - loop.time())))
        late = pace.here(pace.allocation) > 0 and loop.time() >= deadline
        while not stop.is_set() and not late and pool.state == "active":
            room = self._room
            for dedicated in missing:
                while missing[dedicated] and self._has_room():
                    missing[dedicated] -= 1
                    self._world.spawn(self.boot(self._create(pool, dedicated)))
            if not any(missing.values()):
                return
            await _first(stop, deadline - loop.time(), room)
            late = loop.time() >= deadline
        if pool.state == "deleting":
            return
        kinds = {True: "dedicated", False: "low priority"}
        code, why = ("ResizeStopped", "the resize was stopped") if stop.is_set() else _TIMED_OUT
        for dedicated, count in missing.items():
            if count:
                self._lack(pool, code, f"{count} {kinds[dedicated]} nodes could not be allocated: {why}.")

    def _allowed(self, pool: Pool, dedicated: bool) -> int:
        """How many nodes of a kind a pool lacks, as far as the quota lets it have them."""
        target = pool.target_dedicated if dedicated else pool.target_low_priority
        present = sum(node.dedicated == dedicated for node in pool.nodes)
        wanted = max(0, target - present)
        if self._world.config.quota is None:
            quota, held = MOST_NODES, present
        else:
            quota = self._world.config.quota
            held = sum(node.dedicated == dedicated for one in self._world.pools for node in one.nodes)
        allowed = min(wanted, max(0, quota - held))
        if allowed < wanted:
            code = "AccountCoreQuotaReached" if dedicated else "AccountLowPriorityCoreQuotaReached"
            self._lack(pool, code, f"The account may have {quota} nodes of this kind, and has {held}.")
        return allowed

    def _lack(self, pool: Pool, code: str, message: str) -> None:
        pool.resize_errors = [*pool.resize_errors, {"code": code, "message": message}]
        self._world.store.touch(pool)

    def _has_room(self) -> bool:
        capacity = self._world.config.capacity
        return capacity is None or sum(len(pool.nodes) for pool in self._world.pools) < capacity

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
        mark = node.booted = times.now()
        share = _CREATING if node.state == "creating" else 0.0
        await self._wait(share)
        if node.booted != mark or node.state == "leavingpool":
            return
        if node.state != "starting":
            node.move("starting")
        node.booted = mark = times.now()
        layout.make_node(self._world.root(node))
        agentlog.write(self._world.root(node), f"node {node.id} of pool {node.pool.id} is starting")
        await self._wait(1 - share)
        if node.booted != mark or node.state != "starting":
            return
        node.draining = node in self._leavings
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
                await asyncio.to_thread(packages.deploy, data, root, references)
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
        variables = self._world.scheduler.node_variables(node) | environment.of_task(directory)
        variables |= environment.settings(body.get("environmentSettings"))  # type: ignore[arg-type]
        files: Any = body.get("resourceFiles", [])
        settings: Any = body.get("containerSettings")
        contained = container.of_task(settings, directory, root, None, supported=node.pool.contains)
        work = Work(str(body["commandLine"]), directory, root, variables, files, keep=True, container=contained)
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
        await self.clear(node, option)
        if self._world.stopping:
            return
        node.move("leavingpool")
        self._world.store.touch(node)
        await self.silence(node)
        root = self._world.root(node)
        await asyncio.to_thread(layout.remove, root)
        self._leavings.pop(node, None)
        self.forget(node)

    def replace(self, node: Node) -> None:
        """Put a new node in the place of one that is gone.

        :param node: the node, preempted and not about to leave.
        """
        if node in self._leavings:
            return
        self.forget(node)
        self._world.spawn(self.boot(self._create(node.pool, node.dedicated)))

    def forget(self, node: Node) -> None:
        """Take a node that is gone out of its pool.

        :param node: the node.
        """
        usage.leave(node)
        node.pool.nodes.remove(node)
        self._world.store.touch(node.pool)
        self._world.store.drop(node.uid)
        self._room.set()
        self._room = asyncio.Event()

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
            root = str(self._world.root(node))
            await asyncio.to_thread(process.kill_all_marked, "AZ_BATCH_NODE_ROOT_DIR", root)


#: The code and the words of an allocation that took too long.
_TIMED_OUT = ("AllocationTimedout", "there were none to be had within the resize timeout")


async def _first(stop: asyncio.Event, seconds: float, other: asyncio.Event | None = None) -> None:
    """Wait for one of two events, or for a while."""
    if seconds <= 0:
        return
    waits = [asyncio.ensure_future(event.wait()) for event in (stop, other) if event is not None]
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
