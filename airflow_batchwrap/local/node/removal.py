"""Directories are removed whatever tasks did to them; one that cannot be removed holds up nobody."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path

#: How often the removal of a directory is tried, and the pause before each further try, in seconds: a process that was
#: killed a moment ago may still have written something, or another removal is at work on the same directory.
_TRIES, _PAUSE = 5, 0.02
#: Directories deeper than this are moved to the top before they are emptied, so that no path grows too long for the
#: system (PATH_MAX is 4096 on Linux, 1024 on macOS): a task may make thousands of them, one in the other.
_DEEP = 16
#: What somebody else has changed meanwhile.
_ELSEWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})


def remove(directory: Path, within: Path | None = None) -> bool:
    """Remove a directory, whatever a task did to it; one that is gone already is no error.

    Nothing is raised: what cannot be removed (another user's files, a mount) is left there.

    :param directory: the directory.
    :param within: a directory above it; those in between may be locked too.
    :return: whether it is gone.
    """
    if within is not None:
        unlock_above(directory, within)
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE)
        _empty(str(directory))
        if not _is_there(directory):
            return True
    return False


def set_aside(directory: Path, aside: Path) -> Path | None:
    """Move what could not be removed out of the way of a later directory of that name.

    :param directory: what could not be removed.
    :param aside: the directory that takes it.
    :return: where it is now; None where it cannot be moved.
    """
    target = aside / secrets.token_hex(8)
    try:
        aside.mkdir(mode=0o700, exist_ok=True)
        unlock(directory.parent)
        unlock(directory)
        directory.rename(target)
    except OSError:
        return None
    return target


def unlock(directory: Path) -> None:
    """Give the owner of a directory their rights on it back; what is no directory stays as it is.

    :param directory: the directory.
    """
    _unlock(str(directory))


def unlock_above(directory: Path, within: Path) -> None:
    """Give the owner their rights back on the directories that lead to another one.

    :param directory: where they lead.
    :param within: where they begin; it stays as it is.
    """
    if directory.is_relative_to(within):
        for parent in reversed(directory.parents[: len(directory.parts) - len(within.parts) - 1]):
            _unlock(str(parent))


def _is_there(directory: Path) -> bool:
    try:
        os.lstat(directory)
    except OSError as error:
        return error.errno not in _ELSEWHERE
    return True


def _unlock(path: str) -> None:
    with contextlib.suppress(OSError):
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
            Path(path).chmod(stat.S_IMODE(mode) | stat.S_IRWXU)


def _empty(top: str) -> None:
    """Remove a directory as far as it can be, with no recursion: a task may nest directories without end."""
    # (directory, how deep it is, whether what is in it was seen to); one is removed after all that it holds.
    waiting = [(top, 0, False)]
    while waiting:
        here, depth, seen = waiting.pop()
        if seen:
            _try(os.rmdir, here)
            continue
        _unlock(here)
        waiting.append((here, depth, True))
        try:
            directories = _unlink_files(here)
        except NotADirectoryError:
            # A task put a file or a link where its directory was.
            _try(os.unlink, here)
            continue
        except OSError:
            continue
        for name in directories:
            path = f"{here}/{name}"
            if depth < _DEEP:
                waiting.append((path, depth + 1, False))
                continue
            # A directory can be moved only by who may write it.
            _unlock(path)
            moved = f"{top}/.{secrets.token_hex(8)}"
            if _try(Path(path).rename, moved):
                waiting.append((moved, 1, False))


def _unlink_files(directory: str) -> list[str]:
    """Remove all but the directories in a directory, and list these. A symbolic link is not followed, ever."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with os.scandir(descriptor) as listing:
            entries = list(listing)
        directories = []
        for entry in entries:
            if _is_directory(entry):
                directories.append(entry.name)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.name, dir_fd=descriptor)
        return directories
    finally:
        os.close(descriptor)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _try(action: Callable[[str], object], path: str) -> bool:
    try:
        action(path)
    except OSError:
        return False
    return True
