"""A whole workflow on this machine, with no Batch at all."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from airflow_batchwrap.engine.protocol import CALL_FILE
from airflow_batchwrap.engine_run import RunReport, StepReport, run_workflow
from airflow_batchwrap.exceptions import ConfigError, StepFailed


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    folder = tmp_path / "steps"
    folder.mkdir()
    return folder


def write(folder: Path, name: str, source: str) -> None:
    (folder / name).write_text(textwrap.dedent(source))


def run(steps: Path, *args: object, **more: object) -> RunReport:
    base = steps.parent
    return run_workflow(steps, list(args), work=base / "work", results=base / "results", **more)  # type: ignore[arg-type]


def test_values_pass_through_stages_and_files_are_collected(steps: Path, tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("three words here")
    write(
        steps,
        "1_count.py",
        """
        def do_action(engine, name, factor):
            count = len(open(name).read().split()) * factor
            open("count.txt", "w").write(str(count))
            engine.add_file_to_upload("count.txt")
            return count
        """,
    )
    write(steps, "2_large.py", "def do_action(engine, count):\n    return ['x' * 60_000, count]")
    write(steps, "2_small.py", "def do_action(engine, count):\n    return engine.params['more'] + count")
    write(
        steps,
        "3_nothing.py",
        "def do_action(engine, both):\n    assert len(both[0][0]) == 60_000, both\n    print(both[1])",
    )
    write(steps, "10_end.py", "def do_action(engine):\n    return 'end'")
    seen: list[StepReport] = []
    report = run(steps, "input.txt", 2, inputs=[tmp_path / "input.txt"], params={"more": 4}, on_step=seen.append)
    assert report.value == "end"
    assert [step.step for step in report.steps] == ["1_count", "2_large", "2_small", "3_nothing", "10_end"]
    assert [step.value for step in report.steps][2:] == [10, None, "end"]
    assert report.files == (tmp_path / "results" / "1_count" / "count.txt",)
    assert report.files[0].read_text() == "6"
    assert report.steps[3].stdout.read_text() == "10\n"
    assert [(step.step, step.state) for step in seen[:2]] == [("1_count", "running"), ("1_count", "done")]
    assert len(seen) == 10
    # again, over what the first run left
    assert run(steps, "input.txt", 1, inputs=[tmp_path / "input.txt"], params={"more": 4}).value == "end"
    assert report.files[0].read_text() == "3"
    assert (tmp_path / "input.txt").read_text() == "three words here"


def test_a_large_call_comes_as_a_file(steps: Path, tmp_path: Path) -> None:
    write(steps, "1_a.py", "def do_action(engine, text):\n    return len(text)")
    assert run(steps, "x" * 200_000).value == 200_000
    assert (tmp_path / "work" / "steps" / "1_a" / "wd" / CALL_FILE).stat().st_size > 200_000


def test_a_last_stage_of_several_steps_gives_a_list(steps: Path) -> None:
    write(steps, "1_b.py", "def do_action(engine, *args):\n    return list(args)")
    write(steps, "1_a.py", "def do_action(engine, *args):\n    pass")
    assert run(steps, "x").value == [None, ["x"]]


def test_a_failing_step_stops_the_run_and_its_files_are_kept(steps: Path, tmp_path: Path) -> None:
    source = "import sys\ndef do_action(engine):\n    open('log', 'w').close()\n    engine.add_file_to_upload('log')\n"
    write(steps, "1_a.py", source + "    print('a hint', file=sys.stderr)\n    raise ValueError('no such day')")
    write(steps, "1_b.py", "def do_action(engine):\n    open('ran', 'w').close()")
    write(steps, "2_c.py", "def do_action(engine, both):\n    pass")
    seen: list[tuple[str, str]] = []
    with pytest.raises(StepFailed) as caught:
        run(steps, on_step=lambda report: seen.append((report.step, report.state)))
    message = str(caught.value)
    assert message.startswith("step 1_a ended with exit code 1: ValueError: no such day\nTraceback")
    assert message.count("no such day") == 3  # the head, the traceback's source line and its last line
    assert message.endswith("\na hint")
    assert caught.value.exit_code == 1
    assert (tmp_path / "work" / "steps" / "1_b" / "wd" / "ran").exists()
    assert (tmp_path / "results" / "1_a" / "log").exists()
    assert sorted(seen) == [("1_a", "failed"), ("1_a", "running"), ("1_b", "done"), ("1_b", "running")]


def test_a_step_killed_by_a_signal(steps: Path) -> None:
    write(steps, "1_a.py", "import os\ndef do_action(engine):\n    print('x', flush=True)\n    os.kill(os.getpid(), 9)")
    with pytest.raises(StepFailed, match=r"step 1_a ended by signal 9 \(SIGKILL\)") as caught:
        run(steps)
    assert caught.value.exit_code == -9


def test_what_cannot_be_run(steps: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no step file"):
        run(steps)
    write(steps, "1_a.py", "def do_action(engine, *args):\n    pass")
    with pytest.raises(ConfigError, match="cannot be JSON"):
        run(steps, {1})
    with pytest.raises(ConfigError, match="not-a-python"):
        run(steps, python="/not-a-python")
    (tmp_path / "results").rmdir()
    (tmp_path / "results").touch()
    with pytest.raises(ConfigError, match="results"):
        run(steps)
