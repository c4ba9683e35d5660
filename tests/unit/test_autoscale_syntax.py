"""Texts that are no formulas, with their places, and texts made to exhaust the evaluator."""

from __future__ import annotations

import time
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_batchwrap.local.autoscale import (
    AutoScaleResult,
    Formula,
    FormulaSyntaxError,
    FormulaTooLong,
    PoolState,
    SampleSeries,
)

#: Generous: what takes longer has lost a bound, and a busy machine is slow.
SECONDS = 5.0


@pytest.mark.parametrize(
    ("text", "line", "column", "expected", "found"),
    [
        ("", 1, 1, "a statement", "the end of the formula"),
        (" \n// nothing\n", 3, 1, "a statement", "the end of the formula"),
        (";", 1, 1, "a statement", ";"),
        ("x = 1;;", 1, 7, "a statement", ";"),
        ("x =", 1, 4, "a value", "the end of the formula"),
        ("x = ;", 1, 5, "a value", ";"),
        ("x = 1 y = 2", 1, 7, "an operator or ;", "y"),
        ("x = 1\ny = 2", 2, 1, "an operator or ;", "y"),
        ("x = 1;\r\ny = (2", 2, 7, "an operator or )", "the end of the formula"),
        ("x = 1;\ry = 2)", 2, 6, "an operator or ;", ")"),
        ("x == 1 = 2", 1, 8, "an operator or ;", "="),
        ("1 = 2", 1, 3, "an operator or ;", "="),
        ("x = 1 +", 1, 8, "a value", "the end of the formula"),
        ("x = 1 ? 2", 1, 10, "an operator or :", "the end of the formula"),
        ("x = max(1, 2", 1, 13, "an operator, a comma or )", "the end of the formula"),
        ("x = max(1,)", 1, 11, "a value", ")"),
        ("x = [1 2]", 1, 8, "an operator, a comma or ]", "2"),
        ("x = y[1", 1, 8, "an operator or ]", "the end of the formula"),
        ("x = y[]", 1, 7, "a value", "]"),
        ("x = y.", 1, 7, "the name of a member", "the end of the formula"),
        ("x = y.$z", 1, 7, "the name of a member", "$z"),
        ('x = "a', 1, 5, "a string that ends on its line", "one without its closing quote"),
        ('x = "a\nb"', 1, 5, "a string that ends on its line", "one without its closing quote"),
        ("x = 'a'", 1, 5, "a name, a number, a string or an operator", '"\'"'),
        ("x = 5 % 2", 1, 7, "a name, a number, a string or an operator", "'%'"),
        ("x = a & b", 1, 7, "a name, a number, a string or an operator", "'&'"),
        ("x = $", 1, 5, "a name, a number, a string or an operator", "'$'"),
        ("x = {1}", 1, 5, "a name, a number, a string or an operator", "'{'"),
        ("x = 1 \N{NO-BREAK SPACE}+ 2", 1, 7, "a name, a number, a string or an operator", "'\\xa0'"),
        ("x = \N{ARABIC-INDIC DIGIT FOUR}", 1, 5, "a name, a number, a string or an operator", "'\\u0664'"),
        ("x = 1e999", 1, 5, "a number below 1.8E+308", "1e999"),
        ("x = 1x", 1, 6, "an operator or ;", "x"),
        ("x = /* no */ 1", 1, 5, "a value", "/"),
        ("x = " + "y" * 50 + " z", 1, 56, "an operator or ;", "z"),
        ("x = 1 " + "y" * 50, 1, 7, "an operator or ;", "y" * 37 + "..."),
    ],
)
def test_syntax_errors_tell_where_and_what(text: str, line: int, column: int, expected: str, found: str) -> None:
    with pytest.raises(FormulaSyntaxError) as caught:
        Formula.parse(text)
    error = caught.value
    assert (error.line, error.column, error.expected, error.found) == (line, column, expected, found)
    assert str(error) == f"Line {line}, Col {column}: expected {expected}, found {found}"
    assert error.code == "AutoScalingFormulaSyntaxError"


@pytest.mark.parametrize(
    "text",
    [
        "x=1",
        "x = 1;",
        "\n\tx\n=\n1\n;\n",
        "// first\nx = 1; // second\r// third\r\ny = 2 // last",
        "x = .5 + 5. + 5.5e-1;",
        'x = "// no comment"; y = ""',
        "$x1_ = 1; _y = $x1_",
        "stop()",
        "1",
    ],
)
def test_ways_to_write(text: str) -> None:
    result = Formula.parse(text).evaluate(0.0, {}, PoolState())
    assert result.error is None


def test_limits_of_length_and_statements() -> None:
    longest = "x=1;//" + "-" * 8186
    assert Formula.parse(longest).text == longest
    with pytest.raises(FormulaTooLong, match=r"at most 8192 characters, found 8193") as caught:
        Formula.parse(longest + "-")
    assert caught.value.code == "AutoScaleFormulaTooLong"
    assert len(Formula.parse("x=1;" * 100).statements) == 100
    with pytest.raises(FormulaSyntaxError, match="Line 1, Col 401: expected at most 100 statements"):
        Formula.parse("x=1;" * 101)


def test_a_formula_cannot_be_changed() -> None:
    formula = Formula.parse("x = 1")
    with pytest.raises(FrozenInstanceError):
        formula.text = "y"  # type: ignore[misc]
    assert formula == Formula.parse("x = 1")
    assert hash(formula) == hash(Formula.parse("x = 1"))


@pytest.mark.parametrize("opening", ["(", "-(", "1+(", "[", "max(", "1?", "y[", "1||1&&1==1<1+1*-(", "!"])
def test_nesting_is_bounded_by_an_error_that_names_the_place(opening: str) -> None:
    text = "x = " + opening * 8000
    with pytest.raises(FormulaSyntaxError) as caught:
        Formula.parse(text[:8192])
    assert caught.value.line == 1
    if opening != "!":
        assert "at most 64 brackets and operators within one another" in caught.value.expected


@pytest.mark.parametrize(
    ("opening", "inner", "closing", "times"),
    [
        ("(", "1", ")", 63),
        ("max(", "1", ")", 63),
        ("[", "1", "]", 63),
        ("-(", "1", ")", 31),
        ("1?", "1", ":1", 63),
        ("[0][", "0", "]", 63),
        ("1&&1==1<1+1*-(", "1", ")", 9),
    ],
)
def test_what_the_bound_allows_can_be_evaluated_compared_and_shown(
    opening: str, inner: str, closing: str, times: int
) -> None:
    formula = Formula.parse(f"x = {opening * times}{inner}{closing * times}")
    result = formula.evaluate(0.0, {}, PoolState())
    assert result.error is None
    assert "x" in result.variables
    assert formula == Formula.parse(formula.text)
    assert repr(formula)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x = 1" + " + 1" * 2000, 2001.0),
        ("x = " + "!" * 8000 + "1", 1.0),
        ("x = " + "- " * 4000 + "1", 1.0),
        ("x = " + "0 ? 2 : " * 1000 + "3", 3.0),
        ("x = " + "1 && " * 1600 + "1", 1.0),
        ("x = max(" + "1," * 4000 + "7)", 7.0),
    ],
)
def test_long_runs_are_not_deep(text: str, value: float) -> None:
    assert Formula.parse(text).evaluate(0.0, {}, PoolState()).variables["x"] == value


def evaluated_in_time(text: str, samples: dict[str, SampleSeries] | None = None) -> AutoScaleResult | None:
    begun = time.monotonic()
    result = refused = None
    try:
        result = Formula.parse(text).evaluate(0.0, samples or {}, PoolState())
    except FormulaSyntaxError as error:
        refused = error
    assert time.monotonic() - begun < SECONDS
    if refused is None:
        assert result is not None
        assert result.results
    else:
        assert min(refused.line, refused.column) >= 1
    return result


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("v = [1,2];" + "v = vec(v,v,v,v,v,v,v,v,v,v);" * 90, "a vector of more than 10000 numbers is too long"),
        (
            "v = [1,2];" + "v = vec(v,v,v,v,v,v,v,v,v,v);" * 3 + "".join(f"a = std({'v,' * 30}v);" for _ in range(80)),
            "a vector of more than 10000 numbers",
        ),
        (
            "v = [1,2];" + "v = vec(v,v,v,v,v,v,v,v,v,v);" * 3 + "w = v" + " + v" * 1500,
            "the formula takes more than 500000 steps",
        ),
        (
            "".join("v = $ActiveTasks.GetSample(TimeInterval_Year, 0);" for _ in range(95)),
            "takes more than 500000 steps",
        ),
    ],
)
def test_work_is_bounded(text: str, told: str) -> None:
    many = {"$ActiveTasks": SampleSeries(tuple((-10_000.0 + number, 1.0) for number in range(9_000)))}
    result = evaluated_in_time(text, many)
    assert result is not None
    assert result.error is not None
    assert told in result.error.values[0][1]


def test_more_samples_than_a_vector_holds() -> None:
    many = {"$ActiveTasks": SampleSeries(tuple((-20_000.0 + number, 1.0) for number in range(20_000)))}
    for call in ("GetSample(20000)", "GetSample(TimeInterval_Day)"):
        result = evaluated_in_time(f"x = $ActiveTasks.{call}", many)
        assert result is not None
        assert result.error is not None
        assert "more than 10000 samples are too many" in result.error.values[0][1]


@settings(max_examples=300)
@given(st.text(max_size=200))
@example("\ud800")
@example('x = "\x00"')
def test_any_text_is_read_or_refused(text: str) -> None:
    evaluated_in_time(text)


_PIECES = st.sampled_from(
    [
        *"()[];,.?:+-*/<>=!",
        *("==", "!=", "<=", ">=", "&&", "||", " ", "\n", "//", '"', '"a"', "0", "1", "2.5", "1e308", "x", "$y", "x = "),
        *("$TargetDedicatedNodes = ", "$NodeDeallocationOption = ", "requeue", "$ActiveTasks", ".GetSample(1)"),
        *(
            ".GetSample(TimeInterval_Hour, 50)",
            ".hour",
            ".Count()",
            "TimeInterval_Year",
            "time()",
            "time(",
            "max(",
            "vec(",
        ),
        *("val(", "percentile(", "std(", "lg(", "stop()", "rand()", "[1,2,3]", 'time("2026-11-22")'),
    ]
)


@settings(max_examples=500)
@given(st.lists(_PIECES, max_size=60).map("".join))
def test_any_pieces_of_the_language_are_read_or_refused(text: str) -> None:
    evaluated_in_time(text, {"$ActiveTasks": SampleSeries(((0.0, 1.0),))})


_expressions = st.recursive(
    st.sampled_from(
        ["1", "0", "2.5", "x", '"a"', "[1,2]", "[]", "TimeInterval_Year", "time()", "$ActiveTasks", "requeue"]
    ),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "<", "==", "&&", "||"]), inner).map(" ".join),
        st.tuples(inner, inner, inner).map(lambda three: "({} ? {} : {})".format(*three)),
        st.tuples(
            st.sampled_from(["max", "vec", "lg", "val", "std", "time", "round"]), st.lists(inner, max_size=3)
        ).map(lambda call: f"{call[0]}({', '.join(call[1])})"),
        st.tuples(st.sampled_from("-!"), inner).map(lambda pair: f"{pair[0]}({pair[1]})"),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]})[{pair[1]}]"),
        inner.map(lambda text: f"({text}).GetSample(1)"),
    ),
    max_leaves=15,
)


@settings(max_examples=500)
@given(st.lists(_expressions, min_size=1, max_size=4))
def test_any_expression_ends_in_a_value_or_a_told_error(expressions: list[str]) -> None:
    text = ";".join(f"x = {expression}" for expression in expressions)
    result = evaluated_in_time(text, {"$ActiveTasks": SampleSeries(((0.0, 1.0),))})
    if result is not None and result.error is not None:
        assert result.error.values[0][1].startswith("Line 1, Col ")
