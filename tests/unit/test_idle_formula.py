"""The autoscale formula of this package's own pools, at chosen moments, in the local service's evaluator."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_batchwrap.hooks.autoscale import ScaleFormula
from airflow_batchwrap.local.autoscale import Formula, PoolState, SampleStore

BORN = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
FORMULA = ScaleFormula(3, 2, idle_minutes=15, fresh_until=BORN + timedelta(minutes=45))


def nodes(minutes: float, *worked: tuple[float, float], formula: ScaleFormula = FORMULA) -> tuple[int, int]:
    """Return the targets some minutes after the pool's birth, where there was work in these spans of minutes."""
    store, now = SampleStore(), BORN.timestamp() + minutes * 60
    for half in range(int(minutes * 2) + 1):
        busy = any(start <= half / 2 < end for start, end in worked)
        store.record(BORN.timestamp() + half * 30, {"$PendingTasks": 4.0 * busy})
    result = Formula.parse(formula.text).evaluate(now, store.series(now), PoolState(1, 1))
    assert result.error is None
    assert result.node_deallocation_option == formula.option
    return result.target_dedicated_nodes, result.target_low_priority_nodes


def test_a_new_pool_has_all_its_nodes_at_once_and_needs_no_sample_for_it() -> None:
    result = Formula.parse(FORMULA.text).evaluate(BORN.timestamp(), {}, PoolState())
    assert (result.target_dedicated_nodes, result.target_low_priority_nodes) == (3, 2)
    # Nor does it shrink where Azure has no sample at all, while its nodes may still be coming.
    result = Formula.parse(FORMULA.text).evaluate(BORN.timestamp() + 44 * 60, {}, PoolState(3, 2))
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
    for other in (None, "", "$TargetDedicatedNodes = 1;", formula.text.replace("= dedicatedNodes", "= 2")):
        assert ScaleFormula.read(other) is None


def test_a_resize_changes_the_bounds_and_gives_the_nodes_time_to_come() -> None:
    resized = FORMULA.resized(0, 7, timedelta(minutes=30), "requeue")
    assert nodes(200, (199, 200), formula=resized) == (0, 7)
    assert (resized.idle_minutes, resized.option, resized.total) == (15, "requeue", 7)
    assert resized.fresh_until > datetime.now(UTC) + timedelta(minutes=44)
    assert resized.resized(1, 0, timedelta(0)).option == "requeue"


def test_it_is_far_below_the_longest_formula_that_azure_takes() -> None:
    assert len(ScaleFormula.new(100_000, 100_000, 10**6, timedelta(days=30)).text) < 1000
