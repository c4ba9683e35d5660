"""What the step prints, live and in UTF-8, and what a traceback shows of it."""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Any, Optional, Set

TRACEBACK_LIMIT = 16 * 1024  # characters that a result record carries

# As frames name it: Python 3.8 keeps the archive's path relative, where later ones make it absolute.
_HERE = os.path.dirname((lambda: None).__code__.co_filename) + os.sep


class _Live(io.BufferedWriter):
    """A binary stream that keeps nothing back. A buffer is kept below it all the same: writing to a raw file may
    take a part of the bytes only, and a buffer writes the rest."""

    def write(self, data: Any) -> int:
        count = super().write(data)
        self.flush()
        return count


def make_live() -> None:
    """Let stdout and stderr reach their files as they are written, ``print(..., end="")`` included, in UTF-8 whatever
    the node's locale is; the same for Python programs that the step starts."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if old is not None:
            old.flush()
        try:
            raw = io.FileIO(number, "wb", closefd=False)
        except OSError:  # started without this stream
            continue
        stream = io.TextIOWrapper(_Live(raw), encoding="utf-8", errors="backslashreplace", write_through=True)
        setattr(sys, name, stream)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    os.environ.setdefault("PYTHONIOENCODING", "utf-8:backslashreplace")


def say(message: str) -> None:
    """One line of the engine's own, on stderr: stdout is the step's."""
    if sys.stderr is not None:
        sys.stderr.write(f"batchwrap: {message}\n")
        sys.stderr.flush()


def user_traceback(error: BaseException) -> str:
    """The traceback as Python prints it, without the engine's frames and the import machinery's.

    :return: at most :data:`TRACEBACK_LIMIT` characters: of a longer one its beginning and, mostly, its end.
    """
    try:
        shown = traceback.TracebackException.from_exception(error)
        _drop_frames(shown, set())
        text = "".join(shown.format())
    except Exception:  # a user's exception whose __str__ raises, or no memory: its type is always there
        text = f"{type(error).__name__}\n"
    if len(text) > TRACEBACK_LIMIT:
        head = TRACEBACK_LIMIT // 4
        tail = TRACEBACK_LIMIT - head - 64
        text = f"{text[:head]}\n... {len(text) - head - tail} characters left out ...\n{text[-tail:]}"
    return text


def _drop_frames(shown: Optional[traceback.TracebackException], seen: Set[int]) -> None:
    if shown is None or id(shown) in seen:
        return
    seen.add(id(shown))
    kept = [
        frame
        for frame in shown.stack
        if not frame.filename.startswith(_HERE) and not frame.filename.startswith("<frozen importlib")
    ]
    shown.stack[:] = kept
    _drop_frames(shown.__cause__, seen)
    _drop_frames(shown.__context__, seen)
    for inner in getattr(shown, "exceptions", None) or ():
        _drop_frames(inner, seen)
