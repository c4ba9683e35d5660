"""The example in docs/steps.md, run as it stands there, and the names that it promises."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from airflow_batchwrap.engine import programs, protocol
from airflow_batchwrap.engine.view import Engine
from airflow_batchwrap.engine_run import run_workflow

PAGE = (Path(__file__).parents[2] / "docs" / "steps.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    found = re.findall(r"^`steps/(\S+\.py)`:\n\n```python\n(.*?)```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == 4
    for name, source in found:
        (tmp_path / "steps" / name).write_text(source)
    text = tmp_path / "input.txt"
    text.write_text("a bb considerably ccc")
    report = run_workflow(
        tmp_path / "steps", "input.txt 8", [text], work=tmp_path / "work", results=tmp_path / "results"
    )
    assert report.value == "3 words of 2.0 letters"
    assert [path.relative_to(tmp_path).as_posix() for path in report.files] == ["results/1_count/words.json"]
    assert report.steps[0].stdout.read_text() == "3 words\n"


def test_every_name_of_the_engine_is_told() -> None:
    told = set(re.findall(r"engine\.(\w+)", PAGE))
    methods = {name for name in vars(Engine) if not name.startswith("_")}
    variables = {"input_dir", "output_container", "params", "context", "log"}
    assert told == methods | variables


# The file, what has to be on this machine, what the step returns, and the files that it leaves, of the lines 1, 2, 6.
EXAMPLES = [
    ("3_render.sh", ["bash"], {"lines": 3}, ["upper.txt"]),
    ("4_pi.jar", ["java", "javac", "jar"], [3, 3.141592653589793], []),
    ("5_model.R", ["Rscript"], {"slope": 2.5}, ["fit.rds"]),
    ("6_fit.jl", ["julia"], {"mean": 3.0}, ["mean.txt"]),
    ("7_tool", ["/usr/bin/perl"], {"lines": 3}, []),
]


@pytest.mark.parametrize(("name", "programs", "value", "files"), EXAMPLES, ids=[each[0] for each in EXAMPLES])
def test_the_example_of_each_language_runs(
    tmp_path: Path, name: str, programs: list[str], value: object, files: list[str]
) -> None:
    ((intro, source),) = re.findall(rf"^`steps/{re.escape(name)}`(.*?):\n\n```\w+\n(.*?)```$", PAGE, re.M | re.S)
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} on this machine")
    (tmp_path / "steps").mkdir()
    (tmp_path / ("Pi.java" if name.endswith(".jar") else f"steps/{name}")).write_text(source)
    for command in re.findall(r"`(javac .*?|chmod .*?)`", intro):
        subprocess.run(["/bin/sh", "-c", command], check=True, cwd=tmp_path, timeout=60)
    (tmp_path / "x.txt").write_text("1\n2\n6\n")
    report = run_workflow(
        tmp_path / "steps", "x.txt", [tmp_path / "x.txt"], work=tmp_path / "work", results=tmp_path / "results"
    )
    assert report.value == value
    assert [path.name for path in report.files] == files


def test_every_variable_of_the_contract_is_told() -> None:
    named = {value for name, value in vars(protocol).items() if name.endswith("_ENV") and "CALL" not in name}
    assert set(re.findall(r"^\| `(BATCHWRAP_\w+)`", PAGE, re.MULTILINE)) == named
    assert set(re.findall(r"BATCHWRAP_\w+", PAGE)) == named
    assert f"{programs.COMMAND_LINE_LIMIT:,} bytes" in PAGE
    assert f"{protocol.RESULT_LIMIT // 1024**2} MB" in PAGE
    told = set(re.findall(r"^\| `\d_\w+(\.\w+)`", PAGE, re.MULTILINE))
    assert told - {".pl"} == set(protocol.INTERPRETERS) - {".r"}
