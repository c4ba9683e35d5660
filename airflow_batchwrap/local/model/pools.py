"""Pools and their nodes."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from enum import StrEnum
from typing import Any, ClassVar

from airflow_batchwrap.local.model import transitions
from airflow_batchwrap.local.model.entity import Entity, Execution, Row, pack
from airflow_batchwrap.local.model.jobs import Task
from airflow_batchwrap.local.model.registry import Registry
from airflow_batchwrap.local.model.states import (
    Allocation,
    Dealing,
    NodeState,
    NodeWish,
    PoolState,
    Scheduling,
    TaskWish,
)
from airflow_batchwrap.local.model.transitions import Table
from airflow_batchwrap.local.wire import times

#: Learn: a node shows the tasks whose state changed last; how many is not said, and ten are what is seen.
RECENT = 10

_WORKING = frozenset({NodeState.IDLE, NodeState.RUNNING})


class Pool(Entity):
    """A pool and its nodes."""

    __slots__ = (
        "allocation",
        "allocation_since",
        "body",
        "nodes",
        "resize_errors",
        "scale_asked",
        "scale_run",
        "target_dedicated",
        "target_low_priority",
        "usage",
    )

    TABLE: ClassVar[Table] = transitions.POOL
    FIELDS = (
        "allocation",
        "allocation_since",
        "target_dedicated",
        "target_low_priority",
        "resize_errors",
        "scale_asked",
        "scale_run",
        "usage",
    )

    def __init__(self, uid: int, name: str, body: dict[str, Any], moment: float | None = None) -> None:
        super().__init__(uid, name, moment)
        self.begin(PoolState.ACTIVE, self.created)
        self.body = body
        self.allocation = Allocation.STEADY
        self.allocation_since = self.created
        self.target_dedicated = 0
        self.target_low_priority = 0
        self.resize_errors: list[dict[str, Any]] = []
        #: When autoscale was last asked to be enabled, in seconds since the epoch.
        self.scale_asked: float | None = None
        #: The latest evaluation of the autoscale formula, as it is shown.
        self.scale_run: dict[str, Any] | None = None
        #: Seconds that nodes which are gone were there, by the hour since the epoch: dedicated ones, spot ones.
        self.usage: dict[str, list[float]] = {}
        self.nodes: Registry[Node] = Registry()

    @property
    def slots(self) -> int:
        """Task slots of each node."""
        return int(self.body["taskSlotsPerNode"])

    @property
    def contains(self) -> bool:
        """Whether its tasks may run in containers."""
        return bool(self.body["virtualMachineConfiguration"].get("containerConfiguration"))

    def allocate(self, state: Allocation) -> None:
        """Pass into another allocation state.

        :param state: the state.
        :raises IllegalTransition: it cannot follow the present one.
        """
        if state not in transitions.ALLOCATION[self.allocation]:
            raise transitions.IllegalTransition(f"Pool allocation: {self.allocation} cannot become {state}")
        self.allocation, self.allocation_since = state, times.now()

    def row(self) -> Row:
        """The pool as a row of the store."""
        return (self.uid, "pool", 0, pack(self.body), self.pack_state())


class Node(Entity):
    """A node: a directory on this machine that Batch tasks run in."""

    __slots__ = (
        "booted",
        "dealing",
        "dedicated",
        "index",
        "pool",
        "recent",
        "scheduling",
        "start",
        "succeeded",
        "tasks",
        "tasks_run",
        "used",
        "users",
        "wish",
    )

    TABLE: ClassVar[Table] = transitions.NODE
    ENUMS: ClassVar[dict[str, type[StrEnum]]] = {"scheduling": Scheduling, "wish": NodeWish, "dealing": Dealing}
    FIELDS = ("dedicated", "index", "booted", "scheduling", "tasks_run", "succeeded", "users", "wish", "dealing")

    def __init__(
        self,
        uid: int,
        name: str,
        pool: Pool,
        *,
        dedicated: bool = True,
        index: int = 0,
        moment: float | None = None,
    ) -> None:
        super().__init__(uid, name, moment)
        self.begin(NodeState.CREATING, self.created)
        self.pool = pool
        self.dedicated = dedicated
        #: Which of the pool's private addresses is this node's.
        self.index = index
        self.booted = self.created
        self.scheduling = Scheduling.ENABLED
        self.tasks_run = 0
        self.succeeded = 0
        self.start: Execution | None = None
        self.used = 0
        #: User accounts by name, without their passwords.
        self.users: dict[str, dict[str, Any]] = {}
        #: What was promised of it, and what becomes of its tasks then: a restart goes on with it.
        self.wish = NodeWish.NONE
        self.dealing = Dealing.REQUEUE
        #: The tasks that have a place on it now, in the order in which they came.
        self.tasks: dict[Task, None] = {}
        #: The tasks that were placed here last.
        self.recent: deque[Task] = deque(maxlen=RECENT)

    @property
    def directory(self) -> str:
        """The name of its directory: shorter than its id, since paths below it end up in sockets and `#!` lines."""
        return self.id.split("_")[1][:12]

    @property
    def resting(self) -> NodeState:
        """The state of the node when nothing runs on it."""
        return NodeState.IDLE if self.scheduling == Scheduling.ENABLED else NodeState.OFFLINE

    @property
    def address(self) -> str:
        """Its private address: one of this machine's own, so that the commands of a pool's nodes reach each other."""
        return f"127.{1 + self.pool.uid % 250}.{self.index // 250}.{self.index % 250 + 4}"

    @property
    def usable(self) -> bool:
        """Whether tasks may be placed here."""
        return self.state in _WORKING and self.scheduling == Scheduling.ENABLED and not self.wish

    def ask(self, wish: NodeWish, dealing: Dealing = Dealing.REQUEUE) -> None:
        """Note what was promised of it: no more tasks are placed on it.

        :param wish: what.
        :param dealing: what becomes of its tasks.
        """
        self.wish, self.dealing = wish, dealing
        for task in self.tasks:
            if dealing is Dealing.TERMINATE:
                task.wish = TaskWish.TERMINATE

    def take(self, task: Task, slots: int) -> None:
        """Give a task a place.

        :param task: the task.
        :param slots: how many slots it takes here.
        """
        self.used += slots
        self.tasks[task] = None
        self.recent.append(task)
        if self.state == NodeState.IDLE:
            self.move(NodeState.RUNNING)

    def give_back(self, task: Task, slots: int) -> None:
        """Take a task's place back.

        :param task: the task.
        :param slots: how many slots it took here.
        """
        self.used -= slots
        self.tasks.pop(task, None)
        if self.state == NodeState.RUNNING and not self.tasks:
            self.move(self.resting)

    def row(self) -> Row:
        """The node as a row of the store."""
        start = asdict(self.start) if self.start else None
        return (self.uid, "node", self.pool.uid, pack(start), self.pack_state())
