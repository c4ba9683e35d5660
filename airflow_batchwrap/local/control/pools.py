"""The life of pools: created, resized, deleted."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterable
from typing import Any

from airflow_batchwrap.local.control import allocation
from airflow_batchwrap.local.control.base import Base
from airflow_batchwrap.local.control.events import NodeGone, PoolClosing, PoolOpened, PoolSteady
from airflow_batchwrap.local.control.nodes import Nodes
from airflow_batchwrap.local.control.tasks import Tasks
from airflow_batchwrap.local.model.entities import Node, Pool
from airflow_batchwrap.local.model.rules import pools as rules
from airflow_batchwrap.local.model.rules import scaling
from airflow_batchwrap.local.model.rules.values import invalid
from airflow_batchwrap.local.model.states import Allocation, Dealing, NodeWish, PoolState
from airflow_batchwrap.local.node import packages
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

#: Learn: a pool has at most 10 application package references.
MOST_PACKAGES = 10
#: What is said of an application that does not exist, as it was recorded.
_NO_PACKAGE = "The specified application package does not exist."
#: How many nodes are made in one turn of the loop.
_AT_ONCE = 25


class Pools:
    """Brings pools to their targets.

    :param base: the state.
    :param nodes: what becomes of their nodes.
    :param tasks: what runs on them.
    """

    def __init__(self, base: Base, nodes: Nodes, tasks: Tasks) -> None:
        self._base, self._nodes, self._tasks = base, nodes, tasks
        self._stop: dict[str, asyncio.Event] = {}
        #: Set, and replaced, when a node goes and leaves room for another.
        self._room = asyncio.Event()
        base.events.on(NodeGone, self._node_gone)

    # Created

    def check_packages(self, body: dict[str, Any]) -> None:
        """Check that there are the application packages that a pool refers to.

        :param body: the pool's body.
        :raises BatchError: one is missing.
        """
        references = body.get("applicationPackageReferences", [])
        if len(references) > MOST_PACKAGES:
            raise invalid("applicationPackageReferences", f"a pool can have {MOST_PACKAGES} at most.")
        missing: dict[str, str] = {}
        for reference in references:
            try:
                packages.find(self._base.config.data, reference)
            except packages.PackageMissing as error:
                # The first of these sentences is recorded; the rest are ours, and say more.
                said = f"The specified application package: {error}." if error.known else _NO_PACKAGE
                missing[reference["applicationId"]] = said
        if missing:
            raise BatchError("InvalidApplicationPackageReferences", values=missing)

    def make(self, name: str, body: dict[str, Any]) -> Pool:
        """Create a pool; its nodes come by and by.

        :param name: its id.
        :param body: what it is to be, but for the id: a client's words, or a job's specification of its own pool.
        :return: the pool.
        :raises BatchError: it cannot be, or there is one of this id.
        """
        self.check_packages(body)
        rules.prepare(body)
        scaled = scaling.of_new(body) is not None
        dedicated, low_priority = body.pop("targetDedicatedNodes", 0), body.pop("targetLowPriorityNodes", 0)
        if (existing := self._base.pools.get(name)) is not None:
            raise BatchError("PoolBeingDeleted" if existing.state == PoolState.DELETING else "PoolExists")
        most = self._base.config.quotas.pools
        if most is not None and (count := len(self._base.pools)) >= most:
            raise BatchError("PoolQuotaReached", f"The account has {count} pools, as many as it may: delete some.")
        pool = Pool(self._base.store.next_uid(), name, body)
        self._base.pools.add(pool)
        self._base.store.touch(pool)
        if not scaled:
            self.resize(pool, dedicated, low_priority)
        self._base.events.tell(PoolOpened(pool))
        return pool

    # Resized

    def resize(self, pool: Pool, dedicated: int, low_priority: int, dealing: Dealing = Dealing.REQUEUE) -> None:
        """Begin to bring a pool to other targets.

        :param pool: the pool, whose allocation is steady.
        :param dedicated: the number of dedicated nodes.
        :param low_priority: the number of spot nodes.
        :param dealing: what becomes of tasks on nodes that go.
        """
        pool.target_dedicated, pool.target_low_priority = dedicated, low_priority
        self._begin(pool, allocation.surplus(pool), dealing, grows=True)

    def remove(self, pool: Pool, nodes: list[Node], dealing: Dealing = Dealing.REQUEUE) -> None:
        """Begin to take nodes out of a pool; its targets fall with them.

        :param pool: the pool, whose allocation is steady.
        :param nodes: the nodes.
        :param dealing: what becomes of their tasks.
        """
        pool.target_dedicated = max(0, pool.target_dedicated - sum(node.dedicated for node in nodes))
        pool.target_low_priority = max(0, pool.target_low_priority - sum(not node.dedicated for node in nodes))
        self._begin(pool, nodes, dealing, grows=False)

    def _begin(self, pool: Pool, leaving: Iterable[Node], dealing: Dealing, *, grows: bool) -> None:
        pool.resize_errors = []
        pool.allocate(Allocation.RESIZING)
        self._base.store.touch(pool)
        self._stop[pool.id] = asyncio.Event()
        # Which nodes go is kept with the resize, so that a restart takes no others in their place.
        going = {node: self._nodes.leave(node, dealing) for node in leaving}
        self._base.spawn(self._allocate(pool, going, grows))

    def resume(self, pool: Pool) -> None:
        """Go on with an allocation that was begun, after a restart.

        :param pool: the pool, whose allocation is not steady.
        """
        stop = self._stop[pool.id] = asyncio.Event()
        if pool.allocation == Allocation.STOPPING:
            stop.set()
            for node in pool.nodes:
                if node.wish is NodeWish.LEAVE:
                    node.wish = NodeWish.NONE
        leaving = [node for node in pool.nodes if node.wish is NodeWish.LEAVE]
        going = {node: self._nodes.leave(node, node.dealing) for node in leaving}
        self._base.spawn(self._allocate(pool, going, grows=True))

    def stop_resize(self, pool: Pool) -> None:
        """Leave a pool with the nodes it has.

        :param pool: the pool, whose allocation is resizing.
        """
        pool.allocate(Allocation.STOPPING)
        self._base.store.touch(pool)
        self._stop.setdefault(pool.id, asyncio.Event()).set()

    async def _allocate(self, pool: Pool, leaving: dict[Node, asyncio.Task[None]], grows: bool) -> None:
        stop, loop = self._stop[pool.id], asyncio.get_running_loop()
        deadline = loop.time() + self._base.pace.here(times.parse_duration(pool.body["resizeTimeout"]))
        # Nothing begins that is not kept.
        await self._base.store.settle(pool.uid)
        if grows:
            await self._grow(pool, stop)
        if leaving and not stop.is_set():
            gone = asyncio.ensure_future(asyncio.wait(leaving.values()))
            await _first(stop, gone, max(0.001, deadline - loop.time()))
        if pool.state == PoolState.DELETING or self._base.stopping:
            return
        if stop.is_set() or not all(way.done() for way in leaving.values()):
            self._keep(pool, leaving, stopped=stop.is_set())
        pool.allocate(Allocation.STEADY)
        self._base.store.touch(pool)
        self._base.events.tell(PoolSteady(pool))

    def _keep(self, pool: Pool, leaving: Iterable[Node], *, stopped: bool) -> None:
        """Keep the nodes that still wait for their tasks, where their resize was stopped or took too long."""
        kinds = {node.dedicated for node in leaving if self._nodes.stay(node)}
        if stopped:
            # Of a pool that was to grow the targets stay what was asked for, as recorded.
            there = sum(node.dedicated for node in pool.nodes)
            pool.target_dedicated = max(pool.target_dedicated, there)
            pool.target_low_priority = max(pool.target_low_priority, len(pool.nodes) - there)
        else:
            for dedicated in sorted(kinds, reverse=True):
                self._lack(pool, allocation.shortage(dedicated, stopped=False))
        self._tasks.look(pool.id)

    async def _grow(self, pool: Pool, stop: asyncio.Event) -> None:
        """Add the nodes that are missing, as far as they are to be had within the resize timeout."""
        pace, loop, config = self._base.pace, asyncio.get_running_loop(), self._base.config
        deadline = loop.time() + pace.here(times.parse_duration(pool.body["resizeTimeout"]))
        missing = {dedicated: allocation.missing(pool, dedicated) for dedicated in (True, False)}
        if not any(missing.values()):
            return
        await _first(stop, None, max(0.0, min(pace.here(pace.allocation), deadline - loop.time())))
        late = pace.here(pace.allocation) > 0 and loop.time() >= deadline
        if not stop.is_set():
            # Only now, since others may have taken what was there, or left it.
            missing = {dedicated: self._allowed(pool, dedicated) for dedicated in missing}
            if any(missing.values()) and config.faults.strikes("allocation"):
                for dedicated in (kind for kind, count in missing.items() if count):
                    self._lack(pool, allocation.failed(dedicated))
                return
        while not stop.is_set() and not late and pool.state == PoolState.ACTIVE:
            room = self._room
            for dedicated in missing:
                while missing[dedicated] and (made := self._make_some(pool, dedicated, missing[dedicated])):
                    missing[dedicated] -= made
                    await asyncio.sleep(0)
                    if stop.is_set() or pool.state != PoolState.ACTIVE:
                        break
            if not any(missing.values()):
                return
            if stop.is_set() or pool.state != PoolState.ACTIVE:
                break
            await _first(stop, room, deadline - loop.time())
            late = loop.time() >= deadline
        if pool.state == PoolState.DELETING:
            return
        for dedicated, count in missing.items():
            if count:
                self._lack(pool, allocation.shortage(dedicated, stopped=stop.is_set()))

    def _allowed(self, pool: Pool, dedicated: bool) -> int:
        """How many of the nodes that a pool lacks the quota lets it have; the rest is a resize error."""
        quotas, wanted = self._base.config.quotas, allocation.missing(pool, dedicated)
        allowed = min(wanted, allocation.in_quota(pool, dedicated, self._base.pools, quotas))
        if allowed < wanted:
            self._lack(pool, allocation.out_of_quota(dedicated, quotas))
        return allowed

    def _lack(self, pool: Pool, error: dict[str, Any]) -> None:
        pool.resize_errors = [*pool.resize_errors, error]
        self._base.store.touch(pool)

    def _make_some(self, pool: Pool, dedicated: bool, wanted: int) -> int:
        """Make as many nodes as are wanted, are to be had, and fit into a turn of the loop."""
        config = self._base.config
        room = allocation.room(pool, dedicated, list(self._base.pools), config.quotas, config.capacity)
        count = min(wanted, room, _AT_ONCE)
        taken = {node.index for node in pool.nodes}
        free = (index for index in range(len(taken) + count) if index not in taken)
        for _ in range(count):
            self._nodes.begin(self._make(pool, dedicated, next(free)))
        return count

    def _make(self, pool: Pool, dedicated: bool, index: int) -> Node:
        name = f"tvmps_{secrets.token_hex(32)}_{'d' if dedicated else 'p'}"
        node = Node(self._base.store.next_uid(), name, pool, dedicated=dedicated, index=index)
        pool.nodes.add(node)
        self._base.store.touch(node)
        return node

    def _node_gone(self, event: NodeGone) -> None:
        self._room.set()
        self._room = asyncio.Event()
        if event.replaced:
            self._make_some(event.node.pool, event.node.dedicated, 1)

    # Deleted

    def delete(self, pool: Pool) -> None:
        """Begin to delete a pool; its tasks go back to their jobs' queues.

        :param pool: the pool, active.
        """
        pool.move(PoolState.DELETING)
        self.go_on_deleting(pool)

    def go_on_deleting(self, pool: Pool) -> None:
        """Go on with the end of a pool.

        :param pool: the pool, deleting.
        """
        self._base.store.touch(pool)
        self._base.events.tell(PoolClosing(pool))
        self._stop.setdefault(pool.id, asyncio.Event()).set()
        self._base.spawn(self._delete(pool))

    async def _delete(self, pool: Pool) -> None:
        await self._base.store.settle(pool.uid)
        if leaving := [self._nodes.leave(node, Dealing.REQUEUE) for node in pool.nodes]:
            await asyncio.wait(leaving)
        if self._base.stopping:
            return
        self._base.pools.remove(pool)
        self._base.store.drop(pool.uid)
        self._stop.pop(pool.id, None)

    def drop(self, name: str) -> None:
        """Delete a pool that was made for jobs that are over.

        :param name: its id; one that is gone or going is no error.
        """
        pool = self._base.pools.get(name)
        if pool is not None and pool.state == PoolState.ACTIVE:
            self.delete(pool)


async def _first(
    stop: asyncio.Event, other: asyncio.Event | asyncio.Future[Any] | None, seconds: float | None = None
) -> None:
    """Wait for an event, for another thing, or for a while."""
    if seconds is not None and seconds <= 0:
        return
    waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(stop.wait())]
    if isinstance(other, asyncio.Event):
        waits.append(asyncio.ensure_future(other.wait()))
    elif other is not None:
        waits.append(other)
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
