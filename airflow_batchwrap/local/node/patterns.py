"""The pattern language of output files: which files a pattern means, and what their blobs are called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath

from airflow_batchwrap.local.node.layout import OutsideError, leads_inside

_WILD = re.compile(r"[*?\[]")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def is_wild(pattern: str) -> bool:
    """Whether a pattern has wildcards.

    :param pattern: the pattern.
    :return: whether it has.
    """
    return _WILD.search(pattern) is not None


def expand(pattern: str, environment: Mapping[str, str]) -> str:
    """A pattern with its environment variables replaced; unknown ones become empty.

    :param pattern: the pattern.
    :param environment: the task's environment.
    :return: the pattern.
    """
    return _VARIABLE.sub(lambda match: environment.get(match[1] or match[2], ""), pattern)


@lru_cache(512)
def _segment(pattern: str) -> re.Pattern[str]:
    translated, index = "", 0
    while index < len(pattern):
        character = pattern[index]
        index += 1
        if character == "*":
            translated += ".*"
        elif character == "?":
            translated += "."
        elif (
            character == "[" and (end := pattern.find("]", index + (2 if pattern[index : index + 1] == "!" else 1))) > 0
        ):
            inner = pattern[index:end].replace("\\", r"\\")
            negated, inner = inner.startswith("!"), inner.removeprefix("!")
            translated += "[" + ("^" if negated else "") + inner.replace("^", r"\^").replace("[", r"\[") + "]"
            index = end + 1
        else:
            translated += re.escape(character)
    return re.compile(translated, re.DOTALL)


def _matches(pattern: str, name: str) -> bool:
    # A name that begins with a dot is matched only by a pattern that does so too.
    if name.startswith(".") and not pattern.startswith("."):
        return False
    return _segment(pattern).fullmatch(name) is not None


def match(pattern: str, working: Path, limit: Path) -> Iterator[tuple[Path, str]]:
    """The files a pattern means, each with the name its blob has below the destination's path.

    A blob's name is the file's path from the first part of the pattern that has a wildcard; directories the pattern
    names before that are not part of it. Without wildcards it is the file's name.

    :param pattern: the pattern, its variables already replaced; a relative one starts at the working directory.
    :param working: the task's working directory.
    :param limit: the node's root: nothing outside it is matched, not through a symbolic link either.
    :return: pairs of file and blob name, in the order of the names.
    :raises OutsideError: the pattern itself leads out of the node's root.
    """
    parts = list(PurePosixPath(pattern).parts)
    fixed = 0
    while fixed < len(parts) - 1 and not is_wild(parts[fixed]):
        fixed += 1
    start = Path(os.path.normpath(working.joinpath(*parts[:fixed])))
    if not start.is_relative_to(limit):
        raise OutsideError(f"The pattern {pattern!r} leads out of the node's directory.")
    for path, name in sorted(_walk(start, parts[fixed:])):
        if leads_inside(path, limit):
            yield path, name


def _walk(start: Path, pattern: list[str]) -> Iterator[tuple[Path, str]]:
    # With no recursion: a task may nest directories without end.
    waiting = [(start, pattern, "")]
    while waiting:
        directory, parts, prefix = waiting.pop()
        head, rest = parts[0], parts[1:]
        if head == "..":
            continue
        try:
            with os.scandir(directory) as listing:
                entries = list(listing)
        except OSError:
            continue
        if head == "**":
            # `**` is any number of directories, none among them; alone at the end it is every file below.
            waiting.append((directory, rest or ["*"], prefix))
            below = [each for each in entries if each.is_dir(follow_symlinks=False) and not each.name.startswith(".")]
            waiting += [(Path(each.path), parts, f"{prefix}{each.name}/") for each in below]
            continue
        for entry in entries:
            if not _matches(head, entry.name):
                continue
            if rest and entry.is_dir():
                waiting.append((Path(entry.path), rest, f"{prefix}{entry.name}/"))
            elif not rest and entry.is_file():
                yield Path(entry.path), prefix + entry.name
