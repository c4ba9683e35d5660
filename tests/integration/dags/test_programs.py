"""Steps in several languages on the real parts: values, files, params and failures as with steps in Python."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.polling import until

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from tests.support.bench import Bench
    from tests.support.dag_runs import RunFile

FETCH = """
# the first line of an input, the arguments as they are, and a file in a folder
read -r line < "$1"
echo "working on $1"
mkdir "$BATCHWRAP_OUTPUT/sub"
tr a-z A-Z < "$1" > "$BATCHWRAP_OUTPUT/sub/upper.txt"
printf '{"line": "%s", "args": %s, "pad": "%060000d"}' "$line" "$(cat "$BATCHWRAP_ARGS")" 0 > "$BATCHWRAP_RESULT"
"""
ADD = """
def do_action(engine, got):
    assert len(got.pop("pad")) == 60_000
    return {**got, "doubled": [2 * int(each) for each in got["args"][1:]]}
"""
# awk: there on every node, and no shell.
TOOL = """#!/usr/bin/awk -f
BEGIN {
    print "given " ARGV[1]
    getline params < ENVIRON["BATCHWRAP_PARAMS"]
    gsub("HUSHED", "hidden", params)
    printf "[%s, %s, %d]", ARGV[1], params, length(ENVIRON["KEY"]) > ENVIRON["BATCHWRAP_RESULT"]
    print "tool" > ENVIRON["BATCHWRAP_OUTPUT"] "/tool.txt"
}
"""
DAG = """
from airflow.sdk import DAG, Param
from airflow_batchwrap import BatchWorkflow, WorkflowConfig

with DAG("mixed", schedule=None, params={"day": 3, "pin": Param("HUSHED", secret=True)}):
    BatchWorkflow(
        "w",
        steps="steps",
        inputs="inputs",
        args=["it's a text.txt", 20, "1"],
        pool_config={},
        results=RESULTS,
        secrets={"KEY": "{{ params.pin + '!' }}"},
        config=WorkflowConfig(java_options="-Dcolour='deep blue'"),
    )
"""
JAVA = """
import java.io.PrintWriter;
public class Say {
    public static void main(String[] words) throws Exception {
        System.out.println("in " + System.getProperty("colour"));
        try (PrintWriter out = new PrintWriter(System.getenv("BATCHWRAP_RESULT"), "UTF-8")) {
            out.print("[" + words.length + ", " + words[0] + "]");
        }
    }
}
"""


def steps(folder: Path, **texts: str) -> Path:
    """Write step files: ``_1_a_sh="..."`` is ``1_a.sh``, and one that ends in ``_`` has no suffix."""
    folder.mkdir(exist_ok=True)
    (folder / ".airflowignore").write_text("*\n")
    for name, text in texts.items():
        stem, _, suffix = name.removeprefix("_").rpartition("_")
        file = folder / (f"{stem}.{suffix}" if suffix else stem)
        file.write_text(text)
        file.chmod(0o755 if not suffix else 0o644)
    return folder


def jar_of(source: str, folder: Path) -> Path:
    """Build a jar of the class Say."""
    for program in ("java", "javac", "jar"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH")
    (folder / "Say.java").write_text(source)
    for command in (["javac", "Say.java"], ["jar", "cfe", "say.jar", "Say", "Say.class"]):
        subprocess.run(command, cwd=folder, check=True, timeout=60)
    return folder / "say.jar"


def test_a_workflow_of_several_languages(
    dags_folder: Path, tmp_path: Path, run_file: RunFile, left_behind: Callable[[], list[str]]
) -> None:
    steps(dags_folder / "steps", _1_fetch_sh=FETCH, _2_add_py=ADD, _3_tool_=TOOL)
    (dags_folder / "inputs").mkdir()
    (dags_folder / "inputs/it's a text.txt").write_text("one\ntwo\n")
    (dags_folder / "mixed.py").write_text(DAG.replace("RESULTS", repr(str(tmp_path / "results"))))
    run = run_file(dags_folder / "mixed.py")
    assert run.state == "success", run.log[-4000:]
    assert set(run.states) == {"w.create_pool", "w.1_fetch", "w.2_add", "w.3_tool", "w.fetch_results", "w.clean_up"}
    added = {"line": "one", "args": ["it's a text.txt", 20, "1"], "doubled": [40, 2]}
    assert run.xcoms["w.2_add"] == added
    assert run.xcoms["w.3_tool"] == [added, {"day": 3, "pin": "hidden"}, 7]
    fetched = {path.name: path.read_text() for path in (tmp_path / "results").rglob("*.txt")}
    assert (fetched["upper.txt"], fetched["tool.txt"]) == ("ONE\nTWO\n", "tool\n")
    paths = {path.relative_to(tmp_path / "results").as_posix() for path in (tmp_path / "results").rglob("*.txt")}
    assert {path.partition("/")[2] for path in paths} == {"sub/upper.txt", "tool.txt"}
    assert "[stdout] working on it's a text.txt" in run.log
    assert "HUSHED" not in run.log
    assert left_behind() == []


def test_a_jar_is_a_step_with_options_of_java(dags_folder: Path, tmp_path: Path, run_file: RunFile) -> None:
    folder = steps(dags_folder / "steps", _2_check_sh='[ "$1" = "[3,20]" ]; cp "$BATCHWRAP_ARGS" "$BATCHWRAP_RESULT"')
    shutil.copy(jar_of(JAVA.replace("words[0]", "words[1]"), tmp_path), folder / "1_say.jar")
    (dags_folder / "mixed.py").write_text(DAG.replace("RESULTS", "None").replace('inputs="inputs",', ""))
    run = run_file(dags_folder / "mixed.py")
    assert run.state == "success", run.log[-4000:]
    assert run.xcoms["w.2_check"] == [[3, 20]]
    assert "[stdout] in deep blue" in run.log


def alone(bench: Bench, pool: str, step: str, **arguments: Any) -> Any:
    from airflow_batchwrap import RunBatchTaskOperator

    return bench.make(RunBatchTaskOperator, pool_id=pool, step=f"steps/{step}", **arguments)


def test_a_failure_says_what_a_failure_in_python_says(bench: Bench, pool: str) -> None:
    from airflow_batchwrap import StepFailed

    steps(bench.folder / "steps", _1_a_sh="echo the reason >&2\nfalse | cat\n", _2_b_="#!/usr/bin/env no-such-thing\n")
    with pytest.raises(StepFailed, match="exit code 1") as failed:
        bench.run(alone(bench, pool, "1_a.sh"))
    assert "ProgramFailed: 1_a.sh ended with exit code 1\nThe end of stderr:\nthe reason" in str(failed.value)
    assert failed.value.exit_code == 1
    with pytest.raises(
        StepFailed, match=r"2_b needs no-such-thing, .* install it with the pool's start task"
    ) as lacking:
        bench.run(alone(bench, pool, "2_b"))
    assert lacking.value.exit_code == 2


def test_output_comes_while_a_program_runs_and_the_task_is_deferred(
    bench: Bench, pool: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shut, gate = bench.gate()
    steps(bench.folder / "steps", _1_a_sh=f'echo "line one"\n{shut}\necho last\necho 7 > "$BATCHWRAP_RESULT"\n')
    begun = bench.submit(alone(bench, pool, "1_a.sh"))
    seen: list[str] = []

    def read() -> bool:
        seen.append("".join(capfd.readouterr()))
        return "[stdout] line one" in "".join(seen)

    events: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: events.append(asyncio.run(begun.event())), daemon=True)
    waiting.start()
    until(read, "the first line in the log")
    assert waiting.is_alive()
    gate.touch()
    waiting.join(30)
    begun.go(lambda: getattr(begun.operator, begun.method)(begun.context, events[0]))
    assert begun.finish() == 7
    whole = "".join([*seen, *capfd.readouterr()])
    assert (whole.count("[stdout] line one"), whole.count("[stdout] last")) == (1, 1)


def test_entries_of_a_manifest_are_programs_too(bench: Bench, pool: str, hook: BatchWrapHook) -> None:
    from airflow_batchwrap import RunBatchManifestOperator

    steps(
        bench.folder / "steps",
        _1_a_sh='echo "$1" > "$BATCHWRAP_OUTPUT/a"; [ "$2" != 3 ]; cp "$BATCHWRAP_ARGS" "$BATCHWRAP_RESULT"',
        _2_b_='#!/bin/sh\ncp "$BATCHWRAP_CONTEXT" "$BATCHWRAP_RESULT"\n',
    )
    entries = [["1_a.sh", "'a b' 2"], {"step": "1_a.sh", "args": ["c", 3]}, {"step": "2_b"}, {"command": "echo hi"}]
    work = bench.make(
        RunBatchManifestOperator, manifest=entries, pool_id=pool, steps="steps", values=True, max_failures=1
    )
    result = bench.run(work)
    rows = list(hook.table_rows(result))
    assert [(row["state"], row["exit_code"]) for row in rows] == [
        ("succeeded", 0),
        ("failed", 1),
        ("succeeded", 0),
        ("succeeded", 0),
    ]
    assert (rows[0]["value"], rows[2]["value"]["map_index"], rows[3]["value"]) == (["a b", "2"], 2, "hi")
    assert hook.read_blob(result["container"], f"{rows[0]['output_prefix']}/files/a") == b"a b\n"


def test_a_folder_with_a_number_that_is_no_step_is_an_import_error(dags_folder: Path) -> None:
    from airflow.dag_processing.dagbag import DagBag

    steps(dags_folder / "steps", _1_a_sh="true\n", _2_data_csv="a,b\n")
    (dags_folder / "mixed.py").write_text(DAG.replace("RESULTS", "None"))
    bag = DagBag(dags_folder, bundle_path=dags_folder, bundle_name="dags-folder")
    (error,) = bag.import_errors.values()
    assert "2_data.csv begins with a number, as a step does, and is none" in error
