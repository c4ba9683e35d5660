"""Restarts cancel nothing: of a triggerer, of a worker, of the scheduler with its workers."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from tests.integration.real.plays import Play, PlayOf
    from tests.support.real_airflow import RealAirflow

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.fixture
def found(play: PlayOf) -> list[Play]:
    """Bring an inline and a deferred run to where both of their steps run."""
    made = [play("cancel_plain", how) for how in ("inline", "deferred")]
    for each in made:
        each.begin()
    for each in made:
        each.both_run()
    return made


def nothing_was_cancelled(found: list[Play], tries: int = 1) -> None:
    """Check that all goes on as it was, and comes to its end.

    :param tries: of the inline steps.
    """
    for play in found:
        play.sibling_is_untouched()
        tasks = play.batch_tasks("victim")
        play.expect(f"the Batch task runs: {tasks}", tasks == {"e1-a1": "running"})
        play.let_go()
    for play in found:
        play.wait("the run's end", play.over)
        play.expect(f"the run succeeds: {play.states()}", play.over() == "success")
        for name in ("victim", "sibling"):
            notes = play.bodies(name)
            play.expect(
                f"one body of {name}: {notes}", len(notes) == 1 and play.value(f"1_{name}") == notes[0]["token"]
            )
            number = play.tasks()[f"1_{name}"].try_number
            play.expect(f"tries of {name}: {number}", number == (tries if play.how == "inline" else 1))
        play.expect(f"nothing is left: {play.left()}", not any(play.left().values()))
    assert [play.problems for play in found] == [[], []]


def keepers(stack: RealAirflow, play: Play) -> set[int]:
    """Return which triggerers hold a run's triggers."""
    rows = stack.query(
        "select t.triggerer_id from trigger t join task_instance ti on ti.trigger_id = t.id where ti.run_id = ?",
        [play.run_id],
    )
    return {row[0] for row in rows}


@pytest.mark.parametrize("how", ["ended", "killed", "outlived"])
def test_triggerer(how: str, stack: RealAirflow, found: list[Play]) -> None:
    """Another triggerer takes over: from one that was ended, killed, or was away for a while and comes back."""
    deferred, old = found[1], stack.processes("triggerer")
    before = keepers(stack, deferred)
    stack.start_component("triggerer")
    if how == "ended":
        stack.signal(old[:1], signal.SIGTERM)
    else:
        stack.signal(old, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    deferred.wait("another triggerer", lambda: keepers(stack, deferred) and not keepers(stack, deferred) & before)
    if how == "outlived":
        stack.signal(old, signal.SIGCONT)
        deferred.wait("the old triggerer lets go", lambda: "Left the work alone" in deferred.log("1_victim"))
    nothing_was_cancelled(found)


def task_processes(stack: RealAirflow, play: Play) -> list[psutil.Process]:
    """Return the processes of a run's steps on their workers."""
    query = "select pid from task_instance where run_id = ? and state = 'running'"
    return [psutil.Process(row[0]) for row in stack.query(query, [play.run_id])]


def left_alone(play: Play) -> bool:
    """Tell whether both steps were asked to end and left their Batch tasks alone."""
    return all("alone: Airflow has its task as running" in play.log(name) for name in ("1_victim", "1_sibling"))


def adopted(play: Play) -> bool:
    """Tell whether the next tries of both steps have found their Batch tasks."""
    return all("which an earlier try submitted" in play.log(name) for name in ("1_victim", "1_sibling"))


def test_worker_is_asked_to_end(stack: RealAirflow, found: list[Play]) -> None:
    """A worker that is shut down in peace: it tells its task, which ends nothing and goes on as long as it may."""
    inline = found[0]
    supervisors = [parent for each in task_processes(stack, inline) if (parent := each.parent()) is not None]
    assert len(supervisors) == 2
    stack.signal(supervisors, signal.SIGTERM)
    inline.wait("the steps are left alone", lambda: left_alone(inline))
    nothing_was_cancelled(found)


def test_rolling_restart(stack: RealAirflow, found: list[Play]) -> None:
    """Scheduler and workers are asked to end, then killed, as a service manager does; the next tries take over."""
    inline, everyone = found[0], stack.processes("scheduler")
    stack.signal(everyone, signal.SIGTERM)
    inline.wait("the steps are left alone", lambda: left_alone(inline))
    stack.signal(everyone, signal.SIGKILL)
    stack.start_component("scheduler")
    inline.wait("the next tries", lambda: adopted(inline), 240)
    nothing_was_cancelled(found, tries=2)
