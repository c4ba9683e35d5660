"""`batchwrap run`: what it leaves, and what it says of it."""

from __future__ import annotations

import re
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
