"""Pools that scale themselves, on services whose time runs faster."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

if TYPE_CHECKING:
    from tests.support.wire import Services, Wire

#: Nodes for what waits and what waited lately, none when idle.
IDLE_TO_ZERO = (
    "peak = max(0, $PendingTasks.GetSample(1), $PendingTasks.GetSample(TimeInterval_Minute * 15));"
    "$TargetDedicatedNodes = min(2, (peak + 1 - 1) / 1); $NodeDeallocationOption = taskcompletion;"
)


def code_of(error: HttpResponseError) -> str:
    """The error's code."""
    assert error.error is not None
    return str(error.error.code)


@pytest.fixture(scope="module")
def fast(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Wire:
    """A service on which five minutes pass in a fifth of a second."""
    data: Path = tmp_path_factory.mktemp("fast")
    return services(data / "data", "--time-scale", "1500")


def scaled(wire: Wire, formula: str, **more: Any) -> str:
    """A pool that scales itself."""
    name = wire.name("pool")
    options = wire.pool_options(
        name, target_dedicated_nodes=None, enable_auto_scale=True, auto_scale_formula=formula, **more
    )
    wire.client.create_pool(options)
    return name


def gone(wire: Wire, *pools: str) -> None:
    """Delete pools."""
    for name in pools:
        wire.client.begin_delete_pool(name, polling_interval=0).wait()


def test_new_pool_is_evaluated_at_once(wire: Wire) -> None:
    name = scaled(wire, "half = 2.9; $TargetDedicatedNodes = half; $TargetLowPriorityNodes = 1;")
    pool = wire.client.get_pool(name)
    assert pool.enable_auto_scale is True
    assert pool.auto_scale_formula is not None
    assert pool.auto_scale_evaluation_interval == datetime.timedelta(minutes=15)
    assert (pool.target_dedicated_nodes, pool.target_low_priority_nodes) == (2, 1)
    run = pool.auto_scale_run
    assert run is not None
    assert run.error is None
    assert run.results == ("$TargetDedicatedNodes=2;$TargetLowPriorityNodes=1;$NodeDeallocationOption=requeue;half=2.9")
    assert abs((run.timestamp - datetime.datetime.now(datetime.UTC)).total_seconds()) < 60
    wire.nodes(name, 3, "idle")
    gone(wire, name)


def test_first_sample_is_there_at_once(wire: Wire) -> None:
    name = scaled(wire, IDLE_TO_ZERO)
    run = wire.client.get_pool(name).auto_scale_run
    assert run is not None
    assert run.error is None
    assert run.results is not None
    assert run.results.startswith("$TargetDedicatedNodes=0;")
    assert run.results.endswith("peak=0")
    gone(wire, name)


def test_samples_see_the_pools_tasks_and_nodes(wire: Wire) -> None:
    name = wire.pool(1)
    job = wire.job(name)
    wire.state(job, wire.add(job, "/bin/sleep 60"), "running")
    for _ in range(3):
        wire.add(job, "/bin/true")
    wire.client.enable_pool_auto_scale(
        name,
        m.BatchPoolEnableAutoScaleOptions(
            auto_scale_formula="$TargetDedicatedNodes = $CurrentDedicatedNodes;"
            "active = $ActiveTasks.GetSample(1); running = $RunningTasks.GetSample(1);"
            "pending = $PendingTasks.GetSample(1); usable = $UsableNodeCount.GetSample(1);"
            "nodes = $CurrentDedicatedNodes.GetSample(1); failed = $FailedTasks.GetSample(1);"
            "slots = $TaskSlotsPerNode; preempted = $PreemptedNodeCount.GetSample(1);"
            "cpu = len($CPUPercent.GetSample(1));"
        ),
    )
    run = wire.client.get_pool(name).auto_scale_run
    assert run is not None
    assert run.error is None
    results = dict(pair.split("=") for pair in str(run.results).split(";"))
    assert results["active"] == "[3]"
    assert results["running"] == "[1]"
    assert results["pending"] == "[4]"
    assert results["usable"] == "[1]"
    assert results["nodes"] == "[1]"
    assert results["failed"] == "[0]"
    assert results["slots"] == "1"
    assert results["preempted"] == "[0]"
    assert results["cpu"] == "1"
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    gone(wire, name)


def test_pool_grows_with_its_tasks_and_goes_to_zero_after_them(fast: Wire) -> None:
    name = scaled(fast, IDLE_TO_ZERO, auto_scale_evaluation_interval=datetime.timedelta(minutes=5))
    assert fast.client.get_pool(name).target_dedicated_nodes == 0
    job = fast.job(name)
    tasks = [fast.add(job, "/bin/sleep 0.5") for _ in range(4)]
    fast.until(lambda: fast.client.get_pool(name).target_dedicated_nodes == 2, 30)
    for task in tasks:
        done = fast.state(job, task, "completed")
        assert done.execution_info is not None
        # taskcompletion: shrinking took no node away from a task.
        assert (done.execution_info.result, done.execution_info.requeue_count) == ("success", 0)
    fast.nodes(name, 0)
    run = fast.client.get_pool(name).auto_scale_run
    assert run is not None
    assert "$NodeDeallocationOption=taskcompletion" in str(run.results)
    fast.client.begin_delete_job(job, polling_interval=0).wait()
    gone(fast, name)


def test_evaluation_says_what_would_be_and_changes_nothing(wire: Wire) -> None:
    name = scaled(wire, "$TargetDedicatedNodes = 0;")
    run = wire.client.evaluate_pool_auto_scale(
        name, m.BatchPoolEvaluateAutoScaleOptions(auto_scale_formula="a = 3; $TargetDedicatedNodes = a * 2;")
    )
    assert run.results == ("$TargetDedicatedNodes=6;$TargetLowPriorityNodes=0;$NodeDeallocationOption=requeue;a=3")
    assert run.error is None
    wrong = wire.client.evaluate_pool_auto_scale(
        name, m.BatchPoolEvaluateAutoScaleOptions(auto_scale_formula="$TargetDedicatedNodes = unknown;")
    )
    assert wrong.error is not None
    assert wrong.error.code == "AutoScalingFormulaEvaluationError"
    assert wrong.error.error_values
    pool = wire.client.get_pool(name)
    assert (pool.target_dedicated_nodes, pool.auto_scale_formula) == (0, "$TargetDedicatedNodes = 0;")
    with pytest.raises(HttpResponseError) as caught:
        wire.client.evaluate_pool_auto_scale(
            name, m.BatchPoolEvaluateAutoScaleOptions(auto_scale_formula="$TargetDedicatedNodes = (;")
        )
    assert (caught.value.status_code, code_of(caught.value)) == (400, "AutoScalingFormulaSyntaxError")
    gone(wire, name)


def test_evaluation_needs_autoscale(wire: Wire, pool: str) -> None:
    with pytest.raises(HttpResponseError) as caught:
        wire.client.evaluate_pool_auto_scale(
            pool, m.BatchPoolEvaluateAutoScaleOptions(auto_scale_formula="$TargetDedicatedNodes = 1;")
        )
    assert caught.value.status_code == 409
    assert "autoscale" in str(caught.value)


def test_failed_evaluation_leaves_the_pool_and_is_shown(wire: Wire) -> None:
    name = scaled(wire, "$TargetDedicatedNodes = avg($CPUPercent.GetSample(TimeInterval_Minute * 10, 70));")
    pool = wire.client.get_pool(name)
    assert pool.auto_scale_run is not None
    assert pool.auto_scale_run.error is not None
    assert pool.auto_scale_run.error.code == "InsufficientSampleData"
    assert (pool.target_dedicated_nodes, pool.allocation_state) == (0, "steady")
    gone(wire, name)


def test_resize_is_refused_until_autoscale_is_disabled(wire: Wire) -> None:
    name = scaled(wire, "$TargetDedicatedNodes = 1;")
    wire.nodes(name, 1, "idle")
    with pytest.raises(HttpResponseError) as caught:
        wire.client.begin_resize_pool(name, m.BatchPoolResizeOptions(target_dedicated_nodes=2))
    assert caught.value.status_code == 409
    assert "autoscale" in str(caught.value)
    wire.client.disable_pool_auto_scale(name)
    pool = wire.client.get_pool(name)
    assert (pool.enable_auto_scale, pool.auto_scale_formula, pool.auto_scale_run) == (False, None, None)
    assert (pool.target_dedicated_nodes, pool.current_dedicated_nodes) == (1, 1)
    wire.client.begin_resize_pool(name, m.BatchPoolResizeOptions(target_dedicated_nodes=0), polling_interval=0).wait()
    wire.nodes(name, 0)
    gone(wire, name)


def test_enabling_applies_at_once_and_not_twice_within_half_a_minute(wire: Wire) -> None:
    name = wire.pool(1)
    before = wire.client.get_pool(name).etag
    with pytest.raises(HttpResponseError) as caught:
        wire.client.enable_pool_auto_scale(name, m.BatchPoolEnableAutoScaleOptions())
    assert caught.value.status_code == 400
    options = m.BatchPoolEnableAutoScaleOptions(
        auto_scale_formula="$TargetDedicatedNodes = 2;", auto_scale_evaluation_interval=datetime.timedelta(hours=1)
    )
    wire.client.enable_pool_auto_scale(name, options)
    wire.nodes(name, 2, "idle")
    pool = wire.client.get_pool(name)
    assert pool.auto_scale_evaluation_interval == datetime.timedelta(hours=1)
    assert pool.etag != before
    with pytest.raises(HttpResponseError) as caught:
        wire.client.enable_pool_auto_scale(name, options)
    assert (caught.value.status_code, code_of(caught.value)) == (503, "TooManyEnableAutoScaleRequests")
    gone(wire, name)


def test_formula_and_interval_can_be_changed_one_by_one(fast: Wire) -> None:
    name = scaled(fast, "$TargetDedicatedNodes = 1;")
    fast.nodes(name, 1, "idle")

    def enable(**changes: Any) -> bool:
        try:
            fast.client.enable_pool_auto_scale(name, m.BatchPoolEnableAutoScaleOptions(**changes))
        except HttpResponseError as error:
            assert code_of(error) in ("TooManyEnableAutoScaleRequests", "PoolBeingResized")  # noqa: PT017
            return False
        return True

    fast.until(lambda: enable(auto_scale_evaluation_interval=datetime.timedelta(hours=2)))
    pool = fast.client.get_pool(name)
    assert pool.auto_scale_formula == "$TargetDedicatedNodes = 1;"
    assert pool.auto_scale_evaluation_interval == datetime.timedelta(hours=2)
    fast.until(lambda: enable(auto_scale_formula="$TargetDedicatedNodes = 0;"))
    fast.nodes(name, 0)
    assert fast.client.get_pool(name).auto_scale_evaluation_interval == datetime.timedelta(hours=2)
    gone(fast, name)


def test_enabling_waits_for_a_steady_pool(wire: Wire) -> None:
    name = wire.pool(1)
    job = wire.job(name)
    wire.state(job, wire.add(job, "/bin/sleep 60"), "running")
    options = m.BatchPoolResizeOptions(target_dedicated_nodes=0, node_deallocation_option="taskcompletion")
    wire.client.begin_resize_pool(name, options)
    with pytest.raises(HttpResponseError) as caught:
        wire.client.enable_pool_auto_scale(
            name, m.BatchPoolEnableAutoScaleOptions(auto_scale_formula="$TargetDedicatedNodes = 2;")
        )
    assert (caught.value.status_code, code_of(caught.value)) == (409, "PoolBeingResized")
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    gone(wire, name)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"target_dedicated_nodes": 1}, "InvalidPropertyValue"),
        ({"target_low_priority_nodes": 0}, "InvalidPropertyValue"),
        ({"auto_scale_formula": None}, "InvalidAutoScalingSettings"),
        ({"auto_scale_formula": "$TargetDedicatedNodes = "}, "AutoScalingFormulaSyntaxError"),
        ({"auto_scale_formula": "a = 1;" * 1500}, "AutoScaleFormulaTooLong"),
        ({"auto_scale_evaluation_interval": datetime.timedelta(minutes=4)}, "InvalidPropertyValue"),
        ({"auto_scale_evaluation_interval": datetime.timedelta(hours=169)}, "InvalidPropertyValue"),
        ({"enable_auto_scale": False}, "InvalidAutoScalingSettings"),
    ],
)
def test_settings_that_cannot_be(wire: Wire, changes: dict[str, Any], code: str) -> None:
    name = wire.name("pool")
    options = wire.pool_options(
        name,
        target_dedicated_nodes=None,
        enable_auto_scale=True,
        auto_scale_formula="$TargetDedicatedNodes = 1;",
    )
    for key, value in changes.items():
        setattr(options, key, value)
    with pytest.raises(HttpResponseError) as caught:
        wire.client.create_pool(options)
    assert (caught.value.status_code, code_of(caught.value)) == (400, code)
    assert not [pool for pool in wire.client.list_pools() if pool.id == name]


def test_autoscale_goes_on_after_a_restart(services: Services, tmp_path: Path) -> None:
    wire = services(tmp_path / "data", "--time-scale", "1500")
    name = scaled(wire, IDLE_TO_ZERO, auto_scale_evaluation_interval=datetime.timedelta(minutes=5))
    first = wire.client.get_pool(name).auto_scale_run
    assert first is not None
    wire.service.stop()
    wire = services(tmp_path / "data", "--time-scale", "1500")
    job = wire.job(name)
    wire.run(job, "/bin/true")
    last = wire.client.get_pool(name).auto_scale_run
    assert last is not None
    assert last.timestamp > first.timestamp
    wire.service.stop()
