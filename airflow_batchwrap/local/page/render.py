"""From a template and what it shows to an answer."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from starlette.responses import Response

from airflow_batchwrap.local.wire import times

HERE = Path(__file__).parent

#: What a person is told of each state of a node: the group that gives its colour, and a sign, so that the colour is
#: never the only way to tell. A running node's sign is the number of its tasks.
NODE_STATES = {
    "running": ("running", "▶"),
    "idle": ("idle", "·"),
    "creating": ("coming", "+"),
    "starting": ("coming", "↑"),
    "waitingforstarttask": ("coming", "…"),
    "rebooting": ("coming", "↻"),
    "reimaging": ("coming", "⟲"),
    "starttaskfailed": ("trouble", "!"),
    "unusable": ("trouble", "×"),
    "unknown": ("trouble", "?"),
    "offline": ("away", "–"),
    "preempted": ("away", "P"),
    "deallocating": ("away", "↓"),
    "deallocated": ("away", "z"),
    "leavingpool": ("away", "←"),
}
#: The same for every other state and result.
STATES = {
    "active": ("idle", "○"),
    "steady": ("idle", "○"),
    "preparing": ("coming", "…"),
    "resizing": ("coming", "↕"),
    "stopping": ("coming", "◌"),
    "running": ("running", "▶"),
    "success": ("fine", "✓"),
    "failure": ("trouble", "✕"),
    "completed": ("fine", "✓"),
    "disabled": ("away", "‖"),
    "disabling": ("away", "‖"),
    "enabling": ("coming", "↑"),
    "terminating": ("away", "◌"),
    "deleting": ("away", "◌"),
}
_WORDS = {
    "waitingforstarttask": "waiting for start task",
    "starttaskfailed": "start task failed",
    "leavingpool": "leaving pool",
    "success": "succeeded",
    "failure": "failed",
}


def words(state: str) -> str:
    """A state in plain words.

    :param state: the state, as Batch writes it.
    :return: such as ``start task failed``.
    """
    return _WORDS.get(state, state)


def moment(value: float | None) -> str:
    """A time to read.

    :param value: seconds since the epoch; it may be absent.
    :return: the time in UTC, without its zone, which the page names once.
    """
    return "" if value is None else datetime.fromtimestamp(times.named(value), UTC).strftime("%Y-%m-%d %H:%M:%S")


def span(seconds: float | None) -> str:
    """A duration to read.

    :param seconds: how long; it may be absent.
    :return: such as ``2 min 05 s``.
    """
    if seconds is None:
        return ""
    whole = int(seconds)
    if whole < 10:
        return f"{max(seconds, 0):.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02} h"


def size(count: int | None) -> str:
    """A number of bytes to read.

    :param count: how many; it may be absent.
    :return: such as ``1.5 MB``.
    """
    if count is None:
        return ""
    value, units = float(count), ["TB", "GB", "MB", "kB"]
    if value < 1000:
        return f"{count} B"
    while value >= 999.95 and units:
        value, unit = value / 1000, units.pop()
    return f"{value:.1f} {unit}"


def short(name: str) -> str:
    """A node's id, cut in the middle, where it stands beside others; the whole of it is never far.

    :param name: the id.
    :return: such as ``tvmps_97ed73c0…_d``.
    """
    return name if len(name) <= 24 else f"{name[:14]}…{name[-2:]}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        # Everything shown may have been written by somebody hostile: nothing is taken as markup.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "moment": moment,
        "span": span,
        "size": size,
        "short": short,
        "words": words,
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        "number": lambda value: f"{value:,}".replace(",", " "),
    }
    environment.globals |= {"node_states": NODE_STATES, "states": STATES}
    return environment


_TEMPLATES = _environment()


def prepare() -> None:
    """Compile all templates, so that no first visitor of a page keeps the loop waiting for that."""
    for name in _TEMPLATES.list_templates():
        _TEMPLATES.get_template(name)


def render(name: str, status: int = 200, known: str | None = None, **values: Any) -> Response:
    """Fill a template.

    :param name: the template's file name.
    :param status: the HTTP status.
    :param known: the entity tag of what the browser shows already.
    :param values: what the template shows.
    :return: the page; an empty 304 where the browser shows just that already.
    """
    text = _TEMPLATES.get_template(name).render(values)
    # Ids, names and JSON may hold what UTF-8 cannot carry (half a surrogate pair): it is shown, not failed on.
    body = text.encode("utf-8", "backslashreplace")
    headers = {"ETag": '"' + hashlib.sha256(body).hexdigest()[:32] + '"', "Content-Type": "text/html; charset=utf-8"}
    if known is not None and known == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(body, status, headers)
