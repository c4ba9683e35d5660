"""Starting one command: its directories, the files of its output, its program.

Standard library alone: the helper process imports it.
"""

# Paths as text: pathlib would take a good part of the time that the helper process is there to save.
# ruff: noqa: PTH116

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat

from airflow_batchwrap.local.node import opening

_OUTPUT = ("stdout.txt", "stderr.txt")
#: What Python and the service ignore or handle is as usual for a command.
_SIGNALS = [signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGXFSZ]


class Failed(Exception):
    """A command could not be started.

    :param what: ``directory``, ``program`` or ``start``.
    :param number: the error's number.
    """

    def __init__(self, what: str, number: int) -> None:
        self.what, self.number = what, number
        super().__init__(what)


class Places:
    """Where commands work: the directories of tasks, and the files of their output.

    :param nodes: the directory of all nodes.
    """

    def __init__(self, nodes: str) -> None:
        # What is below is found from there on: a descriptor is quicker than a path, and stays the same directory.
        self._nodes, self._length, self._path = opening.descend(nodes, ()), len(nodes) + 1, nodes
        # The directory that the last task was made in: tasks of a job follow each other.
        self._above, self._way = "", -1
        self._through: list[str] = []
        self._known: list[tuple[int, int]] = []

    def enter(self, directory: str, *, make: bool, append: bool) -> list[int]:
        """Go to where a command is to work.

        :param directory: the task's directory.
        :param make: make it first; it must not be there yet.
        :param append: keep earlier output.
        :return: the open files of its output.
        :raises Failed: that cannot be done.
        """
        files: list[int] = []
        others: list[int] = []
        below = directory[self._length :]
        try:
            # By descriptors: other tasks of the node may put a link or a pipe anywhere on the way.
            here = self._make(below) if make else opening.descend(self._nodes, below.split("/"))
            others.append(here)
            for name in _OUTPUT:
                # Not at once: what is open so far has to be closed if the next one fails.
                files.append(opening.writing(here, name, append=append))  # noqa: PERF401
            # The command is started from where it is to work: a child cannot be told to go there.
            others.append(working := os.open("wd", opening.WAY, dir_fd=here))
            os.fchdir(working)
        except OSError as error:
            others += files
            raise Failed("directory", error.errno or errno.EIO) from None
        finally:
            for each in others:
                os.close(each)
        return files

    def _make(self, below: str) -> int:
        above, _, name = below.rpartition("/")
        way = self._to(above)
        os.mkdir(name, dir_fd=way)
        here = os.open(name, opening.WAY, dir_fd=way)
        try:
            os.mkdir("wd", dir_fd=here)
            os.mkdir("certs", dir_fd=here)
        except BaseException:
            os.close(here)
            raise
        return here

    def _to(self, above: str) -> int:
        if above == self._above and self._is_known():
            return self._way
        parts = above.split("/")
        try:
            way = opening.descend(self._nodes, parts)
        except FileNotFoundError:
            if not os.fstat(self._nodes).st_nlink:
                # A task has removed the directory of all nodes.
                os.close(self._nodes)
                self._nodes = opening.descend(opening.made(self._path), ())
            way = opening.descend(self._nodes, parts, make=True)
        if self._above:
            os.close(self._way)
        self._above, self._way = above, way
        # The paths of all that it goes through, which no task may exchange for a link, moved elsewhere or not.
        self._through = ["/".join(parts[: number + 1]) for number in range(len(parts))]
        self._known = [_number(os.stat(path, dir_fd=self._nodes, follow_symlinks=False)) for path in self._through]
        return way

    def _is_known(self) -> bool:
        # No other directory has the number of one that is open, or of one above that.
        try:
            return self._known == [
                _number(os.stat(path, dir_fd=self._nodes, follow_symlinks=False)) for path in self._through
            ]
        except OSError:
            return False


def _number(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def spawn(arguments: list[str], environment: dict[str, str], null: int, files: list[int]) -> int:
    """Start a command here, in a session of its own.

    :param arguments: program and arguments; the program is looked up in the environment's PATH.
    :param environment: all of its environment.
    :param null: an open file with nothing in it.
    :param files: where its output goes.
    :return: its process id.
    :raises Failed: there is no such program, or it cannot be executed.
    """
    program = arguments[0] if "/" in arguments[0] else _find(arguments[0], environment.get("PATH", os.defpath))
    out, err = files
    redirect = ((os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, err, 2))
    try:
        return os.posix_spawn(program, arguments, environment, file_actions=redirect, setsid=True, setsigdef=_SIGNALS)
    except (FileNotFoundError, NotADirectoryError):
        raise Failed("program", errno.ENOENT) from None
    except NotImplementedError:
        return _popen(program, arguments, environment, null, files)
    except (OSError, ValueError) as error:
        raise Failed("start", getattr(error, "errno", None) or errno.EINVAL) from None


def _popen(program: str, arguments: list[str], environment: dict[str, str], null: int, files: list[int]) -> int:
    # A system whose posix_spawn knows no sessions (macOS before 10.15): slower, and the same.
    import subprocess

    try:
        popen = subprocess.Popen(
            arguments, executable=program, stdin=null, stdout=files[0], stderr=files[1], env=environment,
            start_new_session=True,
        )  # fmt: skip
    except (FileNotFoundError, NotADirectoryError):
        raise Failed("program", errno.ENOENT) from None
    except (OSError, ValueError) as error:
        raise Failed("start", getattr(error, "errno", None) or errno.EINVAL) from None
    # It is waited for elsewhere, not by its Popen.
    popen.returncode = 0
    return popen.pid


def _find(program: str, path: str) -> str:
    for folder in path.split(os.pathsep):
        found = f"{folder or '.'}/{program}"
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.stat(found).st_mode) and os.access(found, os.X_OK):
                return found
    raise Failed("program", errno.ENOENT)
