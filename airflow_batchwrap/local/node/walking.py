"""A walk through a directory that tasks may change meanwhile: without recursion, without links, without long paths.

    for entry in walk(root, state=True, look=lambda name, directory, recursive: (True, recursive or None)):
        if entry is not None:
            print(entry.name, entry.status())

It goes down by descriptors and comes back up by `..`, as fts(3) does, and looks whether it came back to where it was.
"""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from airflow_batchwrap.local.node import opening

S = TypeVar("S")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: How many names are sorted at once. More would hold up the event loop, since nothing else runs in a process of Python
#: meanwhile: larger directories are sorted in parts, which are brought together bit by bit.
_SORTED = 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """What a walk comes by. What it can be asked for is there until the walk goes on.

    :param name: its path below the walk's beginning.
    :param is_directory: it is a directory, and no link to one.
    :param is_link: it is a symbolic link.
    :param root: the walk's root.
    :param start: the path of the walk's beginning below the root; empty, or with a slash at its end.
    :param at: a descriptor of the directory that holds it.
    """

    name: str
    is_directory: bool
    is_link: bool
    root: str
    start: str
    at: int

    @property
    def path(self) -> str:
        """Its path below the root."""
        return self.start + self.name

    def status(self) -> os.stat_result | None:
        """What it is; for a link what that leads to. None for what is gone, or leads out of the root or nowhere."""
        try:
            if self.is_link:
                return opening.status(self.root, self.path)
            return os.stat(self.name.rpartition("/")[2], dir_fd=self.at, follow_symlinks=False)
        except OSError:
            return None


@dataclass(slots=True)
class _Level(Generic[S]):
    """A directory on the way: what of it is left, and how to know it again."""

    prefix: str
    state: S
    mark: tuple[int, int]
    left: list[tuple[str, bool, bool]]


def walk(
    root: Path, state: S, look: Callable[[str, bool, S], tuple[bool, S | None]], below: Sequence[str] = ()
) -> Generator[Entry | None, None, None]:
    """Walk through a directory and those in it, each before what it holds, by the order of the names.

    What is locked, or went away meanwhile, is passed over.

    :param root: the directory that bounds what links may lead to.
    :param state: what `look` is given for the entries of the first directory.
    :param look: says for a name, whether it is a directory, and its directory's state, whether the entry is wanted, and
        the state of what it holds; None where that is not to be walked through. It takes a moment.
    :param below: the directories that lead from the root to where the walk begins.
    :return: the entries wanted; None in between, often, for those who look at the clock.
    :raises OSError: the first directory cannot be read.
    """
    start = "".join(f"{part}/" for part in below)
    way = opening.descend(root, below)
    try:
        here = os.open(".", _DIRECTORY, dir_fd=way)
    finally:
        os.close(way)
    levels: list[_Level[S]] = []
    try:
        levels.append(_Level("", state, _mark(here), (yield from _entries(here))))
        while True:
            level = levels[-1]
            if not level.left:
                levels.pop()
                while levels and (above := _up(here, root, below, levels)) is None:
                    levels.pop()
                if not levels:
                    return
                assert above is not None  # noqa: S101 - for the type checker: the loop ended with one
                os.close(here)
                here = above
                continue
            name, directory, link = level.left.pop()
            wanted, inner = look(name, directory, level.state)
            path = level.prefix + name
            yield Entry(path, directory, link, str(root), start, here) if wanted else None
            if inner is None or not directory:
                continue
            try:
                deeper = os.open(name, _DIRECTORY, dir_fd=here)
            except OSError:
                continue
            os.close(here)
            here = deeper
            levels.append(_Level(f"{path}/", inner, _mark(here), (yield from _entries(here))))
    finally:
        os.close(here)


def _mark(directory: int) -> tuple[int, int]:
    found = os.fstat(directory)
    return found.st_dev, found.st_ino


def _entries(directory: int) -> Generator[None, None, list[tuple[str, bool, bool]]]:
    """Read a directory: names, and whether they are directories or links; the first one last."""
    parts: list[list[tuple[str, bool, bool]]] = [[]]
    try:
        with os.scandir(directory) as listing:
            for entry in listing:
                try:
                    parts[-1].append((entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()))
                except OSError:
                    continue
                if len(parts[-1]) == _SORTED:
                    parts[-1].sort(reverse=True)
                    parts.append([])
                if len(parts[-1]) % 256 == 0:
                    yield None
    except OSError:
        pass
    parts[-1].sort(reverse=True)
    if len(parts) == 1:
        return parts[0]
    found: list[tuple[str, bool, bool]] = []
    for item in heapq.merge(*parts, reverse=True):
        found.append(item)
        if len(found) % 256 == 0:
            yield None
    return found


def _up(here: int, root: Path, below: Sequence[str], levels: Sequence[_Level[S]]) -> int | None:
    """Come back to the last of the levels; None where it is not there any more, or cannot be reached."""
    for way in (_parent, lambda _: _again(root, below, levels[-1].prefix)):
        try:
            found = way(here)
        except OSError:
            continue
        if _mark(found) == levels[-1].mark:
            return found
        os.close(found)
    return None


def _parent(here: int) -> int:
    return os.open("..", _DIRECTORY, dir_fd=here)


def _again(root: Path, below: Sequence[str], prefix: str) -> int:
    way = opening.descend(root, [*below, *prefix.split("/")[:-1]])
    try:
        return os.open(".", _DIRECTORY, dir_fd=way)
    finally:
        os.close(way)


def is_file(found: os.stat_result | None) -> bool:
    """Whether something is a regular file.

    :param found: what `Entry.status` says.
    :return: whether it is.
    """
    return found is not None and stat.S_ISREG(found.st_mode)
