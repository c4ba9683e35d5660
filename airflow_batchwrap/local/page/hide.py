"""What of an entity is not for a page: signatures, passwords, and the values of its environment."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

HIDDEN = "(hidden)"
#: How much of a text (characters) and of a list (items) a page shows: a body may be a megabyte, which nobody reads
#: there, and which would keep everybody else waiting.
TEXT, ITEMS = 16 * 1024, 500

_SETTINGS = frozenset({"environmentSettings", "commonEnvironmentSettings"})
_SECRET = re.compile(
    r"password|privatekey|accountkey|accesskey|saskey|sastoken|secret|credential|connectionstring", re.I
)
_SIGNATURE = re.compile(r"(\b(?:sig|signature|accountkey|sharedaccesskey|password)=)[^&\s\"';]+", re.I)
#: An address as a whole. What is hidden of it is looked for in what was found, once: a pattern that looked for the end
#: itself would read the rest of the text again for each address without a query.
_ADDRESS = re.compile(r"https?://[^\s\"'<>]+", re.I)


def text(value: str) -> str:
    """A text without what signs or opens anything in it.

    :param value: such as a command line.
    :return: it with queries of addresses and values that follow ``sig=`` and the like hidden; the beginning of a long
        one.
    """
    if len(value) > TEXT:
        # Never a part of a word: what is to be hidden in it may be known by its end.
        begun = value[:TEXT].rpartition(" ")[0]
        return f"{text(begun)} ({len(value) - len(begun)} characters more)"
    return _SIGNATURE.sub(rf"\1{HIDDEN}", _ADDRESS.sub(_bare, value))


def _bare(found: re.Match[str]) -> str:
    """An address without what follows its question mark, and without the user before its host."""
    shown, mark, query = found[0].partition("?")
    shown = f"{shown}?{HIDDEN}" if query else shown + mark
    # Several addresses may follow each other without a space.
    scheme, *parts = shown.split("://")
    return "://".join([scheme, *map(_without_user, parts)])


def _without_user(rest: str) -> str:
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    return f"{HIDDEN}@{host}{slash}{path}" if at and user else rest


def address(url: str) -> str:
    """An address without its query, which may sign it.

    :param url: the address.
    :return: it, with ``?(hidden)`` in place of a query.
    """
    if len(url) > TEXT:
        return text(url)
    try:
        parts = urlsplit(url)
    except ValueError:
        return HIDDEN
    if not parts.scheme:
        return text(url)
    plain = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return f"{plain}?{HIDDEN}" if parts.query or parts.fragment else plain


def body(value: Any, name: str = "") -> Any:
    """A body as it may be shown.

    :param value: the body, or a part of it.
    :param name: the property it stands in.
    :return: a copy with secrets hidden, at any depth; of a long list its beginning.
    """
    if isinstance(value, dict):
        if name in _SETTINGS:
            return {key: each if key == "name" else HIDDEN for key, each in value.items()}
        shown = {key: body(each, key) for key, each in value.items()}
        more = {key: len(each) - ITEMS for key, each in value.items() if isinstance(each, list) and len(each) > ITEMS}
        return shown | {f"{key} that are not shown": count for key, count in more.items()}
    if isinstance(value, list):
        return [body(each, name) for each in value[:ITEMS]]
    if isinstance(value, str):
        if _SECRET.search(name):
            return HIDDEN
        return address(value) if name.lower().endswith("url") else text(value)
    return value
