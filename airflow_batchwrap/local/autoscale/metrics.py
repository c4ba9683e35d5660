"""The methods of the sampled variables: GetSample and its kin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airflow_batchwrap.local.autoscale.errors import INSUFFICIENT_SAMPLE_DATA, Fault
from airflow_batchwrap.local.autoscale.functions import MAX_VECTOR, Work
from airflow_batchwrap.local.autoscale.samples import SampleSeries
from airflow_batchwrap.local.autoscale.values import (
    SECOND,
    Interval,
    Timestamp,
    Value,
    Vec,
    from_seconds,
    interval,
    kind,
)

#: Every method's name.
METHODS = frozenset({"Count", "GetSample", "GetSamplePercent", "GetSamplePeriod", "HistoryBeginTime"})


@dataclass(frozen=True, slots=True)
class Metric:
    """A read-only variable.

    :param name: such as ``$PendingTasks``.
    :param series: its samples.
    :param current: what the pool itself says now; None where only samples know.
    """

    name: str
    series: SampleSeries
    current: float | None = None

    def number(self) -> float:
        """The variable used as a double.

        :return: the current value, else that of the latest sample.
        :raises Fault: there is no sample.
        """
        if self.current is not None:
            return self.current
        latest = self.series.latest(1)
        if not latest:
            raise Fault(f"{self.name} has no sample yet", INSUFFICIENT_SAMPLE_DATA)
        return latest[0]

    def call(self, method: str, arguments: Sequence[Value], now: Timestamp, work: Work) -> Value:
        """Call one of the methods.

        :param method: its name.
        :param arguments: the values given to it.
        :param now: what look-back intervals count from.
        :param work: the count of steps.
        :return: its result.
        :raises Fault: there is no such method, it refuses the arguments, or samples are missing.
        """
        match method, arguments:
            case "GetSample", [float() as count]:
                return self._latest(count, work)
            case "GetSample", [Interval() | Timestamp() as start]:
                return self._between(*_frame(start, None, now), 0.0, work)
            case "GetSample", [Interval() | Timestamp() as start, float() as percent]:
                return self._between(*_frame(start, None, now), percent, work)
            case "GetSample", [Interval() | Timestamp() as start, Interval() | Timestamp() as end]:
                return self._between(*_frame(start, end, now), 0.0, work)
            case "GetSample", [
                Interval() | Timestamp() as start,
                Interval() | Timestamp() as end,
                float() as percent,
            ]:
                return self._between(*_frame(start, end, now), percent, work)
            case "GetSamplePercent", [Interval() | Timestamp() as start]:
                return self.series.percent(*_frame(start, None, now))
            case "GetSamplePercent", [Interval() | Timestamp() as start, Interval() | Timestamp() as end]:
                return self.series.percent(*_frame(start, end, now))
            case "GetSamplePeriod", []:
                return interval(self.series.period * SECOND)
            case "HistoryBeginTime", []:
                if not self.series.samples:
                    raise Fault(f"{self.name} has no sample yet", INSUFFICIENT_SAMPLE_DATA)
                return from_seconds(self.series.samples[0][0])
            case "Count", []:
                return float(len(self.series.samples))
        if method in METHODS:
            given = ", ".join(kind(argument) for argument in arguments) or "nothing"
            raise Fault(f"{self.name}.{method} does not take {given}")
        raise Fault(f"{self.name} has no method {method}: it has {', '.join(sorted(METHODS))}")

    def _latest(self, count: float, work: Work) -> Vec:
        if count < 0:
            raise Fault(f"{self.name}.GetSample takes a number of samples, not {count:g}")
        number = int(min(count, len(self.series.samples)))
        _bounded(number, work)
        return self.series.latest(number)

    def _between(self, start: float, end: float, percent: float, work: Work) -> Vec:
        there = self.series.percent(start, end)
        if there < percent:
            raise Fault(
                f"{self.name} has {there:.4g}% of the samples of this time frame, {percent:.4g}% were asked for",
                INSUFFICIENT_SAMPLE_DATA,
            )
        _bounded(self.series.count(start, end), work)
        return self.series.between(start, end)


def _bounded(count: int, work: Work) -> None:
    work.spend(count)
    if count > MAX_VECTOR:
        raise Fault(f"more than {MAX_VECTOR} samples are too many: ask for a shorter time")


def _frame(start: Interval | Timestamp, end: Interval | Timestamp | None, now: Timestamp) -> tuple[float, float]:
    # Azure's examples give the younger end of a look-back first, (1 minute, 6 minutes): both orders are one frame.
    ends = [_moment(start, now), now.seconds() if end is None else _moment(end, now)]
    return min(ends), max(ends)


def _moment(place: Interval | Timestamp, now: Timestamp) -> float:
    return place.seconds() if isinstance(place, Timestamp) else now.seconds() - place.ticks / SECOND
