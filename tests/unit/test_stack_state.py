"""What is written down about running services, and what a later command makes of it."""

from __future__ import annotations

import io
import os
import socket
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.stack import airflow, paths, process, services, state, up
from airflow_batchwrap.stack.process import ProcessId
from airflow_batchwrap.stack.state import Record

pytestmark = pytest.mark.as_user

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def started(log: Path) -> ProcessId:
    identity = ProcessId.of(process.spawn(SLEEP, log=log))
    assert identity is not None
    return identity


def test_record_comes_back(tmp_path: Path) -> None:
    mine = ProcessId.of(os.getpid())
    assert mine is not None
    record = Record(owner=mine, services={"azurite": mine}, addresses={"azurite": "http://127.0.0.1:1"})
    record.write(tmp_path)
    assert Record.read(tmp_path) == record
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize("content", ["", "{", '{"state": "sideways"}', "[]"])
def test_unreadable_record_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    assert Record.read(tmp_path) is None
    assert state.sweep(tmp_path) == 0


def test_sweep_stops_what_was_written_down_and_what_was_not_yet(tmp_path: Path) -> None:
    with state.mark(tmp_path):
        written, unwritten = started(tmp_path / "a.log"), started(tmp_path / "b.log")
    Record(services={"azurite": written}).write(tmp_path)
    assert state.sweep(tmp_path) == 2
    assert (written.process(), unwritten.process()) == (None, None)
    assert Record.read(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has nothing that processes hand on and cannot hide")
@pytest.mark.as_user
def test_sweep_stops_what_nobody_may_look_into(tmp_path: Path) -> None:
    # As Airflow's processes do, and with a start that was killed before it wrote anything down.
    hide = "import ctypes, time; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); print(1, flush=True); time.sleep(600)"
    with state.mark(tmp_path):
        identity = ProcessId.of(process.spawn([sys.executable, "-c", hide], log=tmp_path / "a.log"))
    assert identity is not None
    deadline = time.monotonic() + 20
    while not process.tail(tmp_path / "a.log"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [each.pid for each in state.what_is_left(tmp_path)] == [identity.pid]
    assert state.sweep(tmp_path) == 1
    assert identity.process() is None


def test_only_what_lost_its_owner_is_swept(tmp_path: Path) -> None:
    mine = ProcessId.of(os.getpid())
    assert mine is not None
    gone = ProcessId(mine.pid, mine.started - 3600)
    children = {}
    for name, owner in (("demo-alive", mine), ("demo-dead", gone), ("up", None)):
        folder = state.make_folder(tmp_path / name)
        children[name] = started(folder / "a.log")
        Record(state="up", owner=owner, services={"azurite": children[name]}).write(folder)
    try:
        assert state.sweep_abandoned(tmp_path) == [tmp_path.resolve() / "demo-dead"]
        assert {name for name, child in children.items() if child.process()} == {"demo-alive", "up"}
    finally:
        process.stop(list(children.values()), grace=0)


def test_status_names_what_died(tmp_path: Path, console: Console) -> None:
    folder = state.make_folder(tmp_path / "up")
    alive, dead = started(folder / "a.log"), ProcessId(2**22 + 1, 0.0)
    try:
        record = Record(state="up", services={"azurite": alive}, airflow={"scheduler": dead})
        record.write(folder)
        assert record.died() == ["scheduler"]
        assert not up.status(tmp_path, console)
        told = {line.split("│")[1].strip(): line for line in said(console).splitlines() if line.count("│") > 3}
        assert "died" in told["scheduler"]
        assert "running" in told["azurite"]
    finally:
        process.stop([alive], grace=0)


def test_down_where_nothing_runs_says_so(tmp_path: Path, console: Console) -> None:
    up.down(tmp_path / "never", console)
    assert said(console) == "Nothing runs.\n"
    assert not up.status(tmp_path / "never", console)
    assert not (tmp_path / "never").exists()


def test_taken_port_is_named_before_anything_starts(tmp_path: Path, console: Console) -> None:
    (tmp_path / "dags").mkdir()
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not airflow.is_free(port)
        with pytest.raises(ConfigError, match=f"Port {port} is taken"):
            up.up(up.UpOptions(tmp_path / "dags", tmp_path / "state", port), console)
    assert Record.read(tmp_path / "state/up") is None


def test_free_ports_lie_below_those_of_the_system() -> None:
    port = airflow.free_port()
    assert 20000 <= port < 32000
    assert airflow.is_free(port)


def test_missing_dag_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-dags"):
        services.find_dags(tmp_path / "no-dags")


def test_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--state"):
        state.make_folder(tmp_path / "file" / "state")


def test_cache_is_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHWRAP_CACHE", str(tmp_path))
    assert paths.cache_dir() == tmp_path
    monkeypatch.delenv("BATCHWRAP_CACHE")
    assert paths.cache_dir().name == ".cache"
