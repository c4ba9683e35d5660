"""Operations on jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from airflow_batchwrap.local.api import views
from airflow_batchwrap.local.api.call import Call, Reply, Row, numbered
from airflow_batchwrap.local.model.entities import Job
from airflow_batchwrap.local.model.rules.values import legal_id
from airflow_batchwrap.local.model.states import DisableTasks
from airflow_batchwrap.local.wire import versions
from airflow_batchwrap.local.wire.errors import BatchError

#: States in which a job is over or about to be, with the error that says so.
_OVER = {"terminating": "JobBeingTerminated", "deleting": "JobBeingDeleted", "completed": "JobCompleted"}


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


async def create_job(call: Call) -> Reply:
    """Create a job; its pool need not exist yet."""
    body = await call.body("BatchJobCreateOptions")
    job = call.world.job_control.make(legal_id(body.pop("id")), body)
    # The real service names the job's first run here, whatever the job's id (75 of 75 recorded).
    return await call.accept(job, f"{call.base}/jobs/job-1")


async def listing(call: Call, items: Callable[[str], Iterator[Job]]) -> Reply:
    """Answer with a page of a list of jobs.

    :param call: the request.
    :param items: as of `Call.listing`.
    :return: the answer.
    """
    return await call.listing(
        "jobs", items, lambda job, names: views.job(call.base, job, names), more=lambda job: _stats(call, job)
    )


async def _stats(call: Call, job: Job) -> dict[str, Any]:
    return await call.stats(job, [job])


async def list_jobs(call: Call) -> Reply:
    """List the jobs."""
    return await listing(call, call.world.jobs.beyond)


async def get_job(call: Call) -> Reply:
    """Show a job."""
    job = call.job()
    call.conditions(job)
    return await call.show(job, views.job(call.base, job, call.selected()) | await _stats(call, job))


async def _change(call: Call, job: Job, body: dict[str, Any]) -> Reply:
    call.world.job_control.change(job, body)
    return await call.accept(job)


async def update_job(call: Call) -> Reply:
    """Change some of a job's properties; what is not sent stays."""
    body = await call.body("BatchJobUpdateOptions")
    job = open_job(call)
    call.conditions(job)
    if "poolInfo" in body and job.state != "disabled":
        raise BatchError("OperationInvalidForCurrentState", "poolInfo can be sent only while the job is disabled.")
    return await _change(call, job, {**job.body, **body})


async def replace_job(call: Call) -> Reply:
    """Replace a job's changeable properties; what is not sent takes its default."""
    body = await call.body("BatchJob")
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
    body = await call.body("BatchJobTerminateOptions", optional=True)
    job = open_job(call)
    call.conditions(job)
    call.world.job_control.terminate(job, body.get("terminateReason", "UserTerminate"))
    return await call.accept(job)


async def disable_job(call: Call) -> Reply:
    """Let no further tasks of a job run, and do with the running ones as asked."""
    body = await call.body("BatchJobDisableOptions")
    job = open_job(call)
    call.conditions(job)
    if job.state != "active":
        raise BatchError("JobDisabled" if job.state == "disabled" else "OperationInvalidForCurrentState")
    call.world.job_control.disable(job, DisableTasks(body["disableTasks"]))
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

    parts = sorted(job.nodes.values(), key=lambda part: part.uid)
    rows = [Row(str(number), part) for number, part in enumerate(parts, 1)]
    return await call.listing(
        "jobpreparationandreleasetaskstatuslist", numbered(rows), lambda row, names: view(row.value, names)
    )


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
    kind = versions.counts_kind(call.version)
    aged = versions.shown(call.version, "taskcountsresult", body)
    return Reply({"odata.metadata": f"{call.base}/$metadata#{kind}/@Element", **aged})
