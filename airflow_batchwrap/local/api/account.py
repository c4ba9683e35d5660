"""Operations on the account as a whole: images, and node counts over all pools."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from airflow_batchwrap.local.api.call import Call, Reply, numbered
from airflow_batchwrap.local.model.entities import Node, Pool

_ALMA, _JAMMY = "2029-03-01T00:00:00Z", "2027-06-30T00:00:00Z"
_SECOND = ("Generation2VMImage",)
#: Images a real account lists, in its order: publisher, offer, sku, agent, end of life, capabilities. The local service
#: takes any of those publishers.
_IMAGES: tuple[tuple[str, str, str, str, str | None, tuple[str, ...]], ...] = (
    ("almalinux", "almalinux-x86_64", "8-gen1", "batch.node.el 8", _ALMA, ()),
    ("almalinux", "almalinux-x86_64", "8-gen2", "batch.node.el 8", _ALMA, _SECOND),
    ("canonical", "0001-com-ubuntu-server-jammy", "22_04-lts", "batch.node.ubuntu 22.04", _JAMMY, ()),
    ("microsoft-dsvm", "ubuntu-hpc", "2204", "batch.node.ubuntu 22.04", _JAMMY, _SECOND),
    ("almalinux", "almalinux-x86_64", "9-gen2", "batch.node.el 9", None, _SECOND),
    ("canonical", "ubuntu-24_04-lts", "server", "batch.node.ubuntu 24.04", None, _SECOND),
    ("canonical", "ubuntu-24_04-lts", "server-gen1", "batch.node.ubuntu 24.04", None, ()),
)

#: Node states by the name under which nodecounts gives them, where that differs.
_COUNTED = {
    "starttaskfailed": "startTaskFailed",
    "leavingpool": "leavingPool",
    "waitingforstarttask": "waitingForStartTask",
    "upgradingos": "upgradingOS",
}
_STATES = (
    "creating",
    "idle",
    "offline",
    "preempted",
    "rebooting",
    "reimaging",
    "running",
    "starting",
    "startTaskFailed",
    "leavingPool",
    "unknown",
    "unusable",
    "waitingForStartTask",
    "deallocated",
    "deallocating",
    "upgradingOS",
)


@dataclass(frozen=True)
class _Image:
    place: str
    view: dict[str, Any]


def _images() -> list[_Image]:
    images = []
    for uid, (publisher, offer, sku, agent, end, able) in enumerate(_IMAGES, 1):
        view: dict[str, Any] = {
            "nodeAgentSKUId": agent,
            "imageReference": {"publisher": publisher, "offer": offer, "sku": sku, "version": "latest"},
            "osType": "linux",
            "verificationType": "verified",
        }
        if able:
            view["capabilities"] = list(able)
        images.append(_Image(str(uid), view | ({"batchSupportEndOfLife": end} if end else {})))
    return images


_ALL_IMAGES = _images()


async def list_supported_images(call: Call) -> Reply:
    """List the images that a pool may name."""
    return await call.listing("supportedimages", numbered(_ALL_IMAGES), lambda image, _: image.view)


def _counts(nodes: list[Node]) -> dict[str, int]:
    counted = Counter(_COUNTED.get(node.state, node.state) for node in nodes)
    return {state: counted[state] for state in _STATES} | {"total": len(nodes)}


async def list_pool_node_counts(call: Call) -> Reply:
    """Count each pool's nodes by their states."""

    def view(pool: Pool, _: frozenset[str] | None) -> dict[str, Any]:
        nodes = list(pool.nodes)
        return {
            "poolId": pool.id,
            "dedicated": _counts([node for node in nodes if node.dedicated]),
            "lowPriority": _counts([node for node in nodes if not node.dedicated]),
        }

    return await call.listing("poolnodecounts", call.world.pools.beyond, view)
