"""`batchwrap run`: what it leaves, and what it says of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from airflow_batchwrap.cli import app


@pytest.mark.parametrize(
    ("step", "inputs", "kept"),
    [
        ("def do_action(engine):\n    return 1\n", [], False),
        ("def do_action(engine):\n    raise ValueError('no tea')\n", [], True),
        ("def do_action(engine):\n    return 1\n", ["--input", "no-such-file"], False),
    ],
    ids=["done", "failed", "not started"],
)
def test_directories_are_kept_where_a_step_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, inputs: list[str], kept: bool
) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "temporary").mkdir()
    (tmp_path / "steps/1_a.py").write_text(step)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    done = CliRunner().invoke(app, ["run", "steps", *inputs])
    assert done.exit_code == (1 if kept or inputs else 0)
    assert len(list((tmp_path / "temporary").iterdir())) == kept
    said = re.search(r"Working directories and logs are kept: rm -r (\S+)", done.output)
    assert bool(said) is kept
    assert said is None or Path(said[1]).is_dir()


JAVA = """
import java.nio.file.*;
public class Count {
    public static void main(String[] words) throws Exception {
        if (words.length == 0) throw new IllegalStateException("nothing to count");
        long lines = Files.lines(Path.of(words[0])).count();
        System.out.println(Runtime.getRuntime().maxMemory() / 1048576 + " MB");
        Files.writeString(Path.of(System.getenv("BATCHWRAP_OUTPUT"), "lines.txt"), lines + "\\n");
        Files.writeString(Path.of(System.getenv("BATCHWRAP_RESULT")), "{\\"lines\\": " + lines + "}");
    }
}
"""
TOOL = """#!/usr/bin/perl
open(my $out, ">", $ENV{BATCHWRAP_RESULT}) or die;
print $out qq([$ARGV[0], "perl"]);
"""


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of steps, below the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my input.txt").write_text("a\nb\n")
    (tmp_path / "steps").mkdir()
    return tmp_path / "steps"


@pytest.mark.as_user
def test_shell_and_executable(steps: Path) -> None:
    (steps / "1_count.sh").write_text(
        'tr a-z A-Z < "$1" | tee "$BATCHWRAP_OUTPUT/upper.txt" | wc -l | tr -d " " > "$BATCHWRAP_RESULT"\n'
    )
    (steps / "2_tool").write_text(TOOL)
    (steps / "2_tool").chmod(0o755)
    (steps / "3_last.sh").write_text('[ "$1" = \'[2,"perl"]\' ]; cp "$BATCHWRAP_PARAMS" "$BATCHWRAP_RESULT"\n')
    planned = CliRunner().invoke(app, ["plan", "steps"])
    assert planned.stdout == "1. 1_count.sh (bash)\n2. 2_tool (program)\n3. 3_last.sh (bash)\n"
    done = CliRunner().invoke(app, ["run", "steps", "--input", "my input.txt", "--param", "a=b", "--", "my input.txt"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"a": "b"}
    assert Path("results/1_count/upper.txt").read_text() == "A\nB\n"
    assert "1_count: done" in done.stderr


def test_a_jar(steps: Path) -> None:
    for program in ("java", "javac", "jar"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH")
    Path("Count.java").write_text(JAVA)
    for command in (["javac", "Count.java"], ["jar", "cfe", "steps/1_count.jar", "Count", "Count.class"]):
        subprocess.run(command, check=True, timeout=60)
    run = ["run", "steps", "--input", "my input.txt", "--work", "work", "--java-options", "-Xmx64m -Dx='a b'"]
    done = CliRunner().invoke(app, [*run, "--", "my input.txt"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"lines": 2}
    assert Path("results/1_count/lines.txt").read_text() == "2\n"
    assert 32 < int(Path("work/steps/1_count/stdout.txt").read_text().split()[0]) <= 64
    failed = CliRunner().invoke(app, run)
    assert failed.exit_code == 1
    assert "1_count.jar ended with exit code 1\n" in failed.stderr
    assert "nothing to count" in failed.stderr
    wrong = CliRunner().invoke(app, ["run", "steps", "--java-options", "it's"])
    assert wrong.exit_code == 2
    assert "close the quote" in wrong.stderr


def test_a_failure_shows_the_end_of_stderr(steps: Path) -> None:
    (steps / "1_a.sh").write_text("echo the reason >&2\ngrep -q x 'my input.txt' | cat\n")
    failed = CliRunner().invoke(app, ["run", "steps", "--input", "my input.txt"])
    assert failed.exit_code == 1
    said = re.sub(r"\(.*?\)", "(...)", failed.stderr)
    assert said.endswith(
        "step 1_a ended with exit code 1: ProgramFailed: 1_a.sh ended with exit code 1\n"
        "The end of its stderr (...):\nthe reason\n"
    )
