"""A whole manifest as one Airflow task: submitted once, its failures tolerated or tried again, its table right."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.polling import until

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from tests.support.bench import Bench

ECHO = "def do_action(engine, *args):\n    return {'args': list(args), 'index': engine.context['map_index']}\n"
ODD = """
    import pathlib, sys

    def do_action(engine, number, gate=None):
        print("looking at", number)
        if int(number) % 2 and not (gate and pathlib.Path(gate).exists()):
            raise ValueError(f"{number} is odd")
        return engine.context["attempt"]
"""


@pytest.fixture
def workspace(bench: Bench, pool: str) -> dict[str, Any]:
    """A workspace with the steps of this file."""
    from airflow_batchwrap import UsePoolOperator

    bench.steps(_1_echo=ECHO, _2_odd=ODD)
    found: dict[str, Any] = bench.run(bench.make(UsePoolOperator, "set_up", pool_id=pool, steps="steps"))
    return found


def manifest(bench: Bench, workspace: dict[str, Any], entries: Any, **arguments: Any) -> Any:
    from airflow_batchwrap import RunBatchManifestOperator

    return bench.make(
        RunBatchManifestOperator, "many", manifest=entries, workspace=workspace, **{"retries": 3, **arguments}
    )


def jobs_of(client: BatchClient, bench: Bench, state: str = "") -> list[Any]:
    where = f"startswith(id, '{bench.dag.dag_id}-many')" + (f" and state eq '{state}'" if state else "")
    return list(client.list_jobs(filter=where))


@pytest.mark.parametrize("arguments", [{"deferrable": False}, {"inline_wait": 0}, {}])
def test_each_entry_has_its_row(
    bench: Bench,
    workspace: dict[str, Any],
    hook: BatchWrapHook,
    client: BatchClient,
    capfd: pytest.CaptureFixture[str],
    arguments: dict[str, Any],
) -> None:
    large = "x" * 5000  # more than an environment variable carries
    entries = [
        ["1_echo.py", "a 'b c'"],
        {"step": "1_echo.py", "args": [{"n": 1}, None]},
        {"command": "echo one; echo 2"},
    ]
    work = manifest(bench, workspace, [*entries, ["1_echo.py", [large]]], values=True, **arguments)
    result = bench.run(work)
    assert {name: result[name] for name in ("entries", "succeeded", "failed", "cancelled")} == {
        "entries": 4,
        "succeeded": 4,
        "failed": 0,
        "cancelled": 0,
    }
    rows = list(hook.table_rows(result))
    assert [row["entry"] for row in rows] == [0, 1, 2, 3]
    assert {(row["state"], row["exit_code"], row["attempt"], row["failure"]) for row in rows} == {
        ("succeeded", 0, 1, "")
    }
    assert [row["value"] for row in rows] == [
        {"args": ["a", "b c"], "index": 0},
        {"args": [{"n": 1}, None], "index": 1},
        "2",
        {"args": [large], "index": 3},
    ]
    assert all(row["node_id"] and row["started"] <= row["ended"] for row in rows)
    assert (rows[0]["step"], rows[0]["args"], rows[2]["command"]) == ("1_echo.py", ["a", "b c"], "echo one; echo 2")
    for row in rows:
        assert hook.read_blob(result["container"], f"{row['output_prefix']}/stdout.txt") is not None
    told = "".join(capfd.readouterr())
    assert "Submitted 4 of 4 entries" in told
    assert "4 of 4 done (0 failed), 0 running, 0 waiting" in told
    assert "sig=" not in told
    assert jobs_of(client, bench, "active") == []


def test_a_submission_that_was_cut_short_is_completed(
    bench: Bench, workspace: dict[str, Any], client: BatchClient, hook: BatchWrapHook, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    entries = [{"command": f"echo x >> {marks}/{number}"} for number in range(250)]
    work = manifest(bench, workspace, entries, threads=1, keep_output=False)

    class WorkerDied(BaseException):
        """Nothing catches it, as nothing catches SIGKILL."""

    submit = hook.create_tasks

    def dying(job_id: str, items: Any, *rest: Any, **others: Any) -> int:
        submit(job_id, items[:130], *rest, **others)
        raise WorkerDied

    work.__dict__["hook"] = hook
    hook.__dict__["create_tasks"] = dying
    context = bench.context(work)
    with pytest.raises(WorkerDied):
        work.execute(context)
    (job,) = jobs_of(client, bench)
    assert sum(1 for _ in client.list_tasks(job.id)) == 130
    result = bench.run(work, try_number=2)
    assert (result["entries"], result["succeeded"]) == (250, 250)
    assert {row["job_id"] for row in hook.table_rows(result)} == {job.id}
    # Of what succeeds no output was asked to be kept.
    left = hook.list_blobs(result["container"], workspace["output_prefix"])
    assert [name for name in left if name.endswith(("stdout.txt", "stderr.txt"))] == []
    assert {path.read_text() for path in marks.iterdir()} == {"x\n"}
    assert len(list(marks.iterdir())) == 250
    # And once more: Airflow never heard of the success.
    assert bench.run(work, try_number=3) == result
    assert jobs_of(client, bench, "active") == []


def test_a_deferred_try_that_died_is_gone_on_with(
    bench: Bench, workspace: dict[str, Any], client: BatchClient, hook: BatchWrapHook
) -> None:
    shut, gate = bench.gate()
    work = manifest(bench, workspace, [{"command": shut}, {"command": "true"}])
    bench.submit(work)
    gate.touch()
    result = bench.run(work, try_number=2)
    assert {(row["attempt"], row["state"]) for row in hook.table_rows(result)} == {(1, "succeeded")}
    assert len(jobs_of(client, bench)) <= 1


def test_another_manifest_ends_the_old_job_and_begins_with_its_next_attempts(
    bench: Bench, workspace: dict[str, Any], client: BatchClient, hook: BatchWrapHook, capfd: pytest.CaptureFixture[str]
) -> None:
    shut, _ = bench.gate()
    work = manifest(bench, workspace, [{"command": shut}])
    bench.submit(work)
    work.manifest = [{"command": "true"}]
    result = bench.run(work, try_number=2)
    assert {(row["attempt"], row["state"]) for row in hook.table_rows(result)} == {(2, "succeeded")}
    assert jobs_of(client, bench, "active") == []
    assert "has another manifest" in "".join(capfd.readouterr())


@pytest.mark.parametrize("rerun", ["failed", "all"])
def test_a_clear_runs_what_did_not_succeed_or_all_of_it(
    bench: Bench, workspace: dict[str, Any], hook: BatchWrapHook, tmp_path: Path, rerun: str
) -> None:
    gate = tmp_path / "gate"
    entries = [["2_odd.py", [number, str(gate)]] for number in range(4)]
    work = manifest(bench, workspace, entries, max_failures=2, rerun=rerun)
    first = bench.run(work)
    assert (first["succeeded"], first["failed"]) == (2, 2)
    gate.touch()  # the reason is mended
    second = bench.run(work, try_number=2, cleared=1)
    assert (second["succeeded"], second["failed"]) == (4, 0)
    attempts = [row["attempt"] for row in hook.table_rows(second)]
    assert attempts == ([1, 2, 1, 2] if rerun == "failed" else [2, 2, 2, 2])
    # And once more, where nothing is left.
    third = bench.run(work, try_number=3, cleared=2)
    attempts = [row["attempt"] for row in hook.table_rows(third)]
    assert attempts == ([1, 2, 1, 2] if rerun == "failed" else [3, 3, 3, 3])


def test_a_clear_of_another_task_starts_nothing_anew(
    bench: Bench, workspace: dict[str, Any], hook: BatchWrapHook, client: BatchClient, tmp_path: Path
) -> None:
    marks, (shut, gate) = tmp_path / "marks", bench.gate()
    work = manifest(bench, workspace, [{"command": f"echo x >> {marks}; {shut}"}])
    bench.submit(work)
    (job,) = jobs_of(client, bench)
    until(marks.exists)
    gate.touch()
    # The worker or the triggerer died, and a person cleared another task of the run.
    result = bench.run(work, try_number=2, clears=1)
    assert {row["job_id"] for row in hook.table_rows(result)} == {job.id}
    assert marks.read_text() == "x\n"


@pytest.mark.parametrize("tolerated", [4, "40%", 0.4])
def test_failures_within_the_tolerance_are_told_and_no_more(
    bench: Bench,
    workspace: dict[str, Any],
    hook: BatchWrapHook,
    capfd: pytest.CaptureFixture[str],
    tolerated: Any,
) -> None:
    entries = [["2_odd.py", str(number)] for number in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12)]
    result = bench.run(manifest(bench, workspace, entries, max_failures=tolerated))
    assert (result["succeeded"], result["failed"]) == (6, 4)
    rows = list(hook.table_rows(result))
    assert [row["entry"] for row in rows if row["state"] == "failed"] == [0, 2, 4, 6]
    assert rows[0]["exit_code"] == 1
    assert rows[0]["failure"] == "exit code 1"
    assert "ValueError: 3 is odd" in "".join(capfd.readouterr())


def test_a_retry_submits_again_what_failed_and_nothing_else(
    bench: Bench, workspace: dict[str, Any], hook: BatchWrapHook, client: BatchClient, tmp_path: Path
) -> None:
    from airflow_batchwrap import StepFailed

    gate = tmp_path / "gate"
    entries = [["2_odd.py", [number, str(gate)]] for number in range(6)]
    work = manifest(bench, workspace, entries, max_failures="34%", values=True)
    with pytest.raises(StepFailed, match=r"3 of 6 entries failed") as told:
        bench.run(work)
    assert "ValueError: 1 is odd" in str(told.value)
    assert "Entry 1 (2_odd.py 1 " in str(told.value)
    assert bench.xcoms["table"]["failed"] == 3
    gate.touch()
    begun = bench.submit(work, try_number=2)
    (job,) = jobs_of(client, bench, "active")
    assert sorted(task.id.split("-")[1] for task in client.list_tasks(job.id)) == ["1", "3", "5"]
    result = begun.finish()
    assert (result["succeeded"], result["failed"]) == (6, 0)
    rows = list(hook.table_rows(result))
    assert [(row["entry"], row["attempt"], row["value"]) for row in rows] == [
        (number, 1 + number % 2, 1 + number % 2) for number in range(6)
    ]
    assert jobs_of(client, bench, "active") == []


def test_beyond_the_tolerance_what_still_runs_is_ended_and_the_table_is_written(
    bench: Bench, workspace: dict[str, Any], hook: BatchWrapHook, client: BatchClient
) -> None:
    from airflow_batchwrap import StepFailed

    slow = [{"command": "sleep 60"} for _ in range(4)]
    work = manifest(bench, workspace, [{"command": "echo why >&2; exit 7"}, *slow])
    began = time.monotonic()
    with pytest.raises(StepFailed, match="1 of 5 entries failed, 4 did not come to their end") as told:
        bench.run(work)
    assert time.monotonic() - began < 30
    assert "exit code 7\n    why" in str(told.value)
    table = next(
        name for name in hook.list_blobs(workspace["output_container"], workspace["output_prefix"]) if "table-" in name
    )
    assert table in str(told.value)
    data = hook.read_blob(workspace["output_container"], table)
    assert data is not None
    assert data.count(b'"state":"cancelled"') + data.count(b'"state":"not_submitted"') == 4
    assert data.count(b'"state":"failed"') == 1
    assert jobs_of(client, bench, "active") == []


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


def bulk_job(client: BatchClient) -> str:
    """Return a job whose pool does not exist: nothing in it runs."""
    from azure.batch import models as m

    job_id = f"bulk-{uuid.uuid4().hex[:8]}"
    client.create_job(m.BatchJobCreateOptions(id=job_id, pool_info=m.BatchPoolInfo(pool_id="nowhere")))
    return job_id


def test_a_busy_service_is_given_time_and_nothing_is_lost_or_doubled(
    connections: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azure.batch import BatchClient
    from azure.core.credentials import AzureNamedKeyCredential

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.local import runner

    log = tmp_path / "requests.log"
    faults = "seed=3,429=0.2,503=0.2,drop=0.2,retry-after=1"
    service = runner.launch(tmp_path / "busy", ["--port", "0", "--faults", faults, "--access-log", str(log)])
    try:
        conn = {"login": service.account, "password": service.key, "extra": {"account_url": service.url}}
        monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps({"conn_type": "azure_batch", **conn}))
        with BatchClient(service.url, AzureNamedKeyCredential(service.account, service.key)) as client:
            job_id = bulk_job(client)
            told: list[int] = []
            BatchWrapHook().create_tasks(
                job_id,
                range(1500),
                lambda number: {"id": f"t{number}", "commandLine": "true"},
                threads=4,
                log_progress=told.append,
            )
            assert told[-1] == 1500
            assert {str(task.id) for task in client.list_tasks(job_id, select=["id"])} == {
                f"t{number}" for number in range(1500)
            }
        sent = [line.split(" ") for line in log.read_text().splitlines() if "create_task_collection" in line]
        assert {line[1] for line in sent} >= {"200", "429", "503"}
        # Together: four threads that are told to wait do not ask four times a second.
        assert len(sent) < 60
    finally:
        service.stop()


def test_requests_that_are_too_large_are_split(
    hook: BatchWrapHook, client: BatchClient, capfd: pytest.CaptureFixture[str]
) -> None:
    job_id = bulk_job(client)
    large = [{"name": "LARGE", "value": "x" * 30_000}]  # a hundred of them are three times what a request may hold
    new = hook.create_tasks(
        job_id,
        range(150),
        lambda number: {"id": f"t{number}", "commandLine": "true", "environmentSettings": large},
        threads=2,
    )
    assert new == 150
    # Once more: all are there.
    again = hook.create_tasks(job_id, range(150), lambda number: {"id": f"t{number}", "commandLine": "true"}, threads=2)
    assert again == 0
    counts = hook.count_tasks(job_id)
    assert counts is not None
    assert counts.waiting == 150
    client.begin_delete_job(job_id)
    assert hook.count_tasks("no-such-job") is None


def test_what_batch_refuses_is_told(hook: BatchWrapHook, client: BatchClient) -> None:
    from airflow_batchwrap import ConfigError

    job_id = bulk_job(client)
    with pytest.raises(ConfigError, match=r"refuses 1 of 3 Batch tasks of job .*'t1'"):
        hook.create_tasks(
            job_id,
            range(3),
            lambda number: {"id": f"t{number}", "commandLine": "" if number == 1 else "true"},
            threads=1,
        )
    client.begin_delete_job(job_id)
    with pytest.raises(ConfigError, match="submit 1 Batch tasks to job"):
        hook.create_tasks("no-such-job", [1], lambda number: {"id": "t", "commandLine": "true"}, threads=1)


def test_a_manifest_without_a_workspace_brings_its_own(
    bench: Bench, pool: str, hook: BatchWrapHook, client: BatchClient
) -> None:
    from airflow_batchwrap import RunBatchManifestOperator

    bench.steps(_1_read="def do_action(engine, name):\n    return open(name).read()\n")
    (bench.folder / "word.txt").write_text("lemon")
    (bench.folder / "task.json").write_text('{"tasks": [["1_read.py", "word.txt"]]}')
    work = bench.make(
        RunBatchManifestOperator,
        "many",
        manifest="task.json",
        pool_id=pool,
        steps="steps",
        inputs="word.txt",
        values=True,
    )
    assert [row["value"] for row in hook.table_rows(bench.run(work))] == ["lemon"]
    assert jobs_of(client, bench, "active") == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"manifest": [["9_none.py"]]}, "names steps that the set-up has not packed: 9_none.py"),
        ({"manifest": 7}, "is a int: give a Manifest"),
        ({"manifest": []}, "lists nothing to run"),
        ({"max_failures": "many"}, "max_failures = 'many' cannot be read"),
        ({"max_failures": 1.5}, "max_failures = 1.5 cannot be read"),
        ({"max_failures": "101%"}, "cannot be read"),
        ({"max_failures": -1}, "cannot be read"),
        ({"pool_id": "p"}, "either a workspace"),
    ],
)
def test_what_is_wrong_is_told(
    bench: Bench, workspace: dict[str, Any], client: BatchClient, arguments: dict[str, Any], words: str
) -> None:
    from airflow_batchwrap import ConfigError

    work = (
        manifest(bench, workspace, **{"entries": [["1_echo.py"]], **arguments})
        if "manifest" not in arguments
        else (manifest(bench, workspace, arguments["manifest"]))
    )
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        bench.run(work)
    assert jobs_of(client, bench, "active") == []
