"""A job's states and what moves it between them, with its tasks running."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

if TYPE_CHECKING:
    from tests.support.wire import Services, Wire


def refused(error: HttpResponseError) -> tuple[int | None, str]:
    """Status and code of an error."""
    assert error.error is not None
    return error.status_code, str(error.error.code)


def disable(wire: Wire, job: str, option: str) -> None:
    """Begin to disable a job."""
    options = m.BatchJobDisableOptions(disable_tasks=option)
    wire.client.begin_disable_job(job, options, polling_interval=1)


def gated(gate: Path) -> str:
    """A command that ends once a file is there."""
    return f"/bin/sh -c 'until test -e {gate}; do sleep 0.02; done'"


def test_disabling_waits_for_running_tasks_and_starts_no_others(wire: Wire, tmp_path: Path) -> None:
    pool = wire.pool(1)
    job = wire.job(pool)
    running = wire.add(job, gated(tmp_path / "gate"))
    wire.state(job, running, "running")
    waiting = wire.add(job, "/bin/true")
    disable(wire, job, "wait")
    disabling = wire.client.get_job(job)
    assert (disabling.state, disabling.previous_state) == ("disabling", "active")
    assert wire.client.get_task(job, running).state == "running"
    (tmp_path / "gate").touch()
    disabled = wire.job_state(job, "disabled")
    assert disabled.previous_state == "disabling"
    ended = wire.state(job, running, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.result == "success"
    assert wire.client.get_task(job, waiting).state == "active"
    wire.client.begin_enable_job(job, polling_interval=1)
    wire.state(job, waiting, "completed")
    wire.client.begin_delete_pool(pool, polling_interval=1)


def test_requeued_task_runs_again_and_is_counted(wire: Wire, pool: str, tmp_path: Path) -> None:
    job = wire.job(pool)
    task = wire.add(job, gated(tmp_path / "gate"))
    wire.state(job, task, "running")
    disable(wire, job, "requeue")
    wire.job_state(job, "disabled")
    waiting = wire.client.get_task(job, task)
    assert waiting.execution_info is not None
    assert (waiting.state, waiting.execution_info.requeue_count) == ("active", 1)
    (tmp_path / "gate").touch()
    wire.client.begin_enable_job(job, polling_interval=1)
    ended = wire.state(job, task, "completed")
    assert ended.execution_info is not None
    assert (ended.execution_info.result, ended.execution_info.retry_count) == ("success", 0)


def test_terminated_by_disabling_is_a_failure(wire: Wire, pool: str) -> None:
    job = wire.job(pool)
    task = wire.add(job, "/bin/sleep 60")
    wire.state(job, task, "running")
    disable(wire, job, "terminate")
    wire.job_state(job, "disabled")
    ended = wire.state(job, task, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.failure_info is not None
    assert ended.execution_info.failure_info.code == "TaskEnded"


def test_disabled_job_can_be_terminated_and_changes_its_pool(wire: Wire, pool: str) -> None:
    other = wire.pool(1)
    job = wire.job(pool)
    with pytest.raises(HttpResponseError) as caught:
        wire.client.update_job(job, m.BatchJobUpdateOptions(pool_info=m.BatchPoolInfo(pool_id=other)))
    assert refused(caught.value) == (409, "OperationInvalidForCurrentState")
    disable(wire, job, "requeue")
    wire.job_state(job, "disabled")
    wire.client.update_job(job, m.BatchJobUpdateOptions(pool_info=m.BatchPoolInfo(pool_id=other)))
    wire.client.begin_enable_job(job, polling_interval=1)
    ran = wire.run(job, "/bin/true")
    assert ran.node_info is not None
    assert ran.node_info.pool_id == other
    disable(wire, job, "requeue")
    wire.terminate(job)
    assert wire.client.get_job(job).state == "completed"
    wire.client.begin_delete_pool(other, polling_interval=1)


def test_states_that_allow_no_change(wire: Wire, pool: str) -> None:
    job = wire.job(pool)
    with pytest.raises(HttpResponseError) as caught:
        wire.client.begin_enable_job(job, polling_interval=1)
    assert refused(caught.value) == (409, "OperationInvalidForCurrentState")
    disable(wire, job, "requeue")
    wire.job_state(job, "disabled")
    with pytest.raises(HttpResponseError) as caught:
        disable(wire, job, "requeue")
    assert refused(caught.value) == (409, "JobDisabled")
    wire.terminate(job)
    options: Any = {"terminateReason": "again"}
    for refuse in (
        lambda: disable(wire, job, "wait"),
        lambda: wire.client.begin_enable_job(job, polling_interval=1),
        lambda: wire.client.begin_terminate_job(job, options, polling_interval=1),
        lambda: wire.client.update_job(job, m.BatchJobUpdateOptions(priority=1)),
        lambda: wire.add(job, "/bin/true"),
    ):
        with pytest.raises(HttpResponseError) as caught:
            refuse()
        assert refused(caught.value) == (409, "JobCompleted")


def test_account_has_so_many_active_jobs_and_no_more(services: Services, tmp_path: Path) -> None:
    wire = services(tmp_path / "few", "--quota", "jobs=2")
    first = wire.job("none")
    specification = m.BatchJobSpecification(pool_info=m.BatchPoolInfo(pool_id="none"))
    later = m.BatchJobScheduleConfiguration(do_not_run_until=datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC))
    options = m.BatchJobScheduleCreateOptions(id="s", schedule=later, job_specification=specification)
    wire.client.create_job_schedule(options)
    with pytest.raises(HttpResponseError) as caught:
        wire.job("none")
    assert refused(caught.value) == (409, "ActiveJobAndScheduleQuotaReached")
    # Disabled ones do.
    disabling = m.BatchJobDisableOptions(disable_tasks="requeue")
    wire.client.begin_disable_job(first, disabling, polling_interval=0).wait()
    with pytest.raises(HttpResponseError) as caught:
        wire.job("none")
    assert refused(caught.value) == (409, "ActiveJobAndScheduleQuotaReached")
    # Completed jobs do not count.
    wire.terminate(first)
    wire.job("none")
    options.id = "t"
    with pytest.raises(HttpResponseError) as caught:
        wire.client.create_job_schedule(options)
    assert refused(caught.value) == (409, "ActiveJobAndScheduleQuotaReached")


def test_automatic_termination_cannot_be_taken_back(wire: Wire, pool: str) -> None:
    job = wire.job(pool)
    task = wire.add(job, "/bin/sleep 60")
    wire.client.update_job(job, m.BatchJobUpdateOptions(all_tasks_complete_mode="terminatejob"))
    with pytest.raises(HttpResponseError) as caught:
        wire.client.update_job(job, m.BatchJobUpdateOptions(all_tasks_complete_mode="noaction"))
    assert refused(caught.value) == (400, "InvalidPropertyValue")
    body: Any = {"poolInfo": {"poolId": pool}}
    with pytest.raises(HttpResponseError) as caught:
        wire.client.replace_job(job, body)
    assert refused(caught.value) == (400, "InvalidPropertyValue")
    wire.client.terminate_task(job, task)
    ended = wire.job_state(job, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.termination_reason == "AllTasksComplete"


def test_deleting_the_last_open_task_completes_the_job(wire: Wire, pool: str) -> None:
    job = wire.job(pool)
    wire.run(job, "/bin/true")
    task = wire.add(job, "/bin/sleep 60")
    wire.client.update_job(job, m.BatchJobUpdateOptions(all_tasks_complete_mode="terminatejob"))
    assert wire.client.get_job(job).state == "active"
    wire.client.delete_task(job, task)
    wire.job_state(job, "completed")


def test_disabled_job_does_not_complete_by_itself(wire: Wire, pool: str) -> None:
    job = wire.job(pool)
    wire.run(job, "/bin/true")
    disable(wire, job, "wait")
    wire.job_state(job, "disabled")
    wire.client.update_job(job, m.BatchJobUpdateOptions(all_tasks_complete_mode="terminatejob"))
    assert wire.client.get_job(job).state == "disabled"
    wire.client.begin_enable_job(job, polling_interval=1)
    wire.job_state(job, "completed")


def test_wall_clock_is_changed_and_counts_from_creation(wire: Wire, pool: str) -> None:
    job = wire.job(pool)
    task = wire.add(job, "/bin/sleep 60")
    wire.state(job, task, "running")
    limit = m.BatchJobConstraints(max_wall_clock_time=datetime.timedelta(milliseconds=1))
    wire.client.update_job(job, m.BatchJobUpdateOptions(constraints=limit))
    ended = wire.job_state(job, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.termination_reason == "MaxWallClockTimeExpiry"
    assert wire.client.get_task(job, task).state == "completed"


def test_wall_clock_ends_a_disabled_job_too(wire: Wire, pool: str) -> None:
    job = wire.job(pool, constraints=m.BatchJobConstraints(max_wall_clock_time=datetime.timedelta(seconds=0.7)))
    disable(wire, job, "requeue")
    ended = wire.job_state(job, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.termination_reason == "MaxWallClockTimeExpiry"


def test_retry_count_of_the_job_is_its_tasks_own_unless_they_say_otherwise(wire: Wire, pool: str) -> None:
    job = wire.job(pool, constraints=m.BatchJobConstraints(max_task_retry_count=2))
    inherited = wire.run(job, "/bin/false")
    own = wire.run(job, "/bin/false", constraints=m.BatchTaskConstraints(max_task_retry_count=0))
    for task, retries in ((inherited, 2), (own, 0)):
        assert task.constraints is not None
        assert task.execution_info is not None
        assert (task.constraints.max_task_retry_count, task.execution_info.retry_count) == (retries, retries)


def test_priority_of_a_waiting_job_is_raised(wire: Wire, tmp_path: Path) -> None:
    pool = wire.pool(1)
    holder, first, second = wire.job(pool), wire.job(pool), wire.job(pool)
    wire.state(holder, wire.add(holder, gated(tmp_path / "gate")), "running")
    tasks = {job: wire.add(job, "/bin/true") for job in (first, second)}
    wire.client.update_job(second, m.BatchJobUpdateOptions(priority=1))
    (tmp_path / "gate").touch()
    ended = [wire.state(job, tasks[job], "completed").execution_info for job in (second, first)]
    starts = [info.start_time for info in ended if info is not None and info.start_time is not None]
    assert len(starts) == 2
    assert starts == sorted(starts)
    wire.client.begin_delete_pool(pool, polling_interval=1)


def test_limit_of_parallel_tasks_is_raised(wire: Wire, pool: str) -> None:
    job = wire.job(pool, max_parallel_tasks=1, allow_task_preemption=True)
    first, second = (wire.add(job, "/bin/sleep 60") for _ in range(2))
    wire.state(job, first, "running")
    assert wire.client.get_task(job, second).state == "active"
    wire.client.update_job(job, m.BatchJobUpdateOptions(max_parallel_tasks=2))
    wire.state(job, second, "running")
    assert wire.client.get_job(job).allow_task_preemption is True
    wire.terminate(job)


def test_deleted_job_is_deleting_until_its_tasks_are_gone(wire: Wire, pool: str) -> None:
    job = wire.job(
        pool,
        job_preparation_task=m.BatchJobPreparationTask(command_line="/bin/true"),
        job_release_task=m.BatchJobReleaseTask(command_line="/bin/sleep 5"),
    )
    wire.run(job, "/bin/true")
    wire.client.begin_delete_job(job, polling_interval=1)
    assert wire.client.get_job(job).state == "deleting"
    again = m.BatchJobCreateOptions(id=job, pool_info=m.BatchPoolInfo(pool_id=pool))
    for refuse in (
        lambda: wire.client.create_job(again),
        lambda: wire.client.begin_delete_job(job, polling_interval=1),
    ):
        with pytest.raises(HttpResponseError) as caught:
            refuse()
        assert refused(caught.value) == (409, "JobBeingDeleted")
