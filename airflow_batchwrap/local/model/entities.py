"""Pools, nodes, jobs and tasks, as the service holds them.

A task is kept small (its body stays the JSON it came as), since there may be a hundred thousand of them.
"""

from __future__ import annotations

import asyncio
import json
import operator
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_batchwrap.local.model import transitions
from airflow_batchwrap.local.model.dependencies import Dependencies
from airflow_batchwrap.local.model.ready import Ready
from airflow_batchwrap.local.model.registry import Registry
from airflow_batchwrap.local.model.transitions import Stateful, Table
from airflow_batchwrap.local.store import Row
from airflow_batchwrap.local.wire import times

if TYPE_CHECKING:
    from airflow_batchwrap.local.node.run import Run


#: Learn: a node shows the tasks whose state changed last; how many is not said, and ten are what is seen.
RECENT = 10


_encode = json.JSONEncoder(separators=(",", ":")).encode


def _pack(value: Any) -> bytes:
    return _encode(value).encode()


@dataclass
class Execution:
    """How a start, preparation or release task went on one node."""

    started: float
    state: str = "running"
    ended: float | None = None
    exit_code: int | None = None
    failure: dict[str, Any] | None = None
    retries: int = 0
    last_retry: float | None = None
    result: str | None = None


class Entity(Stateful):
    """What clients address by an id and may change.

    :param uid: the number under which it is kept.
    :param name: its id.
    :param moment: when it was created, seconds since the epoch.
    """

    __slots__ = ("created", "id", "modified", "revision", "uid")

    #: What of the entity is kept beside its body.
    FIELDS: ClassVar[tuple[str, ...]] = ()
    _COMMON: ClassVar[tuple[str, ...]] = ("id", "created", "modified", "revision")
    _STATE: ClassVar[tuple[str, ...]] = ("state", "since", "previous", "previous_since")
    _values: ClassVar[Callable[[Any], tuple[Any, ...]]]

    def __init_subclass__(cls) -> None:
        """Prepare for `pack_state`, which is on the way of every change."""
        cls._values = operator.attrgetter(*cls._COMMON, *cls._STATE, *cls.FIELDS)

    def __init__(self, uid: int, name: str, moment: float | None = None) -> None:
        self.uid = uid
        self.id = name
        self.created = self.modified = times.now() if moment is None else moment
        self.revision = 0

    @property
    def etag(self) -> str:
        """The entity tag, without quotes; it follows changes by clients, not the state."""
        return times.etag(self.modified, self.revision)

    def changed(self) -> None:
        """Note that a client changed it."""
        self.modified = times.now()
        self.revision += 1

    def pack_state(self) -> bytes:
        """What is kept beside the body.

        :return: JSON.
        """
        return _pack(type(self)._values(self))

    def restore(self, state: bytes) -> None:
        """Take up what was kept.

        :param state: what `pack_state` gave.
        """
        for name, value in zip(self._COMMON + self._STATE + self.FIELDS, json.loads(state), strict=True):
            setattr(self, name, value)


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
        self.begin("active", self.created)
        self.body = body
        self.allocation = "steady"
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

    def allocate(self, state: str) -> None:
        """Pass into another allocation state.

        :param state: the state.
        :raises IllegalTransition: it cannot follow the present one.
        """
        if state not in transitions.ALLOCATION[self.allocation]:
            raise transitions.IllegalTransition(f"Pool allocation: {self.allocation} cannot become {state}")
        self.allocation, self.allocation_since = state, times.now()

    def row(self) -> Row:
        """The pool as a row of the store."""
        return (self.uid, "pool", 0, _pack(self.body), self.pack_state())


class Node(Entity):
    """A node: a directory on this machine that Batch tasks run in."""

    __slots__ = (
        "booted",
        "dedicated",
        "draining",
        "index",
        "named",
        "pool",
        "recent",
        "runs",
        "scheduling",
        "start",
        "start_run",
        "succeeded",
        "tasks_run",
        "used",
        "users",
    )

    TABLE: ClassVar[Table] = transitions.NODE
    FIELDS = ("dedicated", "index", "booted", "scheduling", "tasks_run", "succeeded", "users", "named")

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
        self.begin("creating", self.created)
        self.pool = pool
        self.dedicated = dedicated
        #: Which of the pool's private addresses is this node's.
        self.index = index
        self.booted = self.created
        self.scheduling = "enabled"
        self.tasks_run = 0
        self.succeeded = 0
        self.start: Execution | None = None
        self.start_run: Run | None = None
        self.used = 0
        #: User accounts by name, without their passwords.
        self.users: dict[str, dict[str, Any]] = {}
        #: A client named it to be removed: a restart must not take another one in its place.
        self.named = False
        #: Set while tasks on it may go on but no more are placed: it is about to go, or to be rebooted.
        self.draining = False
        self.runs: dict[Task, Run] = {}
        #: The tasks that were placed here last.
        self.recent: deque[Task] = deque(maxlen=RECENT)

    @property
    def directory(self) -> str:
        """The name of its directory: shorter than its id, since paths below it end up in sockets and `#!` lines."""
        return self.id.split("_")[1][:12]

    @property
    def resting(self) -> str:
        """The state of the node when nothing runs on it."""
        return "idle" if self.scheduling == "enabled" else "offline"

    @property
    def address(self) -> str:
        """Its private address: one of this machine's own, so that the commands of a pool's nodes reach each other."""
        return f"127.{1 + self.pool.uid % 250}.{self.index // 250}.{self.index % 250 + 4}"

    @property
    def usable(self) -> bool:
        """Whether the scheduler may place tasks here."""
        return self.state in ("idle", "running") and self.scheduling == "enabled" and not self.draining

    def row(self) -> Row:
        """The node as a row of the store."""
        start = asdict(self.start) if self.start else None
        return (self.uid, "node", self.pool.uid, _pack(start), self.pack_state())


@dataclass(eq=False)
class NodeJob:
    """What a job did on one node: its preparation and release tasks."""

    uid: int
    job: Job
    pool_id: str
    node_id: str
    prepare: Execution | None = None
    release: Execution | None = None
    #: The node was rebooted since, and the preparation asks to be run again then.
    stale: bool = False
    run: Run | None = None
    #: Set while no preparation is under way.
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """Nothing is under way at first."""
        self.done.set()

    @property
    def prepared(self) -> bool:
        """Whether the preparation has succeeded since the node's last start."""
        return self.ran and not self.stale

    @property
    def ran(self) -> bool:
        """Whether the preparation has succeeded since the node was last wiped, so that there may be much to release."""
        return self.prepare is not None and self.prepare.result == "success"

    @property
    def barred(self) -> bool:
        """Whether the preparation has failed, so that the job's tasks cannot run there."""
        return self.prepare is not None and self.prepare.result == "failure"

    def row(self) -> Row:
        """This as a row of the store."""
        kept = [self.stale, *(asdict(part) if part else None for part in (self.prepare, self.release))]
        return (self.uid, "nodejob", self.job.uid, _pack([self.pool_id, self.node_id]), _pack(kept))


class Job(Entity):
    """A job and its tasks."""

    __slots__ = (
        "auto_pool",
        "body",
        "counts",
        "dependencies",
        "ended",
        "nodes",
        "ready",
        "reason",
        "running",
        "schedule",
        "slot_counts",
        "tasks",
        "timer",
    )

    TABLE: ClassVar[Table] = transitions.JOB
    FIELDS = ("ended", "reason", "auto_pool", "schedule")

    def __init__(self, uid: int, name: str, body: dict[str, Any], moment: float | None = None) -> None:
        super().__init__(uid, name, moment)
        self.begin("active", self.created)
        self.body = body
        self.ended: float | None = None
        self.reason: str | None = None
        #: The pool that was made for it, where it asked for one of its own.
        self.auto_pool: str | None = None
        #: The number of the job schedule that created it.
        self.schedule: int | None = None
        self.tasks: Registry[Task] = Registry()
        self.dependencies = Dependencies()
        self.nodes: dict[str, NodeJob] = {}
        self.ready = Ready()
        #: Tasks by `Task.standing`, and their slots.
        self.counts: Counter[str] = Counter()
        self.slot_counts: Counter[str] = Counter()
        self.running = 0
        self.timer: Any = None

    @property
    def pool_id(self) -> str:
        """The pool the job's tasks run on."""
        return str(self.auto_pool or self.body["poolInfo"].get("poolId", ""))

    @property
    def priority(self) -> int:
        """The job's priority, -1000 to 1000."""
        return int(self.body["priority"])

    @property
    def parallel(self) -> int:
        """How many of its tasks may run at once; -1 for no limit."""
        return int(self.body["maxParallelTasks"])

    def row(self) -> Row:
        """The job as a row of the store."""
        return (self.uid, "job", 0, _pack(self.body), self.pack_state())


class Task(Entity):
    """A task; its body is kept as the JSON it came as."""

    __slots__ = (
        "body",
        "ended",
        "exit_code",
        "failure",
        "job",
        "kept",
        "last_requeue",
        "last_retry",
        "node_id",
        "pool_id",
        "process",
        "requeues",
        "result",
        "retries",
        "slots",
        "started",
        "subtasks",
    )

    TABLE: ClassVar[Table] = transitions.TASK
    FIELDS = (
        "slots",
        "pool_id",
        "node_id",
        "started",
        "ended",
        "exit_code",
        "failure",
        "retries",
        "last_retry",
        "requeues",
        "last_requeue",
        "result",
        "process",
        "subtasks",
    )

    def __init__(
        self, uid: int, name: str, job: Job, body: bytes, *, slots: int = 1, moment: float | None = None
    ) -> None:
        super().__init__(uid, name, moment)
        self.begin("active", self.created)
        self.job = job
        self.body = body
        #: The body that is kept already: one that has not changed since is not written again.
        self.kept: bytes | None = None
        self.slots = slots
        self.pool_id: str | None = None
        self.node_id: str | None = None
        self.started: float | None = None
        self.ended: float | None = None
        self.exit_code: int | None = None
        self.failure: dict[str, Any] | None = None
        self.retries = 0
        self.last_retry: float | None = None
        self.requeues = 0
        self.last_requeue: float | None = None
        self.result: str | None = None
        #: Process id and start mark of the running command, so that a restart can end it.
        self.process: list[Any] | None = None
        #: What a multi-instance task's subtasks did, the primary left out.
        self.subtasks: list[dict[str, Any]] | None = None

    @property
    def standing(self) -> str:
        """Under what the job counts it: active, running (which is preparing too), success or failure."""
        if self.state == "completed":
            return str(self.result)
        return "running" if self.state == "preparing" else self.state

    def row(self) -> Row:
        """The task as a row of the store."""
        body = None if self.kept is self.body else self.body
        self.kept = self.body
        return (self.uid, "task", self.job.uid, body, self.pack_state())


class JobSchedule(Entity):
    """A job schedule, which creates jobs one after the other."""

    __slots__ = ("body", "ended", "job", "last", "number", "pool_id", "timer")

    TABLE: ClassVar[Table] = transitions.JOB_SCHEDULE
    FIELDS = ("ended", "job", "last", "number", "pool_id")

    def __init__(self, uid: int, name: str, body: dict[str, Any], moment: float | None = None) -> None:
        super().__init__(uid, name, moment)
        self.begin("active", self.created)
        self.body = body
        self.ended: float | None = None
        #: The id of its latest job.
        self.job: str | None = None
        #: The latest occurrence that has had its job; -1 before the first.
        self.last = -1
        #: How many jobs it has created.
        self.number = 0
        #: The pool that all its jobs share, where it was made for them.
        self.pool_id: str | None = None
        self.timer: Any = None

    def row(self) -> Row:
        """The schedule as a row of the store."""
        return (self.uid, "jobschedule", 0, _pack(self.body), self.pack_state())
