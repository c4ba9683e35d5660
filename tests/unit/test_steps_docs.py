"""The example in docs/steps.md, run as it stands there, and the names that it promises."""

from __future__ import annotations

import re
from pathlib import Path

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
