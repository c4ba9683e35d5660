"""How far a job of very many Batch tasks has come, and what follows from it: shared by both ways of waiting."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from airflow_batchwrap.hooks.views import Stuck, WaitView, judge_wait
from airflow_batchwrap.waiting import GRACE, STUCK_INTERVAL

if TYPE_CHECKING:
    from azure.batch.models import BatchTaskCountsResult

_LOG_EVERY = 10.0  # seconds between two lines of progress
_WINDOW = 60.0  # seconds over which the rate is taken
_PROVE_EVERY = 120.0  # seconds: Azure's counts may lag, so that now and then the tasks themselves are asked
_ASK_SHARE = 0.1  # of the time waited so far: what waits long is asked about less often

Answer = Literal["wait", "prove", "ask", "beyond", "gone"]


@dataclass(frozen=True)
class Counts:
    """How many Batch tasks of a job are in which state: progress and never proof, as Azure's counts may lag.

    :param running: those whose node is being prepared are among them.
    """

    waiting: int
    running: int
    succeeded: int
    failed: int

    @property
    def done(self) -> int:
        return self.succeeded + self.failed

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def of(cls, result: BatchTaskCountsResult) -> Counts:
        """Read the SDK's answer."""
        counts = result.task_counts
        return cls(counts.active, counts.running, counts.succeeded, counts.failed)


@dataclass
class JobWatch:
    """Watch a job of very many Batch tasks: log its progress, and judge whether there is something to do.

    :param expected: how many Batch tasks it has.
    :param allowed: how many of them may fail.
    :param clock: seconds.
    """

    expected: int
    allowed: int
    log: Any
    clock: Callable[[], float] = time.monotonic
    _seen: deque[tuple[float, int]] = field(default_factory=deque)
    _line: str = ""
    _logged: float = float("-inf")
    _began: float = 0.0
    _asked: float = 0.0
    _proved: float = 0.0

    def __post_init__(self) -> None:
        self._began = self._proved = self.clock()
        self._asked = self._began + GRACE - STUCK_INTERVAL

    def judge(self, counts: Counts | None) -> Answer:
        """Log the progress where that is due, and return what is to be done now.

        :param counts: None where the job is gone.
        :return: "beyond": more have failed than may; "prove": it seems to be over; "ask": nothing runs, ask what keeps
            it; "gone"; or else "wait".
        """
        if counts is None:
            return "gone"
        now = self.clock()
        over = not counts.waiting and not counts.running
        self._log_progress(counts, now, over)
        if counts.failed > self.allowed:
            return "beyond"
        if over or now - self._proved >= _PROVE_EVERY:
            self._proved = now
            return "prove"
        interval = max(STUCK_INTERVAL, (now - self._began) * _ASK_SHARE)
        if counts.waiting and not counts.running and now - self._asked >= interval:
            self._asked = now
            return "ask"
        return "wait"

    def _log_progress(self, counts: Counts, now: float, over: bool) -> None:
        self._seen.append((now, counts.done))
        while len(self._seen) > 2 and now - self._seen[0][0] > _WINDOW:
            self._seen.popleft()
        line = (
            f"{counts.done} of {self.expected} done ({counts.failed} failed), {counts.running} running, "
            f"{counts.waiting} waiting"
        )
        if line == self._line or not (over or now - self._logged >= _LOG_EVERY):
            return
        self._line, self._logged = line, now
        self.log.info("%s%s", line, self._pace(counts))

    def _pace(self, counts: Counts) -> str:
        (first, before), (last, done) = self._seen[0], self._seen[-1]
        if last <= first or done <= before:
            return ""
        rate = (done - before) / (last - first)
        left = max(0, self.expected - counts.done)
        pace = f"{rate:.3g} a second" if rate >= 1 else f"{rate * 60:.3g} a minute"
        return f"; {pace}, about {duration(left / rate)} left" if left else f"; {pace}"


@dataclass(frozen=True)
class Stall:
    """Why nothing runs in a job, and nothing will.

    :param kind: the job is ``gone`` or has ``ended``, or its Batch tasks are ``stuck``.
    :param reason: of ``ended``: what the service gives as the reason.
    """

    kind: Literal["gone", "ended", "stuck"]
    reason: str = ""
    stuck: Stuck | None = None


def judge_stall(view: WaitView, required_slots: int = 1) -> Stall | None:
    """Return why nothing runs in a job; None where something still may.

    :param required_slots: slots that each of its Batch tasks takes on one node.
    """
    if view.job_state in ("missing", "deleting"):
        return Stall("gone")
    if view.job_state in ("terminating", "completed"):
        return Stall("ended", view.job_reason or "for no reason given")
    stuck = judge_wait(view, required_slots)
    return None if stuck is None else Stall("stuck", stuck=stuck)


def duration(seconds: float) -> str:
    """Return a time in the two units that matter: ``2 h 5 min``, ``40 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
