"""Which task runs where and when: driven by events, with nothing that polls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from airflow_batchwrap.local.control import works
from airflow_batchwrap.local.control.exits import satisfies
from airflow_batchwrap.local.control.world import World
from airflow_batchwrap.local.model.entities import Execution, Job, Node, NodeJob, Pool, Task
from airflow_batchwrap.local.node import gang
from airflow_batchwrap.local.node.process import Child
from airflow_batchwrap.local.node.run import Outcome, Run
from airflow_batchwrap.local.wire import times


class Scheduler:
    """Places ready tasks on free slots, runs them, and says what becomes of them.

    :param world: the state.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._due: set[str] = set()

    def kick(self, pool_id: str) -> None:
        """Look for work for a pool, once this turn of the loop is over.

        :param pool_id: the pool's id; one that does not exist is no error.
        """
        key = pool_id.lower()
        if key not in self._due and not self._world.stopping:
            self._due.add(key)
            loop, wait = asyncio.get_running_loop(), self._world.pace.here(self._world.pace.task)
            if wait:
                loop.call_later(wait, self._dispatch, key)
            else:
                loop.call_soon(self._dispatch, key)

    def _dispatch(self, key: str) -> None:
        self._due.discard(key)
        pool = self._world.pools.get(key)
        if pool is None or pool.state != "active" or self._world.stopping:
            return
        waiting = [
            job for job in self._world.jobs if job.ready and job.state == "active" and job.pool_id.lower() == key
        ]
        # Higher priority first; among equals the older job, whose number is lower.
        waiting.sort(key=lambda job: (-job.priority, job.uid))
        for job in waiting:
            while job.ready and (job.parallel < 0 or job.running < job.parallel):
                if (waiting_gang := self._gang(pool, job)) is not None:
                    several = self._gather(pool, waiting_gang)
                    if several is None:
                        # What is free is held for it until there are as many nodes as it needs.
                        return
                    self._place(waiting_gang, *several)
                    continue
                choice = self._choose(pool, job)
                if choice is None:
                    break
                self._place(*choice)

    def _gang(self, pool: Pool, job: Job) -> Task | None:
        """The multi-instance task that is next, if one is, and could run here."""
        # Learn: without inter-node communication, or with several slots, such a task is never scheduled.
        gangs = job.ready.gangs() if pool.body["enableInterNodeCommunication"] and pool.slots == 1 else []
        first = job.ready.first(pool.slots) if gangs else None
        for task in gangs:
            if first is not None and first.uid < task.uid:
                return None
            if len(self._candidates(pool, job)) >= instances(task):
                return task
        return None

    def _candidates(self, pool: Pool, job: Job) -> list[Node]:
        barred = {node_id for node_id, part in job.nodes.items() if part.barred and _waits(job)}
        return [node for node in pool.nodes if node.usable and node.id not in barred]

    def _gather(self, pool: Pool, task: Task) -> list[Node] | None:
        free = [node for node in self._candidates(pool, task.job) if node.used == 0]
        wanted = instances(task)
        return free[:wanted] if len(free) >= wanted else None

    def _choose(self, pool: Pool, job: Job) -> tuple[Task, Node] | None:
        free = [node for node in self._candidates(pool, job) if node.used < pool.slots]
        if not free:
            return None
        task = job.ready.first(max(pool.slots - node.used for node in free))
        if task is None:
            return None
        wait = self._world.pace.here(self._world.pace.task)
        if wait and times.now() - task.created < wait:
            # It was added while an earlier event's wait ran; those behind it are newer still.
            self.kick(pool.id)
            return None
        manager = _manager(task)
        fitting = [node for node in free if pool.slots - node.used >= needed(task, node)]
        if manager is not None and not manager["allowLowPriorityNode"]:
            fitting = [node for node in fitting if node.dedicated]
        if not fitting:
            return None
        wanted = (
            json.loads(task.body).get("affinityInfo", {}).get("affinityId") if b"affinityInfo" in task.body else None
        )
        for node in fitting:
            if wanted and node.id == wanted:
                return task, node
        pack = pool.body["taskSchedulingPolicy"]["nodeFillType"].lower() == "pack"
        return task, (max if pack else min)(fitting, key=lambda node: (node.used, -node.uid if pack else node.uid))

    def _place(self, task: Task, node: Node, *others: Node) -> None:
        job, nodes = task.job, [node, *others]
        job.ready.remove(task)
        job.running += 1
        task.pool_id, task.node_id = node.pool.id, node.id
        run = self._new_run(task, nodes)
        for one in nodes:
            one.used += needed(task, one)
            one.runs[task] = run
            one.recent.append(task)
            if one.state == "idle":
                one.move("running")
                self._world.store.touch(one)
        parts = [part for one in nodes if (part := self._node_job(job, one)) is not None]
        if _waits(job) and not all(part.prepared for part in parts):
            self._world.shift(task, "preparing")
        else:
            self._begin(task)
        self._world.spawn(self._run(task, nodes, run, parts))

    def _new_run(self, task: Task, nodes: list[Node]) -> Run:
        first, world = nodes[0], self._world
        if b'"multiInstanceSettings":' not in task.body:
            return Run(works.of_task(world, task, first), world.blobs, lambda child: self._started(task, first, child))
        own, coordination = works.of_gang(world, task, nodes)
        task.subtasks = [
            {"id": index, "nodeId": node.id, "state": "preparing", "since": times.now()}
            for index, node in enumerate(nodes)
            if index
        ]
        return gang.Gang(
            own,
            coordination,
            world.blobs,
            lambda child: self._started(task, first, child),
            lambda index, outcome: self._coordinated(task, index, outcome),
        )

    def _coordinated(self, task: Task, index: int, outcome: Outcome) -> None:
        if index and task.subtasks is not None and not self._world.stopping:
            now, subtask = times.now(), task.subtasks[index - 1]
            subtask |= {"previous": subtask["state"], "previousSince": subtask["since"], "state": "completed"}
            subtask |= {"since": now, "ended": now, "exitCode": outcome.exit_code, "failure": outcome.failure}
            self._world.store.touch(task)

    def _begin(self, task: Task) -> None:
        self._world.shift(task, "running")
        task.started, task.ended = times.now(), None
        if task.last_retry == 0:
            task.last_retry = task.started
        for subtask in task.subtasks or ():
            subtask |= {"state": "running", "since": task.started, "started": task.started}

    def _started(self, task: Task, node: Node, child: Child) -> None:
        task.process = [child.pid, child.mark]
        self._world.store.touch(task)
        if not node.dedicated and self._world.config.faults.strikes("preempt"):
            asyncio.get_running_loop().call_soon(self._world.upkeep.preempt, node)

    async def _run(self, task: Task, nodes: list[Node], run: Run, parts: list[NodeJob]) -> None:
        outcome: Outcome | None = None
        for part, node in zip(parts, nodes, strict=False):
            if part.done.is_set() and not part.prepared and not part.barred:
                part.done.clear()
                self._world.spawn(self._prepare(part, node))
        if task.state == "preparing":
            for part in parts:
                await _either(part.done, run.stopped)
            if run.reason is None and all(part.prepared for part in parts):
                self._begin(task)
        if task.state == "running":
            outcome = await run.execute()
        run.over.set()
        if self._world.stopping:
            return
        for node in nodes:
            self._leave(task, node)
        task.job.running -= 1
        if run.reason != "discard":
            self._settle(task, run, outcome)
        self.kick(nodes[0].pool.id)
        self._world.job_control.task_ended(task, outcome)

    def _leave(self, task: Task, node: Node) -> None:
        node.runs.pop(task, None)
        node.used -= needed(task, node)
        if node.state == "running" and not node.runs:
            node.move(node.resting)
            self._world.store.touch(node)

    def _settle(self, task: Task, run: Run, outcome: Outcome | None) -> None:
        """Say what becomes of a task whose run is over."""
        task.process = None
        if run.reason == "requeue":
            task.requeues += 1
            task.last_requeue = times.now()
            self._again(task)
        elif outcome is None and run.reason is None:
            # The preparation failed, or never ended: the task waits for another node (azure-notes.md, trap 1).
            self._again(task)
        elif outcome is None and task.job.state != "active":
            self._again(task)
        elif outcome is None:
            self.complete(task, Outcome(None, run.ended_failure()))
        elif outcome.retriable and run.reason is None and task.job.state == "active" and self._may_retry(task):
            task.retries += 1
            task.last_retry = 0
            self._again(task)
        else:
            self._count(task, outcome)
            self.complete(task, outcome)

    def _again(self, task: Task) -> None:
        self._world.shift(task, "active")
        task.pool_id = task.node_id = task.started = task.subtasks = None
        self.queue(task)

    def add(self, job: Job, name: str, body: dict[str, Any]) -> Task:
        """Take a new task in.

        :param job: its job.
        :param name: its id, which no task of the job has.
        :param body: the rest of it, checked.
        :return: the task.
        """
        kept = json.dumps(body, separators=(",", ":")).encode()
        task = Task(self._world.store.next_uid(), name, job, kept, slots=body["requiredSlots"])
        job.tasks.add(task)
        job.counts["active"] += 1
        job.slot_counts["active"] += task.slots
        self._world.store.touch(task)
        self.queue(task)
        return task

    def queue(self, task: Task) -> None:
        """Queue an active task, or let it wait for those it depends on.

        :param task: the task.
        """
        if not task.job.dependencies.hold(task):
            task.job.ready.add(task)
            self.kick(task.job.pool_id)

    def _may_retry(self, task: Task) -> bool:
        limit = int(json.loads(task.body)["constraints"]["maxTaskRetryCount"])
        return limit < 0 or task.retries < limit

    def _count(self, task: Task, outcome: Outcome) -> None:
        node = self._world.node(task.pool_id, task.node_id)
        if node is not None:
            node.tasks_run += 1
            node.succeeded += outcome.failure is None
            self._world.store.touch(node)

    def complete(self, task: Task, outcome: Outcome) -> None:
        """Complete a task.

        :param task: the task, in any state but completed.
        :param outcome: how it ended.
        """
        task.ended = times.now()
        task.exit_code, task.failure = outcome.exit_code, outcome.failure
        job = task.job
        job.ready.remove(task)
        self._world.shift(task, "completed", outcome.result)
        self._world.retention.ended(task)
        if job.body["usesTaskDependencies"]:
            job.dependencies.remove(task)
            if satisfies(task):
                for freed in job.dependencies.satisfy(task.id):
                    job.ready.add(freed)
                self.kick(job.pool_id)

    def stop(self, tasks: Iterator[Task], reason: str) -> list[Run]:
        """End the runs of tasks.

        :param tasks: the tasks; those that do not run are passed over.
        :param reason: why, one of `Run.reason`.
        :return: the runs, whose `over` is set when they are.
        """
        runs = []
        for task in tasks:
            node = self._world.node(task.pool_id, task.node_id)
            run = node.runs.get(task) if node else None
            if run is not None:
                run.stop(reason)
                runs.append(run)
        return runs

    def _node_job(self, job: Job, node: Node) -> NodeJob | None:
        if "jobPreparationTask" not in job.body:
            return None
        part = job.nodes.get(node.id)
        if part is None:
            part = job.nodes[node.id] = NodeJob(self._world.store.next_uid(), job, node.pool.id, node.id)
        return part

    async def _prepare(self, part: NodeJob, node: Node) -> None:
        body = part.job.body["jobPreparationTask"]
        limit = body["constraints"]["maxTaskRetryCount"]
        execution = part.prepare = Execution(times.now())
        part.stale = False
        while True:
            part.run = Run(
                works.of_job(self._world, part.job, node, body, body["constraints"]["maxWallClockTime"]),
                self._world.blobs,
            )
            self._world.store.touch(part)
            outcome = await part.run.execute()
            if self._world.stopping:
                return
            if part.run.reason is not None or not outcome.retriable or 0 <= limit <= execution.retries:
                break
            execution.retries += 1
            execution.started = execution.last_retry = times.now()
        finish(execution, outcome)
        if part.run.reason in ("requeue", "discard"):
            part.prepare = None
        part.run = None
        self._world.store.touch(part)
        part.done.set()


def _manager(task: Task) -> dict[str, Any] | None:
    """The job's manager, if the task is it."""
    manager: dict[str, Any] | None = task.job.body.get("jobManagerTask")
    return manager if manager is not None and manager["id"].lower() == task.id.lower() else None


def needed(task: Task, node: Node) -> int:
    """How many slots a task takes on a node.

    :param task: the task.
    :param node: the node.
    :return: what it requires; all of them for a job manager that has to be alone.
    """
    manager = _manager(task)
    return node.pool.slots if manager is not None and manager["runExclusive"] else task.slots


def instances(task: Task) -> int:
    """How many nodes a multi-instance task needs.

    :param task: the task.
    :return: the number (Learn: MultiInstanceSettings.numberOfInstances, 1 by default).
    """
    return int(json.loads(task.body)["multiInstanceSettings"].get("numberOfInstances", 1))


def finish(execution: Execution, outcome: Outcome) -> None:
    """Note how a start, preparation or release task ended.

    :param execution: what is kept of it.
    :param outcome: how it ended.
    """
    execution.state, execution.ended = "completed", times.now()
    execution.exit_code, execution.failure, execution.result = outcome.exit_code, outcome.failure, outcome.result


def _waits(job: Job) -> bool:
    preparation = job.body.get("jobPreparationTask")
    return bool(preparation and preparation["waitForSuccess"])


async def _either(first: asyncio.Event, second: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(first.wait()), asyncio.ensure_future(second.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
