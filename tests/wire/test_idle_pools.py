"""Pools as this package makes them, on a service whose time runs faster: their nodes at once, and none when idle."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m

from airflow_batchwrap.config import PoolConfig
from airflow_batchwrap.hooks.models import pool_options
from airflow_batchwrap.hooks.views import NodeView, PoolView, judge_pool

if TYPE_CHECKING:
    from tests.support.wire import Services, Wire

LONG = timedelta(hours=40)  # two minutes here: no test waits for that


@pytest.fixture(scope="module")
def fast(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Wire:
    """A service on which five minutes pass in a quarter of a second."""
    data: Path = tmp_path_factory.mktemp("idle")
    return services(data / "data", "--time-scale", "1200", "--quota", "6")


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
    # One task is enough for all of them, and it works longer than the idle time without losing its node.
    job, gate = fast.job(name), tmp_path / "gate"
    task = fast.add(job, f"/bin/sh -c 'until [ -e {gate} ]; do sleep 0.05; done'")
    fast.state(job, task, "running")
    grown = fast.client.get_pool(name).auto_scale_run
    fast.until(lambda: view(fast, name).present == (2, 1))
    assert grown is not None

    def evaluated_since() -> bool:
        last = fast.client.get_pool(name).auto_scale_run
        return last is not None and last.timestamp > grown.timestamp + timedelta(seconds=1)  # 20 minutes

    fast.until(evaluated_since)
    assert view(fast, name).present == (2, 1)
    gate.touch()
    done = fast.state(job, task, "completed")
    assert done.execution_info is not None
    assert (done.execution_info.result, done.execution_info.requeue_count) == ("success", 0)
    fast.nodes(name, 0)
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
    assert whole.answer == "failed"
    assert "AccountCoreQuotaReached" in whole.why
    assert "6 of the 9 nodes" in whole.why
    gone(fast, name)
