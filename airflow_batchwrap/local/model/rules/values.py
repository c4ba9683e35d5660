"""Ids and numbers, and the error for what cannot be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from airflow_batchwrap.local.wire.errors import BatchError

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def invalid(where: str, sentence: str) -> BatchError:
    """The error for a property whose value cannot be.

    :param where: the property.
    :param sentence: what is wrong.
    :return: the error.
    """
    return BatchError("InvalidPropertyValue", f"{where}: {sentence}", values={"PropertyName": where})


def legal_id(value: str, where: str = "id") -> str:
    """Check a client's id.

    :param value: the id.
    :param where: the property it stands in.
    :return: the id.
    :raises BatchError: it is no legal id (Learn: at most 64 letters, digits, hyphens and underscores).
    """
    if not _ID.fullmatch(value):
        raise BatchError(
            "InvalidPropertyValue",
            f"The value of {where} must be 1 to 64 letters, digits, hyphens and underscores.",
            values={"PropertyName": where, "PropertyValue": value[:80]},
        )
    return value


def number(body: Mapping[str, Any], name: str, low: int, high: int) -> None:
    """Check that a number lies in its range.

    :param body: what it stands in; it may be absent.
    :param name: its name.
    :param low: the lowest value allowed.
    :param high: the highest.
    :raises BatchError: it does not.
    """
    if name in body and not low <= body[name] <= high:
        raise BatchError(
            "InvalidPropertyValue",
            f"The value of {name} must be from {low} to {high}.",
            values={"PropertyName": name, "PropertyValue": str(body[name])},
        )
