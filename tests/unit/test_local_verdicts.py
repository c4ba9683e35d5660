"""What becomes of a task whose run is over; and how many wake up in one turn of a loop."""

from __future__ import annotations

import asyncio
import json

import pytest

from airflow_batchwrap.local.control.turnstile import Turnstile, sliced
from airflow_batchwrap.local.control.verdicts import Verdict, of_run
from airflow_batchwrap.local.model.entities import Job, Task
from airflow_batchwrap.local.model.states import Ending, JobState
from airflow_batchwrap.local.node.run import Outcome

DONE = Outcome(0, None)
FAILED = Outcome(3, {"code": "FailureExitCode", "category": "usererror"})
NO_FILE = Outcome(None, {"code": "BlobNotFound", "category": "usererror"})


def make_task(retries: int = 0) -> Task:
    """A running task that Batch may run so many times more."""
    job = Job(1, "job", {"poolInfo": {"poolId": "pool"}})
    body = {"constraints": {"maxTaskRetryCount": retries}}
    return Task(2, "task", job, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("ending", "outcome", "verdict"),
    [
        (None, DONE, Verdict.COMPLETED),
        (None, FAILED, Verdict.COMPLETED),
        (None, None, Verdict.WAITS),
        (Ending.TERMINATED, FAILED, Verdict.COMPLETED),
        (Ending.TERMINATED, None, Verdict.NEVER_RAN),
        (Ending.WALL_CLOCK, FAILED, Verdict.COMPLETED),
        (Ending.REQUEUE, FAILED, Verdict.REQUEUED),
        (Ending.REQUEUE, None, Verdict.REQUEUED),
        (Ending.LOST, FAILED, Verdict.WAITS),
        (Ending.DISCARD, DONE, Verdict.FORGOTTEN),
    ],
)
def test_each_end_has_its_verdict(ending: Ending | None, outcome: Outcome | None, verdict: Verdict) -> None:
    assert of_run(make_task(), ending, outcome) is verdict


def test_only_a_command_that_failed_is_retried_as_often_as_it_may_be() -> None:
    task = make_task(retries=2)
    assert of_run(task, None, FAILED) is Verdict.RETRIED
    assert of_run(task, None, NO_FILE) is Verdict.COMPLETED
    assert of_run(task, Ending.TERMINATED, FAILED) is Verdict.COMPLETED
    task.retries = 2
    assert of_run(task, None, FAILED) is Verdict.COMPLETED
    assert of_run(make_task(retries=-1), None, FAILED) is Verdict.RETRIED


def test_nothing_is_retried_in_a_job_that_ends() -> None:
    task = make_task(retries=2)
    task.job.move(JobState.TERMINATING)
    assert of_run(task, None, FAILED) is Verdict.COMPLETED
    # What was to end has ended, also where it waited for its node to be prepared.
    assert of_run(task, Ending.TERMINATED, None) is Verdict.NEVER_RAN


async def test_turnstile_lets_so_many_through_in_a_turn_first_come_first_served() -> None:
    turnstile, passed, by_turn = Turnstile(4), [], []

    async def walk(number: int) -> None:
        await turnstile.turn()
        passed.append(number)

    walking = [asyncio.ensure_future(walk(number)) for number in range(30)]
    while len(passed) < 30:
        before = len(passed)
        await asyncio.sleep(0)
        by_turn.append(len(passed) - before)
    await asyncio.gather(*walking)
    assert passed == list(range(30))
    assert max(by_turn) <= 4


async def test_sliced_work_lets_others_in() -> None:
    seen: list[str] = []
    asyncio.get_running_loop().call_soon(seen.append, "other")
    async for number in sliced(range(6), 2):
        seen += [str(number)]
    assert seen == ["0", "1", "other", "2", "3", "4", "5"]
