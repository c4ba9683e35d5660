"""Whose a process is: a number that the kernel hands on to all that a process starts, and that anybody may ask for.

What a process started is told by its parent, until that parent ends; by its session, until it opens one of its own; by
its environment, until it empties that, gives itself a title, or may not be looked into (Airflow's processes are
non-dumpable: their own user may not read their environment). A resource limit has none of these gaps: fork and exec
hand it on, and prlimit(2) tells it for every process of the same user. `RLIMIT_LOCKS` limits nothing since Linux 2.4.25
(https://man7.org/linux/man-pages/man2/getrlimit.2.html), so its soft value is free to carry a number:

    2**61 + (owner << 32) + what of the owner's it is

A process that is not privileged may lower a limit, never raise it: what gives its number away cannot take another's,
and its hard value, which `carry(..., sealed=True)` has lowered, still tells that some helper process started it.

The owner is a directory: the data directory of a local Batch service, or the state directory of `batchwrap up`. On
systems other than Linux there is no such limit, and `SUPPORTED` is False.

Standard library alone: the helper process of the local service imports it.
"""

# Paths as text: pathlib would take a good part of the time that the helper process is there to save.
# ruff: noqa: PTH116

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator

#: RLIMIT_LOCKS of Linux's include/uapi/asm-generic/resource.h, which Python's `resource` has no name for. MIPS, SPARC
#: and Alpha number some limits otherwise, not this one.
_LOCKS = 10
#: Far above any number somebody might set, and a legal one.
_BASE = 1 << 61
_OWNER_BITS, _SHIFT = 28, 32
#: All numbers are below this one.
_END = 1 << 62
#: In place of a limit that cannot be had. None is below -1, which may mean that there is none.
_NONE = -2
#: How often a service may run inside a task of another one.
_LEVELS = 64
#: Between two looks at whether what was killed is gone, in seconds.
_LOOK = 0.01


def _hard() -> int:
    try:
        return resource.prlimit(os.getpid(), _LOCKS)[1]
    except (AttributeError, OSError, ValueError):
        return 0


#: The limit's hard value here, and what a helper process makes of it for what it starts.
_HARD = _hard() if sys.platform == "linux" else 0
_SEALED = (_END + _LEVELS if _HARD == resource.RLIM_INFINITY else min(_HARD, _END + _LEVELS)) - 1
#: Whether processes here can carry a number.
SUPPORTED = _SEALED >= _END


def owner(directory: str) -> int:
    """The number of a directory that owns processes.

    :param directory: the directory, with no symbolic link in its path.
    :return: the number, the same as long as it is that directory: another one made in its place has another.
    """
    try:
        status = os.stat(directory)
        text = f"{directory}\0{status.st_dev}\0{status.st_ino}"
    except OSError:
        text = directory
    digest = hashlib.sha256(os.fsencode(text)).digest()
    return int.from_bytes(digest[:4], "big") >> (32 - _OWNER_BITS)


def tag(owner_number: int, which: int = 0) -> int:
    """What a process carries.

    :param owner_number: as of `owner`.
    :param which: what of the owner's it is, 32 bits of it.
    :return: the number.
    """
    return _BASE + (owner_number << _SHIFT) + (which & 0xFFFF_FFFF)


def owner_of(carried: int) -> int:
    """The owner of a process that carries a number.

    :param carried: the number; 0 for none.
    :return: the owner's number; -1 where it has none.
    """
    return (carried - _BASE) >> _SHIFT if carried else -1


def carry(carried: int, *, sealed: bool = False) -> None:
    """Let what this process starts from now on, and itself, carry a number.

    :param carried: the number; 0 for none.
    :param sealed: for good, unless it is privileged: see `is_sealed`.
    """
    resource.setrlimit(_LOCKS, (carried or _HARD, _SEALED if sealed else _HARD))


def is_sealed(pid: int) -> bool:
    """Whether a helper process of this process, or of one below it, started another, whatever that has done since.

    :param pid: the process id.
    :return: False also where there is no such process.
    """
    hard = _limits(pid)[1]
    return hard not in (_NONE, resource.RLIM_INFINITY) and (hard < _HARD or _HARD == resource.RLIM_INFINITY)


@contextlib.contextmanager
def handing_on(carried: int) -> Iterator[None]:
    """Let what this process starts inside the `with` block carry a number. For one thread at a time.

    :param carried: the number.
    """
    if not SUPPORTED:
        yield
        return
    before = carried_by(os.getpid())
    carry(carried)
    try:
        yield
    finally:
        carry(before)


def carried_by(pid: int) -> int:
    """The number that a process carries.

    :param pid: the process id.
    :return: the number; 0 where there is no such process, it has none, or another user's limits may not be known.
    """
    soft = _limits(pid)[0]
    return soft if _BASE <= soft < _END else 0


def _limits(pid: int) -> tuple[int, int]:
    if not SUPPORTED:
        return _NONE, _NONE
    try:
        return resource.prlimit(pid, _LOCKS)
    except ProcessLookupError:
        return _NONE, _NONE
    except PermissionError:
        return _shown_by(pid)


def _shown_by(pid: int) -> tuple[int, int]:
    # A program that runs with another group's rights (ssh-agent does) may not be asked, and is to be found.
    try:
        with open(f"/proc/{pid}/limits", "rb") as file:  # noqa: PTH123
            for line in file:
                if line.startswith(b"Max file locks"):
                    soft, hard = (int(each) if each.isdigit() else resource.RLIM_INFINITY for each in line.split()[3:5])
                    return soft, hard
    except OSError:
        pass
    return _NONE, _NONE


def pids() -> list[int]:
    """All processes.

    :return: their ids.
    """
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def carrying(mine: Callable[[int], bool]) -> list[int]:
    """The processes that carry certain numbers, zombies left out.

    :param mine: tells whether a number is meant.
    :return: their ids; never this process.
    """
    if not SUPPORTED:
        return []
    found = []
    for pid in pids():
        number = carried_by(pid)
        if number and mine(number) and pid != os.getpid() and _state_and_parent(pid)[0] not in ("Z", ""):
            found.append(pid)
    return found


def of_owner(directory: str) -> list[int]:
    """The processes of a directory.

    :param directory: the directory, with no symbolic link in its path.
    :return: their ids, zombies left out; never this process.
    """
    number = owner(directory)
    return carrying(lambda carried: owner_of(carried) == number)


def children(pid: int) -> list[int]:
    """The children of a process, by a look at all processes.

    :param pid: the process id.
    :return: their ids, zombies among them.
    """
    return [each for each in pids() if _state_and_parent(each)[1] == pid]


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those they have; with a subreaper, those that detached too.

    :param pid: the process id.
    :return: their ids, zombies left out.
    """
    children: dict[int, list[int]] = {}
    for each in pids():
        state, parent = _state_and_parent(each)
        if state not in ("Z", ""):
            children.setdefault(parent, []).append(each)
    found, waiting = [], [pid]
    while waiting:
        below = children.pop(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _state_and_parent(pid: int) -> tuple[str, int]:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            text = file.read()
    except OSError:
        return "", 0
    # The name, in parentheses, may hold anything.
    state, parent = text[text.rindex(b")") + 2 :].split(b" ", 2)[:2]
    return state.decode(), int(parent)


def kill(found: Iterable[int]) -> None:
    """Kill processes that were found a moment ago.

    :param found: their ids; those that are gone are fine.
    """
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def end(look: Callable[[], list[int]], seconds: float) -> list[int]:
    """Kill what is found until nothing is found any more.

    :param look: finds processes.
    :param seconds: how long to go on.
    :return: what is left: processes that cannot be killed.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if not found or time.monotonic() > deadline:
            return found
        kill(found)
        time.sleep(_LOOK)
