"""What a person does in between, clearing tasks and editing `retries`, ends in one consistent result."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from tests.support.kill_stack import KillStack, Run

pytestmark = [pytest.mark.kills, pytest.mark.timeout(600)]


def attempts(run: Run) -> dict[str, dict[str, Any]]:
    """Return the Batch tasks that the run's teardowns found, by attempt: ``e1-a1``."""
    found = {"-".join(note["id"].split("-")[-2:]): note for note in run.notes("batch")}
    assert all("COMPLETED" in note["state"].upper() for note in found.values())
    return found


def created(run: Run) -> list[str]:
    """Return the attempts that were created, each as often as it was."""
    return ["-".join(note["id"].split("-")[-2:]) for note in run.notes("submitted") if note["made"]]


def is_good(run: Run, *expected: str) -> bool:
    """Tell whether the run succeeded with these attempts, each created once, and the last body's value."""
    state = run.client.run_state(run.dag_id, run.run_id)
    states = {task.task_id: task.state for task in run.client.task_instances(run.dag_id, run.run_id)}
    assert (state, set(states.values())) == ("success", {"success"})
    assert created(run) == list(expected)
    assert sorted(attempts(run)) == sorted(expected)
    assert len(run.notes("bodies")) == len(expected)
    assert run.notes("failures") == []
    value = run.client.xcom(run.dag_id, run.run_id, "step")
    last = run.notes("bodies")[-1]
    return bool(value == {"attempt": last["attempt"], "token": last["token"]})


def until_running(stack: KillStack, run: Run, state: str = "running") -> None:
    """Wait until the step's body has begun, and the task has got to a state."""
    stack.wait("the step's body", lambda: run.notes("bodies"))
    stack.wait(f"the task to be {state}", lambda: run.task().state == state)


@pytest.mark.parametrize("inline", [True, False], ids=["running", "deferred"])
def test_cleared_while_it_runs(stack: KillStack, inline: bool) -> None:
    run = stack.start(wait=True, inline=inline)
    until_running(stack, run, "running" if inline else "deferred")
    assert stack.clear(run) == ["clean_up", "set_up", "step"]
    stack.wait("the new epoch's body", lambda: len(run.notes("bodies")) > 1)
    run.let("go")
    stack.wait("the end", run.over)
    assert is_good(run, "e1-a1", "e2-a1")
    # The old epoch's Batch task was ended, and did not come to its own end.
    assert attempts(run)["e1-a1"]["exit_code"] != 0
    assert attempts(run)["e2-a1"]["exit_code"] == 0


def test_cleared_after_the_teardown(stack: KillStack) -> None:
    run = stack.start(inline=False)
    stack.wait("the end", run.over)
    first = run.client.xcom(run.dag_id, run.run_id, "step")
    stack.clear(run)
    stack.wait("the second end", lambda: len(run.notes("batch")) == 2 and run.over())
    assert is_good(run, "e1-a1", "e2-a1")
    assert run.client.xcom(run.dag_id, run.run_id, "step") != first
    # Another job, as the first one is gone.
    assert len({note["job"] for note in run.notes("batch")}) == 2


@pytest.mark.parametrize("now", [5, 1], ids=["raised", "lowered"])
def test_retries_edited_between_a_death_and_the_next_try(stack: KillStack, now: int) -> None:
    run = stack.start_own(retries=2, wait=True, inline=True)
    until_running(stack, run)
    stack.edit(run, retries=now)
    psutil.Process(run.notes("tries")[-1]["pid"]).send_signal(signal.SIGKILL)
    stack.wait("the next try", lambda: run.notes("tries")[-1]["try"] == 2)
    run.let("go")
    stack.wait("the end", run.over)
    assert is_good(run, "e1-a1")


@pytest.mark.parametrize("now", [5, 1], ids=["raised", "lowered"])
def test_retries_edited_between_a_failure_and_the_next_try(stack: KillStack, now: int) -> None:
    run = stack.start_own("stored", retries=2, inline=False, fails=True)
    stack.wait("the failure", lambda: run.notes("reached"))
    stack.edit(run, retries=now)
    run.let("release")
    stack.wait("the end", run.over)
    assert is_good(run, "e1-a1", "e1-a2")
    assert [note["error"] for note in run.notes("retries")] == ["StepFailed"]


@pytest.mark.parametrize(("before", "now"), [(2, 5), (3, 1), (2, 1)])
def test_cleared_after_retries_were_edited(stack: KillStack, before: int, now: int) -> None:
    """A clear counts the tries to come from the edited number: it may come to fewer than before, or to as many."""
    run = stack.start_own(retries=before, wait=True, inline=False)
    until_running(stack, run, "deferred")
    stack.edit(run, retries=now)
    stack.clear(run)
    stack.wait("the new epoch's body", lambda: len(run.notes("bodies")) > 1, 60)
    run.let("go")
    stack.wait("the end", run.over)
    assert is_good(run, "e1-a1", "e2-a1")
