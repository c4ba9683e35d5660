"""A try that Airflow has replaced by another, and that still runs, takes nothing away and reports nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from azure.batch import BatchClient

    from tests.support.bench import Bench

pytestmark = pytest.mark.usefixtures("connections")


def active_jobs(client: BatchClient, bench: Bench) -> list[str]:
    found = client.list_jobs(filter=f"startswith(id, '{bench.dag.dag_id}') and state eq 'active'")
    return [job.id for job in found]


@pytest.mark.parametrize("kind", ["step that fails", "step that succeeds", "manifest"])
def test_job_of_a_task_that_is_alone_on_its_pool(bench: Bench, pool: str, client: BatchClient, kind: str) -> None:
    from airflow.sdk.exceptions import AirflowRescheduleException

    from airflow_batchwrap import RunBatchManifestOperator, RunBatchTaskOperator, StepFailed

    shut, gate = bench.gate()
    work: BaseOperator
    if kind == "manifest":
        work = bench.make(RunBatchManifestOperator, "many", manifest=[{"command": shut}] * 3, pool_id=pool, retries=3)
    else:
        command = f"{shut}; echo 7; exit {3 if kind == 'step that fails' else 0}"
        work = bench.make(RunBatchTaskOperator, "work", command=command, pool_id=pool, retries=3)
    lost = bench.submit(work, try_number=1)
    bench.superseded.add(1)
    with pytest.raises(AirflowRescheduleException):
        bench.begin(work, try_number=1)  # one that has only begun
    other = bench.submit(work, try_number=2)
    gate.touch()
    with pytest.raises(AirflowRescheduleException):
        lost.finish()
    # Its job is the other try's, which ends it once it has told what came of it.
    assert len(active_jobs(client, bench)) == 1
    if kind == "step that fails":
        with pytest.raises(StepFailed, match="exit code 3"):
            other.finish()
    else:
        result = other.finish()
        assert (result["succeeded"] == 3) if kind == "manifest" else (result == "7")
    assert active_jobs(client, bench) == []


def test_set_up(bench: Bench, client: BatchClient) -> None:
    from airflow.sdk.exceptions import AirflowRescheduleException

    from airflow_batchwrap import CreatePoolOperator, TryAgain

    failed = {"kind": "error", "error": "no answer"}
    work = bench.make(CreatePoolOperator, "set_up", pool_config={"target_dedicated_nodes": 1}, retries=3)
    bench.run(work, try_number=1)
    bench.superseded.add(1)
    jobs = active_jobs(client, bench)
    lost = bench.context(work, try_number=1)
    with pytest.raises(AirflowRescheduleException):
        work.execute_complete(lost, {**failed, "resume": {"workspace": bench.run(work, try_number=2)}})
    assert active_jobs(client, bench) == jobs
    # One that is Airflow's still leaves it to the next try, and the last one removes it.
    for number, left in ((2, jobs), (4, [])):
        with pytest.raises(TryAgain, match="no answer"):
            work.execute_complete(
                bench.context(work, try_number=number),
                {**failed, "resume": {"workspace": bench.run(work, try_number=number)}},
            )
        assert active_jobs(client, bench) == left


@pytest.mark.parametrize("final", [False, True])
def test_what_no_other_try_goes_on_with_is_removed(bench: Bench, client: BatchClient, final: bool) -> None:
    from airflow.sdk import ExceptionRetryPolicy
    from airflow.sdk.definitions.retry_policy import RetryAction, RetryRule

    from airflow_batchwrap import CreatePoolOperator, TryAgain

    shut, _ = bench.gate()
    never = ExceptionRetryPolicy(rules=[RetryRule(exception=TryAgain, action=RetryAction.FAIL, reason="as we like it")])
    work = bench.make(
        CreatePoolOperator,
        "set_up",
        pool_config={"start_task": shut},
        retries=3,
        retry_policy=never if final else None,
    )
    begun = bench.submit(work)
    assert begun.trigger is not None
    event = {"kind": "error", "error": "no answer", "resume": begun.trigger[1]["resume"]}
    with pytest.raises(TryAgain, match="no answer"):
        work.execute_complete(begun.context, event)
    assert bool(active_jobs(client, bench)) is not final
