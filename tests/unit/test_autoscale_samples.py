"""Samples: the methods of the sampled variables, and the store behind them."""

from __future__ import annotations

import math

import pytest

from airflow_batchwrap.local.autoscale import (
    INSUFFICIENT_SAMPLE_DATA,
    METRICS,
    AutoScaleResult,
    Formula,
    PoolState,
    SampleSeries,
    SampleStore,
)

NOW = 1_795_341_600.0
#: Ten minutes of samples, 1 to 20, the last of them now.
TEN_MINUTES = SampleSeries(tuple((NOW - 30 * (20 - number), float(number)) for number in range(1, 21)))
#: The same without the last minute, as a real service that is a minute late has them.
LATE = SampleSeries(TEN_MINUTES.samples[:-2])
EMPTY = SampleSeries()


def run(expression: str, series: SampleSeries = TEN_MINUTES) -> AutoScaleResult:
    return Formula.parse(f"x = {expression}").evaluate(NOW, {"$PendingTasks": series}, PoolState())


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("GetSample(1)", "[20]"),
        ("GetSample(3)", "[18,19,20]"),
        ("GetSample(2.9)", "[19,20]"),
        ("GetSample(0)", "[]"),
        ("GetSample(TimeInterval_Minute)", "[19,20]"),
        ("GetSample(TimeInterval_Minute * 2, TimeInterval_Minute)", "[17,18]"),
        ("GetSample(TimeInterval_Minute, TimeInterval_Minute * 2)", "[17,18]"),
        ("GetSample(TimeInterval_Minute * 2, TimeInterval_Minute, 100)", "[17,18]"),
        ("GetSample(TimeInterval_Minute, 100)", "[19,20]"),
        ("GetSample(time() + (-TimeInterval_Minute))", "[19,20]"),
        ('GetSample(time("2026-11-22T09:58:00Z"), time("2026-11-22T09:59:00Z"))', "[17,18]"),
        ('GetSample(time("2026-11-22T09:58:00Z"), TimeInterval_Minute)', "[17,18]"),
        ("GetSample(TimeInterval_Zero)", "[]"),
        ("GetSamplePercent(TimeInterval_Minute * 10)", "100"),
        ("GetSamplePercent(TimeInterval_Minute * 20)", "50"),
        ("GetSamplePercent(TimeInterval_Minute * 20, TimeInterval_Minute * 10)", "0"),
        ("GetSamplePeriod()", "00:00:30"),
        ("HistoryBeginTime()", "2026-11-22T09:50:30.000Z"),
        ("Count()", "20"),
    ],
)
def test_methods(expression: str, shown: str) -> None:
    result = run(f"$PendingTasks.{expression}")
    assert result.error is None
    assert result.results.rpartition(";x=")[2] == shown


def test_missing_samples_are_left_out_and_counted() -> None:
    assert len(str(run("$PendingTasks.GetSample(TimeInterval_Minute * 10)", LATE).variables["x"]).split(",")) == 18
    assert run("$PendingTasks.GetSamplePercent(TimeInterval_Minute * 10)", LATE).variables["x"] == 90
    assert run("$PendingTasks.GetSample(TimeInterval_Minute * 10, 80)", LATE).error is None
    error = run("$PendingTasks.GetSample(TimeInterval_Minute * 10, 95)", LATE).error
    assert error is not None
    assert error.code == INSUFFICIENT_SAMPLE_DATA
    # The place is the opening parenthesis, as in messages of the real service that people quote.
    assert error.values == (
        ("Message", "Line 1, Col 28: $PendingTasks has 90% of the samples of this time frame, 95% were asked for"),
    )


def test_without_any_samples() -> None:
    assert run("max(0, $PendingTasks.GetSample(1))", EMPTY).variables["x"] == 0
    assert run("$PendingTasks.GetSample(TimeInterval_Hour)", EMPTY).variables["x"] == ()
    assert run("$PendingTasks.GetSamplePercent(TimeInterval_Hour)", EMPTY).variables["x"] == 0
    assert run("$PendingTasks.Count()", EMPTY).variables["x"] == 0
    for expression in ("HistoryBeginTime()", "GetSample(TimeInterval_Hour, 1)"):
        error = run(f"$PendingTasks.{expression}", EMPTY).error
        assert error is not None
        assert error.code == INSUFFICIENT_SAMPLE_DATA


def test_a_variable_by_itself_is_its_latest_sample() -> None:
    assert run("$PendingTasks / 8").variables["x"] == 2.5
    assert run("max($PendingTasks, 3)").variables["x"] == 20


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_documented_variable_can_be_sampled(name: str) -> None:
    series = {name: SampleSeries(((NOW, 3),))}
    result = Formula.parse(f"x = {name}.GetSample(1); y = {name}.Count()").evaluate(NOW, series, PoolState())
    assert result.error is None
    assert (result.variables["x"], result.variables["y"]) == ((3,), 1)


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("$PendingTasks.GetSample()", "$PendingTasks.GetSample does not take nothing"),
        ("$PendingTasks.GetSample(-1)", "takes a number of samples, not -1"),
        ('$PendingTasks.GetSample("a")', "does not take string"),
        ("$PendingTasks.GetSample(1, 2)", "does not take double, double"),
        ("$PendingTasks.GetSamplePercent(1)", "does not take double"),
        ("$PendingTasks.Count(1)", "does not take double"),
        ("$PendingTasks.Average()", "$PendingTasks has no method Average: it has Count, GetSample"),
        ("$PendingTasks.getsample(1)", "$PendingTasks has no method getsample"),
        ("$TargetDedicatedNodes.GetSample(1)", "a double has no method GetSample"),
    ],
)
def test_refused_calls(expression: str, told: str) -> None:
    error = run(expression).error
    assert error is not None
    assert told in error.values[0][1]


@pytest.mark.parametrize(
    "samples", [((2.0, 1.0), (1.0, 1.0)), ((1.0, 1.0), (1.0, 1.0)), ((1.0, math.nan),), ((math.inf, 1.0),)]
)
def test_a_series_must_rise_and_be_finite(samples: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match="times must rise"):
        SampleSeries(samples)


def test_a_period_must_be_positive() -> None:
    with pytest.raises(ValueError, match="not positive"):
        SampleSeries((), 0)


def test_the_store_keeps_the_newest() -> None:
    store = SampleStore(keep=3)
    for number in range(5):
        store.record(NOW + 30 * number, {"$ActiveTasks": number, "$RunningTasks": 2 * number})
    series = store.series(NOW + 1000)
    assert set(series) == {"$ActiveTasks", "$RunningTasks"}
    assert list(series["$ActiveTasks"].samples) == [(NOW + 60, 2), (NOW + 90, 3), (NOW + 120, 4)]
    result = Formula.parse("x = $RunningTasks.GetSample(9)").evaluate(NOW + 120, series, PoolState())
    assert result.variables["x"] == (4, 6, 8)


def test_the_store_can_be_as_late_as_the_real_service() -> None:
    store = SampleStore(delay=60)
    for number in range(4):
        store.record(NOW + 30 * number, {"$ActiveTasks": number})
    assert store.series(NOW + 90)["$ActiveTasks"].latest(9) == (0, 1)
    assert store.series(NOW)["$ActiveTasks"].samples == ()


def test_a_clock_that_was_set_back_does_no_harm() -> None:
    store = SampleStore()
    for moment, number in ((NOW, 1), (NOW + 30, 2), (NOW + 60, 3), (NOW + 30, 4), (NOW + 30, 5)):
        store.record(moment, {"$ActiveTasks": number})
    assert list(store.series(NOW + 60)["$ActiveTasks"].samples) == [(NOW, 1), (NOW + 30, 5)]


def test_the_store_forgets() -> None:
    store = SampleStore()
    store.record(NOW, {"$ActiveTasks": 1, "$FailedTasks": 1})
    store.record(NOW + 30, {"$ActiveTasks": 2})
    store.forget(NOW + 30)
    assert {name: found.latest(9) for name, found in store.series(NOW + 30).items()} == {"$ActiveTasks": (2,)}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"$ActiveTasks": 1.0, "PendingTasks": 1.0}, "no autoscale variable is called PendingTasks"),
        ({"$ActiveTasks": math.inf}, "cannot record inf"),
    ],
)
def test_the_store_refuses_what_no_formula_could_read(values: dict[str, float], told: str) -> None:
    store = SampleStore()
    with pytest.raises(ValueError, match=told):
        store.record(NOW, values)
    assert store.series(NOW) == {}


def test_a_store_keeps_something() -> None:
    with pytest.raises(ValueError, match="cannot keep 0 samples"):
        SampleStore(keep=0)
