"""What is done to single nodes: reboot, reimage, deallocate and start, scheduling on and off, preemption."""

from __future__ import annotations

import asyncio

from airflow_batchwrap.local.control.pace import PREEMPTED
from airflow_batchwrap.local.control.world import World
from airflow_batchwrap.local.model.entities import Node
from airflow_batchwrap.local.node import agentlog
from airflow_batchwrap.local.wire.errors import BatchError

#: The error for a node that is already under way somewhere.
_UNDER_WAY = {
    "creating": "NodeBeingCreated",
    "starting": "NodeBeingStarted",
    "waitingforstarttask": "NodeBeingStarted",
    "rebooting": "NodeBeingRebooted",
    "reimaging": "NodeBeingReimaged",
}
#: Learn: a task's effects that outlive it are waited for with these options.
_PATIENT = ("taskcompletion", "retaineddata")


class Upkeep:
    """Changes single nodes.

    :param world: the state.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting: set[Node] = set()

    def down(self, node: Node, state: str, option: str) -> None:
        """Begin to reboot, reimage or deallocate a node.

        :param node: the node.
        :param state: rebooting, reimaging or deallocating.
        :param option: what becomes of its tasks: requeue, terminate, taskcompletion, retaineddata.
        :raises BatchError: the node is in no state for it.
        """
        if node in self._waiting or node.draining:
            raise BatchError("OperationInvalidForCurrentState", "The node is about to go, or to be restarted.")
        if state not in Node.TABLE[node.state]:
            raise BatchError(
                _UNDER_WAY.get(node.state, "OperationInvalidForCurrentState"), values={"NodeState": node.state}
            )
        node.draining = True
        if option in _PATIENT and (node.runs or option == "retaineddata"):
            self._waiting.add(node)
            self._world.spawn(self._patient(node, state, option))
        else:
            self._enter(node, state, option)

    async def _patient(self, node: Node, state: str, option: str) -> None:
        try:
            await self._world.boots.clear(node, option)
        finally:
            self._waiting.discard(node)
        if state in Node.TABLE[node.state] and not self._world.stopping:
            self._enter(node, state, option)

    def _enter(self, node: Node, state: str, option: str) -> None:
        node.move(state)
        self._world.store.touch(node)
        agentlog.write(self._world.root(node), f"node is {state}, tasks: {option}")
        self._world.spawn(self._down(node, state, option))

    async def _down(self, node: Node, state: str, option: str) -> None:
        boots = self._world.boots
        await boots.clear(node, "requeue" if option in _PATIENT else option)
        await boots.silence(node)
        wiped = state != "rebooting"
        if wiped and node.state == state:
            await self._world.remove(self._world.root(node))
            node.users = {}
        self._unprepare(node, wiped)
        if node.state != state or self._world.stopping:
            return
        if state == "deallocating":
            node.move("deallocated")
            self._world.store.touch(node)
        else:
            await boots.boot(node)

    def _unprepare(self, node: Node, wiped: bool) -> None:
        """Forget what job preparation tasks did on a node, as far as they want it or their files are gone."""
        for job in self._world.jobs:
            part = job.nodes.get(node.id)
            if part is None or part.prepare is None:
                continue
            if wiped:
                part.prepare = part.release = None
            elif part.prepared and job.body["jobPreparationTask"]["rerunOnNodeRebootAfterSuccess"]:
                part.stale = True
            self._world.store.touch(part)

    def start(self, node: Node) -> None:
        """Start a deallocated node.

        :param node: the node.
        :raises BatchError: it is not deallocated.
        """
        if node.state != "deallocated":
            raise BatchError("OperationInvalidForCurrentState", values={"NodeState": node.state})
        node.move("starting")
        self._world.store.touch(node)
        self._world.spawn(self._world.boots.boot(node))

    def disable(self, node: Node, option: str) -> None:
        """Place no more tasks on a node.

        :param node: the node.
        :param option: what becomes of those it has: requeue, terminate, taskcompletion.
        :raises BatchError: that is so already.
        """
        self._turn(node, "disabled")
        if option != "taskcompletion":
            for run in list(node.runs.values()):
                run.stop("terminated" if option == "terminate" else "requeue")
        if node.state == "idle":
            node.move("offline")

    def enable(self, node: Node) -> None:
        """Place tasks on a node again.

        :param node: the node.
        :raises BatchError: that is so already.
        """
        self._turn(node, "enabled")
        if node.state == "offline":
            node.move("idle")
        self._world.scheduler.kick(node.pool.id)

    def _turn(self, node: Node, scheduling: str) -> None:
        if node.state in ("unusable", "leavingpool", "preempted"):
            raise BatchError("OperationNotValidOnNode", values={"NodeState": node.state})
        if node.scheduling == scheduling:
            raise BatchError("NodeAlreadyInTargetSchedulingState")
        node.scheduling = scheduling
        self._world.store.touch(node)
        agentlog.write(self._world.root(node), f"scheduling is {scheduling}")

    def preempt(self, node: Node) -> bool:
        """Take a spot node away, as Azure does when it needs it: its tasks are queued again, and another one comes.

        :param node: the node.
        :return: whether it was taken: False for a dedicated node, and for one that is not idle or running.
        """
        if node.dedicated or "preempted" not in Node.TABLE[node.state]:
            return False
        node.draining = True
        node.move("preempted")
        self._world.store.touch(node)
        self._world.spawn(self._preempted(node))
        return True

    async def _preempted(self, node: Node) -> None:
        boots, pool, pace = self._world.boots, node.pool, self._world.pace
        await boots.clear(node, "requeue")
        await boots.silence(node)
        await self._world.remove(self._world.root(node))
        self._unprepare(node, True)
        await asyncio.sleep(pace.here(max(PREEMPTED, pace.allocation)))
        if node.state == "preempted" and pool.state == "active" and not self._world.stopping:
            self._world.node_control.replace(node)
