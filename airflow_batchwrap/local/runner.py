"""Start, find and stop a local Batch service from another process."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from airflow_batchwrap.local.home import ACCOUNT, Home, HomeError

#: Pause between two looks at a service that starts or stops, in seconds.
_LOOK = 0.02

#: The services this process started, so that their ends are noticed.
_children: dict[int, subprocess.Popen[bytes]] = {}


class LocalServiceError(Exception):
    """The service could not be started or stopped; the message says why."""


@dataclass(frozen=True)
class LocalService:
    """A running local Batch service.

    :param url: its address, such as ``http://127.0.0.1:1234``.
    :param account: its account's name.
    :param key: its account's key in base64.
    :param pid: its process id.
    :param data: its data directory.
    """

    url: str
    account: str
    key: str = field(repr=False)
    pid: int
    data: Path

    def stop(self, timeout: float = 10) -> None:
        """Stop it with all of its tasks' processes; one that is gone already is no error.

        :param timeout: how long it may take before it is killed, in seconds.
        :raises LocalServiceError: it could not be stopped.
        """
        home = Home(self.data)
        if home.locked():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while home.locked() or not _gone(self.pid):
            if time.monotonic() > deadline:
                if not home.locked():
                    break
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                raise LocalServiceError(
                    f"The local Batch service (process {self.pid}) did not stop within {timeout:g} s and was killed."
                )
            time.sleep(_LOOK)


def start(
    data: Path, *, port: int = 0, account: str = ACCOUNT, log: Path | None = None, timeout: float = 20.0
) -> LocalService:
    """Start a service in the background, in a session of its own, and wait until it answers.

    :param data: its data directory.
    :param port: its port; 0 for a free one.
    :param account: its account's name.
    :param log: where its messages go; by default ``service.log`` in the data directory.
    :param timeout: how long it may take to answer, in seconds.
    :return: the running service.
    :raises LocalServiceError: it did not start; the message carries the end of its log.
    """
    arguments = ["--port", str(port), "--account", account]
    return launch(data, arguments, log=log, timeout=timeout)


def launch(data: Path, arguments: list[str], *, log: Path | None = None, timeout: float = 20.0) -> LocalService:
    """Start ``serve`` with some arguments in the background; see `start`.

    :param data: its data directory.
    :param arguments: more arguments of ``serve``.
    :param log: where its messages go.
    :param timeout: how long it may take to answer, in seconds.
    :return: the running service.
    :raises LocalServiceError: it did not start.
    """
    try:
        home = Home.make(data)
    except HomeError as error:
        raise LocalServiceError(str(error)) from None
    log = log or home.path / "service.log"
    command = [sys.executable, "-m", "airflow_batchwrap.local", "serve", "--data", str(home.path), *arguments]
    offset = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + timeout
    while True:
        service = attach(home.path)
        if service is not None and service.pid == child.pid and _answers(service.url):
            _children[child.pid] = child
            return service
        if child.poll() is not None:
            raise LocalServiceError(f"The local Batch service did not start: {_tail(log, offset)}")
        if time.monotonic() > deadline:
            child.kill()
            child.wait()
            raise LocalServiceError(
                f"The local Batch service did not answer within {timeout:g} s: {_tail(log, offset)}"
            )
        time.sleep(_LOOK)


def attach(data: Path) -> LocalService | None:
    """Find the service that runs on a data directory.

    :param data: the directory.
    :return: the running service; None where none runs.
    """
    home = Home(data.resolve())
    note = home.read_note()
    if note is None or not home.locked():
        return None
    try:
        key = (home.path / "key").read_text().strip()
        base64.b64decode(key, validate=True)
    except (OSError, ValueError):
        return None
    return LocalService(note["url"], note["account"], key, int(note["pid"]), home.path)


def _answers(url: str) -> bool:
    try:
        # No proxy: this is a loopback address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=5) as answer:
            return int(answer.status) == 200
    except (OSError, urllib.error.URLError):
        return False


def _gone(pid: int) -> bool:
    child = _children.get(pid)
    if child is not None:
        if child.poll() is None:
            return False
        del _children[pid]
        return True
    return not psutil.pid_exists(pid)


def _tail(log: Path, offset: int) -> str:
    with log.open("rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace").strip()[-2000:] or "it wrote no message."
