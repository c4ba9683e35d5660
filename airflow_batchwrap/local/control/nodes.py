"""The life of nodes: started, put to rest, preempted, gone.

What is asked of a node while tasks run on it is kept as its wish, before anything is promised, and a restart goes on
with it.
"""

from __future__ import annotations

import asyncio
import json

from airflow_batchwrap.local.control.base import Base
from airflow_batchwrap.local.control.boots import Boots
from airflow_batchwrap.local.control.events import CommandStarted, NodeGone
from airflow_batchwrap.local.control.preparations import Preparations
from airflow_batchwrap.local.control.tasks import Tasks
from airflow_batchwrap.local.control.turnstile import sliced
from airflow_batchwrap.local.model import usage
from airflow_batchwrap.local.model.entities import Node
from airflow_batchwrap.local.model.states import Dealing, Ending, NodeState, NodeWish, PoolState, Scheduling, TaskState
from airflow_batchwrap.local.node import agentlog, process
from airflow_batchwrap.local.node.run import Run
from airflow_batchwrap.local.pace import PREEMPTED
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

#: How often a node that keeps its tasks' data is looked at, in seconds.
_LOOK = 0.5
#: The error for a node that is already under way somewhere.
_UNDER_WAY = {
    NodeState.CREATING: "NodeBeingCreated",
    NodeState.STARTING: "NodeBeingStarted",
    NodeState.WAITING: "NodeBeingStarted",
    NodeState.REBOOTING: "NodeBeingRebooted",
    NodeState.REIMAGING: "NodeBeingReimaged",
}


class Nodes:
    """Starts nodes, does to them what is asked, and lets them go.

    :param base: the state.
    :param tasks: what runs on them.
    :param preparations: what jobs do on them beside their tasks.
    """

    def __init__(self, base: Base, tasks: Tasks, preparations: Preparations) -> None:
        self._base, self._tasks, self._preparations = base, tasks, preparations
        self._boots = Boots(base)
        self._leavings: dict[Node, asyncio.Task[None]] = {}
        base.events.on(CommandStarted, self._command_started)

    def runs(self) -> list[Run]:
        """The runs of start tasks.

        :return: them; some may be over.
        """
        return self._boots.runs()

    # Started

    def begin(self, node: Node) -> None:
        """Start a node, once it is kept: what is not must not run anything.

        :param node: the node, creating or starting.
        """
        self._base.store.when_kept(lambda: self._begin_kept(node))

    def _begin_kept(self, node: Node) -> None:
        if not self._base.stopping:
            self._base.spawn(self._boot(node))

    async def _boot(self, node: Node) -> None:
        if await self._boots.boot(node):
            self._tasks.look(node.pool.id)
        if node.wish not in (NodeWish.NONE, NodeWish.LEAVE) and node.state in (NodeState.IDLE, NodeState.OFFLINE):
            # Asked before a restart, and still to be waited for.
            await self._patient(node, node.wish)

    def start(self, node: Node) -> None:
        """Start a deallocated node.

        :param node: the node.
        :raises BatchError: it is not deallocated.
        """
        if node.state != NodeState.DEALLOCATED:
            raise BatchError("OperationInvalidForCurrentState", values={"NodeState": node.state})
        node.move(NodeState.STARTING)
        self._base.store.touch(node)
        self.begin(node)

    # Put to rest

    def down(self, node: Node, wish: NodeWish, dealing: Dealing) -> None:
        """Begin to reboot, reimage or deallocate a node.

        :param node: the node.
        :param wish: which of these.
        :param dealing: what becomes of its tasks.
        :raises BatchError: the node is in no state for it.
        """
        if node.wish:
            raise BatchError("OperationInvalidForCurrentState", "The node is about to go, or to be restarted.")
        if wish not in Node.TABLE[node.state]:
            code = _UNDER_WAY.get(NodeState(node.state), "OperationInvalidForCurrentState")
            raise BatchError(code, values={"NodeState": node.state})
        self._ask(node, wish, dealing)
        if dealing.patient and (node.tasks or dealing is Dealing.RETAINED_DATA):
            self._base.spawn(self._patient(node, wish))
        else:
            self._enter(node, wish)

    def _ask(self, node: Node, wish: NodeWish, dealing: Dealing) -> None:
        node.ask(wish, dealing)
        self._base.store.touch(node)
        if dealing is Dealing.TERMINATE:
            for task in node.tasks:
                self._base.store.touch(task)

    async def _patient(self, node: Node, wish: NodeWish) -> None:
        await self._clear(node)
        if node.wish == wish and wish in Node.TABLE[node.state] and not self._base.stopping:
            self._enter(node, wish)

    def _enter(self, node: Node, wish: NodeWish) -> None:
        node.move(wish.value)
        self._base.store.touch(node)
        agentlog.write(self._base.root(node), f"node is {wish.value}, tasks: {node.dealing.value}")
        self._base.spawn(self._down(node, wish))

    async def _down(self, node: Node, wish: NodeWish) -> None:
        await self._base.store.settle(node.uid)
        self._tasks.stop(list(node.tasks), Dealing.REQUEUE if node.dealing.patient else node.dealing)
        await self._tasks.left(list(node.tasks))
        await self._silence(node)
        if wish.wipes and node.state == wish:
            await self._base.remove(self._base.root(node))
            node.users = {}
        self._preparations.forget(node, wiped=wish.wipes)
        if node.state != wish or self._base.stopping:
            return
        if wish is NodeWish.DEALLOCATE:
            if node.wish is wish:
                # It may have been asked to leave meanwhile, which still holds.
                node.wish = NodeWish.NONE
            node.move(NodeState.DEALLOCATED)
            self._base.store.touch(node)
        else:
            await self._boot(node)

    async def _clear(self, node: Node) -> None:
        """See a node's tasks off, as was asked; no more are placed on it."""
        if not node.dealing.patient:
            self._tasks.stop(list(node.tasks), node.dealing)
        await self._tasks.left(list(node.tasks))
        while not self._base.stopping and await self._retains(node):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)

    async def _retains(self, node: Node) -> bool:
        """Whether a node keeps its tasks' data, and the directory of one that has completed is still to be kept."""
        if node.dealing is not Dealing.RETAINED_DATA:
            return False
        now = times.now()
        for job in self._base.jobs:
            async for task in sliced(job.tasks):
                if task.node_id == node.id and task.state == TaskState.COMPLETED and task.ended is not None:
                    kept = times.parse_duration(json.loads(task.body)["constraints"]["retentionTime"])
                    if task.ended + self._base.pace.here(kept) > now:
                        return True
        return False

    async def _silence(self, node: Node) -> None:
        """End what runs on a node beside its tasks: start, preparation and release tasks, what tasks left behind."""
        start = self._boots.run_of(node)
        others = [*([start] if start else []), *self._preparations.on(node)]
        for run in others:
            run.stop(Ending.DISCARD)
            await run.over.wait()
        if node.tasks_run or node.recent or others:
            await process.HELPER.clear(self._base.root(node))

    # Scheduling

    def disable(self, node: Node, dealing: Dealing) -> None:
        """Place no more tasks on a node.

        :param node: the node.
        :param dealing: what becomes of those it has: requeue, terminate, taskcompletion.
        :raises BatchError: that is so already.
        """
        self._turn(node, Scheduling.DISABLED)
        if not dealing.patient:
            self._tasks.stop(list(node.tasks), dealing)
        if node.state == NodeState.IDLE:
            node.move(NodeState.OFFLINE)

    def enable(self, node: Node) -> None:
        """Place tasks on a node again.

        :param node: the node.
        :raises BatchError: that is so already.
        """
        self._turn(node, Scheduling.ENABLED)
        if node.state == NodeState.OFFLINE:
            node.move(NodeState.IDLE)
        self._tasks.look(node.pool.id)

    def _turn(self, node: Node, scheduling: Scheduling) -> None:
        if node.state in (NodeState.UNUSABLE, NodeState.LEAVING, NodeState.PREEMPTED):
            raise BatchError("OperationNotValidOnNode", values={"NodeState": node.state})
        if node.scheduling == scheduling:
            raise BatchError("NodeAlreadyInTargetSchedulingState")
        node.scheduling = scheduling
        self._base.store.touch(node)
        agentlog.write(self._base.root(node), f"scheduling is {scheduling.value}")

    # Preempted

    def _command_started(self, event: CommandStarted) -> None:
        if not event.node.dedicated and self._base.config.faults.strikes("preempt"):
            asyncio.get_running_loop().call_soon(self.preempt, event.node)

    def preempt(self, node: Node) -> bool:
        """Take a spot node away, as Azure does when it needs it: its tasks are queued again, and another one comes.

        :param node: the node.
        :return: whether it was taken: False for a dedicated node, and for one that is not idle or running.
        """
        if node.dedicated or NodeState.PREEMPTED not in Node.TABLE[node.state]:
            return False
        node.move(NodeState.PREEMPTED)
        self._base.store.touch(node)
        self._base.spawn(self._preempted(node))
        return True

    async def _preempted(self, node: Node) -> None:
        pace = self._base.pace
        self._tasks.lose(list(node.tasks))
        await self._tasks.left(list(node.tasks))
        await self._silence(node)
        await self._base.remove(self._base.root(node))
        self._preparations.forget(node, wiped=True)
        await asyncio.sleep(pace.here(max(PREEMPTED, pace.allocation)))
        if node.state != NodeState.PREEMPTED or node.pool.state != PoolState.ACTIVE or self._base.stopping:
            return
        if node not in self._leavings:
            self._gone(node, replaced=True)

    # Gone

    def leave(self, node: Node, dealing: Dealing) -> asyncio.Task[None]:
        """Begin to take a node out of its pool.

        :param node: the node.
        :param dealing: what becomes of its tasks.
        :return: what ends when it is gone.
        """
        under_way = self._leavings.get(node)
        if under_way is None:
            self._ask(node, NodeWish.LEAVE, dealing)
            under_way = self._leavings[node] = self._base.spawn(self._leave(node))
        elif dealing is Dealing.REQUEUE:
            # Its tasks were to be waited for, and no longer are: the pool is being deleted.
            node.dealing = dealing
            self._tasks.stop(list(node.tasks), dealing)
        return under_way

    def stay(self, node: Node) -> bool:
        """Leave a node in its pool that was to go, if it still waits for its tasks; one on its way out goes.

        :param node: the node.
        :return: whether it stays.
        """
        if node.state == NodeState.LEAVING or (waiting := self._leavings.pop(node, None)) is None:
            return False
        waiting.cancel()
        node.wish = NodeWish.NONE
        self._base.store.touch(node)
        return True

    async def _leave(self, node: Node) -> None:
        await self._base.turnstile.turn()
        await self._clear(node)
        if self._base.stopping:
            return
        node.move(NodeState.LEAVING)
        self._base.store.touch(node)
        await self._silence(node)
        await self._base.remove(self._base.root(node))
        await self._base.turnstile.turn()
        self._leavings.pop(node, None)
        self._gone(node, replaced=False)

    def _gone(self, node: Node, *, replaced: bool) -> None:
        self._boots.forget(node)
        self._base.doors.close(node.id)
        usage.leave(node)
        node.pool.nodes.remove(node)
        self._base.store.touch(node.pool)
        self._base.store.drop(node.uid)
        self._base.events.tell(NodeGone(node, replaced))

    # Recovered

    async def resume(self, node: Node) -> None:
        """Go on with a node after a restart: it was cut off, and nothing runs on it any more.

        :param node: the node, as it was kept; it is not about to leave its pool.
        """
        wish = node.wish
        entered = node.state == wish.value
        if wish in (NodeWish.NONE, NodeWish.LEAVE) or (node.dealing is Dealing.RETAINED_DATA and not entered):
            due = NodeWish.NONE
        else:
            due, node.wish = wish, NodeWish.NONE
        if due.wipes:
            await self._base.remove(self._base.root(node))
            node.users = {}
            self._preparations.forget(node, wiped=True)
        # Not legal transitions of a running service.
        if due is NodeWish.DEALLOCATE or (due is NodeWish.NONE and node.state == NodeState.DEALLOCATED):
            node.begin(NodeState.DEALLOCATED)
        else:
            node.begin(NodeState.STARTING)
            self.begin(node)
        self._base.store.touch(node)
