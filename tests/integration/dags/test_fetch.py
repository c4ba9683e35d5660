"""Result files: fetched whole, once, by name, and nowhere but into their folder."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from airflow_batchwrap import RunBatchTaskOperator
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.stack.azurite import AzuriteService
    from tests.support.bench import Bench

FILES = {
    "a.csv": "1,2",
    "deep/er/b.csv": "3,4",
    "deep/c d.txt": "spaces",
    ".hidden/.d": "dots",
    "ü-漢.txt": "unicode",
    "odd#1?&%41+.txt": "signs",
    "empty": "",
}
MAKE = """
    import json, os

    def do_action(engine, files, extra=""):
        for name, text in json.loads(files).items():
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            with open(name, "w") as file:
                file.write(text + extra)
            engine.add_file_to_upload(name)
"""


@pytest.fixture
def workspace(bench: Bench, pool: str) -> dict[str, Any]:
    """A run with one step's files."""
    from airflow_batchwrap import RunBatchTaskOperator, UsePoolOperator

    bench.steps(_1_make=MAKE)
    found: dict[str, Any] = bench.run(bench.make(UsePoolOperator, "set_up", pool_id=pool, steps="steps"))
    work = bench.make(
        RunBatchTaskOperator, "make", step="1_make.py", workspace=found, args=[json.dumps(FILES)], retries=1
    )
    bench.run(work)
    return found


@pytest.fixture
def work(bench: Bench, workspace: dict[str, Any]) -> RunBatchTaskOperator:
    """The operator that made the files."""
    return cast("RunBatchTaskOperator", bench.dag.get_task("make"))


def fetch(bench: Bench, workspace: Any, to: Path | str, **arguments: Any) -> dict[str, Any]:
    from airflow_batchwrap import FetchResultsOperator

    files = bench.run(bench.make(FetchResultsOperator, workspace=workspace, to=to, **arguments))
    return {file["path"].rpartition("/make/")[2]: file for file in files}


def test_files_are_fetched_whole_and_not_twice(bench: Bench, workspace: dict[str, Any], tmp_path: Path) -> None:
    to = tmp_path / "out"
    found = fetch(bench, workspace, to)
    assert sorted(found) == sorted(FILES)
    for name, file in found.items():
        assert Path(file["path"]) == to / "make" / name
        content = Path(file["path"]).read_bytes()
        assert content.decode() == FILES[name]
        assert (file["step"], file["size"]) == ("make", len(content))
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
    before = {name: (to / "make" / name).stat() for name in FILES}
    (to / "make/a.csv").write_text("1,3")  # as long as it should be
    (to / "make/deep/c d.txt").unlink()
    assert fetch(bench, workspace, to) == found
    after = {name: (to / "make" / name).stat() for name in FILES}
    again = {
        name
        for name in FILES
        if (before[name].st_ino, before[name].st_mtime_ns) != (after[name].st_ino, after[name].st_mtime_ns)
    }
    assert again == {"a.csv", "deep/c d.txt"}
    assert (to / "make/a.csv").read_text() == FILES["a.csv"]
    assert sorted(str(path.relative_to(to / "make")) for path in to.rglob("*") if path.is_file()) == sorted(FILES)


@pytest.mark.parametrize(
    ("include", "names"),
    [
        ("*.csv", {"a.csv", "deep/er/b.csv"}),
        ("make/*.csv", {"a.csv"}),
        (["make/deep/*", "**/empty"], {"deep/c d.txt", "empty"}),
        ("make/deep/**", {"deep/er/b.csv", "deep/c d.txt"}),
        ("nothing/*", set()),
    ],
)
def test_what_is_included(
    bench: Bench,
    workspace: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    include: Any,
    names: set[str],
) -> None:
    assert set(fetch(bench, workspace, tmp_path / "out", include=include)) == names
    assert ("None of the 7 result files" in "".join(capfd.readouterr())) is (not names)


def test_where_they_go(bench: Bench, workspace: dict[str, Any], airflow_home: Path) -> None:
    from airflow_batchwrap import ConfigError

    found = fetch(bench, workspace, "mine", include="a.csv")
    assert found["a.csv"]["path"] == str(airflow_home / "results" / bench.dag.dag_id / "r1/mine/make/a.csv")
    with pytest.raises(ConfigError, match="leads out of results_base"):
        fetch(bench, workspace, "../mine")
    with pytest.raises(ConfigError, match="nosuch://there"):
        fetch(bench, workspace, "nosuch://there/mine")


def test_they_go_to_other_storage_too(
    bench: Bench, workspace: dict[str, Any], azurite: AzuriteService, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk import ObjectStoragePath

    conn = {"conn_type": "wasb", "extra": {"connection_string": azurite.connection_string}}
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps(conn))
    to = f"abfs://other@fetched-{bench.dag.dag_id.replace('_', '-')}/out"
    found = fetch(bench, workspace, to, include=["a.csv", "**/b.csv"])
    assert set(found) == {"a.csv", "deep/er/b.csv"}
    for name, file in found.items():
        path = ObjectStoragePath(file["path"])
        assert path == ObjectStoragePath(to) / "make" / name
        assert path.read_text() == FILES[name]
    before = path.stat().st_mtime
    (ObjectStoragePath(to) / "make/a.csv").write_text("1,7")
    assert fetch(bench, workspace, to, include=["a.csv", "**/b.csv"]) == found
    assert (ObjectStoragePath(to) / "make/a.csv").read_text() == FILES["a.csv"]
    assert path.stat().st_mtime == before


def test_the_newest_attempt_counts(
    bench: Bench, work: RunBatchTaskOperator, workspace: dict[str, Any], tmp_path: Path
) -> None:
    work.args = [json.dumps({"a.csv": "new"}), "er"]
    bench.run(work, try_number=2, cleared=1)
    found = fetch(bench, workspace, tmp_path / "out")
    assert list(found) == ["a.csv"]
    assert Path(found["a.csv"]["path"]).read_text() == "newer"


def test_a_run_that_was_deleted_and_comes_again_has_its_own_results(
    bench: Bench, hook: BatchWrapHook, work: RunBatchTaskOperator, workspace: dict[str, Any], tmp_path: Path
) -> None:
    work.args = [json.dumps({"a.csv": "old"})]
    bench.run(work, try_number=2, cleared=1)
    old = hook.list_blobs(workspace["output_container"], "")
    bench.forget()  # Airflow, of the run
    again = bench.run(bench.dag.get_task("set_up"))
    assert again["output_prefix"] == f"{workspace['output_prefix']}-2"
    work.workspace, work.args = again, [json.dumps({"b.csv": "new"})]
    bench.run(work)
    assert list(fetch(bench, again, tmp_path / "out")) == ["b.csv"]
    assert hook.list_blobs(workspace["output_container"], workspace["output_prefix"] + "/") == old


def test_old_results_are_deleted_where_that_was_asked_for(
    bench: Bench, hook: BatchWrapHook, workspace: dict[str, Any]
) -> None:
    from airflow_batchwrap import DeletePoolOperator

    container, mine = workspace["output_container"], workspace["output_prefix"]
    bench.run(bench.make(DeletePoolOperator, workspace=workspace, retention_days="1"))
    count = len(hook.list_blobs(container, mine))
    assert count > len(FILES)
    assert hook.delete_blobs_before(container, "no-such-run/", datetime.now(UTC)) == 0
    assert hook.delete_blobs_before(container, "", datetime.now(UTC) + timedelta(minutes=1)) == count
    assert hook.list_blobs(container, "") == {}


def record(hook: BatchWrapHook, workspace: dict[str, Any]) -> Any:
    folder = f"{workspace['output_prefix']}/make/e1-a1"
    return hook.blobs.get_blob_client(workspace["output_container"], f"{folder}/result.json")


@pytest.mark.parametrize("path", ["../x", "/etc/x", "deep/../../x", "a\\b", ""])
def test_a_record_cannot_lead_out_of_the_folder(
    bench: Bench, hook: BatchWrapHook, workspace: dict[str, Any], tmp_path: Path, path: str
) -> None:
    from airflow_batchwrap import ConfigError

    blob = record(hook, workspace)
    told = json.loads(blob.download_blob().readall())
    told["files"][0]["path"] = path
    blob.upload_blob(json.dumps(told), overwrite=True)
    with pytest.raises(ConfigError, match="leads out of the results folder"):
        fetch(bench, workspace, tmp_path / "out")
    assert not list(tmp_path.rglob("x"))


def test_links_in_the_folder_are_not_followed(bench: Bench, workspace: dict[str, Any], tmp_path: Path) -> None:
    from airflow_batchwrap import ConfigError

    to, outside = tmp_path / "out", tmp_path / "outside"
    (to / "make").mkdir(parents=True)
    outside.mkdir()
    (to / "make/deep").symlink_to(outside)
    with pytest.raises(ConfigError, match="symbolic link"):
        fetch(bench, workspace, to)
    assert list(outside.iterdir()) == []


def test_files_that_are_not_what_the_step_left_are_told(
    bench: Bench, hook: BatchWrapHook, workspace: dict[str, Any], tmp_path: Path
) -> None:
    from airflow_batchwrap import BatchWrapError, ConfigError, TryAgain

    found = fetch(bench, workspace, tmp_path / "first", include="a.csv")
    blob = hook.blobs.get_blob_client(workspace["output_container"], found["a.csv"]["blob"])
    blob.upload_blob("1,9", overwrite=True)
    with pytest.raises(TryAgain, match="does not have the content"):
        fetch(bench, workspace, tmp_path / "out")
    assert not (tmp_path / "out/make/a.csv").exists()
    blob.delete_blob()
    with pytest.raises(BatchWrapError, match="deleted or replaced"):
        fetch(bench, workspace, tmp_path / "out")
    record(hook, workspace).upload_blob("{", overwrite=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        fetch(bench, workspace, tmp_path / "out")
