"""The pattern language of output files: which files a pattern means, and what their blobs are called."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from airflow_batchwrap.local.node import opening, walking

_WILD = re.compile(r"[*?\[]")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
#: No name of a file is longer, in bytes (Linux: NAME_MAX), so no longer piece of a pattern fits.
_LONGEST = 255
#: A class that no character is in, and one that all are in.
_NOTHING, _ANYTHING = r"[^\s\S]", r"[\s\S]"


class OutsideError(Exception):
    """A pattern leads out of the node's directory."""


@dataclass(frozen=True, slots=True)
class Match:
    """A file that a pattern means.

    :param path: its path below the node's root.
    :param name: what its blob is called below the destination's path.
    """

    path: str
    name: str


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


def match(pattern: str, working: Path, root: Path) -> Generator[Match | None, None, None]:
    """The files a pattern means, each once, with the name its blob has below the destination's path.

    A blob's name is the file's path from the first part of the pattern that has a wildcard; directories the pattern
    names before that are not part of it. Without wildcards it is the file's name. A link to a directory is followed
    where the pattern names it before its first wildcard, and a link to a file wherever it matches, as long as they lead
    inside the node.

    :param pattern: the pattern, its variables already replaced; a relative one starts at the working directory.
    :param working: the task's working directory.
    :param root: the node's root: nothing outside it is matched, not through a symbolic link either.
    :return: the files; None in between, often, for those who look at the clock (`threads.in_turns`).
    :raises OutsideError: the pattern itself leads out of the node's root.
    """
    parts = [part for part in PurePosixPath(pattern).parts if "\0" not in part]
    if not parts or ("\0" in pattern):
        return
    fixed = 0
    while fixed < len(parts) - 1 and not is_wild(parts[fixed]):
        fixed += 1
    start = Path(os.path.normpath(working.joinpath(*parts[:fixed])))
    if not start.is_relative_to(root):
        raise OutsideError(f"The pattern {pattern!r} leads out of the node's directory.")
    below = str(start.relative_to(root))
    if not is_wild(parts[-1]) and fixed == len(parts) - 1:
        path = f"{below}/{parts[-1]}"
        if walking.is_file(_status(root, path)):
            yield Match(path, parts[-1])
        return
    segments = _segments(parts[fixed:])
    try:
        way = opening.within(root, below)
        for entry in walking.walk(root, _reach(segments, {0}), _Following(segments), way):
            wanted = entry is not None and not entry.is_directory and walking.is_file(entry.status())
            yield Match(entry.path, entry.name) if wanted and entry is not None else None
    except OSError:
        # The directory is not there (any more), or cannot be read: nothing matches.
        return


def _status(root: Path, path: str) -> os.stat_result | None:
    try:
        return opening.status(root, path)
    except OSError:
        return None


def _segments(parts: list[str]) -> list[str]:
    """The parts of a pattern; several `**` in a row say what one says, and one at the end means every file below."""
    segments = [part for index, part in enumerate(parts) if part != "**" or parts[index - 1 : index] != ["**"]]
    return [*segments, "*"] if segments[-1] == "**" else segments


def _reach(segments: list[str], places: set[int]) -> frozenset[int]:
    """Where in a pattern one can be: at a `**` also behind it, since it may stand for no directory at all."""
    return frozenset(places | {place + 1 for place in places if segments[place] == "**"})


class _Following:
    """Follows a pattern through a tree in one walk, in all the places where it can be at once.

    So each file is found once, in however many ways a pattern reaches it, and the work grows with the pattern's length
    and not with the ways.
    """

    def __init__(self, segments: list[str]) -> None:
        self._segments = segments

    def __call__(self, name: str, directory: bool, places: frozenset[int]) -> tuple[bool, frozenset[int] | None]:
        inner: set[int] = set()
        found = False
        for place in places:
            segment = self._segments[place]
            if segment == "**":
                if directory and not name.startswith("."):
                    inner.add(place)
            elif (directory or place + 1 == len(self._segments)) and matches(segment, name):
                if place + 1 == len(self._segments):
                    found = True
                else:
                    inner.add(place + 1)
        return found, _reach(self._segments, inner) if inner else None


def matches(pattern: str, name: str) -> bool:
    """Whether a name is one that a part of a pattern means.

    The time it takes grows with the name's length and the pattern's, whatever they are.

    :param pattern: the part, without slashes.
    :param name: the name. One that begins with a dot is matched only by a pattern that does so too.
    :return: whether it is.
    """
    if name.startswith(".") and not pattern.startswith("."):
        return False
    first, *others = _pieces(pattern)
    if first is None or None in others:
        return False
    if not others:
        return first.regex.fullmatch(name) is not None
    *middle, last = (piece for piece in others if piece is not None)
    # Each piece where it fits first leaves the most for those behind it: all pieces have a fixed length.
    place, end = first.length, len(name) - last.length
    if end < place or not first.regex.match(name) or not last.regex.match(name, end):
        return False
    for piece in middle:
        found = piece.regex.search(name, place, end)
        if found is None:
            return False
        place = found.end()
    return True


@dataclass(frozen=True, slots=True)
class _Piece:
    regex: re.Pattern[str]
    length: int


@lru_cache(512)
def _pieces(pattern: str) -> tuple[_Piece | None, ...]:
    """What stands between the stars of a part of a pattern; None for what is too long for any name."""
    pieces: list[list[str]] = [[]]
    index = 0
    while index < len(pattern):
        character = pattern[index]
        index += 1
        if character == "*":
            pieces.append([])
        elif character == "?":
            pieces[-1].append(_ANYTHING)
        elif (
            character == "[" and (end := pattern.find("]", index + (2 if pattern[index : index + 1] == "!" else 1))) > 0
        ):
            pieces[-1].append(_class(pattern[index:end]))
            index = end + 1
        else:
            pieces[-1].append(re.escape(character))
    if sum(map(len, pieces)) > _LONGEST:
        return (None,)
    # Stars in a row say what one says.
    kept = [piece for number, piece in enumerate(pieces) if piece or number in (0, len(pieces) - 1)]
    return tuple(_Piece(re.compile("".join(piece)), len(piece)) for piece in kept)


def _class(inner: str) -> str:
    """A class of characters as a regular expression; a range that goes backwards has no character in it."""
    negated, inner = inner.startswith("!"), inner.removeprefix("!")
    members, index = "", 0
    while index < len(inner):
        low = high = inner[index]
        index += 1
        if inner[index : index + 1] == "-" and index + 1 < len(inner):
            high = inner[index + 1]
            index += 2
        if low <= high:
            members += re.escape(low) + ("-" + re.escape(high) if low != high else "")
    if not members:
        return _ANYTHING if negated else _NOTHING
    return f"[{'^' if negated else ''}{members}]"
