"""Bodies of tasks."""

from __future__ import annotations

import json
from typing import Any

from airflow_batchwrap.local.model.entities import Job
from airflow_batchwrap.local.model.rules import commands
from airflow_batchwrap.local.model.rules.commands import MOST_SLOTS
from airflow_batchwrap.local.model.rules.pools import MOST_NODES
from airflow_batchwrap.local.model.rules.values import invalid, legal_id, number
from airflow_batchwrap.local.wire.errors import BatchError

#: Learn: BatchTaskDependencies, characters of all ids a task depends on.
MOST_NAMES = 64_000


def prepare(job: Job, body: dict[str, Any]) -> None:
    """Check a task's body and fill in its defaults.

    :param job: its job.
    :param body: the body, but for the id.
    :raises BatchError: something cannot be.
    """
    commands.command(body)
    commands.output_files(body)
    _dependencies(job, body)
    _instances(body)
    commands.constraints(body, job.body["constraints"]["maxTaskRetryCount"])
    commands.user(body)
    body.setdefault("requiredSlots", 1)
    number(body, "requiredSlots", 1, MOST_SLOTS)
    for mapping in body.get("exitConditions", {}).get("exitCodeRanges", ()):
        if mapping["start"] > mapping["end"]:
            raise invalid("exitConditions.exitCodeRanges", "a range's start must not be above its end.")
    if job.body["onTaskFailure"] == "noaction" and "jobAction" in json.dumps(body.get("exitConditions", {})):
        raise invalid("exitConditions", "a jobAction needs the job's onTaskFailure performExitOptionsJobAction.")


def _instances(body: dict[str, Any]) -> None:
    settings = body.get("multiInstanceSettings")
    if settings is None:
        return
    number(settings, "numberOfInstances", 1, MOST_NODES)
    if not settings["coordinationCommandLine"].strip():
        raise invalid("multiInstanceSettings.coordinationCommandLine", "it must not be empty.")
    commands.resource_files(settings, "commonResourceFiles")
    if body.get("requiredSlots", 1) != 1:
        raise invalid("requiredSlots", "a multi-instance task has 1.")


def _dependencies(job: Job, body: dict[str, Any]) -> None:
    depends = body.get("dependsOn")
    if depends is None:
        return
    if not job.body["usesTaskDependencies"]:
        raise BatchError("TaskDependenciesNotSpecifiedOnJob")
    names, ranges = depends.get("taskIds", []), depends.get("taskIdRanges", [])
    for name in names:
        legal_id(name, "dependsOn.taskIds")
    if sum(map(len, names)) > MOST_NAMES:
        raise BatchError("TaskDependencyListTooLong")
    if len(json.dumps(ranges)) > MOST_NAMES:
        raise BatchError("TaskDependencyRangesTooLong")
    for one in ranges:
        if not 0 <= one["start"] <= one["end"]:
            raise invalid("dependsOn.taskIdRanges", "a range's start must be 0 or more, and not above its end.")
