"""Lengths of time as people write them: ``"30 min"``, ``"PT30M"``, ``timedelta(minutes=30)``."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_UNITS = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86400,
    "day": 86400,
    "week": 604800,
}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)[\s,]*")
_ISO = re.compile(
    r"P(?:(?P<d>\d+(?:\.\d+)?)D)?(?:T(?:(?P<h>\d+(?:\.\d+)?)H)?(?:(?P<m>\d+(?:\.\d+)?)M)?(?:(?P<s>\d+(?:\.\d+)?)S)?)?"
)
_EXAMPLE = 'write it with its unit, such as "30 min", "24 h", "7 days" or "PT30M"'


def parse_duration(value: object) -> timedelta:
    """Read a length of time.

    :param value: a timedelta, text with a unit, or an ISO 8601 duration of days, hours, minutes and seconds. A bare
        number is refused, since one key's readers would take it for seconds and another's for minutes; 0 needs no unit.
    :raises ValueError: it is none of these, or too long to be one.
    """
    if isinstance(value, timedelta):
        return value
    if value == 0 and not isinstance(value, bool):
        return timedelta(0)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"a number alone has no unit: {_EXAMPLE}")
    if not isinstance(value, str):
        raise ValueError(f"not a length of time: {_EXAMPLE}")
    text = value.strip()
    try:
        seconds = _seconds(text)
        return timedelta(seconds=seconds)
    except OverflowError:
        raise ValueError("too long to be a length of time") from None


def _seconds(text: str) -> float:
    if text == "0":
        return 0.0
    if re.fullmatch(r"\d+(\.\d+)?", text):
        raise ValueError(f"a number alone has no unit: {_EXAMPLE}")
    iso = _ISO.fullmatch(text.upper())
    if iso and any(iso.groups()):
        return sum(float(amount) * _UNITS[unit] for unit, amount in iso.groupdict().items() if amount)
    total, position = 0.0, 0
    lower = text.lower()
    while position < len(lower):
        part = _PART.match(lower, position)
        unit = part and (part[2] if part[2] in _UNITS else part[2].removesuffix("s"))
        if part is None or unit not in _UNITS:
            raise ValueError(f"not a length of time: {_EXAMPLE}")
        total += float(part[1]) * _UNITS[unit]
        position = part.end()
    if not lower:
        raise ValueError(f"empty: {_EXAMPLE}")
    return total


def format_duration(value: timedelta) -> str:
    """Return the ISO 8601 form, as Azure writes it: ``PT15M``, ``P1DT12H``."""
    if value < timedelta(0):
        raise ValueError("a length of time is not negative")
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f"{seconds + value.microseconds / 1e6:.6f}".rstrip("0").rstrip(".")
    days = f"{value.days}D" if value.days else ""
    clock = "".join(
        (f"{hours}H" if hours else "", f"{minutes}M" if minutes else "", f"{fraction}S" if fraction != "0" else "")
    )
    return f"P{days}{'T' + clock if clock else ''}" if days or clock else "PT0S"


def _read(value: Any) -> timedelta:
    length = parse_duration(value)
    if length < timedelta(0):
        raise ValueError("a length of time is not negative")
    return length


Duration = Annotated[timedelta, BeforeValidator(_read), PlainSerializer(format_duration, when_used="json")]
