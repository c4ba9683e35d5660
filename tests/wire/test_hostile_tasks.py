"""Tasks that attack what watches them: the number they carry, their parent, the helper process, its files' place."""

from __future__ import annotations

import errno
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

from tests.support import hostile

if TYPE_CHECKING:
    from tests.support.wire import Wire

pytestmark = [
    pytest.mark.as_user,
    pytest.mark.skipif(sys.platform != "linux", reason="macOS has nothing that processes hand on and cannot hide"),
]


@dataclass
class Deed:
    """A command that does something hostile, and what is to be seen of it."""

    folder: Path

    def command(self, deed: str, *more: str) -> str:
        """The command line."""
        return " ".join([f'"{sys.executable}" "{hostile.__file__}" {deed} "{self.folder}"', *more])

    def alive(self) -> list[int]:
        """What it started and still runs."""
        return [pid for pid in (int(each.name) for each in self.folder.iterdir() if each.name.isdigit()) if runs(pid)]

    def beats(self) -> int:
        """How often it was seen alive."""
        beat = self.folder / "beat"
        return beat.stat().st_size if beat.exists() else 0


def runs(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def helper_of(wire: Wire) -> psutil.Process:
    """The process that starts a service's commands."""
    (found,) = psutil.Process(wire.service.pid).children()
    return found


@pytest.fixture
def deed(tmp_path: Path) -> Iterator[Deed]:
    made = Deed(tmp_path / "seen")
    made.folder.mkdir()
    yield made
    for pid in made.alive():
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("how", ["tamper", "lower", "reap", "bomb"])
def test_what_hides_ends_with_its_task(wire: Wire, job: str, deed: Deed, how: str) -> None:
    wire.run(job, deed.command(how))
    assert any(deed.folder.iterdir())
    assert deed.alive() == []


def test_fork_bomb_ends_when_its_task_is_terminated(wire: Wire, job: str, deed: Deed) -> None:
    task = wire.add(job, deed.command("bomb", "stay"))
    wire.until(lambda: len(deed.alive()) >= 2**hostile.GENERATIONS)
    wire.client.terminate_task(job, task)
    wire.state(job, task, "completed")
    assert deed.alive() == []


def test_chain_of_short_lives_ends_with_its_task(wire: Wire, job: str, deed: Deed) -> None:
    wire.run(job, deed.command("hop"))
    before = deed.beats()
    assert before
    # As long as it had for the beats so far.
    wire.run(job, "/bin/sleep 0.2")
    assert deed.beats() == before


def test_stopped_helper_goes_on(own: Callable[[], Wire], deed: Deed) -> None:
    wire = own()
    job = wire.job(wire.pool())
    task = wire.run(job, deed.command("stop_parent"))
    assert task.execution_info is not None
    assert task.execution_info.result == "success"
    assert deed.alive() == []


def test_service_that_is_killed_takes_along_what_stopped_its_helper(own: Callable[[], Wire], deed: Deed) -> None:
    wire = own()
    wire.add(wire.job(wire.pool()), "/bin/sleep 600")
    helper = helper_of(wire)
    commands = wire.until(helper.children)
    helper.suspend()
    os.kill(wire.service.pid, signal.SIGKILL)
    wire.until(lambda: not any(runs(each.pid) for each in commands))


@pytest.mark.soak
def test_traced_helper_is_replaced(own: Callable[[], Wire], deed: Deed) -> None:
    if os.getuid():
        pytest.skip("nobody but root may trace a helper process")
    wire = own()
    job = wire.job(wire.pool(1, 2))
    task = wire.add(job, deed.command("trace_parent"))
    wire.until(deed.beats)
    # Given up and replaced after 10 s; what it had started goes with it, and is run again.
    wire.run(job, "/bin/true")
    wire.state(job, task, "completed")
    assert deed.alive() == []


def test_service_stops_with_a_traced_helper(own: Callable[[], Wire], deed: Deed) -> None:
    wire = own()
    wire.add(wire.job(wire.pool()), deed.command("trace_parent"))
    wire.until(deed.beats)
    # Root alone may do that to a helper, and has to wait until the helper is given up.
    assert (deed.folder / "traced").read_text() == ("yes" if os.getuid() == 0 else os.strerror(errno.EPERM))
    wire.service.stop()
    assert deed.alive() == []


def test_helper_that_a_task_kills_takes_along_what_hid(own: Callable[[], Wire], deed: Deed) -> None:
    wire = own()
    job = wire.job(wire.pool())
    task = wire.add(job, deed.command("kill_parent"))
    wire.until(deed.beats)
    wire.until(lambda: not deed.alive())
    wire.client.delete_task(job, task)


def test_place_of_the_output_is_the_services(own: Callable[[], Wire], tmp_path: Path) -> None:
    wire = own()
    (tmp_path / "mine").write_text("mine")
    trap = (
        "/bin/sh -c 'cd ..; if test -e tried; then echo again; exit 0; fi; touch tried; rm stdout.txt stderr.txt; "
        f'mkfifo stdout.txt; ln -s "{tmp_path}/mine" stderr.txt; exit 1\''
    )
    start = m.BatchStartTask(command_line=trap, wait_for_success=True, max_task_retry_count=1)
    pool = wire.pool(1, start_task=start)
    (node,) = wire.nodes(pool, 1, "idle")
    text = b"".join(wire.client.download_node_file(pool, node.id, "startup/stdout.txt")).decode()
    assert text == "again\n"
    assert (tmp_path / "mine").read_text() == "mine"
