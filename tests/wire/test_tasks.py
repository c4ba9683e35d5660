"""Tasks: their states, retries, clocks, slots, and the ways they end."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import psutil
import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

if TYPE_CHECKING:
    from tests.support.wire import Wire


def info_of(task: m.BatchTask) -> m.BatchTaskExecutionInfo:
    """How a task went."""
    assert task.execution_info is not None
    return task.execution_info


def failure_of(task: m.BatchTask) -> m.BatchTaskFailureInfo:
    """Why a task failed."""
    failure = info_of(task).failure_info
    assert failure is not None
    return failure


def code_of(error: HttpResponseError) -> str:
    """The error's code."""
    assert error.error is not None
    return str(error.error.code)


def test_success(wire: Wire, pool: str, job: str) -> None:
    task = wire.run(job, "/bin/echo hello", display_name="said")
    info = info_of(task)
    assert (info.exit_code, info.result, info.failure_info) == (0, "success", None)
    assert (info.retry_count, info.requeue_count) == (0, 0)
    assert info.start_time is not None
    assert info.end_time is not None
    assert task.creation_time <= info.start_time <= info.end_time
    assert (task.previous_state, task.display_name, task.required_slots) == ("running", "said", 1)
    assert task.node_info is not None
    assert task.node_info.pool_id == pool
    assert task.node_info.task_root_directory == f"workitems/{job}/job-1/{task.id}"
    assert task.constraints is not None
    assert task.constraints.retention_time == datetime.timedelta(days=7)
    assert task.constraints.max_task_retry_count == 0
    assert task.user_identity is not None
    assert task.user_identity.auto_user is not None
    assert task.user_identity.auto_user.scope == "pool"
    assert wire.text(job, task.id) == "hello\n"
    assert wire.text(job, task.id, "stderr.txt") == ""


def test_every_writable_property_comes_back(wire: Wire, job: str) -> None:
    asked = m.BatchTaskCreateOptions(
        id=wire.name("task"),
        command_line="/bin/true",
        display_name="d",
        environment_settings=[m.EnvironmentSetting(name="A", value="1"), m.EnvironmentSetting(name="B", value="")],
        affinity_info=m.BatchAffinityInfo(affinity_id="nowhere"),
        constraints=m.BatchTaskConstraints(
            max_wall_clock_time=datetime.timedelta(hours=1),
            retention_time=datetime.timedelta(hours=2),
            max_task_retry_count=3,
        ),
        required_slots=2,
        user_identity=m.UserIdentity(auto_user=m.AutoUserSpecification(scope="task", elevation_level="admin")),
        exit_conditions=m.ExitConditions(default=m.ExitOptions(dependency_action="satisfy")),
    )
    wire.client.create_task(job, asked)
    shown = wire.state(job, asked.id, "completed").as_dict()
    sent = asked.as_dict()
    # Durations are shown in their shortest form.
    sent["constraints"] |= {"maxWallClockTime": "PT1H", "retentionTime": "PT2H"}
    for name, value in sent.items():
        assert shown[name] == value, name


def test_failure_has_its_exit_code(wire: Wire, job: str) -> None:
    task = wire.run(job, "/bin/sh -c 'echo out; echo err >&2; exit 42'")
    assert (info_of(task).exit_code, info_of(task).result) == (42, "failure")
    assert (failure_of(task).category, failure_of(task).code) == ("UserError", "FailureExitCode")
    assert wire.text(job, task.id) == "out\n"
    assert wire.text(job, task.id, "stderr.txt") == "err\n"


def test_signal_is_told_by_the_exit_code(wire: Wire, job: str) -> None:
    task = wire.run(job, "/bin/sh -c 'kill -SEGV $$'")
    assert info_of(task).exit_code == 128 + 11
    assert failure_of(task).code == "FailureExitCode"


def test_missing_program_has_no_exit_code_and_empty_output(wire: Wire, job: str) -> None:
    task = wire.run(job, "no-such-program --flag", constraints=m.BatchTaskConstraints(max_task_retry_count=3))
    assert (info_of(task).exit_code, info_of(task).retry_count) == (None, 0)
    assert failure_of(task).code == "CommandProgramNotFound"
    assert wire.text(job, task.id) == ""
    assert wire.text(job, task.id, "stderr.txt") == ""


def test_program_that_cannot_be_executed_is_told_apart(wire: Wire, job: str) -> None:
    task = wire.run(job, "/etc/passwd")
    assert failure_of(task).code == "CommandLaunchFailed"
    unbalanced = wire.run(job, "/bin/echo 'open")
    assert failure_of(unbalanced).code == "CommandLaunchFailed"


def test_retries_are_for_exit_codes(wire: Wire, job: str) -> None:
    command = "/bin/sh -c 'echo x >> $AZ_BATCH_NODE_SHARED_DIR/$AZ_BATCH_TASK_ID; exit 1'"
    # One node, so that the tries meet in one file.
    pool = wire.pool(1)
    job = wire.job(pool)
    task = wire.run(job, command, constraints=m.BatchTaskConstraints(max_task_retry_count=2))
    assert (info_of(task).retry_count, info_of(task).exit_code) == (2, 1)
    assert info_of(task).last_retry_time is not None
    assert task.node_info is not None
    path = f"shared/{task.id}"
    assert b"".join(wire.client.download_node_file(pool, str(task.node_info.node_id), path)) == b"x\n" * 3
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_retry_count_is_inherited_from_the_job(wire: Wire, pool: str) -> None:
    job = wire.job(pool, constraints=m.BatchJobConstraints(max_task_retry_count=1))
    task = wire.run(job, "/bin/false")
    assert info_of(task).retry_count == 1


def test_task_that_succeeds_at_last(wire: Wire) -> None:
    pool = wire.pool(1)
    job = wire.job(pool)
    command = "/bin/sh -c 'cd $AZ_BATCH_NODE_SHARED_DIR; echo x >> n; test $(wc -l < n) -ge 3'"
    task = wire.run(job, command, constraints=m.BatchTaskConstraints(max_task_retry_count=-1))
    assert (info_of(task).retry_count, info_of(task).result) == (2, "success")
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_wall_clock_ends_a_task(wire: Wire, job: str) -> None:
    limit = m.BatchTaskConstraints(max_wall_clock_time=datetime.timedelta(seconds=0.3), max_task_retry_count=5)
    task = wire.run(job, "/bin/sleep 60", constraints=limit)
    assert failure_of(task).code == "TaskEnded"
    assert info_of(task).retry_count == 0
    assert info_of(task).exit_code == 137


def test_terminated_task_is_ended_with_all_its_processes(wire: Wire, job: str) -> None:
    # A child, one in a session of its own, and one that has lost its parent.
    command = "/bin/sh -c 'sleep 611 & setsid sleep 612 & (setsid sleep 613 &); sleep 614'"
    task = wire.add(job, command)
    wire.state(job, task, "running")

    def sleepers() -> set[str]:
        found = set()
        for process in psutil.process_iter():
            try:
                arguments = process.cmdline()
                if arguments[:1] == ["sleep"] and process.environ().get("AZ_BATCH_TASK_ID") == task:
                    found.add(arguments[1])
            except (psutil.Error, OSError):
                continue
        return found

    wire.until(lambda: sleepers() == {"611", "612", "613", "614"})
    wire.client.terminate_task(job, task)
    ended = wire.state(job, task, "completed")
    assert failure_of(ended).code == "TaskEnded"
    wire.until(lambda: not sleepers())


def test_background_processes_of_a_task_end_with_it(wire: Wire, job: str) -> None:
    task = wire.run(job, "/bin/sh -c 'sleep 600 & echo $!'")
    assert info_of(task).result == "success"
    child = int(wire.text(job, task.id))
    wire.until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_waiting_task_that_is_terminated_never_runs(wire: Wire) -> None:
    pool = wire.pool(1)
    job = wire.job(pool)
    hold = wire.add(job, "/bin/sleep 60")
    wire.state(job, hold, "running")
    task = wire.add(job, "/bin/true")
    wire.client.terminate_task(job, task)
    ended = wire.state(job, task, "completed")
    assert (info_of(ended).start_time, info_of(ended).exit_code) == (None, None)
    assert failure_of(ended).code == "TaskEnded"
    with pytest.raises(HttpResponseError) as caught:
        list(wire.client.list_task_files(job, task))
    assert (caught.value.status_code, code_of(caught.value)) == (409, "TaskFilesUnavailable")
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_deleted_task_is_gone_with_its_files(wire: Wire, job: str) -> None:
    task = wire.add(job, "/bin/sleep 60")
    info = wire.state(job, task, "running").node_info
    assert info is not None
    directory = wire.root(info.node_id) / str(info.task_root_directory)
    wire.until(directory.is_dir)  # a task is running as soon as its node has it
    wire.client.delete_task(job, task)
    with pytest.raises(ResourceNotFoundError):
        wire.client.get_task(job, task)
    assert not directory.exists()
    counts = wire.client.get_job_task_counts(job).task_counts
    assert (counts.active, counts.running, counts.completed) == (0, 0, 0)
    # The id is free again.
    wire.run(job, "/bin/true", id=task)


def test_failed_task_can_be_run_again(wire: Wire, job: str) -> None:
    command = "/bin/sh -c 'test -e $AZ_BATCH_NODE_SHARED_DIR/good'"
    task = wire.run(job, command, constraints=m.BatchTaskConstraints(max_task_retry_count=1))
    assert info_of(task).retry_count == 1
    wire.client.reactivate_task(job, task.id)
    again = wire.state(job, task.id, "completed")
    assert info_of(again).retry_count == 1
    assert again.etag != task.etag
    running = wire.add(job, "/bin/sleep 60")
    with pytest.raises(HttpResponseError) as caught:
        wire.client.reactivate_task(job, running)
    assert code_of(caught.value) == "TaskNotCompleted"
    wire.client.delete_task(job, running)


def test_slots_limit_what_runs_at_once(wire: Wire) -> None:
    pool = wire.pool(1, 3)
    job = wire.job(pool)
    large = wire.add(job, "/bin/sleep 60", required_slots=2)
    small = wire.add(job, "/bin/sleep 60")
    blocked = wire.add(job, "/bin/true", required_slots=2)
    for task in (large, small):
        wire.state(job, task, "running")
    node = next(iter(wire.client.list_nodes(pool)))
    assert (node.state, node.running_tasks_count, node.running_task_slots_count) == ("running", 2, 3)
    assert wire.client.get_task(job, blocked).state == "active"
    wire.client.delete_task(job, large)
    wire.state(job, blocked, "completed")
    wire.client.delete_task(job, small)
    assert wire.nodes(pool, 1, "idle")[0].total_tasks_run == 1
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_spread_and_pack(wire: Wire) -> None:
    for fill, places in (("spread", 2), ("pack", 1)):
        policy = m.BatchTaskSchedulingPolicy(node_fill_type=fill)
        pool = wire.pool(2, 2, task_scheduling_policy=policy)
        job = wire.job(pool)
        tasks = [wire.add(job, "/bin/sleep 60") for _ in range(2)]
        nodes = {str((wire.state(job, task, "running").node_info or m.BatchNodeInfo()).node_id) for task in tasks}
        assert len(nodes) == places
        wire.client.begin_delete_job(job, polling_interval=0).wait()
        wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_affinity_is_followed_where_it_can_be(wire: Wire) -> None:
    pool = wire.pool(3)
    job = wire.job(pool)
    wanted = sorted(node.id for node in wire.client.list_nodes(pool))[-1]
    for _ in range(3):
        task = wire.run(job, "/bin/true", affinity_info=m.BatchAffinityInfo(affinity_id=wanted))
        assert task.node_info is not None
        assert task.node_info.node_id == wanted
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_collection_tells_each_task_by_itself(wire: Wire, job: str) -> None:
    taken = wire.run(job, "/bin/true")
    asked = [
        m.BatchTaskCreateOptions(id="good", command_line="/bin/true"),
        m.BatchTaskCreateOptions(id=taken.id, command_line="/bin/true"),
        m.BatchTaskCreateOptions(id="b d", command_line="/bin/true"),
    ]
    answer = wire.client.create_task_collection(job, m.BatchTaskGroup(task_values=asked))
    results = answer.result_values or []
    assert [result.status for result in results] == ["Success", "ClientError", "ClientError"]
    assert [result.error.code if result.error else None for result in results] == [
        None,
        "TaskExists",
        "InvalidPropertyValue",
    ]
    assert results[0].location == f"{wire.service.url}/jobs/{job}/tasks/good"
    wire.state(job, "good", "completed")


def test_constraints_can_be_replaced(wire: Wire, job: str) -> None:
    task = wire.add(job, "/bin/sleep 60")
    limit = datetime.timedelta(hours=3)
    asked = m.BatchTask(constraints=m.BatchTaskConstraints(max_wall_clock_time=limit))
    wire.client.replace_task(job, task, asked)
    shown = wire.client.get_task(job, task)
    assert shown.constraints is not None
    assert shown.constraints.max_wall_clock_time == limit
    wire.client.delete_task(job, task)
