"""Starting, finding and stopping the service; its data directory, key, port and addresses."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from azure.batch import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from typer.testing import CliRunner

from airflow_batchwrap.local import runner
from airflow_batchwrap.local.commands import app
from airflow_batchwrap.local.home import DEV_KEY
from airflow_batchwrap.local.runner import LocalService, LocalServiceError
from tests.support.polling import until
from tests.support.raw import signed

if TYPE_CHECKING:
    from tests.support.wire import Wire

pytestmark = pytest.mark.as_user


def batchwrap_local(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the service's command line."""
    command = [sys.executable, "-m", "airflow_batchwrap.local", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def pools(service: LocalService, key: str | None = None) -> list[str]:
    """The ids of a service's pools."""
    credential = AzureNamedKeyCredential(service.account, key or service.key)
    with BatchClient(service.url, credential, retry_total=0) as client:
        return [pool.id for pool in client.list_pools()]


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data directory; what runs on it afterwards is stopped."""
    yield tmp_path / "data"
    if (left := runner.attach(tmp_path / "data")) is not None:
        left.stop()


def test_service_is_found_and_stopped(data: Path, service: LocalService) -> None:
    assert runner.attach(data) is None
    other, service = service, runner.start(data, account="mine")
    assert service.key != other.key
    assert service.account == "mine"
    assert service.url.startswith("http://127.0.0.1:")
    assert runner.attach(data) == service
    assert pools(service) == []
    service.stop()
    assert not psutil.pid_exists(service.pid)
    assert runner.attach(data) is None
    service.stop()


def test_key_is_random_private_kept_and_not_shown(data: Path) -> None:
    service = runner.start(data)
    mode = (data / "key").stat().st_mode & 0o777
    assert mode == 0o600
    assert (data / "key").read_text().strip() == service.key
    assert service.key not in repr(service)
    assert service.key != DEV_KEY
    assert data.stat().st_mode & 0o077 == 0
    service.stop()
    again = runner.start(data)
    assert again.key == service.key


def test_second_service_on_the_directory_is_refused(service: LocalService) -> None:
    with pytest.raises(LocalServiceError, match=r"runs on .* already") as caught:
        runner.start(service.data)
    assert str(service.pid) in str(caught.value)
    assert runner.attach(service.data) == service


def test_taken_port_is_told(data: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LocalServiceError, match=f"Port {port} on 127.0.0.1 is taken"):
            runner.start(data, port=port)


def test_note_of_a_dead_service_is_not_believed(data: Path) -> None:
    service = runner.start(data)
    os.kill(service.pid, signal.SIGKILL)
    until(lambda: runner.attach(data) is None, "the service's end", 10)
    assert (data / "service.json").exists()
    service.stop()
    runner.start(data).stop()


def test_command_line(data: Path) -> None:
    started = batchwrap_local("start", "--data", data, "--account", "cli")
    assert started.returncode == 0, started.stderr
    service = runner.attach(data)
    assert service is not None
    assert service.url in started.stdout
    assert service.key not in started.stdout
    status = batchwrap_local("status", "--data", data)
    assert (status.returncode, status.stdout) == (0, started.stdout)
    stopped = batchwrap_local("stop", "--data", data)
    assert (stopped.returncode, stopped.stdout) == (0, f"Stopped {service.url}.\n")
    assert runner.attach(data) is None
    for command in ("status", "stop"):
        answer = batchwrap_local(command, "--data", data)
        assert answer.returncode == 1
        assert "No local Batch service runs" in answer.stderr


def test_key_can_be_given_and_does_not_show_in_the_process_list(data: Path) -> None:
    key = base64.b64encode(bytes(range(32))).decode()
    assert batchwrap_local("start", "--data", data, "--key", key).returncode == 0
    service = runner.attach(data)
    assert service is not None
    assert service.key == key
    assert not [part for part in psutil.Process(service.pid).cmdline() if key in part]
    assert pools(service) == []


def test_directory_holds_what_the_page_says(data: Path) -> None:
    """docs/local-service.md, Running it."""
    service = runner.launch(data, ["--tls"])
    page = (Path(__file__).parents[2] / "docs/local-service.md").read_text(encoding="utf-8")
    said = re.search(r"^`DIR` holds .*?\n\n", page, re.M | re.S)
    assert said is not None
    names = set(re.findall(r"`([^`]+)`", said[0]))
    names |= {f"state.sqlite{end}" for end in ("-wal", "-shm")}
    running = {path.name for path in data.iterdir()}
    assert running <= names
    assert {path.stat().st_mode & 0o077 for path in data.iterdir()} == {0}
    service.stop()
    gone = {"service.json", "state.sqlite-wal", "state.sqlite-shm"}
    assert {path.name for path in data.iterdir()} == running - gone


def test_started_service_waits_for_its_state_as_long_as_it_was_asked_to(data: Path) -> None:
    assert batchwrap_local("start", "--data", data, "--store-patience", "0.5").returncode == 0
    service = runner.attach(data)
    assert service is not None
    with contextlib.closing(sqlite3.connect(data / "state.sqlite", isolation_level=None, timeout=10)) as other:
        other.execute("BEGIN EXCLUSIVE")
        refused, answer = signed(service, "POST", "/jobs", body={"id": "j", "poolInfo": {"poolId": "p"}})
        assert (refused, answer["code"]) == (500, "InternalError")
        until(lambda: runner.attach(data) is None, "the service's end", 20)
    assert "could not be written for 0.5 s" in (data / "service.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dev-key", "--key", ""], "not both"),
        (["--host", "192.0.2.1", "--plain-http"], "Cannot listen on 192.0.2.1"),
    ],
)
def test_refused_options(data: Path, arguments: list[str], said: str) -> None:
    answer = CliRunner().invoke(app, ["serve", "--data", str(data), *arguments])
    assert answer.exit_code == 1
    assert said in answer.stderr
    assert isinstance(answer.exception, SystemExit)


def test_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalServiceError, match="cannot be made"):
        runner.start(tmp_path / "file" / "below")


def test_start_task_finds_nothing_of_the_services_environment(
    own: Callable[[], Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVICE", "x")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    wire = own()
    job = wire.job(wire.pool(1))
    task = wire.run(job, "/usr/bin/env")
    names = {line.partition("=")[0] for line in wire.text(job, task.id).splitlines()}
    assert {name for name in names if not name.startswith("AZ_BATCH_")} <= {"PATH", "LANG", "HOME"}


def test_state_that_cannot_be_read_is_told(data: Path) -> None:
    data.mkdir()
    (data / "state.sqlite").write_bytes(b"this is no database, and never was" * 100)
    with pytest.raises(LocalServiceError, match="cannot be read") as caught:
        runner.start(data)
    assert "Traceback" not in str(caught.value)
