"""Which attempts have failed and were reported: only such a failure makes room for the next attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_batchwrap.naming import Attempt

if TYPE_CHECKING:
    from airflow.sdk import Context

_KEY = "batchwrap_reported"  # state store: epoch and number of each attempt whose failure Airflow has heard of


class ReportedAttempts:
    """What the task's state store keeps of failures that were reported; it outlives tries and clears.

    ::

        reported = ReportedAttempts(context)
        attempt, found = choose_attempt(there, epoch, reported.numbers(epoch))
        reported.add(attempt)      # just before the failure is raised
    """

    def __init__(self, context: Context) -> None:
        self._store: Any = context["task_state_store"]

    def numbers(self, epoch: int) -> list[int]:
        """Return the numbers of an epoch's attempts that were reported."""
        return [number for of_epoch, number in self._pairs() if of_epoch == epoch]

    def add(self, attempt: Attempt) -> None:
        """Remember that Airflow hears of this attempt's failure now."""
        self._store.set(_KEY, [*map(list, self._pairs()), list(attempt.order)])

    def _pairs(self) -> list[tuple[int, int]]:
        stored = self._store.get(_KEY)
        pairs = [pair for pair in stored if isinstance(pair, list)] if isinstance(stored, list) else []
        return [(int(pair[0]), int(pair[1])) for pair in pairs]
