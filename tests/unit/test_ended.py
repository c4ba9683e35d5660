"""What a task's state says about whether a person has ended it."""

from __future__ import annotations

import pytest

from airflow_batchwrap.triggers.cancel import state_in_time, was_ended, was_ended_for_good


@pytest.mark.parametrize(
    ("state", "on_a_worker", "deferred", "for_good"),
    [
        ("running", False, False, False),
        ("deferred", False, False, False),
        ("queued", False, False, False),
        ("scheduled", False, False, False),
        ("up_for_retry", False, False, False),  # no heartbeat came for a while: the next try takes the work over
        ("unknown", False, False, False),
        ("none", False, True, False),  # a scheduler took it for an orphan; or it was cleared while deferred
        ("restarting", True, True, False),  # cleared while it ran
        ("failed", True, True, True),
        ("success", True, True, True),
        ("skipped", True, True, True),  # dagrun_timeout
        ("removed", True, True, True),
        ("gone", True, True, True),  # its run was deleted
    ],
)
def test_states(state: str, on_a_worker: bool, deferred: bool, for_good: bool) -> None:
    assert was_ended(state) is on_a_worker
    assert was_ended(state, deferred=True) is deferred
    assert was_ended_for_good(state) is for_good


def test_an_airflow_that_does_not_answer_says_nothing() -> None:
    def refuse() -> str:
        raise ConnectionError

    assert state_in_time(refuse) == "unknown"
    assert state_in_time(lambda: "failed") == "failed"
