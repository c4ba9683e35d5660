"""The helper process that starts commands and waits for them, so that the service itself has its time for its clients.

A program of its own, of the standard library alone: small, so that starting a process from it is cheap. It is asked by
lines of JSON on a socket, and answers on it. It owns what its commands start (see `family` and `owned`): it ends all of
it with the command, and everything when the socket is closed, which is also how it learns that the service was killed.

    asked     [number, arguments, environment, directory, make, how]
                                    start a command; make its directories first
                                    how: "linger" leaves what it started alone when it ends, "detach" what has left its
                                    group; "append" keeps earlier output
              [process id]                                         end a command, and all it started
              [0]                                                  say that you are there
              [0, arguments, environment]                          run that if the service is killed, if it is anything
              [number, directory]                                  end what commands in and below a directory started
    answered  [number, "started", process id]
              [number, "failed", error number, what failed]        what: "directory", "program", "start"
              [number, "ended", exit code]                         128 + n where signal n ended it
              [number, "cleared"]                                  nothing of that is left
              [0, "here"]
"""

# Paths as text: pathlib would take a good part of the time that this program is there to save.
# ruff: noqa: PTH120

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from airflow_batchwrap.local.node import family, owned, spawn

#: Answers that are gathered before they are sent, so that a burst of commands does not wake the service for each.
_GATHER = 16
_CHUNK = 256 * 1024
#: How long what a command has left is waited for once it was killed, in seconds: longer only where it cannot die.
_PATIENCE = 5.0
#: Between two looks at what cannot die, in milliseconds: all else wakes this process by its end.
_LOOK = 200
#: The same when this process is about to end, in seconds.
_PAUSE = 0.002
#: How often what was killed is looked at again at once, since it had started something in the meantime. Processes that
#: start one another in sessions of their own, and end, have to be met while one of them lives.
_CHASE = 1000


class _Command:
    """A command, and what it has started.

    :param number: of the request that started it.
    :param carried: what its processes carry.
    :param pid: its process id; 0 once it was waited for.
    :param directory: the task's directory.
    :param how: as it was asked for.
    """

    __slots__ = ("carried", "code", "directory", "doomed", "how", "number", "over", "pid")

    def __init__(self, number: int, carried: int, pid: int, directory: str, how: str) -> None:
        self.number, self.carried, self.pid, self.directory, self.how = number, carried, pid, directory, how
        #: Whether all of it is to go; when it ended; how. A code that was said already is None.
        self.doomed, self.over = False, 0.0
        self.code: int | None = None

    def is_below(self, directory: str) -> bool:
        """Whether it works in a directory or below it."""
        return self.directory == directory or self.directory.startswith(directory + "/")


class Launcher:
    """Starts and awaits commands.

    :param control: the socket to the service.
    :param owner: whose the commands are (`owned.owner`).
    :param nodes: the directory of all nodes.
    """

    def __init__(self, control: socket.socket, owner: int, nodes: str) -> None:
        self._control = control
        self._places = spawn.Places(nodes)
        # It was passed on to this program, and goes no further.
        control.set_inheritable(False)
        self._owner, self._count = owner, 0
        self._running: dict[int, _Command] = {}
        # By what their processes carry: all commands of which something may be left; those that ended and are to go.
        self._commands: dict[int, _Command] = {}
        self._ending: dict[int, _Command] = {}
        self._clearing: list[tuple[int, list[int]]] = []
        self._family = family.Family()
        self._last_will: tuple[list[str], dict[str, str]] = [], {}
        self._answers: list[str] = []
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._decode = json.JSONDecoder().decode
        self._poll = select.poll()

    def serve(self) -> None:
        """Do what is asked until the socket is closed, and then end what still runs."""
        family.adopt_orphans()
        family.guard()
        if owned.SUPPORTED:
            owned.carry(owned.tag(self._owner), sealed=True)
        try:
            self._serve()
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self._end_all()

    def _serve(self) -> None:
        woken, wake = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._poll.register(self._control, select.POLLIN)
        self._poll.register(woken, select.POLLIN)
        buffer = b""
        while True:
            for ready, _ in self._poll.poll(_LOOK if self._ending else None):
                if ready == woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(woken, 4096)
                    self._collect()
                    continue
                chunk = self._control.recv(_CHUNK)
                if not chunk:
                    return
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    self._asked(self._decode(line.decode()))
            if self._ending:
                self._settle()
            self._send()

    def _asked(self, line: list[Any]) -> None:
        if len(line) == 1:
            if not line[0]:
                self._answer('[0,"here"]')
            elif (command := self._running.get(line[0])) is not None:
                self._kill([command])
            return
        if len(line) == 2:
            self._clear(*line)
            return
        if len(line) == 3:
            self._last_will = line[1], line[2]
            return
        try:
            pid = self._start(*line)
        except spawn.Failed as failed:
            self._answer(f'[{line[0]},"failed",{failed.number},"{failed.what}"]')
        else:
            self._answer(f'[{line[0]},"started",{pid}]')

    def _start(
        self,
        number: int,
        arguments: list[str],
        environment: dict[str, str],
        directory: str,
        make: bool,
        how: str,
    ) -> int:
        files = self._places.enter(directory, make=make, append=how == "append")
        self._count += 1
        carried = owned.tag(self._owner, self._count)
        try:
            if owned.SUPPORTED:
                owned.carry(carried, sealed=True)
            pid = spawn.spawn(arguments, environment, self._null, files)
        finally:
            for file in files:
                os.close(file)
        self._running[pid] = self._commands[carried] = _Command(number, carried, pid, directory, how)
        return pid

    def _kill(self, commands: list[_Command]) -> None:
        """End commands with all they started, as far as that is there now: the rest goes when their end is seen."""
        for command in commands:
            command.how, command.doomed = "", True
            _kill_group(command.pid)
        if commands:
            self._settle()

    def _clear(self, number: int, directory: str) -> None:
        meant = [command for command in self._commands.values() if command.is_below(directory)]
        for command in meant:
            if not command.pid and not command.over:
                self._over(command)
        self._kill([command for command in meant if command.pid])
        self._clearing.append((number, [command.carried for command in meant]))
        self._settle()

    def _over(self, command: _Command) -> None:
        command.over, command.doomed = time.monotonic(), True
        self._ending[command.carried] = command

    def _collect(self) -> None:
        """Wait for all that has ended: commands, and orphans of commands."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            command = self._running.pop(pid, None)
            if command is None:
                self._family.bury(pid)
                continue
            code = os.waitstatus_to_exitcode(status)
            command.pid, command.code = 0, code if code >= 0 else 128 - code
            if command.how != "linger":
                # All of the group at once. Numbers are given away in turn: this one is not another's yet.
                _kill_group(pid)
            if command.how in ("linger", "detach"):
                # What it has started goes on, and is found by what it carries when it is to go.
                self._say_ended(command)
            else:
                self._over(command)

    def _settle(self) -> None:
        """Kill what ended commands have left, and say which of them have left nothing any more."""
        orphans = self._family.orphans
        for _ in range(_CHASE if owned.SUPPORTED else 0):
            came = self._family.look(self._running)
            doomed = [pid for pid, carried in orphans.items() if self._is_doomed(carried)]
            self._family.kill(doomed)
            if not doomed or not came:
                break
            self._collect()
        left, now = set(orphans.values()), time.monotonic()
        for command in list(self._ending.values()):
            if command.carried not in left or now > command.over + _PATIENCE:
                del self._ending[command.carried], self._commands[command.carried]
                self._say_ended(command)
        for clearing in [one for one in self._clearing if self._commands.keys().isdisjoint(one[1])]:
            self._clearing.remove(clearing)
            self._answer(f'[{clearing[0]},"cleared"]')

    def _is_doomed(self, carried: int) -> bool:
        # What carries no command's number has given its own away, to hide: nobody knows how long it may stay.
        command = self._commands.get(carried)
        return command is None or command.doomed

    def _end_all(self) -> None:
        self._kill_all()
        if self._last_will[0]:
            # Nobody waits for it: this process ends.
            with contextlib.suppress(spawn.Failed):
                spawn.spawn(*self._last_will, self._null, [os.open(os.devnull, os.O_WRONLY)] * 2)

    def _kill_all(self) -> None:
        for pid in self._running:
            _kill_group(pid)
        # Without a subreaper what detached is found by the next start of the service.
        deadline = time.monotonic() + _PATIENCE
        while owned.SUPPORTED and time.monotonic() < deadline:
            self._collect()
            children = self._family.children()
            if not children:
                return
            self._family.kill(children)
            time.sleep(_PAUSE)

    def _say_ended(self, command: _Command) -> None:
        if command.code is not None:
            self._answer(f'[{command.number},"ended",{command.code}]')
            command.code = None

    def _answer(self, line: str) -> None:
        self._answers.append(line)
        if len(self._answers) >= _GATHER:
            self._send()

    def _send(self) -> None:
        if self._answers:
            self._answers.append("")
            self._control.sendall("\n".join(self._answers).encode())
            self._answers.clear()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def command_line(control: int, owner: int, nodes: str) -> list[str]:
    """How this program is started: with nothing on its path but the standard library and this package.

    :param control: the descriptor of its socket, inherited.
    :param owner: whose its commands are.
    :param nodes: the directory of all nodes.
    :return: the command line.
    """
    folder = __file__
    for _ in __name__.split("."):
        folder = os.path.dirname(folder)
    program = f"import sys; sys.path.append({folder!r}); from {__name__} import main; main()"
    return [sys.executable, "-I", "-S", "-c", program, str(control), str(owner), nodes]


def main() -> None:
    """Serve on the inherited socket."""
    Launcher(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3]).serve()
