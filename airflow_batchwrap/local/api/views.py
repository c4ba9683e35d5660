"""How entities look to clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from airflow_batchwrap.local.model.entities import Entity, Execution, Job, JobSchedule, Node, NodeJob, Pool, Task
from airflow_batchwrap.local.node import endpoints
from airflow_batchwrap.local.node.layout import relative_task_directory
from airflow_batchwrap.local.wire.schema import API_VERSION
from airflow_batchwrap.local.wire.times import iso
from airflow_batchwrap.local.wire.versions import default_endpoint
from airflow_batchwrap.local.world import World

Names = frozenset[str] | None


def url_of(base: str, entity: Entity) -> str:
    """The address of an entity.

    :param base: the service's address.
    :param entity: the entity.
    :return: the address.
    """
    if isinstance(entity, Task):
        return f"{base}/jobs/{entity.job.id}/tasks/{entity.id}"
    if isinstance(entity, Node):
        return f"{base}/pools/{entity.pool.id}/nodes/{entity.id}"
    if isinstance(entity, JobSchedule):
        return f"{base}/jobschedules/{entity.id}"
    return f"{base}/{'pools' if isinstance(entity, Pool) else 'jobs'}/{entity.id}"


def _moment(moment: float | None) -> str | None:
    return None if moment is None else iso(moment)


def _present(shown: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shown.items() if value is not None}


def _common(base: str, entity: Entity) -> dict[str, Any]:
    return {
        "id": entity.id,
        "url": url_of(base, entity),
        "eTag": entity.etag,
        "lastModified": iso(entity.modified),
        "creationTime": iso(entity.created),
        "state": entity.state,
        "stateTransitionTime": iso(entity.since),
        "previousState": entity.previous,
        "previousStateTransitionTime": _moment(entity.previous_since),
    }


def only(shown: dict[str, Any], names: Names) -> dict[str, Any]:
    """Leave out what is absent, and what is not wanted.

    :param shown: the properties.
    :param names: those wanted; None for all.
    :return: the rest.
    """
    return {name: value for name, value in shown.items() if value is not None and (names is None or name in names)}


#: States of a node in which its system does not run yet for the first time.
_UNBORN = frozenset({"creating", "starting"})


def affinity(name: str) -> str:
    """The form in which Batch names a node to place tasks by.

    :param name: the node's id.
    :return: the affinity id.
    """
    return f"TVM:{name}"


def pool(base: str, entity: Pool, names: Names = None) -> dict[str, Any]:
    """A pool.

    :param base: the service's address.
    :param entity: the pool.
    :param names: the properties wanted; None for all.
    :return: how it is shown.
    """
    dedicated = sum(node.dedicated for node in entity.nodes)
    shown = {
        **entity.body,
        **_common(base, entity),
        "previousState": None,
        "previousStateTransitionTime": None,
        "allocationState": entity.allocation,
        "allocationStateTransitionTime": iso(entity.allocation_since),
        "resizeErrors": entity.resize_errors or None,
        "currentDedicatedNodes": dedicated,
        "currentLowPriorityNodes": len(entity.nodes) - dedicated,
        "targetDedicatedNodes": entity.target_dedicated,
        "targetLowPriorityNodes": entity.target_low_priority,
        "autoScaleRun": entity.scale_run,
    }
    return only(shown, names)


def _execution(execution: Execution, *, retries: bool = True) -> dict[str, Any]:
    shown = {
        "state": execution.state,
        "startTime": iso(execution.started),
        "endTime": _moment(execution.ended),
        "exitCode": execution.exit_code,
        "containerInfo": execution.container,
        "failureInfo": execution.failure,
        "result": execution.result,
    }
    if retries:
        shown |= {"retryCount": execution.retries, "lastRetryTime": _moment(execution.last_retry)}
    return _present(shown)


def _exact(image: dict[str, Any]) -> dict[str, Any]:
    """The image that a node was made of; a custom one has no version but its own."""
    return image if "virtualMachineImageId" in image else {**image, "exactVersion": image.get("version", "latest")}


def _endpoints(entity: Node, version: str) -> dict[str, Any] | None:
    found = endpoints.of_pool(entity.pool.body, entity.index, entity.address)
    agent = entity.pool.body["virtualMachineConfiguration"]["nodeAgentSKUId"]
    if not found and (usual := default_endpoint(version, agent, entity.index, entity.address)):
        found = [usual]
    return {"inboundEndpoints": found} if found else None


def node(base: str, entity: Node, names: Names = None, version: str = API_VERSION) -> dict[str, Any]:
    """A node.

    :param base: the service's address.
    :param entity: the node.
    :param names: the properties wanted; None for all.
    :param version: the api-version.
    :return: how it is shown.
    """
    body = entity.pool.body
    booted = entity.state not in _UNBORN or entity.previous not in (None, "creating")
    image = body["virtualMachineConfiguration"]["imageReference"]
    shown = {
        "id": entity.id,
        "url": url_of(base, entity),
        "state": entity.state,
        "schedulingState": entity.scheduling,
        "stateTransitionTime": iso(entity.since),
        "lastBootTime": iso(entity.booted) if booted else None,
        "allocationTime": iso(entity.created),
        "ipAddress": entity.address,
        "affinityId": affinity(entity.id),
        "vmSize": body["vmSize"],
        "totalTasksRun": entity.tasks_run,
        "totalTasksSucceeded": entity.succeeded,
        "recentTasks": _recent(base, entity) or None,
        "runningTasksCount": len(entity.tasks),
        "runningTaskSlotsCount": entity.used,
        "isDedicated": entity.dedicated,
        "startTask": body.get("startTask"),
        "startTaskInfo": _execution(entity.start) if entity.start else None,
        "errors": _node_errors(entity),
        "endpointConfiguration": _endpoints(entity, version),
        "nodeAgentInfo": {"version": "local", "lastUpdateTime": iso(entity.booted)} if booted else None,
        "virtualMachineInfo": {"imageReference": _exact(image)},
    }
    return only(shown, names)


def extensions(entity: Node) -> list[dict[str, Any]]:
    """The extensions of a node: those that its pool asks for. Nothing is installed; they are shown as if it were.

    :param entity: the node.
    :return: the extensions, without their protected settings; none while the node is being made.
    """
    if entity.state in _UNBORN and entity.previous in (None, "creating"):
        return []
    asked = entity.pool.body["virtualMachineConfiguration"].get("extensions", ())
    done = {
        "code": "ProvisioningState/succeeded",
        "level": "Info",
        "displayStatus": "Provisioning succeeded",
        "time": iso(entity.booted),
    }
    return [
        {
            "provisioningState": "Succeeded",
            "vmExtension": {name: value for name, value in one.items() if name != "protectedSettings"},
            "instanceView": {
                "name": one["name"],
                "statuses": [done],
                "subStatuses": [],
            },
        }
        for one in asked
    ]


def _recent(base: str, entity: Node) -> list[dict[str, Any]]:
    """The tasks that were placed on a node last, newest first, those that are deleted left out."""
    tasks = dict.fromkeys(task for task in reversed(entity.recent) if task.job.tasks.get(task.id) is task)
    return [
        _present(
            {
                "taskUrl": url_of(base, task),
                "jobId": task.job.id,
                "taskId": task.id,
                "subtaskId": _subtask_id(task, entity),
                "taskState": task.state,
                "executionInfo": _task_info(task),
            }
        )
        for task in tasks
    ]


def _subtask_id(task: Task, node: Node) -> int | None:
    """Which part of a multi-instance task ran on a node, the primary one 0; of any other task there are none."""
    if task.subtasks is None:
        return None
    return next((int(kept["id"]) for kept in task.subtasks if kept["nodeId"] == node.id), 0)


def _node_errors(entity: Node) -> list[dict[str, Any]] | None:
    if entity.state == "unusable":
        if entity.pool.body.get("mountConfiguration"):
            return [{"code": "MountConfigurationError", "message": "The local Batch service cannot mount anything."}]
        return [{"code": "ApplicationPackageError", "message": "An application package could not be deployed."}]
    if entity.state != "starttaskfailed" or entity.start is None:
        return None
    return [{"code": "StartTaskFailed", "message": "The start task failed on this node."}]


def job(base: str, entity: Job, names: Names = None) -> dict[str, Any]:
    """A job.

    :param base: the service's address.
    :param entity: the job.
    :param names: the properties wanted; None for all.
    :return: how it is shown.
    """
    info = {
        "startTime": iso(entity.created),
        "endTime": _moment(entity.ended),
        "poolId": entity.pool_id or None,
        "terminateReason": entity.reason,
    }
    return only({**entity.body, **_common(base, entity), "executionInfo": _present(info)}, names)


def job_schedule(world: World, base: str, entity: JobSchedule, names: Names = None) -> dict[str, Any]:
    """A job schedule.

    :param world: the state.
    :param base: the service's address.
    :param entity: the job schedule.
    :param names: the properties wanted; None for all.
    :return: how it is shown.
    """
    recent = {"id": entity.job, "url": f"{base}/jobs/{entity.job}"} if entity.job else None
    info = {
        "nextRunTime": _moment(world.schedule_control.next_run(entity)),
        "recentJob": recent,
        "endTime": _moment(entity.ended),
    }
    return only({**entity.body, **_common(base, entity), "executionInfo": _present(info)}, names)


def _task_info(entity: Task) -> dict[str, Any]:
    return _present(
        {
            "startTime": _moment(entity.started),
            "endTime": _moment(entity.ended),
            "exitCode": entity.exit_code,
            "containerInfo": entity.container,
            "failureInfo": entity.failure,
            "result": entity.result,
            "retryCount": entity.retries,
            "lastRetryTime": _moment(entity.last_retry or None),
            "requeueCount": entity.requeues,
            "lastRequeueTime": _moment(entity.last_requeue),
        }
    )


def _node_info(base: str, entity: Task) -> dict[str, Any] | None:
    if entity.node_id is None:
        # One that was ended before it ran has an empty one.
        return {} if entity.state == "completed" else None
    directory = relative_task_directory(entity.job.id, entity.id)
    node_url = f"{base}/pools/{entity.pool_id}/nodes/{entity.node_id}"
    return {
        "affinityId": affinity(entity.node_id),
        "nodeUrl": node_url,
        "poolId": entity.pool_id,
        "nodeId": entity.node_id,
        "taskRootDirectory": directory,
        "taskRootDirectoryUrl": f"{node_url}/files/{directory}",
    }


def subtask(base: str, task: Task, kept: dict[str, Any]) -> dict[str, Any]:
    """A subtask of a multi-instance task.

    :param base: the service's address.
    :param task: the task.
    :param kept: what is kept of the subtask.
    :return: how it is shown.
    """
    directory = relative_task_directory(task.job.id, task.id)
    node_url = f"{base}/pools/{task.pool_id}/nodes/{kept['nodeId']}"
    result = ("failure" if kept.get("failure") else "success") if kept["state"] == "completed" else None
    return _present(
        {
            "id": kept["id"],
            "nodeInfo": {
                "affinityId": affinity(kept["nodeId"]),
                "nodeUrl": node_url,
                "poolId": task.pool_id,
                "nodeId": kept["nodeId"],
                "taskRootDirectory": directory,
                "taskRootDirectoryUrl": f"{node_url}/files/{directory}",
            },
            "state": kept["state"],
            "stateTransitionTime": iso(kept["since"]),
            "previousState": kept.get("previous"),
            "previousStateTransitionTime": _moment(kept.get("previousSince")),
            "startTime": _moment(kept.get("started")),
            "endTime": _moment(kept.get("ended")),
            "exitCode": kept.get("exitCode"),
            "failureInfo": kept.get("failure"),
            "result": result,
        }
    )


_TASK: dict[str, Callable[[str, Task], Any]] = {
    "id": lambda _, entity: entity.id,
    "url": url_of,
    "eTag": lambda _, entity: entity.etag,
    "lastModified": lambda _, entity: iso(entity.modified),
    "creationTime": lambda _, entity: iso(entity.created),
    "state": lambda _, entity: entity.state,
    "stateTransitionTime": lambda _, entity: iso(entity.since),
    "previousState": lambda _, entity: entity.previous,
    "previousStateTransitionTime": lambda _, entity: _moment(entity.previous_since),
    "executionInfo": lambda _, entity: _task_info(entity),
    "nodeInfo": _node_info,
}


def task(base: str, entity: Task, names: Names = None) -> dict[str, Any]:
    """A task; its body is only read where something of it is wanted.

    :param base: the service's address.
    :param entity: the task.
    :param names: the properties wanted; None for all.
    :return: how it is shown.
    """
    shown: dict[str, Any] = {}
    if names is None or not names.issubset(_TASK):
        body = json.loads(entity.body)
        shown = body if names is None else {name: value for name, value in body.items() if name in names}
    for name, view in _TASK.items():
        if (names is None or name in names) and (value := view(base, entity)) is not None:
            shown[name] = value
    return shown


def node_job(world: World, base: str, part: NodeJob) -> dict[str, Any]:
    """What a job's preparation and release tasks did on a node.

    :param world: the state.
    :param base: the service's address.
    :param part: what is kept of it.
    :return: how it is shown.
    """
    node_url = f"{base}/pools/{part.pool_id}/nodes/{part.node_id}"
    shown: dict[str, Any] = {"poolId": part.pool_id, "nodeId": part.node_id, "nodeUrl": node_url}
    for name, execution, body, retries in (
        ("jobPreparationTaskExecutionInfo", part.prepare, "jobPreparationTask", True),
        ("jobReleaseTaskExecutionInfo", part.release, "jobReleaseTask", False),
    ):
        if execution is not None:
            directory = relative_task_directory(part.job.id, part.job.body[body]["id"])
            shown[name] = {
                **_execution(execution, retries=retries),
                "taskRootDirectory": directory,
                "taskRootDirectoryUrl": f"{node_url}/files/{directory}",
            }
    return shown
