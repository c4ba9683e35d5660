"""Children are told apart from strangers, and stopped with all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from airflow_batchwrap.stack import process
from airflow_batchwrap.stack.process import ProcessId
from tests.support.polling import until

pytestmark = pytest.mark.as_user

# Starts a child that would outlive it, says so, and waits.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""

# Starts one that nobody may look into, with no parent, no session and no environment that tell whose it is: as the
# workers of an Airflow scheduler that was killed, and worse.
HIDING = """
import ctypes, os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        os.execve(sys.executable, [sys.executable, "-c", HIDDEN], {})
    os._exit(0)
os.wait()
time.sleep(600)
"""
HIDDEN = """
import ctypes, os, time
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
print(os.getpid(), flush=True)
time.sleep(600)
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="macOS has nothing that processes hand on and cannot hide")

Start = Callable[[str], ProcessId]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a script and wait until it has printed something into `log`."""
    started: list[ProcessId] = []

    def run(code: str) -> ProcessId:
        identity = ProcessId.of(process.spawn([sys.executable, "-c", code], log=tmp_path / "log"))
        assert identity is not None
        started.append(identity)
        until(lambda: bool(process.tail(tmp_path / "log")))
        return identity

    yield run
    process.stop(started, grace=0)


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_child_has_a_session_of_its_own_and_a_private_log(start: Start, tmp_path: Path) -> None:
    child = start("print('hello', flush=True); import time; time.sleep(600)")
    assert os.getsid(child.pid) == child.pid
    assert process.tail(tmp_path / "log") == "hello"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_stop_takes_the_children_along(start: Start, tmp_path: Path) -> None:
    parent = start(PARENT)
    child = int(process.tail(tmp_path / "log"))
    process.stop([parent])
    assert not runs(parent.pid)
    assert not runs(child)
    process.stop([parent])


def test_orphans_of_a_killed_parent_are_found(start: Start, tmp_path: Path) -> None:
    parent = start(PARENT)
    child = int(process.tail(tmp_path / "log"))
    os.kill(parent.pid, signal.SIGKILL)
    until(lambda: process.ended(parent.pid))
    assert runs(child)
    process.stop([parent])
    assert not runs(child)


@linux
@pytest.mark.as_user
@pytest.mark.parametrize("killed", [False, True])
def test_what_hides_is_found(start: Start, tmp_path: Path, killed: bool) -> None:
    parent = start(f"HIDDEN = {HIDDEN!r}\n{HIDING}")
    hidden = int(process.tail(tmp_path / "log"))
    assert parent.carried
    if killed:
        os.kill(parent.pid, signal.SIGKILL)
        until(lambda: process.ended(parent.pid))
    assert hidden in {each.pid for each in process.family([parent])}
    process.stop([parent], grace=0)
    assert not runs(hidden)


@linux
@pytest.mark.as_user
def test_what_hides_belongs_to_its_folder(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv(process.MARK, str(tmp_path / "one"))
    parent = start(f"HIDDEN = {HIDDEN!r}\n{HIDING}")
    hidden = int(process.tail(tmp_path / "log"))
    assert {each.pid for each in process.belonging(tmp_path / "one")} == {parent.pid, hidden}
    assert process.belonging(tmp_path / "other") == []


def test_two_that_were_started_are_told_apart(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    both = [ProcessId.of(process.spawn(sleep, log=tmp_path / "log")) for _ in range(2)]
    stopped, other = both
    assert stopped is not None
    assert other is not None
    try:
        process.stop([stopped], grace=0)
        assert (runs(stopped.pid), runs(other.pid)) == (False, True)
    finally:
        process.stop([other], grace=0)


def test_what_does_not_listen_is_killed(start: Start) -> None:
    stubborn = start(STUBBORN)
    before = time.monotonic()
    process.stop([stubborn], grace=0.3)
    assert not runs(stubborn.pid)
    assert time.monotonic() - before < 10


def test_number_given_to_another_process_is_left_alone(start: Start) -> None:
    stranger = start("print('mine', flush=True); import time; time.sleep(600)")
    recycled = ProcessId(stranger.pid, stranger.started - 60)
    assert recycled.process() is None
    assert process.family([recycled]) == []
    process.stop([recycled], grace=0)
    assert runs(stranger.pid)


def test_session_number_of_somebody_else_is_left_alone() -> None:
    # A session whose leader is gone and whose members were not started by `spawn`.
    leader = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True, env={}
    )
    assert leader.stdout is not None
    with leader.stdout:
        member = int(leader.stdout.readline())
    gone = ProcessId.of(leader.pid)
    assert gone is not None
    leader.kill()
    leader.wait()
    try:
        process.stop([gone], grace=0)
        assert runs(member)
    finally:
        os.kill(member, signal.SIGKILL)


def test_marked_processes_are_found_by_folder(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHWRAP_STACK", str(tmp_path / "up"))
    child = start("print(1, flush=True); import time; time.sleep(600)")
    pids = {found.pid for found in process.marked("BATCHWRAP_STACK", str(tmp_path / "up"))}
    assert pids == {child.pid}
    assert {found.pid for found in process.marked("BATCHWRAP_STACK", str(tmp_path))} == {child.pid}
    assert process.marked("BATCHWRAP_STACK", str(tmp_path / "u")) == []


def test_tail_gives_the_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"line {number}\n" for number in range(1000)))
    assert process.tail(tmp_path / "log", 2) == "line 998\nline 999"
    assert process.tail(tmp_path / "none") == ""
