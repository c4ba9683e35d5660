"""Bodies of jobs, and of the jobs of schedules."""

from __future__ import annotations

from typing import Any

from airflow_batchwrap.local.model.rules import commands, defaults
from airflow_batchwrap.local.model.rules.values import invalid, legal_id, number
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

#: Learn: BatchAutoPoolSpecification.autoPoolIdPrefix.
MOST_PREFIX = 20

_OWN_TASKS = ("jobManagerTask", "jobPreparationTask", "jobReleaseTask")
#: What an update may change (BatchJobUpdateOptions) that has a default, with it.
_DEFAULTS: dict[str, Any] = {
    "priority": 0,
    "maxParallelTasks": -1,
    "allowTaskPreemption": False,
    "onAllTasksComplete": "noaction",
    "onTaskFailure": "noaction",
    "usesTaskDependencies": False,
}


def prepare(body: dict[str, Any], *, scheduled: bool = False) -> None:
    """Check a job's body and fill in its defaults.

    :param body: the body, but for the id.
    :param scheduled: it is the specification of a job schedule's jobs.
    :raises BatchError: something cannot be.
    """
    number(body, "priority", -1000, 1000)
    number(body, "maxParallelTasks", -1, 2**31 - 1)
    if body.get("maxParallelTasks") == 0:
        raise invalid("maxParallelTasks", "it must be -1 or at least 1.")
    for name, value in _DEFAULTS.items():
        body.setdefault(name, value)
    body["constraints"] = {"maxWallClockTime": times.FOREVER, "maxTaskRetryCount": 0} | body.get("constraints", {})
    number(body["constraints"], "maxTaskRetryCount", -1, 2**31 - 1)
    _pool_info(body["poolInfo"], scheduled)
    commands.environment(body, "commonEnvironmentSettings")
    if "jobPreparationTask" in body:
        commands.preparation_task(body["jobPreparationTask"])
    if "jobReleaseTask" in body:
        if "jobPreparationTask" not in body:
            raise invalid("jobReleaseTask", "it needs a jobPreparationTask.")
        commands.release_task(body["jobReleaseTask"])
    if "jobManagerTask" in body:
        commands.manager_task(body["jobManagerTask"], body["constraints"]["maxTaskRetryCount"])
    names = [body[kind]["id"].lower() for kind in _OWN_TASKS if kind in body]
    if len(set(names)) < len(names):
        raise invalid("id", "the job's manager, preparation and release tasks must have ids of their own.")


def _pool_info(pool: dict[str, Any], scheduled: bool) -> None:
    specification = pool.get("autoPoolSpecification")
    if specification is None:
        if not pool.get("poolId"):
            raise BatchError("MissingRequiredProperty", "The required property poolInfo.poolId is missing.")
        return
    where = "poolInfo.autoPoolSpecification"
    if pool.get("poolId"):
        raise invalid("poolInfo", "it holds either a poolId or an autoPoolSpecification.")
    if len(specification.get("autoPoolIdPrefix", "")) > MOST_PREFIX:
        raise invalid(f"{where}.autoPoolIdPrefix", f"it must be at most {MOST_PREFIX} characters long.")
    if specification.get("autoPoolIdPrefix"):
        legal_id(specification["autoPoolIdPrefix"], f"{where}.autoPoolIdPrefix")
    if specification["poolLifetimeOption"] == "jobschedule" and not scheduled:
        raise invalid(f"{where}.poolLifetimeOption", "jobschedule is for job schedules alone.")
    if "pool" not in specification:
        raise BatchError("MissingRequiredProperty", f"The required property {where}.pool is missing.")
    defaults.auto_pool(specification)
    if "startTask" in specification["pool"]:
        commands.start_task(specification["pool"]["startTask"])
