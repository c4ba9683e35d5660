"""The life of tasks: queued, placed, run, completed."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from airflow_batchwrap.local.control import verdicts, works
from airflow_batchwrap.local.control.base import Base
from airflow_batchwrap.local.control.events import CommandStarted, TaskEnded
from airflow_batchwrap.local.control.placement import Placement, TooEarly, carry_out, decide
from airflow_batchwrap.local.control.preparations import Preparations
from airflow_batchwrap.local.control.verdicts import Verdict
from airflow_batchwrap.local.model.entities import Job, Node, NodeJob, Task
from airflow_batchwrap.local.model.exits import satisfies
from airflow_batchwrap.local.model.states import Dealing, Ending, PoolState, Result, TaskState, TaskWish
from airflow_batchwrap.local.node import gang
from airflow_batchwrap.local.node.layout import job_directory
from airflow_batchwrap.local.node.process import Child
from airflow_batchwrap.local.node.run import Outcome, Run
from airflow_batchwrap.local.node.transfer import TaskFailed
from airflow_batchwrap.local.wire import times

#: How many tasks are placed in one turn of the loop.
_AT_ONCE = 16


@dataclass(eq=False)
class _Place:
    """A task on its nodes.

    :param run: its run.
    :param nodes: where, the primary first.
    :param parts: what its job does on these nodes beside it.
    """

    run: Run
    nodes: tuple[Node, ...]
    parts: list[NodeJob]
    #: Set once it has left its nodes.
    left: asyncio.Event = field(default_factory=asyncio.Event)


class Tasks:
    """Places ready tasks on free slots, runs them, and says what becomes of them.

    :param base: the state.
    :param preparations: what jobs do on nodes beside their tasks.
    """

    def __init__(self, base: Base, preparations: Preparations) -> None:
        self._base = base
        self._preparations = preparations
        self._due: set[str] = set()
        self._places: dict[Task, _Place] = {}

    # Queued

    def add(self, job: Job, name: str, body: dict[str, Any]) -> Task:
        """Take a new task in; it may run once it is kept.

        :param job: its job.
        :param name: its id, which no task of the job has.
        :param body: the rest of it, checked.
        :return: the task.
        """
        kept = json.dumps(body, separators=(",", ":")).encode()
        task = Task(self._base.store.next_uid(), name, job, kept, slots=body["requiredSlots"])
        job.tasks.add(task)
        job.counts["active"] += 1
        job.slot_counts["active"] += task.slots
        self._base.store.touch(task)
        self._base.store.when_kept(functools.partial(self._queue_kept, task))
        return task

    def _queue_kept(self, task: Task) -> None:
        # It may have been ended, or deleted, while it was written.
        if task.state == TaskState.ACTIVE and task.job.tasks.get(task.id) is task:
            self.queue(task)

    def queue(self, task: Task) -> None:
        """Queue an active task, or let it wait for those it depends on.

        :param task: the task.
        """
        if not task.job.dependencies.hold(task):
            task.job.ready.add(task)
            self.look(task.job.pool_id)

    def look(self, pool_id: str) -> None:
        """Look for work for a pool, once this turn of the loop is over.

        :param pool_id: the pool's id; one that does not exist is no error.
        """
        key = pool_id.lower()
        if key not in self._due and not self._base.stopping:
            self._due.add(key)
            loop, wait = asyncio.get_running_loop(), self._base.pace.here(self._base.pace.task)
            if wait:
                loop.call_later(wait, self._place_some, key)
            else:
                loop.call_soon(self._place_some, key)

    # Placed

    def _place_some(self, key: str) -> None:
        self._due.discard(key)
        pool = self._base.pools.get(key)
        if pool is None or pool.state != PoolState.ACTIVE or self._base.stopping:
            return
        jobs = [job for job in self._base.jobs if job.ready and job.pool_id.lower() == key]
        wait = self._base.pace.here(self._base.pace.task)
        # One that was added while an earlier event's wait ran has its own whole wait.
        decisions = decide(pool, jobs, times.now() - wait) if wait else decide(pool, jobs)
        for count, decision in enumerate(decisions, 1):
            if isinstance(decision, TooEarly):
                self.look(pool.id)
                continue
            self._place(decision)
            if count == _AT_ONCE:
                # Others have their turn.
                self._due.add(key)
                asyncio.get_running_loop().call_soon(self._place_some, key)
                return

    def _place(self, placement: Placement) -> None:
        task, nodes = placement.task, placement.nodes
        idle = [node for node in nodes if not node.tasks]
        carry_out(placement)
        for node in idle:
            self._base.store.touch(node)
        parts = [part for node in nodes if (part := self._preparations.of(task.job, node)) is not None]
        place = self._places[task] = _Place(self._new_run(task, nodes), nodes, parts)
        if task.job.waits and not all(part.prepared for part in parts):
            task.shift(TaskState.PREPARING)
            self._base.store.touch(task)
        else:
            self._begin(task)
        self._base.spawn(self._run(task, place))

    def _new_run(self, task: Task, nodes: tuple[Node, ...]) -> Run:
        base, started = self._base, functools.partial(self._started, task, nodes[0])
        if not task.gang:
            return Run(works.of_task(base, task, nodes[0]), base.blobs, started)
        own, coordination = works.of_gang(base, task, list(nodes))
        task.subtasks = [
            {"id": index, "nodeId": node.id, "state": "preparing", "since": times.now()}
            for index, node in enumerate(nodes)
            if index
        ]
        return gang.Gang(own, coordination, base.blobs, started, functools.partial(self._coordinated, task))

    def _coordinated(self, task: Task, index: int, outcome: Outcome) -> None:
        if index and task.subtasks is not None and not self._base.stopping:
            now, subtask = times.now(), task.subtasks[index - 1]
            subtask |= {"previous": subtask["state"], "previousSince": subtask["since"], "state": "completed"}
            subtask |= {"since": now, "ended": now, "exitCode": outcome.exit_code, "failure": outcome.failure}
            self._base.store.touch(task)

    # Run

    def _begin(self, task: Task) -> None:
        task.shift(TaskState.RUNNING)
        self._base.store.touch(task)
        task.started, task.ended = times.now(), None
        if task.last_retry == 0:
            task.last_retry = task.started
        for subtask in task.subtasks or ():
            subtask |= {"state": "running", "since": task.started, "started": task.started}

    def _started(self, task: Task, node: Node, child: Child) -> None:
        task.process, task.container = [child.pid, child.mark], self._places[task].run.container
        self._base.store.touch(task)
        self._base.events.tell(CommandStarted(node))

    async def _run(self, task: Task, place: _Place) -> None:
        run, outcome = place.run, None
        for part, node in zip(place.parts, place.nodes, strict=False):
            self._preparations.begin(part, node)
        if task.state == TaskState.PREPARING:
            for part in place.parts:
                await self._preparations.prepared(part, run.stopped)
            if run.reason is None and all(part.prepared for part in place.parts):
                self._begin(task)
        if task.state == TaskState.RUNNING:
            outcome = await run.execute()
        run.over.set()
        await self._base.turnstile.turn()
        if not self._base.stopping:
            self._settle(task, place, outcome)
        place.left.set()

    def _settle(self, task: Task, place: _Place, outcome: Outcome | None) -> None:
        """Take a task from its nodes, and say what becomes of it."""
        del self._places[task]
        for node in place.nodes:
            alone = len(node.tasks) == 1
            node.give_back(task, task.needs(node.pool.slots))
            if alone:
                self._base.store.touch(node)
        task.job.running -= 1
        verdict = verdicts.of_run(task, place.run.reason, outcome)
        if verdict is Verdict.REQUEUED:
            task.requeues += 1
            task.last_requeue = times.now()
            self._again(task)
        elif verdict is Verdict.RETRIED:
            task.retries += 1
            task.last_retry = 0
            self._again(task)
        elif verdict is Verdict.WAITS:
            self._again(task)
        elif verdict is Verdict.NEVER_RAN:
            self.complete(task, Outcome(None, place.run.ended_failure()))
        elif verdict is Verdict.COMPLETED and outcome is not None:
            self._count(task, outcome)
            self.complete(task, outcome)
        self.look(place.nodes[0].pool.id)
        self._base.events.tell(TaskEnded(task, ran=outcome is not None))

    def _again(self, task: Task) -> None:
        task.shift(TaskState.ACTIVE)
        task.leave_place()
        self._base.store.touch(task)
        self.queue(task)

    def _count(self, task: Task, outcome: Outcome) -> None:
        node = self._base.node(task.pool_id, task.node_id)
        if node is not None:
            node.tasks_run += 1
            node.succeeded += outcome.failure is None
            self._base.store.touch(node)

    # Completed

    def complete(self, task: Task, outcome: Outcome) -> None:
        """Complete a task.

        :param task: the task, in any state but completed.
        :param outcome: how it ended.
        """
        task.ended = times.now()
        task.exit_code, task.failure, task.container = outcome.exit_code, outcome.failure, outcome.container
        task.process, task.wish = None, TaskWish.NONE
        job = task.job
        job.ready.remove(task)
        task.shift(TaskState.COMPLETED, Result.FAILURE if outcome.failure else Result.SUCCESS)
        self._base.store.touch(task)
        if job.body["usesTaskDependencies"]:
            job.dependencies.remove(task)
            if satisfies(task):
                for freed in job.dependencies.satisfy(task.id):
                    job.ready.add(freed)
                self.look(job.pool_id)

    def end(self, task: Task) -> None:
        """Complete a task that does not run as one that was ended by request.

        :param task: the task, in any state but completed.
        """
        self.complete(task, Outcome(None, TaskFailed("TaskEnded", "Task Was Ended by User Request").failure))

    def terminate(self, task: Task) -> None:
        """End a task by request: a running one is killed, a waiting one never runs.

        :param task: the task, in any state but completed.
        """
        if task in self._places:
            self.stop([task], Dealing.TERMINATE)
        else:
            self.end(task)
            self._base.events.tell(TaskEnded(task, ran=False))

    def reactivate(self, task: Task) -> None:
        """Queue a failed task once more.

        :param task: the task, completed.
        """
        task.shift(TaskState.ACTIVE)
        task.retries = 0
        task.last_retry = task.ended = task.exit_code = task.failure = task.container = None
        task.leave_place()
        task.changed()
        self._base.store.touch(task)
        task.job.dependencies.unsatisfy(task.id)
        self._base.store.when_kept(functools.partial(self._queue_kept, task))

    async def forget(self, task: Task) -> None:
        """Take a task out of its job, with its run and its files.

        :param task: the task.
        """
        job = task.job
        node = self._base.node(task.pool_id, task.node_id)
        await self.discard([task])
        if job.tasks.get(task.id) is not task:
            return
        job.tasks.remove(task)
        job.ready.remove(task)
        job.dependencies.remove(task)
        job.dependencies.unsatisfy(task.id)
        job.counts[task.standing] -= 1
        job.slot_counts[task.standing] -= task.slots
        self._base.store.drop(task.uid)
        if node is not None:
            await self._base.remove(job_directory(self._base.root(node), job.id) / task.id)
        self._base.events.tell(TaskEnded(task, ran=False))

    # Ended from outside

    def of_job(self, job: Job) -> list[Task]:
        """The tasks of a job that have a place now.

        :param job: the job.
        :return: them.
        """
        return [task for task in self._places if task.job is job]

    def stop(self, tasks: Iterable[Task], dealing: Dealing) -> None:
        """End the runs of tasks; that they are to be terminated is kept.

        :param tasks: the tasks; those that have no place are passed over.
        :param dealing: requeue or terminate.
        """
        for task in tasks:
            if (place := self._places.get(task)) is None:
                continue
            if dealing is Dealing.TERMINATE:
                task.wish = TaskWish.TERMINATE
                self._base.store.touch(task)
            place.run.stop(dealing.ending)

    def lose(self, tasks: Iterable[Task]) -> None:
        """Put tasks back into the queue whose node is lost, which nobody asked for.

        :param tasks: the tasks; those that have no place are passed over.
        """
        for task in tasks:
            if (place := self._places.get(task)) is not None:
                place.run.stop(Ending.LOST)

    async def discard(self, tasks: Iterable[Task]) -> None:
        """End the runs of tasks that are about to be deleted, and wait until they have left their nodes.

        :param tasks: the tasks.
        """
        for task in tasks:
            if (place := self._places.get(task)) is not None:
                place.run.stop(Ending.DISCARD)
        await self.left(tasks)

    async def left(self, tasks: Iterable[Task]) -> None:
        """Wait until tasks have left their nodes.

        :param tasks: the tasks; those that have no place are passed over.
        """
        for left in [place.left for task in tasks if (place := self._places.get(task)) is not None]:
            await left.wait()

    def runs(self) -> list[Run]:
        """All runs of tasks.

        :return: them.
        """
        return [place.run for place in self._places.values()]
