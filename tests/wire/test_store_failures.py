"""A state that cannot be written for a while: nothing is shown or started that is not kept, and nothing is lost."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from azure.batch import models as m
from azure.core.exceptions import AzureError

from airflow_batchwrap.local import runner
from tests.support.polling import until
from tests.support.wire import Services, Wire, connect

#: How long something is watched that must not come, in seconds.
WATCHED = 1.5


@contextlib.contextmanager
def locked(data: Path) -> Iterator[None]:
    """Another program that has the state to itself."""
    with contextlib.closing(sqlite3.connect(data / "state.sqlite", isolation_level=None, timeout=10)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextlib.contextmanager
def full(pid: int) -> Iterator[None]:
    """A disk without room: no file of a process may grow beyond a page."""
    process = psutil.Process(pid)
    before = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (4096, before[1]))
    yield
    process.rlimit(psutil.RLIMIT_FSIZE, before)


class Asked(threading.Thread):
    """A request on a connection of its own, which is answered some time."""

    def __init__(self, wire: Wire, ask: Callable[[Any], Any]) -> None:
        super().__init__()
        self._wire, self._ask = wire, ask
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        """Wait for the answer."""
        with connect(self._wire.service) as client:
            try:
                self.answer = self._ask(client)
            except AzureError as error:
                self.answer = error

    def waits(self) -> bool:
        """Whether there is no answer, after a while."""
        self.join(WATCHED)
        return self.is_alive()


def test_task_that_is_reactivated_starts_once_that_is_kept(services: Services, tmp_path: Path) -> None:
    data, mark = tmp_path / "data", tmp_path / "mark"
    wire = services(data)
    job = wire.job(wire.pool())
    task = str(wire.run(job, f"/bin/sh -c 'echo x >> {mark}; exit 3'").id)
    with locked(data):
        again = Asked(wire, lambda client: client.reactivate_task(job, task) or "reactivated")
        assert again.waits()
        assert mark.read_text() == "x\n"
    again.join()
    assert again.answer == "reactivated"
    wire.until(lambda: mark.read_text() == "x\nx\n")
    assert wire.state(job, task, "completed").execution_info.exit_code == 3  # type: ignore[union-attr]


def test_no_error_says_what_is_not_kept(services: Services, tmp_path: Path) -> None:
    data = tmp_path / "data"
    wire = services(data)
    job = wire.job("nowhere")
    task = wire.add(job, "/bin/true")
    late = m.BatchJobCreateOptions(id="late", pool_info=m.BatchPoolInfo(pool_id="nowhere"))
    with locked(data):
        wishes = [
            Asked(wire, lambda client: client.create_job(late) or "made"),
            Asked(wire, lambda client: client.delete_task(job, task) or "deleted"),
        ]
        assert wishes[0].waits()
        assert wishes[1].is_alive()
        # A crash now would take both back: nobody may hear that they are done.
        others = [
            Asked(wire, lambda client: client.create_job(late)),
            Asked(wire, lambda client: client.get_task(job, task)),
        ]
        assert others[0].waits()
        assert others[1].is_alive()
    for one in (*wishes, *others):
        one.join()
    assert [wish.answer for wish in wishes] == ["made", "deleted"]
    assert ["JobExists" in str(others[0].answer), "TaskNotFound" in str(others[1].answer)] == [True, True]


@pytest.mark.parametrize("fault", ["locked", "full"])
def test_nothing_is_shown_or_started_that_is_not_kept(services: Services, tmp_path: Path, fault: str) -> None:
    data, mark = tmp_path / "data", tmp_path / "mark"
    wire = services(data)
    job = wire.job(wire.pool())
    with locked(data) if fault == "locked" else full(wire.service.pid):
        late = m.BatchJobCreateOptions(id="late", pool_info=m.BatchPoolInfo(pool_id="nowhere"))
        task = m.BatchTaskCreateOptions(id="late", command_line=f"/bin/sh -c 'echo x >> {mark}'")
        made = [
            Asked(wire, lambda client: client.create_job(late) or "made"),
            Asked(wire, lambda client: client.create_task(job, task) or "made"),
        ]
        assert made[0].waits()
        assert made[1].waits()
        seen = [
            Asked(wire, lambda client: client.get_job("late").id),
            Asked(wire, lambda client: client.get_task(job, "late").id),
            Asked(wire, lambda client: [one.id for one in client.list_jobs()]),
        ]
        assert seen[0].waits()
        assert seen[1].is_alive()
        assert seen[2].is_alive()
        assert not mark.exists()
    for asked in (*made, *seen):
        asked.join(20)
    assert [asked.answer for asked in (*made, *seen)] == ["made", "made", "late", "late", [job, "late"]]
    assert wire.state(job, "late", "completed").execution_info.exit_code == 0  # type: ignore[union-attr]
    text = (data / "service.log").read_text()
    assert "cannot be written" in text
    if fault == "locked":
        # With no room on the disk there is none for the log either.
        assert "is written again, after" in text
    wire.service.stop()
    again = services(data)
    assert {one.id for one in again.client.list_jobs()} == {job, "late"}
    assert mark.read_text() == "x\n"


def test_service_that_cannot_write_for_long_says_so_and_ends(services: Services, tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = [sys.executable, "-m", "airflow_batchwrap.local", "serve", "--data", str(data), "--store-patience", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as serving:
        service = until(lambda: runner.attach(data), "the service")
        assert service is not None
        with connect(service) as client:
            wire = Wire(service, client)
            job = wire.job(wire.pool())
            with locked(data):
                options = m.BatchJobCreateOptions(id="late", pool_info=m.BatchPoolInfo(pool_id="nowhere"))
                with pytest.raises(AzureError):
                    client.create_job(options)
                errors = serving.communicate(timeout=60)[1]
    assert serving.returncode == 1
    assert re.search(r"could not be written for 1 s \(database is locked\), so the service ends", errors)
    assert "start it again" in errors
    again = services(data)
    assert [one.id for one in again.client.list_jobs()] == [job]
    assert again.run(job, "true").execution_info.exit_code == 0  # type: ignore[union-attr]
