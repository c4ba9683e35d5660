"""Files in a task's reach are opened here, by descriptors: a task may put a link or a pipe anywhere, any time.

Nothing here waits for a pipe, follows a link that leads out, or trusts a path whose parts may change between a look and
the opening. Of the standard library alone, since the helper process (`launcher`) uses it too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable

#: The way to a directory: no right to read it is needed where the system knows O_PATH (Linux).
WAY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: What says that no directory is there: a link (it is not followed), a file, a pipe.
_NO_DIRECTORY = frozenset({errno.ENOTDIR, errno.ELOOP})
#: What says that no file is there that can be written: a link, a pipe without a reader, a directory, a socket, a locked
#: file.
_NO_FILE = frozenset(
    {errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR, errno.ENODEV, errno.EOPNOTSUPP, errno.EACCES, errno.ETXTBSY}
)
#: How often room is made for a file where something else is put there again and again.
_TRIES = 16


class Shorter(Exception):
    """A file became shorter while it was sent: what was announced cannot be kept, and the connection has to be cut."""


def descend(
    base: str | os.PathLike[str] | int,
    parts: Iterable[str],
    *,
    make: bool = False,
    replace: bool = False,
    unlocking: bool = False,
) -> int:
    """Go down from a directory, through directories alone: no link on the way is followed, whoever puts it there.

    :param base: where to begin: a descriptor, or an absolute path with no link in it.
    :param parts: the names of the directories.
    :param make: make those that are missing.
    :param replace: with ``make``: what is no directory makes way for one; else it is an error.
    :param unlocking: give their owner the rights on them back.
    :return: a descriptor of the last one, which is good for what takes a ``dir_fd``. To be closed.
    :raises OSError: one is missing, is no directory, or cannot be made.
    """
    here = _top(base)
    try:
        for part in parts:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=here)
            try:
                if unlocking:
                    unlock_at(here, part)
                below = os.open(part, WAY, dir_fd=here)
            except OSError as error:
                if not (replace and error.errno in _NO_DIRECTORY):
                    raise
                make_way(here, part)
                os.mkdir(part, dir_fd=here)
                below = os.open(part, WAY, dir_fd=here)
            os.close(here)
            here = below
    except BaseException:
        os.close(here)
        raise
    return here


def made(path: str) -> str:
    """Make a directory that was there and is gone, for its owner alone.

    :param path: the directory; one that is there is no error. What holds it is there.
    :return: the path.
    :raises OSError: it cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)  # noqa: PTH102 - pathlib takes its time
    return path


def _top(base: str | os.PathLike[str] | int) -> int:
    if isinstance(base, int):
        return os.open(".", WAY, dir_fd=base)
    if not hasattr(os, "O_PATH"):
        # Without O_PATH a directory that only leads on (mode 711) cannot be opened on the way.
        return os.open(base, WAY)
    here = os.open("/", WAY)
    for part in filter(None, os.fspath(base).split("/")):
        try:
            below = os.open(part, WAY, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def unlock(directory: int) -> None:
    """Give the owner of a directory their rights on it back, as far as that can be.

    :param directory: its descriptor.
    """
    with contextlib.suppress(OSError):
        mode = os.fstat(directory).st_mode
        if stat.S_ISDIR(mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
            # A descriptor of the way alone (O_PATH) takes no fchmod; this path is the same directory, however named.
            where: int | str = f"/proc/self/fd/{directory}" if hasattr(os, "O_PATH") else directory
            os.chmod(where, stat.S_IMODE(mode) | stat.S_IRWXU)  # noqa: PTH101


def unlock_at(directory: int, name: str) -> None:
    """Give the owner of a directory their rights on it back; what is no directory stays as it is.

    :param directory: the descriptor of the directory that holds it.
    :param name: its name there.
    """
    if not hasattr(os, "O_PATH"):
        # Without O_PATH a locked directory cannot be opened. Here links are not followed by their name either (macOS).
        with contextlib.suppress(OSError, NotImplementedError):
            mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                os.chmod(name, stat.S_IMODE(mode) | stat.S_IRWXU, dir_fd=directory, follow_symlinks=False)
        return
    with contextlib.suppress(OSError):
        found = os.open(name, WAY, dir_fd=directory)
        try:
            unlock(found)
        finally:
            os.close(found)


def make_way(directory: int, name: str) -> None:
    """Take away what is in a place, whatever it is. A directory that is not empty is given another name.

    :param directory: the descriptor of the directory.
    :param name: the name in it; nothing there is no error.
    :raises OSError: it cannot be taken away.
    """
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        # A directory: Linux says EISDIR, macOS EPERM.
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
        unlock_at(directory, name)
        try:
            os.rmdir(name, dir_fd=directory)
        except OSError:
            os.rename(name, f".{secrets.token_hex(8)}", src_dir_fd=directory, dst_dir_fd=directory)


def writing(directory: int, name: str, *, append: bool = False) -> int:
    """Open a file of the service's own to write, in a place where a task may have put something else.

    :param directory: the descriptor of the directory.
    :param name: the file's name in it.
    :param append: go on with it where it is a regular file of one name; else it is a new one, and what was there goes.
    :return: a descriptor of a regular file. To be closed.
    :raises OSError: it cannot be written.
    """
    for _ in range(_TRIES):
        try:
            return os.open(name, _WRITE | os.O_EXCL | (os.O_APPEND if append else 0), 0o666, dir_fd=directory)
        except FileExistsError:
            pass
        if append and (descriptor := _going_on(directory, name)) is not None:
            return descriptor
        make_way(directory, name)
    raise FileExistsError(errno.EEXIST, "something else is put there again and again", name)


def _going_on(directory: int, name: str) -> int | None:
    try:
        descriptor = os.open(name, _WRITE | os.O_APPEND, 0o666, dir_fd=directory)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise
    status = os.fstat(descriptor)
    # A file of two names may be one from elsewhere.
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return descriptor
    os.close(descriptor)
    return None


def within(root: str | os.PathLike[str], relative: str) -> list[str]:
    """Where a path leads, its links followed as long as they lead inside.

    :param root: the directory it is to stay in, with no link in its own path.
    :param relative: the path below it, of a file or directory.
    :return: the names on the way from the root; the last one was no link when it was looked at.
    :raises FileNotFoundError: the path leads out, or cannot be one.
    """
    parts = [part for part in relative.split("/") if part not in ("", ".")]
    if relative.startswith("/") or ".." in parts or "\0" in relative:
        raise FileNotFoundError(errno.ENOENT, "the path leads out of its directory", relative)
    top = os.fspath(root)
    try:
        real = os.path.realpath("/".join([top, *parts]))
    except (OSError, ValueError):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), relative) from None
    if real != top and not real.startswith(top.rstrip("/") + "/"):
        raise FileNotFoundError(errno.ENOENT, "the path leads out of its directory through a link", relative)
    return [part for part in real[len(top) :].split("/") if part]


def status(root: str | os.PathLike[str], relative: str) -> os.stat_result:
    """What a path means, its links followed as long as they lead inside.

    :param root: the directory it is to stay in.
    :param relative: the path below it.
    :return: what it is.
    :raises OSError: there is nothing, or nothing inside.
    """
    parts = within(root, relative)
    if not parts:
        directory = descend(root, ())
        try:
            return os.fstat(directory)
        finally:
            os.close(directory)
    directory = descend(root, parts[:-1])
    try:
        found = os.stat(parts[-1], dir_fd=directory, follow_symlinks=False)
    finally:
        os.close(directory)
    if stat.S_ISLNK(found.st_mode):
        raise FileNotFoundError(errno.ENOENT, "a link leads out, or nowhere", relative)
    return found


def reading(root: str | os.PathLike[str], relative: str) -> tuple[int, os.stat_result]:
    """Open a regular file to read; a pipe or a device is none, and holds up nobody.

    :param root: the directory it is to stay in, with no link in its own path.
    :param relative: the path below it; links are followed as long as they lead inside.
    :return: a descriptor, to be closed, and what the file is.
    :raises OSError: there is no such file inside, or it cannot be read.
    """
    parts = within(root, relative)
    if not parts:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), relative)
    directory = descend(root, parts[:-1])
    try:
        descriptor = os.open(parts[-1], _READ, dir_fd=directory)
    finally:
        os.close(directory)
    return _regular(descriptor, relative)


def plain(path: str | os.PathLike[str]) -> tuple[int, os.stat_result]:
    """Open a regular file of the user's own to read, wherever links lead; a pipe in its place holds up nobody.

    :param path: the file.
    :return: a descriptor, to be closed, and what the file is.
    :raises OSError: there is no such file, or it cannot be read.
    """
    return _regular(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), os.fspath(path))


def _regular(descriptor: int, name: str) -> tuple[int, os.stat_result]:
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode):
        return descriptor, found
    os.close(descriptor)
    raise FileNotFoundError(errno.ENOENT, "it is no regular file", name)
