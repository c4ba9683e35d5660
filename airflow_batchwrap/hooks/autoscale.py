"""The autoscale formula of the pools that this package makes: what the work needs while there is any, none when idle.

Azure evaluates it, so it holds where Airflow is gone. It is read back from the pool, too: what is written here is all
from which a waiting task knows how large such a pool is meant to be.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

# Azure takes no less: https://learn.microsoft.com/en-us/javascript/api/@azure-rest/batch/batchpoolcreateoptions
EVALUATION_INTERVAL = timedelta(minutes=5)

DeallocationOption = Literal["requeue", "terminate", "taskcompletion", "retaineddata"]

# Documented parts alone: comparison of timestamps, the conditional operator, max and min. A new pool asks for no
# sample; Azure's own examples rely on the conditional operator to look at one branch only.
# https://learn.microsoft.com/azure/batch/batch-automatic-scaling
#
# All of the nodes while there is work, or none. No percentage of samples is asked for: samples that are missing would
# be an error, and the last one there is says enough, since a node that works is never taken away.
_WHOLE = """\
dedicatedNodes = {dedicated};
spotNodes = {spot};
lately = TimeInterval_Minute * {idle_minutes};
work = time() < time("{fresh_until}") ? 1 : max(0, $PendingTasks.GetSample(1), $PendingTasks.GetSample(lately));
share = work > 0 ? 1 : 0;
$TargetDedicatedNodes = dedicatedNodes * share;
$TargetLowPriorityNodes = spotNodes * share;
$NodeDeallocationOption = {option};
"""
# As many nodes as the most Batch tasks that were pending at one time lately, and no more than all.
#
# A node for each Batch task: samples count Batch tasks and not the slots that they take, and no formula can see those
# (https://github.com/Azure/Batch/issues/151). Any Batch task fits on one node, so that none finds fewer nodes than it
# could use; where they are small and a node has many slots, the pool keeps more than it needs.
#
# Dedicated and spot nodes have this bound each. The formula cannot see which of the two run the last Batch tasks, and a
# smaller bound could ask for a node that works: such a node goes only when its Batch task has ended, and until then the
# pool is being resized and does not grow for new work.
#
# Where half of the samples are missing it does not shrink: the peak may be among them.
_SHRINKING = """\
dedicatedNodes = {dedicated};
spotNodes = {spot};
allNodes = max(dedicatedNodes, spotNodes);
lately = TimeInterval_Minute * {idle_minutes};
work = time() < time("{fresh_until}") ? allNodes : max(0, $PendingTasks.GetSample(1), $PendingTasks.GetSample(lately));
unseen = work > 0 ? allNodes : 0;
nodes = $PendingTasks.GetSamplePercent(lately) < 50 ? unseen : work;
$TargetDedicatedNodes = min(dedicatedNodes, nodes);
$TargetLowPriorityNodes = min(spotNodes, nodes);
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

    :param dedicated: dedicated nodes at most.
    :param spot: spot nodes at most.
    :param idle_minutes: how long there may be no work before the pool is emptied, and for how long nodes stay that the
        work no longer needs.
    :param fresh_until: until then the pool has its whole size, work or none: its nodes have to come up first.
    :param option: what becomes of a Batch task on a node that goes.
    :param shrinks: whether nodes go that the work that is left cannot use; False for all or none. A pool for
        multi-instance tasks cannot shrink so: each takes several nodes and counts as one.
    """

    dedicated: int
    spot: int
    idle_minutes: int
    fresh_until: datetime
    option: DeallocationOption = "taskcompletion"
    shrinks: bool = True

    @classmethod
    def new(
        cls, dedicated: int, spot: int, idle_minutes: int, nodes_within: timedelta, *, shrinks: bool = True
    ) -> ScaleFormula:
        """Return the formula of a pool that is created or resized now.

        :param nodes_within: how long its nodes may take to come; after that it has ``idle_minutes`` to get work.
        :param shrinks: whether nodes go that the work that is left cannot use.
        """
        return cls(dedicated, spot, idle_minutes, fresh_until(idle_minutes, nodes_within), shrinks=shrinks)

    @classmethod
    def read(cls, text: str | None) -> ScaleFormula | None:
        """Read what :attr:`text` wrote, now or in an older version; None where the formula is somebody else's."""
        plain = " ".join((text or "").split())
        match = next((found for pattern in _PATTERNS.values() if (found := pattern.fullmatch(plain))), None)
        if match is None:
            return None
        until = datetime.strptime(match["fresh_until"], _TIME).replace(tzinfo=UTC)
        option: DeallocationOption = match["option"]  # type: ignore[assignment]
        shrinks = match.re is _PATTERNS[True]
        return cls(int(match["dedicated"]), int(match["spot"]), int(match["idle_minutes"]), until, option, shrinks)

    @property
    def text(self) -> str:
        """The formula, as Azure takes it."""
        return (_SHRINKING if self.shrinks else _WHOLE).format(
            dedicated=self.dedicated,
            spot=self.spot,
            fresh_until=self.fresh_until.astimezone(UTC).strftime(_TIME),
            idle_minutes=self.idle_minutes,
            option=self.option,
        )

    @property
    def total(self) -> int:
        """How many nodes there are at most."""
        return self.dedicated + self.spot

    def resized(
        self, dedicated: int, spot: int, nodes_within: timedelta, option: DeallocationOption | None = None
    ) -> ScaleFormula:
        """Return the formula with other bounds, whose nodes have time to come up.

        With an option other than ``taskcompletion`` it no longer shrinks: it would do to nodes that work, at any
        evaluation, what was meant for this resize.
        """
        until, option = fresh_until(self.idle_minutes, nodes_within), option or self.option
        shrinks = self.shrinks and option == "taskcompletion"
        return replace(self, dedicated=dedicated, spot=spot, fresh_until=until, option=option, shrinks=shrinks)


def fresh_until(idle_minutes: int, nodes_within: timedelta) -> datetime:
    """Return until when a pool needs no work to keep its nodes: the time to get them, and then that to get work."""
    return (datetime.now(UTC) + nodes_within + timedelta(minutes=idle_minutes)).replace(microsecond=0)


def _pattern(formula: str) -> re.Pattern[str]:
    escaped = re.escape(" ".join(formula.split()))
    for name, group in _GROUPS.items():
        escaped = escaped.replace(re.escape(f"{{{name}}}"), group)
    return re.compile(escaped)


_PATTERNS = {True: _pattern(_SHRINKING), False: _pattern(_WHOLE)}
