"""What has lost its parent: a helper process adopts it, so that whatever its commands start stays below it.

    family = Family()
    adopt_orphans()
    ...                             # start commands, each carrying a number of its own (`owned`)
    family.look(commands)           # who has lost its parent since
    family.kill(pids)
    family.bury(pid)                # it was waited for

A process that ends gives its children to the nearest child subreaper above it
(https://man7.org/linux/man-pages/man2/PR_SET_CHILD_SUBREAPER.2const.html), before anybody hears of its end. So once a
command was waited for, what is left of it are children of the helper, and what these have below them. Nothing has to be
looked for: one read names the children, and each end brings those of what ended. What has given away its number has no
owner, and is told by that.

Standard library alone: the helper process imports it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Container, Iterable

from airflow_batchwrap.local.node import owned

#: prctl's numbers, of Linux's include/uapi/linux/prctl.h.
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_CHILD_SUBREAPER = 1, 4, 36
#: The kernel gives a page of children at a time, at most.
_PAGE = 4096


class Family:
    """The children of this process that are no commands, and the number that each carries.

    For a process of one thread, which alone waits for its children.
    """

    def __init__(self) -> None:
        #: By process id: what each carries; 0 where it has given that away.
        self.orphans: dict[int, int] = {}
        self._group = os.getpgrp()
        self._file = -1
        with contextlib.suppress(OSError):
            # Not on every kernel: CONFIG_PROC_CHILDREN.
            self._file = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY)

    def children(self) -> list[int]:
        """The children of this process, those among them that wait to be waited for."""
        if self._file < 0:
            return owned.children(os.getpid())
        text = chunk = os.pread(self._file, _PAGE, 0)
        while len(chunk) > _PAGE // 2:
            chunk = os.pread(self._file, _PAGE, len(text))
            text += chunk
        return [int(each) for each in text.split()]

    def look(self, commands: Container[int]) -> bool:
        """Take down who has lost its parent.

        :param commands: the children that did not.
        :return: whether there is anybody new.
        """
        found = [pid for pid in self.children() if pid not in commands and pid not in self.orphans]
        for pid in found:
            self.orphans[pid] = owned.carried_by(pid)
        return bool(found)

    def bury(self, pid: int) -> None:
        """Forget a child that was waited for.

        :param pid: its process id.
        """
        self.orphans.pop(pid, None)

    def kill(self, pids: Iterable[int]) -> None:
        """Kill children with the whole of their groups, which cannot start anything meanwhile.

        :param pids: their process ids; a child keeps its own until it is waited for.
        """
        for pid in pids:
            # Of another user's programs (sudo) some may not be killed, and are waited for.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                group = os.getpgid(pid)
                if group != self._group:
                    os.killpg(group, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def adopt_orphans() -> bool:
    """Become the parent of whatever loses its own below this process: a child subreaper.

    :return: whether that is so now; False on systems other than Linux.
    """
    return _prctl(_SET_CHILD_SUBREAPER, 1)


def guard() -> None:
    """Let no other process of the same user look into this one, and go on when the one that started it ends.

    Something may have stopped it, which would then not notice that end.
    """
    _prctl(_SET_DUMPABLE, 0)
    _prctl(_SET_PDEATHSIG, signal.SIGCONT)


def _prctl(what: int, value: int) -> bool:
    if sys.platform != "linux":
        return False
    try:
        import ctypes

        done: int = ctypes.CDLL(None).prctl(what, value, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return False
    return done == 0
