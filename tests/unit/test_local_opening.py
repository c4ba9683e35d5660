"""Files in a task's reach are opened by descriptors: nothing hangs or leads out, whatever is put in their place."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from airflow_batchwrap.local.node import opening, threads, walking
from airflow_batchwrap.local.node.incoming import Incoming, PlaceError
from airflow_batchwrap.local.node.lanes import TOGETHER, Lanes

pytestmark = pytest.mark.as_user


def listen(path: Path) -> None:
    """Leave a socket at a path."""
    with socket.socket(socket.AF_UNIX) as server:
        # Relative, since the address of a socket is 107 bytes at most.
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            server.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)


#: What can stand in a file's place.
INSTEAD: dict[str, Callable[[Path, Path], object]] = {
    "pipe": lambda place, outside: os.mkfifo(place),
    "link": lambda place, outside: place.symlink_to(outside),
    "link to nothing": lambda place, outside: place.symlink_to(outside.with_name("new")),
    "loop": lambda place, outside: place.symlink_to(place.name),
    "device": lambda place, outside: place.symlink_to("/dev/full"),
    "second name": lambda place, outside: place.hardlink_to(outside),
    "directory": lambda place, outside: place.mkdir(),
    "full directory": lambda place, outside: (place / "full").mkdir(parents=True),
}
if Path("/proc/self/fd").exists():
    INSTEAD["socket"] = lambda place, outside: listen(place)


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("instead", INSTEAD)
def test_writing_makes_way(tmp_path: Path, instead: str, append: bool) -> None:
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (tmp_path / "task").mkdir()
    INSTEAD[instead](tmp_path / "task" / "out.txt", outside)
    directory = opening.descend(tmp_path, ("task",))
    try:
        with os.fdopen(opening.writing(directory, "out.txt", append=append), "w") as file:
            file.write("mine")
    finally:
        os.close(directory)
    assert (tmp_path / "task" / "out.txt").read_text() == "mine"
    assert stat.S_ISREG((tmp_path / "task" / "out.txt").lstat().st_mode)
    assert outside.read_text() == "untouched"
    assert not (tmp_path / "new").exists()


def test_appending_goes_on_and_writing_begins_anew(tmp_path: Path) -> None:
    directory = opening.descend(tmp_path, ())
    try:
        for append, text in ((True, "one"), (True, "onetwo"), (False, "two")):
            with os.fdopen(opening.writing(directory, "log", append=append), "w") as file:
                file.write(text[-3:])
            assert (tmp_path / "log").read_text() == text
    finally:
        os.close(directory)


@pytest.mark.parametrize("instead", [name for name in INSTEAD if name != "second name"])
def test_reading_finds_no_file(tmp_path: Path, instead: str) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    (tmp_path / "task").mkdir()
    INSTEAD[instead](tmp_path / "task" / "out.txt", outside)
    with pytest.raises(OSError, match=r".+"):
        opening.reading(tmp_path / "task", "out.txt")


@pytest.mark.parametrize("path", ["../outside", "/outside", "a/../../outside", "out/secret", "\0", "", "."])
def test_no_path_leads_out(tmp_path: Path, path: str) -> None:
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "secret").touch()
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "out").symlink_to(tmp_path / "away")
    with pytest.raises(OSError, match=r".+"):
        opening.reading(tmp_path / "task", path)


def test_links_inside_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("text")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to(tmp_path / "b" / "file")
    for path in ("b/file", "c"):
        descriptor, status = opening.reading(tmp_path, path)
        os.close(descriptor)
        assert status.st_size == 4


def test_walk_leads_nowhere_else_while_directories_are_exchanged(tmp_path: Path) -> None:
    away, root = tmp_path / "away", tmp_path / "root"
    (away / "secret").mkdir(parents=True)
    for number in range(20):
        (root / "a" / f"{number}" / "inner").mkdir(parents=True)
    (root / "link").symlink_to(away)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            for first, second in (("a", "aside"), ("link", "a"), ("a", "link"), ("aside", "a")):
                (root / first).rename(root / second)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(200):
            for entry in walking.walk(root, True, lambda _, directory, state: (True, state)):
                assert entry is None or "secret" not in entry.name
    finally:
        over.set()
        thread.join()


def test_incoming_file_is_seen_when_it_is_whole(tmp_path: Path) -> None:
    working = tmp_path / "node" / "wd"
    working.mkdir(parents=True)
    incoming = Incoming(working, tmp_path / "node", "a/file", 0o640)
    incoming.restart()
    incoming.write(b"no")
    assert not (working / "a" / "file").exists()
    incoming.restart()
    incoming.write(b"whole")
    incoming.finish(b"!")
    incoming.discard()
    assert (working / "a" / "file").read_bytes() == b"whole!"
    assert stat.S_IMODE((working / "a" / "file").stat().st_mode) == 0o640
    assert [path.name for path in (working / "a").iterdir()] == ["file"]


@pytest.mark.parametrize("path", ["/x", "../x", "a/../../x", "", "n" * 256, "a\0b", "out/x", "file/x", "folder"])
def test_incoming_file_that_can_be_nowhere(tmp_path: Path, path: str) -> None:
    working = tmp_path / "node" / "wd"
    (working / "folder").mkdir(parents=True)
    (working / "file").touch()
    (working / "out").symlink_to(tmp_path)

    def bring() -> None:
        incoming = Incoming(working, tmp_path / "node", path, 0o640)
        try:
            incoming.restart()
            incoming.finish(b"x")
        finally:
            incoming.discard()

    with pytest.raises(PlaceError, match=r".+"):
        bring()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "node", "out", "wd"]


async def test_a_tasks_further_transfers_leave_room_for_others() -> None:
    lanes, held, full = Lanes(), asyncio.Event(), asyncio.Event()
    running: set[int] = set()

    async def hold(number: int) -> None:
        running.add(number)
        if len(running) == TOGETHER // 2 + 40:
            full.set()
        await held.wait()

    many = [asyncio.create_task(lanes.each([*range(task * 100, task * 100 + 100)], hold)) for task in range(40)]
    await asyncio.wait_for(full.wait(), 20)
    done: list[int] = []

    async def quick(number: int) -> None:
        done.append(number)

    await asyncio.wait_for(lanes.each(range(500), quick), 20)
    assert sorted(done) == list(range(500))
    assert not held.is_set()
    held.set()
    await asyncio.gather(*many)
    assert len(running) == 4000


async def test_work_in_turns_ends_with_who_waits_for_it() -> None:
    closed = threading.Event()
    went = threading.Event()

    def endless() -> Generator[None]:
        try:
            while True:
                went.set()
                yield
        finally:
            closed.set()

    task = asyncio.create_task(threads.finish(endless()))
    await asyncio.to_thread(went.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(closed.wait, 20)
