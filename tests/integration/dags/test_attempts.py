"""Each attempt at a step is submitted once, adopted while it lives, and made anew only after its failure was told."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.polling import until

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from tests.support.bench import Bench

ONCE = """
    import pathlib

    def do_action(engine, marker):
        marker = pathlib.Path(marker)
        if not marker.exists():
            marker.touch()
            print("the first time")
            raise OSError("not yet")
        return {"attempt": engine.context["attempt"], "try": engine.context["try_number"]}
"""
ECHO = "def do_action(engine, *args):\n    return list(args)\n"
SLOW = "import time\ndef do_action(engine, *args):\n    time.sleep(60)\n"


@pytest.fixture
def workspace(bench: Bench, pool: str) -> dict[str, Any]:
    """A workspace with all the steps of this file."""
    from airflow_batchwrap import UsePoolOperator

    bench.steps(
        _1_once=ONCE, _2_echo=ECHO, _3_slow=SLOW, _4_gone="import os\ndef do_action(engine):\n    os._exit(0)\n"
    )
    found: dict[str, Any] = bench.run(bench.make(UsePoolOperator, "set_up", pool_id=pool, steps="steps"))
    return found


@pytest.fixture
def batch_tasks(client: BatchClient, workspace: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Return the states of the run's Batch tasks by the end of their ids: ``e1-a1``."""

    def look() -> dict[str, Any]:
        return {"-".join(task.id.split("-")[-2:]): task for task in client.list_tasks(workspace["job_id"])}

    return look


def step(bench: Bench, workspace: dict[str, Any], name: str, **arguments: Any) -> Any:
    from airflow_batchwrap import RunBatchTaskOperator

    return bench.make(RunBatchTaskOperator, "work", step=f"{name}.py", workspace=workspace, retries=3, **arguments)


def test_a_retry_makes_a_new_attempt_and_fetches_its_result(
    bench: Bench, workspace: dict[str, Any], batch_tasks: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    from airflow_batchwrap import StepFailed

    work = step(bench, workspace, "1_once", args=[str(tmp_path / "marker")])
    with pytest.raises(StepFailed, match="OSError: not yet"):
        bench.run(work, try_number=1)
    assert bench.run(work, try_number=2) == {"attempt": 2, "try": 2}
    assert sorted(batch_tasks()) == ["e1-a1", "e1-a2"]


def test_a_try_whose_worker_died_is_gone_on_with(
    bench: Bench, workspace: dict[str, Any], batch_tasks: Callable[[], dict[str, Any]]
) -> None:
    work = step(bench, workspace, "2_echo", args=["ü", "a b"])
    bench.submit(work)
    assert bench.run(work, try_number=2) == ["ü", "a b"]
    # Once more, after its success.
    assert bench.run(work, try_number=3) == ["ü", "a b"]
    assert sorted(batch_tasks()) == ["e1-a1"]


def test_a_try_that_finds_its_batch_task_over_does_not_defer(
    bench: Bench, workspace: dict[str, Any], batch_tasks: Callable[[], dict[str, Any]]
) -> None:
    work = step(bench, workspace, "2_echo", args=["a"])
    bench.submit(work, try_number=1)
    until(lambda: str(batch_tasks()["e1-a1"].state).lower().endswith("completed"))
    # Airflow fails a task that comes back from the triggerer before its scheduler knows that it went there.
    work.inline_wait = 0
    begun = bench.begin(work, try_number=2)
    assert begun.trigger is None
    assert begun.finish() == ["a"]
    assert list(batch_tasks()) == ["e1-a1"]


def test_a_failure_that_nobody_heard_of_is_told_before_a_new_attempt_is_made(
    bench: Bench, workspace: dict[str, Any], batch_tasks: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    from airflow_batchwrap import StepFailed

    work = step(bench, workspace, "1_once", args=[str(tmp_path / "marker")])
    bench.submit(work)
    until(lambda: all(task.state == "completed" for task in batch_tasks().values()))
    with pytest.raises(StepFailed, match="not yet"):
        bench.run(work, try_number=2)
    assert bench.run(work, try_number=3)["attempt"] == 2


def test_another_call_ends_the_old_one_and_is_the_next_attempt(
    bench: Bench,
    workspace: dict[str, Any],
    batch_tasks: Callable[[], dict[str, Any]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    work = step(bench, workspace, "3_slow", args=["{{ ts }}"])
    bench.submit(work)
    until(lambda: batch_tasks()["e1-a1"].state == "running")
    work.step, work.args = "2_echo.py", ["rendered anew"]
    assert bench.run(work, try_number=2) == ["rendered anew"]
    until(lambda: batch_tasks()["e1-a1"].state == "completed")
    assert sorted(batch_tasks()) == ["e1-a1", "e1-a2"]
    assert "the next attempt takes its place" in "".join(capfd.readouterr())


def test_an_environment_that_is_rendered_anew_is_the_same_call(
    bench: Bench, workspace: dict[str, Any], batch_tasks: Callable[[], dict[str, Any]]
) -> None:
    work = step(bench, workspace, "2_echo", args=["one"], environment={"TOKEN": "first"})
    bench.submit(work)
    work.environment = {"TOKEN": "second"}
    assert bench.run(work, try_number=2) == ["one"]
    assert sorted(batch_tasks()) == ["e1-a1"]


def test_a_cleared_step_starts_over_and_ends_what_still_runs(
    bench: Bench,
    workspace: dict[str, Any],
    batch_tasks: Callable[[], dict[str, Any]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    work = step(bench, workspace, "3_slow")
    bench.submit(work)
    until(lambda: batch_tasks()["e1-a1"].state == "running")
    work.step = "2_echo.py"  # the person has mended it
    assert bench.run(work, try_number=2, cleared=1) == []
    until(lambda: batch_tasks()["e1-a1"].state == "completed")
    assert sorted(batch_tasks()) == ["e1-a1", "e2-a1"]
    assert "which ran on after the task was cleared" in "".join(capfd.readouterr())


def test_a_clear_is_seen_without_the_state_store(bench: Bench, workspace: dict[str, Any]) -> None:
    work = step(bench, workspace, "2_echo")
    bench.run(work)
    bench.forget()  # Airflow's option [state_store] clear_on_success
    bench.run(work, try_number=2, cleared=1)
    assert bench.xcoms["batch"]["batch_task_id"].endswith("e2-a1")


@pytest.mark.parametrize("arguments", [{"deferrable": False}, {"inline_wait": 0}])
@pytest.mark.parametrize("limit", ["step_timeout", "execution_timeout"])
def test_a_step_that_takes_too_long_is_ended_and_the_next_try_is_new(
    bench: Bench,
    workspace: dict[str, Any],
    batch_tasks: Callable[[], dict[str, Any]],
    arguments: dict[str, Any],
    limit: str,
) -> None:
    from airflow.sdk.exceptions import AirflowTaskTimeout

    from airflow_batchwrap import StepTimeout

    seconds = 1.5 if limit == "step_timeout" else 3
    work = step(bench, workspace, "3_slow", **arguments, **{limit: timedelta(seconds=seconds)})
    by_airflow = limit == "execution_timeout" and not arguments.get("deferrable", True)
    with pytest.raises(AirflowTaskTimeout if by_airflow else StepTimeout) as told:
        bench.run(work)
    if not by_airflow:
        assert limit in str(told.value)
    del told
    with warnings.catch_warnings():
        # Airflow's own limit is a signal: a connection that was asked something just then has nobody to close it.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    until(lambda: batch_tasks()["e1-a1"].state == "completed")
    work.step = "2_echo.py"
    setattr(work, limit, timedelta(hours=1))
    assert bench.run(work, try_number=2) == []
    assert sorted(batch_tasks()) == ["e1-a1", "e1-a2"]


def test_waiting_for_a_node_does_not_count(bench: Bench, workspace: dict[str, Any]) -> None:
    from airflow_batchwrap import RunBatchTaskOperator

    first = bench.make(RunBatchTaskOperator, workspace=workspace, command="sleep 3", task_slots=2)
    bench.submit(first)
    assert bench.run(step(bench, workspace, "2_echo", step_timeout="2.5 s")) == []


def test_a_step_without_a_record_is_tried_again(bench: Bench, workspace: dict[str, Any]) -> None:
    from airflow_batchwrap import StepFailed

    work = step(bench, workspace, "4_gone")
    for number in (1, 2):
        with pytest.raises(StepFailed, match="no result record"):
            bench.run(work, try_number=number)
        assert bench.xcoms["batch"]["batch_task_id"].endswith(f"e1-a{number}")


def test_a_batch_task_that_was_deleted_is_worth_another_try_while_its_job_lives(
    bench: Bench, workspace: dict[str, Any], client: BatchClient, batch_tasks: Callable[[], dict[str, Any]]
) -> None:
    from airflow_batchwrap import ConfigError, NodeLost

    work = step(bench, workspace, "3_slow")
    begun = bench.submit(work)
    (task,) = batch_tasks().values()
    client.delete_task(workspace["job_id"], task.id)
    with pytest.raises(NodeLost, match="try again"):
        begun.finish()
    begun = bench.submit(work, try_number=2)
    assert bench.xcoms["batch"]["batch_task_id"].endswith("e1-a2")
    client.begin_delete_job(workspace["job_id"])
    with pytest.raises(ConfigError, match="Clear the set-up task"):
        begun.finish()
    with pytest.raises(ConfigError, match="clear the set-up task"):
        bench.run(work, try_number=3)


def test_two_tasks_that_run_the_same_step_have_results_of_their_own(bench: Bench, workspace: dict[str, Any]) -> None:
    from airflow_batchwrap import RunBatchTaskOperator

    made = [
        bench.make(RunBatchTaskOperator, name, step="2_echo.py", args=[name], workspace=workspace)
        for name in ("one", "other")
    ]
    assert [bench.run(work) for work in made] == [["one"], ["other"]]
    # A third try of the first still finds its own.
    assert bench.run(made[0], try_number=2) == ["one"]


@pytest.mark.parametrize(
    ("before", "after", "max_tries", "clears", "epoch"),
    [
        (1, 1, 1, 0, 1),  # a retry
        (1, 3, 1, 0, 1),  # a retry, after the DAG file was given more retries
        (3, 1, 3, 0, 1),  # ... or fewer
        (1, 1, 2, 1, 2),  # a clear: the tries so far, and the file's retries
        (3, 1, 2, 1, 2),  # ... which may be fewer now
        (2, 1, 2, 1, 2),  # ... by as many as make the same number
        (1, 3, 4, 1, 2),
        (1, 1, 1, 1, 2),  # ... while it ran, or of another task of the run
    ],
)
def test_clear_is_told_from_a_retry(
    bench: Bench, before: int, after: int, max_tries: int, clears: int, epoch: int
) -> None:
    from airflow_batchwrap import RunBatchTaskOperator

    work = bench.make(RunBatchTaskOperator, pool_id="p", command="true", retries=before)
    first: Any = {**bench.context(work), "dag_run": SimpleNamespace(clear_number=0)}
    assert work.epoch(first) == 1
    work.retries = after
    again: Any = {**bench.context(work, try_number=2), "dag_run": SimpleNamespace(clear_number=clears)}
    again["ti"].max_tries = max_tries
    assert work.epoch(again) == epoch
    # And so it stays for the next retry.
    assert work.epoch(again) == epoch
