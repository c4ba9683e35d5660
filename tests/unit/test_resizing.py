"""What follows from a look at a pool that is being resized."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from airflow_batchwrap.exceptions import NoCapacity, PoolError
from airflow_batchwrap.hooks.autoscale import ScaleFormula
from airflow_batchwrap.hooks.resizing import Resize, judge_resize
from airflow_batchwrap.hooks.views import NodeView, PoolView

OWN = ScaleFormula.new(2, 1, 15, timedelta(minutes=30))
WANTED = Resize("p", 2, 1)


def pool(
    targets: tuple[int, int] = (2, 1), present: tuple[int, int] | None = None, usable: int | None = None, **more: object
) -> PoolView:
    """A pool with as many nodes as it asks for, all of them idle, but for what is said."""
    there = targets if present is None else present
    idle = sum(there) if usable is None else usable
    nodes = tuple(NodeView(f"n{index}", "idle" if index < idle else "starting") for index in range(sum(there)))
    view = PoolView("p", "active", "steady", sum(targets), targets=targets, present=there, nodes=nodes)
    return replace(view, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("view", "answer"),
    [
        (pool(), "ready"),
        (pool((1, 0)), "ask"),
        (pool((1, 0), allocation_state="resizing"), "wait"),
        (pool(present=(0, 0), allocation_state="resizing"), "wait"),
        (pool(usable=2), "wait"),
        (pool(present=(3, 1), allocation_state="resizing"), "wait"),
        # By our formula: the numbers in it count, and then the evaluation.
        (pool(autoscale=True, formula=OWN), "ready"),
        (pool(autoscale=True, formula=OWN.resized(5, 0, timedelta(0))), "ask"),
        (pool((0, 0), autoscale=True, formula=OWN, evaluated=True), "wait"),
        (pool(present=(3, 1), autoscale=True, formula=OWN), "wait"),
    ],
)
def test_how_far_it_is(view: PoolView, answer: str) -> None:
    assert judge_resize(view, WANTED).answer == answer


def test_a_part_is_enough_where_it_was_asked_for() -> None:
    assert judge_resize(pool(usable=2), replace(WANTED, min_nodes=2)).answer == "ready"


def test_nothing_is_a_size_too() -> None:
    nothing = Resize("p", 0, 0)
    assert judge_resize(pool((0, 0)), nothing).answer == "ready"
    assert judge_resize(pool((0, 0), present=(1, 0), allocation_state="resizing"), nothing).answer == "wait"


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (pool(state="deleting"), "being deleted"),
        (pool(present=(3, 1), resize_errors=("ResizeStopped: it was stopped",)), "ResizeStopped"),
        (pool(present=(1, 0), resize_errors=("AccountCoreQuotaReached: no cores",)), "AccountCoreQuotaReached"),
        (pool((0, 0), autoscale=True, formula=OWN, scale_error="AutoScaling: no"), "formula failed: AutoScaling: no"),
    ],
)
def test_what_cannot_be_is_told(view: PoolView, said: str) -> None:
    verdict = judge_resize(view, WANTED)
    assert verdict.answer == "failed"
    assert said in verdict.why


@pytest.mark.parametrize(
    ("view", "kind"),
    [
        (pool(present=(1, 0), resize_errors=("AccountCoreQuotaReached: no cores",)), NoCapacity),
        (
            pool(present=(1, 0), resize_errors=("AllocationFailed: no machines",), autoscale=True, formula=OWN),
            NoCapacity,
        ),
        (pool(present=(1, 0), resize_errors=("UnsupportedVMSize: no such size",)), PoolError),
        (pool(state="missing"), PoolError),
    ],
)
def test_an_error_says_whether_asking_again_may_be_enough(view: PoolView, kind: type[Exception]) -> None:
    assert type(judge_resize(view, WANTED).error()) is kind


def test_a_formula_that_only_lacks_samples_is_waited_for() -> None:
    view = pool((0, 0), autoscale=True, formula=OWN, scale_error="InsufficientSampleData: too few")
    assert judge_resize(view, WANTED).answer == "wait"
