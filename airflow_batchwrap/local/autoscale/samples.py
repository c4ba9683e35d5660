"""The samples that formulas look at: what a series is, which variables have one, and where they are kept."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

#: Seconds between two samples (documented by Azure).
PERIOD = 30.0
#: Samples kept of each variable by default: 8 hours of them. Azure does not say how many it keeps.
KEEP = 960

#: Every read-only variable that Azure documents or once did ($MemoryBytes, $DiskBytes and their like); one that nobody
#: records has no samples.
METRICS = frozenset(
    {
        "$ActiveTasks",
        "$CPUPercent",
        "$CurrentDedicatedNodes",
        "$CurrentLowPriorityNodes",
        "$DiskBytes",
        "$DiskReadBytes",
        "$DiskReadOps",
        "$DiskWriteBytes",
        "$DiskWriteOps",
        "$FailedTasks",
        "$MemoryBytes",
        "$NetworkInBytes",
        "$NetworkOutBytes",
        "$PendingTasks",
        "$PreemptedNodeCount",
        "$RunningTasks",
        "$SampleNodeCount",
        "$SucceededTasks",
        "$TaskSlotsPerNode",
        "$UsableNodeCount",
        "$WallClockSeconds",
    }
)


@dataclass(frozen=True, slots=True)
class SampleSeries:
    """The samples of one variable.

    :param samples: pairs of time (seconds since the epoch) and value, each time later than the one before.
    :param period: seconds between two samples where none is missing.
    :raises ValueError: the times do not rise, a value is not finite, or the period is not positive.
    """

    samples: tuple[tuple[float, float], ...] = ()
    period: float = PERIOD

    def __post_init__(self) -> None:
        if not self.period > 0:
            raise ValueError(f"a sample period of {self.period} s is not positive: give the seconds between samples")
        before = -math.inf
        for moment, value in self.samples:
            if not before < moment < math.inf or not math.isfinite(value):
                raise ValueError(f"sample ({moment}, {value}): times must rise and values be finite")
            before = moment

    def latest(self, count: int) -> tuple[float, ...]:
        """The newest samples, the oldest of them first.

        :param count: how many at most, 0 or more.
        :return: their values; fewer where there are fewer.
        """
        return tuple(float(value) for _, value in self.samples[max(0, len(self.samples) - count) :])

    def between(self, start: float, end: float) -> tuple[float, ...]:
        """The samples later than `start` and not later than `end`.

        :param start: seconds since the epoch.
        :param end: seconds since the epoch.
        :return: their values, the oldest first.
        """
        return tuple(float(value) for _, value in self.samples[slice(*self._places(start, end))])

    def count(self, start: float, end: float) -> int:
        """How many samples `between` would return.

        :param start: seconds since the epoch.
        :param end: seconds since the epoch.
        :return: their number.
        """
        first, last = self._places(start, end)
        return last - first

    def percent(self, start: float, end: float) -> float:
        """How much of what a time frame could hold is there.

        :param start: seconds since the epoch.
        :param end: seconds since the epoch.
        :return: 0 to 100.
        """
        possible = max(1, round((end - start) / self.period))
        return min(100.0, 100.0 * self.count(start, end) / possible)

    def _places(self, start: float, end: float) -> tuple[int, int]:
        return bisect_right(self.samples, start, key=_moment), bisect_right(self.samples, end, key=_moment)


class SampleStore:
    """A ring of samples per variable; not for use from several threads at once.

    :param keep: samples kept of each variable.
    :param period: seconds between two samples.
    :param delay: seconds until a recorded sample shows (Azure: about 60; 0 by default, so that tests need not wait).
    :raises ValueError: `keep` is not positive.
    """

    def __init__(self, keep: int = KEEP, period: float = PERIOD, delay: float = 0.0) -> None:
        if keep < 1:
            raise ValueError(f"cannot keep {keep} samples: give 1 or more")
        self._keep = keep
        self._period = period
        self._delay = delay
        self._rings: dict[str, deque[tuple[float, float]]] = {}

    def record(self, now: float, values: Mapping[str, float]) -> None:
        """Add one sample of each variable; where the clock was set back, later samples give way.

        :param now: seconds since the epoch.
        :param values: numbers by the variable's name, such as ``$PendingTasks``.
        :raises ValueError: a name is none of `METRICS`, or a number is not finite; nothing is recorded then.
        """
        for name, value in values.items():
            if name not in METRICS:
                raise ValueError(f"no autoscale variable is called {name}: use one of {', '.join(sorted(METRICS))}")
            if not math.isfinite(value) or not math.isfinite(now):
                raise ValueError(f"cannot record {value} for {name} at {now}: give finite numbers")
        for name, value in values.items():
            ring = self._rings.setdefault(name, deque(maxlen=self._keep))
            while ring and ring[-1][0] >= now:
                ring.pop()
            ring.append((float(now), float(value)))

    def series(self, now: float) -> dict[str, SampleSeries]:
        """What a formula evaluated now may see.

        :param now: seconds since the epoch.
        :return: a series by each recorded variable's name.
        """
        newest = now - self._delay
        return {
            name: SampleSeries(tuple(islice(ring, bisect_right(ring, newest, key=_moment))), self._period)
            for name, ring in self._rings.items()
        }

    def forget(self, before: float) -> None:
        """Drop old samples, and variables left without any.

        :param before: seconds since the epoch; older samples go.
        """
        for name, ring in list(self._rings.items()):
            for _ in range(bisect_left(ring, before, key=_moment)):
                ring.popleft()
            if not ring:
                del self._rings[name]


def _moment(sample: tuple[float, float]) -> float:
    return sample[0]
