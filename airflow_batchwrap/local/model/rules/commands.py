"""What a client's task-like bodies must fulfil beyond their shape, and the defaults Batch fills in."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Any

from airflow_batchwrap.local.model.rules import defaults
from airflow_batchwrap.local.model.rules.values import invalid, legal_id, number
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

#: Learn: BatchTaskConstraints.retentionTime, 7 days.
RETENTION = "P7D"
#: Learn: BatchJobReleaseTask.maxWallClockTime, at most and by default 15 minutes.
RELEASE = "PT15M"

#: Learn: taskSlotsPerNode is at most 256, and so are a task's slots.
MOST_SLOTS = 256

#: Resource files of one task, in characters of their JSON. The reference has a code of their own for too many
#: (RequestEntityTooLarge); the real service answers as below (https://github.com/Azure/BatchExplorer/issues/30).
MOST_RESOURCES = 32_768

#: Azure Storage: a container's name.
CONTAINER = re.compile(r"[a-z0-9](?:-?[a-z0-9]){2,62}|\$root")


def _no_identity(body: dict[str, Any], where: str) -> None:
    if "identityReference" in body:
        raise invalid(where, "no pool of this service has a managed identity: give an address with a SAS.")


def environment(body: dict[str, Any], name: str = "environmentSettings") -> None:
    """Check environment settings.

    :param body: what they stand in.
    :param name: the property.
    :raises BatchError: a name cannot be that of a variable.
    """
    for item in body.get(name, ()):
        if not item["name"] or "=" in item["name"] or "\0" in item["name"] + item.get("value", ""):
            raise invalid(name, "a variable's name must not be empty or hold '='.")


def resource_files(body: dict[str, Any], name: str = "resourceFiles") -> None:
    """Check resource files.

    :param body: what they stand in.
    :param name: the property.
    :raises BatchError: one has not exactly one source, a path that leads out, or a mode that is none.
    """
    files = body.get(name, [])
    if len(json.dumps(files)) > MOST_RESOURCES:
        raise BatchError(
            "InvalidPropertyValue",
            values={
                "PropertyName": name,
                "Reason": f"Total size of {name} cannot be more than {MOST_RESOURCES} characters",
            },
        )
    for file in files:
        sources = [key for key in ("httpUrl", "storageContainerUrl", "autoStorageContainerName") if key in file]
        if len(sources) != 1:
            raise invalid(name, "exactly one of httpUrl, storageContainerUrl and autoStorageContainerName is needed.")
        if sources[0] == "autoStorageContainerName" and not CONTAINER.fullmatch(file["autoStorageContainerName"]):
            raise invalid(name, "autoStorageContainerName must be a container's name.")
        _no_identity(file, name)
        if sources[0] == "httpUrl" and not file.get("filePath"):
            raise invalid(name, "filePath is needed with httpUrl.")
        if sources[0] == "httpUrl" and "blobPrefix" in file:
            raise invalid(name, "blobPrefix goes with a container, not with httpUrl.")
        path = PurePosixPath(file.get("filePath", ""))
        if path.is_absolute() or ".." in path.parts or "\0" in str(path):
            raise invalid(name, f"filePath {str(path)!r} leads out of the working directory.")
        mode = file.get("fileMode", "0770")
        if not mode or not set(mode) <= set("01234567") or int(mode, 8) > 0o7777:
            raise invalid(name, f"fileMode {mode!r} is no octal file mode.")


def command(body: dict[str, Any]) -> None:
    """Check what every kind of task has: a command line, an environment, resource files.

    :param body: the task's body.
    :raises BatchError: something cannot be.
    """
    contained = "containerSettings" in body
    # In a container it may be empty: the image has a command of its own.
    if not (body["commandLine"].strip() or contained) or "\0" in body["commandLine"]:
        raise invalid("commandLine", "it must not be empty.")
    if contained:
        _container(body["containerSettings"])
    environment(body)
    resource_files(body)


def _container(settings: dict[str, Any]) -> None:
    if not settings["imageName"].strip() or settings["imageName"].startswith("-"):
        raise invalid("containerSettings.imageName", "it must name an image.")
    _no_identity(settings.get("registry", {}), "containerSettings.registry")


def constraints(body: dict[str, Any], retries: int = 0) -> None:
    """Fill in a task's constraints, and check them.

    :param body: the task's body.
    :param retries: the retry count where it gives none.
    :raises BatchError: one is out of range.
    """
    given = {"maxWallClockTime": times.FOREVER, "retentionTime": RETENTION, "maxTaskRetryCount": retries}
    body["constraints"] = given | body.get("constraints", {})
    number(body["constraints"], "maxTaskRetryCount", -1, 2**31 - 1)


def start_task(body: dict[str, Any]) -> None:
    """Check a pool's start task and fill in its defaults.

    :param body: the start task.
    :raises BatchError: something cannot be.
    """
    command(body)
    defaults.task(body)
    number(body, "maxTaskRetryCount", -1, 2**31 - 1)


def preparation_task(body: dict[str, Any]) -> None:
    """Check a job preparation task and fill in its defaults.

    :param body: the job preparation task.
    :raises BatchError: something cannot be.
    """
    legal_id(body.setdefault("id", "jobpreparation"), "jobPreparationTask.id")
    command(body)
    constraints(body)
    body.setdefault("waitForSuccess", True)
    defaults.user(body)
    body.setdefault("rerunOnNodeRebootAfterSuccess", True)


def release_task(body: dict[str, Any]) -> None:
    """Check a job release task and fill in its defaults.

    :param body: the job release task.
    :raises BatchError: something cannot be.
    """
    legal_id(body.setdefault("id", "jobrelease"), "jobReleaseTask.id")
    command(body)
    body.setdefault("maxWallClockTime", RELEASE)
    if times.parse_duration(body["maxWallClockTime"]) > times.parse_duration(RELEASE):
        raise invalid("jobReleaseTask.maxWallClockTime", "it must not be longer than 15 minutes.")
    body.setdefault("retentionTime", RETENTION)
    defaults.user(body)


def manager_task(body: dict[str, Any], retries: int) -> None:
    """Check a job manager task and fill in its defaults.

    :param body: the job manager task.
    :param retries: the job's retry count.
    :raises BatchError: something cannot be.
    """
    legal_id(body["id"], "jobManagerTask.id")
    command(body)
    output_files(body)
    constraints(body, retries)
    user(body)
    body.setdefault("requiredSlots", 1)
    number(body, "requiredSlots", 1, MOST_SLOTS)
    body.setdefault("killJobOnCompletion", True)
    body.setdefault("runExclusive", True)
    body.setdefault("allowLowPriorityNode", True)


def output_files(body: dict[str, Any]) -> None:
    """Check output files.

    :param body: what they stand in.
    :raises BatchError: one has no destination, or needs what is not there.
    """
    for file in body.get("outputFiles", ()):
        container = file["destination"].get("container")
        if container is None or not container["containerUrl"]:
            raise invalid("outputFiles", "a destination container is needed.")
        if not file["filePattern"]:
            raise invalid("outputFiles", "filePattern must not be empty.")
        _no_identity(container, "outputFiles")


def user(body: dict[str, Any]) -> None:
    """Fill in the identity a task runs under; all run as the user that runs the service.

    :param body: the task's body.
    """
    defaults.user(body)
