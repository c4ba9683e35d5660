"""The helper process that starts commands and waits for them, so that the service itself has its time for its clients.

A program of its own, of the standard library alone: small, so that starting a process from it is cheap. It is asked by
lines of JSON on a socket, and answers on it; it ends when the socket does, and leaves its commands alone then.

    asked     [number, arguments, environment, directory, make, how]
                                    start a command; make its directories first
                                    how: "linger" leaves its group alone when it ends, "append" keeps earlier output
              [process id]                                         kill a command's process group
    answered  [number, "started", process id, start mark]
              [number, "failed", error number, what failed]        what: "directory", "program", "start"
              [number, "ended", exit code]                         128 + n where signal n ended it
"""

# Paths as text: pathlib would take a good part of the time that this program is there to save.
# ruff: noqa: PTH102, PTH103, PTH116

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
from typing import Any

#: Answers that are gathered before they are sent, so that a burst of commands does not wake the service for each.
_GATHER = 16
_CHUNK = 256 * 1024


class _Failed(Exception):
    def __init__(self, what: str, number: int) -> None:
        self.what, self.number = what, number
        super().__init__(what)


class Launcher:
    """Starts and awaits commands.

    :param control: the socket to the service.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        # It was passed on to this program, and goes no further.
        control.set_inheritable(False)
        self._running: dict[int, int] = {}
        self._lingering: set[int] = set()
        self._answers: list[bytes] = []
        self._null = os.open(os.devnull, os.O_RDONLY)
        # What Python and the service ignore or handle is as usual for a command.
        self._signals = {signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGXFSZ}

    def serve(self) -> None:
        """Do what is asked until the socket is closed."""
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
            for ready, _ in poll.poll():
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
            self._send()

    def _asked(self, line: list[Any]) -> None:
        if len(line) == 1:
            if line[0] in self._running:
                _kill_group(line[0])
            return
        try:
            pid = self._start(*line[1:])
        except _Failed as failed:
            self._answer([line[0], "failed", failed.number, failed.what])
            return
        self._running[pid] = line[0]
        if line[5] == "linger":
            self._lingering.add(pid)
        self._answer([line[0], "started", pid, start_mark(pid)])

    def _start(self, arguments: list[str], environment: dict[str, str], directory: str, make: bool, how: str) -> int:
        working = directory + "/wd"
        files: list[int] = []
        try:
            if make:
                _make(directory)
            # The command is started from where it is to work: a child cannot be told to go there.
            os.chdir(working)
            for name in ("stdout.txt", "stderr.txt"):
                mode = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if how == "append" else os.O_TRUNC)
                files.append(os.open(f"{directory}/{name}", mode, 0o666))
        except OSError as error:
            for file in files:
                os.close(file)
            raise _Failed("directory", error.errno or 0) from None
        try:
            program = _find(arguments[0], environment.get("PATH", os.defpath))
            if program is None:
                raise _Failed("program", errno.ENOENT)
            return self._spawn(program, arguments, environment, files)
        except (FileNotFoundError, NotADirectoryError):
            raise _Failed("program", errno.ENOENT) from None
        except (OSError, ValueError) as error:
            raise _Failed("start", getattr(error, "errno", None) or errno.EINVAL) from None
        finally:
            for file in files:
                os.close(file)

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

    def _reap(self) -> None:
        for pid in list(self._running) if not hasattr(os, "waitid") else self._ended():
            # The leader is a zombie until it is waited for, so its group's number cannot have been given away yet.
            if hasattr(os, "waitid") and pid not in self._lingering:
                _kill_group(pid)
            try:
                found, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                found, status = pid, 0
            if found:
                if not hasattr(os, "waitid") and pid not in self._lingering:
                    _kill_group(pid)
                self._lingering.discard(pid)
                code = os.waitstatus_to_exitcode(status)
                self._answer([self._running.pop(pid), "ended", code if code >= 0 else 128 - code])

    def _ended(self) -> Any:
        while self._running:
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

    def _answer(self, line: list[Any]) -> None:
        self._answers.append(json.dumps(line, separators=(",", ":")).encode())
        if len(self._answers) >= _GATHER:
            self._send()

    def _send(self) -> None:
        if self._answers:
            self._control.sendall(b"\n".join(self._answers) + b"\n")
            self._answers.clear()


def _make(directory: str) -> None:
    try:
        os.mkdir(directory)
    except FileNotFoundError:
        os.makedirs(directory)
    os.mkdir(directory + "/wd")
    os.mkdir(directory + "/certs")


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


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Launcher(socket.socket(fileno=int(sys.argv[1]))).serve()
