"""The autoscale formula of this package's own pools, at chosen moments, in the local service's evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batchwrap.hooks.autoscale import ScaleFormula
from airflow_batchwrap.local.autoscale import Formula, PoolState, SampleStore

# What a pool that an older version made carries, and one for multi-instance tasks still.
OLDER = """\
dedicatedNodes = 3;
spotNodes = 2;
lately = TimeInterval_Minute * 15;
work = time() < time("2026-11-22T12:45:00Z") ? 1 : max(0, $PendingTasks.GetSample(1), $PendingTasks.GetSample(lately));
share = work > 0 ? 1 : 0;
$TargetDedicatedNodes = dedicatedNodes * share;
$TargetLowPriorityNodes = spotNodes * share;
$NodeDeallocationOption = taskcompletion;
"""
BORN = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
FORMULA = ScaleFormula(3, 2, idle_minutes=15, fresh_until=BORN + timedelta(minutes=45))


def nodes(minutes: float, *worked: tuple[float, float], formula: ScaleFormula = FORMULA) -> tuple[int, int]:
    """Return the targets some minutes after the pool's birth, where there was work in these spans of minutes."""
    store, now = SampleStore(), BORN.timestamp() + minutes * 60
    for half in range(int(minutes * 2) + 1):
        busy = any(start <= half / 2 < end for start, end in worked)
        store.record(BORN.timestamp() + half * 30, {"$PendingTasks": 4.0 * busy})
    return targets(formula, now, store)


def sized(pending: Sequence[float | None], formula: ScaleFormula = FORMULA) -> tuple[int, int]:
    """Return the targets long after the pool's birth: a sample of pending Batch tasks each 30 s, the last one now.

    :param pending: None for a sample that is missing.
    """
    store, now = SampleStore(), BORN.timestamp() + 5 * 3600
    for age, count in zip(range(len(pending) - 1, -1, -1), pending, strict=True):
        if count is not None:
            store.record(now - 30 * age, {"$PendingTasks": count})
    return targets(formula, now, store)


def targets(formula: ScaleFormula, now: float, store: SampleStore) -> tuple[int, int]:
    result = Formula.parse(formula.text).evaluate(now, store.series(now), PoolState(1, 1))
    assert result.error is None
    assert result.node_deallocation_option == formula.option
    return result.target_dedicated_nodes, result.target_low_priority_nodes


@pytest.mark.parametrize("whole", [False, True])
def test_a_new_pool_has_all_its_nodes_at_once_and_needs_no_sample_for_it(whole: bool) -> None:
    formula = replace(FORMULA, shrinks=not whole)
    result = Formula.parse(formula.text).evaluate(BORN.timestamp(), {}, PoolState())
    assert (result.target_dedicated_nodes, result.target_low_priority_nodes) == (3, 2)
    # Nor does it shrink where Azure has no sample at all, while its nodes may still be coming.
    result = Formula.parse(formula.text).evaluate(BORN.timestamp() + 44 * 60, {}, PoolState(3, 2))
    assert (result.error, result.target_dedicated_nodes) == (None, 3)


@pytest.mark.parametrize(
    ("minutes", "worked", "expected"),
    [
        (44, (), (3, 2)),  # nobody came yet
        (46, (), (0, 0)),  # nobody came
        (60, ((10, 50),), (3, 2)),  # the last work is 10 minutes ago
        (66, ((10, 50),), (0, 0)),  # 16
        (600, ((10, 600),), (3, 2)),  # one long step
        (301, ((10, 50), (300, 301)), (3, 2)),  # work again, after hours
        (320, ((10, 50), (300, 301)), (0, 0)),
    ],
)
def test_it_stays_while_there_is_work_and_a_while_after(
    minutes: float, worked: tuple[tuple[float, float], ...], expected: tuple[int, int]
) -> None:
    assert nodes(minutes, *worked) == expected
    assert nodes(minutes, *worked, formula=replace(FORMULA, shrinks=False)) == expected


@pytest.mark.parametrize(
    ("pending", "expected"),
    [
        ([40.0] * 40, (3, 2)),
        ([40.0] * 4 + [2.0] * 30, (2, 2)),  # two stragglers for as long as the pool may be idle
        ([40.0] * 4 + [1.0] * 30, (1, 1)),
        ([40.0] * 4 + [0.0] * 30, (0, 0)),
        ([40.0] * 5 + [2.0] * 26, (3, 2)),  # the others ended a moment ago: more may follow
        ([2.0] * 29 + [3.0], (3, 2)),  # it has grown since
        ([0.0] * 29 + [1.0], (1, 1)),  # it wakes to what is needed
        ([None] * 29 + [1.0], (3, 2)),  # a sample or two are no evidence
    ],
)
def test_nodes_go_that_the_work_that_is_left_cannot_use(pending: list[float | None], expected: tuple[int, int]) -> None:
    assert sized(pending) == expected


def test_a_pool_for_multi_instance_tasks_has_all_nodes_or_none() -> None:
    whole = replace(FORMULA, shrinks=False)
    assert sized([1.0] * 40, whole) == (3, 2)  # which may need all of them
    assert sized([0.0] * 40, whole) == (0, 0)


@given(
    pending=st.lists(st.none() | st.integers(0, 12).map(float), min_size=1, max_size=40),
    dedicated=st.integers(0, 6),
    spot=st.integers(0, 6),
)
def test_no_batch_task_finds_fewer_nodes_than_it_could_use(
    pending: list[float | None], dedicated: int, spot: int
) -> None:
    formula = replace(FORMULA, dedicated=dedicated, spot=spot)
    known = [count for count in pending[-30:] if count is not None] or [count for count in pending if count is not None]
    if not known:
        return
    got = sized(pending, formula)
    # Whichever kind of node the Batch tasks run on, none of those that work has to go.
    assert got[0] >= min(dedicated, known[-1])
    assert got[1] >= min(spot, known[-1])
    assert got[0] <= dedicated
    assert got[1] <= spot
    assert (got == (0, 0)) == (not any(known) or not dedicated + spot)


def test_the_last_sample_counts_where_the_idle_time_is_shorter_than_samples_are_late() -> None:
    quick = ScaleFormula(1, 0, idle_minutes=1, fresh_until=BORN)
    store, now = SampleStore(), BORN.timestamp() + 600
    store.record(now - 90, {"$PendingTasks": 1.0})
    result = Formula.parse(quick.text).evaluate(now, store.series(now), PoolState())
    assert result.target_dedicated_nodes == 1


def test_it_is_read_back_and_anothers_is_not() -> None:
    formula = ScaleFormula.new(3, 2, 15, timedelta(minutes=30))
    assert ScaleFormula.read(formula.text) == formula
    assert ScaleFormula.read(formula.text.replace("\n", "\r\n")) == formula
    left = (formula.fresh_until - datetime.now(UTC)).total_seconds()
    assert 44 * 60 < left <= 45 * 60
    for other in (None, "", "$TargetDedicatedNodes = 1;", formula.text.replace("min(dedicatedNodes", "min(2")):
        assert ScaleFormula.read(other) is None


def test_the_formula_of_an_older_version_is_read_back_and_kept() -> None:
    older = ScaleFormula.read(OLDER)
    assert older == replace(FORMULA, shrinks=False)
    assert older.text == OLDER
    assert not older.resized(1, 1, timedelta(0)).shrinks


def test_a_resize_changes_the_bounds_and_gives_the_nodes_time_to_come() -> None:
    resized = FORMULA.resized(0, 7, timedelta(minutes=30), "requeue")
    assert nodes(200, (199, 200), formula=resized) == (0, 7)
    assert (resized.idle_minutes, resized.option, resized.total) == (15, "requeue", 7)
    assert resized.fresh_until > datetime.now(UTC) + timedelta(minutes=44)
    assert resized.resized(1, 0, timedelta(0)).option == "requeue"
    # What a resize did to nodes that work is not done again and again.
    assert (resized.shrinks, FORMULA.resized(0, 7, timedelta(0)).shrinks) == (False, True)
    assert ScaleFormula.read(resized.text) == resized


def test_it_is_far_below_the_longest_formula_that_azure_takes() -> None:
    assert len(ScaleFormula.new(100_000, 100_000, 10**6, timedelta(days=30)).text) < 1000
