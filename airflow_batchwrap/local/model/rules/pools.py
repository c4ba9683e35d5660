"""Bodies of pools."""

from __future__ import annotations

from typing import Any

from airflow_batchwrap.local.model.rules import commands, defaults
from airflow_batchwrap.local.model.rules.commands import MOST_SLOTS
from airflow_batchwrap.local.model.rules.values import invalid, number
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

#: Nodes of a kind that a pool may have here: each is a directory and some memory, and a typing error (or a formula)
#: should not fill the disk.
MOST_NODES = 1000
#: Learn: resizeTimeout is at least 5 minutes.
SHORTEST_RESIZE = 300.0
#: Learn: a resize that names no timeout has one of 15 minutes.
RESIZE = "PT15M"


def prepare(body: dict[str, Any]) -> None:
    """Check a pool's body and fill in its defaults.

    :param body: the body, but for the id.
    :raises BatchError: something cannot be.
    """
    number(body, "targetDedicatedNodes", 0, MOST_NODES)
    number(body, "targetLowPriorityNodes", 0, MOST_NODES)
    number(body, "taskSlotsPerNode", 1, MOST_SLOTS)
    if "virtualMachineConfiguration" not in body:
        if "cloudServiceConfiguration" in body:
            raise BatchError("CloudServiceConfigurationRetired")
        raise BatchError(
            "MissingRequiredProperty",
            "The required property virtualMachineConfiguration is missing.",
            values={"PropertyName": "virtualMachineConfiguration"},
        )
    defaults.pool(body)
    resize_timeout(body)
    if "startTask" in body:
        commands.start_task(body["startTask"])


def resize_timeout(body: dict[str, Any]) -> None:
    """Check how long a resize may take.

    :param body: what it stands in; it may be absent.
    :raises BatchError: it is too short.
    """
    if "resizeTimeout" in body and times.parse_duration(body["resizeTimeout"]) < SHORTEST_RESIZE:
        raise invalid("resizeTimeout", "it must be at least 5 minutes.")
