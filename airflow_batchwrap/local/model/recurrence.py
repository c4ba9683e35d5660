"""When the jobs of a schedule are due."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from airflow_batchwrap.local.wire import times


@dataclass(frozen=True)
class Recurrence:
    """The occurrences of a schedule, counted from 0; all times in seconds since the epoch.

    :param start: the first one.
    :param interval: how far they are apart, in seconds; None where there is only one.
    :param window: how long after an occurrence its job may still be created, in seconds; None for ever.
    :param until: no job is created after this.
    """

    start: float
    interval: float | None = None
    window: float | None = None
    until: float | None = None

    @classmethod
    def of(cls, body: dict[str, Any], created: float) -> Recurrence:
        """Read a schedule's configuration.

        :param body: the configuration.
        :param created: when the schedule was created.
        :return: its occurrences: from doNotRunUntil on, or from its creation.
        """

        def moment(name: str) -> float | None:
            return times.parse_iso(body[name]) if name in body else None

        def length(name: str) -> float | None:
            return times.parse_duration(body[name]) if name in body else None

        start = moment("doNotRunUntil")
        start = created if start is None else start
        return cls(start, length("recurrenceInterval"), length("startWindow"), moment("doNotRunAfter"))

    def at(self, index: int) -> float | None:
        """When an occurrence is.

        :param index: its number.
        :return: the time; None where there is no such occurrence.
        """
        if index < 0 or (index > 0 and self.interval is None):
            return None
        moment = self.start + index * (self.interval or 0)
        return None if moment > (times.LAST if self.until is None else self.until) else moment

    def latest(self, now: float) -> int:
        """The last occurrence that has come; an earlier one is not made up for.

        :param now: the time.
        :return: its number; -1 where there was none.
        """
        if now < self.start or (self.until is not None and self.start > self.until):
            return -1
        end = now if self.until is None else min(now, self.until)
        return 0 if self.interval is None else int((end - self.start) // self.interval)

    def open(self, index: int, now: float) -> bool:
        """Whether the job of an occurrence may still be created.

        :param index: its number.
        :param now: the time.
        :return: whether it may.
        """
        moment = self.at(index)
        if moment is None or (self.until is not None and now > self.until):
            return False
        return self.window is None or now - moment <= self.window

    def over(self, last: int, now: float) -> bool:
        """Whether no further job will be created.

        :param last: the last occurrence that had its job; -1 for none.
        :param now: the time.
        :return: whether there is none to come.
        """
        if self.until is not None and now > self.until:
            return True
        return self.interval is None and (last >= 0 or (now >= self.start and not self.open(0, now)))

    def waking(self, last: int, now: float) -> float | None:
        """When there is next something to see to.

        :param last: the last occurrence that had its job; -1 for none.
        :param now: the time.
        :return: the time; None for never.
        """
        latest = self.latest(now)
        moments = [self.at(latest + 1), self.until]
        if latest > last and self.window is not None:
            moments.append(self.start + latest * (self.interval or 0) + self.window)
        coming = [moment for moment in moments if moment is not None and moment >= now]
        return min(coming, default=None)
