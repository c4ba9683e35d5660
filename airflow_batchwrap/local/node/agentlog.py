"""A node's own log: what the service did to the node, kept where a client can have it uploaded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from airflow_batchwrap.local.node import opening
from airflow_batchwrap.local.wire import times

#: Where it is below a node's root.
_FOLDER, _NAME = "volatile", "agent.log"
PLACE = f"{_FOLDER}/{_NAME}"

#: One thread, so that the lines stand in their order.
_WRITER = ThreadPoolExecutor(1, thread_name_prefix="agentlog")
#: What is still to be written, by the node's root.
_LINES: dict[Path, str] = {}
_LOCK = threading.Lock()


def write(root: Path, text: str) -> None:
    """Add a line, soon; a node whose directory is gone has no log.

    :param root: the node's root.
    :param text: what happened.
    """
    line = f"{times.iso7(times.now())} {text}\n"
    with _LOCK:
        awake = bool(_LINES)
        _LINES[root] = _LINES.get(root, "") + line
    if not awake:
        _WRITER.submit(_write_all)


def _write_all() -> None:
    while True:
        with _LOCK:
            # The first stays until it is written: whoever adds a line meanwhile need not wake anybody.
            root = next(iter(_LINES), None)
            if root is None:
                return
            lines, _LINES[root] = _LINES[root], ""
        if lines:
            _write(root, lines)
        with _LOCK:
            if not _LINES[root]:
                del _LINES[root]


def _write(root: Path, lines: str) -> None:
    with contextlib.suppress(OSError):
        directory = opening.descend(root.parent, (root.name, _FOLDER))
        try:
            # A task may have put a pipe or a link there: then the log begins anew.
            descriptor = opening.writing(directory, _NAME, append=True)
        finally:
            os.close(directory)
        with os.fdopen(descriptor, "ab") as file:
            file.write(lines.encode(errors="replace"))


async def within(root: Path, start: float, end: float | None) -> list[str]:
    """The log files that may hold a line of a time range.

    :param root: the node's root.
    :param start: the beginning of the range, seconds since the epoch.
    :param end: its end; None for now.
    :return: the files' paths below the root, none where nothing was written then.
    """
    return await asyncio.get_running_loop().run_in_executor(_WRITER, _within, root, start, end)


def _within(root: Path, start: float, end: float | None) -> list[str]:
    try:
        descriptor, status = opening.reading(root, PLACE)
        with os.fdopen(descriptor, "rb") as file:
            first = times.parse_iso(file.readline(100).decode().partition(" ")[0])
    except (OSError, ValueError):
        return []
    return [PLACE] if status.st_mtime >= start and (end is None or first <= end) else []
