"""Start tasks: what they do to a node, and what their failure does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from azure.batch import models as m

if TYPE_CHECKING:
    from tests.support.wire import Wire


def start_pool(wire: Wire, *, nodes: int = 1, **start: Any) -> str:
    """A pool with a start task."""
    name = wire.name("pool")
    start.setdefault("command_line", "/bin/true")
    wire.client.create_pool(wire.pool_options(name, nodes, start_task=m.BatchStartTask(**start)))
    return name


def node_text(wire: Wire, pool: str, node: str, path: str) -> str:
    """The text of a node's file."""
    return b"".join(wire.client.download_node_file(pool, node, path)).decode()


def test_start_task_runs_before_any_task(wire: Wire) -> None:
    command = "/bin/sh -c 'pwd; env | sort; echo ready > $AZ_BATCH_NODE_SHARED_DIR/mark'"
    setting = m.EnvironmentSetting(name="COLOUR", value="red")
    name = start_pool(wire, command_line=command, environment_settings=[setting])
    node = wire.nodes(name, 1, "idle")[0]
    info = node.start_task_info
    assert info is not None
    assert (info.state, info.result, info.exit_code, info.retry_count) == ("completed", "success", 0, 0)
    assert info.end_time is not None
    assert info.end_time >= info.start_time
    text = node_text(wire, name, node.id, "startup/stdout.txt").splitlines()
    assert text[0].endswith("/startup/wd")
    assert "COLOUR=red" in text
    assert not [line for line in text if line.startswith(("AZ_BATCH_TASK_ID", "AZ_BATCH_JOB_ID"))]
    task = wire.run(job := wire.job(name), "/bin/sh -c 'cat $AZ_BATCH_NODE_SHARED_DIR/mark'")
    assert wire.text(job, task.id) == "ready\n"
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.client.begin_delete_pool(name, polling_interval=0).wait()


def test_failed_start_task_marks_the_node_and_tells_why(wire: Wire) -> None:
    command = "/bin/sh -c 'date +%s%N >> tries; echo out; echo no such luck >&2; exit 7'"
    name = start_pool(wire, command_line=command, max_task_retry_count=2)
    node = wire.nodes(name, 1, "starttaskfailed")[0]
    info = node.start_task_info
    assert info is not None
    assert (info.state, info.result, info.exit_code, info.retry_count) == ("completed", "failure", 7, 2)
    assert info.last_retry_time is not None
    assert info.failure_info is not None
    assert (info.failure_info.category, info.failure_info.code) == ("UserError", "FailureExitCode")
    assert node_text(wire, name, node.id, "startup/stderr.txt") == "no such luck\n"
    # The working directory of a start task is kept between its runs.
    assert len(node_text(wire, name, node.id, "startup/wd/tries").splitlines()) == 3
    files = wire.client.list_node_files(name, node.id, recursive=True, filter="startswith(name, 'startup/')")
    assert {"startup/stderr.txt", "startup/wd/tries"} <= {str(file.name) for file in files}
    properties = wire.client.get_node_file_properties(name, node.id, "startup/stderr.txt")
    assert properties.content_length == len("no such luck\n")
    counts = next(one for one in wire.client.list_pool_node_counts(filter=f"poolId eq '{name}'"))
    assert counts.dedicated is not None
    assert counts.dedicated.start_task_failed == 1
    # Nothing is placed there.
    job = wire.job(name)
    task = wire.add(job, "/bin/true")
    assert wire.client.get_task(job, task).state == "active"
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.client.begin_delete_pool(name, polling_interval=0).wait()


def test_node_that_need_not_wait_works_meanwhile(wire: Wire) -> None:
    name = start_pool(wire, command_line="/bin/sleep 60", wait_for_success=False)
    node = wire.nodes(name, 1, "idle")[0]
    assert node.start_task_info is not None
    assert node.start_task_info.state == "running"
    job = wire.job(name)
    wire.run(job, "/bin/true")
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.client.begin_delete_pool(name, polling_interval=0).wait()


def test_start_task_that_runs_is_ended_with_its_pool(wire: Wire) -> None:
    name = start_pool(wire, command_line="/bin/sleep 60")
    wire.nodes(name, 1, "waitingforstarttask")
    wire.client.begin_delete_pool(name, polling_interval=0).wait()


def test_missing_program_is_told(wire: Wire) -> None:
    name = start_pool(wire, command_line="no-such-program --now")
    info = wire.nodes(name, 1, "starttaskfailed")[0].start_task_info
    assert info is not None
    assert info.exit_code is None
    assert info.failure_info is not None
    assert info.failure_info.code == "CommandProgramNotFound"
    wire.client.begin_delete_pool(name, polling_interval=0).wait()
