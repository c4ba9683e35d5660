"""Which files Airflow takes for DAG files: no step of an example is one, whatever is written in it."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from airflow_batchwrap.cli import app

EXAMPLES = Path(__file__).resolve().parents[2] / "dags"
SUSPECT = "# An Airflow DAG runs this.\nimport no_such_module_here\n\n\ndef do_action(engine):\n    return 1\n"


def listed(folder: Path, *, safe_mode: bool = True) -> set[str]:
    """What Airflow's dag processor would import of a DAGs folder, relative to it."""
    from airflow.dag_processing.importers.python_importer import PythonDagImporter

    found = PythonDagImporter().list_dag_files(folder, safe_mode=safe_mode)
    return {Path(path).relative_to(folder).as_posix() for path in found}


@pytest.fixture
def dags(tmp_path: Path) -> Path:
    """A DAGs folder with one DAG file and a step that Airflow takes for another."""
    (tmp_path / "pi/steps").mkdir(parents=True)
    (tmp_path / "pi/pi.py").write_text("from airflow.sdk import DAG\n")
    (tmp_path / "pi/steps/1_extract.py").write_text(SUSPECT)
    return tmp_path


@pytest.mark.parametrize("safe_mode", [True, False], ids=["safe mode", "no safe mode"])
def test_no_step_of_an_example_is_taken_for_a_dag_file(tmp_path: Path, safe_mode: bool) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    names = {path.name for path in (tmp_path / "dags").iterdir() if path.is_dir()}
    for name in names:
        (tmp_path / "dags" / name / "steps/9_suspect.py").write_text(SUSPECT)
    assert listed(tmp_path / "dags", safe_mode=safe_mode) == {f"{name}/{name}.py" for name in names}


def test_a_step_that_names_airflow_and_a_dag_needs_the_file(dags: Path) -> None:
    assert listed(dags) == {"pi/pi.py", "pi/steps/1_extract.py"}
    (dags / "pi/steps/.airflowignore").write_text("*\n")
    assert listed(dags) == {"pi/pi.py"}


def test_plan_says_so_and_its_remedy_works(dags: Path) -> None:
    steps = dags / "pi/steps"
    warned = CliRunner().invoke(app, ["plan", str(steps)])
    assert warned.exit_code == 0
    assert warned.stdout == "1. 1_extract.py\n"
    assert "Airflow would import 1_extract.py as a DAG file" in warned.stderr
    remedy = warned.stderr.partition("`")[2].partition("`")[0]
    assert remedy == f"echo '*' > {steps}/.airflowignore"
    (steps / ".airflowignore").write_text("*\n")
    assert CliRunner().invoke(app, ["plan", str(steps)]).stderr == ""


def test_a_jar_is_taken_for_a_dag_file_and_plan_says_so(dags: Path) -> None:
    steps = dags / "pi/steps"
    (steps / "1_extract.py").unlink()
    with zipfile.ZipFile(steps / "1_pi.jar", "w") as jar:
        jar.writestr("Pi.class", "")
    assert listed(dags) == {"pi/pi.py", "pi/steps/1_pi.jar"}
    warned = CliRunner().invoke(app, ["plan", str(steps)])
    assert warned.stdout == "1. 1_pi.jar (java)\n"
    assert "Airflow would import 1_pi.jar as a DAG file" in warned.stderr
    (steps / ".airflowignore").write_text("*\n")
    assert listed(dags) == {"pi/pi.py"}
    assert CliRunner().invoke(app, ["plan", str(steps)]).stderr == ""


def test_plan_is_silent_where_nothing_is_to_be_done(dags: Path) -> None:
    steps = dags / "pi/steps"
    (dags / ".airflowignore").write_text("steps/\n")
    assert listed(dags) == {"pi/pi.py"}
    assert CliRunner().invoke(app, ["plan", str(steps)]).stderr == ""
    (dags / ".airflowignore").unlink()
    (steps / "1_extract.py").write_text("def do_action(engine):\n    return 1\n")
    assert listed(dags) == {"pi/pi.py"}
    assert CliRunner().invoke(app, ["plan", str(steps)]).stderr == ""
