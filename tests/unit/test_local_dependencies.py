"""Which tasks wait for which others: ranges of ids against the plain reading of what they mean, and what they cost."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from typing import Any

import pytest

from airflow_batchwrap.local.model.dependencies import Dependencies
from airflow_batchwrap.local.model.runs import Runs


@dataclass(frozen=True)
class Waiting:
    """A task that depends on others."""

    uid: int
    body: bytes


def waiting(uid: int, **depends: Any) -> Waiting:
    """A task that depends on ids and ranges of ids."""
    return Waiting(uid, json.dumps({"dependsOn": depends}, separators=(",", ":")).encode())


@pytest.mark.parametrize("seed", range(5))
def test_runs_hold_what_a_set_holds(seed: int) -> None:
    hand, runs, plain = random.Random(seed), Runs(), set[int]()
    for _ in range(2000):
        number = hand.randint(-20, 20)
        if hand.random() < 0.6:
            runs.add(number)
            plain.add(number)
        else:
            runs.remove(number)
            plain.discard(number)
        start = hand.randint(-22, 22)
        assert runs.missing(start) == next(each for each in range(start, 50) if each not in plain)


@pytest.mark.parametrize("seed", range(5))
def test_a_task_is_free_once_all_that_it_names_is_satisfied(seed: int) -> None:
    hand, dependencies, satisfied = random.Random(seed), Dependencies[Waiting](), set[int]()
    tasks: dict[Waiting, set[int]] = {}
    for uid in range(60):
        start, single = hand.randint(-3, 20), hand.randint(0, 25)
        end = start + hand.randint(-2, 8)
        task = waiting(uid, taskIds=[str(single)], taskIdRanges=[{"start": start, "end": end}])
        tasks[task] = {single, *range(start, end + 1)}
        assert dependencies.hold(task)
    free: set[Waiting] = set()
    while len(free) < len(tasks):
        number = hand.randint(-3, 30)
        if hand.random() < 0.2:
            satisfied.discard(number)
            dependencies.unsatisfy(str(number))
            continue
        satisfied.add(number)
        freed = set(dependencies.satisfy(str(number)))
        assert freed == {task for task, needed in tasks.items() if task not in free and needed <= satisfied}
        free |= freed


def test_ids_that_are_no_plain_numbers_are_in_no_range() -> None:
    dependencies = Dependencies[Waiting]()
    assert dependencies.hold(waiting(1, taskIdRanges=[{"start": 1, "end": 1}]))
    assert [dependencies.satisfy(name) for name in ("01", "+1", "one")] == [[], [], []]
    assert [task.uid for task in dependencies.satisfy("1")] == [1]


def test_hundreds_that_wait_for_the_last_of_thousands_are_free_at_once() -> None:
    dependencies = Dependencies[Waiting]()
    for uid in range(300):
        assert dependencies.hold(waiting(uid, taskIdRanges=[{"start": 1, "end": 20_000}]))
    for number in range(2, 20_001):
        assert dependencies.satisfy(str(number)) == []
    begin = time.perf_counter()
    assert len(dependencies.satisfy("1")) == 300
    # One turn of the service's loop; to look through each range anew took more than a second.
    assert time.perf_counter() - begin < 0.2
