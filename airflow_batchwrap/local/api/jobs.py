"""Operations on jobs."""

from __future__ import annotations

import copy
import uuid
from typing import Any

from airflow_batchwrap.local.api import checks, pools, views
from airflow_batchwrap.local.api.call import Call, Reply, legal_id, number
from airflow_batchwrap.local.control import statistics
from airflow_batchwrap.local.control.world import World
from airflow_batchwrap.local.state.entities import Job, JobSchedule
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

#: States in which a job is over or about to be, with the error that says so.
_OVER = {"terminating": "JobBeingTerminated", "deleting": "JobBeingDeleted", "completed": "JobCompleted"}

#: Learn: BatchAutoPoolSpecification.autoPoolIdPrefix.
MOST_PREFIX = 20

_OWN_TASKS = ("jobManagerTask", "jobPreparationTask", "jobReleaseTask")
#: What a job manager has that no other task has, and its id.
_MANAGING = frozenset({"id", "killJobOnCompletion", "runExclusive", "allowLowPriorityNode"})

#: What an update may change (BatchJobUpdateOptions) that has a default, with it.
_DEFAULTS: dict[str, Any] = {
    "priority": 0,
    "maxParallelTasks": -1,
    "allowTaskPreemption": False,
    "onAllTasksComplete": "noaction",
    "onTaskFailure": "noaction",
    "usesTaskDependencies": False,
}


def open_job(call: Call) -> Job:
    """The job the path names, if it is not over.

    :param call: the request.
    :return: the job.
    :raises BatchError: it is completed, or about to end.
    """
    job = call.job()
    if job.state in _OVER:
        raise BatchError(_OVER[job.state])
    return job


def prepare(body: dict[str, Any], *, scheduled: bool = False) -> None:
    """Check a job's body and fill in its defaults.

    :param body: the body, but for the id.
    :param scheduled: it is the specification of a job schedule's jobs.
    :raises BatchError: something cannot be.
    """
    number(body, "priority", -1000, 1000)
    number(body, "maxParallelTasks", -1, 2**31 - 1)
    if body.get("maxParallelTasks") == 0:
        raise checks.invalid("maxParallelTasks", "it must be -1 or at least 1.")
    for name, value in _DEFAULTS.items():
        body.setdefault(name, value)
    body["constraints"] = {"maxWallClockTime": times.FOREVER, "maxTaskRetryCount": 0} | body.get("constraints", {})
    number(body["constraints"], "maxTaskRetryCount", -1, 2**31 - 1)
    _pool_info(body["poolInfo"], scheduled)
    checks.environment(body, "commonEnvironmentSettings")
    if "jobPreparationTask" in body:
        checks.preparation_task(body["jobPreparationTask"])
    if "jobReleaseTask" in body:
        if "jobPreparationTask" not in body:
            raise checks.invalid("jobReleaseTask", "it needs a jobPreparationTask.")
        checks.release_task(body["jobReleaseTask"])
    if "jobManagerTask" in body:
        checks.manager_task(body["jobManagerTask"], body["constraints"]["maxTaskRetryCount"])
    names = [body[kind]["id"].lower() for kind in _OWN_TASKS if kind in body]
    if len(set(names)) < len(names):
        raise checks.invalid("id", "the job's manager, preparation and release tasks must have ids of their own.")


def _pool_info(pool: dict[str, Any], scheduled: bool) -> None:
    specification = pool.get("autoPoolSpecification")
    if specification is None:
        if not pool.get("poolId"):
            raise BatchError("MissingRequiredProperty", "The required property poolInfo.poolId is missing.")
        return
    where = "poolInfo.autoPoolSpecification"
    if pool.get("poolId"):
        raise checks.invalid("poolInfo", "it holds either a poolId or an autoPoolSpecification.")
    if len(specification.get("autoPoolIdPrefix", "")) > MOST_PREFIX:
        raise checks.invalid(f"{where}.autoPoolIdPrefix", f"it must be at most {MOST_PREFIX} characters long.")
    if specification.get("autoPoolIdPrefix"):
        legal_id(specification["autoPoolIdPrefix"], f"{where}.autoPoolIdPrefix")
    if specification["poolLifetimeOption"] == "jobschedule" and not scheduled:
        raise checks.invalid(f"{where}.poolLifetimeOption", "jobschedule is for job schedules alone.")
    if "pool" not in specification:
        raise BatchError("MissingRequiredProperty", f"The required property {where}.pool is missing.")


def within_quota(world: World) -> None:
    """Check that one more job or job schedule may be active.

    :param world: the state.
    :raises BatchError: it may not.
    """
    active = sum(job.state not in ("completed", "deleting") for job in world.jobs)
    active += sum(schedule.state not in ("completed", "deleting") for schedule in world.schedules)
    if active >= world.config.quotas.jobs:
        raise BatchError(
            "ActiveJobAndScheduleQuotaReached",
            f"{active} jobs and job schedules are active, which is as many as may be: terminate or delete some.",
        )


def make(world: World, name: str, body: dict[str, Any], schedule: JobSchedule | None = None) -> Job:
    """Create a job, with the pool it asks for and its job manager.

    :param world: the state.
    :param name: its id.
    :param body: the rest of it, as a client gives it.
    :param schedule: the job schedule it is of, if any.
    :return: the job.
    :raises BatchError: it cannot be.
    """
    prepare(body, scheduled=schedule is not None)
    if (existing := world.jobs.get(name)) is not None:
        raise BatchError("JobBeingDeleted" if existing.state == "deleting" else "JobExists")
    if world.schedules.get(name) is not None:
        raise BatchError("JobScheduleWithSameIdExists")
    pool = world.pools.get(body["poolInfo"].get("poolId", ""))
    if pool is not None and pool.state == "deleting":
        raise BatchError("PoolBeingDeleted")
    within_quota(world)
    auto_pool = _auto_pool(world, body["poolInfo"].get("autoPoolSpecification"), schedule)
    job = Job(world.store.next_uid(), name, body)
    job.auto_pool, job.schedule = auto_pool, schedule.uid if schedule else None
    world.jobs.add(job)
    world.store.touch(job)
    if "jobManagerTask" in body:
        manager = {key: value for key, value in body["jobManagerTask"].items() if key not in _MANAGING}
        world.scheduler.add(job, body["jobManagerTask"]["id"], manager)
    world.job_control.watch(job)
    return job


def _auto_pool(world: World, specification: dict[str, Any] | None, schedule: JobSchedule | None) -> str | None:
    if specification is None:
        return None
    shared = schedule if specification["poolLifetimeOption"] == "jobschedule" else None
    if shared is not None and (present := world.pools.get(shared.pool_id or "")) and present.state == "active":
        return present.id
    prefix = specification.get("autoPoolIdPrefix")
    name = f"{prefix}_{uuid.uuid4()}" if prefix else str(uuid.uuid4())
    name = name[: len(name) - 36] + name[-36:].upper()
    pools.make(world, name, copy.deepcopy(specification["pool"]))
    if shared is not None:
        shared.pool_id = name
    return name


async def create_job(call: Call) -> Reply:
    """Create a job; its pool need not exist yet."""
    body = call.body("BatchJobCreateOptions")
    job = make(call.world, legal_id(body.pop("id")), body)
    return await call.accept(job, views.url_of(call.base, job))


def view(call: Call, job: Job, names: frozenset[str] | None) -> dict[str, Any]:
    """How a job is shown, with its statistics where they are asked for.

    :param call: the request.
    :param job: the job.
    :param names: the properties wanted; None for all.
    :return: the job.
    """
    shown = views.job(call.base, job, names)
    if call.expanded("stats", names):
        shown["stats"] = statistics.of_job(job, views.url_of(call.base, job))
    return shown


async def list_jobs(call: Call) -> Reply:
    """List the jobs."""
    return await call.listing("jobs", call.world.jobs.after, lambda job, names: view(call, job, names))


async def get_job(call: Call) -> Reply:
    """Show a job."""
    job = call.job()
    call.conditions(job)
    return await call.show(job, view(call, job, call.selected()))


def _same_auto_pool(job: Job, pool_info: dict[str, Any]) -> None:
    present, sent = (
        {**info.get("autoPoolSpecification", {}), "keepAlive": None} for info in (job.body["poolInfo"], pool_info)
    )
    if present != sent:
        raise checks.invalid("poolInfo", "of an auto pool only keepAlive can be changed.")


async def _change(call: Call, job: Job, body: dict[str, Any]) -> Reply:
    prepare(body, scheduled=job.schedule is not None)
    world = call.world
    if job.auto_pool or "autoPoolSpecification" in body["poolInfo"]:
        _same_auto_pool(job, body["poolInfo"])
    elif body["poolInfo"].get("poolId", "").lower() != job.pool_id.lower():
        if job.state != "disabled":
            raise BatchError(
                "OperationInvalidForCurrentState", "The pool can be changed only while the job is disabled."
            )
        for part in job.nodes.values():
            world.store.drop(part.uid)
        job.nodes.clear()
    if job.body["onAllTasksComplete"] == "terminatejob" != body["onAllTasksComplete"]:
        raise checks.invalid("onAllTasksComplete", "terminatejob cannot be taken back.")
    job.body = body
    job.changed()
    world.store.touch(job)
    world.job_control.watch(job)
    world.scheduler.kick(job.pool_id)
    return await call.accept(job)


async def update_job(call: Call) -> Reply:
    """Change some of a job's properties; what is not sent stays."""
    body = call.body("BatchJobUpdateOptions")
    job = open_job(call)
    call.conditions(job)
    if "poolInfo" in body and job.state != "disabled":
        raise BatchError("OperationInvalidForCurrentState", "poolInfo can be sent only while the job is disabled.")
    return await _change(call, job, {**job.body, **body})


async def replace_job(call: Call) -> Reply:
    """Replace a job's changeable properties; what is not sent takes its default."""
    body = call.body("BatchJob")
    job = open_job(call)
    call.conditions(job)
    changeable = {
        "priority",
        "maxParallelTasks",
        "allowTaskPreemption",
        "onAllTasksComplete",
        "constraints",
        "metadata",
        "poolInfo",
    }
    kept = {name: value for name, value in job.body.items() if name not in changeable}
    return await _change(call, job, {**kept, **{name: value for name, value in body.items() if name in changeable}})


async def delete_job(call: Call) -> Reply:
    """Delete a job with its tasks and their files, after the answer."""
    job = call.job()
    call.conditions(job)
    if job.state == "deleting":
        raise BatchError("JobBeingDeleted")
    call.world.job_control.delete(job)
    return await call.accept(job)


async def terminate_job(call: Call) -> Reply:
    """End a job: its running tasks, then its release tasks, after the answer."""
    body = call.body("BatchJobTerminateOptions", optional=True)
    job = open_job(call)
    call.conditions(job)
    call.world.job_control.terminate(job, body.get("terminateReason", "UserTerminate"))
    return await call.accept(job)


async def disable_job(call: Call) -> Reply:
    """Let no further tasks of a job run, and do with the running ones as asked."""
    body = call.body("BatchJobDisableOptions")
    job = open_job(call)
    call.conditions(job)
    if job.state != "active":
        raise BatchError("JobDisabled" if job.state == "disabled" else "OperationInvalidForCurrentState")
    call.world.job_control.disable(job, body["disableTasks"])
    return await call.accept(job)


async def enable_job(call: Call) -> Reply:
    """Let a disabled job's tasks run again."""
    job = open_job(call)
    call.conditions(job)
    if job.state != "disabled":
        raise BatchError("OperationInvalidForCurrentState", "The job is not disabled.")
    call.world.job_control.enable(job)
    return await call.accept(job)


async def list_job_preparation_and_release_task_status(call: Call) -> Reply:
    """Show how the job's preparation and release tasks went on each node."""
    job = call.job()
    if "jobPreparationTask" not in job.body:
        raise BatchError("JobPreparationTaskNotSpecified")

    def view(part: Any, names: frozenset[str] | None) -> dict[str, Any]:
        shown = views.node_job(call.world, call.base, part)
        return shown if names is None else {name: value for name, value in shown.items() if name in names}

    def parts(after: int) -> list[Any]:
        return sorted((part for part in job.nodes.values() if part.uid > after), key=lambda part: part.uid)

    return await call.listing("jobpreparationandreleasetaskstatuslist", parts, view)


async def get_job_task_counts(call: Call) -> Reply:
    """Count a job's tasks by their states."""
    job = call.job()

    def shown(counts: dict[str, int]) -> dict[str, int]:
        succeeded, failed = counts["success"], counts["failure"]
        return {
            "active": counts["active"],
            "running": counts["running"],
            "completed": succeeded + failed,
            "succeeded": succeeded,
            "failed": failed,
        }

    body = {"taskCounts": shown(job.counts), "taskSlotCounts": shown(job.slot_counts)}
    await call.world.store.commit()
    return Reply(body)
