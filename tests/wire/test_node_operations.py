"""What is done to single nodes: reboot, reimage, deallocate, scheduling, users, logs."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

if TYPE_CHECKING:
    from tests.support.web import Web
    from tests.support.wire import Wire


def code_of(error: HttpResponseError) -> str:
    """The error's code."""
    assert error.error is not None
    return str(error.error.code)


@pytest.fixture
def node(wire: Wire) -> Iterator[tuple[str, str]]:
    """A pool of one node, whose start task adds a line to a file each time."""
    start = m.BatchStartTask(command_line="/bin/sh -c 'echo started >> ../../shared/starts'")
    pool = wire.pool(1, start_task=start)
    yield pool, wire.nodes(pool, 1, "idle")[0].id
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def starts(wire: Wire, node: str) -> int:
    """How often the start task has run since the node's directory was made."""
    path = wire.root(node) / "shared" / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def reboot(wire: Wire, pool: str, node: str, option: str = "requeue") -> None:
    """Reboot a node, and wait while it is rebooting."""
    options: Any = {"nodeRebootOption": option}
    wire.client.begin_reboot_node(pool, node, options, polling_interval=0).wait()


def reimage(wire: Wire, pool: str, node: str, option: str = "requeue") -> None:
    """Reimage a node, and wait while it is reimaging."""
    options: Any = {"nodeReimageOption": option}
    wire.client.begin_reimage_node(pool, node, options, polling_interval=0).wait()


def node_state(wire: Wire, pool: str, node: str, *states: str) -> m.BatchNode:
    """The node, once it is in one of these states."""

    def look() -> m.BatchNode | None:
        found = wire.client.get_node(pool, node)
        return found if found.state in states else None

    found = wire.until(look, 30)
    assert found is not None
    return found


def test_reboot_keeps_files_and_runs_the_start_task_again(wire: Wire, node: tuple[str, str]) -> None:
    pool, name = node
    job = wire.job(pool)
    done = wire.run(job, "/bin/sh -c 'echo kept > file'")
    before = wire.client.get_node(pool, name).last_boot_time
    assert before is not None
    reboot(wire, pool, name)
    after = node_state(wire, pool, name, "idle")
    assert after.last_boot_time is not None
    assert after.last_boot_time > before
    assert starts(wire, name) == 2
    assert wire.text(job, done.id, "wd/file") == "kept\n"
    wire.client.begin_delete_job(job, polling_interval=0).wait()


def test_reimage_wipes_the_node(wire: Wire, node: tuple[str, str]) -> None:
    pool, name = node
    job = wire.job(pool)
    done = wire.run(job, "/bin/sh -c 'echo lost > file'")
    wire.client.create_node_user(pool, name, m.BatchNodeUserCreateOptions(name="someone"))
    reimage(wire, pool, name)
    node_state(wire, pool, name, "idle")
    assert starts(wire, name) == 1
    with pytest.raises(HttpResponseError) as caught:
        list(wire.client.list_task_files(job, done.id))
    assert (caught.value.status_code, code_of(caught.value)) == (409, "TaskFilesCleanedup")
    # The users are gone too.
    wire.client.create_node_user(pool, name, m.BatchNodeUserCreateOptions(name="someone"))
    wire.client.begin_delete_job(job, polling_interval=0).wait()


@pytest.mark.parametrize("operation", [reboot, reimage], ids=["reboot", "reimage"])
def test_tasks_of_a_node_that_restarts(wire: Wire, node: tuple[str, str], operation: object) -> None:
    restart = reboot if operation is reboot else reimage
    pool, name = node
    job = wire.job(pool)
    task = wire.add(job, "/bin/sh -c 'sleep 60 & setsid sleep 61 & echo $AZ_BATCH_TASK_ID; wait'")
    wire.state(job, task, "running")
    restart(wire, pool, name, "requeue")
    again = wire.until(lambda: found if (found := wire.client.get_task(job, task)).state == "running" else None)
    assert again is not None
    assert again.execution_info is not None
    assert again.execution_info.requeue_count == 1
    restart(wire, pool, name, "terminate")
    ended = wire.state(job, task, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.failure_info is not None
    assert ended.execution_info.failure_info.code == "TaskEnded"
    node_state(wire, pool, name, "idle")
    patient = wire.add(job, "/bin/sleep 0.5")
    wire.state(job, patient, "running")
    restart(wire, pool, name, "taskcompletion")
    late = wire.add(job, "/bin/true")
    done = wire.state(job, patient, "completed")
    assert done.execution_info is not None
    assert (done.execution_info.result, done.execution_info.requeue_count) == ("success", 0)
    # Placed only after the restart that the patient one held up.
    after = wire.state(job, late, "completed")
    boot = wire.client.get_node(pool, name).last_boot_time
    assert after.execution_info is not None
    assert after.execution_info.start_time is not None
    assert boot is not None
    assert after.execution_info.start_time >= boot
    wire.client.begin_delete_job(job, polling_interval=0).wait()


def test_preparation_runs_again_after_a_reboot_if_it_asks_to(wire: Wire, node: tuple[str, str]) -> None:
    pool, name = node
    count = "/bin/sh -c 'echo prepared >> $AZ_BATCH_NODE_SHARED_DIR/$AZ_BATCH_JOB_ID'"
    jobs = {
        rerun: wire.job(
            pool,
            job_preparation_task=m.BatchJobPreparationTask(
                command_line=count, rerun_on_node_reboot_after_success=rerun
            ),
        )
        for rerun in (True, False)
    }

    def prepared(rerun: bool) -> int:
        return len((wire.root(name) / "shared" / jobs[rerun]).read_text().splitlines())

    for job in jobs.values():
        wire.run(job, "/bin/true")
    reboot(wire, pool, name)
    for job in jobs.values():
        wire.run(job, "/bin/true")
    assert (prepared(True), prepared(False)) == (2, 1)
    reimage(wire, pool, name)
    for job in jobs.values():
        wire.run(job, "/bin/true")
    # All was wiped: whatever they ask for, they ran once since.
    assert (prepared(True), prepared(False)) == (1, 1)
    for job in jobs.values():
        wire.client.begin_delete_job(job, polling_interval=0).wait()


def test_preparation_that_a_reboot_cuts_off_runs_again(wire: Wire, node: tuple[str, str]) -> None:
    pool, name = node
    flag = wire.service.data / f"flag-{pool}"
    job = wire.job(
        pool,
        job_preparation_task=m.BatchJobPreparationTask(
            command_line=f"/bin/sh -c 'test -e {flag} || sleep 60'", rerun_on_node_reboot_after_success=False
        ),
    )
    task = wire.add(job, "/bin/true")
    wire.state(job, task, "preparing")
    flag.touch()
    reboot(wire, pool, name)
    done = wire.state(job, task, "completed")
    assert done.execution_info is not None
    assert done.execution_info.result == "success"
    wire.client.begin_delete_job(job, polling_interval=0).wait()


def test_release_runs_where_the_preparation_ran_before_a_reboot(wire: Wire, node: tuple[str, str]) -> None:
    pool, name = node
    released = wire.service.data / f"released-{pool}"
    job = wire.job(
        pool,
        job_preparation_task=m.BatchJobPreparationTask(command_line="/bin/true"),
        job_release_task=m.BatchJobReleaseTask(command_line=f"/bin/sh -c 'touch {released}'"),
    )
    wire.run(job, "/bin/true")
    reboot(wire, pool, name)
    node_state(wire, pool, name, "idle")
    wire.terminate(job)
    wire.job_state(job, "completed")
    assert released.exists()
    wire.client.begin_delete_job(job, polling_interval=0).wait()


def test_reimage_ends_the_bar_of_a_failed_preparation(wire: Wire, node: tuple[str, str]) -> None:
    pool, name = node
    flag = wire.service.data / f"flag-{pool}"
    job = wire.job(pool, job_preparation_task=m.BatchJobPreparationTask(command_line=f"/bin/sh -c 'test -e {flag}'"))
    task = wire.add(job, "/bin/true")

    def failed() -> bool:
        parts = list(wire.client.list_job_preparation_and_release_task_status(job))
        infos = [part.job_preparation_task_execution_info for part in parts]
        return any(info is not None and info.result == "failure" for info in infos)

    wire.until(failed)
    flag.touch()
    reboot(wire, pool, name)
    node_state(wire, pool, name, "idle")
    assert failed()
    reimage(wire, pool, name)
    done = wire.state(job, task, "completed")
    assert done.execution_info is not None
    assert done.execution_info.result == "success"
    wire.client.begin_delete_job(job, polling_interval=0).wait()


def test_deallocated_node_waits_to_be_started(wire: Wire, node: tuple[str, str]) -> None:
    pool, name = node
    options: Any = {"nodeDeallocateOption": "requeue"}
    wire.client.begin_deallocate_node(pool, name, options, polling_interval=0).wait()
    node_state(wire, pool, name, "deallocated")
    assert not (wire.root(name) / "shared").exists()
    counts = {one.pool_id: one for one in wire.client.list_pool_node_counts()}[pool]
    assert counts.dedicated is not None
    assert (counts.dedicated.deallocated, counts.dedicated.total) == (1, 1)
    with pytest.raises(HttpResponseError) as caught:
        reboot(wire, pool, name)
    assert caught.value.status_code == 409
    with pytest.raises(HttpResponseError) as caught:
        list(wire.client.list_node_files(pool, name))
    assert (caught.value.status_code, code_of(caught.value)) == (409, "NodeStateUnusable")
    job = wire.job(pool)
    task = wire.add(job, "/bin/true")
    wire.client.begin_start_node(pool, name, polling_interval=0).wait()
    wire.state(job, task, "completed")
    assert starts(wire, name) == 1
    with pytest.raises(HttpResponseError) as caught:
        wire.client.begin_start_node(pool, name)
    assert (caught.value.status_code, code_of(caught.value)) == (409, "OperationInvalidForCurrentState")
    wire.client.begin_delete_job(job, polling_interval=0).wait()


def test_deallocated_node_can_be_removed(wire: Wire) -> None:
    pool = wire.pool(2)
    name = wire.nodes(pool, 2, "idle")[0].id
    options: Any = {"nodeDeallocateOption": "requeue"}
    wire.client.begin_deallocate_node(pool, name, options, polling_interval=0).wait()
    node_state(wire, pool, name, "deallocated")
    wire.client.begin_remove_nodes(pool, m.BatchNodeRemoveOptions(node_ids=[name]), polling_interval=0).wait()
    wire.nodes(pool, 1, "idle")
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_node_that_is_to_leave_while_it_is_deallocated_leaves(own: Callable[[], Wire]) -> None:
    wire = own()
    pool = wire.pool(1)
    job = wire.job(pool)
    (node,) = wire.nodes(pool, 1, "idle")
    kept = m.BatchTaskConstraints(retention_time=datetime.timedelta(seconds=8))
    # So many files that the node is some time on its way.
    wire.run(job, "/bin/sh -c 'seq 10000 | xargs touch'", constraints=kept)
    rest: Any = {"nodeDeallocateOption": "requeue"}
    wire.client.begin_deallocate_node(pool, node.id, rest, polling_interval=3600)
    leave = m.BatchNodeRemoveOptions(node_ids=[node.id], node_deallocation_option="retaineddata")
    wire.client.begin_remove_nodes(pool, leave, polling_interval=3600)
    wire.until(lambda: wire.client.get_node(pool, node.id).state == "deallocated")
    # It still waits for the task's data, which a restart finds in the state.
    assert wire.client.get_pool(pool).allocation_state == "resizing"
    wire.service.stop()
    own().nodes(pool, 0)


def test_failed_start_task_gets_another_chance_by_a_reboot(wire: Wire) -> None:
    flag = wire.service.data / wire.name("flag")
    start = m.BatchStartTask(command_line=f"/bin/sh -c 'test -e {flag}'")
    pool = wire.name("pool")
    wire.client.create_pool(wire.pool_options(pool, start_task=start))
    name = wire.nodes(pool, 1, "starttaskfailed")[0].id
    flag.touch()
    reboot(wire, pool, name)
    assert node_state(wire, pool, name, "idle").errors is None
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_reboot_ends_a_start_task_that_hangs(wire: Wire) -> None:
    flag = wire.service.data / wire.name("flag")
    start = m.BatchStartTask(command_line=f"/bin/sh -c 'test -e {flag} || sleep 60'")
    pool = wire.name("pool")
    wire.client.create_pool(wire.pool_options(pool, start_task=start))
    name = wire.nodes(pool, 1, "waitingforstarttask")[0].id
    flag.touch()
    reboot(wire, pool, name)
    node_state(wire, pool, name, "idle")
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_scheduling_off_and_on(wire: Wire, node: tuple[str, str]) -> None:
    pool, name = node
    client = wire.client
    job = wire.job(pool)

    def disable(option: str) -> None:
        client.disable_node_scheduling(
            pool, name, m.BatchNodeDisableSchedulingOptions(node_disable_scheduling_option=option)
        )

    task = wire.add(job, "/bin/sleep 60")
    wire.state(job, task, "running")
    disable("requeue")
    waiting = wire.state(job, task, "active")
    assert waiting.execution_info is not None
    assert waiting.execution_info.requeue_count == 1
    assert node_state(wire, pool, name, "offline").scheduling_state == "disabled"
    with pytest.raises(HttpResponseError) as caught:
        disable("requeue")
    assert (caught.value.status_code, code_of(caught.value)) == (409, "NodeAlreadyInTargetSchedulingState")
    client.enable_node_scheduling(pool, name)
    wire.state(job, task, "running")
    disable("terminate")
    ended = wire.state(job, task, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.failure_info is not None
    assert ended.execution_info.failure_info.code == "TaskEnded"
    client.enable_node_scheduling(pool, name)
    with pytest.raises(HttpResponseError) as caught:
        client.enable_node_scheduling(pool, name)
    assert code_of(caught.value) == "NodeAlreadyInTargetSchedulingState"
    patient = wire.add(job, "/bin/sleep 0.5")
    wire.state(job, patient, "running")
    disable("taskcompletion")
    late = wire.add(job, "/bin/true")
    assert client.get_node(pool, name).state == "running"
    done = wire.state(job, patient, "completed")
    assert done.execution_info is not None
    assert done.execution_info.result == "success"
    node_state(wire, pool, name, "offline")
    assert client.get_task(job, late).state == "active"
    # It stays off through a reboot.
    reboot(wire, pool, name)
    node_state(wire, pool, name, "offline")
    assert client.get_task(job, late).state == "active"
    client.enable_node_scheduling(pool, name)
    wire.state(job, late, "completed")
    client.begin_delete_job(job, polling_interval=0).wait()


def test_users_are_kept_and_cannot_log_in(wire: Wire, node: tuple[str, str]) -> None:
    pool, name = node
    client = wire.client
    client.create_node_user(pool, name, m.BatchNodeUserCreateOptions(name="ada", is_admin=True, password="Secret-4711"))
    with pytest.raises(HttpResponseError) as caught:
        client.create_node_user(pool, name, m.BatchNodeUserCreateOptions(name="ADA"))
    assert (caught.value.status_code, code_of(caught.value)) == (409, "NodeUserExists")
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    client.replace_node_user(pool, name, "ada", m.BatchNodeUserReplaceOptions(expiry_time=soon, ssh_public_key="AAAA"))
    client.delete_node_user(pool, name, "ada")
    calls: list[Callable[[], object]] = [
        lambda: client.delete_node_user(pool, name, "ada"),
        lambda: client.replace_node_user(pool, name, "ada", m.BatchNodeUserReplaceOptions(password="x")),
    ]
    for refused in calls:
        with pytest.raises(HttpResponseError) as caught:
            refused()
        assert (caught.value.status_code, code_of(caught.value)) == (404, "NodeUserNotFound")
    state = b"".join(path.read_bytes() for path in wire.service.data.glob("state.sqlite*"))
    assert b"Secret-4711" not in state
    settings = client.get_node_remote_login_settings(pool, name)
    assert (settings.remote_login_ip_address, settings.remote_login_port) == ("127.0.0.1", 50_000)


def test_node_log_is_uploaded(wire: Wire, node: tuple[str, str], web: Web) -> None:
    pool, name = node
    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)
    container = f"{web.url}/logs?sig=secret"
    answer = wire.client.upload_node_logs(
        pool, name, m.UploadBatchServiceLogsOptions(container_url=container, start_time=now - hour)
    )
    assert answer.number_of_files_uploaded == 1
    folder = answer.virtual_directory_name
    assert folder.startswith(f"{pool}/{name}/")
    wire.until(lambda: f"/logs/{folder}/agent.log" in web.files)
    assert b"is starting" in web.files[f"/logs/{folder}/agent.log"]
    none = wire.client.upload_node_logs(
        pool,
        name,
        m.UploadBatchServiceLogsOptions(container_url=container, start_time=now - 2 * hour, end_time=now - hour),
    )
    assert none.number_of_files_uploaded == 0
    denied = f"{web.url}/denied/logs?sig=secret"
    wire.client.upload_node_logs(
        pool, name, m.UploadBatchServiceLogsOptions(container_url=denied, start_time=now - hour)
    )
    log = wire.root(name) / "volatile" / "agent.log"
    wire.until(lambda: "upload of agent.log failed" in log.read_text())
    assert "secret" not in log.read_text()
    for wrong in ("logs", "file:///tmp", "http://[/logs"):
        with pytest.raises(HttpResponseError) as caught:
            wire.client.upload_node_logs(
                pool, name, m.UploadBatchServiceLogsOptions(container_url=wrong, start_time=now - hour)
            )
        assert (caught.value.status_code, code_of(caught.value)) == (400, "InvalidPropertyValue")


def test_no_node_has_extensions(wire: Wire, node: tuple[str, str]) -> None:
    pool, name = node
    assert list(wire.client.list_node_extensions(pool, name)) == []
    with pytest.raises(HttpResponseError) as caught:
        wire.client.get_node_extension(pool, name, "monitor")
    assert caught.value.status_code == 404


def test_operations_on_a_node_that_is_not_there(wire: Wire, pool: str) -> None:
    for refused in (
        lambda: wire.client.enable_node_scheduling(pool, "none"),
        lambda: wire.client.begin_start_node(pool, "none"),
        lambda: reboot(wire, pool, "none"),
    ):
        with pytest.raises(HttpResponseError) as caught:
            refused()
        assert (caught.value.status_code, code_of(caught.value)) == (404, "NodeNotFound")
