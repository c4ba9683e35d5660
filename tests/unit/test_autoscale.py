"""Whole formulas: those that people use, and what comes back to the client."""

from __future__ import annotations

import pytest

from airflow_batchwrap.local.autoscale import (
    EVALUATION_ERROR,
    INSUFFICIENT_SAMPLE_DATA,
    AutoScaleResult,
    Formula,
    PoolState,
    SampleSeries,
)

# A Sunday.
NOW = 1_795_341_600.0
NOW_TEXT = "2026-11-22T10:00:00.000Z"
MONDAY = NOW + 86_400

SCALE_TO_ZERO = """
peak = max(0, $PendingTasks.GetSample(1), $PendingTasks.GetSample(TimeInterval_Minute * 15));
$TargetDedicatedNodes = min(8, (peak + 4 - 1) / 4);
$NodeDeallocationOption = taskcompletion;
"""
OFFICE_HOURS = """
$clock = time();
$work = $clock.hour >= 8 && $clock.hour < 18;
$weekday = $clock.weekday >= 1 && $clock.weekday <= 5;
$TargetDedicatedNodes = $work && $weekday ? 20:10;
"""
BY_TASKS = """
// The last 15 minutes count only where most samples are there.
share = $ActiveTasks.GetSamplePercent(TimeInterval_Minute * 15);
tasks = share < 70 ? max(0, $ActiveTasks.GetSample(1))
                   : max($ActiveTasks.GetSample(1), avg($ActiveTasks.GetSample(TimeInterval_Minute * 15)));
wanted = tasks > 0 ? tasks : max(0, $TargetDedicatedNodes / 2);
$TargetDedicatedNodes = max(0, min(wanted, 20)); // never above the cap
$NodeDeallocationOption = taskcompletion;
"""
START_SIZE = """
$TargetDedicatedNodes = 4;
age = time() - time("Sun, 22 Nov 2026 09:30:00 GMT");
span = TimeInterval_Minute * 60;
start = TimeInterval_Minute * 10;
share = 50;
$TargetDedicatedNodes = (age > start
  ? (max($RunningTasks.GetSample(span, share), $ActiveTasks.GetSample(span, share)) == 0 ? 0 : $TargetDedicatedNodes)
  : 4);
"""


def every30(*values: float, until: float = NOW) -> SampleSeries:
    first = until - 30 * (len(values) - 1)
    return SampleSeries(tuple((first + 30 * place, value) for place, value in enumerate(values)))


def run(text: str, pool: PoolState = PoolState(), now: float = NOW, **series: SampleSeries) -> AutoScaleResult:  # noqa: B008
    return Formula.parse(text).evaluate(now, {f"${name}": found for name, found in series.items()}, pool)


@pytest.mark.parametrize(
    ("pending", "nodes"),
    [((), 0), ((0,), 0), ((1,), 1), ((4,), 1), ((5,), 2), ((100,), 8), ((9, 0, 0), 3), ((9, *[0] * 30), 0)],
)
def test_scale_to_zero_follows_the_peak_of_a_quarter_of_an_hour(pending: tuple[float, ...], nodes: int) -> None:
    result = run(SCALE_TO_ZERO, PoolState(target_dedicated_nodes=5), PendingTasks=every30(*pending))
    assert result.error is None
    assert (result.target_dedicated_nodes, result.target_low_priority_nodes) == (nodes, 0)
    assert result.node_deallocation_option == "taskcompletion"


def test_idle_guard_holds_a_fresh_pool_at_its_size() -> None:
    guarded = 'age = time() - time("2026-11-22T09:50:00Z");' + SCALE_TO_ZERO.replace(
        "min(8,", "age < TimeInterval_Minute * 15 ? 3 : min(8,"
    )
    assert run(guarded).target_dedicated_nodes == 3
    assert run(guarded, now=NOW + 300).target_dedicated_nodes == 0


@pytest.mark.parametrize(("now", "nodes"), [(NOW, 10), (MONDAY, 20), (MONDAY + 9 * 3600, 10)])
def test_office_hours(now: float, nodes: int) -> None:
    assert run(OFFICE_HOURS, now=now).target_dedicated_nodes == nodes


@pytest.mark.parametrize(
    ("active", "target", "nodes"),
    [
        ((), 8, 4),
        ((7,), 0, 7),
        ((0,) * 30, 9, 4),
        ((3,) * 30, 0, 3),
        ((12,) * 15 + (0,) * 15, 0, 6),
        ((90,) * 30, 0, 20),
    ],
)
def test_by_tasks_with_a_guard_for_missing_samples(active: tuple[float, ...], target: int, nodes: int) -> None:
    pool = PoolState(target_dedicated_nodes=target)
    assert run(BY_TASKS, pool, ActiveTasks=every30(*active)).target_dedicated_nodes == nodes


def test_initial_size_then_zero_when_nothing_ran_for_an_hour() -> None:
    idle, busy = every30(*[0] * 120), every30(*[0] * 100, *[1] * 20)
    assert run(START_SIZE, RunningTasks=idle, ActiveTasks=idle).target_dedicated_nodes == 0
    assert run(START_SIZE, RunningTasks=busy, ActiveTasks=idle).target_dedicated_nodes == 4
    assert run(START_SIZE, now=NOW - 1500).target_dedicated_nodes == 4
    error = run(START_SIZE, PoolState(target_dedicated_nodes=6)).error
    assert error is not None
    assert error.code == INSUFFICIENT_SAMPLE_DATA


def test_preempted_nodes_are_replaced_by_dedicated_ones() -> None:
    result = run(
        "most = 25; $TargetDedicatedNodes = min(most, $PreemptedNodeCount.GetSample(180 * TimeInterval_Second));"
        "$TargetLowPriorityNodes = min(most, most - $TargetDedicatedNodes)",
        PreemptedNodeCount=every30(*[4] * 6),
    )
    assert (result.target_dedicated_nodes, result.target_low_priority_nodes) == (4, 21)


def test_cpu_and_current_nodes() -> None:
    text = (
        "n = min($CPUPercent.GetSample(TimeInterval_Minute * 10)) > 0.7 ? $CurrentDedicatedNodes * 1.1"
        " : $CurrentDedicatedNodes; $TargetDedicatedNodes = min(400, n)"
    )
    pool = PoolState(current_dedicated_nodes=20)
    assert run(text, pool, CPUPercent=every30(*[0.9] * 20)).target_dedicated_nodes == 22
    assert run(text, pool, CPUPercent=every30(*[0.9] * 19, 0.1)).target_dedicated_nodes == 20


# What the real service answered to Azure's own clients (recorded in their tests), the pool's target being 2.
@pytest.mark.parametrize(
    ("text", "results", "code"),
    [
        (
            "$TargetDedicatedNodes=3",
            "$TargetDedicatedNodes=3;$TargetLowPriorityNodes=0;$NodeDeallocationOption=requeue",
            None,
        ),
        (
            "$something_useless",
            "$TargetDedicatedNodes=2;$TargetLowPriorityNodes=0;$NodeDeallocationOption=requeue",
            EVALUATION_ERROR,
        ),
        (
            "something_useless",
            "$TargetDedicatedNodes=2;$TargetLowPriorityNodes=0;$NodeDeallocationOption=requeue",
            EVALUATION_ERROR,
        ),
    ],
)
def test_results_as_recorded(text: str, results: str, code: str | None) -> None:
    result = run(text, PoolState(target_dedicated_nodes=2))
    assert result.results == results
    assert (result.error and result.error.code) == code


def test_results_have_own_variables_in_order_and_with_the_dollar_sign_they_were_given() -> None:
    result = run('b = 1; $z = time(); a = 0.5; $a = [1, 2.5]; $NodeDeallocationOption = terminate; text = "x"')
    assert result.results == (
        "$TargetDedicatedNodes=0;$TargetLowPriorityNodes=0;$NodeDeallocationOption=terminate;"
        f"$a=[1,2.5];$z={NOW_TEXT};a=0.5;b=1;text=x"
    )
    assert result.timestamp == NOW


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("5", "5"),
        ("100.0", "100"),
        ("-0.0", "0"),
        ("1 / 3", "0.3333333333333333"),
        ("0.1 + 0.2", "0.30000000000000004"),
        ("0.0001", "0.0001"),
        ("0.00001", "1E-05"),
        ("123456789012345", "123456789012345"),
        ("1.5e15", "1.5E+15"),
        ("-1e300", "-1E+300"),
        ("[1, -2.5]", "[1,-2.5]"),
        ("[]", "[]"),
        ("taskcompletion", "taskcompletion"),
        ('time("1999-12-31")', "1999-12-31T00:00:00.000Z"),
        ('time("2026-11-22T10:00:00.1239Z")', "2026-11-22T10:00:00.123Z"),
        ("TimeInterval_Minute * 15", "00:15:00"),
        ("TimeInterval_Day * 1.5", "1.12:00:00"),
        ("-TimeInterval_100ns", "-00:00:00.0000001"),
        ("TimeInterval_Zero", "00:00:00"),
    ],
)
def test_how_each_type_is_written(expression: str, shown: str) -> None:
    result = run(f"x = {expression}")
    assert result.error is None
    assert result.results.endswith(f";x={shown}")


@pytest.mark.parametrize(("value", "nodes"), [("2.9", 2), ("0.99", 0), ("-3", 0), ("7", 7), ("2147483647", 2**31 - 1)])
def test_targets_are_whole_and_not_negative(value: str, nodes: int) -> None:
    result = run(f"$TargetLowPriorityNodes = {value};")
    assert result.error is None
    assert result.target_low_priority_nodes == nodes
    assert f";$TargetLowPriorityNodes={nodes};" in result.results


def test_an_impossible_target_is_an_error_at_its_assignment() -> None:
    result = run("x = 1;\n  $TargetDedicatedNodes = 1e10", PoolState(target_dedicated_nodes=1))
    assert result.target_dedicated_nodes == 1
    assert result.error is not None
    assert result.error.values[0][1].startswith("Line 2, Col 3: $TargetDedicatedNodes cannot be 1e+10")


def test_short_names_of_targets() -> None:
    assert run("$TargetDedicated = 3; x = $TargetDedicatedNodes + 1").variables["x"] == 4
    assert run("$TargetDedicatedNodes = 5; $TargetDedicated = 3").target_dedicated_nodes == 5
    assert run("$TargetLowPriority = 3").target_low_priority_nodes == 3
    assert run("x = $CurrentDedicated", PoolState(current_dedicated_nodes=6)).variables["x"] == 6


def test_the_pool_as_it_is_can_be_read_and_stays_unless_assigned() -> None:
    pool = PoolState(4, 5, 6, 7, "terminate", 8)
    result = run(
        "a = $TargetDedicatedNodes; b = $TargetLowPriorityNodes; c = $CurrentDedicatedNodes;"
        "d = $CurrentLowPriorityNodes; e = $TaskSlotsPerNode; f = $NodeDeallocationOption == terminate",
        pool,
    )
    assert [result.variables[name] for name in "abcdef"] == [4, 5, 6, 7, 8, 1]
    assert (result.target_dedicated_nodes, result.target_low_priority_nodes) == (4, 5)
    assert result.node_deallocation_option == "terminate"


def test_an_error_leaves_the_pool_alone_and_shows_what_was_known() -> None:
    result = run(
        "$TargetDedicatedNodes = 9;\n$NodeDeallocationOption = terminate;\nx = 1;\r\ny = 1 / (x - 1);\nz = 3",
        PoolState(target_dedicated_nodes=2),
    )
    assert result.target_dedicated_nodes == 2
    assert result.node_deallocation_option == "requeue"
    assert result.results == "$TargetDedicatedNodes=2;$TargetLowPriorityNodes=0;$NodeDeallocationOption=requeue;x=1"
    assert result.error is not None
    assert result.error.as_wire() == {
        "code": EVALUATION_ERROR,
        "message": "The formula could not be evaluated",
        "values": [{"name": "Message", "value": "Line 4, Col 7: division by zero"}],
    }


def test_stop_ends_with_what_there_is() -> None:
    result = run("$TargetDedicatedNodes = 4; x = 1 > 0 ? stop() : 2; $TargetDedicatedNodes = 1 / 0")
    assert result.error is None
    assert result.target_dedicated_nodes == 4
    assert "x" not in result.variables


def test_only_the_chosen_branch_is_evaluated() -> None:
    hour = "(TimeInterval_Hour)"
    text = f"x = $ActiveTasks.GetSamplePercent{hour} < 70 ? -1 : avg($ActiveTasks.GetSample{hour})"
    assert run(text).variables["x"] == -1
    assert run("x = 0 && 1 / 0; y = 1 || 1 / 0").error is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("$PendingTasks = 1", "$PendingTasks is read-only"),
        ("TimeInterval_Hour = 1", "TimeInterval_Hour is read-only"),
        ("requeue = 1", "requeue is read-only"),
        ("$NodeDeallocationOption = 1", "one of requeue, terminate, taskcompletion, retaineddata"),
        ('$NodeDeallocationOption = "later"', "one of requeue, terminate, taskcompletion, retaineddata"),
        ("$TargetDedicatedNodes = time()", "is a double and cannot be a timestamp"),
        ("$TargetDedicatedNodes = [1]", "is a double and cannot be a doubleVec: take one number"),
        ("x = $targetdedicatednodes", "did you mean $TargetDedicatedNodes?"),
        ("x = X", "X has no value: assign to it first"),
        ("x = 1; y = X", "did you mean x?"),
        ("x = foo(1)", "there is no function foo"),
        ("x = $ActiveTasks", "$ActiveTasks has no sample yet"),
    ],
)
def test_mistakes_are_told_with_their_remedy(text: str, told: str) -> None:
    error = run(text).error
    assert error is not None
    assert told in error.values[0][1]


def test_a_formula_can_be_evaluated_again_and_gives_the_same() -> None:
    formula = Formula.parse("x = rand(); y = rand(); t = time()")
    first, second = (formula.evaluate(NOW, {}, PoolState()) for _ in range(2))
    assert first == second
    assert first.variables["x"] != first.variables["y"]
    assert formula.evaluate(NOW + 1, {}, PoolState()).variables != first.variables
    assert formula.evaluate(NOW, {}, PoolState(), rand=lambda: 0.25).variables["x"] == 0.25
