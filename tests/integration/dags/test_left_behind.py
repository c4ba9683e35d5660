"""A set-up that fails leaves nothing behind, whenever it does; what a killed one leaves says whose it is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.polling import until

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from tests.support.bench import Bench

Own = Callable[[], set[tuple[str, str]]]


@pytest.fixture
def own(bench: Bench, client: BatchClient) -> Own:
    """Return the bench's pools and jobs that nobody has asked to delete."""

    def look() -> set[tuple[str, str]]:
        living = "state eq 'active'"
        found = [("pool", item.id) for item in client.list_pools(filter=living)]
        found += [("job", item.id) for item in client.list_jobs(filter=living)]
        return {item for item in found if item[1].startswith(bench.dag.dag_id)}

    return look


def metadata(entity: Any) -> dict[str, str]:
    return {item.name: item.value for item in entity.metadata or ()}


def test_every_pool_and_job_says_who_made_it(bench: Bench, client: BatchClient, pool: str) -> None:
    from airflow_batchwrap import (
        CreatePoolOperator,
        RepurposePoolOperator,
        RunBatchTaskOperator,
        UsePoolOperator,
        __version__,
    )

    def marks(task_id: str, number: int) -> dict[str, str]:
        ids = {"dag_id": bench.dag.dag_id, "run_id": "r1", "task_id": task_id, "try_number": str(number)}
        return {**ids, "batchwrap_version": __version__}

    config = {"metadata": {"team": "ours", "dag_id": "not theirs to say"}}
    ways = {
        "group.create": bench.make(CreatePoolOperator, "group.create", pool_config=config, retries=1),
        "use": bench.make(UsePoolOperator, "use", pool_id=pool, retries=1),
        "repurpose": bench.make(RepurposePoolOperator, "repurpose", pool_id=pool, retries=1),
    }
    for task_id, operator in ways.items():
        workspace = bench.run(operator, try_number=2)
        found = metadata(client.get_job(workspace["job_id"]))
        assert found.items() >= marks(task_id, 2).items()
        if workspace["owns_pool"]:
            found = metadata(client.get_pool(workspace["pool_id"]))
            assert found.items() >= {**marks(task_id, 2), "team": "ours"}.items()
    lone = bench.make(RunBatchTaskOperator, "lone", command="sleep 60", pool_id=pool)
    bench.submit(lone, map_index=3)
    mapped = {**marks("lone", 1), "map_index": "3"}
    (job,) = [job for job in client.list_jobs() if metadata(job).items() >= mapped.items()]
    client.begin_delete_job(job.id)


@pytest.mark.parametrize("where", ["worker", "inline", "triggerer"])
@pytest.mark.parametrize("limit", ["pool_wait_timeout", "execution_timeout"])
def test_a_set_up_whose_time_is_over_removes_what_it_made(bench: Bench, own: Own, where: str, limit: str) -> None:
    from airflow.sdk.exceptions import AirflowTaskTimeout

    from airflow_batchwrap import CreatePoolOperator, NoCapacity

    shut, _ = bench.gate()
    given = {
        "retries": 1,
        "deferrable": where != "worker",
        "inline_wait": 0 if where == "triggerer" else 30,
        "pool_config": {"start_task": shut},
        limit: timedelta(seconds=2),
    }
    with pytest.raises((NoCapacity, AirflowTaskTimeout)) as caught:
        bench.run(bench.make(CreatePoolOperator, **given), try_number=2)  # the last one
    if isinstance(caught.value, NoCapacity):
        assert f"Raise {limit}" in str(caught.value)
    assert own() == set()


@pytest.mark.parametrize("named", [True, False])
def test_a_set_up_that_storage_refuses_half_way_leaves_no_pool(
    bench: Bench, own: Own, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], named: bool
) -> None:
    from airflow_batchwrap import ConfigError, CreatePoolOperator

    pool_id = f"{bench.dag.dag_id}-mine" if named else None
    operator = bench.make(CreatePoolOperator, "create", pool_config={}, pool_id=pool_id)
    wrong = {**json.loads(os.environ["AIRFLOW_CONN_WASB_DEFAULT"]), "password": "d3Jvbmc="}
    with monkeypatch.context() as changed:
        changed.setenv("AIRFLOW_CONN_WASB_DEFAULT", json.dumps(wrong))
        with pytest.raises(ConfigError, match="refused the credentials of connection 'wasb_default'"):
            bench.run(operator)
    # Of a pool without a name of its own the job comes first, and with it what the job needs.
    assert ("Removed pool" in "".join(capfd.readouterr())) == named
    assert own() == set()


def test_a_set_up_that_was_killed_is_taken_over_by_its_next_try_or_found_by_the_sweep(bench: Bench, own: Own) -> None:
    from airflow_batchwrap import CreatePoolOperator, SweepOrphansOperator

    shut, gate = bench.gate()
    operator = bench.make(CreatePoolOperator, "create", pool_config={"start_task": shut}, retries=1)
    bench.submit(operator, run_id="killed")
    left = own()
    assert {noun for noun, _ in left} == {"pool", "job"}
    sweep = bench.make(SweepOrphansOperator, delete=True)
    bench.run(sweep, run_id="sweep")
    assert own() == left, "its run goes on: the next try needs it"
    gate.touch()
    workspace = bench.run(operator, run_id="killed", try_number=2)
    assert {("pool", workspace["pool_id"]), ("job", workspace["job_id"])} == left
    bench.runs["killed"] = "failed"
    bench.run(sweep, run_id="sweep")
    assert own() == set()


def test_a_pool_that_is_taken_over_late_has_time_again(bench: Bench, own: Own, client: BatchClient) -> None:
    from airflow_batchwrap import CreatePoolOperator, DeletePoolOperator
    from airflow_batchwrap.hooks.autoscale import ScaleFormula

    def formula() -> ScaleFormula:
        found = ScaleFormula.read(client.get_pool(workspace["pool_id"]).auto_scale_formula)
        assert found is not None
        return found

    operator = bench.make(CreatePoolOperator, pool_config={"idle_minutes": 1}, pool_wait_timeout="1 min", retries=2)
    workspace = bench.run(operator)
    first = formula()
    assert bench.run(operator, try_number=2) == workspace
    assert formula() == first
    # A try that would wait for longer than the pool is to stay without work.
    operator.pool_wait_timeout = "1 h"
    assert bench.run(operator, try_number=3) == workspace
    assert formula().fresh_until > first.fresh_until + timedelta(minutes=50)
    assert (formula().dedicated, formula().spot) == (1, 0)
    bench.run(bench.make(DeletePoolOperator, workspace=workspace))
    assert own() == set()


def test_a_step_after_a_long_pause_wakes_the_pool_that_was_emptied(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_batchwrap import BatchWrapHook, CreatePoolOperator, DeletePoolOperator, RunBatchTaskOperator
    from airflow_batchwrap.local import runner

    # Five minutes pass in a fifth of a second.
    service = runner.launch(tmp_path / "fast", ["--time-scale", "1500"])
    try:
        login = {"login": service.account, "password": service.key, "extra": {"account_url": service.url}}
        monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps({"conn_type": "azure_batch", **login}))
        config = {"target_dedicated_nodes": 1, "target_spot_nodes": 1, "idle_minutes": 5, "pool_wait_timeout": "1 min"}
        workspace = bench.run(bench.make(CreatePoolOperator, pool_config=config))
        hook = BatchWrapHook()
        until(lambda: not hook.view_pool(workspace["pool_id"]).nodes, "an empty pool")
        step = bench.make(RunBatchTaskOperator, command="echo awake", workspace=workspace)
        assert bench.run(step) == "awake"
        bench.run(bench.make(DeletePoolOperator, workspace=workspace))
    finally:
        service.stop()


def test_a_job_ends_by_its_own_clock(bench: Bench, client: BatchClient, pool: str) -> None:
    from airflow_batchwrap import RunBatchTaskOperator, StepFailed, TryAgain, UsePoolOperator

    workspace = bench.run(bench.make(UsePoolOperator, pool_id=pool, job_wall_clock="3 s"))
    begun = bench.submit(bench.make(RunBatchTaskOperator, command="sleep 600", workspace=workspace))
    job = client.get_job(workspace["job_id"])
    assert job.constraints is not None
    assert job.constraints.max_wall_clock_time == timedelta(seconds=3)
    # Airflow is gone: nobody looks.
    until(lambda: client.get_job(workspace["job_id"]).state == "completed", "the job's end")
    job = client.get_job(workspace["job_id"])
    assert job.execution_info is not None
    assert job.execution_info.termination_reason == "MaxWallClockTimeExpiry"
    (task,) = client.list_tasks(workspace["job_id"])
    assert task.state == "completed"
    with pytest.raises((StepFailed, TryAgain)):
        begun.finish()
    client.begin_delete_job(workspace["job_id"])
