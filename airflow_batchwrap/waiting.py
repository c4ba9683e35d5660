"""How often to look, and until when: shared by the wait on a worker and the wait in the triggerer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from airflow_batchwrap.exceptions import TryAgain

_FIRST = 0.2  # seconds: short steps are over soon
_SHARE = 0.05  # of the time waited so far: what took a minute is looked at every 3 s, and its end seen 1.5 s late
GRACE = 5.0  # seconds a Batch task may wait before one asks what keeps it
STUCK_INTERVAL = 15.0  # seconds between two such questions
TRIGGER_PADDING = 120.0  # seconds: the framework's timeout comes this much later, so that the trigger's own wins

T = TypeVar("T")


@dataclass(frozen=True)
class Deadline:
    """When a wait ends, and which setting says so.

    :param at: seconds since 1970: a wait that moves to another process does not become longer.
    :param name: the setting, such as ``job_wall_clock``.
    :param limit: its value.
    """

    at: float
    name: str
    limit: timedelta

    @classmethod
    def after(cls, start: float, name: str, limit: timedelta) -> Deadline:
        """Return the deadline that is ``limit`` after ``start``, in seconds since 1970."""
        return cls(start + limit.total_seconds(), name, limit)

    def or_sooner(self, other: Deadline) -> Deadline:
        """Return the earlier one of two."""
        return min(self, other, key=lambda each: each.at)

    @property
    def left(self) -> float:
        """Seconds until then; 0 where it has passed."""
        return max(0.0, self.at - time.time())

    @property
    def has_passed(self) -> bool:
        return time.time() >= self.at

    @property
    def of_trigger(self) -> timedelta:
        """What Airflow is given as a deferral's own timeout."""
        return timedelta(seconds=self.left + TRIGGER_PADDING)

    def __str__(self) -> str:
        return f"{self.name} ({self.limit})"

    def to_json(self) -> dict[str, Any]:
        return {"at": self.at, "name": self.name, "limit": self.limit.total_seconds()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Deadline:
        return cls(float(data["at"]), str(data["name"]), timedelta(seconds=data["limit"]))


def look_until(
    look: Callable[[], T | None],
    until: Callable[[], float],
    *,
    longest: float,
    log: Any,
    stopped: Callable[[], object] = lambda: False,
) -> T | None:
    """Look at something again and again, in this thread.

    A look that the service does not answer is logged and fails nothing: the deadline does.

    :param look: looks once; returns None to go on.
    :param until: when to give up, in seconds since 1970; asked after each look.
    :param longest: the longest pause between two looks, in seconds.
    :param stopped: returns whether to give up now.
    :return: what ``look`` has found; None where the time is up, or where it was stopped.
    """
    began = time.monotonic()
    while not stopped():
        try:
            if (found := look()) is not None:
                return found
        except TryAgain as error:
            log.warning("%s", error)
        left = until() - time.time()
        if left <= 0:
            return None
        time.sleep(min(pause_after(time.monotonic() - began, longest), left))
    return None


def pause_after(waited: float, longest: float, share: float = _SHARE) -> float:
    """Return how many seconds to pause before the next look.

    :param waited: seconds since the wait began.
    :param longest: the longest pause, in seconds; a tenth of it either way is jitter, so that many waits spread out.
    :param share: of the time waited so far.
    """
    pause = min(max(_FIRST, waited * share), longest)
    return pause * random.uniform(0.9, 1.1)  # noqa: S311 - no secret depends on it
