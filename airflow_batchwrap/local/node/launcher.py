"""The helper process that starts commands and waits for them, so that the service itself has its time for its clients.

A program of its own, of the standard library alone: small, so that starting a process from it is cheap. It is asked by
lines of JSON on a socket, and answers on it. It owns what its commands start (see `owned`): it ends all of it with the
command, and everything when the socket is closed, which is also how it learns that the service was killed.

    asked     [number, arguments, environment, directory, make, how]
                                    start a command; make its directories first
                                    how: "linger" leaves what it started alone when it ends, "detach" what has left its
                                    group; "append" keeps earlier output
              [process id]                                         end a command, and all it started
              [number, directory]                                  end what commands in and below a directory started
    answered  [number, "started", process id, start mark]
              [number, "failed", error number, what failed]        what: "directory", "program", "start"
              [number, "ended", exit code]                         128 + n where signal n ended it
              [number, "cleared"]                                  nothing of that is left
"""

# Paths as text: pathlib would take a good part of the time that this program is there to save.
# ruff: noqa: PTH116

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from airflow_batchwrap.local.node import opening, owned

#: Answers that are gathered before they are sent, so that a burst of commands does not wake the service for each.
_GATHER = 16
_CHUNK = 256 * 1024
#: How long what a command has left is waited for once it was killed, in seconds: longer only where it cannot die.
_PATIENCE = 5.0
#: Between two searches through all processes, in milliseconds, and as a multiple of what a search takes.
_LOOK, _SHARE = 20, 10
#: What a command that ran no longer than this (seconds) has started bears one of the numbers since: where these are
#: few, they are asked one by one, at 3 microseconds each, instead of all processes.
_SHORT, _FEW = 1.0, 128


class _Failed(Exception):
    def __init__(self, what: str, number: int) -> None:
        self.what, self.number = what, number
        super().__init__(what)


class _Command:
    """A command, and what it has started.

    :param number: of the request that started it.
    :param carried: what its processes carry.
    :param pid: its process id.
    :param directory: the task's directory.
    :param how: as it was asked for.
    """

    __slots__ = ("answer", "began", "carried", "directory", "how", "number", "over", "pid")

    def __init__(self, number: int, carried: int, pid: int, directory: str, how: str) -> None:
        self.number, self.carried, self.pid, self.directory, self.how = number, carried, pid, directory, how
        self.began = time.monotonic()
        # When its end was seen, and what to say of it once nothing is left of it.
        self.over = 0.0
        self.answer: list[Any] | None = None

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
        # What is below is found from there on: a descriptor is quicker than a path, and stays the same directory.
        self._nodes, self._length = opening.descend(nodes, ()), len(nodes) + 1
        # It was passed on to this program, and goes no further.
        control.set_inheritable(False)
        self._owner, self._count = owner, 0
        self._running: dict[int, _Command] = {}
        # By what their processes carry: all commands; those that ended and what they left is being ended.
        self._commands: dict[int, _Command] = {}
        self._ending: dict[int, _Command] = {}
        self._clearing: list[tuple[int, list[int]]] = []
        self._next_search = 0.0
        self._pid = os.getpid()
        self._answers: list[bytes] = []
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._load = os.open("/proc/loadavg", os.O_RDONLY) if owned.SUPPORTED else -1
        # What Python and the service ignore or handle is as usual for a command.
        self._signals = {signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGXFSZ}

    def serve(self) -> None:
        """Do what is asked until the socket is closed, and then end what still runs."""
        owned.adopt_orphans()
        if owned.SUPPORTED:
            owned.carry(owned.tag(self._owner))
        try:
            self._serve()
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            owned.end(self._everything, _PATIENCE)

    def _serve(self) -> None:
        woken, wake = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(woken, select.POLLIN)
        buffer = b""
        while True:
            for ready, _ in poll.poll(_LOOK if self._ending else None):
                if ready == woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(woken, 4096)
                    self._reap()
                    continue
                chunk = self._control.recv(_CHUNK)
                if not chunk:
                    return
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    self._asked(json.loads(line))
            if self._ending:
                self._search()
            self._send()

    def _everything(self) -> list[int]:
        if not owned.SUPPORTED:
            # Without a subreaper what detached is found by the next start of the service.
            for pid in self._running:
                _kill_group(pid)
            return []
        self._reap_orphans()
        below = set(owned.descendants(os.getpid()))
        return [*below, *(pid for pid in owned.carrying(lambda carried: carried in self._commands) if pid not in below)]

    def _reap_orphans(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def _asked(self, line: list[Any]) -> None:
        if len(line) == 1:
            if line[0] in self._running:
                self._kill([self._running[line[0]]])
            return
        if len(line) == 2:
            self._clear(*line)
            return
        try:
            command = self._start(*line)
        except _Failed as failed:
            self._answer([line[0], "failed", failed.number, failed.what])
            return
        self._running[command.pid] = command
        self._answer([line[0], "started", command.pid, start_mark(command.pid)])

    def _start(
        self, number: int, arguments: list[str], environment: dict[str, str], directory: str, make: bool, how: str
    ) -> _Command:
        files: list[int] = []
        try:
            # By descriptors: other tasks of the node may put a link or a pipe anywhere on the way.
            here = _open(self._nodes, directory[self._length :], make)
            try:
                # The command is started from where it is to work: a child cannot be told to go there.
                working = opening.descend(here, ("wd",))
                try:
                    os.fchdir(working)
                finally:
                    os.close(working)
                for name in ("stdout.txt", "stderr.txt"):
                    files.append(opening.writing(here, name, append=how == "append"))  # noqa: PERF401 - closed if one fails
            finally:
                os.close(here)
        except OSError as error:
            for file in files:
                os.close(file)
            raise _Failed("directory", error.errno or 0) from None
        self._count += 1
        carried = owned.tag(self._owner, self._count)
        try:
            program = _find(arguments[0], environment.get("PATH", os.defpath))
            if program is None:
                raise _Failed("program", errno.ENOENT)
            if owned.SUPPORTED:
                owned.carry(carried)
            pid = self._spawn(program, arguments, environment, files)
        except (FileNotFoundError, NotADirectoryError):
            raise _Failed("program", errno.ENOENT) from None
        except (OSError, ValueError) as error:
            raise _Failed("start", getattr(error, "errno", None) or errno.EINVAL) from None
        finally:
            for file in files:
                os.close(file)
        command = self._commands[carried] = _Command(number, carried, pid, directory, how)
        return command

    def _spawn(self, program: str, arguments: list[str], environment: dict[str, str], files: list[int]) -> int:
        redirect = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate([self._null, *files])]
        try:
            return os.posix_spawn(
                program, arguments, environment, file_actions=redirect, setsid=True, setsigdef=self._signals
            )
        except NotImplementedError:
            # A system whose posix_spawn knows no sessions (macOS before 10.15): slower, and the same.
            import subprocess

            out, err = files
            popen = subprocess.Popen(
                arguments, executable=program, stdin=self._null, stdout=out, stderr=err, env=environment,
                start_new_session=True,
            )  # fmt: skip
            # It is waited for here, not by its Popen.
            popen.returncode = 0
            return popen.pid

    def _kill(self, commands: list[_Command]) -> None:
        """End commands with all they started, as far as that is there now: the rest goes when their end is seen."""
        for command in commands:
            command.how = ""
            _kill_group(command.pid)
        own = {command.carried for command in commands}
        owned.kill(owned.carrying(own.__contains__))

    def _clear(self, number: int, directory: str) -> None:
        meant = [command for command in self._commands.values() if command.is_below(directory)]
        self._kill([command for command in meant if command.pid in self._running])
        for command in meant:
            if command.pid not in self._running and command.carried not in self._ending:
                self._over(command)
        self._clearing.append((number, [command.carried for command in meant]))
        self._tell_of_cleared()

    def _over(self, command: _Command) -> None:
        command.over = time.monotonic()
        self._ending[command.carried] = command

    def _reap(self) -> None:
        short: list[_Command] = []
        for command in self._ended():
            if command.how in ("linger", "detach"):
                # What it has started goes on, and is found by what it carries when it is to go.
                self._answer(command.answer)
                command.pid, command.answer = 0, None
                continue
            self._over(command)
            if command.over - command.began < _SHORT:
                short.append(command)
        if short:
            last = int(os.pread(self._load, 128, 0).rsplit(b" ", 1)[1]) if owned.SUPPORTED else 0
            since = range(min(command.pid for command in short) + 1, last + 1)
            # Where the numbers began anew meanwhile, or are many, all processes are looked at.
            if len(since) < _FEW and last >= max(command.pid for command in short):
                self._settle(short, since)
        if self._ending:
            self._search()

    def _search(self) -> None:
        """Look through all processes for what ended commands have left; not all the time."""
        now = time.monotonic()
        if now >= self._next_search or not owned.SUPPORTED:
            self._settle(list(self._ending.values()), owned.pids() if owned.SUPPORTED else [])
            self._next_search = now + max(_LOOK / 1000, _SHARE * (time.monotonic() - now))

    def _settle(self, commands: list[_Command], pids: Iterable[int]) -> None:
        """Kill what ended commands have left, and tell of those that have left nothing any more."""
        left = set()
        own = {command.carried for command in commands}
        for pid in pids:
            carried = owned.carried_by(pid)
            if carried in own and pid != self._pid:
                left.add(carried)
                owned.kill([pid])
        now = time.monotonic()
        for command in commands:
            if command.carried not in left or now > command.over + _PATIENCE:
                del self._ending[command.carried], self._commands[command.carried]
                if command.answer is not None:
                    self._answer(command.answer)
        self._tell_of_cleared()

    def _tell_of_cleared(self) -> None:
        for clearing in [one for one in self._clearing if self._commands.keys().isdisjoint(one[1])]:
            self._clearing.remove(clearing)
            self._answer([clearing[0], "cleared"])

    def _ended(self) -> Iterator[_Command]:
        """Collect what has ended: commands, and orphans of commands."""
        for pid in list(self._running) if not hasattr(os, "waitid") else self._dead():
            # The leader is a zombie until it is waited for, so its group's number cannot have been given away yet.
            if hasattr(os, "waitid") and self._running[pid].how != "linger":
                _kill_group(pid)
            try:
                found, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                found, status = pid, 0
            if found:
                command = self._running.pop(pid)
                if not hasattr(os, "waitid") and command.how != "linger":
                    _kill_group(pid)
                code = os.waitstatus_to_exitcode(status)
                command.answer = [command.number, "ended", code if code >= 0 else 128 - code]
                yield command

    def _dead(self) -> Iterator[int]:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if found.si_pid in self._running:
                yield found.si_pid
            else:
                os.waitpid(found.si_pid, os.WNOHANG)

    def _answer(self, line: list[Any] | None) -> None:
        self._answers.append(json.dumps(line, separators=(",", ":")).encode())
        if len(self._answers) >= _GATHER:
            self._send()

    def _send(self) -> None:
        if self._answers:
            self._control.sendall(b"\n".join(self._answers) + b"\n")
            self._answers.clear()


def _open(nodes: int, directory: str, make: bool) -> int:
    """Open a task's directory, made first if it is to be."""
    *above, name = directory.split("/")
    if not make:
        return opening.descend(nodes, [*above, name])
    try:
        way = opening.descend(nodes, above)
    except FileNotFoundError:
        way = opening.descend(nodes, above, make=True)
    try:
        os.mkdir(name, dir_fd=way)
        here = opening.descend(way, (name,))
    finally:
        os.close(way)
    try:
        os.mkdir("wd", dir_fd=here)
        os.mkdir("certs", dir_fd=here)
    except BaseException:
        os.close(here)
        raise
    return here


def _find(program: str, path: str) -> str | None:
    if "/" in program:
        return program
    for folder in path.split(os.pathsep):
        found = f"{folder or '.'}/{program}"
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.stat(found).st_mode) and os.access(found, os.X_OK):
                return found
    return None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def start_mark(pid: int) -> float:
    """When a process was started, in an opaque number.

    :param pid: the process id.
    :return: the number; 0 where it cannot be had this way.
    """
    try:
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        try:
            text = os.read(file, 4096)
        finally:
            os.close(file)
        return float(text[text.rindex(b")") + 2 :].split(b" ", 20)[19])
    except OSError:
        return 0.0


def command_line(control: int, owner: int, nodes: str) -> list[str]:
    """How this program is started: with nothing on its path but the standard library and this package.

    :param control: the descriptor of its socket, inherited.
    :param owner: whose its commands are.
    :param nodes: the directory of all nodes.
    :return: the command line.
    """
    folder = str(Path(__file__).parents[3])
    program = f"import sys; sys.path.append({folder!r}); from {__name__} import main; main()"
    return [sys.executable, "-I", "-S", "-c", program, str(control), str(owner), nodes]


def main() -> None:
    """Serve on the inherited socket."""
    Launcher(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3]).serve()
