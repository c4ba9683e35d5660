"""How `make test` parts the suite among its processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import schedule

ROOT = Path(__file__).parents[2]


def test_a_file_stays_in_one_process_and_so_does_the_folder_with_the_shared_airflow() -> None:
    assert schedule.unit_of("tests/wire/test_pools.py::test_a[x::y]") == "tests/wire/test_pools.py"
    shared = {schedule.unit_of(f"{schedule.SHARED}{name}::test") for name in ("test_cancel.py", "test_ordinary.py")}
    assert shared == {schedule.SHARED}


def test_what_starts_an_airflow_comes_early_and_apart() -> None:
    starts = [f"{schedule.SHARED}test_cancel.py::t", "tests/kills/test_kills.py::t"]
    starts.append("tests/integration/test_real_airflow.py::t")
    others = ["tests/integration/dags/test_fetch.py::t", "tests/wire/test_pools.py::t", "tests/unit/test_naming.py::t"]
    order = sorted(starts + others, key=schedule.rank)
    assert [name in starts for name in order] == [True, False, True, False, True, False]
    for name in [*starts, *others]:
        assert (ROOT / name.partition("::")[0]).exists()


def test_xdist_keeps_to_it(tmp_path: Path) -> None:
    """With its own scheduler each file of the folder could go to another process."""
    folder = tmp_path / schedule.SHARED
    folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.append({str(ROOT)!r})\n"
        "from tests.support import schedule\n"
        "def pytest_xdist_make_scheduler(config, log):\n    return schedule.scheduler(config, log)\n"
    )
    for name in "abc":
        text = "def test(worker_id):\n    with open('workers', 'a') as file:\n        file.write(worker_id + ' ')\n"
        (folder / f"test_{name}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "xdist"]
    command += ["--numprocesses=2", "--dist=loadfile", "."]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((tmp_path / "workers").read_text().split()) == 3
    assert len(set((tmp_path / "workers").read_text().split())) == 1
