"""Operations on pools."""

from __future__ import annotations

from typing import Any

from airflow_batchwrap.local.api import views
from airflow_batchwrap.local.api.call import Call, Reply
from airflow_batchwrap.local.model import usage
from airflow_batchwrap.local.model.entities import Node, Pool
from airflow_batchwrap.local.model.rules import pools as rules
from airflow_batchwrap.local.model.rules.pools import MOST_NODES
from airflow_batchwrap.local.model.rules.values import invalid, legal_id, number
from airflow_batchwrap.local.model.states import Dealing
from airflow_batchwrap.local.wire import schema
from airflow_batchwrap.local.wire.errors import BatchError

#: Learn: removenodes takes at most 100 nodes.
MOST_REMOVED = 100
#: What can be changed of a pool with nodes; the rest only of an empty one (Learn: BatchPoolUpdateOptions).
_ALWAYS = schema.OLDER.keys() | {"startTask", "applicationPackageReferences", "metadata"}


async def create_pool(call: Call) -> Reply:
    """Create a pool; its nodes come after the answer."""
    body = await call.body("BatchPoolCreateOptions")
    pool = call.world.pool_control.make(legal_id(body.pop("id")), body)
    return await call.accept(pool, views.url_of(call.base, pool))


def _view(call: Call, pool: Pool, names: frozenset[str] | None) -> dict[str, Any]:
    shown = views.pool(call.base, pool, names)
    if "stats" in call.query.get("$expand", "").split(",") and (names is None or "stats" in names):
        shown["stats"] = usage.statistics(pool, views.url_of(call.base, pool))
    return shown


async def list_pools(call: Call) -> Reply:
    """List the pools."""
    return await call.listing("pools", call.world.pools.beyond, lambda pool, names: _view(call, pool, names))


async def get_pool(call: Call) -> Reply:
    """Show a pool."""
    pool = call.pool()
    call.conditions(pool)
    return await call.show(pool, _view(call, pool, call.selected()))


async def pool_exists(call: Call) -> Reply:
    """Say whether a pool exists."""
    pool = call.pool()
    call.conditions(pool)
    return Reply(None, (await call.accept(pool)).headers)


async def update_pool(call: Call) -> Reply:
    """Change some of a pool's properties; what is not sent stays."""
    body = await call.body("BatchPoolUpdateOptions")
    pool = call.live_pool()
    call.conditions(pool)
    if pool.nodes and (fixed := sorted(body.keys() - _ALWAYS)):
        raise BatchError(
            "OperationInvalidForCurrentState", f"{', '.join(fixed)} can be updated only when the pool is empty."
        )
    changed = {**pool.body, **body}
    rules.prepare(changed)
    call.world.pool_control.check_packages(body)
    pool.body = changed
    pool.changed()
    call.world.store.touch(pool)
    return await call.accept(pool)


async def replace_pool_properties(call: Call) -> Reply:
    """Replace a pool's start task, packages and metadata; what is not sent is dropped."""
    body = await call.body("BatchPoolReplaceOptions")
    pool = call.live_pool()
    replaced = ("startTask", "metadata", "applicationPackageReferences")
    kept = {name: value for name, value in pool.body.items() if name not in replaced}
    changed = {**kept, **{name: value for name, value in body.items() if value}}
    rules.prepare(changed)
    call.world.pool_control.check_packages(body)
    pool.body = changed
    pool.changed()
    call.world.store.touch(pool)
    return await call.accept(pool)


async def delete_pool(call: Call) -> Reply:
    """Delete a pool; its nodes go after the answer, and their tasks are queued again."""
    pool = call.live_pool()
    call.conditions(pool)
    call.world.pool_control.delete(pool)
    return await call.accept(pool)


def _steady(pool: Pool) -> None:
    if pool.allocation != "steady":
        raise BatchError("PoolBeingResized")


async def resize_pool(call: Call) -> Reply:
    """Give a pool other targets."""
    body = await call.body("BatchPoolResizeOptions")
    pool = call.live_pool()
    call.conditions(pool)
    if "targetDedicatedNodes" not in body and "targetLowPriorityNodes" not in body:
        raise BatchError("MissingRequiredProperty", "One of the two targets is needed.")
    number(body, "targetDedicatedNodes", 0, MOST_NODES)
    number(body, "targetLowPriorityNodes", 0, MOST_NODES)
    rules.resize_timeout(body)
    if pool.body["enableAutoScale"]:
        raise BatchError("OperationNotValidOnPool", "The pool scales itself: disable autoscale first.")
    _steady(pool)
    pool.body["resizeTimeout"] = body.get("resizeTimeout", rules.RESIZE)
    pool.changed()
    call.world.pool_control.resize(
        pool,
        body.get("targetDedicatedNodes", pool.target_dedicated),
        body.get("targetLowPriorityNodes", pool.target_low_priority),
        Dealing(body.get("nodeDeallocationOption", "requeue")),
    )
    return await call.accept(pool)


async def stop_pool_resize(call: Call) -> Reply:
    """Leave a pool that is being resized with the nodes it has."""
    pool = call.live_pool()
    call.conditions(pool)
    # One that is over already is stopped with no more ado, as the real service does it (24 of 24 recorded).
    if pool.allocation == "resizing":
        call.world.pool_control.stop_resize(pool)
    return await call.accept(pool)


async def remove_nodes(call: Call) -> Reply:
    """Take some nodes out of a pool."""
    body = await call.body("BatchNodeRemoveOptions")
    pool = call.live_pool()
    call.conditions(pool)
    names = body["nodeList"]
    if not 1 <= len(names) <= MOST_REMOVED:
        raise invalid("nodeList", f"it must name 1 to {MOST_REMOVED} nodes.")
    nodes: dict[str, Node] = {}
    for name in names:
        node = pool.nodes.get(name)
        if node is None:
            raise BatchError("NodeNotFound")
        nodes[node.id] = node
    rules.resize_timeout(body)
    _steady(pool)
    pool.body["resizeTimeout"] = body.get("resizeTimeout", rules.RESIZE)
    pool.changed()
    call.world.pool_control.remove(pool, list(nodes.values()), Dealing(body.get("nodeDeallocationOption", "requeue")))
    return await call.accept(pool)
