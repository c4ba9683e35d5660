"""Each function, and dates."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batchwrap.local.autoscale import Formula, PoolState, Timestamp, Value

NOW = 1_795_341_600.0
_CASES: dict[str, float | tuple[float, ...]] = {
    "avg(1, 2, 3)": 2,
    "avg([1, 2, 3])": 2,
    "avg([1, 2, 3], 7)": 3.25,
    "avg(4)": 4,
    "ceil(1.2)": 2,
    "ceil(-1.2)": -1,
    "ceil([0.1, 2])": (1, 2),
    "floor(1.8)": 1,
    "floor(-1.2)": -2,
    "floor(1.5, 2.5)": (1, 2),
    "len()": 0,
    "len([1, 2], 3)": 3,
    "len(7)": 1,
    "lg(8)": 3,
    "lg(vec(8))": (3,),
    "lg([2, 4])": (1, 2),
    "lg(2, 4)": (1, 2),
    "ln(1)": 0,
    "ln([1, 1])": (0, 0),
    "log(1000)": 3,
    "log(vec(1000))": (3,),
    "log([10, 100], 1)": (1, 2, 0),
    "max(1, [5, 2], 3)": 5,
    "max(0, [])": 0,
    "min(4, [5, 2], 3)": 2,
    "norm(3, 4)": 5,
    "norm()": 0,
    "percentile([1, 2, 3, 4, 5], 50)": 3,
    "percentile([5, 1], 0)": 1,
    "percentile([5, 1], 100)": 5,
    "percentile([0, 10], 25)": 2.5,
    "range(4, [9, 1])": 8,
    "round(2.5)": 3,
    "round(-2.5)": -3,
    "round(2.4)": 2,
    "round(0.49999999999999994)": 0,
    "round([0.5, 1.2])": (1, 1),
    "std(2, 4, 4, 4, 5, 5, 7, 9)": math.sqrt(32 / 7),
    "sum()": 0,
    "sum([1, 2], 3)": 6,
    "time().year": 2026,
    "time().month": 11,
    "time().day": 22,
    "time().weekday": 7,
    'time("2026-11-23").weekday': 1,
    "time().hour": 10,
    "time().minute": 0,
    'time("2026-11-22T10:11:12.9Z").minute': 11,
    'time("2026-11-22T10:11:12.9Z").second': 12,
    "val([7, 8, 9], 0)": 7,
    "val([7, 8, 9], 2)": 9,
    "val([7, 8, 9], 1.9)": 8,
    "vec()": (),
    "vec(1, [2, 3])": (1, 2, 3),
}
_EXPECTED_DATES = {
    "2026": "2026-01-01T00:00:00.000Z",
    "2026-11": "2026-11-01T00:00:00.000Z",
    "2026-11-22": "2026-11-22T00:00:00.000Z",
    "2026-11-22T10:00Z": "2026-11-22T10:00:00.000Z",
    "2026-11-22T10:00:01Z": "2026-11-22T10:00:01.000Z",
    "2026-11-22T10:00:01.1234567Z": "2026-11-22T10:00:01.123Z",
    "2026-11-22T10:00:00+02:00": "2026-11-22T08:00:00.000Z",
    "2026-11-22T10:00:00-05:30": "2026-11-22T15:30:00.000Z",
    "Sun, 22 Nov 2026 10:00:00 GMT": "2026-11-22T10:00:00.000Z",
    "22 Nov 2026 10:00 GMT": "2026-11-22T10:00:00.000Z",
    "Sun, 22 Nov 2026 10:00:00 +0100": "2026-11-22T09:00:00.000Z",
    "": "2026-11-22T10:00:00.000Z",
}


def run(expression: str) -> tuple[Value | None, str, str]:
    result = Formula.parse(f"x = {expression}").evaluate(NOW, {}, PoolState())
    told = result.error.values[0][1] if result.error else ""
    return result.variables.get("x"), told, result.results.rpartition(";x=")[2]


@pytest.mark.parametrize(("expression", "expected"), _CASES.items())
def test_function(expression: str, expected: float | tuple[float, ...]) -> None:
    found, told, _ = run(expression)
    assert told == ""
    assert found == pytest.approx(expected)
    assert isinstance(found, tuple) == isinstance(expected, tuple)


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("avg()", "Line 1, Col 8: avg needs 1 or more numbers and got 0"),
        ("max([])", "max needs 1 or more numbers"),
        ("min()", "min needs 1 or more numbers"),
        ("range([])", "range needs 1 or more numbers"),
        ("std(1)", "std needs 2 or more numbers and got 1"),
        ("percentile([], 50)", "percentile needs 1 or more numbers"),
        ("percentile([1], 101)", "percentile takes a percentage from 0 to 100, not 101"),
        ("percentile(1, 50)", "percentile takes a doubleVec and a double, not double, double"),
        ("ln(0)", "ln needs a number above 0, not 0"),
        ("lg([1, -1])", "lg needs a number above 0, not -1"),
        ("log(-1)", "log needs a number above 0"),
        ("sum(1e308, 1e308)", "the result is not a finite number"),
        ("std(1e308, -1e308)", "the result is not a finite number"),
        ("sum(time())", "sum takes doubles and doubleVecs, not a timestamp"),
        ('max("a")', "max takes doubles and doubleVecs, not a string"),
        ("lg(TimeInterval_Day)", "lg takes doubles and doubleVecs, not a timeinterval"),
        ("[1, time()]", "Line 1, Col 5: a vector takes doubles and doubleVecs, not a timestamp"),
        ("rand(1)", "rand takes nothing, not double"),
        ("stop(1)", "stop takes nothing, not double"),
        ("time(1)", "time takes nothing or a string, not double"),
        ("val(1, 0)", "val takes a doubleVec and a double, not double, double"),
        ("val([1], 1)", "there is no element 1 in a vector of 1"),
        ("val([], 0)", "there is no element 0 in a vector of 0"),
        ("Max(1)", "there is no function Max"),
        ("GetSample(1)", "there is no function GetSample"),
    ],
)
def test_refused_arguments(expression: str, told: str) -> None:
    found, message, _ = run(expression)
    assert found is None
    assert told in message


@pytest.mark.parametrize(("text", "shown"), _EXPECTED_DATES.items())
def test_dates(text: str, shown: str) -> None:
    found, told, written = run(f'time("{text}")')
    assert told == ""
    assert isinstance(found, Timestamp)
    assert written == shown


@pytest.mark.parametrize(
    "text",
    [
        "yesterday",
        "2026-13-01",
        "2026-02-30",
        "2026-11-22T10:00:00",
        "2026-11-22 10:00:00Z",
        "2026-11-22T10:00:00.123456789Z",
        "2026-11-22T10:00:00+02:99",
        "2026-11-22T10:00:00+99:00",
        "Mon, 22 Nov 2026 10:00:00 GMT",
        "Sun, 22 Foo 2026 10:00:00 GMT",
        "0000-01-01",
        "0001-01-01T00:00:00+01:00",
        "9" * 200,
    ],
)
def test_what_is_no_date(text: str) -> None:
    found, told, _ = run(f'time("{text}")')
    assert found is None
    assert "time cannot read" in told or "outside of the years" in told
    assert len(told) < 300


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_statistics_agree_with_python(numbers: list[float]) -> None:
    text = "[" + ",".join(f"({number!r})" for number in numbers) + "]"
    expected = {
        "avg": statistics.fmean(numbers),
        "max": max(numbers),
        "min": min(numbers),
        "norm": math.hypot(*numbers),
        "range": max(numbers) - min(numbers),
        "std": statistics.stdev(numbers),
        "sum": math.fsum(numbers),
    }
    for name, outcome in expected.items():
        assert run(f"{name}({text})")[0] == pytest.approx(outcome, rel=1e-9, abs=1e-6), name


@given(st.floats(-1e15, 1e15))
def test_rounding_agrees_with_its_neighbours(number: float) -> None:
    low, high, near = (run(f"{name}(({number!r}))")[0] for name in ("floor", "ceil", "round"))
    assert (low, high) == (math.floor(number), math.ceil(number))
    assert isinstance(near, float)
    assert near in (low, high)
    assert abs(near - number) <= 0.5
