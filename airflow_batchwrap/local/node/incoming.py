"""A file that comes to a node: out of sight until it is whole, and never through a link that leads out."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
from pathlib import Path

from airflow_batchwrap.local.node import opening

#: No name of a file is longer, in bytes (Linux: NAME_MAX; the same on the nodes of Azure).
_LONGEST = 255


class PlaceError(Exception):
    """A file cannot be where it was to be."""


def parts_of(relative: str) -> list[str]:
    """The names on the way to a file.

    :param relative: its path below a directory, as a client gave it.
    :return: the names, the file's own last.
    :raises PlaceError: no file can be there.
    """
    parts = [part for part in relative.split("/") if part not in ("", ".")]
    if relative.startswith("/") or ".." in parts or "\0" in relative:
        raise PlaceError(f"The path {relative!r} leads out of its directory.")
    if not parts:
        raise PlaceError(f"The path {relative!r} names no file.")
    for part in parts:
        if (size := len(os.fsencode(part))) > _LONGEST:
            raise PlaceError(
                f"The name {part[:40]!r}... has {size} bytes in UTF-8, and a node's file system takes {_LONGEST} at "
                "most: give the file a shorter filePath."
            )
    return parts


class Incoming:
    """A file that is about to come. Its methods look at files: they are called in a thread.

    :param working: the directory that it stays in.
    :param root: the node's root.
    :param relative: its path below the working directory.
    :param mode: its mode.
    :raises PlaceError: no file can be there.
    """

    def __init__(self, working: Path, root: Path, relative: str, mode: int) -> None:
        self._working, self._root = working, root
        *self._above, self._name = parts_of(relative)
        self._relative, self._mode = relative, mode
        self._directory = self._file = -1
        # Whatever its own name is: a longer one than the system takes, or one that begins as another file's does.
        self._partial = f".{secrets.token_hex(8)}.part"
        # Where nobody waits for a file any more, it is let go while a thread may still be at work on it.
        self._lock, self._over = threading.Lock(), False

    def restart(self) -> None:
        """Begin, or begin anew.

        :raises PlaceError: it cannot be there.
        :raises OSError: it cannot be written.
        """
        with self._lock:
            if self._over:
                return
            if self._directory < 0:
                self._directory = directory(self._working, self._root, self._above)
            if self._file < 0:
                self._file = opening.writing(self._directory, self._partial)
            else:
                os.ftruncate(self._file, 0)
                os.lseek(self._file, 0, os.SEEK_SET)

    def write(self, chunk: bytes) -> None:
        """Write what comes next.

        :param chunk: the bytes.
        :raises OSError: it cannot be written.
        """
        with self._lock:
            self._write(chunk)

    def _write(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        while left and not self._over:
            left = left[os.write(self._file, left) :]

    def finish(self, chunk: bytes) -> None:
        """Write the last bytes, and show the file. What had its name before is replaced.

        :param chunk: the bytes.
        :raises PlaceError: there is a directory of its name.
        :raises OSError: it cannot be written.
        """
        with self._lock:
            if self._over:
                return
            self._write(chunk)
            os.fchmod(self._file, self._mode)
            try:
                os.rename(self._partial, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            except IsADirectoryError:
                raise PlaceError(f"There is a directory in the place of the file {self._relative!r}.") from None

    def discard(self) -> None:
        """Let go of it; what is not whole goes."""
        with self._lock:
            self._over = True
            if self._file >= 0:
                os.close(self._file)
                with contextlib.suppress(OSError):
                    os.unlink(self._partial, dir_fd=self._directory)
            if self._directory >= 0:
                os.close(self._directory)
            self._file = self._directory = -1


def directory(working: Path, root: Path, parts: list[str]) -> int:
    """Open a directory below a task's working directory, made where it is missing.

    :param working: the working directory. Links in it are followed as long as they lead inside.
    :param root: the node's root.
    :param parts: the names on the way.
    :return: a descriptor, to be closed.
    :raises PlaceError: it cannot be there.
    :raises OSError: it cannot be made.
    """
    way = working.relative_to(root.parent).parts
    try:
        inner = opening.within(working, "/".join(parts))
    except FileNotFoundError:
        raise PlaceError(f"The path {'/'.join(parts)!r} leads out of its directory through a link.") from None
    try:
        return opening.descend(root.parent, [*way, *inner], make=True)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise PlaceError(
                f"There is no directory in the place of {'/'.join(parts)!r}, but something else."
            ) from None
        raise
