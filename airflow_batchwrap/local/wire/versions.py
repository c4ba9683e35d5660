"""What older api-versions call differently, had and no longer have, or do not have yet.

Facts from recorded answers of the real service at 2019-08-01.10.0 to 2025-06-01, and from the change log of azure-batch
(https://github.com/Azure/azure-sdk-for-python/blob/main/sdk/batch/azure-batch/CHANGELOG.md). Versions compare as text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow_batchwrap.local.wire.schema import API_VERSION, OLDER

#: The first version that has a property, wherever it stands.
_SINCE = {
    "taskSlotsPerNode": "2020-09",
    "requiredSlots": "2020-09",
    "runningTaskSlotsCount": "2020-09",
    "taskSlotCounts": "2020-09",
    "maxParallelTasks": "2021-06",
    "virtualMachineInfo": "2021-06",
    "allowTaskPreemption": "2022-01",
    "enableAcceleratedNetworking": "2023-05",
    "upgradingOS": "2024-02",
    "deallocated": "2024-07",
    "deallocating": "2024-07",
    "jobDefaultOrder": "2024-12",
    "ipv6Address": "2025",
}
#: Slots of a node had another name before.
_SLOTS, _OLD_SLOTS, _SLOTS_SINCE = "taskSlotsPerNode", "maxTasksPerNode", "2020-09"
#: From here on pools show a list of certificates, be it empty; it ends with certificates themselves.
_CERTIFICATES_SINCE = "2024-02"
#: The ports that every node of those versions shows, although nobody asked: for SSH, or for a remote desktop.
FIRST_PORT, _SSH, _DESKTOP = 50_000, 22, 3389


def shown(version: str, kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """Show an entity as a version of the API does.

    :param version: the api-version.
    :param kind: what it is, as in its metadata link: pools, jobs, nodes, poolnodecounts and so on.
    :param body: the entity as the newest version shows it, with what clients of older ones gave.
    :return: the entity; the body itself is not changed.
    """
    if version == API_VERSION:
        return _without(body) if kind in ("pools", "jobs", "jobschedules", "tasks") else body
    aged: dict[str, Any] = _aged(version, body)
    if change := _KINDS.get(kind):
        change(version, aged)
    return aged


def _without(body: dict[str, Any]) -> dict[str, Any]:
    """Leave out what only older versions have: at the top, and where a job holds a pool or a manager."""
    if _bears_older(body):
        body = {name: value for name, value in body.items() if name not in OLDER}
    for name in ("jobSpecification", "jobManagerTask", "poolInfo", "autoPoolSpecification", "pool"):
        if isinstance(inner := body.get(name), dict) and (less := _without(inner)) is not inner:
            body = {**body, name: less}
    return body


def _bears_older(body: dict[str, Any]) -> bool:
    return not OLDER.keys().isdisjoint(body)


def _aged(version: str, value: Any) -> Any:
    """Without the properties that a version does not have yet, and with the older names of others."""
    if isinstance(value, list):
        return [_aged(version, item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {
        name: _aged(version, inner)
        for name, inner in value.items()
        if version >= _SINCE.get(name, "") and version < OLDER.get(name, "3")
    }
    if version < _SLOTS_SINCE and _SLOTS in value:
        kept[_OLD_SLOTS] = value[_SLOTS]
    if "lun" in kept and isinstance(disk := kept.pop("managedDisk", None), dict):
        # A data disk said its kind itself.
        kept |= {name: inner for name, inner in disk.items() if name == "storageAccountType"}
    return kept


def _pool(version: str, body: dict[str, Any]) -> None:
    if version >= _CERTIFICATES_SINCE and "vmSize" in body:
        body.setdefault("certificateReferences", [])


def _node(version: str, body: dict[str, Any]) -> None:
    if "lastBootTime" in body:
        body["certificateReferences"] = []


def _counts(version: str, body: dict[str, Any]) -> None:
    if version < _SLOTS_SINCE and (counts := body.pop("taskCounts", None)):
        body |= counts


_KINDS: dict[str, Callable[[str, dict[str, Any]], None]] = {"pools": _pool, "nodes": _node, "taskcountsresult": _counts}


def counts_kind(version: str) -> str:
    """What the counts of a job's tasks are called in their metadata link.

    :param version: the api-version.
    :return: the name.
    """
    return "taskcounts" if version < _SLOTS_SINCE else "taskcountsresult"


def default_endpoint(version: str, agent: str, index: int, address: str) -> dict[str, Any] | None:
    """The inbound endpoint that a node of an older version shows without having been asked for it.

    :param version: the api-version.
    :param agent: the id of the pool's node agent, which says the system.
    :param index: the node's number in its pool.
    :param address: the node's address.
    :return: the endpoint; None at the newest version, where nodes are recorded without.
    """
    if version == API_VERSION:
        return None
    return {
        "name": f"SSHRule.{index}",
        "protocol": "tcp",
        "publicIPAddress": address,
        "publicFQDN": address,
        "frontendPort": FIRST_PORT + index,
        "backendPort": _DESKTOP if "windows" in agent.lower() else _SSH,
    }


def selected(version: str, names: frozenset[str] | None) -> frozenset[str] | None:
    """The properties that a client asks for, by their newest names.

    :param version: the api-version.
    :param names: those of ``$select``; None for all.
    :return: the names; None for all.
    """
    if names is not None and version < _SLOTS_SINCE and _OLD_SLOTS in names:
        return names | {_SLOTS}
    return names
