"""How many nodes a pool may have, and which go: the state goes in, numbers and nodes come out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from airflow_batchwrap.local.model import usage
from airflow_batchwrap.local.model.entities import Node, Pool
from airflow_batchwrap.local.model.rules.pools import MOST_NODES
from airflow_batchwrap.local.model.states import NodeWish
from airflow_batchwrap.local.quotas import Quotas

#: What Azure's messages call dedicated nodes, and others.
NAMES = {True: "dedicated", False: "low priority"}


def missing(pool: Pool, dedicated: bool) -> int:
    """How many nodes of a kind a pool lacks.

    :param pool: the pool.
    :param dedicated: the kind.
    :return: the number.
    """
    target = pool.target_dedicated if dedicated else pool.target_low_priority
    return max(0, target - sum(node.dedicated == dedicated for node in pool.nodes))


def surplus(pool: Pool) -> list[Node]:
    """The nodes that a pool has beyond its targets.

    :param pool: the pool.
    :return: those that were named first, then those that cannot work, the idle ones, those with the least to do; the
        newest first.
    """
    found: list[Node] = []
    for dedicated, target in ((True, pool.target_dedicated), (False, pool.target_low_priority)):
        nodes = [node for node in pool.nodes if node.dedicated == dedicated]
        nodes.sort(key=lambda node: (node.wish != NodeWish.LEAVE, node.usable, node.used, -node.uid))
        found += nodes[: max(0, len(nodes) - target)]
    return found


def in_quota(pool: Pool, dedicated: bool, pools: Iterable[Pool], quotas: Quotas) -> int:
    """How many more nodes of a kind a pool may get before the account's cores are used up.

    :param pool: the pool.
    :param dedicated: the kind.
    :param pools: all pools.
    :param quotas: the account's quotas.
    :return: the number.
    """
    quota = quotas.of_cores(dedicated)
    if quota is None:
        return MOST_NODES - sum(node.dedicated == dedicated for node in pool.nodes)
    held = sum(
        usage.cores(one.body["vmSize"]) * sum(node.dedicated == dedicated for node in one.nodes) for one in pools
    )
    return max(0, quota - held) // usage.cores(pool.body["vmSize"])


def room(pool: Pool, dedicated: bool, pools: Sequence[Pool], quotas: Quotas, capacity: int | None) -> int:
    """How many more nodes of a kind are to be had now.

    :param pool: the pool that wants them.
    :param dedicated: the kind.
    :param pools: all pools.
    :param quotas: the account's quotas.
    :param capacity: how many nodes there are, over all pools; None for as many as are wanted.
    :return: the number.
    """
    free = MOST_NODES if capacity is None else max(0, capacity - sum(len(one.nodes) for one in pools))
    return free if quotas.of_cores(dedicated) is None else min(free, in_quota(pool, dedicated, pools, quotas))


def shortage(dedicated: bool, *, stopped: bool) -> dict[str, Any]:
    """The resize error for nodes that did not come, or did not go, in Azure's own words.

    :param dedicated: their kind.
    :param stopped: the resize was stopped (as recorded); or else it took too long.
    :return: the error.
    """
    why = "due to a stop resize operation" if stopped else "as the resize timeout was reached"
    return {
        "code": "ResizeStopped" if stopped else "AllocationTimedout",
        "message": f"Desired number of {NAMES[dedicated]} nodes could not be allocated {why}",
    }


def out_of_quota(dedicated: bool, quotas: Quotas) -> dict[str, Any]:
    """The resize error for nodes beyond the account's cores.

    :param dedicated: their kind.
    :param quotas: the account's quotas.
    :return: the error.
    """
    quota = quotas.of_cores(dedicated)
    limit = f"a pool has {MOST_NODES} nodes of a kind at most here" if quota is None else f"{quota} cores"
    code = "AccountCoreQuotaReached" if dedicated else "AccountLowPriorityCoreQuotaReached"
    return {"code": code, "message": f"The specified account has reached core quota ({limit})."}


def failed(dedicated: bool) -> dict[str, Any]:
    """The resize error for nodes that could not be allocated, in Azure's own words.

    :param dedicated: their kind.
    :return: the error.
    """
    why = "Deployment allocation failed due to insufficient capacity for the requested VM size in the region."
    return {
        "code": "AllocationFailed",
        "message": f"Desired number of {NAMES[dedicated]} nodes could not be allocated",
        "values": [{"name": "Reason", "value": why}],
    }
