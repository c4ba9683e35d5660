"""Operations on nodes."""

from __future__ import annotations

from airflow_batchwrap.local.api import views
from airflow_batchwrap.local.api.call import Call, Reply


async def list_nodes(call: Call) -> Reply:
    """List a pool's nodes."""
    pool = call.pool()
    return await call.listing("nodes", pool.nodes.after, lambda node, names: views.node(call.base, node, names))


async def get_node(call: Call) -> Reply:
    """Show a node."""
    node = call.node()
    return await call.show(node, views.node(call.base, node, call.selected()))
