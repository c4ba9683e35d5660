"""What a hostile task does to its service: a program of its own, which the tests run as a task's command.

    python hostile.py DEED FOLDER

What is to be seen of it is in the folder: an empty file for each process that is to be ended, named by its process id;
`beat`, which grows as long as the deed goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

#: Numbers of Linux: include/uapi/linux/prctl.h, include/uapi/linux/ptrace.h, include/uapi/asm-generic/resource.h.
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PTRACE_ATTACH, RLIMIT_LOCKS = 1, 36, 16, 10
#: How many generations a fork bomb has, each with two children: 2 ** 7 - 1 processes.
GENERATIONS = 6

LIBC = ctypes.CDLL(None, use_errno=True)


def note(folder: Path) -> None:
    """Leave this process's id as a file."""
    (folder / str(os.getpid())).touch()


def beat(folder: Path) -> None:
    """Make the file `beat` longer."""
    file = os.open(folder / "beat", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, b".")
    os.close(file)


def detached(deed: Callable[[], None]) -> None:
    """Do something in a process that has lost its parent, in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            deed()
        os._exit(0)
    os.wait()


def stay(folder: Path) -> None:
    """Be there until killed."""
    note(folder)
    time.sleep(600)
    os._exit(0)


def renumber() -> None:
    """Give back the number that says whose this process is, as far as it can be."""
    for low, high in ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), (5, 5)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(RLIMIT_LOCKS, (low, high))
            return


def tamper(folder: Path) -> None:
    """Get rid of the number, then of the parent and the session."""

    def hide() -> None:
        renumber()
        stay(folder)

    detached(hide)


def lower(folder: Path) -> None:
    """Put another number in the place of one's own."""

    def hide() -> None:
        resource.setrlimit(RLIMIT_LOCKS, (5, 5))
        stay(folder)

    detached(hide)


def hop(folder: Path) -> None:
    """Let each process live only until it has started the next, in a session of its own."""

    def hops() -> None:
        while True:
            os.setsid() if os.getpid() != os.getsid(0) else None
            beat(folder)
            if os.fork():
                os._exit(0)

    detached(hops)


def bomb(folder: Path) -> None:
    """Start two processes that do the same, and another for each that dies."""

    def bursts(generation: int) -> None:
        note(folder)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        children = 0
        while True:
            while children < 2 and generation < GENERATIONS:
                children += 1
                if os.fork() == 0:
                    os.setsid()
                    bursts(generation + 1)
            try:
                os.wait()
                children -= 1
            except ChildProcessError:
                time.sleep(600)

    detached(lambda: bursts(0))


def reap(folder: Path) -> None:
    """Be the one that orphans go to, and the parent of what is nobody else's; start it with no death signal."""

    def middle() -> None:
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

        def below() -> None:
            LIBC.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
            detached(lambda: stay(folder))
            stay(folder)

        detached(below)
        stay(folder)

    detached(middle)


def stop_parent(folder: Path) -> None:
    """Stop the process that has started this one."""
    detached(lambda: stay(folder))
    os.kill(os.getppid(), signal.SIGSTOP)
    beat(folder)


def trace_parent(folder: Path) -> None:
    """Stop the process that has started this one, as a debugger does."""
    if (folder / "traced").exists():
        return
    parent = os.getppid()
    detached(lambda: stay(folder))
    LIBC.ptrace(PTRACE_ATTACH, parent, None, None)
    error = ctypes.get_errno()
    (folder / "traced").write_text(os.strerror(error) if error else "yes")
    beat(folder)
    time.sleep(600)


def kill_parent(folder: Path) -> None:
    """Kill the process that has started this one, after what is left behind has got rid of its number."""
    if (folder / "beat").exists():
        time.sleep(600)
    parent = os.getppid()
    tamper(folder)
    while not [each for each in folder.iterdir() if each.name.isdigit()]:
        time.sleep(0.01)
    beat(folder)
    os.kill(parent, signal.SIGKILL)
    time.sleep(600)


DEEDS = {each.__name__: each for each in (tamper, lower, hop, bomb, reap, stop_parent, trace_parent, kill_parent)}

if __name__ == "__main__":
    DEEDS[sys.argv[1]](Path(sys.argv[2]))
    # What the deed began is there before the command ends, or goes on.
    here = Path(sys.argv[2])
    while not any(here.iterdir()):
        time.sleep(0.01)
    if sys.argv[3:] == ["stay"]:
        time.sleep(600)
