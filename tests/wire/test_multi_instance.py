"""Multi-instance tasks: a coordination command on several nodes at once, then the task's own on the first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from azure.batch import models as m
from azure.batch.aio import BatchClient as AsyncBatchClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.web import Web
    from tests.support.wire import Wire


@pytest.fixture(scope="module")
def cluster(wire: Wire) -> Iterator[str]:
    """A pool of three nodes that may talk to each other."""
    pool = wire.pool(3, 1, enable_inter_node_communication=True)
    yield pool
    wire.client.begin_delete_pool(pool, polling_interval=1)


@pytest.fixture
def gang(wire: Wire, cluster: str) -> Iterator[str]:
    """A job on that pool, gone with its tasks at the end."""
    job = wire.job(cluster)
    yield job
    wire.client.begin_delete_job(job, polling_interval=0).wait()


def several(coordination: str = "/bin/true", count: int = 3, **more: Any) -> m.MultiInstanceSettings:
    """The settings of a multi-instance task."""
    return m.MultiInstanceSettings(number_of_instances=count, coordination_command_line=coordination, **more)


def gated(gate: Path) -> str:
    """A command that ends once a file is there."""
    return f"/bin/sh -c 'until test -e {gate}; do sleep 0.02; done'"


def node_text(wire: Wire, task: m.BatchSubtask, path: str) -> str:
    """The text of a file of a subtask."""
    info = task.node_info
    assert info is not None
    full = f"{info.task_root_directory}/{path}"
    return b"".join(wire.client.download_node_file(str(info.pool_id), str(info.node_id), full)).decode()


def variables(text: str) -> dict[str, str]:
    """The output of `env`."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def marked(task: str) -> set[int]:
    """The processes that run in a task's directory."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("AZ_BATCH_TASK_ID") == task and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def test_all_nodes_coordinate_and_the_first_runs_the_task(wire: Wire, cluster: str, gang: str) -> None:
    task = wire.run(gang, "/bin/sh -c 'echo main; env'", multi_instance_settings=several("/bin/sh -c 'echo hi; env'"))
    assert task.execution_info is not None
    assert (task.execution_info.result, task.execution_info.exit_code) == ("success", 0)
    assert task.multi_instance_settings is not None
    assert task.multi_instance_settings.number_of_instances == 3
    subtasks = list(wire.client.list_subtasks(gang, task.id))
    assert [(one.id, one.state, one.previous_state, one.exit_code, one.result) for one in subtasks] == [
        (index, "completed", "running", 0, "success") for index in (1, 2)
    ]
    assert all(one.start_time and one.end_time and one.start_time <= one.end_time for one in subtasks)
    assert task.node_info is not None
    nodes = [task.node_info.node_id, *(one.node_info.node_id for one in subtasks if one.node_info)]
    assert len(set(nodes)) == 3
    primary = wire.text(gang, task.id)
    # The coordination command's output comes first, then the task's own.
    assert primary.startswith("hi\n")
    assert "\nmain\n" in primary
    addresses = [wire.client.get_node(cluster, str(node)).ip_address for node in nodes]
    own = variables(primary.split("\nmain\n")[1])
    assert own["AZ_BATCH_NODE_LIST"] == ";".join(addresses)
    assert own["AZ_BATCH_HOST_LIST"] == ",".join(addresses)
    assert own["AZ_BATCH_MASTER_NODE"] == f"{addresses[0]}:6000"
    assert own["AZ_BATCH_IS_CURRENT_NODE_MASTER"] == "true"
    assert own["AZ_BATCH_TASK_SHARED_DIR"] == own["AZ_BATCH_TASK_DIR"]
    for one in subtasks:
        text = node_text(wire, one, "stdout.txt")
        found = variables(text)
        assert "main" not in text.splitlines()
        assert found["AZ_BATCH_IS_CURRENT_NODE_MASTER"] == "false"
        assert found["AZ_BATCH_HOST_LIST"] == own["AZ_BATCH_HOST_LIST"]
        assert one.node_info is not None
        assert found["AZ_BATCH_NODE_ID"] == one.node_info.node_id


#: Answers one caller with the node's id, on the node's own address.
SERVER = b"""
import os, socket, sys
hosts = os.environ["AZ_BATCH_HOST_LIST"].split(",")
for host in hosts:
    try:
        server = socket.create_server((host, 6107))
        break
    except OSError:
        continue
if os.fork():
    sys.exit()
connection, _ = server.accept()
connection.sendall(os.environ["AZ_BATCH_NODE_ID"].encode())
connection.close()
sys.stdin = open("/dev/null")
import time
time.sleep(60)
"""
CALLER = b"""
import os, socket
for host in os.environ["AZ_BATCH_HOST_LIST"].split(","):
    print("node", socket.create_connection((host, 6107), 10).makefile().read())
"""


def test_what_coordination_starts_serves_the_task_and_ends_with_it(wire: Wire, gang: str, web: Web) -> None:
    web.files.update({"/server.py": SERVER, "/caller.py": CALLER})
    files = [m.ResourceFile(http_url=f"{web.url}/{name}", file_path=name) for name in ("server.py", "caller.py")]
    settings = several("/bin/sh -c 'python3 ../server.py'", common_resource_files=files)
    task = wire.run(gang, "/bin/sh -c 'python3 ../caller.py'", multi_instance_settings=settings)
    assert task.execution_info is not None
    assert task.execution_info.exit_code == 0, wire.text(gang, task.id, "stderr.txt")
    subtasks = list(wire.client.list_subtasks(gang, task.id))
    assert task.node_info is not None
    nodes = {task.node_info.node_id, *(one.node_info.node_id for one in subtasks if one.node_info)}
    assert set(wire.text(gang, task.id).split()) - {"node"} == nodes
    assert not marked(task.id)


def test_common_files_are_on_all_nodes_and_resource_files_on_the_first(wire: Wire, gang: str, web: Web) -> None:
    web.files.update({"/common": b"for all", "/own": b"for one"})
    task = wire.run(
        gang,
        "/bin/sh -c 'cat ../common own'",
        multi_instance_settings=several(
            "/bin/sh -c 'cat $AZ_BATCH_TASK_SHARED_DIR/common; ls'",
            common_resource_files=[m.ResourceFile(http_url=f"{web.url}/common", file_path="common")],
        ),
        resource_files=[m.ResourceFile(http_url=f"{web.url}/own", file_path="own")],
    )
    assert wire.text(gang, task.id) == "for all" + "for allfor one"
    for one in wire.client.list_subtasks(gang, task.id):
        assert node_text(wire, one, "stdout.txt") == "for all"
    assert sorted(web.asked) == ["/common"] * 3 + ["/own"]


def test_failed_coordination_fails_the_task_on_all_nodes(wire: Wire, gang: str) -> None:
    command = "/bin/sh -c 'test $AZ_BATCH_IS_CURRENT_NODE_MASTER = true && exec sleep 60; exit 7'"
    task = wire.run(gang, "/bin/echo never", multi_instance_settings=several(command))
    assert task.execution_info is not None
    assert task.execution_info.failure_info is not None
    assert (task.execution_info.exit_code, task.execution_info.failure_info.code) == (7, "FailureExitCode")
    assert wire.text(gang, task.id) == ""
    assert 7 in {one.exit_code for one in wire.client.list_subtasks(gang, task.id)}
    assert not marked(task.id)


def test_task_is_retried_as_a_whole(wire: Wire, gang: str, tmp_path: Path) -> None:
    mark, count = tmp_path / "tried", tmp_path / "count"
    task = wire.run(
        gang,
        f"/bin/sh -c 'test -e {mark} || {{ touch {mark}; exit 1; }}'",
        multi_instance_settings=several(f"/bin/sh -c 'echo x >> {count}'"),
        constraints=m.BatchTaskConstraints(max_task_retry_count=1),
    )
    assert task.execution_info is not None
    assert (task.execution_info.result, task.execution_info.retry_count) == ("success", 1)
    assert count.read_text().count("x") == 6


def test_ended_task_ends_everywhere(wire: Wire, cluster: str, gang: str) -> None:
    task = wire.add(gang, "/bin/sleep 60", multi_instance_settings=several("/bin/sh -c 'sleep 61 & exit 0'"))
    wire.until(lambda: len(marked(task)) == 4, timeout=30)
    assert {node.running_tasks_count for node in wire.client.list_nodes(cluster)} == {1}
    wire.client.terminate_task(gang, task)
    ended = wire.state(gang, task, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.failure_info is not None
    assert ended.execution_info.failure_info.code == "TaskEnded"
    assert not marked(task)
    wire.nodes(cluster, 3, "idle")


def test_task_waits_for_as_many_nodes_as_it_needs_and_holds_what_is_free(
    wire: Wire, cluster: str, gang: str, tmp_path: Path
) -> None:
    held = wire.add(gang, gated(tmp_path / "gate"))
    wire.state(gang, held, "running")
    waiting = wire.add(gang, "/bin/true", multi_instance_settings=several())
    later = wire.add(gang, "/bin/true")
    other = wire.job(cluster)
    behind = wire.add(other, "/bin/true")
    assert {wire.client.get_task(gang, name).state for name in (waiting, later)} == {"active"}
    assert wire.client.get_task(other, behind).state == "active"
    assert list(wire.client.list_subtasks(gang, waiting)) == []
    (tmp_path / "gate").touch()
    for job, name in ((gang, waiting), (gang, later), (other, behind)):
        wire.state(job, name, "completed")
    wire.terminate(other)


def test_task_that_cannot_be_placed_stays_active_and_holds_nobody_up(wire: Wire, pool: str, gang: str) -> None:
    large = wire.add(gang, "/bin/true", multi_instance_settings=several(count=4))
    wire.run(gang, "/bin/true")
    assert wire.client.get_task(gang, large).state == "active"
    # Neither inter-node communication nor a single slot.
    job = wire.job(pool)
    task = wire.add(job, "/bin/true", multi_instance_settings=several(count=1))
    wire.run(job, "/bin/true")
    assert wire.client.get_task(job, task).state == "active"


def test_preparation_runs_on_all_nodes(wire: Wire, cluster: str) -> None:
    job = wire.job(cluster, job_preparation_task=m.BatchJobPreparationTask(command_line="/bin/true"))
    wire.run(job, "/bin/true", multi_instance_settings=several())
    statuses = list(wire.client.list_job_preparation_and_release_task_status(job))
    assert len({status.node_id for status in statuses}) == 3
    wire.client.begin_delete_job(job, polling_interval=0).wait()


def test_node_that_goes_requeues_the_task(wire: Wire) -> None:
    pool = wire.pool(3, 1, enable_inter_node_communication=True)
    job = wire.job(pool)
    task = wire.add(job, "/bin/sleep 60", multi_instance_settings=several(count=2))
    wire.until(lambda: len(marked(task)) == 1, timeout=30)
    (subtask,) = wire.client.list_subtasks(job, task)
    assert subtask.node_info is not None
    gone = str(subtask.node_info.node_id)
    options = m.BatchNodeRemoveOptions(node_ids=[gone])
    wire.client.begin_remove_nodes(pool, options, polling_interval=0).wait()
    again = wire.state(job, task, "running")
    assert again.execution_info is not None
    assert again.execution_info.requeue_count == 1
    (subtask,) = wire.client.list_subtasks(job, task)
    assert subtask.node_info is not None
    assert subtask.node_info.node_id != gone
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.client.begin_delete_pool(pool, polling_interval=1)


@pytest.mark.parametrize(
    ("settings", "more"),
    [(several(count=0), {}), (several(" "), {}), (several(), {"required_slots": 2})],
)
def test_settings_that_cannot_be(
    wire: Wire, gang: str, settings: m.MultiInstanceSettings, more: dict[str, Any]
) -> None:
    with pytest.raises(HttpResponseError) as caught:
        wire.add(gang, "/bin/true", multi_instance_settings=settings, **more)
    assert caught.value.status_code == 400


async def test_other_tasks_have_no_subtasks(wire: Wire, gang: str) -> None:
    task = wire.run(gang, "/bin/true")
    assert list(wire.client.list_subtasks(gang, task.id)) == []
    credential = AzureNamedKeyCredential(wire.service.account, wire.service.key)
    async with AsyncBatchClient(wire.service.url, credential) as client:
        assert [one async for one in client.list_subtasks(gang, task.id)] == []
