"""What follows from the state of a pool, a Batch task and a job preparation."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batchwrap.exceptions import NoCapacity, NodeLost, PoolError
from airflow_batchwrap.hooks.autoscale import ScaleFormula
from airflow_batchwrap.hooks.errors import scrub
from airflow_batchwrap.hooks.views import (
    NodeView,
    PoolView,
    PreparationView,
    TaskView,
    WaitView,
    judge_pool,
    judge_wait,
    slots_problem,
)

QUOTA = "AccountCoreQuotaReached: The specified account has reached core quota"
NODE_STATES = ("creating", "starting", "waitingforstarttask", "idle", "running", "preempted", "leavingpool", "unknown")
LOST_STATES = ("starttaskfailed", "unusable", "offline", "deallocated")


def pool(*states: str, target: int = 2, allocation: str = "steady", **more: object) -> PoolView:
    nodes = tuple(NodeView(f"n{index}", state) for index, state in enumerate(states))
    return PoolView("p", "active", allocation, target, nodes=nodes, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("states", [("idle", "idle"), ("running", "idle"), ("running", "running")])
def test_busy_nodes_are_usable(states: tuple[str, ...]) -> None:
    assert judge_pool(pool(*states)).answer == "ready"


def test_a_part_is_enough_where_it_was_asked_for() -> None:
    view = pool("idle", "starting", target=2, allocation="resizing")
    assert judge_pool(view).answer == "wait"
    assert judge_pool(view, 1).answer == "ready"


def failed_start(name: str = "bad") -> NodeView:
    return NodeView(name, "starttaskfailed", 7, "FailureExitCode: it failed")


def test_a_start_task_that_fails_everywhere_ends_the_wait_and_names_the_node() -> None:
    verdict = judge_pool(replace(pool(), nodes=(failed_start(), failed_start("worse"))))
    assert (verdict.answer, verdict.kind, verdict.node_id) == ("failed", "pool", "bad")
    assert "exit code 7" in verdict.why
    assert "Mend the pool's start_task" in verdict.why
    error = verdict.error("\nThe end of its stderr")
    assert type(error) is PoolError
    assert str(error).endswith("\nThe end of its stderr")


def test_a_start_task_that_failed_on_some_nodes_is_borne_while_others_serve() -> None:
    view = replace(pool(), nodes=(NodeView("good", "starting"), failed_start()))
    assert judge_pool(view).answer == "wait"
    serving = replace(view, nodes=(NodeView("good", "idle"), failed_start()))
    verdict = judge_pool(serving)
    assert verdict.answer == "ready"
    (warning,) = verdict.warnings
    assert "the start task failed on node bad with exit code 7" in warning
    # The others are too few, or the user bears none: trying again may be enough, as it did not fail everywhere.
    for strict in (judge_pool(serving, 2), judge_pool(serving, max_start_task_failures=0)):
        assert (strict.answer, strict.node_id, type(strict.error())) == ("failed", "bad", NodeLost)
    assert judge_pool(serving, max_start_task_failures=1).answer == "ready"


@pytest.mark.parametrize("state", ["unusable", "offline"])
def test_a_lost_node_is_borne_while_others_serve_and_is_named_where_they_do_not(state: str) -> None:
    verdict = judge_pool(pool("idle", state))
    assert verdict.answer == "ready"
    assert f"node n1 is {state}" in verdict.warnings[0]
    alone = judge_pool(pool(state, target=1))
    assert (alone.answer, type(alone.error())) == ("failed", NodeLost)
    assert f"node n0 is {state}" in alone.why
    # More nodes are still to come than the one that is lost.
    assert judge_pool(pool(state, target=3, allocation="resizing")).answer == "wait"


def test_a_pool_that_shrank_to_a_node_that_is_lost_has_others_to_ask_for() -> None:
    own = ScaleFormula.new(3, 0, 15, timedelta(minutes=-60))
    view = pool("unusable", target=1, autoscale=True, formula=own, evaluated=True)
    verdict = judge_pool(view, 1)
    assert (verdict.answer, verdict.ask, type(verdict.error())) == ("short", True, NodeLost)
    stuck = judge_wait(WaitView("active", pool=view))
    assert stuck is not None  # the formula does not know
    assert stuck.kind == "node_lost"
    # Nor are there others where it has all, or where its start task is wrong.
    assert judge_pool(replace(view, fresh=True, nodes=view.nodes * 3, target=3), 1).answer == "failed"
    assert judge_pool(replace(view, nodes=(failed_start(),)), 1).answer == "failed"


def test_all_nodes_that_can_serve_are_waited_for() -> None:
    assert judge_pool(pool("idle", "starting", "unusable", target=3)).answer == "wait"
    # A node that is lost and one too many does not make the others fewer.
    assert judge_pool(pool("idle", "starting", "unusable", target=2)).answer == "wait"


@pytest.mark.parametrize(
    "error",
    [
        QUOTA,
        "AccountLowPriorityCoreQuotaReached: no spot cores",
        "AccountVMSeriesCoreQuotaReached: The specified account has reached VM series core quota",
        "AllocationFailed: Desired number of dedicated nodes could not be allocated; Reason: insufficient capacity",
        "AllocationTimedout: Desired number of nodes could not be allocated as the resize timeout was reached",
        "AllocationTimedOut: the same as clients spell it",
        "Unknown: who knows",
    ],
)
def test_nodes_that_are_not_to_be_had_now_are_waited_for_and_asked_for_again(error: str) -> None:
    view = pool("idle", target=3, resize_errors=(error,))
    verdict = judge_pool(view)
    assert (verdict.answer, verdict.ask, type(verdict.error())) == ("short", True, NoCapacity)
    assert "1 of the 3 nodes" in verdict.why
    assert error.partition(":")[0] in verdict.why
    assert "min_nodes" in verdict.why
    # A formula asks again by itself.
    verdict = judge_pool(replace(view, autoscale=True))
    assert (verdict.answer, verdict.ask) == ("short", False)
    # What is there is enough for who needs no more.
    assert judge_pool(view, 1).answer == "ready"


@pytest.mark.parametrize(
    "error",
    [
        "UnsupportedVMSize: not in this region",
        "AllocationFailed: Desired number; Reason: Allocation failed as subnet has delegation to external resources",
        'AllocationFailed: Desired number; Provider Error Json: { "error": { "code": "BadRequest", "message": "x" } }',
    ],
)
def test_what_no_time_mends_is_final(error: str) -> None:
    for autoscale in (False, True):
        verdict = judge_pool(pool("idle", target=3, resize_errors=(error,), autoscale=autoscale))
        assert (verdict.answer, type(verdict.error())) == ("failed", PoolError)
        assert error in verdict.why


def test_a_resize_that_was_stopped_ends_one_resize_and_no_formula() -> None:
    view = pool("idle", target=3, resize_errors=("ResizeStopped: by somebody",))
    assert judge_pool(view).answer == "failed"
    assert judge_pool(replace(view, autoscale=True)).answer == "short"


def test_too_few_nodes_and_no_reason_prove_nothing() -> None:
    verdict = judge_pool(pool("idle", target=3))
    assert (verdict.answer, verdict.ask) == ("short", True)
    assert "no resize error is given" in verdict.why
    # The next evaluation of a formula asks again.
    assert judge_pool(pool("idle", target=3, autoscale=True)).answer == "wait"
    broken = judge_pool(pool("idle", target=3, autoscale=True, scale_error="AutoScalingFormulaEvaluationError: x"))
    assert (broken.answer, broken.kind) == ("failed", "pool")


def test_our_formula_says_how_many_nodes_a_pool_is_to_have_while_it_is_new() -> None:
    own = ScaleFormula.new(4, 1, 15, timedelta(minutes=30))
    early = pool("idle", target=1, autoscale=True, formula=own, evaluated=True, fresh=True)
    assert judge_pool(early).answer == "wait"  # it was woken, and is evaluated any moment
    assert "1 of 5 nodes" in early.progress()
    # Later it has what the work needs, and who comes then takes it as it is.
    assert judge_pool(replace(early, fresh=False)).answer == "ready"
    assert judge_pool(replace(early, fresh=False), 3).answer == "ready"


@given(
    states=st.lists(st.sampled_from((*NODE_STATES, *LOST_STATES)), max_size=6),
    target=st.integers(0, 8),
    allocation=st.sampled_from(["steady", "resizing", "stopping"]),
    autoscale=st.booleans(),
    errors=st.lists(st.sampled_from([QUOTA, "AllocationFailed: no machines", "AllocationTimedout: x"]), max_size=2),
    enough=st.none() | st.integers(1, 8),
)
def test_what_is_said_of_any_pool(
    states: list[str], target: int, allocation: str, autoscale: bool, errors: list[str], enough: int | None
) -> None:
    view = pool(*states, target=target, allocation=allocation, autoscale=autoscale, resize_errors=tuple(errors))
    verdict = judge_pool(view, enough)
    # Only a node that is lost, or a pool that is to have none, is final.
    if verdict.answer == "failed":
        assert view.lost or not target
        assert (verdict.kind == "node_lost") <= bool(view.lost)
    if verdict.answer == "short":
        assert allocation == "steady"
        assert verdict.why
    if verdict.answer == "ready" and target:
        assert view.usable >= 1
    # One more usable node spoils nothing.
    richer = replace(view, nodes=(*view.nodes, NodeView("new", "idle")))
    if verdict.answer == "ready" and enough is not None:
        assert judge_pool(richer, enough).answer == "ready"
    # A pool that is fit keeps no step waiting for a person.
    if verdict.answer == "ready":
        assert judge_wait(WaitView("active", pool=view)) is None


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (PoolView("p", "missing"), "does not exist"),
        (PoolView("p", "deleting"), "being deleted"),
        (PoolView("p", "active", "steady", 0), "has no nodes"),
        (pool("leavingpool", "unusable", target=0), "is to have none"),
    ],
)
def test_a_pool_that_cannot_work_is_told(view: PoolView, said: str) -> None:
    verdict = judge_pool(view)
    assert verdict.answer == "failed"
    assert said in verdict.why


@pytest.mark.parametrize("states", [(), ("leavingpool",)])
def test_an_empty_pool_that_scales_by_itself_is_ready(states: tuple[str, ...]) -> None:
    assert judge_pool(pool(*states, target=0, autoscale=True)).answer == "ready"


def test_an_empty_pool_of_ours_waits_for_its_first_evaluation_and_grows_again_after_others() -> None:
    own = ScaleFormula.new(2, 0, 15, timedelta(minutes=30))
    for evaluated, answer in ((False, "wait"), (True, "ready")):
        assert judge_pool(pool(target=0, autoscale=True, formula=own, evaluated=evaluated)).answer == answer
    nothing = own.resized(0, 0, timedelta(0))
    verdict = judge_pool(pool(target=0, autoscale=True, formula=nothing, evaluated=True))
    assert verdict.answer == "failed"
    assert "is to have none" in verdict.why


def test_a_formula_that_cannot_be_evaluated_is_told_unless_it_lacks_samples_for_now() -> None:
    def answer(error: str) -> str:
        return judge_pool(pool(target=0, autoscale=True, evaluated=True, scale_error=error)).answer

    assert answer("InsufficientSampleData: too few") == "ready"
    assert answer("AutoScalingFormulaEvaluationError: no such name") == "failed"
    # With nodes there is no hurry: they stay as they are.
    assert judge_pool(pool("idle", target=1, autoscale=True, scale_error="AutoScaling...")).answer == "ready"


def test_a_preempted_node_may_come_back() -> None:
    assert judge_pool(pool("preempted", "idle")).answer == "wait"


def test_exit_code_0_is_no_success_where_an_upload_failed() -> None:
    view = TaskView("completed", exit_code=0, failure_code="FileUploadAccessDenied", failure_category="usererror")
    assert not view.succeeded
    assert not view.worth_retrying
    assert "FileUploadAccessDenied" in view.describe()


@pytest.mark.parametrize(
    ("view", "again"),
    [
        (TaskView("completed", exit_code=1, failure_code="FailureExitCode", failure_category="usererror"), False),
        (TaskView("completed", failure_code="BlobDownloadTimedOut", failure_category="usererror"), True),
        (TaskView("completed", failure_code="BlobNotFound", failure_category="usererror"), False),
        (TaskView("completed", failure_code="Whatever", failure_category="servererror"), True),
        (TaskView("completed", failure_code="DiskFull", failure_category="usererror"), False),
        (TaskView("missing"), True),
    ],
)
def test_only_what_the_service_or_the_node_did_is_worth_retrying(view: TaskView, again: bool) -> None:
    assert view.worth_retrying is again


def test_a_signal_is_named() -> None:
    view = TaskView("completed", exit_code=137, failure_code="FailureExitCode")
    assert "SIGKILL" in view.describe()


def test_a_failed_preparation_is_fatal_only_where_every_usable_node_has_it() -> None:
    failed = PreparationView("n0", "completed", True, failure_code="BlobNotFound")
    assert judge_wait(WaitView("active", preparations=(failed,), pool=pool("idle", "idle"))) is None
    stuck = judge_wait(WaitView("active", preparations=(failed,), pool=pool("idle", target=1)))
    assert stuck is not None
    assert stuck.preparation == failed


@pytest.mark.parametrize("state", ["missing", "deleting", "terminating", "completed"])
def test_a_job_that_ended_starts_nothing_any_more(state: str) -> None:
    stuck = judge_wait(WaitView(state, "MaxWallClockTimeExpiry", pool=pool("idle", target=1)))
    assert stuck is not None
    assert "job" in stuck.why


def test_a_pool_without_nodes_starts_nothing_either() -> None:
    stuck = judge_wait(WaitView("active", pool=PoolView("p", "active", "steady", 0)))
    assert stuck is not None
    assert (stuck.kind, "has no nodes" in stuck.why) == ("pool", True)
    assert judge_wait(WaitView("active", pool=pool("preempted", target=1))) is None


def test_a_step_waits_for_a_pool_that_scales_by_itself_however_few_nodes_it_has() -> None:
    own = ScaleFormula.new(2, 0, 15, timedelta(minutes=-60))
    for formula in (own, None):
        for target in (0, 2):
            for errors in ((), (QUOTA,), ("ResizeStopped: by somebody",)):
                view = pool(target=target, autoscale=True, formula=formula, evaluated=True, resize_errors=errors)
                assert judge_wait(WaitView("active", pool=view)) is None
    short = replace(pool(target=2, resize_errors=(QUOTA,)), autoscale=False)
    stuck = judge_wait(WaitView("active", pool=short))
    assert stuck is not None  # nobody would ask for its nodes again
    assert stuck.kind == "no_capacity"


def test_a_step_waits_beside_lost_nodes_and_says_where_there_are_no_others() -> None:
    assert judge_wait(WaitView("active", pool=pool("unusable", "running", "starttaskfailed", target=3))) is None
    stuck = judge_wait(WaitView("active", pool=pool("unusable", "offline")))
    assert stuck is not None
    assert stuck.kind == "node_lost"
    assert "node n0 is unusable" in stuck.why


def test_more_slots_than_a_node_has_would_be_waited_for_for_ever() -> None:
    view = pool("idle", target=1, task_slots_per_node=4)
    assert slots_problem(4, view) == ""
    assert "takes 5 task slots" in slots_problem(5, view)
    assert judge_wait(WaitView("active", pool=view), 4) is None
    stuck = judge_wait(WaitView("active", pool=view), 5)
    assert stuck is not None
    assert (stuck.kind, "has only 4" in stuck.why) == ("config", True)
    assert slots_problem(5, PoolView("p", "missing")) == ""


def sdk_pool(**more: Any) -> Any:
    plain: dict[str, Any] = {
        "id": "p",
        "state": "active",
        "allocation_state": "steady",
        "target_dedicated_nodes": 2,
        "target_low_priority_nodes": 1,
        "current_dedicated_nodes": 1,
        "current_low_priority_nodes": 0,
        "enable_auto_scale": False,
        "auto_scale_formula": None,
        "auto_scale_run": None,
        "resize_errors": None,
        "task_slots_per_node": 3,
        "metadata": None,
    }
    return SimpleNamespace(**{**plain, **more})


def test_a_pool_is_read_with_the_reasons_of_its_resize_and_without_a_signature() -> None:
    reason = SimpleNamespace(name="Reason", value="insufficient capacity, see https://h/?sig=secret")
    error = SimpleNamespace(code="AllocationFailed", message="no nodes", error_values=[reason])
    view = PoolView.of(sdk_pool(resize_errors=[error]), [])
    assert view.resize_errors == ("AllocationFailed: no nodes; Reason: insufficient capacity, see https://h/?...",)
    assert (view.task_slots_per_node, view.targets, view.present) == (3, (2, 1), (1, 0))
    for minutes, fresh in ((30, True), (-60, False)):
        own = ScaleFormula.new(2, 1, 15, timedelta(minutes=minutes))
        assert PoolView.of(sdk_pool(enable_auto_scale=True, auto_scale_formula=own.text), []).fresh is fresh
    assert own.fresh_until < datetime.now(UTC)


@pytest.mark.parametrize(
    "text",
    [
        "GET http://h/c/b?sv=2020&sig=abc%3D failed",
        "url: /c?se=1&sig=secret (Caused by x)",
        "AccountKey=secret;EndpointSuffix=x",
    ],
)
def test_no_signature_survives_in_a_message(text: str) -> None:
    assert "secret" not in scrub(text)
    assert "abc%3D" not in scrub(text)
