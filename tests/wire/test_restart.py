"""What a killed service finds again, and what it makes of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from azure.batch import models as m
from azure.core.exceptions import ResourceNotFoundError

if TYPE_CHECKING:
    from tests.support.wire import Wire

pytestmark = pytest.mark.as_user


@dataclass
class Crash:
    """A service that was killed and started again, and what it had acknowledged before."""

    wire: Wire
    pool: str
    nodes: list[str]
    job: str = ""
    tasks: dict[str, m.BatchTask] = field(default_factory=dict)
    waiting_job: str = ""
    waiting: str = ""
    running: str = ""
    old: list[psutil.Process] = field(default_factory=list)
    prepared: list[str] = field(default_factory=list)
    barred: tuple[str, str] = ("", "")
    terminating: str = ""
    deleting: str = ""
    deleted_pool: str = ""


def kill(wire: Wire) -> None:
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


def preparations(wire: Wire, job: str) -> list[str | None]:
    """The results of a job's completed preparations."""
    found = wire.client.list_job_preparation_and_release_task_status(job)
    infos = [status.job_preparation_task_execution_info for status in found]
    return [info.result for info in infos if info is not None and info.state == "completed"]


def gone(look: Callable[[], object]) -> bool:
    """Whether what is looked for is not there."""
    try:
        look()
    except ResourceNotFoundError:
        return True
    return False


def begin(wire: Wire) -> Crash:
    """Give a service things to keep and things to do."""
    append = "/bin/sh -c 'echo x >> $AZ_BATCH_NODE_SHARED_DIR/{}'"
    start = m.BatchStartTask(command_line=append.format("starts"))
    pool = wire.pool(1, 8, metadata=[m.BatchMetadataItem(name="a", value="1")], start_task=start)
    before = Crash(wire, pool, [node.id for node in wire.client.list_nodes(pool)])
    before.job = wire.job(pool, priority=9)
    for name, command in (("done", "/bin/echo kept"), ("failed", "/bin/sh -c 'exit 9'")):
        before.tasks[name] = wire.run(before.job, command)
    for again in (False, True):
        preparation = m.BatchJobPreparationTask(
            command_line=append.format("each" if again else "once"), rerun_on_node_reboot_after_success=again
        )
        before.prepared.append(wire.job(pool, job_preparation_task=preparation))
        wire.run(before.prepared[-1], "/bin/true")
    barred = wire.job(pool, job_preparation_task=m.BatchJobPreparationTask(command_line="/bin/false"))
    before.barred = (barred, wire.add(barred, "/bin/true"))
    wire.until(lambda: preparations(wire, barred) == ["failure"])
    wire.state(*before.barred, "active")
    # The first run leaves a mark on the node and stays; the second one finds it and ends.
    mark = "$AZ_BATCH_NODE_SHARED_DIR/mark"
    command = f"/bin/sh -c 'test -e {mark} && exec echo again; touch {mark}; setsid sleep 621 & sleep 622'"
    before.running = wire.add(before.job, command)
    wire.until(lambda: len(processes(before.running)) == 3)
    before.old = processes(before.running)
    release = m.BatchJobReleaseTask(command_line="/bin/sh -c 'test -e $AZ_BATCH_NODE_SHARED_DIR/go || sleep 60'")
    preparation = m.BatchJobPreparationTask(command_line="/bin/true")
    ending = [wire.job(pool, job_preparation_task=preparation, job_release_task=release) for _ in range(2)]
    for job in ending:
        wire.run(job, "/bin/true")
    before.terminating, before.deleting = ending
    before.deleted_pool = wire.pool(2)
    before.waiting_job = wire.name("job")
    later = m.BatchPoolInfo(pool_id="later")
    wire.client.create_job(m.BatchJobCreateOptions(id=before.waiting_job, pool_info=later))
    before.waiting = wire.add(before.waiting_job, "/bin/true")
    options: Any = {"terminateReason": "enough"}
    wire.client.begin_terminate_job(before.terminating, options)
    wire.client.begin_delete_job(before.deleting)
    assert wire.client.get_job(before.terminating).state == "terminating"
    assert wire.client.get_job(before.deleting).state == "deleting"
    wire.client.begin_delete_pool(before.deleted_pool)
    # Acknowledged, and nothing after it.
    wire.client.update_job(before.waiting_job, m.BatchJobUpdateOptions(priority=-3))
    return before


@pytest.fixture(scope="module")
def crash(services: Callable[[Path], Wire], tmp_path_factory: pytest.TempPathFactory) -> Crash:
    """A service killed in the middle of its work, and started again."""
    data = tmp_path_factory.mktemp("crash")
    before = begin(services(data))
    kill(before.wire)
    # The helper may have ended them by now, or not yet.
    assert len(before.old) == 3
    (before.wire.root(before.nodes[0]) / "shared" / "go").touch()
    before.wire = services(data)
    return before


def test_pools_and_nodes_are_there(crash: Crash) -> None:
    assert [node.id for node in crash.wire.nodes(crash.pool, 1, "idle", "running")] == crash.nodes
    pool = crash.wire.client.get_pool(crash.pool)
    assert (pool.target_dedicated_nodes, pool.task_slots_per_node) == (1, 8)
    assert pool.metadata is not None
    assert pool.metadata[0].value == "1"


def test_results_and_files_are_there(crash: Crash) -> None:
    client = crash.wire.client
    assert client.get_job(crash.job).priority == 9
    for task in crash.tasks.values():
        again = client.get_task(crash.job, task.id)
        assert again.as_dict()["executionInfo"] == task.as_dict()["executionInfo"]
        assert (again.etag, again.creation_time, again.state) == (task.etag, task.creation_time, "completed")
    assert crash.wire.text(crash.job, crash.tasks["done"].id) == "kept\n"
    counts = client.get_job_task_counts(crash.job).task_counts
    assert counts.failed == 1


def test_last_acknowledged_change_is_there(crash: Crash) -> None:
    assert crash.wire.client.get_job(crash.waiting_job).priority == -3
    assert crash.wire.client.get_task(crash.waiting_job, crash.waiting).state == "active"


def test_running_task_is_queued_again_and_its_processes_are_gone(crash: Crash) -> None:
    completed = crash.wire.state(crash.job, crash.running, "completed")
    assert not [one for one in crash.old if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert crash.wire.text(crash.job, crash.running) == "again\n"
    info = completed.execution_info
    assert info is not None
    assert (info.exit_code, info.retry_count, info.requeue_count) == (0, 0, 0)


def test_start_task_and_preparation_run_again_as_after_a_reboot(crash: Crash) -> None:
    wire = crash.wire
    for job in crash.prepared:
        wire.run(job, "/bin/true")
    for name, times in (("starts", 2), ("once", 1), ("each", 2)):
        text = b"".join(wire.client.download_node_file(crash.pool, crash.nodes[0], f"shared/{name}"))
        assert text == b"x\n" * times, name


def test_barred_node_stays_barred(crash: Crash) -> None:
    job, task = crash.barred
    crash.wire.run(crash.job, "/bin/true")
    assert preparations(crash.wire, job) == ["failure"]
    assert crash.wire.client.get_task(job, task).state == "active"


def test_endings_that_were_begun_are_ended(crash: Crash) -> None:
    wire = crash.wire
    ended = wire.job_state(crash.terminating, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.termination_reason == "enough"
    wire.until(lambda: gone(lambda: wire.client.get_job(crash.deleting)))
    wire.until(lambda: gone(lambda: wire.client.get_pool(crash.deleted_pool)))
    wire.until(lambda: list((wire.service.data / "nodes").iterdir()) == [wire.root(crash.nodes[0])])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stop_is_quick_and_leaves_no_process(own: Callable[[], Wire], how: signal.Signals) -> None:
    wire = own()
    job = wire.job(wire.pool(1, 2))
    command = "/bin/sh -c 'trap \"\" TERM INT; setsid sleep 631 & sleep 632'"
    tasks = [wire.add(job, command) for _ in range(2)]
    for task in tasks:
        wire.until(lambda task=task: len(processes(task)) == 3)  # type: ignore[misc]
    service = psutil.Process(wire.service.pid)
    os.kill(wire.service.pid, how)
    assert service.wait(5) == 0
    assert not [process for task in tasks for process in processes(task)]
    if how == signal.SIGTERM:
        wire = own()
        for task in tasks:
            wire.state(job, task, "running")


#: What a service cannot read, of each kind of which it keeps rows: a later version may have written it, or a bad disk.
UNREADABLE = """
    UPDATE entity SET body = 'no json' WHERE uid = (SELECT min(uid) FROM entity WHERE kind = 'pool');
    UPDATE entity SET body = '{"' WHERE uid = (SELECT min(uid) FROM entity WHERE kind = 'job');
    UPDATE state SET state = '[]' WHERE uid = (SELECT max(uid) FROM entity WHERE kind = 'node');
    UPDATE state SET state = 'no' WHERE uid = (SELECT max(uid) FROM entity WHERE kind = 'task');
"""


def test_what_cannot_be_resumed_keeps_nothing_else_from_it(own: Callable[[], Wire]) -> None:
    wire = own()
    first, second = wire.pool(2), wire.pool(2)
    broken, fine = wire.job(first), wire.job(second)
    for job in (broken, fine):
        wire.run(job, "/bin/echo before")
    wire.service.stop()
    state = wire.service.data / "state.sqlite"
    shutil.copy(state, state.with_name("kept.sqlite"))
    with contextlib.closing(sqlite3.connect(state)) as database:
        database.executescript(UNREADABLE)
    wire = own()
    log = (wire.service.data / "service.log").read_text()
    assert log.count("cannot be resumed; it is left as it is, and the rest goes on") == 4
    assert [pool.id for pool in wire.client.list_pools()] == [second]
    assert wire.text(fine, wire.run(fine, "/bin/echo after").id) == "after\n"
    # All was left in the store, with what belongs to it: once it can be read, it is there again.
    wire.service.stop()
    with contextlib.closing(sqlite3.connect(state)) as database:
        database.execute("ATTACH ? AS kept", (str(state.with_name("kept.sqlite")),))
        for table in ("entity", "state"):
            database.execute(f"INSERT OR REPLACE INTO {table} SELECT * FROM kept.{table}")  # noqa: S608 - our own names
        database.commit()
    wire = own()
    wire.nodes(first, 2, "idle")
    wire.nodes(second, 2, "idle")
    assert [task.state for task in wire.client.list_tasks(broken)] == ["completed"]
    assert len(list(wire.client.list_tasks(fine))) == 2


def test_node_whose_directory_is_something_else_keeps_no_other_from_starting(own: Callable[[], Wire]) -> None:
    wire = own()
    pool = wire.pool(3)
    nodes = wire.nodes(pool, 3, "idle")
    roots = [wire.root(node.id) for node in nodes]
    wire.service.stop()
    for root in roots:
        shutil.rmtree(root)
    roots[0].write_text("a file")
    roots[1].symlink_to(wire.service.data)
    os.mkfifo(roots[2])
    wire = own()
    wire.nodes(pool, 3, "idle")
    job = wire.job(pool)
    for _ in range(3):
        assert wire.text(job, wire.run(job, "/bin/echo well").id) == "well\n"
    assert all(root.is_dir() and not root.is_symlink() for root in roots)
