"""Operations on pools."""

from __future__ import annotations

from typing import Any

from airflow_batchwrap.local.api import checks, scaling, views
from airflow_batchwrap.local.api.call import Call, Reply, legal_id, number
from airflow_batchwrap.local.control import usage
from airflow_batchwrap.local.control.nodes import MOST_NODES
from airflow_batchwrap.local.control.world import World
from airflow_batchwrap.local.node import packages
from airflow_batchwrap.local.state.entities import Node, Pool
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

#: Learn: taskSlotsPerNode is at most four times the cores, and 256.
MOST_SLOTS = 256
#: Learn: removenodes takes at most 100 nodes.
MOST_REMOVED = 100
#: Learn: resizeTimeout is at least 5 minutes.
SHORTEST_RESIZE = 300.0
#: Learn: a pool has at most 10 application package references.
MOST_PACKAGES = 10


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
    for registry in (
        body["virtualMachineConfiguration"].get("containerConfiguration", {}).get("containerRegistries", ())
    ):
        # The container engine has its own log-ins, and a password is never shown.
        registry.pop("password", None)
    _resize_timeout(body)
    body.setdefault("resizeTimeout", "PT15M")
    body.setdefault("taskSlotsPerNode", 1)
    body.setdefault("taskSchedulingPolicy", {"nodeFillType": "Spread"})
    body.setdefault("enableInterNodeCommunication", False)
    body.setdefault("enableAutoScale", False)
    if "startTask" in body:
        checks.start_task(body["startTask"])


def _packages(world: World, body: dict[str, Any]) -> None:
    references = body.get("applicationPackageReferences", [])
    if len(references) > MOST_PACKAGES:
        raise checks.invalid("applicationPackageReferences", f"a pool can have {MOST_PACKAGES} at most.")
    for reference in references:
        try:
            packages.find(world.config.data, reference)
        except packages.PackageMissing as error:
            raise BatchError("InvalidApplicationPackageReferences", f"An application package: {error}.") from None


def _resize_timeout(body: dict[str, Any]) -> None:
    if "resizeTimeout" in body and times.parse_duration(body["resizeTimeout"]) < SHORTEST_RESIZE:
        raise checks.invalid("resizeTimeout", "it must be at least 5 minutes.")


def make(world: World, name: str, body: dict[str, Any]) -> Pool:
    """Create a pool; its nodes come by and by.

    :param world: the state.
    :param name: its id.
    :param body: what it is to be, fit for ``BatchPoolCreateOptions`` (or a job's pool specification) but for the id.
    :return: the pool.
    :raises BatchError: it cannot be, or there is one of this id.
    """
    _prepare(body)
    _packages(world, body)
    formula = scaling.of_new(body)
    dedicated, low_priority = body.pop("targetDedicatedNodes", 0), body.pop("targetLowPriorityNodes", 0)
    if (existing := world.pools.get(name)) is not None:
        raise BatchError("PoolBeingDeleted" if existing.state == "deleting" else "PoolExists")
    most = world.config.quotas.pools
    if most is not None and (count := len(world.pools)) >= most:
        raise BatchError("PoolQuotaReached", f"The account has {count} pools, as many as it may: delete some.")
    pool = Pool(world.store.next_uid(), name, body)
    world.pools.add(pool)
    world.store.touch(pool)
    if formula is None:
        world.node_control.resize(pool, dedicated, low_priority)
    else:
        world.autoscaler.begin(pool, formula)
    return pool


async def create_pool(call: Call) -> Reply:
    """Create a pool; its nodes come after the answer."""
    body = call.body("BatchPoolCreateOptions")
    pool = make(call.world, legal_id(body.pop("id")), body)
    return await call.accept(pool, views.url_of(call.base, pool))


def _view(call: Call, pool: Pool, names: frozenset[str] | None) -> dict[str, Any]:
    shown = views.pool(call.base, pool, names)
    if "stats" in call.query.get("$expand", "").split(",") and (names is None or "stats" in names):
        shown["stats"] = usage.statistics(pool, views.url_of(call.base, pool))
    return shown


async def list_pools(call: Call) -> Reply:
    """List the pools."""
    return await call.listing("pools", call.world.pools.after, lambda pool, names: _view(call, pool, names))


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
    body = call.body("BatchPoolUpdateOptions")
    pool = call.live_pool()
    call.conditions(pool)
    if pool.nodes and any(name in body for name in ("vmSize", "taskSlotsPerNode", "virtualMachineConfiguration")):
        raise BatchError("OperationInvalidForCurrentState", "This can be changed only while the pool has no nodes.")
    changed = {**pool.body, **body}
    _prepare(changed)
    _packages(call.world, body)
    pool.body = changed
    pool.changed()
    call.world.store.touch(pool)
    return await call.accept(pool)


async def replace_pool_properties(call: Call) -> Reply:
    """Replace a pool's start task, packages and metadata; what is not sent is dropped."""
    body = call.body("BatchPoolReplaceOptions")
    pool = call.live_pool()
    replaced = ("startTask", "metadata", "applicationPackageReferences")
    kept = {name: value for name, value in pool.body.items() if name not in replaced}
    changed = {**kept, **{name: value for name, value in body.items() if value}}
    _prepare(changed)
    _packages(call.world, body)
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
    _resize_timeout(body)
    if pool.body["enableAutoScale"]:
        raise BatchError("OperationNotValidOnPool", "The pool scales itself: disable autoscale first.")
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
