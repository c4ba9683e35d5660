"""Uploads that nobody uses any more are swept; what a run needs, or takes up again at that moment, is not."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_batchwrap.naming import INSTANCE, Maker

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.hooks.unused import OwnContainer
    from airflow_batchwrap.workspace import BlobRef, InputFile
    from tests.support.bench import Bench

WEEK, NOW = timedelta(days=7), timedelta(0)


@pytest.fixture
def dag_id() -> str:
    return f"unused-{uuid.uuid4().hex[:8]}"


def maker(dag_id: str, instance: str = "tests") -> Maker:
    return Maker(instance, dag_id, "r", "t")


def expire(hook: BatchWrapHook, container: str) -> None:
    """Let the time be over for which anybody said that a blob is needed."""
    client = hook.blobs.get_container_client(container)
    past = (datetime.now(UTC) - timedelta(minutes=1)).isoformat(timespec="seconds")
    for blob in client.list_blobs(include=["metadata"]):
        client.get_blob_client(blob.name).set_blob_metadata({**(blob.metadata or {}), "needed_until": past})


def expire_one(hook: BatchWrapHook, ref: BlobRef) -> None:
    past = (datetime.now(UTC) - timedelta(minutes=1)).isoformat(timespec="seconds")
    client = hook.blobs.get_blob_client(ref.container, ref.blob)
    client.set_blob_metadata({"sha256": ref.sha256, "needed_until": past})


def look(hook: BatchWrapHook, container: str, unused_for: timedelta = NOW) -> OwnContainer:
    (marks,) = [marks for name, marks, _ in hook.own_containers() if name == container]
    return hook.find_unused(container, marks, unused_for)


def names(hook: BatchWrapHook, container: str) -> set[str]:
    return set(hook.list_blobs(container, ""))


def upload(hook: BatchWrapHook, dag_id: str, text: str = "content", needed: timedelta = WEEK) -> BlobRef:
    return hook.upload_bytes(hook.own_container(maker(dag_id), "inputs"), f"calls/{text}.json", text.encode(), needed)


def test_only_what_is_old_and_needed_by_nobody_goes(hook: BatchWrapHook, dag_id: str) -> None:
    ref = upload(hook, dag_id)
    assert look(hook, ref.container).unused == ()  # a run may need it for a week
    expire(hook, ref.container)
    assert look(hook, ref.container, timedelta(days=1)).unused == ()  # it was used a moment ago
    found = look(hook, ref.container)
    assert (found.dag_id, found.role, found.count, found.size) == (dag_id, "inputs", 1, ref.size)
    assert hook.delete_unused(found) == 1
    assert names(hook, ref.container) == set()
    assert hook.delete_unused(found) == 0 or names(hook, ref.container) == set()


def test_what_is_used_again_is_needed_again_and_never_for_a_shorter_time(hook: BatchWrapHook, dag_id: str) -> None:
    ref = upload(hook, dag_id, needed=WEEK)
    client = hook.blobs.get_blob_client(ref.container, ref.blob)
    first = client.get_blob_properties()
    upload(hook, dag_id, needed=timedelta(hours=1))
    assert client.get_blob_properties().etag == first.etag  # nothing to say, and no request for it
    upload(hook, dag_id, needed=10 * WEEK)
    assert datetime.fromisoformat(client.get_blob_properties().metadata["needed_until"]) > datetime.now(UTC) + 10 * WEEK
    expire(hook, ref.container)
    hook.keep([ref], WEEK)
    assert look(hook, ref.container).unused == ()
    client.delete_blob()
    with pytest.raises(Exception, match="Clear the set-up task"):
        hook.keep([ref], WEEK)


def test_what_is_used_again_after_it_was_found_stays(hook: BatchWrapHook, dag_id: str) -> None:
    ref = upload(hook, dag_id)
    expire(hook, ref.container)
    found = look(hook, ref.container)
    assert [blob.name for blob in found.unused] == [ref.blob]
    upload(hook, dag_id)
    assert hook.delete_unused(found) == 0
    assert hook.read_blob(ref.container, ref.blob) == b"content"


def test_runs_and_sweeps_that_meet_leave_a_run_what_it_uses(hook: BatchWrapHook, dag_id: str) -> None:
    ref = upload(hook, dag_id)
    for _ in range(25):
        expire(hook, ref.container)
        found = look(hook, ref.container)
        start = threading.Barrier(3)

        def meet(what: Any, start: threading.Barrier = start) -> None:
            start.wait()
            what()

        jobs = [
            lambda: upload(hook, dag_id),
            lambda: upload(hook, dag_id, needed=2 * WEEK),
            lambda found=found: hook.delete_unused(found),
        ]
        threads = [threading.Thread(target=meet, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert hook.read_blob(ref.container, ref.blob) == b"content"
        assert look(hook, ref.container).unused == ()


@pytest.fixture
def files(hook: BatchWrapHook, dag_id: str, tmp_path: Path) -> list[InputFile]:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(str(number))
    given = [(path.name, path) for path in sorted(tmp_path.glob("*.txt"))]
    return list(hook.upload_inputs(maker(dag_id), given, WEEK))


def test_a_set_is_swept_whole_or_not_at_all(hook: BatchWrapHook, dag_id: str, files: list[InputFile]) -> None:
    container = hook.own_container(maker(dag_id), "inputs")
    prefix = hook.gather_set(container, files, WEEK)
    members = {f"{prefix}{number}.txt" for number in range(3)}
    marker = f"{prefix.rstrip('/')}.json"
    assert names(hook, container) >= {*members, marker}
    expire(hook, container)
    found = look(hook, container)
    assert {blob.name for blob in found.unused} == names(hook, container)

    # A run takes it up again: its list is written, its files are not.
    assert hook.gather_set(container, files, WEEK) == prefix
    hook.delete_unused(found)
    assert names(hook, container) == {*members, marker}
    assert look(hook, container).unused == ()

    expire(hook, container)
    assert hook.delete_unused(look(hook, container)) == 4
    assert names(hook, container) == set()


def test_a_set_that_is_half_swept_is_copied_anew(hook: BatchWrapHook, dag_id: str, files: list[InputFile]) -> None:
    container = hook.own_container(maker(dag_id), "inputs")
    prefix = hook.gather_set(container, files, WEEK)
    expire(hook, container)
    found = look(hook, container)
    members = tuple(blob for blob in found.unused if blob.name.startswith(prefix))
    # The sweep has deleted the list, and not yet the files, when a run comes.
    hook.delete_blobs(container, [f"{prefix.rstrip('/')}.json"])
    assert {blob.name for blob in look(hook, container).unused} >= {blob.name for blob in members}
    hook.gather_set(container, files, WEEK)
    assert hook.delete_unused(replace(found, unused=members)) == 0
    assert {f"{prefix}{number}.txt" for number in range(3)} < names(hook, container)


def test_secrets_go_with_their_job_or_when_their_time_is_over(hook: BatchWrapHook, dag_id: str) -> None:
    one, other = (hook.upload_secret(maker(dag_id), job, b"hush", WEEK) for job in ("job-1", "job-2"))
    assert one.blob != other.blob
    properties = hook.blobs.get_blob_client(one.container, one.blob).get_blob_properties()
    assert "sha256" not in properties.metadata
    assert one.sha256 not in one.blob
    assert hook.delete_secrets(maker(dag_id), "job-1") == 1
    assert names(hook, other.container) == {other.blob}
    assert look(hook, other.container, 4 * WEEK).unused == ()
    expire(hook, other.container)
    assert hook.delete_unused(look(hook, other.container, 4 * WEEK)) == 1


def test_containers_of_others_are_not_looked_at(hook: BatchWrapHook, dag_id: str) -> None:
    results, stranger = maker(dag_id).container, f"batchwrap-in-stranger-{uuid.uuid4().hex[:8]}"
    for name in (results, stranger):
        hook.ensure_container(name)
        hook.upload_bytes(name, "calls/a", b"a")
    assert not {results, stranger} & {name for name, _, _ in hook.own_containers()}


def test_containers_of_another_airflow_are_left_alone(bench: Bench, hook: BatchWrapHook, dag_id: str) -> None:
    from airflow_batchwrap import SweepOrphansOperator

    theirs = hook.upload_bytes(hook.own_container(maker(dag_id, "another"), "inputs"), "calls/a", b"a")
    ours = upload(hook, dag_id)
    assert theirs.container != ours.container
    nobodys, marks = f"batchwrap-in-{dag_id}-old", maker(dag_id).container_marks("0", "inputs")
    hook.ensure_container(nobodys, {name: value for name, value in marks.items() if name != INSTANCE})
    expire(hook, theirs.container)
    expire(hook, ours.container)
    rows = bench.run(bench.make(SweepOrphansOperator, unused_for=NOW, delete=True))
    assert ours.container in {row["entity_id"] for row in rows}
    (left,) = [row for row in rows if row["entity_id"] == theirs.container]
    assert (left["goes"], left["removed"], left["why"]) == (False, False, "made by the Airflow 'another'")
    assert (left["dag_id"], left["instance"]) == (dag_id, "another")
    (left,) = [row for row in rows if row["entity_id"] == nobodys]
    assert (left["goes"], left["why"]) == (False, "bears no instance")
    assert names(hook, theirs.container) == {theirs.blob}


def test_the_clean_up_sweeps_its_own_dags_uploads(bench: Bench, pool: str, hook: BatchWrapHook, dag_id: str) -> None:
    from airflow_batchwrap import DeletePoolOperator, UsePoolOperator

    bench.steps(_1_a="def do_action(engine): return 1")
    theirs = upload(hook, dag_id)
    expire(hook, theirs.container)
    use = bench.make(UsePoolOperator, pool_id=pool, steps="steps")
    own = bench.run(use)["archive"]["container"]
    assert own != theirs.container
    expire(hook, own)
    workspace = bench.run(use, run_id="r2")
    old = upload(hook, bench.dag.dag_id, "old")
    expire_one(hook, old)
    for unused_for, left in ((None, 2), ("1 day", 2), (NOW, 1)):
        bench.run(bench.make(DeletePoolOperator, workspace=workspace, unused_for=unused_for))
        assert len(names(hook, own)) == left
    assert names(hook, own) == {workspace["archive"]["blob"]}  # the second run took it up again
    assert names(hook, theirs.container) == {theirs.blob}


def test_the_sweep_lists_and_deletes_what_is_unused(bench: Bench, hook: BatchWrapHook, dag_id: str) -> None:
    from airflow_batchwrap import ConfigError, SweepOrphansOperator

    ref = upload(hook, dag_id)
    expire(hook, ref.container)
    for options, goes, left in (
        ({"unused_for": None}, False, 1),
        ({"delete": True}, False, 1),  # 30 days by default
        ({"unused_for": NOW}, True, 1),
        ({"unused_for": NOW, "delete": True}, True, 0),
    ):
        rows = {row["entity_id"]: row for row in bench.run(bench.make(SweepOrphansOperator, **options))}
        assert (ref.container in rows) is goes
        assert len(names(hook, ref.container)) == left
        if goes:
            row = rows[ref.container]
            assert (row["noun"], row["dag_id"], row["removed"]) == ("blobs", dag_id, not left)
    with pytest.raises(ConfigError, match="unused_for = 'old'"):
        bench.run(bench.make(SweepOrphansOperator, unused_for="old"))


def test_a_manifest_says_how_long_it_needs_what_the_set_up_uploaded(
    bench: Bench, pool: str, hook: BatchWrapHook
) -> None:
    from airflow_batchwrap import ConfigError, RunBatchManifestOperator, UsePoolOperator

    bench.steps(_1_a="def do_action(engine): return open('in.txt').read()")
    (bench.folder / "in.txt").write_text("i")
    workspace = bench.run(bench.make(UsePoolOperator, pool_id=pool, steps="steps", inputs="in.txt"))
    own = workspace["archive"]["container"]
    expire(hook, own)
    work = bench.make(RunBatchManifestOperator, manifest=[{"step": "1_a.py"}], workspace=workspace)
    bench.run(work)
    assert look(hook, own).unused == ()
    hook.delete_blobs(own, [workspace["inputs"][0]["ref"]["blob"]])
    again = bench.make(RunBatchManifestOperator, manifest=[{"step": "1_a.py"}], workspace=workspace)
    with pytest.raises(ConfigError, match="1 of 2 files that the set-up uploaded are gone"):
        bench.run(again)


def test_the_command_shows_and_sweeps_what_is_unused(
    hook: BatchWrapHook, dag_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from airflow_batchwrap import ConfigError
    from airflow_batchwrap.stack.sweep import SweepOptions, run

    with pytest.raises(ConfigError, match="--instance"):
        run(SweepOptions(delete=True, older_than=None, conn_id="azure_batch_default", unused_for=NOW), Console())
    ref = upload(hook, dag_id)
    expire(hook, ref.container)
    for delete, becomes in ((False, "would go"), (True, "removed")):
        options = SweepOptions(delete, None, "azure_batch_default", unused_for=NOW, instance="tests")
        run(options, Console(width=200))
        (row,) = [line for line in capsys.readouterr().out.splitlines() if ref.container in line]
        assert row.startswith(becomes)
        assert dag_id in row
        assert "1 of 1 blobs" in row
        assert names(hook, ref.container) == (set() if delete else {ref.blob})
