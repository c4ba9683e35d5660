"""Child processes that run in their own session, write to a log file, and are stopped for certain.

On Linux all that ``spawn`` starts carries a number, and hands it on to all that it starts itself. Nothing but a
privileged process can hide it (``airflow_batchwrap.local.node.owned``). It belongs to a state directory, and to one
``spawn``.
Where there is no such number (macOS), sessions and a variable in the environment serve, as far as they can be read.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from airflow_batchwrap.local.node import owned

# An environment variable of all that `spawn` starts, which they hand on: the state directory they belong to, if any.
# Airflow's processes are non-dumpable, so that on Linux only root may read it there.
MARK = "BATCHWRAP_STACK"
# Airflow's processes give themselves titles, by default in the memory that others read their environment from.
_READABLE = {"SPT_NOENV": "1"}
# The system gives a process's start time in clock ticks (0.01 s on Linux); two readings may differ by rounding.
_START_TOLERANCE = 0.1
# A killed process is gone as soon as the system gets to it.
_KILL_SECONDS = 10.0
# What is left when its parent has ended is about to end too, or never will.
_ORPHAN_SECONDS = 0.5

# What the processes that this one has started carry.
_spawned: dict[int, int] = {}


@dataclass(frozen=True)
class ProcessId:
    """One process, and not a later one that was given the same number.

    :param started: when it started, in seconds since 1970, by the system's clock.
    :param carried: what it and all that it starts carry; 0 where ``spawn`` did not start it, or nothing is carried.
    """

    pid: int
    started: float
    carried: int = 0

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Name a process that runs now.

        :return: its identity, or None where no such process runs.
        """
        try:
            carried = _spawned.get(pid, 0)
            own = carried if carried and owned.carried_by(pid) == carried else 0
            return cls(pid, psutil.Process(pid).create_time(), own)
        except psutil.NoSuchProcess:
            return None

    def process(self) -> psutil.Process | None:
        """Find the process again.

        :return: it, or None where it has ended (a zombie has ended), even if its number was given away since.
        """
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.started) < _START_TOLERANCE
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def spawn(argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> int:
    """Start a program in a session of its own, with nothing on its input and all its output in a file.

    A file, and not a pipe, so that the program outlives its parent and never blocks on an unread pipe.

    :param log: the file for stdout and stderr, appended to; readable by its owner only.
    :param env: the whole environment; None for this process's own.
    :param cwd: its working directory; None for this process's own.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    whole = {MARK: "1", **(os.environ if env is None else env), **_READABLE}
    carried = owned.tag(owned.owner(whole[MARK]), secrets.randbits(32))
    try:
        with owned.handing_on(carried):
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=subprocess.STDOUT,
                env=whole,
                cwd=cwd,
                start_new_session=True,
            )
    finally:
        os.close(descriptor)
    # The child is followed by its process id from here on, also by other processes; Popen would only warn that it runs.
    child.returncode = 0
    _spawned[child.pid] = carried
    return child.pid


def ended(pid: int) -> bool:
    """Return whether a process has ended, collecting it where it was a child of this process."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        # Nobody's, or another's child. A zombie has ended; collecting it is its parent's affair.
        try:
            return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True


def family(roots: Iterable[ProcessId]) -> list[psutil.Process]:
    """List processes, all that descends from them, and all that belongs to them.

    What a root has started carries the root's number: also once the root was killed, and whatever it did to its parent,
    its session and its environment.

    :param roots: the processes that ``spawn`` started, ended ones among them.
    :return: those that run, and what belongs to them. Never this process.
    """
    roots = list(roots)
    carried = {root.carried for root in roots if root.carried}
    found = {each.pid: each for each in _processes(owned.carrying(carried.__contains__))} if carried else {}
    sessions: dict[int, bool] = {}
    for root in roots:
        process = root.process()
        if process is not None or ended(root.pid):
            # Else the number is another process's by now, and so is the session.
            sessions[root.pid] = process is not None
        if process is not None:
            found[process.pid] = process
            with contextlib.suppress(psutil.NoSuchProcess):
                found.update((child.pid, child) for child in process.children(recursive=True))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            leader_runs = sessions.get(os.getsid(process.pid))
            # Where the leader is gone its number may be another session's by now: only what has the mark is ours.
            if leader_runs or (leader_runs is False and MARK in process.environ()):
                found.setdefault(process.pid, process)
    found.pop(os.getpid(), None)
    return list(found.values())


def belonging(folder: Path) -> list[psutil.Process]:
    """List the processes that belong to a folder, by what they carry.

    :param folder: the state directory that ``spawn`` found in its environment, or the nodes' directory of a local Batch
        service; absolute.
    :return: those that run; none where nothing is carried (macOS). Never this process.
    """
    return _processes(owned.of_owner(str(folder)))


def _processes(pids: Iterable[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def marked(name: str, value: str) -> list[psutil.Process]:
    """List the processes that were started with an environment variable of this value, or below this folder.

    :param value: its value; a folder also matches what lies in it.
    :return: the processes that have it, as far as that can be read. Never this process.
    """
    found = []
    for process in psutil.process_iter():
        # Another user's environment cannot be read, and is none of ours.
        with contextlib.suppress(psutil.Error, OSError):
            has = process.environ().get(name, "") if process.pid != os.getpid() else ""
            if has == value or has.startswith(f"{value}/"):
                found.append(process)
    return found


def stop(roots: Sequence[ProcessId], *, polite: signal.Signals = signal.SIGTERM, grace: float = 10.0) -> None:
    """Stop processes and all that belongs to them, and return when none is left.

    :param roots: the processes that ``spawn`` started; those that have ended are fine.
    :param polite: the signal that asks each root to end.
    :param grace: seconds that they are given, before whatever is left is killed.
    """
    everyone = family(roots)
    for root in roots:
        process = root.process()
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(polite)
    _wait_until_gone(everyone, grace, roots)
    kill([*everyone, *family(roots)])


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill processes, and return when they are gone.

    :param processes: what to kill; those that have ended are fine.
    """
    condemned = list(processes)
    for process in condemned:
        # psutil compares the start time first, so that a number given away since is left alone.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _wait_until_gone(condemned, _KILL_SECONDS)


def _wait_until_gone(
    processes: Iterable[psutil.Process], seconds: float, roots: Sequence[ProcessId] | None = None
) -> None:
    deadline = time.monotonic() + seconds
    left = [process for process in processes if _runs(process)]
    while left and time.monotonic() < deadline:
        if roots is not None and not any(root.process() for root in roots):
            # Nobody is left to end the others.
            deadline, roots = min(deadline, time.monotonic() + _ORPHAN_SECONDS), None
        time.sleep(0.02)
        left = [process for process in left if _runs(process)]


def _runs(process: psutil.Process) -> bool:
    # is_running() is False for a later process with the same number.
    return process.is_running() and not ended(process.pid)


def tail(log: Path, lines: int = 20) -> str:
    """Read the end of a log file.

    :param lines: how many lines at most.
    :return: those lines; an empty text where there is no such file.
    """
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 400 * lines))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
