"""A node's own log: what the service did to the node, kept where a client can have it uploaded."""

from __future__ import annotations

import contextlib
from pathlib import Path

from airflow_batchwrap.local.wire import times

#: Where it is below a node's root.
PLACE = "volatile/agent.log"


def write(root: Path, text: str) -> None:
    """Add a line; a node whose directory is gone has no log.

    :param root: the node's root.
    :param text: what happened.
    """
    with contextlib.suppress(OSError), (root / PLACE).open("a") as file:
        file.write(f"{times.iso7(times.now())} {text}\n")


def within(root: Path, start: float, end: float | None) -> list[Path]:
    """The log files that may hold a line of a time range.

    :param root: the node's root.
    :param start: the beginning of the range, seconds since the epoch.
    :param end: its end; None for now.
    :return: the files, none where nothing was written then.
    """
    path = root / PLACE
    try:
        with path.open() as file:
            first = times.parse_iso(file.readline().partition(" ")[0])
        last = path.stat().st_mtime
    except (OSError, ValueError):
        return []
    return [path] if last >= start and (end is None or first <= end) else []
