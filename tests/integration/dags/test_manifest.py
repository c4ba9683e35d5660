"""A whole manifest as one Airflow task: submitted once, its failures tolerated or tried again, its table right."""

from __future__ import annotations

import time
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
