"""The autoscale formula of the pools that this package makes: their size while there is work, and none when idle.

Azure evaluates it, so it holds where Airflow is gone. It is read back from the pool, too: what is written here is all
that tells a waiting task how large such a pool is meant to be.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

# Azure takes no less (Batch REST reference, "Pool - Add": autoScaleEvaluationInterval).
EVALUATION_INTERVAL = timedelta(minutes=5)

DeallocationOption = Literal["requeue", "terminate", "taskcompletion", "retaineddata"]

# Documented parts alone: comparison of timestamps, the conditional operator, max of numbers and vectors. A new pool
# asks for no sample; Azure's own examples rely on the conditional operator to look at one branch only. No percentage of
# samples is asked for: samples that are missing would be an error, and the last one there is tells enough, since a node
# that works is never taken away.
_FORMULA = """\
dedicatedNodes = {dedicated};
spotNodes = {spot};
lately = TimeInterval_Minute * {idle_minutes};
work = time() < time("{fresh_until}") ? 1 : max(0, $PendingTasks.GetSample(1), $PendingTasks.GetSample(lately));
share = work > 0 ? 1 : 0;
$TargetDedicatedNodes = dedicatedNodes * share;
$TargetLowPriorityNodes = spotNodes * share;
$NodeDeallocationOption = {option};
"""
_GROUPS = {
    "dedicated": r"(?P<dedicated>\d+)",
    "spot": r"(?P<spot>\d+)",
    "fresh_until": r"(?P<fresh_until>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)",
    "idle_minutes": r"(?P<idle_minutes>\d+)",
    "option": r"(?P<option>[a-z]+)",
}
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class ScaleFormula:
    """How large a pool is while it has work, and when it is emptied.

    :param dedicated: dedicated nodes while there is work.
    :param spot: spot nodes while there is work.
    :param idle_minutes: how long there may be no work before the pool is emptied.
    :param fresh_until: until then the pool keeps its size without any work: its nodes have to come up first.
    :param option: what becomes of a Batch task on a node that goes.
    """

    dedicated: int
    spot: int
    idle_minutes: int
    fresh_until: datetime
    option: DeallocationOption = "taskcompletion"

    @classmethod
    def new(cls, dedicated: int, spot: int, idle_minutes: int, nodes_within: timedelta) -> ScaleFormula:
        """Return the formula of a pool that is created or resized now.

        :param nodes_within: how long its nodes may take to come; after that it has ``idle_minutes`` to get work.
        """
        return cls(dedicated, spot, idle_minutes, fresh_until(idle_minutes, nodes_within))

    @classmethod
    def read(cls, text: str | None) -> ScaleFormula | None:
        """Read what :attr:`text` wrote; None where the formula is somebody else's, or was changed."""
        match = _PATTERN.fullmatch(" ".join((text or "").split()))
        if match is None:
            return None
        until = datetime.strptime(match["fresh_until"], _TIME).replace(tzinfo=UTC)
        option: DeallocationOption = match["option"]  # type: ignore[assignment]
        return cls(int(match["dedicated"]), int(match["spot"]), int(match["idle_minutes"]), until, option)

    @property
    def text(self) -> str:
        """The formula, as Azure takes it."""
        return _FORMULA.format(
            dedicated=self.dedicated,
            spot=self.spot,
            fresh_until=self.fresh_until.astimezone(UTC).strftime(_TIME),
            idle_minutes=self.idle_minutes,
            option=self.option,
        )

    @property
    def total(self) -> int:
        """How many nodes there are while there is work."""
        return self.dedicated + self.spot

    def resized(
        self, dedicated: int, spot: int, nodes_within: timedelta, option: DeallocationOption | None = None
    ) -> ScaleFormula:
        """Return the formula with other bounds, whose nodes have time to come up."""
        until = fresh_until(self.idle_minutes, nodes_within)
        return replace(self, dedicated=dedicated, spot=spot, fresh_until=until, option=option or self.option)


def fresh_until(idle_minutes: int, nodes_within: timedelta) -> datetime:
    """Return until when a pool needs no work to keep its nodes: the time to get them, and then that to get work."""
    return (datetime.now(UTC) + nodes_within + timedelta(minutes=idle_minutes)).replace(microsecond=0)


def _pattern() -> re.Pattern[str]:
    escaped = re.escape(" ".join(_FORMULA.split()))
    for name, group in _GROUPS.items():
        escaped = escaped.replace(re.escape(f"{{{name}}}"), group)
    return re.compile(escaped)


_PATTERN = _pattern()
