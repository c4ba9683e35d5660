"""Tasks that depend on other tasks: by ids, by ranges of numbers, satisfied or blocked by how those end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.wire import Wire


def on(*names: str, ranges: tuple[tuple[int, int], ...] = ()) -> m.BatchTaskDependencies:
    """What a task depends on."""
    return m.BatchTaskDependencies(
        task_ids=list(names), task_id_ranges=[m.BatchTaskIdRange(start=first, end=last) for first, last in ranges]
    )


def code_of(error: HttpResponseError) -> str:
    """The error's code."""
    assert error.error is not None
    return str(error.error.code)


def completed(wire: Wire, job: str) -> set[str]:
    """The ids of a job's completed tasks."""
    return {task.id for task in wire.client.list_tasks(job, filter="state eq 'completed'")}


@pytest.fixture
def chained(wire: Wire, pool: str) -> str:
    """A job whose tasks may depend on each other."""
    return wire.job(pool, uses_task_dependencies=True)


def test_dependent_waits_until_all_have_succeeded(wire: Wire, chained: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    last = wire.add(chained, "/bin/true", depends_on=on("first", "SECOND"))
    wire.run(chained, "/bin/true", id="first")
    wire.add(chained, f"/bin/sh -c 'until test -e {gate}; do sleep 0.02; done'", id="second")
    wire.state(chained, "second", "running")
    assert wire.client.get_task(chained, last).state == "active"
    gate.touch()
    after, before = wire.state(chained, last, "completed"), wire.state(chained, "second", "completed")
    assert after.execution_info is not None
    assert before.execution_info is not None
    assert after.execution_info.start_time is not None
    assert before.execution_info.end_time is not None
    assert after.execution_info.start_time >= before.execution_info.end_time
    assert after.depends_on is not None
    assert after.depends_on.task_ids == ["first", "SECOND"]


def test_range_means_tasks_with_numbers_for_ids(wire: Wire, chained: str) -> None:
    late = wire.add(chained, "/bin/true", depends_on=on("x", ranges=((9, 11), (20, 20))))
    for name in ("9", "11", "20", "x", "010"):
        wire.run(chained, "/bin/true", id=name)
    wire.run(chained, "/bin/true", id="other")
    assert wire.client.get_task(chained, late).state == "active"
    wire.run(chained, "/bin/true", id="10")
    wire.state(chained, late, "completed")


def test_dependencies_satisfied_before_are_none(wire: Wire, chained: str) -> None:
    wire.run(chained, "/bin/true", id="1")
    wire.run(chained, "/bin/true", id="2")
    wire.run(chained, "/bin/true", depends_on=on(ranges=((1, 2),)))


def test_failed_task_blocks_unless_told_otherwise(wire: Wire, chained: str) -> None:
    satisfy = m.ExitConditions(
        exit_codes=[m.ExitCodeMapping(code=3, exit_options=m.ExitOptions(dependency_action="satisfy"))],
        exit_code_ranges=[
            m.ExitCodeRangeMapping(start=10, end=12, exit_options=m.ExitOptions(dependency_action="satisfy"))
        ],
    )
    wire.run(chained, "/bin/sh -c 'exit 3'", id="three", exit_conditions=satisfy)
    wire.run(chained, "/bin/sh -c 'exit 12'", id="twelve", exit_conditions=satisfy)
    wire.run(chained, "/bin/sh -c 'exit 4'", id="four", exit_conditions=satisfy)
    blocked = wire.add(chained, "/bin/true", depends_on=on("three", "four"))
    wire.run(chained, "/bin/true", depends_on=on("three", "twelve"))
    assert wire.client.get_task(chained, blocked).state == "active"
    counts = wire.client.get_job_task_counts(chained).task_counts
    assert (counts.active, counts.completed) == (1, 4)


def test_success_can_block(wire: Wire, chained: str) -> None:
    block = m.ExitConditions(
        exit_codes=[m.ExitCodeMapping(code=0, exit_options=m.ExitOptions(dependency_action="block"))],
        default=m.ExitOptions(dependency_action="satisfy"),
    )
    wire.run(chained, "/bin/true", id="zero", exit_conditions=block)
    wire.run(chained, "/bin/false", id="one", exit_conditions=block)
    blocked = wire.add(chained, "/bin/true", depends_on=on("zero"))
    wire.run(chained, "/bin/true", depends_on=on("one"))
    assert wire.client.get_task(chained, blocked).state == "active"


def test_task_that_succeeds_when_reactivated_frees_its_dependents(wire: Wire, chained: str, tmp_path: Path) -> None:
    good = tmp_path / "good"
    wire.run(chained, f"/bin/sh -c 'test -e {good}'", id="flaky")
    waiting = wire.add(chained, "/bin/true", depends_on=on("flaky"))
    assert wire.client.get_task(chained, waiting).state == "active"
    good.touch()
    wire.client.reactivate_task(chained, "flaky")
    wire.state(chained, waiting, "completed")


def test_dependency_that_is_reactivated_is_waited_for_again(wire: Wire, chained: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    satisfy = m.ExitConditions(default=m.ExitOptions(dependency_action="satisfy"))
    command = f"/bin/sh -c 'until test -e {gate}; do sleep 0.02; done; exit 1'"
    wire.run(chained, command, id="a", exit_conditions=satisfy)
    waiting = wire.add(chained, "/bin/true", depends_on=on("a", "b"))
    gate.unlink()
    wire.client.reactivate_task(chained, "a")
    wire.state(chained, "a", "running")
    wire.run(chained, "/bin/true", id="b")
    assert wire.client.get_task(chained, waiting).state == "active"
    gate.touch()
    wire.state(chained, waiting, "completed")


def test_waiting_task_can_be_ended_and_deleted(wire: Wire, chained: str) -> None:
    ended, deleted = (wire.add(chained, "/bin/true", depends_on=on("never")) for _ in range(2))
    wire.client.terminate_task(chained, ended)
    wire.client.delete_task(chained, deleted)
    wire.run(chained, "/bin/true", id="never")
    assert completed(wire, chained) == {ended, "never"}
    wire.client.reactivate_task(chained, ended)
    wire.state(chained, ended, "completed")


def test_long_range_costs_no_more_than_its_length(wire: Wire, chained: str) -> None:
    names = [str(number) for number in range(1, 201)]
    for start in range(0, 200, 100):
        tasks = [m.BatchTaskCreateOptions(id=name, command_line="/bin/true") for name in names[start : start + 100]]
        wire.client.create_tasks(chained, tasks)
    late = wire.add(chained, "/bin/true", depends_on=on(ranges=((1, 200),)))
    wire.until(lambda: wire.client.get_task(chained, late).state == "completed", timeout=60)
    assert completed(wire, chained) == {*names, late}


def test_job_has_to_say_that_it_uses_dependencies(wire: Wire, job: str) -> None:
    with pytest.raises(HttpResponseError) as caught:
        wire.add(job, "/bin/true", depends_on=on("x"))
    assert (caught.value.status_code, code_of(caught.value)) == (400, "TaskDependenciesNotSpecifiedOnJob")


@pytest.mark.parametrize(
    ("depends", "code"),
    [
        (on(*(f"{number:064d}" for number in range(1001))), "TaskDependencyListTooLong"),
        (on(ranges=((5, 4),)), "InvalidPropertyValue"),
        (on("no id"), "InvalidPropertyValue"),
    ],
)
def test_dependencies_that_cannot_be(wire: Wire, chained: str, depends: m.BatchTaskDependencies, code: str) -> None:
    with pytest.raises(HttpResponseError) as caught:
        wire.add(chained, "/bin/true", depends_on=depends)
    assert (caught.value.status_code, code_of(caught.value)) == (400, code)


def test_dependencies_survive_a_crash(own: Callable[[], Wire]) -> None:
    wire = own()
    pool = wire.pool(1)
    job = wire.job(pool, uses_task_dependencies=True)
    wire.run(job, "/bin/true", id="done")
    wire.run(job, "/bin/false", id="failed")
    blocked = wire.add(job, "/bin/true", depends_on=on("failed"))
    free = wire.add(job, "/bin/true", depends_on=on("done", "later"))
    wire.service.stop()
    again = own()
    assert {again.client.get_task(job, name).state for name in (blocked, free)} == {"active"}
    again.run(job, "/bin/true", id="later")
    again.state(job, free, "completed")
    assert again.client.get_task(job, blocked).state == "active"
