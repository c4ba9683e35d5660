"""Real processes: started in a session of their own, watched without polling, ended with all that they started.

On Linux the helper process owns what commands start (`owned`). On macOS there is no such thing: there the descendants
of a command are looked up, and the processes whose environment names the task's directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from airflow_batchwrap.local.node import family, launcher, owned

log = logging.getLogger(__name__)

#: How often a look for processes is repeated while there are any: they may start others in the meantime.
_ROUNDS = 20
#: How often the helper process is asked whether it is there, and for how long it may be silent before it is made to go
#: on, and before it is given up, in seconds. A task of the same user may stop it.
_ASK, _SILENT, _LOST = 1.0, 2.0, 10.0
#: How long the processes of an earlier service, or of a helper that was lost, may take to be gone, in seconds.
_GONE = 10.0
_ENCODE, _DECODE = json.JSONEncoder(separators=(",", ":")).encode, json.JSONDecoder().decode


class ProgramNotFound(Exception):
    """The program a command line names is not there."""


class LaunchFailed(Exception):
    """The program is there, but cannot be started."""


class DirectoryFailed(OSError):
    """The directories of a task could not be made."""


class HelperLost(Exception):
    """The helper process ended, and with it what was known of the commands it had started."""


class Child:
    """A running command.

    :param helper: what started it.
    :param pid: its process id; it leads its own session.
    """

    def __init__(self, helper: Helper, pid: int) -> None:
        self._helper = helper
        self.pid = pid
        #: Its `start_mark`, where nothing else tells a later service that the process is its own.
        self.mark = 0.0 if owned.SUPPORTED else start_mark(pid)
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._killing: asyncio.Future[None] | None = None

    async def wait(self) -> int:
        """Wait for the end.

        :return: the exit code; 128 + n where signal n ended it.
        :raises HelperLost: nobody will know.
        """
        return await asyncio.shield(self.done)

    def kill(self, directory: Path) -> None:
        """End the command and all it started, what has left its session too.

        :param directory: the task's directory, by which its processes are known where nothing owns them.
        """
        if not self.done.done() and self._killing is None:
            if owned.SUPPORTED:
                self._helper.kill(self.pid)
            else:
                self._killing = asyncio.ensure_future(self._kill(str(directory)))

    async def _kill(self, directory: str) -> None:
        # Looking through the machine's processes takes some milliseconds, which the loop does not have.
        found = await asyncio.to_thread(descendants, self.pid)
        self._helper.kill(self.pid)
        kill_all(found)
        await asyncio.to_thread(kill_marked, "AZ_BATCH_TASK_DIR", directory)


class Helper(asyncio.Protocol):
    """The service's end of the helper process (see `launcher`), which starts and awaits the commands.

    One that ends is started anew with the next command, once all that it had started is gone.
    """

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._opening = asyncio.Lock()
        self._rest = b""
        self._number = 0
        self._asked: dict[int, asyncio.Future[Child]] = {}
        self._running: dict[int, Child] = {}
        self._clearing: dict[int, asyncio.Future[None]] = {}
        self._nodes = Path()
        self._sweeping: asyncio.Future[None] | None = None
        self._heard = 0.0
        self._lines: list[bytes] = []
        self._at_kill: list[str] = []

    async def open(self, nodes: Path | None = None) -> asyncio.WriteTransport:
        """Start the helper process, if it does not run.

        :param nodes: the directory of all nodes, which owns the commands' processes; None for that of the last time.
        :return: the way to it.
        """
        async with self._opening:
            self._nodes = nodes or self._nodes
            if self._transport is not None:
                return self._transport
            if self._sweeping is not None:
                await self._sweeping
            # What a helper that is lost leaves, this process gets.
            family.adopt_orphans()
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = await asyncio.to_thread(
                    subprocess.Popen,
                    launcher.command_line(theirs.fileno(), owned.owner(str(self._nodes)), str(self._nodes)),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    # The service's own umask closes its files; commands find the one that they find on a node.
                    umask=0o022,
                )
            transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
            self._transport, self._rest = transport, b""
            self._heard = time.monotonic()
            self._watch(transport)
            if self._at_kill:
                self._ask([0, self._at_kill, dict(os.environ)])
            return transport

    def _watch(self, transport: asyncio.WriteTransport) -> None:
        """Ask the helper process from time to time whether it is there, as long as it has commands."""
        if transport.is_closing() or self._process is None:
            return
        now, process = time.monotonic(), self._process
        if not (self._running or self._asked or self._clearing):
            self._heard = now
        else:
            self._ask([0])
            if now > self._heard + _LOST:
                log.error("The helper process has been silent for %g s: it is ended, and another one started.", _LOST)
                process.kill()
            elif now > self._heard + _SILENT:
                process.send_signal(signal.SIGCONT)
        asyncio.get_running_loop().call_later(_ASK, self._watch, transport)

    async def close(self) -> None:
        """End the helper process, and with it all that its commands started."""
        if self._transport is not None:
            self.at_kill(())
            self._send()
            self._transport.close()
        if self._process is not None:
            await asyncio.to_thread(_end_helper, self._process, self._nodes)
        if self._sweeping is not None:
            await self._sweeping

    async def start(
        self,
        arguments: list[str],
        environment: dict[str, str],
        directory: Path,
        make: bool,
        how: str = "",
    ) -> Child:
        """Start a command with no shell; its output goes straight into plain files, readable while it runs.

        :param arguments: program and arguments; the program is looked up in the environment's PATH.
        :param environment: all of the command's environment.
        :param directory: the task's directory; the command works in its ``wd``.
        :param make: make these directories first.
        :param how: ``linger`` leaves what it started running when it ends, ``detach`` what has a session of its own by
            then (``clear`` ends it); ``append`` keeps the output of earlier ones.
        :return: the running command.
        :raises DirectoryFailed: the directories could not be made: they are there, or cannot be.
        :raises ProgramNotFound: there is no such program.
        :raises LaunchFailed: it cannot be executed.
        :raises HelperLost: the helper process ended just then.
        """
        if any("\0" in text for text in arguments):
            raise LaunchFailed("an argument holds a null character")
        if self._transport is None:
            await self.open()
        self._number += 1
        answer: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._asked[self._number] = answer
        self._ask([self._number, arguments, environment, str(directory), make, how])
        return await answer

    def at_kill(self, arguments: Sequence[str]) -> None:
        """Have a command run, in the environment of the service, if that is killed.

        :param arguments: program, with its path, and arguments; nothing for no command.
        """
        if list(arguments) != self._at_kill:
            self._at_kill = list(arguments)
            self._ask([0, self._at_kill, dict(os.environ)])

    def _ask(self, message: list[Any]) -> None:
        """Ask the helper process, once for all that is asked in the same turn of the loop."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._send)
        self._lines.append(_ENCODE(message).encode())

    def _send(self) -> None:
        lines, self._lines = self._lines, []
        if lines and self._transport is not None:
            self._transport.write(b"\n".join([*lines, b""]))

    def kill(self, pid: int) -> None:
        """Kill a command with all it started; one that has ended is no error.

        :param pid: the command's process id.
        """
        if self._transport is not None:
            self._ask([pid])

    async def clear(self, directory: Path) -> None:
        """End what commands started, and wait until it is gone.

        :param directory: that of a task, or one above it.
        """
        if not owned.SUPPORTED:
            variable = "AZ_BATCH_TASK_DIR" if (directory / "wd").exists() else "AZ_BATCH_NODE_ROOT_DIR"
            await asyncio.to_thread(kill_all_marked, variable, str(directory))
        elif self._transport is not None:
            self._number += 1
            cleared = self._clearing[self._number] = asyncio.get_running_loop().create_future()
            self._ask([self._number, str(directory)])
            await cleared

    def data_received(self, data: bytes) -> None:
        """Take answers."""
        self._heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            number, what, *more = _DECODE(line.decode())
            if what == "here":
                continue
            if what == "ended":
                child = self._running.pop(number)
                if not child.done.done():
                    child.done.set_result(more[0])
                continue
            if what == "cleared":
                if not (cleared := self._clearing.pop(number)).done():
                    cleared.set_result(None)
                continue
            asked = self._asked.pop(number)
            if what == "started":
                child = self._running[number] = Child(self, more[0])
                if asked.cancelled():
                    self.kill(child.pid)
                else:
                    asked.set_result(child)
            elif not asked.cancelled():
                asked.set_exception(_failure(*more))

    def connection_lost(self, _: Exception | None) -> None:
        """Tell all who wait that nothing more will come, and end what nobody watches any more."""
        self._transport, self._lines = None, []
        asked, self._asked = self._asked, {}
        running, self._running = self._running, {}
        clearing, self._clearing = self._clearing, {}
        for answer in asked.values():
            if not answer.done():
                answer.set_exception(HelperLost())
        for child in running.values():
            kill_recorded(child.pid, child.mark)
            if not child.done.done():
                child.done.set_exception(HelperLost())
                child.done.exception()
        # Before another helper starts anything.
        self._sweeping = asyncio.get_running_loop().run_in_executor(None, end_all, self._nodes, self._process)
        for cleared in clearing.values():
            self._sweeping.add_done_callback(functools.partial(_tell, cleared))


#: The helper of this process, which is one service.
HELPER = Helper()


def _tell(cleared: asyncio.Future[None], _: asyncio.Future[None]) -> None:
    if not cleared.done():
        cleared.set_result(None)


def _end_helper(helper: subprocess.Popen[bytes], nodes: Path) -> None:
    """Wait for a helper process that ends what its commands started, and do it in its place if it does not."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        helper.send_signal(signal.SIGCONT)
        helper.wait(_LOST)
        return
    end_all(nodes, helper)


def _failure(number: int, what: str) -> Exception:
    reason = os.strerror(number)
    if what == "directory":
        return DirectoryFailed(number, reason)
    return ProgramNotFound(reason) if what == "program" else LaunchFailed(reason)


def start_mark(pid: int) -> float:
    """When a process was started: with the process id it names a process, as the id alone does not.

    :param pid: the process id.
    :return: an opaque number, 0 if there is no such process.
    """
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


def kill_group(pid: int) -> None:
    """Kill what is left of a process group.

    :param pid: the group's number.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def kill_tree(pid: int) -> None:
    """Kill a process group and the descendants of its leader, those in groups of their own too.

    :param pid: the leader.
    """
    found = descendants(pid)
    kill_group(pid)
    kill_all(found)


def descendants(pid: int) -> list[psutil.Process]:
    """The processes a process has started, and those they have.

    :param pid: the process id.
    :return: them; none where the process is gone.
    """
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def kill_all(processes: list[psutil.Process]) -> None:
    """Kill processes; each is known by its id and start time, so that no other is hit.

    :param processes: the processes.
    """
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def kill_all_marked(variable: str, value: str) -> None:
    """Kill the processes that carry a variable, and those they start meanwhile.

    :param variable: the name of an environment variable.
    :param value: its value, a directory.
    """
    for _ in range(_ROUNDS):
        if not kill_marked(variable, value):
            return


def kill_marked(variable: str, value: str) -> int:
    """Kill the processes that carry a variable, or one below it: commands that detached from their parents.

    :param variable: the name of an environment variable.
    :param value: its value, a directory.
    :return: how many there were, those that are dead already left out.
    """
    killed = 0
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        if process.pid in spared:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            found = process.environ().get(variable, "")
            if (found == value or found.startswith(value + os.sep)) and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                killed += 1
    return killed


def kill_recorded(pid: int, mark: float) -> None:
    """Kill a process that an earlier service started, if it is still that process.

    :param pid: its recorded id.
    :param mark: its recorded `start_mark`.
    """
    if mark and start_mark(pid) == mark:
        kill_tree(pid)


def end_all(nodes: Path, helper: subprocess.Popen[bytes] | None = None) -> None:
    """End the processes that belong to the nodes of a service which ended without it, and wait until they are gone.

    :param nodes: the directory of all nodes.
    :param helper: the helper process that this service has lost; None for one of an earlier service.
    """
    if not owned.SUPPORTED:
        kill_all_marked("AZ_BATCH_NODE_ROOT_DIR", str(nodes))
        return
    if helper is not None:
        # It may have closed its end for another reason than its own.
        helper.kill()
    owned.end(lambda: [*owned.of_owner(str(nodes)), *_adopted()], _GONE)
    if helper is not None:
        # Not sooner: where a task traces it, nobody else hears of its end while that task lives.
        with contextlib.suppress(subprocess.TimeoutExpired):
            helper.wait(_GONE)


def _adopted() -> list[int]:
    """What the helper has left to this process, whatever it carries now; zombies are waited for."""
    found = [pid for pid in owned.descendants(os.getpid()) if owned.is_sealed(pid)]
    for pid in owned.children(os.getpid()):
        if owned.is_sealed(pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
    return found
