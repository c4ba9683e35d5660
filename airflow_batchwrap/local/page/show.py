"""What the templates show of pools, nodes and jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

from airflow_batchwrap.local.api import views
from airflow_batchwrap.local.model.entities import Execution, Job, Node, NodeJob, Pool
from airflow_batchwrap.local.node.layout import relative_task_directory
from airflow_batchwrap.local.page import hide
from airflow_batchwrap.local.page.files import Place
from airflow_batchwrap.local.page.guard import ROOT
from airflow_batchwrap.local.page.render import NODE_STATES, words
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.world import World

T = TypeVar("T")

#: How many squares a heat map has, on the overview and on the pool's own page.
SQUARES, ALL_SQUARES = 400, 5000
#: On how many nodes a failed start task is told in full.
FAILED = 3


def page_of(items: Sequence[T], number: int, length: int) -> tuple[list[T], dict[str, Any]]:
    """One page of a list.

    :param items: the list.
    :param number: which page, from 1; one beyond the end is the last.
    :param length: how many a page holds.
    :return: what is on it, and what the links to the other pages need.
    """
    last = max(1, -(-len(items) // length))
    number = min(max(number, 1), last)
    begin = (number - 1) * length
    return list(items[begin : begin + length]), {"number": number, "last": last, "more": number < last}


def pool(entity: Pool, squares: int = SQUARES) -> dict[str, Any]:
    """A pool with its heat map.

    :param entity: the pool.
    :param squares: how many nodes the map shows at most.
    :return: what the templates show.
    """
    dedicated = sum(node.dedicated for node in entity.nodes)
    counts = Counter(node.state for node in entity.nodes)
    return {
        "id": entity.id,
        "state": entity.state,
        "allocation": entity.allocation,
        "allocation_since": entity.allocation_since,
        "vm_size": entity.body.get("vmSize", ""),
        "slots": entity.slots,
        "slots_busy": sum(node.used for node in entity.nodes),
        "slots_all": len(entity.nodes) * entity.slots,
        "dedicated": (dedicated, entity.target_dedicated),
        "spot": (len(entity.nodes) - dedicated, entity.target_low_priority),
        "formula": entity.body.get("autoScaleFormula") if entity.body.get("enableAutoScale") else None,
        "errors": [failure(each) for each in entity.resize_errors],
        "squares": [_square(node) for node in islice(entity.nodes, squares)],
        "hidden": max(0, len(entity.nodes) - squares),
        "counts": [(state, counts.pop(state)) for state in [*NODE_STATES, *counts] if state in counts],
    }


def failure(found: dict[str, Any] | None) -> str:
    """A failure or a resize error in one line.

    :param found: Batch's failureInfo, or an error of a resize; it may be absent.
    :return: code, message and details.
    """
    if not found:
        return ""
    parts = [str(found[name]) for name in ("code", "message") if found.get(name)]
    details = [
        f"{each.get('name')}: {each.get('value')}"
        for each in found.get("details") or found.get("values") or []
        # Batch often says the same twice.
        if str(each.get("value")) not in parts
    ]
    return hide.text(": ".join(parts) + (f" ({'; '.join(details)})" if details else ""))


def _square(node: Node) -> dict[str, Any]:
    group, sign = NODE_STATES.get(node.state, ("away", "?"))
    slots = node.pool.slots
    if node.tasks:
        # Four shades, from one busy slot to all of them.
        group, sign = f"{group} heat-{min(4, max(1, -(-4 * node.used // slots)))}", str(len(node.tasks))
    lines = [node.id, words(node.state), f"{node.used} of {slots} slots busy"]
    if node.scheduling != "enabled":
        lines.append("scheduling disabled")
    if node.tasks:
        more = len(node.tasks) - 5
        named = ", ".join(task.id for task in islice(node.tasks, 5))
        lines.append(f"running {named}" + (f" and {more} more" if more > 0 else ""))
    return {"id": node.id, "group": group, "sign": sign, "tip": "\n".join(lines), "spot": not node.dedicated}


def pool_details(world: World, entity: Pool) -> dict[str, Any]:
    """What only a pool's own page shows.

    :param world: the state.
    :param entity: the pool.
    :return: what the templates show.
    """
    body = hide.body(views.pool(world.config.url, entity))
    machine = body.get("virtualMachineConfiguration", {})
    image = machine.get("imageReference", {})
    names = ("publisher", "offer", "sku", "version", "virtualMachineImageId")
    failed = [
        node
        for node in entity.nodes
        if node.state == "starttaskfailed" or (node.start is not None and node.start.result == "failure")
    ]
    return {
        "image": " ".join(str(image[name]) for name in names if image.get(name)),
        "agent": machine.get("nodeAgentSKUId", ""),
        "fill": body.get("taskSchedulingPolicy", {}).get("nodeFillType", ""),
        "created": entity.created,
        "start": body.get("startTask"),
        "failed": [{"id": node.id, "start": execution(node.start)} for node in failed[:FAILED]],
        "failed_more": max(0, len(failed) - FAILED),
        "jobs": [job.id for job in world.jobs if job.pool_id.lower() == entity.id.lower()][-20:][::-1],
        "all": body,
    }


def execution(entity: Execution | None) -> dict[str, Any] | None:
    """How a start, preparation or release task went.

    :param entity: what is kept of it.
    :return: what the templates show; None where there was none.
    """
    if entity is None:
        return None
    return {
        "state": entity.result or entity.state,
        "exit": entity.exit_code,
        "failure": failure(entity.failure),
        "started": entity.started,
        "ended": entity.ended,
        "retries": entity.retries,
        "took": (entity.ended or times.now()) - entity.started,
    }


def node(entity: Node) -> dict[str, Any]:
    """A node.

    :param entity: the node.
    :return: what the templates show.
    """
    return {
        "id": entity.id,
        "pool": entity.pool.id,
        "state": entity.state,
        "since": entity.since,
        "previous": entity.previous,
        "previous_since": entity.previous_since,
        "scheduling": entity.scheduling,
        "dedicated": entity.dedicated,
        "used": entity.used,
        "slots": entity.pool.slots,
        "ran": entity.tasks_run,
        "succeeded": entity.succeeded,
        "created": entity.created,
        "booted": entity.booted,
        "start": execution(entity.start),
        "start_command": hide.text(str((entity.pool.body.get("startTask") or {}).get("commandLine", ""))),
        "runs": [(task.job.id, task.id) for task in islice(entity.tasks, 50)],
    }


def node_place(world: World, entity: Node) -> Place:
    """Where a node's files are.

    :param world: the state.
    :param entity: the node.
    :return: its root directory.
    """
    mark = f"{entity.booted}-{entity.start.started}-{entity.start.retries}" if entity.start else str(entity.booted)
    return Place(world.root(entity), f"{ROOT}/pools/{entity.pool.id}/nodes/{entity.id}", False, mark)


def job(entity: Job) -> dict[str, Any]:
    """A job with its tasks counted.

    :param entity: the job.
    :return: what the templates show.
    """
    counts = entity.counts
    shown = {name: counts[kind] for name, kind in _COUNTED.items()}
    return {
        "id": entity.id,
        "state": entity.state,
        "pool": entity.pool_id,
        "created": entity.created,
        "ended": entity.ended,
        "reason": entity.reason,
        "took": (entity.ended or times.now()) - entity.created,
        "total": sum(shown.values()),
        "counts": shown,
        "bar": _bar(shown.items()),
    }


_COUNTED = {"succeeded": "success", "failed": "failure", "running": "running", "active": "active"}


def _bar(counts: Iterable[tuple[str, int]]) -> list[tuple[str, float, float]]:
    """Name, beginning and width of each part of a bar that is 100 wide; what is there at all can be seen."""
    present = [(name, count) for name, count in counts if count]
    total = sum(count for _, count in present)
    widths = [max(1.0, 100 * count / total) for _, count in present]
    scale = 100 / sum(widths) if widths else 1
    parts: list[tuple[str, float, float]] = []
    begin = 0.0
    for (name, _), width in zip(present, widths, strict=True):
        parts.append((name, round(begin, 2), round(width * scale, 2)))
        begin += width * scale
    return parts


def job_details(world: World, entity: Job) -> dict[str, Any]:
    """What only a job's own page shows.

    :param world: the state.
    :param entity: the job.
    :return: what the templates show.
    """
    body = hide.body(views.job(world.config.url, entity))
    return {
        "modified": entity.modified,
        "since": entity.since,
        "pool_there": world.pools.get(entity.pool_id) is not None,
        "constraints": body.get("constraints", {}),
        "priority": entity.priority,
        "parallel": entity.parallel,
        "on_complete": body.get("onAllTasksComplete", ""),
        "on_failure": body.get("onTaskFailure", ""),
        "preparation": body.get("jobPreparationTask"),
        "release": body.get("jobReleaseTask"),
        "metadata": body.get("metadata") or [],
        "all": body,
    }


def part(world: World, entity: NodeJob) -> dict[str, Any]:
    """What a job's preparation and release tasks did on a node.

    :param world: the state.
    :param entity: what is kept of it.
    :return: what the templates show.
    """
    there = world.node(entity.pool_id, entity.node_id) is not None
    shown: dict[str, Any] = {"pool": entity.pool_id, "node": entity.node_id, "there": there, "barred": entity.barred}
    for name, done, key in (
        ("preparation", entity.prepare, "jobPreparationTask"),
        ("release", entity.release, "jobReleaseTask"),
    ):
        definition = entity.job.body.get(key) or {}
        where = relative_task_directory(entity.job.id, definition.get("id", "")) if done else ""
        shown[name] = {"run": execution(done), "directory": where}
    return shown
