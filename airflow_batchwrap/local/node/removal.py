"""Directories are removed whatever tasks did to them; one that cannot be removed holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from airflow_batchwrap.local.node import opening, threads

#: How often the removal of a directory is tried, and the pause before each further try, in seconds: a process that was
#: killed a moment ago may still have written something, or another removal is at work on the same directory.
_TRIES, _PAUSE = 5, 0.02
#: How many files are removed before others have a look at the clock.
_AT_ONCE = 64
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(directory: Path, within: Path | None = None) -> bool:
    """Remove a directory, whatever a task did to it; one that is gone already is no error.

    Nothing is raised: what cannot be removed (another user's files, a mount) is left there. No link is followed, on the
    way to it neither: where one stands in the place of a directory, the directory is gone.

    :param directory: the directory.
    :param within: a directory above it; those in between may be locked too.
    :return: whether it is gone.
    """
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE)
        for _ in removing(directory, within):
            pass
        if not _is_there(directory, within):
            return True
    return False


async def remove_in_turns(directory: Path, within: Path | None = None) -> bool:
    """Remove a directory as `remove` does, however much it holds, with nobody else waiting for it.

    :param directory: the directory.
    :param within: a directory above it; those in between may be locked too.
    :return: whether it is gone.
    """
    for attempt in range(_TRIES):
        if attempt:
            await asyncio.sleep(_PAUSE)
        await threads.finish(removing(directory, within))
        if not await threads.apart(_is_there, directory, within):
            return True
    return False


def set_aside(directory: Path, aside: Path, within: Path | None = None) -> Path | None:
    """Move what could not be removed out of the way of a later directory of that name.

    :param directory: what could not be removed.
    :param aside: the directory that takes it.
    :param within: a directory above it, as of `remove`.
    :return: where it is now; None where it cannot be moved.
    """
    target = aside / secrets.token_hex(8)
    try:
        aside.mkdir(mode=0o700, exist_ok=True)
        above = _above(directory, within)
        try:
            # A directory can be moved only by who may write it, and what holds it.
            opening.unlock(above)
            opening.unlock_at(above, directory.name)
            os.rename(directory.name, target, src_dir_fd=above)
        finally:
            os.close(above)
    except OSError:
        return None
    return target


def remove_empty(directory: Path, within: Path) -> None:
    """Remove a directory if it is empty.

    :param directory: the directory; one that is not empty, or gone, is no error.
    :param within: a directory above it, as of `remove`.
    """
    with contextlib.suppress(OSError):
        above = _above(directory, within)
        try:
            os.rmdir(directory.name, dir_fd=above)
        finally:
            os.close(above)


def removing(directory: Path, within: Path | None = None) -> Generator[None, None, None]:
    """Remove a directory as far as it can be, step by step.

    :param directory: the directory.
    :param within: a directory above it; those in between may be locked too.
    :return: nothing, often.
    """
    try:
        above = _above(directory, within)
    except OSError:
        return
    try:
        yield from _empty(above, directory.name)
    finally:
        os.close(above)


def _above(directory: Path, within: Path | None) -> int:
    """The directory that holds another one; its way is opened where it may be locked."""
    if within is None or not directory.is_relative_to(within):
        return opening.descend(directory.parent, ())
    return opening.descend(within, directory.relative_to(within).parts[:-1], unlocking=True)


def _is_there(directory: Path, within: Path | None) -> bool:
    try:
        above = _above(directory, within)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    try:
        os.stat(directory.name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    finally:
        os.close(above)
    return True


@dataclass(slots=True)
class _Level:
    """A directory on the way down: its name, how to know it again, and the directories in it that are left."""

    name: str
    mark: tuple[int, int]
    left: list[str]


def _empty(above: int, top: str) -> Generator[None, None, None]:
    """Remove an entry of a directory with all it holds, and with no recursion: down by descriptors, up by `..`."""
    here = yield from _enter(above, top)
    if here is None:
        return
    try:
        levels = [_Level(top, _mark(here), (yield from _unlink_files(here)))]
        while True:
            if levels[-1].left:
                name = levels[-1].left.pop()
                if (below := (yield from _enter(here, name))) is not None:
                    os.close(here)
                    here = below
                    levels.append(_Level(name, _mark(here), (yield from _unlink_files(here))))
                continue
            name = levels.pop().name
            if not levels:
                _rmdir(above, name)
                return
            if (back := _parent(here, levels[-1].mark)) is not None:
                os.close(here)
                here = back
                _rmdir(here, name)
            else:
                # Somebody moved or removed it meanwhile, as another removal of the same directory does: on from the
                # last one that is still there. What that leaves is the next try's.
                while (back := _again(above, levels)) is None:
                    levels.pop()
                    if not levels:
                        return
                os.close(here)
                here = back
            yield
    finally:
        os.close(here)


def _parent(here: int, mark: tuple[int, int]) -> int | None:
    with contextlib.suppress(OSError):
        found = os.open("..", _DIRECTORY, dir_fd=here)
        if _mark(found) == mark:
            return found
        os.close(found)
    return None


def _again(above: int, levels: Sequence[_Level]) -> int | None:
    with contextlib.suppress(OSError):
        way = opening.descend(above, [level.name for level in levels])
        try:
            found = os.open(".", _DIRECTORY, dir_fd=way)
        finally:
            os.close(way)
        if _mark(found) == levels[-1].mark:
            return found
        os.close(found)
    return None


def _enter(directory: int, name: str) -> Generator[None, None, int | None]:
    """Open a directory in another one; what is no directory (any more) is removed."""
    opening.unlock_at(directory, name)
    yield
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)
        else:
            # Another user's: it may be empty.
            _rmdir(directory, name)
    return None


def _unlink_files(directory: int) -> Generator[None, None, list[str]]:
    """Remove all but the directories in a directory, and list these. A symbolic link is not followed, ever."""
    directories: list[str] = []
    files: list[str] = []
    with contextlib.suppress(OSError), os.scandir(directory) as listing:
        for count, entry in enumerate(listing, 1):
            (directories if _is_directory(entry) else files).append(entry.name)
            if count % _AT_ONCE == 0:
                yield
    for count, name in enumerate(files, 1):
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)
        if count % _AT_ONCE == 0:
            yield
    return directories


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _rmdir(directory: int, name: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=directory)


def _mark(directory: int) -> tuple[int, int]:
    found = os.fstat(directory)
    return found.st_dev, found.st_ino
