"""What ends a manifest before its time, and what stays: a deadline, a person, a clear, another pool, a lost job."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import manifests
from tests.support.manifests import jobs_of, manifest
from tests.support.polling import until

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from tests.support.bench import Bench


@pytest.fixture
def workspace(bench: Bench, pool: str) -> dict[str, Any]:
    """A workspace with the steps of `manifests`."""
    return manifests.workspace(bench, pool)


@pytest.mark.parametrize("arguments", [{"deferrable": False}, {"inline_wait": 0}])
def test_the_deadline_ends_all_of_it(
    bench: Bench, workspace: dict[str, Any], client: BatchClient, arguments: dict[str, Any]
) -> None:
    from datetime import timedelta

    from airflow.sdk.exceptions import AirflowTaskTimeout

    from airflow_batchwrap import StepTimeout

    entries = [{"command": "true"}, {"command": "sleep 60"}]
    work = manifest(bench, workspace, entries, execution_timeout=timedelta(seconds=4), **arguments)
    with pytest.raises(StepTimeout if work.deferrable else AirflowTaskTimeout):
        bench.run(work)
    assert jobs_of(client, bench, "active") == []
    work.execution_timeout, work.deferrable = None, True
    # The next try runs what did not end, and fails with it at once where that is deleted under it.
    begun = bench.submit(work, try_number=2)
    (job,) = jobs_of(client, bench, "active")
    assert [task.command_line for task in client.list_tasks(job.id)] == ["/bin/sh -c 'sleep 60'"]
    client.begin_delete_job(job.id)
    from airflow_batchwrap import NodeLost

    with pytest.raises(NodeLost, match="was deleted"):
        begun.finish()


@pytest.mark.parametrize("where", ["triggerer", "worker"])
@pytest.mark.parametrize(("state", "ended"), [("failed", True), ("running", False)])
def test_an_end_by_a_person_ends_the_manifest_and_nothing_else(
    bench: Bench,
    workspace: dict[str, Any],
    client: BatchClient,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    state: str,
    ended: bool,
) -> None:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    from airflow_batchwrap import StepTimeout
    from airflow_batchwrap.triggers.manifest import ManifestTrigger

    def states(**asked: Any) -> dict[str, Any]:
        return {asked["run_ids"][0]: {asked["task_ids"][0]: state}}

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", states)
    shut, gate = bench.gate()
    work = manifest(bench, workspace, [{"command": shut}] * 3)
    if where == "triggerer":
        begun = bench.submit(work)
        asyncio.run(ManifestTrigger(**begun.trigger_arguments).on_kill())
    else:
        work.deferrable = False

        # Airflow calls it in a signal's handler, between two lines of the same thread.
        def end() -> None:
            work.on_kill()
            if not ended:
                gate.touch()

        timer = threading.Timer(3, end)
        timer.start()
        if ended:
            with pytest.raises(StepTimeout, match="was ended with its Airflow task"):
                bench.run(work)
        else:
            assert bench.run(work)["succeeded"] == 3
        timer.join()
    if where == "triggerer" or ended:
        until(lambda: bool(jobs_of(client, bench, "active")) is not ended, "the job as it is to be", 30)
    assert str(client.get_job(workspace["job_id"]).state) in ("active", "BatchJobState.ACTIVE")
    gate.touch()


@pytest.mark.parametrize("where", ["triggerer", "worker"])
@pytest.mark.parametrize("rerun", ["failed", "all"])
def test_a_clear_of_a_manifest_at_work_ends_it_and_keeps_what_succeeded(
    bench: Bench,
    workspace: dict[str, Any],
    client: BatchClient,
    hook: BatchWrapHook,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    where: str,
    rerun: str,
) -> None:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    from airflow_batchwrap import StepTimeout
    from airflow_batchwrap.triggers.manifest import ManifestTrigger

    state = None if where == "triggerer" else "restarting"

    def states(**asked: Any) -> dict[str, Any]:
        return {asked["run_ids"][0]: {asked["task_ids"][0]: state}}

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", states)
    marks, (shut, gate) = tmp_path / "marks", bench.gate()
    entries = [{"command": f"echo x >> {marks}"}, *[{"command": shut}] * 3]
    work = manifest(bench, workspace, entries, rerun=rerun, retries=0)

    def one_is_done() -> bool:
        found = jobs_of(client, bench, "active")
        counts = hook.count_tasks(found[0].id) if found else None
        return counts is not None and counts.succeeded == 1

    if where == "triggerer":
        begun = bench.submit(work)
        until(one_is_done, "one success", 60)
        asyncio.run(ManifestTrigger(**begun.trigger_arguments).on_kill())
    else:
        work.deferrable = False

        def end() -> None:
            until(one_is_done, "one success", 60)
            work.on_kill()

        clearing = threading.Thread(target=end)
        clearing.start()
        with pytest.raises(StepTimeout, match="was ended with its Airflow task"):
            bench.run(work)
        clearing.join()
        work.deferrable = True
    until(lambda: not jobs_of(client, bench, "active"), "the end of the job", 30)
    gate.touch()
    result = bench.run(work, try_number=2, cleared=1, clears=1)
    assert result["succeeded"] == 4
    attempts = [row["attempt"] for row in hook.table_rows(result)]
    assert attempts == ([1, 2, 2, 2] if rerun == "failed" else [2, 2, 2, 2])
    assert marks.read_text().count("x") == (1 if rerun == "failed" else 2)
    assert jobs_of(client, bench, "active") == []
    assert jobs_of(client, bench, "completed") == []


def test_a_manifest_whose_set_up_has_made_another_pool_goes_on_there(
    bench: Bench, client: BatchClient, hook: BatchWrapHook, tmp_path: Path
) -> None:
    """A person changed the pool's configuration and cleared the manifest; its triggerer was dead, or slow to hear."""
    from airflow_batchwrap import CreatePoolOperator, DeletePoolOperator, PoolConfig

    set_up = bench.make(CreatePoolOperator, "create", pool_config=PoolConfig(), retries=1)
    workspace = bench.run(set_up)
    marks, (shut, gate) = tmp_path / "marks", bench.gate()
    work = manifest(bench, workspace, [{"command": f"echo x >> {marks}"}, *[{"command": shut}] * 3], retries=0)
    bench.submit(work)
    (job,) = jobs_of(client, bench, "active")
    until(lambda: (counts := hook.count_tasks(job.id)) is not None and counts.succeeded == 1, "one success", 60)
    set_up.pool_config = PoolConfig(start_task="true")
    work.workspace = bench.run(set_up, try_number=2, cleared=1, clears=1)
    assert work.workspace["pool_id"] != workspace["pool_id"]
    gate.touch()
    result = bench.run(work, try_number=2, cleared=1, clears=1)
    assert result["succeeded"] == 4
    assert [row["attempt"] for row in hook.table_rows(result)] == [1, 2, 2, 2]
    assert marks.read_text() == "x\n"
    bench.run(bench.make(DeletePoolOperator, "clean_up", workspace=work.workspace))
    assert jobs_of(client, bench, "active") == []


def test_the_clean_up_ends_what_nobody_has_ended_and_no_neighbours(
    bench: Bench, workspace: dict[str, Any], pool: str, client: BatchClient
) -> None:
    """A person ended the manifest while the triggerer was dead: its job is left to the clean-up."""
    from airflow_batchwrap import DeletePoolOperator, RunBatchManifestOperator, UsePoolOperator

    shut, gate = bench.gate()
    bench.submit(manifest(bench, workspace, [{"command": shut}]))
    # Another set-up of the same run on the same pool, and a manifest that has no set-up.
    beside = bench.run(bench.make(UsePoolOperator, "beside", pool_id=pool, steps="steps"))
    others = [
        bench.make(RunBatchManifestOperator, name, manifest=[{"command": shut}], **where)
        for name, where in {"many_beside": {"workspace": beside}, "many_alone": {"pool_id": pool}}.items()
    ]
    begun = [bench.submit(other) for other in others]
    assert len(jobs_of(client, bench, "active")) == 3
    # Its set-up was cleared meanwhile, with another step, and opened another job.
    later = {**workspace, "job_id": workspace["job_id"].replace("-e1", "-e2")}
    bench.run(bench.make(DeletePoolOperator, "clean_up", workspace=later))
    left = {job.id for job in jobs_of(client, bench, "active")}
    assert left == {one.trigger_arguments["job_id"] for one in begun}
    gate.touch()
    assert [one.finish()["succeeded"] for one in begun] == [1, 1]
    for name, there in {"clean_up_it": workspace, "clean_up_beside": beside}.items():
        bench.run(bench.make(DeletePoolOperator, name, workspace=there))
    assert jobs_of(client, bench, "active") == []


def test_a_job_that_somebody_ended_is_told_and_its_rest_tried_again(
    bench: Bench, workspace: dict[str, Any], client: BatchClient, hook: BatchWrapHook
) -> None:
    from airflow_batchwrap import StepFailed

    shut, gate = bench.gate()
    work = manifest(bench, workspace, [{"command": "true"}, *[{"command": shut}] * 4])
    begun = bench.submit(work)
    (job,) = jobs_of(client, bench, "active")
    until(lambda: (counts := hook.count_tasks(job.id)) is not None and counts.succeeded == 1, "one success", 30)
    hook.terminate_job(job.id, "enough")
    # As it is noticed: by those that it ended, or by those that it keeps from starting.
    with pytest.raises(StepFailed, match=r"TaskEnded|was ended \(enough\)"):
        begun.finish()
    gate.touch()
    result = bench.run(work, try_number=2)
    assert result["succeeded"] == 5
    assert [row["attempt"] for row in hook.table_rows(result)] == [1, 2, 2, 2, 2]
