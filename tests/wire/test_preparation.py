"""Job preparation and release tasks, and what a failed preparation does (azure-notes.md, trap 1)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

if TYPE_CHECKING:
    from tests.support.web import Web
    from tests.support.wire import Wire


def prepared(wire: Wire, pool: str, command: str, release: str | None = None, **more: Any) -> str:
    """A job with a preparation, and perhaps a release task."""
    options: dict[str, Any] = {"job_preparation_task": m.BatchJobPreparationTask(command_line=command, **more)}
    if release:
        options["job_release_task"] = m.BatchJobReleaseTask(command_line=release)
    return wire.job(pool, **options)


def statuses(wire: Wire, job: str) -> list[m.BatchJobPreparationAndReleaseTaskStatus]:
    """What the preparation and release tasks did on each node."""
    return list(wire.client.list_job_preparation_and_release_task_status(job))


def test_preparation_runs_once_on_a_node_before_the_first_task(wire: Wire) -> None:
    pool = wire.pool(1, 2)
    job = prepared(wire, pool, "/bin/sh -c 'echo once >> count; sleep 0.2'")
    command = "/bin/sh -c 'cat $AZ_BATCH_JOB_PREP_WORKING_DIR/count; echo $AZ_BATCH_JOB_PREP_DIR'"
    tasks = [wire.add(job, command) for _ in range(3)]
    assert {wire.client.get_task(job, task).state for task in tasks[:2]} <= {"preparing", "active"}
    for task in tasks:
        wire.state(job, task, "completed")
        text = wire.text(job, task).splitlines()
        assert text[0] == "once"
        assert text[1].endswith(f"workitems/{job}/job-1/jobpreparation")
    (status,) = statuses(wire, job)
    info = status.job_preparation_task_execution_info
    assert info is not None
    assert (info.state, info.result, info.exit_code, info.retry_count) == ("completed", "success", 0, 0)
    assert info.task_root_directory == f"workitems/{job}/job-1/jobpreparation"
    assert status.job_release_task_execution_info is None
    assert status.pool_id == pool
    path = f"{info.task_root_directory}/wd/count"
    assert b"".join(wire.client.download_node_file(pool, str(status.node_id), path)) == b"once\n"
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_task_is_preparing_meanwhile(wire: Wire) -> None:
    pool = wire.pool(1)
    job = prepared(wire, pool, "/bin/sleep 60")
    task = wire.add(job, "/bin/true")
    preparing = wire.state(job, task, "preparing")
    assert preparing.node_info is not None
    assert wire.client.get_job_task_counts(job).task_counts.running == 1
    wire.client.terminate_task(job, task)
    ended = wire.state(job, task, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.failure_info is not None
    assert ended.execution_info.failure_info.code == "TaskEnded"
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_preparing_task_ends_with_its_job(wire: Wire, pool: str) -> None:
    job = prepared(wire, pool, "/bin/sleep 60")
    task = wire.add(job, "/bin/true")
    wire.state(job, task, "preparing")
    wire.terminate(job)
    wire.job_state(job, "completed")
    ended = wire.state(job, task, "completed").execution_info
    assert ended is not None
    assert ended.failure_info is not None
    assert (ended.failure_info.code, ended.exit_code) == ("TaskEnded", None)
    (status,) = statuses(wire, job)
    assert status.job_preparation_task_execution_info is not None
    assert status.job_preparation_task_execution_info.state == "completed"


def test_failed_preparation_leaves_the_task_active_and_bars_the_node(wire: Wire) -> None:
    pool = wire.pool(1)
    job = prepared(
        wire,
        pool,
        "/bin/sh -c 'echo x >> tries; echo no luck >&2; exit 3'",
        constraints=m.BatchTaskConstraints(max_task_retry_count=1),
    )
    wire.client.update_job(job, m.BatchJobUpdateOptions(priority=100))
    task = wire.add(job, "/bin/true")

    def failed() -> m.BatchJobPreparationTaskExecutionInfo | None:
        found = statuses(wire, job)
        info = found[0].job_preparation_task_execution_info if found else None
        return info if info is not None and info.state == "completed" else None

    info = wire.until(failed)
    assert info is not None
    assert (info.exit_code, info.result, info.retry_count) == (3, "failure", 1)
    waiting = wire.state(job, task, "active")
    assert waiting.previous_state == "preparing"
    assert waiting.execution_info is not None
    assert waiting.execution_info.result is None
    # The node is good for other jobs, and stays barred for this one.
    wire.run(wire.job(pool), "/bin/true")
    assert wire.client.get_task(job, task).state == "active"
    assert wire.client.get_job(job).state == "active"
    node = next(iter(wire.client.list_nodes(pool)))
    directory = info.task_root_directory
    assert b"".join(wire.client.download_node_file(pool, node.id, f"{directory}/stderr.txt")) == b"no luck\n"
    # A node that is not barred takes the task up: here the preparation fails as well.
    wire.client.begin_resize_pool(pool, m.BatchPoolResizeOptions(target_dedicated_nodes=2), polling_interval=0).wait()
    wire.until(lambda: len(statuses(wire, job)) == 2)
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_failed_download_of_a_preparation_is_not_retried(wire: Wire, web: Web) -> None:
    pool = wire.pool(1)
    job = prepared(
        wire,
        pool,
        "/bin/true",
        resource_files=[m.ResourceFile(http_url=f"{web.url}/gone?sig=secret", file_path="input")],
        constraints=m.BatchTaskConstraints(max_task_retry_count=5),
    )
    task = wire.add(job, "/bin/true")
    wire.until(
        lambda: (
            (found := statuses(wire, job))
            and (info := found[0].job_preparation_task_execution_info)
            and info.state == "completed"
        )
    )
    info = statuses(wire, job)[0].job_preparation_task_execution_info
    assert info is not None
    assert info.failure_info is not None
    assert (info.result, info.exit_code, info.retry_count) == ("failure", None, 0)
    assert info.failure_info.code == "BlobNotFound"
    assert "secret" not in str(info.as_dict())
    assert web.asked == ["/gone"]
    wire.state(job, task, "active")
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_preparation_ends_with_the_jobs_stay_in_its_pool(wire: Wire, tmp_path: Path) -> None:
    there, elsewhere = wire.pool(1), wire.pool(1)
    job = prepared(wire, there, f"/bin/sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60'")
    wire.add(job, "/bin/true")
    process = psutil.Process(int(wire.until(lambda: "".join(file.read_text() for file in tmp_path.iterdir()))))
    disable = m.BatchJobDisableOptions(disable_tasks="requeue")
    wire.client.begin_disable_job(job, disable, polling_interval=0).wait()
    wire.client.update_job(job, m.BatchJobUpdateOptions(pool_info=m.BatchPoolInfo(pool_id=elsewhere)))
    wire.until(lambda: not process.is_running())
    assert statuses(wire, job) == []
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    # A node is prepared afresh for the next one.
    assert wire.run(prepared(wire, there, "/bin/true"), "/bin/true").execution_info.exit_code == 0  # type: ignore[union-attr]


def test_preparation_need_not_be_waited_for(wire: Wire, pool: str) -> None:
    job = prepared(wire, pool, "/bin/sleep 60", wait_for_success=False)
    wire.run(job, "/bin/true")
    wire.client.begin_delete_job(job, polling_interval=0).wait()


def test_release_runs_where_the_preparation_ran(wire: Wire) -> None:
    pool = wire.pool(2)
    release = "/bin/sh -c 'echo $AZ_BATCH_TASK_ID $AZ_BATCH_JOB_PREP_DIR > $AZ_BATCH_NODE_SHARED_DIR/released'"
    job = prepared(wire, pool, "/bin/true", release)
    task = wire.run(job, "/bin/true")
    assert task.node_info is not None
    wire.terminate(job)
    (status,) = statuses(wire, job)
    assert status.node_id == task.node_info.node_id
    info = status.job_release_task_execution_info
    assert info is not None
    assert (info.state, info.result, info.exit_code) == ("completed", "success", 0)
    text = b"".join(wire.client.download_node_file(pool, str(status.node_id), "shared/released")).decode()
    assert text.startswith("jobrelease /")
    assert text.endswith("jobpreparation\n")
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_release_runs_when_an_active_job_is_deleted(wire: Wire) -> None:
    pool = wire.pool(1)
    job = prepared(wire, pool, "/bin/true", "/bin/sh -c 'echo gone > $AZ_BATCH_NODE_SHARED_DIR/released'")
    task = wire.run(job, "/bin/true")
    assert task.node_info is not None
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    node = str(task.node_info.node_id)
    assert b"".join(wire.client.download_node_file(pool, node, "shared/released")) == b"gone\n"
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_job_without_preparation_has_no_status(wire: Wire, job: str) -> None:
    with pytest.raises(HttpResponseError) as caught:
        statuses(wire, job)
    assert caught.value.status_code == 409
    assert "JobPreparationTaskNotSpecified" in str(caught.value)


def test_ids_of_preparation_and_release_are_taken(wire: Wire, pool: str) -> None:
    job = prepared(wire, pool, "/bin/true", "/bin/true")
    for name, code in (
        ("JobPreparation", "TaskIdSameAsJobPreparationTask"),
        ("jobrelease", "TaskIdSameAsJobReleaseTask"),
    ):
        with pytest.raises(HttpResponseError) as caught:
            wire.add(job, "/bin/true", id=name)
        assert code in str(caught.value)
