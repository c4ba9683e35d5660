"""The types of the formula language and how the results string writes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from airflow_batchwrap.local.autoscale.errors import Fault

#: Times and intervals count 100 ns, as TimeInterval_100ns, the smallest documented interval, asks for.
SECOND = 10_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_EPOCH = (datetime(1970, 1, 1, tzinfo=UTC) - _FIRST).days * DAY
_LAST = (datetime(9999, 12, 31, tzinfo=UTC) - _FIRST).days * DAY + DAY - 1
_LONGEST = 2**63 - 1


@dataclass(frozen=True, slots=True, order=True)
class Timestamp:
    """A moment in UTC, in 100 ns since the start of year 1; make one with `timestamp`."""

    ticks: int

    def clock(self) -> datetime:
        """The moment for Python.

        :return: the time to the microsecond, in UTC.
        """
        return _FIRST + timedelta(microseconds=self.ticks // 10)

    def seconds(self) -> float:
        """The moment as the service counts time.

        :return: seconds since the Unix epoch.
        """
        return (self.ticks - _EPOCH) / SECOND


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """A span of time, possibly negative, in 100 ns; make one with `interval`."""

    ticks: int


Vec = tuple[float, ...]
Value = float | Vec | str | Timestamp | Interval

INTERVALS = {
    "TimeInterval_Zero": Interval(0),
    "TimeInterval_100ns": Interval(1),
    "TimeInterval_Microsecond": Interval(10),
    "TimeInterval_Millisecond": Interval(10_000),
    "TimeInterval_Second": Interval(SECOND),
    "TimeInterval_Minute": Interval(MINUTE),
    "TimeInterval_Hour": Interval(HOUR),
    "TimeInterval_Day": Interval(DAY),
    "TimeInterval_Week": Interval(7 * DAY),
    "TimeInterval_Year": Interval(365 * DAY),
}


def timestamp(ticks: int) -> Timestamp:
    """A moment.

    :param ticks: 100 ns since the start of year 1.
    :return: the moment.
    :raises Fault: it is outside of years 1 to 9999.
    """
    if not 0 <= ticks <= _LAST:
        raise Fault("the timestamp is outside of the years 1 to 9999")
    return Timestamp(ticks)


def from_clock(moment: datetime, ticks: int = 0) -> Timestamp:
    """A moment from Python.

    :param moment: a time with a zone.
    :param ticks: 100 ns to add.
    :return: the moment.
    :raises Fault: it is outside of years 1 to 9999.
    """
    return timestamp((moment - _FIRST) // timedelta(microseconds=1) * 10 + ticks)


def from_seconds(seconds: float) -> Timestamp:
    """A moment as the service counts time.

    :param seconds: since the Unix epoch; kept to the microsecond.
    :return: the moment.
    :raises Fault: it is outside of years 1 to 9999.
    """
    return timestamp(round(seconds * 1_000_000) * 10 + _EPOCH)


def interval(ticks: float) -> Interval:
    """A span of time.

    :param ticks: its length in 100 ns, rounded to whole ones.
    :return: the span.
    :raises Fault: it is longer than about 29,000 years.
    """
    if not -_LONGEST <= ticks <= _LONGEST:
        raise Fault("the timeinterval is too long")
    return Interval(round(ticks))


def finite(number: float) -> float:
    """Let a number pass if it is one.

    :param number: the outcome of a calculation.
    :return: the number.
    :raises Fault: it is infinite or no number.
    """
    if not math.isfinite(number):
        raise Fault("the result is not a finite number")
    return number


def kind(value: Value) -> str:
    """The documented name of a value's type.

    :param value: any value.
    :return: such as ``doubleVec``.
    """
    match value:
        case float():
            return "double"
        case tuple():
            return "doubleVec"
        case str():
            return "string"
        case Timestamp():
            return "timestamp"
        case Interval():
            return "timeinterval"


def show(value: Value) -> str:
    """A value as the results string has it.

    :param value: any value.
    :return: such as ``5``, ``0.5``, ``[1,2,3]``, ``2026-11-22T10:00:00.000Z`` or ``00:15:00``.
    """
    match value:
        case float():
            return _show_double(value)
        case tuple():
            return "[" + ",".join(map(_show_double, value)) + "]"
        case str():
            return value
        case Timestamp():
            return value.clock().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case Interval():
            return _show_interval(value)


def _show_double(number: float) -> str:
    # The shortest digits that read back as the same double, with the exponent rule of .NET, which the service's
    # recorded results (5, 100, [1,2,3]) agree with.
    if number == 0:
        return "0"
    exact = Decimal(repr(number))
    sign, digits, _ = exact.as_tuple()
    exponent = exact.adjusted()
    if -5 < exponent < 15:
        text = format(exact, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa = "".join(map(str, digits)).rstrip("0") or "0"
    point = "." if len(mantissa) > 1 else ""
    return f"{'-' if sign else ''}{mantissa[0]}{point}{mantissa[1:]}E{exponent:+03d}"


def _show_interval(span: Interval) -> str:
    days, rest = divmod(abs(span.ticks), DAY)
    hours, rest = divmod(rest, HOUR)
    minutes, rest = divmod(rest, MINUTE)
    seconds, ticks = divmod(rest, SECOND)
    sign = "-" if span.ticks < 0 else ""
    whole = f"{days}." if days else ""
    fraction = f".{ticks:07d}" if ticks else ""
    return f"{sign}{whole}{hours:02d}:{minutes:02d}:{seconds:02d}{fraction}"
