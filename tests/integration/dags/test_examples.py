"""Every example DAG runs, to its end, against Azurite and the local service."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from tests.support.dag_runs import RunExample

EXAMPLES = Path(__file__).resolve().parents[3] / "dags"


def test_quickstart(run_example: RunExample, left_behind: Callable[[], list[str]]) -> None:
    run = run_example("quickstart")
    assert run.state == "success", run.log[-4000:]
    assert set(run.states.values()) == {"success"}
    final = run.xcoms["sensors.3_report"]
    assert final["steadiest"] == "cellar"
    assert final["ranking"] == ["cellar", "north", "south"]
    fetched = {file["path"].rpartition("/")[2]: file for file in run.xcoms["sensors.fetch_results"]}
    assert set(fetched) == {"clean.csv", "report.json"}
    for file in fetched.values():
        content = Path(file["path"]).read_bytes()
        assert len(content) == file["size"]
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
    assert run.batch["sensors.1_extract"]["exit_code"] == 0
    assert run.xcoms["sensors.clean_up"]["pool_id"] == run.xcoms["sensors.create_pool"]["pool_id"]
    assert left_behind() == []
    workspace = run.xcoms["sensors.create_pool"]
    assert "sig=" not in str(workspace)


@pytest.mark.skipif(not shutil.which("javac"), reason="there is no javac on PATH to build the example's jar with")
def test_java_pi(run_example: RunExample, left_behind: Callable[[], list[str]]) -> None:
    run = run_example("java_pi", {"points": 50_000})
    assert run.state == "success", run.log[-4000:]
    assert run.xcoms["pi.2_compare"]["points"] == 50_000
    assert run.xcoms["pi.2_compare"]["error"] < 0.05
    assert left_behind() == []


def test_reuse_pool(run_example: RunExample, left_behind: Callable[[], list[str]]) -> None:
    run = run_example("reuse_pool")
    assert run.state == "success", run.log[-4000:]
    monday, tuesday = run.xcoms["monday.2_longest"], run.xcoms["tuesday.2_longest"]
    assert (monday["longest"], tuesday["longest"]) == ("morning", "teapot")
    # The same node: the pool was taken over and not started anew.
    assert monday["node"] == tuesday["node"]
    assert left_behind() == []


def test_manifest(run_example: RunExample, left_behind: Callable[[], list[str]], hook: BatchWrapHook) -> None:
    run = run_example("manifest")
    assert run.state == "success", run.log[-4000:]
    assert [run.xcoms[f"run[{index}]"] for index in range(3)] == [{"odd.txt": 6}, {"even.txt": 5}, "QUITE LOUD"]
    assert run.xcoms["summary"] == {
        "1_count.py odd.txt 3": {"odd.txt": 6},
        "1_count.py even.txt 3": {"even.txt": 5},
        "2_shout.py quite loud": "QUITE LOUD",
    }
    assert run.xcoms["run_all"]["succeeded"] == 3
    # By mapped tasks, and by the one for all of them.
    names = [name for name in hook.list_blobs("word-counts", "") if name.endswith("/words.txt")]
    assert len(names) == 4
    assert left_behind() == []


def test_every_example_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir() and not path.name.startswith("__")} <= tested
