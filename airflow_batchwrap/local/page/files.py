"""Files of tasks and nodes: a bounded list, the growing end of a text, and a download."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow_batchwrap.local.node import opening
from airflow_batchwrap.local.node.walking import is_file, walk

#: How many bytes of a text one answer carries at most, and how many the first one shows.
CHUNK, TAIL = 256 * 1024, 64 * 1024
#: How many files a list shows.
LISTED = 500
_DEPTH = 12
#: A terminal sequence, a line end or a character that is cut off at the end of what is read is read again with what
#: follows; a sequence longer than this, in bytes, is none.
_HELD = 256

#: Terminal sequences: CSI, OSC and other strings, and two-character ones. Each pattern reads its text once.
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\^-~])")
_UNFINISHED = re.compile(rb"(?:\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]*\x1b?|[ -/]*)|\r)\Z")
#: Controls that have no place in a text, and the marks that make text appear in another order than it has.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ORDER = re.compile(r"[\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Place:
    """A directory whose files the page shows.

    :param root: the directory; None where there is none.
    :param address: where the page shows it.
    :param over: nothing will be written there any more.
    :param mark: changes when a new run begins to write there.
    """

    root: Path | None
    address: str
    over: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Output:
    """A part of a text.

    :param mark: what it is a part of: where it differs, the text has begun anew.
    :param start: the offset of its first byte.
    :param following: the offset to read on from.
    :param size: the size of the file, in bytes.
    :param text: the part, without terminal sequences.
    :param done: nothing will follow.
    """

    mark: str
    start: int
    following: int
    size: int
    text: str
    done: bool

    def shown(self) -> dict[str, Any]:
        """The part, as the page's script reads it."""
        return {
            "mark": self.mark,
            "from": self.start,
            "next": self.following,
            "size": self.size,
            "text": self.text,
            "done": self.done,
        }


def plain(value: str) -> str:
    """A text without terminal sequences and without controls but tabs, line ends and carriage returns.

    :param value: the text.
    :return: the text, with plain line ends.
    """
    return _ORDER.sub("\ufffd", _CONTROL.sub("", _SEQUENCE.sub("", value))).replace("\r\n", "\n")


def overwritten(value: str) -> str:
    """A text as a terminal would leave it: what follows a carriage return takes the place of its line so far.

    :param value: the text.
    :return: the text.
    """
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in value.split("\n"))


def open_file(place: Place, name: str) -> tuple[int, os.stat_result]:
    """Open a regular file; a pipe or a device is none, and does not hold up anybody.

    :param place: where it is.
    :param name: its path there.
    :return: a descriptor, and what it is.
    :raises FileNotFoundError: there is no such file inside.
    """
    if place.root is None:
        raise FileNotFoundError(name)
    try:
        return opening.reading(place.root, name)
    except (OSError, ValueError):
        raise FileNotFoundError(name) from None


def read(place: Place, name: str, start: int | None = None, mark: str | None = None) -> Output:
    """Read a part of a text.

    :param place: where the file is.
    :param name: its path there.
    :param start: where to begin; None for the last `TAIL` bytes.
    :param mark: what the reader has read so far is a part of.
    :return: at most `CHUNK` bytes of it. Where more has been written than that, what lies between is left out.
    """
    # Looked at before the file is: what is written later belongs to a run that is not over.
    over = place.over
    try:
        descriptor, status = open_file(place, name)
    except FileNotFoundError:
        return Output("", 0, 0, 0, "", over)
    with os.fdopen(descriptor, "rb") as file:
        found = f"{place.mark}.{status.st_ino}"
        if start is not None and (mark not in (None, found) or start > status.st_size):
            start = None
        if start is None or status.st_size - start > CHUNK:
            start = _line(file.fileno(), max(0, status.st_size - TAIL))
        file.seek(start)
        raw = file.read(min(CHUNK, max(0, status.st_size - start)))
    final = over and start + len(raw) >= status.st_size
    end = len(raw)
    if not final and (cut := _UNFINISHED.search(raw, max(0, end - _HELD))):
        end = cut.start()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    value = decoder.decode(raw[:end], final)
    following = start + end - len(decoder.getstate()[0])
    return Output(found, start, following, status.st_size, plain(value), final)


def _line(descriptor: int, offset: int) -> int:
    """The beginning of a line near an offset, or at least of a character."""
    if offset == 0:
        return 0
    near = os.pread(descriptor, 4096, offset)
    end = near.find(b"\n")
    if end >= 0:
        return offset + end + 1
    return offset + next((index for index, byte in enumerate(near[:4]) if byte & 0xC0 != 0x80), 0)


@dataclass(frozen=True)
class Listed:
    """A file of a list.

    :param name: its path.
    :param link: the same as a part of an address.
    :param size: its size in bytes; None for a directory.
    :param modified: when it was changed, seconds since the epoch.
    """

    name: str
    link: str
    size: int | None
    modified: float


def listing(place: Place) -> Generator[Listed | None, None, None]:
    """The files of a place, by their paths. A directory that is a link is not shown, nor what lies too deep.

    :param place: the place.
    :return: one more than `LISTED` of them at most; None in between, often, for those who look at the clock.
    """
    if place.root is None:
        return
    found = 0
    try:
        for entry in walk(place.root, 1, lambda _, is_directory, depth: (not is_directory, _deeper(depth))):
            status = entry.status() if entry is not None else None
            if entry is None or status is None or not is_file(status):
                yield None
                continue
            yield Listed(entry.name, quote(os.fsencode(entry.name)), status.st_size, status.st_mtime)
            found += 1
            if found > LISTED:
                return
    except OSError:
        return


def _deeper(depth: int) -> int | None:
    return depth + 1 if depth < _DEPTH else None
