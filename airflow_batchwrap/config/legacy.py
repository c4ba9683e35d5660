"""What older files call things, and what Azure no longer has: tables."""

from __future__ import annotations

import re
from collections.abc import Mapping

_DEFAULT_IMAGE = (
    'remove the three keys for the default, or use "canonical", "ubuntu-24_04-lts" and "server" '
    "(BATCH_OS_PUBLISHER, BATCH_OS_TYPE and BATCH_OS_VERSION in an older file)."
)

# Old or other name -> key. The upper-case ones are those of the predecessor's batch.json, and of the configuration
# files of Azure's Python samples, with which its users started; a leading underscore makes no difference.
POOL_ALIASES: Mapping[str, str] = {
    "BATCH_NODE_COUNT": "target_dedicated_nodes",
    "BATCH_DEDICATED_NODE_COUNT": "target_dedicated_nodes",
    "BATCH_LOW_PRIORITY_NODE_COUNT": "target_low_priority_nodes",
    "BATCH_VM_SIZE": "vm_size",
    "BATCH_OS_PUBLISHER": "image_publisher",
    "BATCH_OS_TYPE": "image_offer",
    "BATCH_OS_OFFER": "image_offer",
    "BATCH_OS_VERSION": "image_sku",
    "BATCH_OS_SKU": "image_sku",
    "BATCH_NODE_AGENT_SKU_ID": "node_agent_sku_id",
    "BATCH_TASKS_PER_NODE": "task_slots_per_node",
    "BATCH_START_TASK": "start_task",
    "POOL_NODE_COUNT": "target_dedicated_nodes",
    "DEDICATED_POOL_NODE_COUNT": "target_dedicated_nodes",
    "LOW_PRIORITY_POOL_NODE_COUNT": "target_low_priority_nodes",
    "POOL_VM_SIZE": "vm_size",
    "NODE_OS_PUBLISHER": "image_publisher",
    "NODE_OS_OFFER": "image_offer",
    "NODE_OS_SKU": "image_sku",
    "target_spot_nodes": "target_low_priority_nodes",
    "max_tasks_per_node": "task_slots_per_node",
    "virtual_machine_image_id": "image_id",
    "task_scheduling_policy": "node_fill_type",
    "enable_inter_node_communication": "inter_node_communication",
}

# Read, and of no effect: this package brings its own engine, and Airflow its log levels.
POOL_IGNORED = frozenset({"BATCH_ENGINE_NAME", "BATCH_DEBUG_MODE"})

_POOL_ID = "the id of a pool is an argument, not a key: BatchWorkflow(..., pool_id=...)."
_ACCOUNT = "accounts and keys belong to Airflow's connections (see docs/configuration.md): remove it here."
_OUTPUT = "the container for results is output_container, in the workflow section."
POOL_ELSEWHERE: Mapping[str, str] = {
    "id": _POOL_ID,
    "pool_id": _POOL_ID,
    "POOL_ID": _POOL_ID,
    "BATCH_POOL_ID": _POOL_ID,
    "BATCH_ACCOUNT_NAME": _ACCOUNT,
    "BATCH_ACCOUNT_KEY": _ACCOUNT,
    "BATCH_ACCOUNT_URL": _ACCOUNT,
    "STORAGE_ACCOUNT_NAME": _ACCOUNT,
    "STORAGE_ACCOUNT_KEY": _ACCOUNT,
    "TASK_OUTPUT_CONTAINER": _OUTPUT,
    "output_container": _OUTPUT,
    "workflow": "that section of a file is for WorkflowConfig: leave it out here.",
}

# Publisher, offer, SKU (whole, without regard to case) -> node agent. For images that list_supported_images() may not
# have been asked about; the default's is from Azure's list of 2026.
_AGENTS: tuple[tuple[str, str, str, str], ...] = (
    ("canonical", r"ubuntu-24_04-lts.*", r".*", "batch.node.ubuntu 24.04"),
    ("canonical", r"0001-com-ubuntu-server-jammy|ubuntu-22_04-lts.*", r".*", "batch.node.ubuntu 22.04"),
    ("microsoft-dsvm", r"ubuntu-hpc", r"2404.*", "batch.node.ubuntu 24.04"),
    ("microsoft-dsvm", r"ubuntu-hpc", r"2204.*", "batch.node.ubuntu 22.04"),
    ("almalinux", r"almalinux.*", r"9.*", "batch.node.el 9"),
    ("almalinux", r"almalinux.*", r"8.*", "batch.node.el 8"),
    ("debian", r"debian-12.*", r".*", "batch.node.debian 12"),
)

# Images that cannot be allocated any more (no node agent is left for them), or that steps cannot run on.
_GONE = "Azure no longer has this image for Batch pools: " + _DEFAULT_IMAGE
_WINDOWS = "steps run on Linux nodes: " + _DEFAULT_IMAGE
_UNUSABLE: tuple[tuple[str, str, str, str], ...] = (
    ("canonical", r"ubuntuserver", r".*", _GONE),
    ("canonical", r"0001-com-ubuntu-server-(bionic|focal)|ubuntu-20_04-lts.*", r".*", _GONE),
    ("openlogic", r"centos.*", r".*", _GONE),
    ("microsoft-azure-batch", r"centos-container.*", r".*", _GONE),
    ("microsoft-azure-batch", r"ubuntu-server-container.*", r"(16|18|20)-04.*", _GONE),
    ("(credativ|debian)", r"debian(-8|-9|-10)?", r".*", _GONE),
    ("microsoftwindowsserver", r".*", r".*", _WINDOWS),
    ("microsoftwindowsdesktop", r".*", r".*", _WINDOWS),
)

# Sizes that Azure has taken out of service: the Basic A and the first Standard A series, on 2024-08-31.
# https://github.com/Azure/HDInsight/releases/tag/2024-01-10
_RETIRED_SIZE = re.compile(r"(basic_a\d+|standard_a\d+)", re.IGNORECASE)


def _find(table: tuple[tuple[str, str, str, str], ...], image: tuple[str, str, str]) -> str | None:
    for *patterns, answer in table:
        if all(re.fullmatch(pattern, part, re.IGNORECASE) for pattern, part in zip(patterns, image, strict=True)):
            return answer
    return None


def node_agent(publisher: str, offer: str, sku: str) -> str | None:
    """Return the node agent of an image; None where it is not known here."""
    return _find(_AGENTS, (publisher, offer, sku))


def unusable_image(publisher: str, offer: str, sku: str) -> str | None:
    """Return why an image cannot be used, and what to use; None where nothing is known against it."""
    return _find(_UNUSABLE, (publisher, offer, sku))


def retired_size(size: str) -> str | None:
    """Return why a VM size cannot be had, and what to use; None where nothing is known against it."""
    if _RETIRED_SIZE.fullmatch(size):
        return 'Azure has retired this size: use "Standard_D2s_v3" or "Standard_D2s_v5".'
    return None
