"""Each operator for each type, and arithmetic as Python has it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_batchwrap.local.autoscale import Formula, PoolState, Value

NOW = 1_795_341_600.0
_CASES: dict[str, str] = {
    # double
    "7 + 2": "9",
    "7 - 2": "5",
    "7 * 2": "14",
    "7 / 2": "3.5",
    "-7": "-7",
    "--7": "7",
    "!7": "0",
    "!0": "1",
    "!!7": "1",
    "1 < 2": "1",
    "2 <= 2": "1",
    "2 == 2": "1",
    "2 >= 3": "0",
    "2 > 3": "0",
    "2 != 2": "0",
    "2 && 3": "1",
    "2 && 0": "0",
    "0 || 0": "0",
    "0 || 5": "1",
    "2 ? 10 : 20": "10",
    "0 ? 10 : 20": "20",
    "0 ? 1 : 0 ? 2 : 3": "3",
    "1 ? 0 ? 1 : 2 : 3": "2",
    # the order of C
    "1 + 2 * 3": "7",
    "(1 + 2) * 3": "9",
    "10 - 3 - 2": "5",
    "8 / 4 / 2": "1",
    "-2 * -3": "6",
    "1 + 1 == 2 && 3 > 2 || 0": "1",
    "1 || 0 && 0": "1",
    "1 < 2 == 1": "1",
    "!0 + 1": "2",
    "1 > 0 ? 1 + 1 : 3": "2",
    # doubleVec
    "[1,2,3] + 1": "[2,3,4]",
    "[1,2,3] - 1": "[0,1,2]",
    "[1,2,3] * 2": "[2,4,6]",
    "[1,2,3] / 2": "[0.5,1,1.5]",
    "[1,2] + [3,4]": "[4,6]",
    "[1,2] - [3,4]": "[-2,-2]",
    "[1,2] * [3,4]": "[3,8]",
    "[1,2] / [4,4]": "[0.25,0.5]",
    "[[1,2],3]": "[1,2,3]",
    "[4,5,6][1]": "5",
    # string
    '"a" < "b"': "1",
    '"a" <= "a"': "1",
    '"a" == "A"': "0",
    '"a" != "b"': "1",
    '"b" > "a"': "1",
    '"b" >= "c"': "0",
    'requeue == "requeue"': "1",
    # timeinterval
    "2 * TimeInterval_Minute": "00:02:00",
    "TimeInterval_Minute * 2": "00:02:00",
    "TimeInterval_Minute / 4": "00:00:15",
    "TimeInterval_Minute + TimeInterval_Second": "00:01:01",
    "TimeInterval_Minute - TimeInterval_Hour": "-00:59:00",
    "-TimeInterval_Week": "-7.00:00:00",
    "TimeInterval_Year": "365.00:00:00",
    "TimeInterval_Hour > TimeInterval_Minute": "1",
    "TimeInterval_Second == TimeInterval_Millisecond * 1000": "1",
    "TimeInterval_Millisecond == 1000 * TimeInterval_Microsecond": "1",
    "TimeInterval_Microsecond / 10 == TimeInterval_100ns": "1",
    "TimeInterval_Zero != -TimeInterval_Zero": "0",
    # timestamp
    "time() + TimeInterval_Day": "2026-11-23T10:00:00.000Z",
    "TimeInterval_Day + time()": "2026-11-23T10:00:00.000Z",
    "time() + (-6 * TimeInterval_Hour)": "2026-11-22T04:00:00.000Z",
    'time() - time("2026-11-22T09:00:00Z")': "01:00:00",
    'time() < time("2026-11-22T09:00:00Z")': "0",
    'time() >= time("2026-11-22T10:00:00Z")': "1",
    "time() == time()": "1",
    "time() != time()": "0",
}


def value(expression: str) -> Value:
    result = Formula.parse(f"x = {expression}").evaluate(NOW, {}, PoolState())
    assert result.error is None, result.error
    return result.variables["x"]


def fault(expression: str) -> str:
    result = Formula.parse(f"x = {expression}").evaluate(NOW, {}, PoolState())
    assert result.error is not None
    assert "x" not in result.variables
    return result.error.values[0][1]


@pytest.mark.parametrize(("expression", "shown"), _CASES.items())
def test_operator(expression: str, shown: str) -> None:
    result = Formula.parse(f"x = {expression}").evaluate(NOW, {}, PoolState())
    assert result.error is None, result.error
    assert result.results.rpartition(";x=")[2] == shown


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("1 / 0", "Line 1, Col 7: division by zero"),
        ("[1] / 0", "Line 1, Col 9: division by zero"),
        ("[1] / [0]", "Line 1, Col 9: division by zero"),
        ("TimeInterval_Day / 0", "Line 1, Col 22: division by zero"),
        ("1e308 * 10", "Line 1, Col 11: the result is not a finite number"),
        ("[1,2] + [1]", "Line 1, Col 11: + needs vectors of one length, not of 2 and 1"),
        ('1 + "a"', "Line 1, Col 7: + cannot be applied to a double and a string"),
        ('"a" + "b"', "+ cannot be applied to a string and a string"),
        ("2 * [1]", "* cannot be applied to a double and a doubleVec: take one number"),
        ("[1] < 2", "< cannot be applied to a doubleVec and a double: take one number"),
        ("[1] == [1]", "== cannot be applied to a doubleVec and a doubleVec"),
        ("1 == TimeInterval_Day", "== cannot be applied to a double and a timeinterval"),
        ("1 + TimeInterval_Day", "+ cannot be applied to a double and a timeinterval"),
        ("1 / TimeInterval_Day", "/ cannot be applied to a double and a timeinterval"),
        ("TimeInterval_Day / TimeInterval_Hour", "/ cannot be applied to a timeinterval and a timeinterval"),
        ("time() - TimeInterval_Day", "- cannot be applied to a timestamp and a timeinterval: add the negated"),
        ("time() + time()", "+ cannot be applied to a timestamp and a timestamp"),
        ("time() < TimeInterval_Day", "< cannot be applied to a timestamp and a timeinterval"),
        ("-[1]", "Line 1, Col 5: - cannot be applied to a doubleVec"),
        ("!TimeInterval_Day", "! cannot be applied to a timeinterval"),
        ('-"a"', "- cannot be applied to a string"),
        ("[1] ? 1 : 2", "Line 1, Col 9: a condition must be a double, not a doubleVec"),
        ("1 && time()", "a condition must be a double, not a timestamp"),
        ('"a" || 1', "a condition must be a double, not a string"),
        ("time() + TimeInterval_Year * 9000", "the timestamp is outside of the years 1 to 9999"),
        ("TimeInterval_Year * 1e9", "the timeinterval is too long"),
        ("[1][1]", "Line 1, Col 8: there is no element 1 in a vector of 1"),
        ("[1][-1]", "there is no element -1 in a vector of 1"),
        ("5[0]", "[ ] takes a number, and a doubleVec before it"),
        ("time().century", "Line 1, Col 12: a timestamp has no member century"),
        ("(5).hour", "a double has no member hour"),
        ("$ActiveTasks.hour", "$ActiveTasks has no member hour"),
        ("time().GetSample(1)", "Line 1, Col 21: a timestamp has no method GetSample"),
    ],
)
def test_what_is_not_documented_is_refused(expression: str, told: str) -> None:
    assert told in fault(expression)


_numbers = st.floats(min_value=0, max_value=1e9, allow_nan=False).filter(lambda number: number == 0 or number > 1e-9)
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_leaves = st.tuples(_numbers.map(repr), _numbers).map(lambda pair: (pair[0], float(pair[0])))


def _join(parts: tuple[tuple[str, float], str, tuple[str, float]]) -> tuple[str, float]:
    (left, left_value), sign, (right, right_value) = parts
    try:
        outcome = _ARITHMETIC[sign](left_value, right_value)
    except ZeroDivisionError:
        outcome = math.nan
    return f"({left} {sign} {right})", outcome


_trees = st.recursive(
    _leaves, lambda inner: st.tuples(inner, st.sampled_from(sorted(_ARITHMETIC)), inner).map(_join), max_leaves=12
)


@given(_trees)
def test_arithmetic_is_that_of_doubles(tree: tuple[str, float]) -> None:
    text, expected = tree
    if math.isfinite(expected):
        assert value(text) == expected
    else:
        assert "division by zero" in fault(text) or "not a finite number" in fault(text)


@settings(max_examples=200)
@given(st.lists(st.sampled_from([*"+-*/<>", "<=", ">=", "==", "!=", "&&", "||"]), min_size=1, max_size=12), st.data())
def test_precedence_is_that_of_python(signs: list[str], data: st.DataObject) -> None:
    # Comparisons chain in Python and not in C, so each gets brackets around its neighbourhood: one per expression.
    relations = [sign for sign in signs if sign in ("<", ">", "<=", ">=", "==", "!=")]
    signs = [sign for sign in signs if sign not in relations[1:]]
    numbers = data.draw(st.lists(st.integers(1, 9), min_size=len(signs) + 1, max_size=len(signs) + 1))
    text = "".join(f"{number} {sign} " for number, sign in zip(numbers, signs, strict=False)) + str(numbers[-1])
    python = text.replace("&&", "and").replace("||", "or")
    expected = eval(python, {"__builtins__": {}})  # noqa: S307 - digits and operators drawn above
    logical = any(sign in ("&&", "||") for sign in signs)
    assert value(text) == (float(bool(expected)) if logical else float(expected))


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_intervals_are_exact(left: int, right: int) -> None:
    text = f"({left}) * TimeInterval_100ns + ({right}) * TimeInterval_100ns == ({left + right}) * TimeInterval_100ns"
    assert value(text) == 1
