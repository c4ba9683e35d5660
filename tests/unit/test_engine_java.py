"""What the node itself brings: Java, or none, and Pythons that are too old."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_batchwrap.engine_run import run_workflow
from airflow_batchwrap.exceptions import StepFailed

SAY = """
public class Say {
    public static void main(String[] words) {
        System.err.println("err");
        for (String word : words) System.out.println(word);
        System.exit(words.length > 2 ? 9 : 0);
    }
}
"""


@pytest.fixture(scope="module")
def jar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jar that says its arguments, and fails on more than two."""
    for program in ("java", "javac", "jar"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH")
    folder = tmp_path_factory.mktemp("java")
    (folder / "Say.java").write_text(SAY)
    for command in (["javac", "Say.java"], ["jar", "cfe", "say.jar", "Say", "Say.class"]):
        subprocess.run(command, cwd=folder, check=True, timeout=60)
    return folder / "say.jar"


def step(base: Path, line: str, **more: Any) -> Any:
    """Run a workflow of one step that has this one line, and return its value."""
    (base / "steps").mkdir(exist_ok=True)
    (base / "steps" / "1_step.py").write_text(f"def do_action(engine):\n    {line}\n")
    return run_workflow(base / "steps", work=base / "work", results=base / "results", **more).value


@pytest.mark.parametrize("place", ["steps", "inputs"])
def test_a_jar_beside_the_step_or_among_the_inputs(tmp_path: Path, jar: Path, place: str) -> None:
    if place == "steps":
        (tmp_path / "steps").mkdir()
        shutil.copy(jar, tmp_path / "steps")
    inputs = [jar] if place == "inputs" else []
    lines = step(tmp_path, "return engine.java_runner(*['say.jar', 'a b', 2])", inputs=inputs)
    assert lines == ["a b", "2", "err"]
    assert (tmp_path / "work" / "steps" / "1_step" / "stdout.txt").read_text() == "a b\n2\n"
    with pytest.raises(StepFailed, match=r"exit code 9: .*say\.jar 1 2 3\nerr"):
        step(tmp_path, "engine.javaRunner('say.jar', 1, 2, 3)", inputs=inputs)


def test_a_jar_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"there is no jar 'pi\.jar' in the working directory, among the inputs"):
        step(tmp_path, "engine.java_runner('pi.jar')")


def test_java_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "pi.jar").touch()
    with pytest.raises(StepFailed, match="no java on this node's PATH: install one with the pool's start task"):
        step(tmp_path, "engine.java_runner('pi.jar')", inputs=[tmp_path / "pi.jar"])


@pytest.mark.parametrize("version", ["3.6", "3.7"])
def test_an_old_python_says_that_it_is_too_old(
    tmp_path: Path, version: str, find_python: Callable[[str], str | None]
) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"no Python {version} on PATH, in pyenv or in uv")
    with pytest.raises(StepFailed, match=re.escape(f"Python {version}, and steps need Python 3.8")) as caught:
        step(tmp_path, "pass", python=python)
    assert caught.value.exit_code == 3
