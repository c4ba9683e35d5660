"""The last round of a manifest that Airflow has heard of: a try goes on after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import Context

_KEY = "batchwrap_manifest"
CUT_SHORT = -1


@dataclass(frozen=True)
class NotedRound:
    """A round that is over.

    :param number: of the round, from 1.
    :param failed: whether the task failed with it.
    :param result: the reference to its table, with the counts: the task's XCom.
    :param max_tries: Airflow's at that time. A person's clear of this task changes it, a clear of another one does not.
        ``CUT_SHORT`` of a round that the clear itself has ended.
    """

    number: int
    failed: bool
    result: dict[str, Any]
    max_tries: int

    def was_cleared_since(self, context: Context) -> bool:
        """Return whether a person has cleared the task after this round."""
        return bool(self.max_tries != context["ti"].max_tries)

    def save(self, context: Context) -> None:
        """Keep it in the task's state store, in the place of the round before."""
        context["task_state_store"].set(_KEY, asdict(self))

    @classmethod
    def load(cls, context: Context) -> NotedRound | None:
        """Return the last one that was kept; None where no round is over."""
        stored: Any = context["task_state_store"].get(_KEY)
        if not isinstance(stored, Mapping) or set(stored) != set(cls.__dataclass_fields__):
            return None
        return cls(**stored)
