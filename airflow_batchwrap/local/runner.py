"""Start, find and stop a local Batch service from another process."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from airflow_batchwrap.local.home import ACCOUNT, DEV_KEY, Home, HomeError

#: Pause between two looks at a service that starts or stops, in seconds.
_LOOK = 0.02


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
    :param authority: the certificate that its clients have to trust; None without TLS, or with a certificate of
        somebody else's.
    """

    url: str
    account: str
    key: str = field(repr=False)
    pid: int
    data: Path
    authority: Path | None = None

    def identity(self) -> dict[str, str]:
        """Return what lets azure-identity sign in as the directory's managed identity: environment variables.

        With TLS, those that name the authority are among them. One of them is a secret.
        """
        from airflow_batchwrap.local.identity import PATH, Identity

        found = Identity.of(Home(self.data))
        variables = {"IDENTITY_ENDPOINT": self.url + PATH, "IDENTITY_HEADER": found.secret}
        return variables | trust(self.authority) if self.authority else variables

    def stop(self, timeout: float = 30) -> None:
        """Stop it with all of its tasks' processes; one that is gone already is no error.

        :param timeout: how long it may take before it is killed, in seconds: it may be removing the folders of
            thousands of tasks just then.
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


def trust(authority: Path) -> dict[str, str]:
    """Return what lets Azure's clients trust an authority, and no other: environment variables.

    :param authority: its certificate. requests reads the first of the variables, aiohttp and httpx the second.
    """
    return {"REQUESTS_CA_BUNDLE": str(authority), "SSL_CERT_FILE": str(authority)}


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
    pid = _spawn(command, log)
    deadline = time.monotonic() + timeout
    while True:
        service = attach(home.path)
        if service is not None and service.pid == pid and _answers(service.url):
            return service
        if _gone(pid):
            raise LocalServiceError(f"The local Batch service did not start: {_tail(log, offset)}")
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
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
        key = DEV_KEY if note.get("published") else home.kept_key()
    except HomeError:
        return None
    authority = Path(note["authority"]) if note.get("authority") else None
    return LocalService(note["url"], note["account"], key, int(note["pid"]), home.path, authority)


def _answers(url: str) -> bool:
    try:
        # Whether anything answers at this address, and nothing is told it: who it is does not matter here.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        # No proxy: this is a loopback address.
        https = urllib.request.HTTPSHandler(context=context)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), https)
        with opener.open(url, timeout=5) as answer:
            return int(answer.status) == 200
    except (OSError, urllib.error.URLError):
        return False


def _spawn(command: list[str], log: Path) -> int:
    # Not subprocess: the service may outlive whoever holds its Popen, which complains about that when it goes.
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    try:
        return os.posix_spawn(command[0], command, os.environ, file_actions=actions, setsid=True)
    except NotImplementedError:
        # macOS before 10.15: at least a group of its own, so that a Ctrl-C in the terminal does not reach it.
        return os.posix_spawn(command[0], command, os.environ, file_actions=actions, setpgroup=0)


def _gone(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        # Somebody else's child, or one that was waited for already; a zombie only waits for that somebody.
        try:
            return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True


def _tail(log: Path, offset: int) -> str:
    with log.open("rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace").strip()[-2000:] or "it wrote no message."
