"""Pools as this package makes them, on a service whose time runs faster: their nodes at once, and none when idle."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m

from airflow_batchwrap.config import PoolConfig
from airflow_batchwrap.exceptions import NoCapacity
from airflow_batchwrap.hooks.models import pool_options
from airflow_batchwrap.hooks.views import NodeView, PoolView, WaitView, judge_pool, judge_wait

if TYPE_CHECKING:
    from tests.support.wire import Services, Wire

LONG = timedelta(hours=40)  # two minutes here: no test waits for that


@pytest.fixture(scope="module")
def fast(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Wire:
    """A service on which five minutes pass in a quarter of a second."""
    data: Path = tmp_path_factory.mktemp("idle")
    return services(data / "data", "--time-scale", "1200", "--quota", "cores=12")


def made(wire: Wire, config: dict[str, Any], nodes_within: timedelta) -> str:
    """A pool as CreatePoolOperator makes it."""
    name = wire.name("own")
    wire.client.create_pool(
        pool_options(name, PoolConfig.from_dict(config), "batch.node.ubuntu 24.04", {}, nodes_within)
    )
    return name


def targets(wire: Wire, name: str) -> tuple[int | None, int | None]:
    """The pool's targets, dedicated and spot."""
    pool = wire.client.get_pool(name)
    return pool.target_dedicated_nodes, pool.target_low_priority_nodes


def view(wire: Wire, name: str) -> PoolView:
    """The pool as the waits see it."""
    return PoolView.of(wire.client.get_pool(name), [NodeView.of(node) for node in wire.client.list_nodes(name)])


def gone(wire: Wire, *pools: str) -> None:
    """Delete pools."""
    for name in pools:
        wire.client.begin_delete_pool(name, polling_interval=0).wait()


def fresh_no_more(wire: Wire, name: str) -> None:
    """Let the time pass in which the pool needs no work."""
    own = view(wire, name).formula
    assert own is not None
    again = own.resized(own.dedicated, own.spot, timedelta(minutes=-own.idle_minutes))
    wire.client.enable_pool_auto_scale(name, m.BatchPoolEnableAutoScaleOptions(auto_scale_formula=again.text))


def gated(wire: Wire, job: str, gate: Path, **more: Any) -> str:
    """A running task that ends once a file is there."""
    return wire.add(job, f"/bin/sh -c 'until [ -e {gate} ]; do sleep 0.05; done'", **more)


def evaluations(wire: Wire, name: str, minutes: float) -> None:
    """Let some time of the service's pass, in which the pool's formula is evaluated."""

    def last() -> datetime:
        run = wire.client.get_pool(name).auto_scale_run
        assert run is not None
        return run.timestamp

    before = last()
    wire.until(lambda: last() > before + timedelta(minutes=minutes) / 1200)


def test_it_has_its_nodes_at_once_none_when_idle_and_all_again_with_new_work(fast: Wire, tmp_path: Path) -> None:
    name = made(fast, {"target_dedicated_nodes": 2, "target_spot_nodes": 1, "idle_minutes": 5}, LONG)
    assert targets(fast, name) == (2, 1)  # by the evaluation that comes with its creation
    nodes = fast.nodes(name, 3, "idle")
    assert sorted(bool(node.is_dedicated) for node in nodes) == [False, True, True]
    seen = view(fast, name)
    assert seen.formula is not None
    assert (seen.formula.dedicated, seen.formula.spot) == seen.targets == seen.present == (2, 1)
    assert judge_pool(seen).answer == "ready"
    fresh_no_more(fast, name)
    fast.nodes(name, 0)
    emptied = view(fast, name)
    assert (emptied.target, judge_pool(emptied).answer) == (0, "ready")
    # They work longer than the idle time without losing their nodes.
    job, gate = fast.job(name), tmp_path / "gate"
    tasks = [gated(fast, job, gate) for _ in range(3)]
    for task in tasks:
        fast.state(job, task, "running")
    assert view(fast, name).present == (2, 1)
    evaluations(fast, name, 20)
    assert view(fast, name).present == (2, 1)
    gate.touch()
    for task in tasks:
        done = fast.state(job, task, "completed")
        assert done.execution_info is not None
        assert (done.execution_info.result, done.execution_info.requeue_count) == ("success", 0)
    fast.nodes(name, 0)
    gone(fast, name)


def test_nodes_go_while_stragglers_run_and_come_back_with_new_work(fast: Wire, tmp_path: Path) -> None:
    name = made(fast, {"target_dedicated_nodes": 4, "idle_minutes": 5}, LONG)
    fast.nodes(name, 4, "idle")
    job, gate, others = fast.job(name), tmp_path / "gate", tmp_path / "others"
    straggler, *short = (gated(fast, job, path) for path in (gate, others, others, others))
    for task in (straggler, *short):
        fast.state(job, task, "running")
    node = fast.client.get_task(job, straggler).node_info
    assert node is not None
    fresh_no_more(fast, name)
    evaluations(fast, name, 20)
    assert targets(fast, name) == (4, 0)  # there is work for all of them
    others.touch()
    (left,) = fast.nodes(name, 1, "running")
    assert left.id == node.node_id
    assert targets(fast, name) == (1, 0)
    # The pool is steady, so that new work is not kept waiting by the straggler. A step that comes is not either.
    assert judge_wait(WaitView("active", pool=view(fast, name))) is None
    for _ in range(2):
        gated(fast, job, gate)
    fast.nodes(name, 3, "running")
    gate.touch()
    done = fast.state(job, straggler, "completed")
    assert done.execution_info is not None
    assert (done.execution_info.result, done.execution_info.requeue_count) == ("success", 0)
    fast.nodes(name, 0)
    gone(fast, name)


def test_a_pool_wakes_to_what_is_needed_whatever_slots_its_tasks_take(fast: Wire, tmp_path: Path) -> None:
    # A divisor by slots, 4 here, would leave both on one node, one after the other.
    name = made(fast, {"target_dedicated_nodes": 4, "idle_minutes": 5, "task_slots_per_node": 4}, timedelta(0))
    fast.nodes(name, 0)
    job, gate = fast.job(name), tmp_path / "gate"
    for _ in range(2):
        gated(fast, job, gate, required_slots=4)
    fast.nodes(name, 2, "running")
    assert targets(fast, name) == (2, 0)
    gate.touch()
    fast.nodes(name, 0)
    gone(fast, name)


def test_one_task_on_many_nodes_brings_all_of_a_pool_for_such(fast: Wire, tmp_path: Path) -> None:
    config = {"target_dedicated_nodes": 3, "idle_minutes": 5, "inter_node_communication": True}
    name = made(fast, config, timedelta(0))
    fast.nodes(name, 0)
    several = m.MultiInstanceSettings(number_of_instances=3, coordination_command_line="/bin/true")
    job, gate = fast.job(name), tmp_path / "gate"
    task = gated(fast, job, gate, multi_instance_settings=several)
    fast.state(job, task, "running")
    evaluations(fast, name, 20)
    assert targets(fast, name) == (3, 0)
    gate.touch()
    fast.state(job, task, "completed")
    gone(fast, name)


def test_nodes_may_take_longer_to_come_than_the_pool_may_be_idle(fast: Wire) -> None:
    # A start task of 40 minutes: 2 s.
    config = {"idle_minutes": 5, "start_task": "sleep 2"}
    patient, hasty = (made(fast, config, within) for within in (LONG, timedelta(0)))
    fast.nodes(patient, 1, "idle")
    assert targets(fast, patient) == (1, 0)
    fast.nodes(hasty, 0)
    gone(fast, patient, hasty)


def test_a_pool_that_is_never_idle_has_no_formula(fast: Wire) -> None:
    name = made(fast, {"target_dedicated_nodes": 1, "idle_minutes": 0, "resize_timeout": "20 min"}, timedelta(0))
    fast.nodes(name, 1, "idle")
    pool = fast.client.get_pool(name)
    assert (pool.enable_auto_scale, pool.auto_scale_formula, pool.resize_timeout) == (
        False,
        None,
        timedelta(minutes=20),
    )
    gone(fast, name)


def test_a_part_of_the_nodes_is_enough_and_the_quota_is_told_where_it_is_not(fast: Wire) -> None:
    name = made(fast, {"target_dedicated_nodes": 9}, LONG)
    fast.nodes(name, 6, "idle")
    seen = view(fast, name)
    assert judge_pool(seen, 5).answer == "ready"
    whole = judge_pool(seen)
    assert (whole.answer, type(whole.error())) == ("short", NoCapacity)
    assert "AccountCoreQuotaReached" in whole.why
    assert "6 of the 9 nodes" in whole.why
    assert not whole.ask  # the formula goes on asking
    gone(fast, name)
