"""When a job schedule's jobs are due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batchwrap.local.model.recurrence import Recurrence


def test_one_occurrence_alone() -> None:
    once = Recurrence(100.0)
    assert (once.latest(99.0), once.latest(100.0), once.latest(1e9)) == (-1, 0, 0)
    assert once.open(0, 1e9)
    assert not once.over(-1, 1e9)
    assert once.over(0, 100.0)
    assert (once.waking(-1, 50.0), once.waking(0, 100.5)) == (100.0, None)


@pytest.mark.parametrize(
    ("now", "latest", "is_open", "waking"), [(100.0, 0, True, 130.0), (140.0, 0, False, 160.0), (161.0, 1, True, 190.0)]
)
def test_window(now: float, latest: int, is_open: bool, waking: float) -> None:
    recurrence = Recurrence(100.0, 60.0, 30.0)
    assert recurrence.latest(now) == latest
    assert recurrence.open(latest, now) is is_open
    assert recurrence.waking(-1, now) == waking


def test_no_occurrence_after_the_end() -> None:
    recurrence = Recurrence(100.0, 60.0, until=200.0)
    assert [recurrence.at(index) for index in range(3)] == [100.0, 160.0, None]
    assert recurrence.latest(1e9) == 1
    assert not recurrence.open(1, 201.0)
    assert recurrence.over(1, 201.0)
    assert Recurrence(300.0, until=200.0).latest(400.0) == -1


def test_window_that_passed_ends_a_single_occurrence() -> None:
    once = Recurrence(100.0, window=60.0)
    assert not once.over(-1, 160.0)
    assert once.over(-1, 161.0)


@given(st.floats(0, 1e6), st.floats(60, 1e5), st.floats(0, 1e7))
def test_latest_occurrence_is_the_last_that_has_come(start: float, interval: float, now: float) -> None:
    recurrence = Recurrence(start, interval)
    index = recurrence.latest(now)
    following = recurrence.at(index + 1)
    assert following is not None
    assert following >= now - 1e-3
    present = recurrence.at(index)
    assert present is None if index < 0 else (present is not None and present <= now + 1e-3)
