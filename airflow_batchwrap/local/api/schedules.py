"""Operations on job schedules."""

from __future__ import annotations

from typing import Any

from airflow_batchwrap.local.api import jobs, views
from airflow_batchwrap.local.api.call import Call, Reply
from airflow_batchwrap.local.model.entities import JobSchedule
from airflow_batchwrap.local.model.rules.values import legal_id
from airflow_batchwrap.local.model.states import ScheduleState
from airflow_batchwrap.local.wire.errors import BatchError

_OVER = {
    "terminating": "JobScheduleBeingTerminated",
    "deleting": "JobScheduleBeingDeleted",
    "completed": "JobScheduleCompleted",
}


def _open(call: Call) -> JobSchedule:
    schedule = call.schedule()
    if schedule.state in _OVER:
        raise BatchError(_OVER[schedule.state])
    call.conditions(schedule)
    return schedule


async def _stats(call: Call, schedule: JobSchedule) -> dict[str, Any]:
    return await call.stats(schedule, call.world.schedule_control.jobs(schedule))


async def create_job_schedule(call: Call) -> Reply:
    """Create a job schedule; its first job may be there with the answer."""
    body = await call.body("BatchJobScheduleCreateOptions")
    name = legal_id(body.pop("id"))
    schedule = call.world.schedule_control.make(name, body)
    return await call.accept(schedule, views.url_of(call.base, schedule))


async def list_job_schedules(call: Call) -> Reply:
    """List the job schedules."""
    return await call.listing(
        "jobschedules",
        call.world.schedules.beyond,
        lambda schedule, names: views.job_schedule(call.world, call.base, schedule, names),
        more=lambda schedule: _stats(call, schedule),
    )


async def get_job_schedule(call: Call) -> Reply:
    """Show a job schedule."""
    schedule = call.schedule()
    call.conditions(schedule)
    shown = views.job_schedule(call.world, call.base, schedule, call.selected())
    return await call.show(schedule, shown | await _stats(call, schedule))


async def job_schedule_exists(call: Call) -> Reply:
    """Say whether a job schedule exists."""
    schedule = call.schedule()
    call.conditions(schedule)
    return Reply(None, (await call.accept(schedule)).headers)


async def _change(call: Call, schedule: JobSchedule, body: dict[str, Any]) -> Reply:
    call.world.schedule_control.change(schedule, body)
    return await call.accept(schedule, views.url_of(call.base, schedule))


async def update_job_schedule(call: Call) -> Reply:
    """Change some of a job schedule's properties; jobs that are there stay as they are."""
    body = await call.body("BatchJobScheduleUpdateOptions")
    schedule = _open(call)
    return await _change(call, schedule, {**schedule.body, **body})


async def replace_job_schedule(call: Call) -> Reply:
    """Replace a job schedule's changeable properties; what is not sent takes its default."""
    body = await call.body("BatchJobSchedule")
    schedule = _open(call)
    kept = {name: value for name, value in schedule.body.items() if name == "displayName"}
    return await _change(call, schedule, {"schedule": {}, **kept, **body})


async def delete_job_schedule(call: Call) -> Reply:
    """Delete a job schedule with its jobs, after the answer."""
    schedule = call.schedule()
    call.conditions(schedule)
    if schedule.state == "deleting":
        raise BatchError("JobScheduleBeingDeleted")
    call.world.schedule_control.delete(schedule)
    return await call.accept(schedule)


async def terminate_job_schedule(call: Call) -> Reply:
    """End a job schedule with its active job, after the answer."""
    schedule = _open(call)
    call.world.schedule_control.terminate(schedule)
    return await call.accept(schedule, views.url_of(call.base, schedule))


async def disable_job_schedule(call: Call) -> Reply:
    """Let a job schedule create no jobs until it is enabled; its active job goes on."""
    schedule = _open(call)
    if schedule.state == "disabled":
        raise BatchError("JobScheduleDisabled")
    return await _move(call, schedule, ScheduleState.DISABLED)


async def enable_job_schedule(call: Call) -> Reply:
    """Let a job schedule create jobs again."""
    schedule = _open(call)
    if schedule.state != "disabled":
        raise BatchError("OperationInvalidForCurrentState", "The job schedule is not disabled.")
    return await _move(call, schedule, ScheduleState.ACTIVE)


async def _move(call: Call, schedule: JobSchedule, state: ScheduleState) -> Reply:
    call.world.schedule_control.turn(schedule, state)
    return await call.accept(schedule, views.url_of(call.base, schedule))


async def list_jobs_from_schedule(call: Call) -> Reply:
    """List the jobs that a job schedule created."""
    schedule = call.schedule()
    return await jobs.listing(
        call, lambda after: (job for job in call.world.jobs.beyond(after) if job.schedule == schedule.uid)
    )
