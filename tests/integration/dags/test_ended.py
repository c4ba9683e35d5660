"""What becomes of a set-up's pool and job, and of a step that is being submitted, when the Airflow task is ended."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from airflow_batchwrap.exceptions import PoolError, StepTimeout
from tests.support.polling import until

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from tests.support.bench import Bench

# What Airflow says of the task, and whether a set-up's pool and job are removed then: by a trigger, and by a worker.
STATES = [
    ("failed", True),
    ("success", True),
    ("skipped", True),
    ("restarting", False),
    (None, False),
    ("deferred", False),
    ("up_for_retry", False),
]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Decide what Airflow says of any task."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    def decide(state: str | None) -> None:
        def states(**asked: Any) -> dict[str, Any]:
            return {asked["run_ids"][0]: {asked["task_ids"][0]: state}}

        monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", states)

    return decide


def alive(bench: Bench, client: BatchClient) -> list[str]:
    """Return the bench's pools and jobs that nobody has asked to delete."""
    mine = f"startswith(id, '{bench.dag.dag_id}') and state ne 'deleting'"
    pools, jobs = client.list_pools(filter=mine), client.list_jobs(filter=mine)
    return ["pool" for _ in pools] + ["job" for _ in jobs]


@pytest.mark.parametrize(("state", "goes"), STATES)
def test_set_up_that_waits_in_the_triggerer(
    bench: Bench, client: BatchClient, say: Callable[[str | None], None], state: str | None, goes: bool
) -> None:
    from airflow_batchwrap import CreatePoolOperator
    from airflow_batchwrap.triggers.pool import PoolTrigger

    shut, gate = bench.gate()
    begun = bench.submit(bench.make(CreatePoolOperator, pool_config={"start_task": shut}))
    say(state)
    asyncio.run(PoolTrigger(**begun.trigger_arguments).on_kill())
    assert alive(bench, client) == ([] if goes else ["pool", "job"])
    gate.touch()


def test_end_that_airflow_cuts_short(bench: Bench, client: BatchClient, say: Callable[[str | None], None]) -> None:
    """Airflow cancels a trigger again and again until it is gone, while it still ends what it waited for."""
    from airflow_batchwrap import CreatePoolOperator
    from airflow_batchwrap.triggers.pool import PoolTrigger

    shut, gate = bench.gate()
    begun = bench.submit(bench.make(CreatePoolOperator, pool_config={"start_task": shut}))
    say("failed")

    async def cut_short() -> None:
        ending = asyncio.create_task(PoolTrigger(**begun.trigger_arguments).on_kill())
        await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        await asyncio.to_thread(until, lambda: not alive(bench, client), "the end of pool and job", 60)

    asyncio.run(cut_short())
    gate.touch()


def test_pool_of_somebody_else_stays(
    bench: Bench, pool: str, client: BatchClient, say: Callable[[str | None], None]
) -> None:
    from airflow_batchwrap import UsePoolOperator
    from airflow_batchwrap.triggers.pool import PoolTrigger

    operator = bench.make(UsePoolOperator, pool_id=pool)
    workspace = bench.run(operator)
    assert alive(bench, client) == ["job"]
    say("failed")
    trigger = PoolTrigger(
        pool_id=pool,
        min_nodes=None,
        job_id=workspace["job_id"],
        owns_pool=workspace["owns_pool"],
        deadline=time.time() + 60,
        poll_interval=1.0,
        resume={},
        identity=operator.identity(bench.context(operator)),
        **operator.connections(),
    )
    asyncio.run(trigger.on_kill())
    assert alive(bench, client) == []
    assert client.get_pool(pool).state == "active"


@pytest.mark.parametrize(("state", "goes"), [("failed", True), ("restarting", False)])
def test_set_up_that_waits_on_the_worker(
    bench: Bench, client: BatchClient, say: Callable[[str | None], None], state: str, goes: bool
) -> None:
    from airflow_batchwrap import CreatePoolOperator

    shut, gate = bench.gate()
    operator = bench.make(CreatePoolOperator, pool_config={"start_task": shut}, inline_wait=60)
    say(state)

    def kill() -> None:
        until(lambda: len(alive(bench, client)) == 2, "pool and job", 60)
        operator.on_kill()

    killing = threading.Thread(target=kill)
    killing.start()
    with pytest.raises(PoolError, match=f"was ended with the Airflow task \\({state}\\)"):
        bench.begin(operator)
    killing.join()
    assert alive(bench, client) == ([] if goes else ["pool", "job"])
    gate.touch()


@pytest.mark.parametrize("state", ["running", None])
def test_set_up_goes_on_where_only_the_worker_ends(
    bench: Bench, client: BatchClient, say: Callable[[str | None], None], state: str | None
) -> None:
    from airflow_batchwrap import CreatePoolOperator

    shut, gate = bench.gate()
    operator = bench.make(CreatePoolOperator, pool_config={"start_task": shut}, inline_wait=60)
    say(state)

    def kill_then_open() -> None:
        until(lambda: len(alive(bench, client)) == 2, "pool and job", 60)
        operator.on_kill()
        gate.touch()

    killing = threading.Thread(target=kill_then_open)
    killing.start()
    assert bench.begin(operator).result["owns_pool"]
    killing.join()
    assert alive(bench, client) == ["pool", "job"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_step_that_is_ended_while_it_is_submitted(
    bench: Bench, pool: str, client: BatchClient, say: Callable[[str | None], None], when: str
) -> None:
    from airflow_batchwrap import RunBatchTaskOperator, UsePoolOperator

    workspace = bench.run(bench.make(UsePoolOperator, pool_id=pool))
    shut, gate = bench.gate()
    operator = bench.make(RunBatchTaskOperator, workspace=workspace, command=shut, inline_wait=60)
    say("failed")
    build, create = operator._submission, operator._push

    def ended(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            operator.on_kill()
            return call(*arguments, **named)

        return run

    # The signal comes as these are called: just before the Batch task is made, and just after.
    setattr(operator, *(("_submission", ended(build)) if when == "before" else ("_push", ended(create))))
    with pytest.raises(StepTimeout, match="ended"):
        bench.begin(operator)
    tasks = list(client.list_tasks(workspace["job_id"]))
    assert len(tasks) == (0 if when == "before" else 1)
    batch_tasks = partial(client.list_tasks, workspace["job_id"])
    until(lambda: all(task.state == "completed" for task in batch_tasks()), "the end of all Batch tasks", 60)
    gate.touch()
