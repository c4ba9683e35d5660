"""Jobs, their tasks, and what they do on each node.

A task is kept small (its body stays the JSON it came as), since there may be a hundred thousand of them.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, ClassVar

from airflow_batchwrap.local.model import transitions
from airflow_batchwrap.local.model.dependencies import Dependencies
from airflow_batchwrap.local.model.entity import Entity, Execution, Row, pack
from airflow_batchwrap.local.model.ready import Ready
from airflow_batchwrap.local.model.registry import Registry
from airflow_batchwrap.local.model.states import JobState, Result, TaskState, TaskWish
from airflow_batchwrap.local.model.transitions import Table


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

    @property
    def prepared(self) -> bool:
        """Whether the preparation has succeeded since the node's last start."""
        return self.ran and not self.stale

    @property
    def ran(self) -> bool:
        """Whether the preparation has succeeded since the node was last wiped, so that there may be much to release."""
        return self.prepare is not None and self.prepare.result == Result.SUCCESS

    @property
    def barred(self) -> bool:
        """Whether the preparation has failed, so that the job's tasks cannot run there."""
        return self.prepare is not None and self.prepare.result == Result.FAILURE

    def row(self) -> Row:
        """This as a row of the store."""
        kept = [self.stale, *(asdict(part) if part else None for part in (self.prepare, self.release))]
        return (self.uid, "nodejob", self.job.uid, pack([self.pool_id, self.node_id]), pack(kept))


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
    )

    TABLE: ClassVar[Table] = transitions.JOB
    FIELDS = ("ended", "reason", "auto_pool", "schedule")

    def __init__(self, uid: int, name: str, body: dict[str, Any], moment: float | None = None) -> None:
        super().__init__(uid, name, moment)
        self.begin(JobState.ACTIVE, self.created)
        self.body = body
        self.ended: float | None = None
        self.reason: str | None = None
        #: The pool that was made for it, where it asked for one of its own.
        self.auto_pool: str | None = None
        #: The number of the job schedule that created it.
        self.schedule: int | None = None
        self.tasks: Registry[Task] = Registry()
        self.dependencies: Dependencies[Task] = Dependencies()
        self.nodes: dict[str, NodeJob] = {}
        self.ready: Ready[Task] = Ready()
        #: Tasks by `Task.standing`, and their slots.
        self.counts: Counter[str] = Counter()
        self.slot_counts: Counter[str] = Counter()
        self.running = 0

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

    @property
    def waits(self) -> bool:
        """Whether its tasks wait for its preparation task."""
        preparation = self.body.get("jobPreparationTask")
        return bool(preparation and preparation["waitForSuccess"])

    def row(self) -> Row:
        """The job as a row of the store."""
        return (self.uid, "job", 0, pack(self.body), self.pack_state())


class Task(Entity):
    """A task; its body is kept as the JSON it came as."""

    __slots__ = (
        "_instances",
        "body",
        "container",
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
        "wish",
    )

    TABLE: ClassVar[Table] = transitions.TASK
    ENUMS: ClassVar[dict[str, type[StrEnum]]] = {"result": Result, "wish": TaskWish}
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
        "wish",
        "container",
    )

    def __init__(
        self, uid: int, name: str, job: Job, body: bytes, *, slots: int = 1, moment: float | None = None
    ) -> None:
        super().__init__(uid, name, moment)
        self.begin(TaskState.ACTIVE, self.created)
        self.job = job
        self.body = body
        self._instances: int | None = None
        #: The body that is kept already: one that has not changed since is not written again.
        self.kept: bytes | None = None
        self.slots = slots
        self.pool_id: str | None = None
        self.node_id: str | None = None
        self.started: float | None = None
        self.ended: float | None = None
        self.exit_code: int | None = None
        self.failure: dict[str, Any] | None = None
        #: What the container engine said of its container.
        self.container: dict[str, str] | None = None
        self.retries = 0
        self.last_retry: float | None = None
        self.requeues = 0
        self.last_requeue: float | None = None
        self.result: Result | None = None
        #: Process id and start mark of the running command, so that a restart can end it.
        self.process: list[Any] | None = None
        #: What a multi-instance task's subtasks did, the primary left out.
        self.subtasks: list[dict[str, Any]] | None = None
        #: What was promised of it while it runs: a restart goes on with it.
        self.wish = TaskWish.NONE

    @property
    def standing(self) -> str:
        """Under what the job counts it: active, running (which is preparing too), success or failure."""
        if self.state == TaskState.COMPLETED:
            return str(self.result)
        return "running" if self.state == TaskState.PREPARING else self.state

    @property
    def manager(self) -> dict[str, Any] | None:
        """The job's manager, if the task is it."""
        manager: dict[str, Any] | None = self.job.body.get("jobManagerTask")
        return manager if manager is not None and manager["id"].lower() == self.id.lower() else None

    @property
    def gang(self) -> bool:
        """Whether it is a multi-instance task."""
        return b'"multiInstanceSettings":' in self.body

    @property
    def instances(self) -> int:
        """How many nodes it needs (Learn: MultiInstanceSettings.numberOfInstances, 1 by default)."""
        if self._instances is None:
            # Read once, as no client can change it: each look for a place asks it of all that wait for more nodes.
            settings = json.loads(self.body)["multiInstanceSettings"] if self.gang else {}
            self._instances = int(settings.get("numberOfInstances", 1))
        return self._instances

    def needs(self, slots: int) -> int:
        """How many slots it takes on a node: all of them for a job manager that has to be alone.

        :param slots: the slots of the node.
        :return: the number.
        """
        manager = self.manager
        return slots if manager is not None and manager["runExclusive"] else self.slots

    def shift(self, state: TaskState, result: Result | None = None) -> None:
        """Pass into another state, and keep the job's counts in step.

        :param state: the state.
        :param result: the result, where the state is completed.
        """
        counts, slots = self.job.counts, self.job.slot_counts
        counts[self.standing] -= 1
        slots[self.standing] -= self.slots
        self.move(state)
        self.result = result
        counts[self.standing] += 1
        slots[self.standing] += self.slots

    def leave_place(self) -> None:
        """Forget where and since when it ran: it waits for another place."""
        self.pool_id = self.node_id = self.started = self.subtasks = self.process = None
        self.wish = TaskWish.NONE

    def row(self) -> Row:
        """The task as a row of the store."""
        body = None if self.kept is self.body else self.body
        self.kept = self.body
        return (self.uid, "task", self.job.uid, body, self.pack_state())
