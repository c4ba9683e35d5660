"""A directory is removed whatever a task did to it, by its owner, without recursion and without noise."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from airflow_batchwrap.local.node import removal

#: Deeper than Python's recursion limit; with names of this length, also longer than a path may be.
DEEP = 1500


def nest(top: Path, depth: int, name: str = "directory") -> None:
    """Directories one in the other, each with a file, made from the inside: the path is too long to be named."""
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here))
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_any_depth_is_removed(tmp_path: Path) -> None:
    nest(tmp_path / "deep", DEEP)
    assert removal.remove(tmp_path / "deep")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.as_user
@pytest.mark.parametrize("mode", [0o000, 0o100, 0o400, 0o500])
def test_locked_directories_are_removed_by_their_owner(tmp_path: Path, mode: int) -> None:
    locked = [tmp_path / "top", tmp_path / "top/a", tmp_path / "top/a/b", tmp_path / "top/empty"]
    for directory in locked:
        directory.mkdir()
        (directory / "file").touch(0o000)
    for directory in reversed(locked):
        directory.chmod(mode)
    assert removal.remove(tmp_path / "top")
    assert not (tmp_path / "top").exists()


@pytest.mark.as_user
def test_locked_at_any_depth(tmp_path: Path) -> None:
    nest(tmp_path / "deep", 40, "d")
    path = tmp_path / "deep" / "/".join(["d"] * 40)
    for directory in [path, *path.parents[:40]]:
        directory.chmod(0o000)
    assert removal.remove(tmp_path / "deep")


@pytest.mark.as_user
def test_locked_way_to_a_directory_is_opened_but_not_above_the_nodes(tmp_path: Path) -> None:
    task = tmp_path / "nodes/node/workitems/job/task"
    task.mkdir(parents=True)
    locked = [task.parent, task.parent.parent, task.parent.parent.parent]
    for directory in locked:
        directory.chmod(0o000)
    (tmp_path / "nodes").chmod(0o500)
    assert removal.remove(task, tmp_path / "nodes")
    assert not task.exists()
    assert (tmp_path / "nodes").stat().st_mode & 0o777 == 0o500
    (tmp_path / "nodes").chmod(0o700)


def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    kept.chmod(0o500)
    (tmp_path / "top").mkdir()
    (tmp_path / "top/link").symlink_to(kept)
    (tmp_path / "instead").symlink_to(kept)
    (tmp_path / "file").touch()
    for name in ("top", "instead", "file", "none"):
        assert removal.remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").exists()
    assert kept.stat().st_mode & 0o777 == 0o500


def test_removals_that_meet_disturb_nobody(tmp_path: Path) -> None:
    for number in range(30):
        nest(tmp_path / "top" if not number else tmp_path / f"top/{number}", 40, "d")
    done: list[bool] = []
    threads = [threading.Thread(target=lambda: done.append(removal.remove(tmp_path / "top"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [True] * 4
    assert not (tmp_path / "top").exists()


def test_what_cannot_be_removed_makes_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top/file").touch()
    moved = removal.set_aside(tmp_path / "top", tmp_path / "removed")
    assert moved is not None
    assert (moved / "file").exists()
    assert not (tmp_path / "top").exists()
    assert removal.set_aside(tmp_path / "none", tmp_path / "removed") is None
