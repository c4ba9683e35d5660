"""Times, durations and entity tags as Batch writes them."""

from __future__ import annotations

import functools
import re
import time
from datetime import UTC, datetime
from email.utils import formatdate

#: What Batch shows where no time limit was given: the longest .NET time span (seen in recorded answers).
FOREVER = "P10675199DT2H48M5.4775807S"

#: The same in ticks of 100 ns: no longer one is taken, as none fits into a .NET time span. Not in seconds, which have
#: not that many digits.
_LONGEST = 9_223_372_036_854_775_807
#: The last second that has a name (the end of 9999), and the first one (the beginning of 1), since the epoch.
LAST, FIRST = 253_402_300_799.0, -62_135_596_800.0

_DURATION = re.compile(
    r"^P(?:(?P<years>\d+)Y)?(?:(?P<months>\d+)M)?(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?"
    r"(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?$"
)
#: Parts of a .NET time span, in its ticks of 100 ns.
_TICKS = (("D", 864_000_000_000), ("H", 36_000_000_000), ("M", 600_000_000), ("S", 10_000_000))
_SECONDS = {"years": 31_536_000, "months": 2_592_000, "weeks": 604_800, "days": 86_400, "hours": 3_600, "minutes": 60}


def now() -> float:
    """The current time.

    :return: seconds since the epoch.
    """
    return time.time()


def named(moment: float) -> float:
    """A time that has a name: a task may give its files any, in the years 0 or 3,000,000.

    :param moment: seconds since the epoch.
    :return: the nearest second that lies in a year from 1 to 9999.
    """
    return min(max(moment, FIRST), LAST)


def iso(moment: float) -> str:
    """A time as it stands in an entity.

    :param moment: seconds since the epoch.
    :return: ISO 8601 in UTC with microseconds.
    """
    # Not strftime, which writes early years with fewer digits.
    return datetime.fromtimestamp(named(moment), UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def iso7(moment: float) -> str:
    """A time as it stands in an error's message, with seven fractional digits.

    :param moment: seconds since the epoch.
    :return: ISO 8601 in UTC.
    """
    return f"{iso(moment).removesuffix('Z')}0Z"


def http_date(moment: float) -> str:
    """A time as it stands in an HTTP header.

    :param moment: seconds since the epoch.
    :return: such as ``Sun, 22 Nov 2026 10:00:00 GMT``.
    """
    return formatdate(named(moment), usegmt=True)


def parse_iso(text: str) -> float:
    """Read an ISO 8601 time; one without a zone is UTC, digits beyond microseconds are dropped.

    :param text: the time.
    :return: seconds since the epoch.
    :raises ValueError: it is no time.
    """
    shortened = re.sub(r"(\.\d{6})\d+", r"\1", text.strip())
    moment = datetime.fromisoformat(shortened)
    seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not FIRST <= seconds <= LAST + 1:
        raise ValueError(f"{text!r} is in no year from 1 to 9999, in UTC")
    # Parts of that last second are rounded up to the next.
    return min(seconds, LAST)


def _before_seconds(duration: re.Match[str]) -> int:
    """A duration's parts that are longer than a second, in seconds."""
    return sum(int(duration[unit] or 0) * size for unit, size in _SECONDS.items())


def _ticks(duration: re.Match[str]) -> int:
    """A duration in ticks of 100 ns; what is shorter is dropped."""
    whole, _, fraction = (duration["seconds"] or "0").partition(".")
    return (int(whole) + _before_seconds(duration)) * 10_000_000 + int(f"{fraction:0<7}"[:7])


@functools.lru_cache(maxsize=1024)
def parse_duration(text: str) -> float:
    """Read an ISO 8601 duration.

    :param text: such as ``PT15M``.
    :return: seconds.
    :raises ValueError: it is no duration.
    """
    match = _DURATION.match(text)
    if match is None or text in ("P", "PT") or text.endswith("T"):
        raise ValueError(f"{text!r} is no ISO 8601 duration")
    if _ticks(match) > _LONGEST:
        raise ValueError(f"{text!r} is longer than {FOREVER}")
    return float(match["seconds"] or 0) + _before_seconds(match)


@functools.lru_cache(maxsize=1024)
def shortest(text: str) -> str:
    """Write a duration as Batch shows it: in the fewest parts, days the longest, a year of 365 and a month of 30 days.

    :param text: such as ``PT20M00S``, which is fit for `parse_duration`.
    :return: such as ``PT20M``; one of no length stays as it is, as was recorded.
    """
    match = _DURATION.match(text)
    if match is None:
        return text
    left = _ticks(match)
    if not left:
        return text
    day = clock = ""
    for unit, size in _TICKS:
        count, rest = divmod(left, size)
        if unit == "S" and left:
            clock += f"{count}.{rest:07}".rstrip("0").rstrip(".") + "S"
        elif count and unit == "D":
            day = f"{count}D"
        elif count and unit != "S":
            clock += f"{count}{unit}"
        left = rest
    return f"P{day}" + (f"T{clock}" if clock else "")


def etag(modified: float, revision: int) -> str:
    """An entity tag in the form Batch uses: ``0x`` and 15 hexadecimal digits (669 of 669 recorded), without quotes.

    :param modified: when the entity was last changed by a client, seconds since the epoch.
    :param revision: how often it was changed.
    :return: the tag.
    """
    return f"0x8D{(int(modified * 1e6) << 4 | revision & 0xF) & 0xFFFFFFFFFFFFF:013X}"
