"""A number goes on to all that a process starts, and is there to be asked for, whatever those processes do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from airflow_batchwrap.local.node import owned

pytestmark = [
    pytest.mark.as_user,
    pytest.mark.skipif(sys.platform != "linux", reason="macOS has nothing that processes hand on and cannot hide"),
]

CARRIED = owned.tag(owned.owner("/somewhere"), 7)
#: Says its number, and waits for a line.
SLEEPER = "import ctypes, os; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); print(os.getpid(), flush=True); input()"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that nobody may look into, started through others that hide it."""
    with owned.handing_on(CARRIED):
        command = ["env", "-i", "setsid", "--fork", sys.executable, "-c", SLEEPER]
        started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with started:
        yield started
        assert started.stdin is not None
        started.stdin.close()


def number(sleeper: subprocess.Popen[bytes]) -> int:
    assert sleeper.stdout is not None
    return int(sleeper.stdout.readline())


def test_number_goes_on_and_stays_with_what_was_started(sleeper: subprocess.Popen[bytes]) -> None:
    pid = number(sleeper)
    assert owned.SUPPORTED
    assert owned.carried_by(pid) == CARRIED
    assert owned.owner_of(CARRIED) == owned.owner("/somewhere")
    assert owned.carrying(CARRIED.__eq__) == [pid]
    assert owned.carried_by(os.getpid()) != CARRIED


def test_what_carries_a_number_is_ended(sleeper: subprocess.Popen[bytes]) -> None:
    pid = number(sleeper)
    assert owned.end(lambda: owned.carrying(CARRIED.__eq__), 10) == []
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_number_of_another_directory_is_another(tmp_path: Path) -> None:
    before = owned.owner(str(tmp_path))
    assert owned.owner(str(tmp_path)) == before
    assert owned.owner(str(tmp_path.parent)) != before
    assert owned.owner_of(0) == -1


def test_there_is_no_number_where_there_is_no_process() -> None:
    with subprocess.Popen(["/bin/true"]) as gone:
        gone.wait()
    assert owned.carried_by(gone.pid) == 0
    assert owned.carried_by(1) == 0


def test_orphans_are_adopted(tmp_path: Path) -> None:
    program = (
        "import os, subprocess, sys, time; from airflow_batchwrap.local.node import family, owned\n"
        "assert family.adopt_orphans()\n"
        "subprocess.run(['setsid', '--fork', 'sleep', '600'], check=True)\n"
        "print(*owned.descendants(os.getpid()), flush=True)\n"
        "owned.kill(owned.descendants(os.getpid()))\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    orphan, code = done.stdout.splitlines()
    assert orphan.isdigit()
    assert int(code) == -signal.SIGKILL


def test_children_are_the_same_by_both_ways_to_find_them(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", CHILDREN]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True 200 200 []\n"


#: More than the kernel names at once, some of them ended; then what is left when all are buried.
CHILDREN = """
import os, signal
from airflow_batchwrap.local.node import family, owned
pids = []
for number in range(200):
    if (pid := os.fork()) == 0:
        if number % 3:
            signal.pause()
        os._exit(0)
    pids.append(pid)
mine = family.Family()
found = mine.look(pids[:1])
same = sorted(mine.children()) == sorted(owned.children(os.getpid())) == sorted(pids)
mine.orphans[pids[0]] = 0
mine.kill(pids)
for _ in pids:
    mine.bury(os.wait()[0])
print(found and same, len(pids), len(set(pids)), list(mine.orphans))
"""


def test_number_given_away_tells_that_somebody_had_it() -> None:
    program = (
        "import os, resource, subprocess, sys\n"
        "from airflow_batchwrap.local.node import owned\n"
        "owned.carry(owned.tag(3, 4), sealed=True)\n"
        "give = 'import resource; resource.setrlimit(10, (7, resource.getrlimit(10)[1])); print(1, flush=True)"
        "; input()'\n"
        "child = subprocess.Popen([sys.executable, '-c', give], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "input()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert owned.carried_by(parent.pid) == owned.tag(3, 4)
        assert owned.carried_by(pid) == 0
        assert owned.is_sealed(pid)
        assert not owned.is_sealed(os.getpid())
        os.kill(pid, signal.SIGKILL)
        parent.kill()
