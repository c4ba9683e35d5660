"""A node's own log: what the service did to the node, kept where a client can have it uploaded."""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from airflow_batchwrap.local.node import opening
from airflow_batchwrap.local.wire import times

#: Where it is below a node's root.
_FOLDER, _NAME = "volatile", "agent.log"
PLACE = f"{_FOLDER}/{_NAME}"

#: One thread, so that the lines stand in their order.
_WRITER = ThreadPoolExecutor(1, thread_name_prefix="agentlog")


def write(root: Path, text: str) -> None:
    """Add a line, soon; a node whose directory is gone has no log.

    :param root: the node's root.
    :param text: what happened.
    """
    _WRITER.submit(_write, root, f"{times.iso7(times.now())} {text}\n")


def _write(root: Path, line: str) -> None:
    with contextlib.suppress(OSError):
        directory = opening.descend(root.parent, (root.name, _FOLDER))
        try:
            # A task may have put a pipe or a link there: then the log begins anew.
            descriptor = opening.writing(directory, _NAME, append=True)
        finally:
            os.close(directory)
        with os.fdopen(descriptor, "ab") as file:
            file.write(line.encode(errors="replace"))


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
