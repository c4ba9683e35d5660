"""Nodes come and go: allocation and removal."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterable, Sequence

from airflow_batchwrap.local.control import usage
from airflow_batchwrap.local.control.world import World
from airflow_batchwrap.local.model.entities import Node, Pool
from airflow_batchwrap.local.model.rules.pools import MOST_NODES
from airflow_batchwrap.local.wire import times

#: What Azure's messages call dedicated nodes, and others.
_NAMES = {True: "dedicated", False: "low priority"}
#: The code and the words of an allocation that took too long.
_TIMED_OUT = ("AllocationTimedout", "there were none to be had within the resize timeout")


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
            node.draining = node.named = True
            self._world.store.touch(node)
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
                    node.draining = node.named = False
                    self._world.store.touch(node)
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
        missing = {dedicated: self._missing(pool, dedicated) for dedicated in (True, False)}
        if not any(missing.values()):
            return
        await _first(stop, max(0.0, min(pace.here(pace.allocation), deadline - loop.time())))
        late = pace.here(pace.allocation) > 0 and loop.time() >= deadline
        if not stop.is_set():
            # Only now, since others may have taken what was there, or left it.
            missing = {dedicated: self._allowed(pool, dedicated) for dedicated in missing}
            if any(missing.values()) and self._world.config.faults.strikes("allocation"):
                self._fail(pool, missing)
                return
        while not stop.is_set() and not late and pool.state == "active":
            room = self._room
            for dedicated in missing:
                while missing[dedicated] and self._has_room(pool, dedicated):
                    missing[dedicated] -= 1
                    self._world.spawn(self._world.boots.boot(self._create(pool, dedicated)))
            if not any(missing.values()):
                return
            await _first(stop, deadline - loop.time(), room)
            late = loop.time() >= deadline
        if pool.state == "deleting":
            return
        code, why = ("ResizeStopped", "the resize was stopped") if stop.is_set() else _TIMED_OUT
        for dedicated, count in missing.items():
            if count:
                self._lack(pool, code, f"{count} {_NAMES[dedicated]} nodes could not be allocated: {why}.")

    def _missing(self, pool: Pool, dedicated: bool) -> int:
        """How many nodes of a kind a pool lacks."""
        target = pool.target_dedicated if dedicated else pool.target_low_priority
        return max(0, target - sum(node.dedicated == dedicated for node in pool.nodes))

    def _allowed(self, pool: Pool, dedicated: bool) -> int:
        """How many of the nodes that a pool lacks the quota lets it have; the rest is a resize error."""
        wanted = self._missing(pool, dedicated)
        allowed = min(wanted, self._in_quota(pool, dedicated))
        if allowed < wanted:
            quota = self._world.config.quotas.of_cores(dedicated)
            limit = f"a pool has {MOST_NODES} nodes of a kind at most here" if quota is None else f"{quota} cores"
            code = "AccountCoreQuotaReached" if dedicated else "AccountLowPriorityCoreQuotaReached"
            self._lack(pool, code, f"The specified account has reached core quota ({limit}).")
        return allowed

    def _in_quota(self, pool: Pool, dedicated: bool) -> int:
        """How many more nodes of a kind a pool may get before the account's cores are used up."""
        quota = self._world.config.quotas.of_cores(dedicated)
        if quota is None:
            return MOST_NODES - sum(node.dedicated == dedicated for node in pool.nodes)
        held = sum(
            usage.cores(node.pool.body["vmSize"])
            for one in self._world.pools
            for node in one.nodes
            if node.dedicated == dedicated
        )
        return max(0, quota - held) // usage.cores(pool.body["vmSize"])

    def _fail(self, pool: Pool, missing: dict[bool, int]) -> None:
        """Note that nodes could not be allocated, in Azure's own words."""
        why = "Deployment allocation failed due to insufficient capacity for the requested VM size in the region."
        for dedicated in (kind for kind, count in missing.items() if count):
            message = f"Desired number of {_NAMES[dedicated]} nodes could not be allocated"
            self._lack(pool, "AllocationFailed", message, [{"name": "Reason", "value": why}])

    def _lack(self, pool: Pool, code: str, message: str, values: Sequence[dict[str, str]] = ()) -> None:
        error = {"code": code, "message": message, **({"values": list(values)} if values else {})}
        pool.resize_errors = [*pool.resize_errors, error]
        self._world.store.touch(pool)

    def _has_room(self, pool: Pool, dedicated: bool) -> bool:
        """Whether one more node of a kind is to be had, now that others may have got theirs."""
        config = self._world.config
        if config.capacity is not None and sum(len(one.nodes) for one in self._world.pools) >= config.capacity:
            return False
        return config.quotas.of_cores(dedicated) is None or self._in_quota(pool, dedicated) > 0

    def _surplus(self, pool: Pool) -> list[Node]:
        surplus: list[Node] = []
        for dedicated, target in ((True, pool.target_dedicated), (False, pool.target_low_priority)):
            nodes = [node for node in pool.nodes if node.dedicated == dedicated]
            # Those that cannot work go first, then the idle ones, then those with the least to do; the newest first.
            nodes.sort(key=lambda node: (not node.named, node.usable, node.used, -node.uid))
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

    def leaves(self, node: Node) -> bool:
        """Whether a node is about to leave its pool.

        :param node: the node.
        :return: whether it is, be it that it waits for its tasks first.
        """
        return node in self._leavings

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
        await self._world.boots.clear(node, option)
        if self._world.stopping:
            return
        node.move("leavingpool")
        self._world.store.touch(node)
        await self._world.boots.silence(node)
        root = self._world.root(node)
        await self._world.remove(root)
        self._leavings.pop(node, None)
        self.forget(node)

    def replace(self, node: Node) -> None:
        """Put a new node in the place of one that is gone.

        :param node: the node, preempted and not about to leave.
        """
        if node in self._leavings:
            return
        self.forget(node)
        self._world.spawn(self._world.boots.boot(self._create(node.pool, node.dedicated)))

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
