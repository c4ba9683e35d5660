"""All that a task starts is the task's, whatever it does to its parent, its session and its environment."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from azure.batch import models as m

if TYPE_CHECKING:
    from tests.support.wire import Wire

pytestmark = [
    pytest.mark.as_user,
    pytest.mark.skipif(sys.platform != "linux", reason="macOS has nothing that processes hand on and cannot hide"),
]

#: Starts three processes that have lost their parent and left its session: one with an empty environment, one that
#: nobody may look into, one that has written over its environment. Each leaves its number as a file's name.
ESCAPE = """
import ctypes, os, sys, time
folder, stay = sys.argv[1:]
for number in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            if number == 1:
                ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
            os.close(os.open(f"{folder}/{os.getpid()}", os.O_CREAT))
            if number == 0:
                os.execve("/bin/sleep", ["sleep", "600"], {})
            if number == 2:
                os.execve(sys.executable, [sys.executable, "-c", OVERWRITE], os.environ)
            time.sleep(600)
        os._exit(0)
    os.wait()
while len(os.listdir(folder)) < 3:
    time.sleep(0.01)
if stay == "stay":
    time.sleep(600)
"""
#: What setproctitle does: the place of the environment is filled with something else.
OVERWRITE = """
import ctypes, time
start, end = [int(each) for each in open("/proc/self/stat").read().rpartition(")")[2].split()[47:49]]
ctypes.memset(start, ord("x"), end - start)
time.sleep(600)
"""


@dataclass
class Escape:
    """A command that lets processes escape, and what became of these."""

    folder: Path
    script: Path

    def command(self, stay: str = "stay") -> str:
        """The command line."""
        return f'"{sys.executable}" "{self.script}" "{self.folder}" {stay}'

    def alive(self) -> list[int]:
        """The escaped processes that run."""
        return [pid for pid in self.pids() if runs(pid)]

    def pids(self) -> list[int]:
        """The escaped processes."""
        return [int(each.name) for each in self.folder.iterdir()]


def runs(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def hangup() -> Iterator[Callable[[signal.Handlers], None]]:
    """Say what services begin with at SIGHUP, which is handed on: under nohup these tests were told to ignore it."""
    before = signal.getsignal(signal.SIGHUP)

    def begin_with(handler: signal.Handlers) -> None:
        signal.signal(signal.SIGHUP, handler)

    yield begin_with
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def escape(tmp_path: Path) -> Iterator[Escape]:
    made = Escape(tmp_path / "pids", tmp_path / "escape.py")
    made.folder.mkdir()
    made.script.write_text(f"OVERWRITE = {OVERWRITE!r}\n{ESCAPE}")
    yield made
    for pid in made.alive():
        os.kill(pid, signal.SIGKILL)


def test_what_escaped_ends_with_its_task(wire: Wire, job: str, escape: Escape) -> None:
    task = wire.run(job, escape.command("leave"))
    assert task.execution_info is not None
    assert task.execution_info.exit_code == 0
    assert len(escape.pids()) == 3
    assert escape.alive() == []


def test_what_escaped_goes_on_while_its_task_does(wire: Wire, job: str, escape: Escape) -> None:
    task = wire.add(job, escape.command())
    wire.until(lambda: len(escape.pids()) == 3)
    for _ in range(5):
        wire.run(job, "/bin/true")
    assert len(escape.alive()) == 3
    wire.client.terminate_task(job, task)
    wire.state(job, task, "completed")
    assert escape.alive() == []


def test_deleted_task_takes_along_what_escaped(wire: Wire, job: str, escape: Escape) -> None:
    task = wire.add(job, escape.command())
    wire.until(lambda: len(escape.pids()) == 3)
    wire.client.delete_task(job, task)
    wire.until(lambda: not escape.alive())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_service_takes_along_what_escaped(
    own: Callable[[], Wire], escape: Escape, how: signal.Signals, hangup: Callable[[signal.Handlers], None]
) -> None:
    hangup(signal.SIG_DFL)
    wire = own()
    wire.add(wire.job(wire.pool()), escape.command())
    wire.until(lambda: len(escape.pids()) == 3)
    service = psutil.Process(wire.service.pid)
    os.kill(wire.service.pid, how)
    code = service.wait(10)
    if how != signal.SIGKILL:
        assert code == 0
        assert escape.alive() == []
    # A service that is killed leaves it to its helper, which sees that.
    wire.until(lambda: not escape.alive())


def test_service_under_nohup_outlives_its_terminal(
    own: Callable[[], Wire], hangup: Callable[[signal.Handlers], None]
) -> None:
    hangup(signal.SIG_IGN)
    wire = own()
    os.kill(wire.service.pid, signal.SIGHUP)
    assert wire.run(wire.job(wire.pool()), "/bin/true").execution_info is not None
    wire.service.stop()


def test_service_that_was_killed_with_its_helper_finds_what_escaped(own: Callable[[], Wire], escape: Escape) -> None:
    wire = own()
    job = wire.job(wire.pool())
    task = wire.add(job, escape.command())
    wire.until(lambda: len(escape.pids()) == 3)
    service = psutil.Process(wire.service.pid)
    service.suspend()
    for helper in service.children():
        helper.kill()
    service.kill()
    service.wait(10)
    old = escape.alive()
    assert len(old) == 3
    wire = own()
    assert not [pid for pid in old if runs(pid)]
    wire.client.delete_task(job, task)


def test_lost_helper_takes_along_what_escaped(own: Callable[[], Wire], escape: Escape) -> None:
    wire = own()
    job = wire.job(wire.pool())
    task = wire.add(job, escape.command())
    wire.until(lambda: len(escape.pids()) == 3)
    old = escape.alive()
    (helper,) = psutil.Process(wire.service.pid).children()
    helper.kill()
    # It runs again, and that only after the old processes are gone.
    wire.until(lambda: len(escape.pids()) > 3)
    assert not [pid for pid in old if runs(pid)]
    wire.client.delete_task(job, task)
    wire.until(lambda: not escape.alive())


def test_what_a_start_task_left_behind_goes_with_its_node(wire: Wire, escape: Escape) -> None:
    start = m.BatchStartTask(command_line=escape.command("leave"), wait_for_success=True)
    pool = wire.pool(1, start_task=start)
    assert len(escape.alive()) == 3
    wire.run(wire.job(pool), "/bin/true")
    assert len(escape.alive()) == 3
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()
    assert escape.alive() == []


def test_client_cannot_say_whose_a_process_is(wire: Wire, job: str) -> None:
    names = ("AZ_BATCH_NODE_ROOT_DIR", "AZ_BATCH_TASK_DIR")
    settings = [m.EnvironmentSetting(name=name, value="/elsewhere") for name in names]
    task = wire.run(job, "/usr/bin/env", environment_settings=settings)
    assert "/elsewhere" not in wire.text(job, task.id)


def test_output_of_what_escaped_is_complete_before_the_task_is(wire: Wire, job: str, tmp_path: Path) -> None:
    script = tmp_path / "write.py"
    script.write_text(
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    while True:\n"
        "        os.write(1, b'x')\n"
        "time.sleep(0.2)\n"
    )
    task = wire.run(job, f'"{sys.executable}" "{script}"')
    size = len(wire.text(job, task.id))
    assert size
    assert len(wire.text(job, task.id)) == size


def test_what_a_coordination_command_left_ends_with_the_task(wire: Wire, escape: Escape, tmp_path: Path) -> None:
    job = wire.job(wire.pool(2, 1, enable_inter_node_communication=True))
    gate = tmp_path / "gate"
    # Both nodes' commands count up to three; whatever comes later is among what is looked at.
    settings = m.MultiInstanceSettings(number_of_instances=2, coordination_command_line=escape.command("leave"))
    command = f"/bin/sh -c 'until test -e \"{gate}\"; do sleep 0.02; done'"
    task = wire.add(job, command, multi_instance_settings=settings)
    wire.until(lambda: len(escape.alive()) == 6)
    gate.touch()
    wire.state(job, task, "completed")
    assert escape.alive() == []
    assert len(escape.pids()) == 6
