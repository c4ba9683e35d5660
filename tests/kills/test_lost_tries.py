"""A try that Airflow has given up lives on beside the one in its place, and takes nothing away from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.real_airflow import runs

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from tests.support.kill_stack import KillStack

pytestmark = [pytest.mark.kills, pytest.mark.timeout(600)]


def test_set_up_that_fails_when_another_try_has_its_pool(stack: KillStack, batch: BatchClient) -> None:
    run = stack.start("set_up")
    stack.wait("the set-up's pool and job", lambda: run.notes("reached"))
    lost = run.notes("reached")[0]
    stack.kill([psutil.Process(lost["parent"])])
    stack.wait("the next try, with the same pool and job", lambda: len(run.notes("reached")) == 2, 180)
    jobs = [job.id for job in batch.list_jobs(filter="state eq 'active'")]

    run.let("fail-1")
    run.let("release-1")
    stack.wait("the end of the lost try", lambda: not runs(lost["pid"]))
    assert [job.id for job in batch.list_jobs(filter="state eq 'active'")] == jobs
    assert [pool.id for pool in batch.list_pools(filter="state eq 'active'")] == jobs

    run.let("release")
    run.let("go")
    stack.wait("the end", run.over)
    assert run.client.run_state(run.dag_id, run.run_id) == "success"
    assert [note["job"] for note in run.notes("batch")] == jobs
    # Airflow calls back by itself for the heartbeats it missed, and then without an error.
    assert {note["error"] for note in run.notes("retries")} == {"NoneType"}
    assert run.notes("failures") == []
