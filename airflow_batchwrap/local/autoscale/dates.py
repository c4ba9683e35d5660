"""The two forms of a date that ``time("...")`` reads: W3C-DTF and RFC 1123."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

from airflow_batchwrap.local.autoscale.errors import Fault
from airflow_batchwrap.local.autoscale.values import Timestamp, from_clock

# Seven digits are 100 ns. A pool whose formula had nine was refused by the real service (nextflow issue 3866).
_W3C = re.compile(
    r"(?P<year>[0-9]{4})(?:-(?P<month>[0-9]{2})(?:-(?P<day>[0-9]{2})"
    r"(?:T(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:\.(?P<fraction>[0-9]{1,7}))?)?"
    r"(?P<zone>Z|[+-][0-9]{2}:[0-9]{2}))?)?)?"
)
_RFC1123 = re.compile(
    r"(?:(?P<weekday>[A-Z][a-z]{2}), )?(?P<day>[0-9]{1,2}) (?P<month>[A-Z][a-z]{2}) (?P<year>[0-9]{4})"
    r" (?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2}))? (?P<zone>GMT|[+-][0-9]{4})"
)
_WEEKDAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def read_date(text: str) -> Timestamp:
    """Read a date.

    :param text: such as ``2026-11-22``, ``2026-11-22T10:00:00.5Z`` or ``Sun, 22 Nov 2026 10:00:00 GMT``.
    :return: the moment.
    :raises Fault: it is in neither form, or there is no such date.
    """
    try:
        if match := _W3C.fullmatch(text):
            month = int(match["month"] or 1)
            fraction = int((match["fraction"] or "").ljust(7, "0"))
        elif match := _RFC1123.fullmatch(text):
            month = _MONTHS.index(match["month"]) + 1
            fraction = 0
        else:
            raise ValueError("neither form")
        moment = datetime(
            int(match["year"]),
            month,
            int(match["day"] or 1),
            int(match["hour"] or 0),
            int(match["minute"] or 0),
            int(match["second"] or 0),
            tzinfo=_zone(match["zone"]),
        )
        if match.groupdict().get("weekday") not in (None, _WEEKDAYS[moment.weekday()]):
            raise ValueError("another day of the week")
    except ValueError:
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise Fault(
            f'time cannot read "{shown}": write a W3C-DTF date (2026-11-22T10:00:00Z) or an RFC 1123 one'
            " (Sun, 22 Nov 2026 10:00:00 GMT)"
        ) from None
    return from_clock(moment, fraction)


def _zone(text: str | None) -> timezone:
    if text is None or text in ("Z", "GMT"):
        return UTC
    digits = text[1:].replace(":", "")
    if int(digits[2:]) > 59:
        raise ValueError("no such zone")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-offset if text[0] == "-" else offset)
