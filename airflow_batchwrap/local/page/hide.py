"""What of an entity is not for a page: signatures, passwords, and the values of its environment."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

HIDDEN = "(hidden)"

_SETTINGS = frozenset({"environmentSettings", "commonEnvironmentSettings"})
_SECRET = re.compile(
    r"password|privatekey|accountkey|accesskey|saskey|sastoken|secret|credential|connectionstring", re.I
)
_SIGNATURE = re.compile(r"(\b(?:sig|signature|accountkey|sharedaccesskey|password)=)[^&\s\"';]+", re.I)
_QUERY = re.compile(r"(https?://[^\s\"'<>?#]+\?)[^\s\"'<>]+", re.I)
_USER = re.compile(r"(https?://)[^\s\"'<>/@]+@", re.I)


def text(value: str) -> str:
    """A text without what signs or opens anything in it.

    :param value: such as a command line.
    :return: it with queries of addresses and values that follow ``sig=`` and the like hidden.
    """
    value = _USER.sub(rf"\1{HIDDEN}@", _QUERY.sub(rf"\1{HIDDEN}", value))
    return _SIGNATURE.sub(rf"\1{HIDDEN}", value)


def address(url: str) -> str:
    """An address without its query, which may sign it.

    :param url: the address.
    :return: it, with ``?(hidden)`` in place of a query.
    """
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
    :return: a copy with secrets hidden, at any depth.
    """
    if isinstance(value, dict):
        if name in _SETTINGS:
            return {key: each if key == "name" else HIDDEN for key, each in value.items()}
        return {key: body(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [body(each, name) for each in value]
    if isinstance(value, str):
        if _SECRET.search(name):
            return HIDDEN
        return address(value) if name.lower().endswith("url") else text(value)
    return value
