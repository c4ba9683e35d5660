"""What a restart finds, and what it makes of it: as a node's recovery would, and as was promised before."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import Self

from airflow_batchwrap.local.control.autoscaler import Autoscaler
from airflow_batchwrap.local.control.base import Base
from airflow_batchwrap.local.control.events import TaskEnded
from airflow_batchwrap.local.control.jobs import Jobs
from airflow_batchwrap.local.control.nodes import Nodes
from airflow_batchwrap.local.control.pools import Pools
from airflow_batchwrap.local.control.schedules import Schedules
from airflow_batchwrap.local.control.tasks import Tasks
from airflow_batchwrap.local.model.entities import Execution, Job, JobSchedule, Node, NodeJob, Pool, Task
from airflow_batchwrap.local.model.exits import satisfies
from airflow_batchwrap.local.model.states import (
    Allocation,
    ExecutionState,
    JobState,
    NodeState,
    PoolState,
    TaskState,
    TaskWish,
)
from airflow_batchwrap.local.node import instance, process
from airflow_batchwrap.local.wire import schema, times

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lifecycles:
    """What goes on with what was found."""

    tasks: Tasks
    nodes: Nodes
    pools: Pools
    jobs: Jobs
    schedules: Schedules
    autoscaler: Autoscaler


def load(base: Base) -> bool:
    """Take up what the store holds.

    :param base: the state, still empty.
    :return: whether all of it could be read; what could not stays in the store.
    """
    rows = _Rows(base)
    for uid, kind, parent, body, state in base.store.rows():
        with _Alone(kind, uid) as alone:
            rows.take(uid, kind, parent, body, state)
        if alone.failed:
            rows.left.add(uid)
    return not rows.left


class _Alone:
    """Lets what cannot be resumed keep nothing else from that: it is logged, and left as it is."""

    def __init__(self, kind: str, which: object) -> None:
        self._kind, self._which = kind, which
        self.failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failed = True
        log.error(
            "The %s %s cannot be resumed; it is left as it is, and the rest goes on.",
            self._kind,
            self._which,
            exc_info=error,
        )
        return True


class _Rows:
    """What the store holds, as it is taken up."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._pools: dict[int, Pool] = {}
        self._jobs: dict[int, Job] = {}
        #: What could not be read, and what belongs to it: it stays in the store.
        self.left: set[int] = set()

    def take(self, uid: int, kind: str, parent: int, body: bytes, state: bytes) -> None:
        """Take up a row; those of what it belongs to come before.

        :raises Exception: it cannot be read.
        """
        base, pools, jobs = self._base, self._pools, self._jobs
        if kind == "pool":
            pool = Pool(uid, "", schema.without_secrets(json.loads(body)))
            pool.restore(state)
            base.pools.add(pool)
            pools[uid] = pool
        elif kind == "job":
            job = Job(uid, "", schema.without_secrets(json.loads(body)))
            job.restore(state)
            base.jobs.add(job)
            jobs[uid] = job
        elif kind == "jobschedule":
            schedule = JobSchedule(uid, "", schema.without_secrets(json.loads(body)))
            schedule.restore(state)
            base.schedules.add(schedule)
        elif kind == "node" and parent in pools:
            node = Node(uid, "", pools[parent])
            node.restore(state)
            node.start = Execution.of(json.loads(body))
            node.pool.nodes.add(node)
        elif kind == "task" and parent in jobs:
            task = Task(uid, "", jobs[parent], body)
            task.restore(state)
            task.kept = body
            task.job.tasks.add(task)
        elif kind == "nodejob" and parent in jobs:
            pool_id, node_id = json.loads(body)
            stale, prepare, release = json.loads(state)
            part = NodeJob(uid, jobs[parent], pool_id, node_id, stale=stale)
            part.prepare, part.release = Execution.of(prepare), Execution.of(release)
            part.job.nodes[node_id] = part
        elif parent in self.left:
            self.left.add(uid)
        else:
            # Its parent was deleted in the same batch that was to delete it.
            base.store.drop(uid)


async def kill_leftovers(base: Base) -> None:
    """End what an earlier service's tasks left running: what belongs to its nodes, and the recorded processes.

    :param base: the state.
    """

    def kill() -> None:
        for job in base.jobs:
            for task in job.tasks:
                if task.process:
                    process.kill_recorded(int(task.process[0]), float(task.process[1]))
        process.end_all(base.config.nodes)

    await asyncio.to_thread(kill)
    await instance.remove_all(base.config.nodes)


async def resume(base: Base, lifecycles: Lifecycles, *, whole: bool = True) -> None:
    """Go on from where the state stands: nodes start anew, running tasks are queued again, endings are ended.

    :param base: the state, loaded.
    :param lifecycles: what goes on with it.
    :param whole: as of `load`; else directories that nobody knows are left alone, as they may be those of lost nodes.
    """
    ended: list[Task] = []
    for job in base.jobs:
        with _Alone("job", job.id):
            ended += _resume_tasks(base, lifecycles.tasks, job)
    if whole:
        await _remove_strangers(base)
    for pool in base.pools:
        with _Alone("pool", pool.id):
            await _resume_nodes(base, lifecycles.nodes, pool)
            if pool.state == PoolState.DELETING:
                lifecycles.pools.go_on_deleting(pool)
            elif pool.allocation != Allocation.STEADY:
                lifecycles.pools.resume(pool)
            lifecycles.autoscaler.resume(pool)
    for job in base.jobs:
        with _Alone("job", job.id):
            if job.state in (JobState.TERMINATING, JobState.DELETING):
                lifecycles.jobs.close(job)
            elif job.state == JobState.DISABLING:
                job.move(JobState.DISABLED)
            elif job.state == JobState.ENABLING:
                job.move(JobState.ACTIVE)
            base.store.touch(job)
    for task in ended:
        with _Alone("task", task.id):
            base.events.tell(TaskEnded(task, ran=False))
    for job in base.jobs:
        with _Alone("job", job.id):
            lifecycles.jobs.watch(job)
    for schedule in base.schedules:
        with _Alone("job schedule", schedule.id):
            lifecycles.schedules.advance(schedule)


def _resume_tasks(base: Base, tasks: Tasks, job: Job) -> list[Task]:
    """Queue a job's tasks again; those that were to end have ended, and are given back."""
    ended: list[Task] = []
    for task in job.tasks:
        job.counts[task.standing] += 1
        job.slot_counts[task.standing] += task.slots
        if job.body["usesTaskDependencies"] and task.state == TaskState.COMPLETED and satisfies(task):
            job.dependencies.satisfy(task.id)
    for task in job.tasks:
        with _Alone("task", task.id):
            if task.state in (TaskState.RUNNING, TaskState.PREPARING):
                base.store.touch(task)
                if task.wish is TaskWish.TERMINATE or job.state == JobState.TERMINATING:
                    tasks.end(task)
                    ended.append(task)
                else:
                    task.shift(TaskState.ACTIVE)
                    task.leave_place()
            if task.state == TaskState.ACTIVE:
                tasks.queue(task)
    for part in job.nodes.values():
        _reboot(part)
        base.store.touch(part)
    return ended


async def _remove_strangers(base: Base) -> None:
    known = {node.directory for pool in base.pools for node in pool.nodes}
    for directory in await asyncio.to_thread(lambda: list(base.config.nodes.iterdir())):
        if directory.name not in known:
            # Nobody waits for it: it may hold very much.
            base.spawn(base.remove(directory))


async def _resume_nodes(base: Base, nodes: Nodes, pool: Pool) -> None:
    for node in pool.nodes:
        with _Alone("node", node.id):
            if node.state == NodeState.LEAVING:
                pool.nodes.remove(node)
                base.store.drop(node.uid)
                # Nobody waits for it: it may hold very much.
                base.spawn(base.remove(base.root(node)))
            else:
                await nodes.resume(node)


def _reboot(part: NodeJob) -> None:
    if part.prepare is not None and part.prepare.state == ExecutionState.RUNNING:
        part.prepare = None
    if part.release is not None and part.release.state == ExecutionState.RUNNING:
        part.release = Execution(times.now())
    if part.prepared and part.job.body["jobPreparationTask"]["rerunOnNodeRebootAfterSuccess"]:
        part.stale = True
