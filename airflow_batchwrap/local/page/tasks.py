"""What the templates show of tasks; a list of them is looked through without holding up the service."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from airflow_batchwrap.local.api import views
from airflow_batchwrap.local.model.entities import Job, Task
from airflow_batchwrap.local.node.layout import job_directory
from airflow_batchwrap.local.page import hide
from airflow_batchwrap.local.page.files import Place
from airflow_batchwrap.local.page.guard import ROOT
from airflow_batchwrap.local.page.show import failure
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.world import World

#: How many tasks a page shows.
LENGTH = 100
#: How many tasks are looked at before other requests get their turn (about 2 ms).
_TURN = 4000

#: By each filter of a job's tasks, which of `Task.standing` it shows.
STANDINGS = {
    "active": ("active",),
    "running": ("running",),
    "succeeded": ("success",),
    "failed": ("failure",),
}


async def search(job: Job, standing: str, wanted: str, number: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Find a page of a job's tasks, in the order they were added.

    :param job: the job.
    :param standing: one of `STANDINGS`; empty for all.
    :param wanted: a part of the id, in any case; empty for all.
    :param number: which page, from 1.
    :return: the tasks, and what the links to the other pages need; ``last`` is None where it is not known.
    """
    kinds = STANDINGS.get(standing)
    total = sum(job.counts[kind] for kind in kinds) if kinds else len(job.tasks)
    last: int | None = None if wanted else max(1, -(-total // LENGTH))
    number = max(1, number if last is None else min(number, last))
    wanted = wanted.lower()
    skip, more = (number - 1) * LENGTH, False
    found: list[Task] = []
    for looked, task in enumerate(job.tasks.after(0), 1):
        if looked % _TURN == 0:
            await asyncio.sleep(0)
        if (kinds is None or task.standing in kinds) and (not wanted or wanted in task.id.lower()):
            if skip:
                skip -= 1
                continue
            if len(found) == LENGTH:
                more = True
                break
            found.append(task)
        # The counts tell when there is no further one, most of the time long before the end.
        if last == number and not skip and len(found) == total - (number - 1) * LENGTH:
            break
    return [row(task) for task in found], {"number": number, "last": last, "more": more}


def row(entity: Task) -> dict[str, Any]:
    """A task as a row of a list.

    :param entity: the task.
    :return: what the templates show.
    """
    return {
        "id": entity.id,
        "job": entity.job.id,
        "state": entity.state,
        "result": entity.result,
        "exit": entity.exit_code,
        "failure": failure(entity.failure),
        "pool": entity.pool_id,
        "node": entity.node_id,
        "started": entity.started,
        "ended": entity.ended,
        "took": None if entity.started is None else (entity.ended or times.now()) - entity.started,
        "retries": entity.retries,
        "requeues": entity.requeues,
    }


def details(world: World, entity: Task) -> dict[str, Any]:
    """What only a task's own page shows.

    :param world: the state.
    :param entity: the task.
    :return: what the templates show.
    """
    body = hide.body(views.task(world.config.url, entity))
    common = entity.job.body.get("commonEnvironmentSettings") or []
    environment = [(each.get("name", ""), "job") for each in common[: hide.ITEMS]]
    environment += [(each.get("name", ""), "task") for each in body.get("environmentSettings") or []]
    return {
        "command": body.get("commandLine", ""),
        "slots": entity.slots,
        "constraints": body.get("constraints", {}),
        "environment": environment,
        "resources": [_resource(each) for each in body.get("resourceFiles") or []],
        "outputs": [_output(each) for each in body.get("outputFiles") or []],
        "depends": body.get("dependsOn"),
        "history": _history(entity),
        "waiting": waiting(world, entity),
        "node_there": world.node(entity.pool_id, entity.node_id) is not None,
        "all": body,
    }


def _resource(body: dict[str, Any]) -> dict[str, str]:
    source = body.get("httpUrl") or body.get("storageContainerUrl") or body.get("autoStorageContainerName") or ""
    prefix = body.get("blobPrefix")
    return {
        "path": str(body.get("filePath") or "."),
        "source": f"{source} ({prefix}*)" if prefix else str(source),
        "mode": str(body.get("fileMode") or ""),
    }


def _output(body: dict[str, Any]) -> dict[str, str]:
    container = (body.get("destination") or {}).get("container") or {}
    return {
        "pattern": str(body.get("filePattern", "")),
        "path": str(container.get("path") or ""),
        "container": str(container.get("containerUrl", "")),
        "condition": str((body.get("uploadOptions") or {}).get("uploadCondition", "")),
    }


def _history(entity: Task) -> list[tuple[float, str]]:
    """What happened to a task, as far as Batch keeps it."""
    events = [(entity.created, "added")]
    if entity.previous is not None and entity.previous_since is not None and entity.previous_since > entity.created:
        events.append((entity.previous_since, entity.previous))
    if entity.last_requeue is not None:
        events.append((entity.last_requeue, f"put back into the queue (requeue {entity.requeues})"))
    if entity.retries and entity.last_retry:
        events.append((entity.last_retry, f"retried (retry {entity.retries})"))
    if entity.since > entity.created:
        ending = {"success": "completed, succeeded", "failure": "completed, failed"}
        events.append((entity.since, ending.get(entity.result or "", entity.state)))
    # The start is one of the states above, but for the oldest of three.
    if entity.started is not None and all(abs(entity.started - at) > 0.5 for at, _ in events):
        events.append((entity.started, "running"))
    return sorted(events, key=lambda event: event[0])


def waiting(world: World, entity: Task) -> str:
    """Why a task does not run yet.

    :param world: the state.
    :param entity: the task.
    :return: a sentence; empty where it does not wait.
    """
    job = entity.job
    if entity.state != "active":
        return ""
    if job.state != "active":
        return f"The job is {job.state}."
    pool = world.pools.get(job.pool_id)
    if pool is None:
        return f"The pool {job.pool_id} does not exist."
    if not len(pool.nodes):
        return f"The pool {pool.id} has no nodes."
    usable = [node for node in pool.nodes if node.usable]
    if not usable:
        return f"None of the pool's {len(pool.nodes)} nodes can take tasks now."
    if all(node.id in job.nodes and job.nodes[node.id].barred for node in usable):
        return "The job preparation task failed on every usable node: see the job."
    if json.loads(entity.body).get("dependsOn"):
        return "It waits for the tasks it depends on, or for a free slot."
    return "It waits for a free slot."


def place(world: World, entity: Task) -> Place:
    """Where a task's files are.

    :param world: the state.
    :param entity: the task.
    :return: its directory; without one as long as it has not run, and when its node is gone.
    """
    node = world.node(entity.pool_id, entity.node_id)
    root = job_directory(world.root(node), entity.job.id) / entity.id if node else None
    mark = f"{entity.node_id}-{entity.started}-{entity.retries}-{entity.requeues}"
    return Place(root, f"{ROOT}/jobs/{entity.job.id}/tasks/{entity.id}", entity.state == "completed", mark)
