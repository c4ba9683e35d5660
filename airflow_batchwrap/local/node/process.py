"""Real processes: started in a session of their own, watched without polling, ended as a tree."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from pathlib import Path

import psutil

#: How often a look for processes is repeated while there are any: they may start others in the meantime.
_ROUNDS = 20


class ProgramNotFound(Exception):
    """The program a command line names is not there."""


class LaunchFailed(Exception):
    """The program is there, but cannot be started."""


class Child:
    """A running command.

    :param popen: the process, the leader of its own session.
    """

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[int] = self._loop.create_future()
        self.pid = popen.pid
        self.mark = start_mark(popen.pid)
        self._killing: asyncio.Future[None] | None = None
        self._pidfd = -1
        if hasattr(os, "pidfd_open"):
            self._pidfd = os.pidfd_open(popen.pid)
            self._loop.add_reader(self._pidfd, self._readable)
        else:
            # macOS has no pidfd: a thread that sleeps in waitpid.
            threading.Thread(target=self._sleep, daemon=True).start()

    async def wait(self) -> int:
        """Wait for the end.

        :return: the exit code; 128 + n where signal n ended it.
        """
        return await asyncio.shield(self._done)

    def kill(self, marker: str) -> None:
        """End the command and all it started, those that left its session too.

        :param marker: the value of AZ_BATCH_TASK_DIR by which the command's processes are known.
        """
        if not self._done.done() and self._killing is None:
            self._killing = asyncio.ensure_future(self._kill(marker))

    async def _kill(self, marker: str) -> None:
        # Looking through the machine's processes takes some milliseconds, which the loop does not have.
        found = await asyncio.to_thread(descendants, self.pid)
        if not self._done.done():
            kill_group(self.pid)
        kill_all(found)
        await asyncio.to_thread(kill_marked, "AZ_BATCH_TASK_DIR", marker)

    def _readable(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        # The leader is a zombie until it is waited for, so its group's number cannot have been given away yet.
        kill_group(self.pid)
        self._end(self._popen.wait())

    def _sleep(self) -> None:
        code = self._popen.wait()
        kill_group(self.pid)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end, code)

    def _end(self, code: int) -> None:
        if not self._done.done():
            self._done.set_result(code if code >= 0 else 128 - code)


def spawn(arguments: list[str], environment: dict[str, str], working: Path, stdout: Path, stderr: Path) -> Child:
    """Start a command with no shell; its output goes straight into plain files, readable while it runs.

    :param arguments: program and arguments; the program is looked up in the environment's PATH.
    :param environment: all of the command's environment.
    :param working: its working directory.
    :param stdout: the file for its output.
    :param stderr: the file for its errors.
    :return: the running command.
    :raises ProgramNotFound: there is no such program.
    :raises LaunchFailed: it cannot be executed.
    """
    with stdout.open("wb") as out, stderr.open("wb") as err:
        try:
            popen = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=working,
                env=environment,
                start_new_session=True,
            )
        except (FileNotFoundError, NotADirectoryError):
            raise ProgramNotFound(arguments[0]) from None
        except (OSError, ValueError) as error:
            raise LaunchFailed(getattr(error, "strerror", None) or str(error)) from error
    return Child(popen)


def start_mark(pid: int) -> float:
    """When a process was started: with the process id it names a process, as the id alone does not.

    :param pid: the process id.
    :return: an opaque number, 0 if there is no such process.
    """
    try:
        # Much cheaper than psutil's create_time, and this is on the path of every task.
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return float(stat[stat.rindex(b")") + 2 :].split()[19])
    except OSError:
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
