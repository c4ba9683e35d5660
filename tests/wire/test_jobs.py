"""Jobs: created, changed, ended by a client, a clock or their own tasks."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

if TYPE_CHECKING:
    from tests.support.wire import Wire


def code_of(error: HttpResponseError) -> str:
    """The error's code."""
    assert error.error is not None
    return str(error.error.code)


def test_job_comes_back_as_it_was_created_with_defaults(wire: Wire, pool: str) -> None:
    name = wire.job(
        pool,
        priority=7,
        display_name="a job",
        metadata=[m.BatchMetadataItem(name="dag_id", value="d")],
        constraints=m.BatchJobConstraints(max_wall_clock_time=datetime.timedelta(days=7)),
    )
    job = wire.client.get_job(name)
    assert (job.state, job.priority, job.display_name) == ("active", 7, "a job")
    assert job.metadata is not None
    assert (job.metadata[0].name, job.metadata[0].value) == ("dag_id", "d")
    assert job.constraints is not None
    assert job.constraints.max_wall_clock_time == datetime.timedelta(days=7)
    assert job.constraints.max_task_retry_count == 0
    assert (job.all_tasks_complete_mode, job.task_failure_mode) == ("noaction", "noaction")
    assert (job.max_parallel_tasks, job.allow_task_preemption, job.uses_task_dependencies) == (-1, False, False)
    assert job.pool_info.pool_id == pool
    assert job.execution_info is not None
    assert job.execution_info.pool_id == pool
    assert job.execution_info.end_time is None


def test_update_keeps_what_is_not_sent_and_replace_does_not(wire: Wire, pool: str) -> None:
    name = wire.job(pool, priority=3, metadata=[m.BatchMetadataItem(name="a", value="1")])
    wire.client.update_job(name, m.BatchJobUpdateOptions(priority=4))
    updated = wire.client.get_job(name)
    assert (updated.priority, len(updated.metadata or [])) == (4, 1)
    body: Any = {"poolInfo": {"poolId": pool}, "onAllTasksComplete": "noaction"}
    wire.client.replace_job(name, body)
    replaced = wire.client.get_job(name)
    assert (replaced.priority, replaced.metadata) == (0, None)


def test_terminated_job_keeps_its_tasks_and_takes_no_more(wire: Wire) -> None:
    pool = wire.pool(1)
    job = wire.job(pool)
    running = wire.add(job, "/bin/sleep 60")
    wire.state(job, running, "running")
    waiting = wire.add(job, "/bin/true")
    wire.terminate(job, "I say so")
    ended = wire.job_state(job, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.termination_reason == "I say so"
    assert ended.execution_info.end_time is not None
    assert ended.previous_state == "terminating"
    killed = wire.client.get_task(job, running)
    assert killed.execution_info is not None
    assert killed.execution_info.failure_info is not None
    assert (killed.state, killed.execution_info.failure_info.code) == ("completed", "TaskEnded")
    assert wire.client.get_task(job, waiting).state == "active"
    with pytest.raises(HttpResponseError) as caught:
        wire.add(job, "/bin/true")
    assert (caught.value.status_code, code_of(caught.value)) == (409, "JobCompleted")
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_deleted_job_is_gone_with_its_processes_and_files(wire: Wire, pool: str) -> None:
    job = wire.job(pool)
    task = wire.add(job, "/bin/sleep 60")
    info = wire.state(job, task, "running").node_info
    assert info is not None
    directory = wire.root(info.node_id) / "workitems" / job
    wire.until(directory.is_dir)  # a task is running as soon as its node has it
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    with pytest.raises(ResourceNotFoundError):
        wire.client.get_job(job)
    assert not directory.exists()
    node = wire.client.get_node(pool, str(info.node_id))
    assert node.running_tasks_count == 0


def test_wall_clock_ends_a_job(wire: Wire, pool: str) -> None:
    constraints = m.BatchJobConstraints(max_wall_clock_time=datetime.timedelta(seconds=0.5))
    job = wire.job(pool, constraints=constraints)
    task = wire.add(job, "/bin/sleep 60")
    ended = wire.job_state(job, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.termination_reason == "MaxWallClockTimeExpiry"
    assert wire.client.get_task(job, task).state == "completed"


def test_job_ends_with_its_last_task_once_it_is_told_to(wire: Wire, pool: str) -> None:
    job = wire.job(pool)
    wire.run(job, "/bin/true")
    wire.run(job, "/bin/false")
    assert wire.client.get_job(job).state == "active"
    late = wire.add(job, "/bin/sleep 0.2")
    wire.client.update_job(job, m.BatchJobUpdateOptions(all_tasks_complete_mode="terminatejob"))
    ended = wire.job_state(job, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.termination_reason == "AllTasksComplete"
    assert wire.client.get_task(job, late).state == "completed"


def test_empty_job_counts_as_complete(wire: Wire, pool: str) -> None:
    job = wire.job(pool, all_tasks_complete_mode="terminatejob")
    ended = wire.job_state(job, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.termination_reason == "AllTasksComplete"


def test_failed_task_ends_its_job_where_exit_options_count(wire: Wire, pool: str) -> None:
    job = wire.job(pool, task_failure_mode="performexitoptionsjobaction")
    spared = m.ExitConditions(
        exit_codes=[m.ExitCodeMapping(code=4, exit_options=m.ExitOptions(job_action="none"))],
        exit_code_ranges=[m.ExitCodeRangeMapping(start=10, end=20, exit_options=m.ExitOptions(job_action="none"))],
    )
    wire.run(job, "/bin/sh -c 'exit 4'", exit_conditions=spared)
    wire.run(job, "/bin/sh -c 'exit 15'", exit_conditions=spared)
    assert wire.client.get_job(job).state == "active"
    wire.run(job, "/bin/sh -c 'exit 5'", exit_conditions=spared)
    ended = wire.job_state(job, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.termination_reason == "TaskFailed"


def test_job_action_needs_a_job_that_performs_it(wire: Wire, job: str) -> None:
    conditions = m.ExitConditions(default=m.ExitOptions(job_action="terminate"))
    with pytest.raises(HttpResponseError) as caught:
        wire.add(job, "/bin/true", exit_conditions=conditions)
    assert (caught.value.status_code, code_of(caught.value)) == (400, "InvalidPropertyValue")


def test_disabled_job_runs_nothing_until_it_is_enabled(wire: Wire, pool: str) -> None:
    job = wire.job(pool)
    running = wire.add(job, "/bin/sleep 60")
    wire.state(job, running, "running")
    options = m.BatchJobDisableOptions(disable_tasks="requeue")
    wire.client.begin_disable_job(job, options, polling_interval=0).wait()
    assert wire.client.get_job(job).state == "disabled"
    assert wire.client.get_task(job, running).state == "active"
    added = wire.add(job, "/bin/true")
    assert wire.client.get_task(job, added).state == "active"
    wire.client.begin_enable_job(job, polling_interval=0).wait()
    wire.state(job, added, "completed")
    wire.state(job, running, "running")
    wire.client.begin_disable_job(job, m.BatchJobDisableOptions(disable_tasks="terminate"), polling_interval=0).wait()
    wire.state(job, running, "completed")
    wire.client.begin_delete_job(job, polling_interval=0).wait()


def test_counts(wire: Wire) -> None:
    pool = wire.pool(1, 2)
    job = wire.job(pool)
    wire.run(job, "/bin/true")
    wire.run(job, "/bin/false")
    running = wire.add(job, "/bin/sleep 60", required_slots=2)
    wire.state(job, running, "running")
    wire.add(job, "/bin/true")
    counts = wire.client.get_job_task_counts(job)
    tasks, slots = counts.task_counts, counts.task_slot_counts
    assert (tasks.active, tasks.running, tasks.completed, tasks.succeeded, tasks.failed) == (1, 1, 2, 1, 1)
    assert (slots.active, slots.running, slots.completed) == (1, 2, 2)
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_higher_priority_goes_first(wire: Wire) -> None:
    pool = wire.pool(1)
    blocker = wire.job(pool)
    hold = wire.add(blocker, "/bin/sleep 60")
    wire.state(blocker, hold, "running")
    low, high = wire.job(pool, priority=-5), wire.job(pool, priority=5)
    second, first = wire.add(low, "/bin/true"), wire.add(high, "/bin/true")
    wire.client.terminate_task(blocker, hold)
    later, sooner = wire.state(low, second, "completed"), wire.state(high, first, "completed")
    assert later.execution_info is not None
    assert sooner.execution_info is not None
    assert sooner.execution_info.end_time is not None
    assert later.execution_info.start_time is not None
    assert sooner.execution_info.end_time <= later.execution_info.start_time
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_parallel_tasks_can_be_limited(wire: Wire, pool: str) -> None:
    job = wire.job(pool, max_parallel_tasks=1)
    first, second = wire.add(job, "/bin/sleep 60"), wire.add(job, "/bin/true")
    wire.state(job, first, "running")
    assert wire.client.get_task(job, second).state == "active"
    wire.client.delete_task(job, first)
    wire.state(job, second, "completed")


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        ({"priority": 1001}, 400, "priority"),
        ({"max_parallel_tasks": 0}, 400, "maxParallelTasks"),
        ({"job_release_task": m.BatchJobReleaseTask(command_line="/bin/true")}, 400, "jobPreparationTask"),
        (
            {
                "job_preparation_task": m.BatchJobPreparationTask(command_line="x"),
                "job_release_task": m.BatchJobReleaseTask(
                    command_line="x", max_wall_clock_time=datetime.timedelta(minutes=16)
                ),
            },
            400,
            "15 minutes",
        ),
    ],
)
def test_jobs_that_cannot_be(wire: Wire, pool: str, more: dict[str, Any], status: int, said: str) -> None:
    with pytest.raises(HttpResponseError) as caught:
        wire.job(pool, **more)
    assert caught.value.status_code == status
    assert said in str(caught.value)


def test_directories_that_a_task_locked_are_removed(wire: Wire) -> None:
    pool = wire.pool(1)
    job = wire.job(pool)
    task = wire.run(job, "/bin/sh -c 'mkdir -p a/b; touch a/b/c; chmod 0 a/b a; ln -s /etc link'")
    info = task.node_info
    assert info is not None
    directory = wire.root(info.node_id) / str(info.task_root_directory)
    assert directory.is_dir()
    wire.client.delete_task(job, task.id)
    assert not directory.exists()
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()
