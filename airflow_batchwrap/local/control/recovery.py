"""What a restart finds, and what it makes of it: as a node's recovery would."""

from __future__ import annotations

import asyncio
import json

from airflow_batchwrap.local.control.exits import satisfies
from airflow_batchwrap.local.control.world import World
from airflow_batchwrap.local.model.entities import Execution, Job, JobSchedule, Node, NodeJob, Pool, Task
from airflow_batchwrap.local.node import container, process
from airflow_batchwrap.local.wire import schema, times


def load(world: World) -> None:
    """Take up what the store holds.

    :param world: the state, still empty.
    """
    pools: dict[int, Pool] = {}
    jobs: dict[int, Job] = {}
    for uid, kind, parent, body, state in world.store.rows():
        if kind == "pool":
            pool = pools[uid] = Pool(uid, "", schema.without_secrets(json.loads(body)))
            pool.restore(state)
            world.pools.add(pool)
        elif kind == "job":
            job = jobs[uid] = Job(uid, "", schema.without_secrets(json.loads(body)))
            job.restore(state)
            world.jobs.add(job)
        elif kind == "jobschedule":
            schedule = JobSchedule(uid, "", schema.without_secrets(json.loads(body)))
            schedule.restore(state)
            world.schedules.add(schedule)
        elif kind == "node" and parent in pools:
            node = Node(uid, "", pools[parent])
            node.restore(state)
            start = json.loads(body)
            node.start = Execution(**start) if start else None
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
            part.prepare = Execution(**prepare) if prepare else None
            part.release = Execution(**release) if release else None
            part.job.nodes[node_id] = part
        else:
            # Its parent was deleted in the same batch that was to delete it.
            world.store.drop(uid)


async def kill_leftovers(world: World) -> None:
    """End what an earlier service's tasks left running: what belongs to its nodes, and the recorded processes.

    :param world: the state.
    """

    def kill() -> None:
        for job in world.jobs:
            for task in job.tasks:
                if task.process:
                    process.kill_recorded(int(task.process[0]), float(task.process[1]))
        process.end_all(world.config.nodes)
        if any(pool.contains for pool in world.pools):
            container.remove_all(world.config.nodes)

    await asyncio.to_thread(kill)


async def resume(world: World) -> None:
    """Go on from where the state stands: nodes start anew, running tasks are queued again, endings are ended.

    :param world: the state, loaded.
    """
    for job in world.jobs:
        for task in job.tasks:
            if job.body["usesTaskDependencies"] and task.state == "completed" and satisfies(task):
                job.dependencies.satisfy(task.id)
        for task in job.tasks:
            _unplace(task)
            if task.state == "active":
                world.scheduler.queue(task)
            if task.process is not None:
                task.process = None
                world.store.touch(task)
        _recount(job)
        for part in job.nodes.values():
            _reboot(part)
            world.store.touch(part)
    known = {node.directory for pool in world.pools for node in pool.nodes}
    for directory in await asyncio.to_thread(lambda: list(world.config.nodes.iterdir())):
        if directory.name not in known:
            await world.remove(directory)
    for pool in world.pools:
        for node in pool.nodes:
            if node.state == "leavingpool":
                pool.nodes.remove(node)
                world.store.drop(node.uid)
                await world.remove(world.root(node))
            elif node.state in ("deallocating", "deallocated"):
                node.begin("deallocated")
                world.store.touch(node)
            else:
                # Not a legal transition of a running service: the node was cut off, and starts from the beginning.
                node.begin("starting")
                world.spawn(world.boots.boot(node))
                world.store.touch(node)
        if pool.state == "deleting":
            world.node_control.delete(pool)
        elif pool.allocation != "steady":
            world.node_control.resume(pool)
        world.autoscaler.resume(pool)
    for job in world.jobs:
        if job.state in ("terminating", "deleting"):
            world.job_control.close(job)
        elif job.state == "disabling":
            job.move("disabled")
        elif job.state == "enabling":
            job.move("active")
        world.job_control.watch(job)
        world.store.touch(job)
    for schedule in world.schedules:
        world.schedule_control.advance(schedule)


def _unplace(task: Task) -> None:
    if task.state in ("running", "preparing"):
        task.move("active")
        task.pool_id = task.node_id = task.started = task.subtasks = None


def _recount(job: Job) -> None:
    for task in job.tasks:
        job.counts[task.standing] += 1
        job.slot_counts[task.standing] += task.slots


def _reboot(part: NodeJob) -> None:
    if part.prepare is not None and part.prepare.state == "running":
        part.prepare = None
    if part.release is not None and part.release.state == "running":
        part.release = Execution(times.now())
    if part.prepared and part.job.body["jobPreparationTask"]["rerunOnNodeRebootAfterSuccess"]:
        part.stale = True
