"""What is kept and shown of tasks once they ran: files, statistics, the tasks a node had last, changed constraints."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.wire import Wire


def refused(error: HttpResponseError) -> tuple[int | None, str]:
    """Status and code of an error."""
    assert error.error is not None
    return error.status_code, str(error.error.code)


def kept_for(seconds: float) -> m.BatchTaskConstraints:
    """Constraints with a retention time."""
    return m.BatchTaskConstraints(retention_time=datetime.timedelta(seconds=seconds))


def directory(wire: Wire, task: m.BatchTask) -> Path:
    """A task's directory on this machine."""
    assert task.node_info is not None
    return wire.root(task.node_info.node_id) / str(task.node_info.task_root_directory)


@pytest.mark.as_user
def test_directory_goes_when_its_time_is_over(wire: Wire, job: str) -> None:
    short = wire.run(job, "/bin/echo short", constraints=kept_for(0.3))
    usual = wire.run(job, "/bin/echo usual")
    wire.until(lambda: not directory(wire, short).exists())
    with pytest.raises(HttpResponseError) as caught:
        wire.text(job, short.id)
    assert caught.value.status_code == 409
    with pytest.raises(HttpResponseError) as caught:
        list(wire.client.list_task_files(job, short.id))
    assert refused(caught.value) == (409, "TaskFilesCleanedup")
    assert wire.client.get_task(job, short.id).state == "completed"
    assert wire.text(job, usual.id) == "usual\n"


def test_directory_of_a_second_run_has_its_time_of_its_own(wire: Wire, job: str, tmp_path: Path) -> None:
    again, gate = tmp_path / "again", tmp_path / "gate"
    command = f"/bin/sh -c 'test -e {again} && until test -e {gate}; do sleep 0.02; done; exit 1'"
    first = wire.run(job, command, constraints=kept_for(0.4))
    again.touch()
    wire.client.reactivate_task(job, first.id)
    second = wire.state(job, first.id, "running")
    ended = first.execution_info
    assert ended is not None
    assert ended.end_time is not None
    passed = ended.end_time + datetime.timedelta(seconds=0.6)
    wire.until(lambda: datetime.datetime.now(datetime.UTC) > passed and directory(wire, second).exists())
    gate.touch()
    wire.state(job, first.id, "completed")
    wire.until(lambda: not directory(wire, second).exists())


def test_directories_are_removed_after_a_restart(own: Callable[[], Wire]) -> None:
    wire = own()
    job = wire.job(wire.pool(1))
    task = wire.run(job, "/bin/true", constraints=kept_for(1.5))
    kept = wire.run(job, "/bin/true", constraints=kept_for(3600))
    wire.service.stop()
    again = own()
    again.until(lambda: not directory(wire, task).exists(), timeout=30)
    assert directory(wire, kept).exists()


def test_statistics_are_shown_where_they_are_asked_for(wire: Wire, pool: str) -> None:
    job = wire.job(pool)
    task = wire.run(job, "/bin/sleep 0.3")
    wire.run(job, "/bin/false", constraints=m.BatchTaskConstraints(max_task_retry_count=2))
    assert task.task_statistics is None
    stats = wire.client.get_task(job, task.id, expand=["stats"]).task_statistics
    assert stats is not None
    assert stats.wall_clock_time >= datetime.timedelta(seconds=0.25)
    assert stats.wait_time >= datetime.timedelta(0)
    assert str(stats.url).endswith(f"/tasks/{task.id}/stats")
    listed = {one.id: one.task_statistics for one in wire.client.list_tasks(job, expand=["stats"])}
    assert all(listed.values())
    of_job = wire.client.get_job(job, expand=["stats"]).job_statistics
    assert of_job is not None
    counted = (of_job.succeeded_tasks_count, of_job.failed_tasks_count, of_job.task_retries_count)
    assert counted == (1, 1, 2)
    assert of_job.wall_clock_time >= stats.wall_clock_time
    assert wire.client.get_job(job).job_statistics is None


def test_node_shows_the_tasks_it_had_last(wire: Wire) -> None:
    pool = wire.pool(1)
    job = wire.job(pool)
    tasks = [wire.run(job, "/bin/false" if number == 3 else "/bin/true").id for number in range(12)]
    (node,) = wire.client.list_nodes(pool)
    recent = node.recent_tasks
    assert recent is not None
    assert [one.task_id for one in recent] == list(reversed(tasks))[:10]
    assert {(one.job_id, one.task_state) for one in recent} == {(job, "completed")}
    assert recent[8].execution_info is not None
    assert recent[8].execution_info.exit_code == 1
    assert str(recent[0].task_url).endswith(f"/jobs/{job}/tasks/{tasks[-1]}")
    wire.client.delete_task(job, tasks[-1])
    again = wire.client.get_node(pool, node.id).recent_tasks
    assert again is not None
    assert tasks[-1] not in [one.task_id for one in again]
    wire.client.begin_delete_pool(pool, polling_interval=1)


def test_replaced_constraints_hold_for_the_next_run(wire: Wire, tmp_path: Path) -> None:
    pool = wire.name("late")
    job = wire.job(pool)
    task = wire.add(job, "/bin/false", constraints=m.BatchTaskConstraints(max_task_retry_count=5))
    body: Any = {"constraints": {"maxTaskRetryCount": 1, "retentionTime": "PT1H"}}
    before = wire.client.get_task(job, task).etag
    wire.client.replace_task(job, task, body)
    changed = wire.client.get_task(job, task)
    assert changed.etag != before
    assert changed.constraints is not None
    assert changed.constraints.retention_time == datetime.timedelta(hours=1)
    wire.client.create_pool(wire.pool_options(pool))
    ended = wire.state(job, task, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.retry_count == 1
    with pytest.raises(HttpResponseError) as caught:
        wire.client.replace_task(job, task, body)
    assert refused(caught.value) == (409, "TaskCompleted")
    wire.client.begin_delete_pool(pool, polling_interval=1)


def test_reactivated_task_begins_from_nothing(wire: Wire, pool: str) -> None:
    job = wire.job(pool)
    task = wire.run(job, "/bin/false", constraints=m.BatchTaskConstraints(max_task_retry_count=1))
    options = m.BatchJobDisableOptions(disable_tasks="requeue")
    wire.client.begin_disable_job(job, options, polling_interval=0).wait()
    wire.client.reactivate_task(job, task.id)
    waiting = wire.client.get_task(job, task.id)
    info = waiting.execution_info
    assert info is not None
    assert (waiting.state, waiting.previous_state) == ("active", "completed")
    assert (info.exit_code, info.failure_info, info.result, info.retry_count) == (None, None, None, 0)
    with pytest.raises(HttpResponseError) as caught:
        wire.client.reactivate_task(job, task.id)
    assert refused(caught.value) == (409, "TaskNotCompleted")
    wire.client.begin_enable_job(job, polling_interval=0).wait()
    again = wire.state(job, task.id, "completed")
    assert again.execution_info is not None
    assert again.execution_info.retry_count == 1
    good = wire.run(job, "/bin/true")
    with pytest.raises(HttpResponseError) as caught:
        wire.client.reactivate_task(job, good.id)
    assert refused(caught.value) == (409, "TaskSucceeded")
    wire.terminate(job)
    with pytest.raises(HttpResponseError) as caught:
        wire.client.reactivate_task(job, task.id)
    assert refused(caught.value) == (409, "JobCompleted")


@pytest.mark.as_user
def test_named_user_is_accepted_and_shown(wire: Wire) -> None:
    accounts = [m.UserAccount(name="worker", password="secret", elevation_level="admin")]
    pool = wire.pool(1, user_accounts=accounts)
    job = wire.job(pool)
    task = wire.run(job, "/bin/sh -c 'id -u'", user_identity=m.UserIdentity(username="worker"))
    assert task.execution_info is not None
    assert task.execution_info.result == "success"
    assert task.user_identity is not None
    assert task.user_identity.username == "worker"
    # There is one user here, that of the service, whatever identity a task asks for.
    assert wire.text(job, task.id) == f"{os.getuid()}\n"
    wire.client.begin_delete_pool(pool, polling_interval=1)
