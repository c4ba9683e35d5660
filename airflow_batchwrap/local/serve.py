"""Run the service in this process until it is told to stop."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

import uvicorn

from airflow_batchwrap.local import hosts
from airflow_batchwrap.local.api.accesslog import AccessLog
from airflow_batchwrap.local.api.connection import Connection, most_of
from airflow_batchwrap.local.config import Config
from airflow_batchwrap.local.doorman import Doorman
from airflow_batchwrap.local.faults import Faults
from airflow_batchwrap.local.home import Home, HomeError, is_published
from airflow_batchwrap.local.identity import Identity
from airflow_batchwrap.local.pace import INSTANT, Pace
from airflow_batchwrap.local.quotas import Quotas
from airflow_batchwrap.local.service import close_world, create_app, open_world
from airflow_batchwrap.local.store import PATIENCE, StoreError
from airflow_batchwrap.local.tls import TlsFiles
from airflow_batchwrap.local.turns import Turns

try:
    import uvloop
except ImportError:
    # It is faster, and there is none for every system.
    _LOOP = asyncio.new_event_loop
else:
    _LOOP = uvloop.new_event_loop

#: How long a thread keeps the interpreter from the loop, in seconds: directories are made and removed by hundreds in
#: threads, and Python's own 5 ms add up.
_SWITCH = 0.001


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves the signals to us: its own way ends the process by the signal it got."""

    _doorman: Doorman | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen: over TLS by a `Doorman` of our own."""
        if self.config.ssl is None or not sockets:
            await super().startup(sockets)
            return
        make = partial(Connection, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        self._doorman = Doorman(sockets[0], self.config.ssl, make, max(1, Connection.most // 2))
        self._doorman.open()
        # None that uvicorn has made.
        self.servers = []
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let nobody in any more, and end what is under way."""
        if self._doorman is not None:
            self._doorman.close()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """Take a port.

    :param host: the address.
    :param port: the port; 0 for a free one.
    :return: the bound socket.
    :raises HomeError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named since asyncio turns Nagle's algorithm off only then: else each answer takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise HomeError(
                f"Port {port} on {host} is taken: stop what has it, or give --port 0 for a free one."
            ) from None
        raise HomeError(f"Cannot listen on {host}, port {port}: {error.strerror or error}.") from None
    return listener


def serve(
    home: Home,
    listener: socket.socket,
    host: str,
    account: str,
    key: str,
    *,
    pace: Pace = INSTANT,
    capacity: int | None = None,
    quotas: Quotas | None = None,
    faults: Faults | None = None,
    request_time: float = Connection.request_time,
    access_log: Path | None = None,
    tls: TlsFiles | None = None,
    trusted: Sequence[Path] = (),
    role: str = "contributor",
    patience: float = PATIENCE,
    turns: Path | None = None,
    names: Sequence[str] = (),
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; all of the tasks' processes are ended then.

    :param home: the data directory, locked.
    :param listener: the bound socket.
    :param host: the address it was bound to.
    :param account: the account's name.
    :param key: the account's key in base64.
    :param pace: how long things take.
    :param capacity: how many nodes there are to be had.
    :param quotas: how many jobs, pools and cores the account may have.
    :param faults: what goes wrong on purpose.
    :param request_time: how long a request may take to arrive, in seconds.
    :param access_log: a file for a line about each request.
    :param tls: what to speak TLS with; None for plain HTTP.
    :param trusted: certificates of more authorities that the nodes trust when they transfer files.
    :param role: of the managed identity on the account.
    :param patience: how long the state may be not writable before the service ends, in seconds.
    :param turns: a file for a line about each long turn of the loop (`turns.Turns`).
    :param names: more host names and addresses by which clients reach the service.
    :raises HomeError: the state in the data directory cannot be read or written, or a file of lines cannot be written.
    """
    port = listener.getsockname()[1]
    scheme = "https" if tls else "http"
    if tls and tls.authority:
        trusted = (tls.authority, *trusted)
    config = Config(
        data=home.path,
        account=account,
        key=base64.b64decode(key),
        url=hosts.url(host, port, scheme),
        hosts=hosts.accepted([*hosts.LOOPBACK, *hosts.others(host), *names], port, scheme),
        pace=pace,
        capacity=capacity,
        quotas=quotas or Quotas(),
        faults=faults or Faults(),
        identity=Identity.of(home, role, faults),
        trusted=tuple(trusted),
        patience=patience,
    )
    Connection.request_time = request_time
    Connection.most = most_of(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    # It warns of every malformed request: anybody could fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    with contextlib.ExitStack() as files:
        log = _lines("access log", access_log, files, listener)
        long_turns = _lines("file of long turns", turns, files, listener)
        _run(config, home, listener, log, tls, long_turns)


def _lines(what: str, path: Path | None, files: contextlib.ExitStack, listener: socket.socket) -> TextIO | None:
    if path is None:
        return None
    try:
        return files.enter_context(path.open("a", buffering=1, encoding="ascii", errors="replace"))
    except OSError as error:
        listener.close()
        raise HomeError(f"The {what} {path} cannot be written: {error.strerror}.") from None


def _run(
    config: Config,
    home: Home,
    listener: socket.socket,
    log: TextIO | None,
    tls: TlsFiles | None,
    turns: TextIO | None,
) -> None:
    # What was imported stays; else each full collection looks at all of it, 60 ms in which nothing else runs.
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH)
    try:
        with asyncio.Runner(loop_factory=_LOOP) as loop:
            loop.run(_serve(config, home, listener, log, tls, turns))
    except StoreError as error:
        raise HomeError(str(error)) from None
    finally:
        home.forget_note()
        listener.close()


async def _serve(
    config: Config,
    home: Home,
    listener: socket.socket,
    log: TextIO | None,
    tls: TlsFiles | None,
    turns: TextIO | None,
) -> None:
    watching = Turns(asyncio.get_running_loop(), turns).watching() if turns else contextlib.nullcontext()
    with watching:
        await _serve_world(config, home, listener, log, tls)


async def _serve_world(
    config: Config, home: Home, listener: socket.socket, log: TextIO | None, tls: TlsFiles | None
) -> None:
    world = await open_world(config)
    server = _Server(
        uvicorn.Config(
            create_app(world, partial(AccessLog, file=log)) if log is not None else create_app(world),
            log_config=None,
            access_log=False,
            server_header=False,
            # No proxy stands before it: what is forwarded is what a client makes up.
            proxy_headers=False,
            date_header=True,
            timeout_graceful_shutdown=1,
            # Longer than clients keep a connection: one that meets our closing of it fails.
            timeout_keep_alive=120,
            lifespan="off",
            http=Connection,
            ws="none",
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
        )
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # `nohup` asks for a hang-up to be ignored.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, setattr, server, "should_exit", True)
    # The port is open already: whoever reads this note and connects is answered as soon as the server runs.
    authority, published = tls.authority if tls else None, is_published(config.key)
    home.note(os.getpid(), config.url, config.account, authority, published=published)
    failing = asyncio.ensure_future(world.store.failed.wait())
    failing.add_done_callback(lambda _: setattr(server, "should_exit", True))
    try:
        await server.serve(sockets=[listener])
    finally:
        failing.cancel()
        await close_world(world)
