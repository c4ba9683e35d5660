"""What a task does to its directories keeps nobody from listing, deleting and starting again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from azure.core.exceptions import HttpResponseError

if TYPE_CHECKING:
    from tests.support.wire import Wire

pytestmark = pytest.mark.as_user

#: 1,500 directories, one in the other, and then no rights on the first ones.
DEEP = """
import os
top = os.open(".", os.O_RDONLY)
for _ in range(1500):
    os.mkdir("d")
    open("file", "w").close()
    os.chdir("d")
os.chdir(top)
os.chmod("d/d", 0o{locked})
os.chmod("d", 0o{locked})
"""


@pytest.fixture
def deep(tmp_path: Path) -> Callable[[str], str]:
    def command(locked: str) -> str:
        script = tmp_path / f"deep-{locked}.py"
        script.write_text(DEEP.replace("{locked}", locked))
        return f'"{sys.executable}" "{script}"'

    return command


def test_deep_directories_are_listed_and_deleted(wire: Wire, job: str, deep: Callable[[str], str]) -> None:
    task = wire.run(job, deep("755"))
    names = [str(file.name) for file in wire.client.list_task_files(job, task.id, recursive=True)]
    assert sum(name.endswith("/d") for name in names) == 1500
    assert sum(name.endswith("/file") for name in names) == 1500
    assert task.node_info is not None
    wire.client.delete_task(job, task.id)
    directory = wire.root(task.node_info.node_id) / "workitems" / job / "job-1" / task.id
    wire.until(lambda: not directory.exists())


def test_locked_directories_are_deleted_by_their_owner(wire: Wire, job: str, deep: Callable[[str], str]) -> None:
    task = wire.run(job, deep("0"))
    assert list(wire.client.list_task_files(job, task.id, recursive=True))
    wire.client.delete_task_file(job, task.id, "wd/d", recursive=True)
    assert "wd/d" not in {file.name for file in wire.client.list_task_files(job, task.id, recursive=True)}


def test_locked_file_is_deleted_and_not_shown(wire: Wire, job: str) -> None:
    task = wire.run(job, "/bin/sh -c 'mkdir a; echo x > a/b; chmod 0 a/b; chmod 500 a'")
    wire.client.delete_task_file(job, task.id, "wd/a/b")
    with pytest.raises(HttpResponseError) as caught:
        wire.client.get_task_file_properties(job, task.id, "wd/a/b")
    assert caught.value.status_code == 404


def test_task_that_locks_its_node_keeps_nobody_from_working(own: Callable[[], Wire]) -> None:
    wire = own()
    pool = wire.pool(1)
    job = wire.job(pool)
    lock = "chmod 0 $AZ_BATCH_TASK_DIR/.. $AZ_BATCH_NODE_ROOT_DIR/workitems"
    first = wire.run(job, f"/bin/sh -c '{lock}'")
    for _ in range(2):
        task = wire.run(job, "/bin/echo works")
        assert task.execution_info is not None
        assert task.execution_info.exit_code == 0
        assert wire.text(job, task.id) == "works\n"
    wire.run(job, f"/bin/sh -c '{lock}; chmod 0 $AZ_BATCH_NODE_ROOT_DIR'")
    wire.client.delete_task(job, first.id)
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()
    assert list((wire.service.data / "nodes").iterdir()) == []
    assert "Traceback" not in (wire.service.data / "service.log").read_text()


def test_service_starts_whatever_a_task_left(own: Callable[[], Wire], deep: Callable[[str], str]) -> None:
    wire = own()
    job = wire.job(wire.pool(1))
    task = wire.run(job, deep("0"))
    assert task.node_info is not None
    # As after a crash in the midst of a deletion: nobody knows this node any more.
    root = wire.root(task.node_info.node_id)
    (root / "workitems" / job / "job-1" / task.id / "wd").rename(root.parent / "unknown")
    wire.service.stop()
    wire = own()
    # The service does not wait for it.
    wire.until(lambda: {path.name for path in (wire.service.data / "nodes").iterdir()} == {root.name})
    wire.run(job, "/bin/true")
    assert "Traceback" not in (wire.service.data / "service.log").read_text()
