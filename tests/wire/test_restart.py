"""What a killed service finds again, and what it makes of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from azure.batch import models as m
from azure.core.exceptions import ResourceNotFoundError

if TYPE_CHECKING:
    from tests.wire.conftest import Wire


def crash(wire: Wire) -> None:
    """Kill the service, and nothing else."""
    process = psutil.Process(wire.service.pid)
    os.kill(wire.service.pid, signal.SIGKILL)
    process.wait(10)


def processes(task: str) -> list[psutil.Process]:
    """The processes of a task that are alive."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("AZ_BATCH_TASK_ID") == task and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_everything_acknowledged_is_there_after_a_crash(own: Callable[[], Wire]) -> None:
    wire = own()
    pool = wire.pool(2, 2, metadata=[m.BatchMetadataItem(name="a", value="1")])
    ids = {node.id for node in wire.client.list_nodes(pool)}
    job = wire.job(pool, priority=9)
    done, failed = wire.run(job, "/bin/echo kept"), wire.run(job, "/bin/sh -c 'exit 9'")
    name = wire.name("job")
    wire.client.create_job(m.BatchJobCreateOptions(id=name, pool_info=m.BatchPoolInfo(pool_id="later")))
    waiting = wire.add(name, "/bin/true")
    # Acknowledged, and nothing after it.
    wire.client.update_job(name, m.BatchJobUpdateOptions(priority=-3))
    crash(wire)

    wire = own()
    client = wire.client
    assert {node.id for node in wire.nodes(pool, 2, "idle")} == ids
    found = client.get_pool(pool)
    assert (found.target_dedicated_nodes, found.task_slots_per_node) == (2, 2)
    assert found.metadata is not None
    assert client.get_job(job).priority == 9
    again = client.get_task(job, done.id)
    assert again.as_dict()["executionInfo"] == done.as_dict()["executionInfo"]
    assert (again.etag, again.creation_time) == (done.etag, done.creation_time)
    assert wire.text(job, done.id) == "kept\n"
    info = client.get_task(job, failed.id).execution_info
    assert info is not None
    assert (info.exit_code, info.result) == (9, "failure")
    assert client.get_job(name).priority == -3
    assert client.get_task(name, waiting).state == "active"
    counts = client.get_job_task_counts(job).task_counts
    assert (counts.completed, counts.succeeded, counts.failed) == (2, 1, 1)
    wire.run(job, "/bin/true")


def test_running_tasks_are_queued_again_and_their_processes_are_gone(own: Callable[[], Wire]) -> None:
    wire = own()
    pool = wire.pool(1)
    job = wire.job(pool)
    # The first run leaves a mark on the node and stays; the second one finds it and ends.
    mark = "$AZ_BATCH_NODE_SHARED_DIR/mark"
    command = f"/bin/sh -c 'test -e {mark} && exec echo again; touch {mark}; setsid sleep 621 & sleep 622'"
    task = wire.add(job, command)
    wire.state(job, task, "running")
    wire.until(lambda: len(processes(task)) == 3)
    old = processes(task)
    crash(wire)
    assert [process.is_running() for process in old] == [True] * 3

    wire = own()
    completed = wire.state(job, task, "completed")
    assert not [process for process in old if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert wire.text(job, task) == "again\n"
    info = completed.execution_info
    assert info is not None
    assert (info.exit_code, info.retry_count, info.requeue_count) == (0, 0, 0)


def test_start_task_and_preparation_run_again_as_after_a_reboot(own: Callable[[], Wire]) -> None:
    wire = own()
    pool = wire.pool(
        1, start_task=m.BatchStartTask(command_line="/bin/sh -c 'echo x >> $AZ_BATCH_NODE_SHARED_DIR/starts'")
    )
    once = m.BatchJobPreparationTask(
        command_line="/bin/sh -c 'echo x >> $AZ_BATCH_NODE_SHARED_DIR/once'", rerun_on_node_reboot_after_success=False
    )
    each = m.BatchJobPreparationTask(command_line="/bin/sh -c 'echo x >> $AZ_BATCH_NODE_SHARED_DIR/each'")
    jobs = [wire.job(pool, job_preparation_task=preparation) for preparation in (once, each)]
    for job in jobs:
        wire.run(job, "/bin/true")
    crash(wire)

    wire = own()
    node = wire.nodes(pool, 1, "idle")[0]
    for job in jobs:
        wire.run(job, "/bin/true")
    for name, times in (("starts", 2), ("once", 1), ("each", 2)):
        text = b"".join(wire.client.download_node_file(pool, node.id, f"shared/{name}"))
        assert text == b"x\n" * times, name


def test_barred_node_stays_barred(own: Callable[[], Wire]) -> None:
    wire = own()
    pool = wire.pool(1)
    job = wire.job(pool, job_preparation_task=m.BatchJobPreparationTask(command_line="/bin/false"))
    task = wire.add(job, "/bin/true")

    def results(wire: Wire) -> list[str | None]:
        found = wire.client.list_job_preparation_and_release_task_status(job)
        infos = [status.job_preparation_task_execution_info for status in found]
        return [info.result for info in infos if info is not None and info.state == "completed"]

    wire.until(lambda: results(wire) == ["failure"])
    wire.state(job, task, "active")
    crash(wire)
    wire = own()
    wire.nodes(pool, 1, "idle")
    wire.run(wire.job(pool), "/bin/true")
    assert results(wire) == ["failure"]
    assert wire.client.get_task(job, task).state == "active"


def test_endings_that_were_begun_are_ended(own: Callable[[], Wire]) -> None:
    wire = own()
    pool = wire.pool(1)
    release = m.BatchJobReleaseTask(command_line="/bin/sh -c 'test -e $AZ_BATCH_NODE_SHARED_DIR/go || sleep 60'")
    preparation = m.BatchJobPreparationTask(command_line="/bin/true")
    jobs = [wire.job(pool, job_preparation_task=preparation, job_release_task=release) for _ in range(2)]
    for job in jobs:
        wire.run(job, "/bin/true")
    wire.client.begin_delete_job(jobs[0])
    options: Any = {"terminateReason": "enough"}
    wire.client.begin_terminate_job(jobs[1], options)
    assert wire.client.get_job(jobs[0]).state == "deleting"
    assert wire.client.get_job(jobs[1]).state == "terminating"
    node = next(iter(wire.client.list_nodes(pool))).id
    crash(wire)
    (wire.service.data / "nodes" / node / "shared" / "go").touch()

    wire = own()
    wire.job_state(jobs[1], "completed")

    def gone() -> bool:
        try:
            wire.client.get_job(jobs[0])
        except ResourceNotFoundError:
            return True
        return False

    wire.until(gone)


def test_pool_that_was_being_deleted_is_deleted(own: Callable[[], Wire]) -> None:
    wire = own()
    name = wire.pool(2)
    wire.client.begin_delete_pool(name)
    crash(wire)
    wire = own()

    def gone() -> bool:
        try:
            wire.client.get_pool(name)
        except ResourceNotFoundError:
            return True
        return False

    wire.until(gone)
    wire.until(lambda: list((wire.service.data / "nodes").iterdir()) == [])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stop_is_quick_and_leaves_no_process(own: Callable[[], Wire], how: signal.Signals) -> None:
    wire = own()
    pool = wire.pool(1, 2)
    job = wire.job(pool)
    tasks = [wire.add(job, "/bin/sh -c 'trap \"\" TERM INT; setsid sleep 631 & sleep 632'") for _ in range(2)]
    for task in tasks:
        wire.state(job, task, "running")
        wire.until(lambda task=task: len(processes(task)) == 3)  # type: ignore[misc]
    service = psutil.Process(wire.service.pid)
    os.kill(wire.service.pid, how)
    assert service.wait(5) == 0
    assert not [process for task in tasks for process in processes(task)]
    wire = own()
    for task in tasks:
        wire.state(job, task, "running")
