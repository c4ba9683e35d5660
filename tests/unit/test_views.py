"""What follows from the state of a pool, a Batch task and a job preparation."""

from __future__ import annotations

from datetime import timedelta

import pytest

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
)


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


def test_a_failed_start_task_ends_the_wait_and_names_the_node() -> None:
    view = PoolView(
        "p",
        "active",
        "steady",
        2,
        nodes=(NodeView("good", "starting"), NodeView("bad", "starttaskfailed", 7, "FailureExitCode: it failed")),
    )
    verdict = judge_pool(view)
    assert verdict.answer == "failed"
    assert verdict.node_id == "bad"
    assert "exit code 7" in verdict.why


def test_nodes_that_never_come_show_the_resize_error() -> None:
    verdict = judge_pool(pool("idle", target=3, resize_errors=("AccountCoreQuotaReached: no cores",)))
    assert verdict.answer == "failed"
    assert "AccountCoreQuotaReached" in verdict.why
    assert "min_nodes" in verdict.why


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (PoolView("p", "missing"), "does not exist"),
        (PoolView("p", "deleting"), "being deleted"),
        (PoolView("p", "active", "steady", 0), "has no nodes"),
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
    assert judge_pool(pool("unusable", "idle")).answer == "failed"


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
    assert "has no nodes" in stuck.why
    assert judge_wait(WaitView("active", pool=pool("preempted", target=1))) is None


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
