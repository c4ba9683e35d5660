"""Operations on pools."""

from __future__ import annotations

from typing import Any

from airflow_batchwrap.local.api import checks, views
from airflow_batchwrap.local.api.call import Call, Reply, legal_id, number
from airflow_batchwrap.local.state.entities import Node, Pool
from airflow_batchwrap.local.wire.errors import BatchError

#: Nodes a pool may have here: each is a directory and some memory, and a typing error should not fill the disk.
MOST_NODES = 1000
#: Learn: taskSlotsPerNode is at most four times the cores, and 256.
MOST_SLOTS = 256
#: Learn: removenodes takes at most 100 nodes.
MOST_REMOVED = 100


def _prepare(body: dict[str, Any]) -> None:
    number(body, "targetDedicatedNodes", 0, MOST_NODES)
    number(body, "targetLowPriorityNodes", 0, MOST_NODES)
    number(body, "taskSlotsPerNode", 1, MOST_SLOTS)
    if "virtualMachineConfiguration" not in body:
        raise BatchError(
            "MissingRequiredProperty",
            "The required property virtualMachineConfiguration is missing.",
            values={"Name": "virtualMachineConfiguration"},
        )
    if body["virtualMachineConfiguration"].get("containerConfiguration"):
        raise checks.missing("containerConfiguration", "containers")
    if body.get("applicationPackageReferences"):
        raise checks.missing("applicationPackageReferences", "application packages")
    if body.get("mountConfiguration"):
        raise checks.missing("mountConfiguration", "mounts")
    body.setdefault("resizeTimeout", "PT15M")
    body.setdefault("taskSlotsPerNode", 1)
    body.setdefault("taskSchedulingPolicy", {"nodeFillType": "Spread"})
    body.setdefault("enableInterNodeCommunication", False)
    body.setdefault("enableAutoScale", False)
    if "startTask" in body:
        checks.start_task(body["startTask"])


async def create_pool(call: Call) -> Reply:
    """Create a pool; its nodes come after the answer."""
    body = call.body("BatchPoolCreateOptions")
    name = legal_id(body.pop("id"))
    if body.get("enableAutoScale") or body.get("autoScaleFormula"):
        raise checks.missing("enableAutoScale", "autoscale")
    _prepare(body)
    dedicated, low_priority = body.pop("targetDedicatedNodes", 0), body.pop("targetLowPriorityNodes", 0)
    world = call.world
    if (existing := world.pools.get(name)) is not None:
        raise BatchError("PoolBeingDeleted" if existing.state == "deleting" else "PoolExists")
    pool = Pool(world.store.next_uid(), name, body)
    world.pools.add(pool)
    world.node_control.resize(pool, dedicated, low_priority)
    return await call.accept(pool, views.url_of(call.base, pool))


async def list_pools(call: Call) -> Reply:
    """List the pools."""
    return await call.listing("pools", call.world.pools.after, lambda pool, names: views.pool(call.base, pool, names))


async def get_pool(call: Call) -> Reply:
    """Show a pool."""
    pool = call.pool()
    call.conditions(pool)
    return await call.show(pool, views.pool(call.base, pool, call.selected()))


async def pool_exists(call: Call) -> Reply:
    """Say whether a pool exists."""
    pool = call.pool()
    call.conditions(pool)
    return Reply(None, (await call.accept(pool)).headers)


async def update_pool(call: Call) -> Reply:
    """Change some of a pool's properties; what is not sent stays."""
    body = call.body("BatchPoolUpdateOptions")
    pool = call.live_pool()
    call.conditions(pool)
    if pool.nodes and any(name in body for name in ("vmSize", "taskSlotsPerNode", "virtualMachineConfiguration")):
        raise BatchError("OperationInvalidForCurrentState", "This can be changed only while the pool has no nodes.")
    changed = {**pool.body, **body}
    _prepare(changed)
    pool.body = changed
    pool.changed()
    call.world.store.touch(pool)
    return await call.accept(pool)


async def replace_pool_properties(call: Call) -> Reply:
    """Replace a pool's start task, packages and metadata; what is not sent is dropped."""
    body = call.body("BatchPoolReplaceOptions")
    pool = call.live_pool()
    kept = {name: value for name, value in pool.body.items() if name not in ("startTask", "metadata")}
    changed = {**kept, **{name: value for name, value in body.items() if value}}
    _prepare(changed)
    pool.body = changed
    pool.changed()
    call.world.store.touch(pool)
    return await call.accept(pool)


async def delete_pool(call: Call) -> Reply:
    """Delete a pool; its nodes go after the answer, and their tasks are queued again."""
    pool = call.live_pool()
    call.conditions(pool)
    pool.move("deleting")
    call.world.node_control.delete(pool)
    return await call.accept(pool)


def _steady(pool: Pool) -> None:
    if pool.allocation != "steady":
        raise BatchError("PoolBeingResized")


async def resize_pool(call: Call) -> Reply:
    """Give a pool other targets."""
    body = call.body("BatchPoolResizeOptions")
    pool = call.live_pool()
    call.conditions(pool)
    if "targetDedicatedNodes" not in body and "targetLowPriorityNodes" not in body:
        raise BatchError("MissingRequiredProperty", "One of the two targets is needed.")
    number(body, "targetDedicatedNodes", 0, MOST_NODES)
    number(body, "targetLowPriorityNodes", 0, MOST_NODES)
    _steady(pool)
    if "resizeTimeout" in body:
        pool.body["resizeTimeout"] = body["resizeTimeout"]
    pool.changed()
    call.world.node_control.resize(
        pool,
        body.get("targetDedicatedNodes", pool.target_dedicated),
        body.get("targetLowPriorityNodes", pool.target_low_priority),
        body.get("nodeDeallocationOption", "requeue"),
    )
    return await call.accept(pool)


async def stop_pool_resize(call: Call) -> Reply:
    """Leave a pool that is being resized with the nodes it has."""
    pool = call.live_pool()
    call.conditions(pool)
    if pool.allocation != "resizing":
        raise BatchError("OperationInvalidForCurrentState", "The pool is not being resized.")
    call.world.node_control.stop_resize(pool)
    return await call.accept(pool)


async def remove_nodes(call: Call) -> Reply:
    """Take some nodes out of a pool."""
    body = call.body("BatchNodeRemoveOptions")
    pool = call.live_pool()
    call.conditions(pool)
    names = body["nodeList"]
    if not 1 <= len(names) <= MOST_REMOVED:
        raise checks.invalid("nodeList", f"it must name 1 to {MOST_REMOVED} nodes.")
    nodes: dict[str, Node] = {}
    for name in names:
        node = pool.nodes.get(name)
        if node is None:
            raise BatchError("NodeNotFound", values={"NodeId": name})
        nodes[node.id] = node
    _steady(pool)
    pool.changed()
    call.world.node_control.remove(pool, list(nodes.values()), body.get("nodeDeallocationOption", "requeue"))
    return await call.accept(pool)
