"""Inputs: at hand by name on the node, uploaded once, read-only, each job's own, and gone with the job."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from airflow_batchwrap.naming import container_name
from tests.support.polling import until

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from tests.support.bench import Bench
    from tests.support.dag_runs import RunFile

LIST = """
    import os

    def do_action(engine, *_):
        found = {}
        for folder, _, names in os.walk("."):
            for name in names:
                path = os.path.relpath(os.path.join(folder, name))
                if not path.startswith("batchwrap"):
                    with open(path) as file:
                        found[path] = file.read()
        real = os.path.realpath(sorted(found)[0])
        found["mode"] = oct(os.stat(real).st_mode & 0o222)
        found["dir"] = str(engine.input_dir)
        return found
"""
ODD = {
    "plain.txt": "1",
    "deep/er/nested.txt": "2",
    "with space.txt": "3",
    "ünï-漢字.txt": "4",
    "signs #1?&%41+=;'$HOME.txt": "5",
    "empty": "",
}


def write(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def use(bench: Bench, pool: str, **arguments: Any) -> Any:
    from airflow_batchwrap import UsePoolOperator

    bench.steps(_1_list=LIST)
    return bench.make(UsePoolOperator, pool_id=pool, steps="steps", **arguments)


def look(bench: Bench, workspace: dict[str, Any]) -> dict[str, str]:
    """Return the files that a step finds."""
    from airflow_batchwrap import RunBatchTaskOperator

    found: dict[str, str] = bench.run(bench.make(RunBatchTaskOperator, step="1_list.py", workspace=workspace))
    assert found.pop("mode") == "0o0"  # the file is nobody's to write, whoever the step runs as
    return found


def modified(bench: Bench, hook: BatchWrapHook) -> dict[str, Any]:
    container = hook.blobs.get_container_client(container_name(bench.dag.dag_id, "tests", "inputs"))
    return {item.name: (item.last_modified, item.etag) for item in container.list_blobs()}


def gone(path: str) -> bool:
    return until(lambda: not Path(path).exists(), f"{path} to be gone", 10)


def test_inputs_are_at_hand_by_name_and_gone_with_the_job(
    bench: Bench, pool: str, hook: BatchWrapHook, client: BatchClient
) -> None:
    write(bench.folder / "in", {**ODD, ".secret": "x"})
    write(bench.folder / "other", {"plain.txt": "another", "more.txt": "m"})
    one, other = (
        use(bench, pool, inputs="in"),
        use(bench, pool, inputs=[str(bench.folder / "other/plain.txt"), "other/more.txt"]),
    )
    first = bench.run(one)
    before = modified(bench, hook)
    second = bench.run(other)
    again = bench.run(one, run_id="r2")
    after = modified(bench, hook)
    assert {name: after[name] for name in before} == before  # nothing was uploaded twice
    assert len(after) == len(before) + 2

    found, others, same = look(bench, first), look(bench, second), look(bench, again)
    folders = [seen.pop("dir") for seen in (found, others, same)]
    assert found == same == ODD
    assert others == {"plain.txt": "another", "more.txt": "m"}
    assert len(set(folders)) == 3
    for workspace, folder in zip((first, second, again), folders, strict=True):
        assert Path(folder).is_dir()
        client.begin_delete_job(workspace["job_id"])
        assert gone(folder)


def test_many_inputs_come_by_a_prefix(bench: Bench, pool: str, hook: BatchWrapHook, client: BatchClient) -> None:
    # Not so many, but their addresses are too long for what Batch takes.
    long = {f"{'漢' * 70}-{number:02}.txt": str(number) for number in range(20)}
    write(bench.folder / "long", long)
    workspace = bench.run(use(bench, pool, inputs="long"))
    found = look(bench, workspace)
    del found["dir"]
    assert found == long

    many = {f"part/{number:02}.txt": str(number) for number in range(38)} | ODD
    write(bench.folder / "many", many)
    operator = use(bench, pool, inputs="many")
    workspace = bench.run(operator)
    job = client.get_job(workspace["job_id"])
    assert job.job_preparation_task is not None
    assert job.job_preparation_task.resource_files is not None
    (files,) = job.job_preparation_task.resource_files
    assert files.blob_prefix
    before = modified(bench, hook)
    assert sum(name.startswith(files.blob_prefix) for name in before) == len(many)
    found = look(bench, workspace)
    folder = found.pop("dir")
    assert found == many
    client.begin_delete_job(workspace["job_id"])
    assert gone(folder)

    # A second run copies nothing, and one whose copy has lost a file is told: Batch itself does not mind.
    workspace = bench.run(operator, run_id="r2")
    assert modified(bench, hook) == before
    assert files.storage_container_url is not None
    assert urlsplit(files.storage_container_url).path.endswith(
        f"/{container_name(bench.dag.dag_id, 'tests', 'inputs')}"
    )
    own = hook.blobs.get_container_client(container_name(bench.dag.dag_id, "tests", "inputs"))
    own.delete_blob(f"{files.blob_prefix}plain.txt")
    with pytest.raises(Exception, match="have arrived") as told:
        look(bench, workspace)
    assert re.search(
        rf"{len(many)} input files were uploaded for this job, {len(many) - 1} have arrived", str(told.value)
    )
    # The next run brings it back.
    bench.run(operator, run_id="r3")
    assert set(modified(bench, hook)) == set(before)


def test_inputs_are_made_by_tasks_and_named_by_templates(dags_folder: Path, run_file: RunFile, tmp_path: Path) -> None:
    write(dags_folder / "steps", {"1_list.py": textwrap.dedent(LIST), ".airflowignore": "*"})
    write(tmp_path, {"today.txt": "t", "path.txt": "p"})
    (dags_folder / "made.py").write_text(
        f"""
from pathlib import Path
from airflow.sdk import DAG, task
from airflow_batchwrap import BatchWorkflow

with DAG("made", schedule=None, params={{"name": "today"}}):
    @task
    def make():
        Path({str(tmp_path)!r}, "made.txt").write_text("m")
        return {str(tmp_path / "made.txt")!r}

    BatchWorkflow(
        "w",
        steps=Path("steps"),
        inputs=[make(), "{tmp_path}/{{{{ params.name }}}}.txt", Path({str(tmp_path)!r}) / "path.txt"],
        pool_config={{}},
    )
"""
    )
    run = run_file(dags_folder / "made.py")
    assert run.state == "success", run.log[-4000:]
    found = run.xcoms["w.1_list"]
    assert {name: found[name] for name in ("made.txt", "today.txt", "path.txt")} == {
        "made.txt": "m",
        "today.txt": "t",
        "path.txt": "p",
    }
