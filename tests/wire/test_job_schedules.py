"""Job schedules: when they create jobs, one at a time, and how they and their jobs end."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.batch.aio import BatchClient as AsyncBatchClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.wire import Wire

MINUTE = datetime.timedelta(minutes=1)


def since(seconds: float) -> datetime.datetime:
    """A time so long ago."""
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)


def schedule(wire: Wire, pool: str, when: m.BatchJobScheduleConfiguration | None = None, **more: Any) -> str:
    """A job schedule, of one job at once if nothing else is said."""
    name = wire.name("schedule")
    metadata = more.pop("metadata", None)
    job = m.BatchJobSpecification(pool_info=more.pop("pool_info", m.BatchPoolInfo(pool_id=pool)), **more)
    when = when or m.BatchJobScheduleConfiguration()
    options = m.BatchJobScheduleCreateOptions(id=name, schedule=when, job_specification=job, metadata=metadata)
    wire.client.create_job_schedule(options)
    return name


def every_minute(seconds_to_the_next: float, **more: Any) -> m.BatchJobScheduleConfiguration:
    """Once a minute, first at once, then in so many seconds."""
    start = since(60 - seconds_to_the_next)
    return m.BatchJobScheduleConfiguration(recurrence_interval=MINUTE, do_not_run_until=start, **more)


def in_state(wire: Wire, name: str, state: str) -> m.BatchJobSchedule:
    """A job schedule, once it is in a state."""

    def look() -> m.BatchJobSchedule | None:
        found = wire.client.get_job_schedule(name)
        return found if found.state == state else None

    found = wire.until(look, timeout=30)
    assert found is not None
    return found


def jobs(wire: Wire, name: str) -> list[str]:
    """The ids of a job schedule's jobs."""
    return [job.id for job in wire.client.list_jobs_from_schedule(name)]


def refused(error: HttpResponseError) -> tuple[int | None, str]:
    """Status and code of an error."""
    assert error.error is not None
    return error.status_code, str(error.error.code)


BOSS = m.BatchJobManagerTask(id="boss", command_line="/bin/sh -c 'echo $AZ_BATCH_JOB_ID; pwd'")


def test_schedule_without_recurrence_has_one_job_and_ends_with_it(wire: Wire, pool: str) -> None:
    name = schedule(wire, pool, priority=7, display_name="d", job_manager_task=BOSS, max_parallel_tasks=3)
    done = in_state(wire, name, "completed")
    assert done.previous_state == "active"
    info = done.execution_info
    assert info.recent_job is not None
    assert (info.recent_job.id, info.next_run_time) == (f"{name}:job-1", None)
    assert str(info.recent_job.url).endswith(f"/jobs/{name}:job-1")
    assert info.end_time is not None
    (job,) = wire.client.list_jobs_from_schedule(name)
    assert (job.id, job.state, job.priority, job.display_name) == (f"{name}:job-1", "completed", 7, "d")
    assert job.max_parallel_tasks == 3
    assert job.execution_info is not None
    assert job.execution_info.termination_reason == "JMComplete"
    task = wire.client.get_task(job.id, "boss")
    assert task.node_info is not None
    # A job's directory is that of its schedule, and a job of none has `job-1` there too.
    assert task.node_info.task_root_directory == f"workitems/{name}/job-1/boss"
    assert wire.text(job.id, "boss").splitlines()[0] == job.id
    directory = wire.root(task.node_info.node_id) / "workitems" / name
    assert (directory / "job-1" / "boss").is_dir()
    wire.client.begin_delete_job_schedule(name, polling_interval=0).wait()
    assert not directory.exists()
    with pytest.raises(ResourceNotFoundError):
        wire.client.get_job(job.id)
    with pytest.raises(ResourceNotFoundError):
        wire.client.get_job_schedule(name)


def test_schedule_comes_back_as_it_was_created(wire: Wire, pool: str) -> None:
    when = m.BatchJobScheduleConfiguration(
        do_not_run_until=since(-3600),
        do_not_run_after=since(-7200),
        start_window=datetime.timedelta(minutes=5),
        recurrence_interval=datetime.timedelta(minutes=10),
    )
    name = schedule(wire, pool, when, metadata=[m.BatchMetadataItem(name="a", value="1")], job_manager_task=BOSS)
    shown = wire.client.get_job_schedule(name)
    assert (shown.id, shown.state, shown.previous_state) == (name, "active", None)
    assert shown.schedule is not None
    assert shown.schedule.start_window == datetime.timedelta(minutes=5)
    assert shown.schedule.recurrence_interval == datetime.timedelta(minutes=10)
    assert shown.metadata is not None
    assert (shown.metadata[0].name, shown.metadata[0].value) == ("a", "1")
    assert shown.job_specification.job_manager_task is not None
    assert shown.job_specification.job_manager_task.command_line == BOSS.command_line
    assert shown.execution_info.next_run_time == when.do_not_run_until
    assert shown.execution_info.recent_job is None
    assert jobs(wire, name) == []
    assert wire.client.job_schedule_exists(name)
    selected = [one for one in wire.client.list_job_schedules(select=["id", "state"]) if one.id == name]
    assert [one.as_dict() for one in selected] == [{"id": name, "state": "active"}]
    found = wire.client.list_job_schedules(filter=f"startswith(id, '{name}') and state eq 'active'")
    assert [one.id for one in found] == [name]
    with pytest.raises(HttpResponseError) as caught:
        wire.client.create_job_schedule(
            m.BatchJobScheduleCreateOptions(id=name, schedule=when, job_specification=shown.job_specification)
        )
    assert refused(caught.value) == (409, "JobScheduleExists")
    wire.client.begin_delete_job_schedule(name, polling_interval=0).wait()


def test_recurring_schedule_creates_one_job_after_the_other(wire: Wire, pool: str) -> None:
    name = schedule(wire, pool, every_minute(2.0), job_manager_task=BOSS)
    wire.until(lambda: jobs(wire, name) == [f"{name}:job-1", f"{name}:job-2"], timeout=30)
    wire.job_state(f"{name}:job-2", "completed")
    shown = wire.client.get_job_schedule(name)
    assert shown.state == "active"
    assert shown.schedule is not None
    assert shown.execution_info.next_run_time is not None
    assert shown.schedule.do_not_run_until is not None
    assert shown.execution_info.next_run_time - shown.schedule.do_not_run_until == 2 * MINUTE
    wire.client.begin_terminate_job_schedule(name, polling_interval=0).wait()


def test_one_job_is_active_at_a_time(wire: Wire, pool: str) -> None:
    name = schedule(wire, pool, every_minute(1.5))
    first = f"{name}:job-1"
    wire.job_state(first, "active")
    passed = wire.client.get_job_schedule(name).execution_info.next_run_time
    assert passed is not None
    # The second occurrence comes and waits for the first job to end.
    wire.until(lambda: wire.client.get_job_schedule(name).execution_info.next_run_time != passed, timeout=30)
    assert jobs(wire, name) == [first]
    wire.terminate(first)
    wire.job_state(f"{name}:job-2", "active")
    wire.client.begin_delete_job_schedule(name, polling_interval=0).wait()


def test_no_job_is_created_after_the_end(wire: Wire, pool: str) -> None:
    name = schedule(wire, pool, m.BatchJobScheduleConfiguration(recurrence_interval=MINUTE, do_not_run_after=since(-2)))
    assert wire.client.get_job_schedule(name).execution_info.next_run_time is None
    wire.job_state(f"{name}:job-1", "active")
    wire.until(lambda: since(0) > (wire.client.get_job_schedule(name).creation_time + datetime.timedelta(seconds=2.2)))
    assert wire.client.get_job_schedule(name).state == "active"
    wire.terminate(f"{name}:job-1")
    in_state(wire, name, "completed")
    with pytest.raises(HttpResponseError) as caught:
        wire.client.disable_job_schedule(name)
    assert refused(caught.value) == (409, "JobScheduleCompleted")


def test_job_that_is_too_late_is_not_created(wire: Wire, pool: str) -> None:
    past = m.BatchJobScheduleConfiguration(do_not_run_until=since(120), start_window=MINUTE)
    name = schedule(wire, pool, past)
    assert in_state(wire, name, "completed").execution_info.recent_job is None
    assert jobs(wire, name) == []


def test_disabled_schedule_creates_no_jobs_until_it_is_enabled(wire: Wire, pool: str) -> None:
    start = m.BatchJobScheduleConfiguration(do_not_run_until=since(-2))
    name = schedule(wire, pool, start)
    wire.client.disable_job_schedule(name)
    with pytest.raises(HttpResponseError) as caught:
        wire.client.disable_job_schedule(name)
    assert refused(caught.value) == (409, "JobScheduleDisabled")
    assert start.do_not_run_until is not None
    wire.until(lambda: since(0.2) > (start.do_not_run_until or since(0)), timeout=30)
    assert (wire.client.get_job_schedule(name).state, jobs(wire, name)) == ("disabled", [])
    wire.client.enable_job_schedule(name)
    wire.job_state(f"{name}:job-1", "active")
    with pytest.raises(HttpResponseError) as caught:
        wire.client.enable_job_schedule(name)
    assert refused(caught.value) == (409, "OperationInvalidForCurrentState")
    wire.client.begin_delete_job_schedule(name, polling_interval=0).wait()


def test_terminated_schedule_ends_its_job(wire: Wire, pool: str) -> None:
    name = schedule(wire, pool, m.BatchJobScheduleConfiguration(recurrence_interval=MINUTE))
    job = f"{name}:job-1"
    task = wire.add(job, "/bin/sleep 60")
    wire.state(job, task, "running")
    wire.client.begin_terminate_job_schedule(name, polling_interval=0).wait()
    done = in_state(wire, name, "completed")
    assert done.previous_state == "terminating"
    ended = wire.client.get_job(job)
    assert ended.execution_info is not None
    assert (ended.state, ended.execution_info.termination_reason) == ("completed", "TerminateJobSchedule")
    with pytest.raises(HttpResponseError) as caught:
        wire.client.begin_terminate_job_schedule(name, polling_interval=0)
    assert refused(caught.value) == (409, "JobScheduleCompleted")


def test_changes_hold_for_the_jobs_to_come(wire: Wire, pool: str) -> None:
    name = schedule(wire, pool, every_minute(2.0), priority=1, metadata=[m.BatchMetadataItem(name="a", value="1")])
    before = wire.client.get_job_schedule(name)
    changed = m.BatchJobSpecification(pool_info=m.BatchPoolInfo(pool_id=pool), priority=2)
    wire.client.update_job_schedule(name, m.BatchJobScheduleUpdateOptions(job_specification=changed))
    after = wire.client.get_job_schedule(name)
    assert after.etag != before.etag
    assert len(after.metadata or []) == 1
    assert wire.client.get_job(f"{name}:job-1").priority == 1
    wire.terminate(f"{name}:job-1")
    second = wire.until(
        lambda: next((job for job in wire.client.list_jobs_from_schedule(name) if job.id.endswith("job-2")), None),
        timeout=30,
    )
    assert second is not None
    assert second.priority == 2
    body: Any = {"schedule": {"recurrenceInterval": "PT1H"}, "jobSpecification": {"poolInfo": {"poolId": pool}}}
    wire.client.replace_job_schedule(name, body)
    replaced = wire.client.get_job_schedule(name)
    assert replaced.schedule is not None
    # What is not sent takes its default, and is shown so.
    assert (replaced.metadata, replaced.job_specification.priority) == (None, 0)
    assert replaced.schedule.recurrence_interval == datetime.timedelta(hours=1)
    wire.client.begin_delete_job_schedule(name, polling_interval=0).wait()


def test_jobs_of_a_schedule_share_an_auto_pool(wire: Wire) -> None:
    options = wire.pool_options("unused", 1)
    specification = m.BatchPoolSpecification(
        vm_size=options.vm_size,
        virtual_machine_configuration=options.virtual_machine_configuration,
        target_dedicated_nodes=1,
    )
    auto = m.BatchAutoPoolSpecification(
        pool_lifetime_option="jobschedule", auto_pool_id_prefix="shared", pool=specification
    )
    info = m.BatchPoolInfo(auto_pool_specification=auto)
    name = schedule(wire, "", every_minute(2.0), pool_info=info, job_manager_task=BOSS)
    first = wire.job_state(f"{name}:job-1", "completed")
    wire.until(lambda: len(jobs(wire, name)) == 2, timeout=30)
    second = wire.job_state(f"{name}:job-2", "completed")
    assert first.execution_info is not None
    assert second.execution_info is not None
    pool = str(first.execution_info.pool_id)
    assert pool.startswith("shared_")
    assert second.execution_info.pool_id == pool
    assert wire.client.get_pool(pool).state == "active"
    wire.client.begin_terminate_job_schedule(name, polling_interval=0).wait()
    wire.until(lambda: pool not in {one.id for one in wire.client.list_pools()}, timeout=30)


def test_jobs_and_schedules_share_their_ids(wire: Wire, pool: str, job: str) -> None:
    name = schedule(wire, pool, m.BatchJobScheduleConfiguration(do_not_run_until=since(-3600)))
    with pytest.raises(HttpResponseError) as caught:
        wire.client.create_job(m.BatchJobCreateOptions(id=name, pool_info=m.BatchPoolInfo(pool_id=pool)))
    assert refused(caught.value) == (409, "JobScheduleWithSameIdExists")
    specification = m.BatchJobSpecification(pool_info=m.BatchPoolInfo(pool_id=pool))
    options = m.BatchJobScheduleCreateOptions(
        id=job, schedule=m.BatchJobScheduleConfiguration(), job_specification=specification
    )
    with pytest.raises(HttpResponseError) as caught:
        wire.client.create_job_schedule(options)
    assert refused(caught.value) == (409, "JobWithSameIdExists")
    wire.client.begin_delete_job_schedule(name, polling_interval=0).wait()


@pytest.mark.parametrize(
    ("when", "more", "said"),
    [
        ({"recurrence_interval": datetime.timedelta(seconds=59)}, {}, "recurrenceInterval"),
        ({"start_window": datetime.timedelta(seconds=59)}, {}, "startWindow"),
        ({"do_not_run_until": since(0), "do_not_run_after": since(60)}, {}, "doNotRunAfter"),
        ({}, {"priority": 2000}, "priority"),
        ({}, {"job_manager_task": m.BatchJobManagerTask(id="b", command_line="")}, "commandLine"),
        ({}, {"pool_info": m.BatchPoolInfo()}, "poolId"),
    ],
)
def test_schedules_that_cannot_be(wire: Wire, pool: str, when: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(HttpResponseError) as caught:
        schedule(wire, pool, m.BatchJobScheduleConfiguration(**when), **more)
    assert caught.value.status_code == 400
    assert said in str(caught.value)


def test_what_is_not_there(wire: Wire) -> None:
    with pytest.raises(HttpResponseError) as caught:
        wire.client.disable_job_schedule("nothing")
    assert refused(caught.value) == (404, "JobScheduleNotFound")
    with pytest.raises(ResourceNotFoundError):
        wire.client.get_job_schedule("nothing")


async def test_async_client(wire: Wire, pool: str) -> None:
    credential = AzureNamedKeyCredential(wire.service.account, wire.service.key)
    async with AsyncBatchClient(wire.service.url, credential) as client:
        name = schedule(wire, pool, m.BatchJobScheduleConfiguration(do_not_run_until=since(-3600)))
        assert (await client.get_job_schedule(name)).state == "active"
        await client.disable_job_schedule(name)
        await client.enable_job_schedule(name)
        assert name in [one.id async for one in client.list_job_schedules()]
        assert [job.id async for job in client.list_jobs_from_schedule(name)] == []
        await (await client.begin_delete_job_schedule(name, polling_interval=0)).wait()


def test_schedule_survives_a_restart(own: Callable[[], Wire]) -> None:
    wire = own()
    pool = wire.pool(1)
    waiting = schedule(wire, pool, m.BatchJobScheduleConfiguration(do_not_run_until=since(-1.5)))
    running = schedule(wire, pool, m.BatchJobScheduleConfiguration(recurrence_interval=MINUTE))
    wire.job_state(f"{running}:job-1", "active")
    wire.service.stop()
    again = own()
    assert jobs(again, running) == [f"{running}:job-1"]
    again.until(lambda: jobs(again, waiting) == [f"{waiting}:job-1"], timeout=30)
