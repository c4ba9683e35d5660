"""Whatever a user gets wrong is told with problem, value and remedy, and nothing is left behind."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.local.runner import LocalService
    from tests.support.bench import Bench

Workflow = Callable[..., Any]
Left = Callable[[], list[str]]

FINE = "def do_action(engine, *args):\n    return list(args)\n"


FORGED = """import os
def do_action(engine):
    os.mkdir('batchwrap-out')
    with open('batchwrap-out/result.json', 'w') as record:
        record.write({})
    os._exit(0)
"""

# Step, and what its error must say.
BAD_STEPS = {
    "no_do_action": ("x = 1\n", ["do_action"]),
    "raises": (
        "import sys\n"
        "def do_action(engine):\n"
        "    print('about to fail', file=sys.stderr)\n"
        "    helper()\n"
        "def helper():\n"
        "    raise ValueError('too many cooks')\n",
        ["ValueError", "too many cooks", "in helper", "exit code 1", "about to fail"],
    ),
    "no_json": (
        "import datetime\ndef do_action(engine):\n    return {'when': [datetime.date(2026, 1, 1)]}\n",
        ["date", "when"],
    ),
    "missing_file": ("def do_action(engine):\n    engine.add_file_to_upload('gone.csv')\n", ["gone.csv"]),
    "file_outside": (
        "def do_action(engine):\n    engine.add_file_to_upload('../../etc/passwd')\n",
        ["../../etc/passwd"],
    ),
    "killed": (
        "import os, signal\ndef do_action(engine):\n    os.kill(os.getpid(), signal.SIGKILL)\n",
        ["SIGKILL", "137"],
    ),
    "leaves": ("import os\ndef do_action(engine):\n    os._exit(0)\n", ["no result record"]),
    # What a step leaves is read as what it may be: these would break the worker, or read another DAG's blob.
    "forged_depth": (FORGED.format("'[' * 100_000"), ["cannot be read", "nested too deeply"]),
    "forged_value": (
        FORGED.format(
            """'{"protocol": 1, "outcome": "done", "started": "", "ended": "", "value": {"batchwrap_reference": '
        '{"container": "others", "blob": "secrets", "size": 1, "sha256": "00"}}}'"""
        ),
        ["cannot be read", "a value that had to go into a file"],
    ),
    "wrong_arguments": ("def do_action(engine, a, b):\n    return 1\n", ["argument"]),
    "syntax": ("def do_action(engine:\n", ["1_syntax.py", "line 1"]),
}


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_bad_step_is_told(run_workflow: Workflow, left_behind: Left, deferrable: bool) -> None:
    # All of one number, so that each is tried although the others fail.
    steps = {f"1_{name}.py": step for name, (step, _) in BAD_STEPS.items()}
    run = run_workflow(
        {**steps, "2_next.py": FINE},
        f'pool_config={{"target_dedicated_nodes": 1}}, results="r", deferrable={deferrable}, '
        'config=WorkflowConfig(inline_wait="0.2 s", poll_interval="1 s")',
    )
    assert run.state == "failed"
    assert run.states["w.2_next"] == "upstream_failed"
    assert run.states["w.fetch_results"] == "upstream_failed"
    assert run.states["w.clean_up"] == "success"
    for name, (_, said) in BAD_STEPS.items():
        assert run.states[f"w.1_{name}"] == "failed"
        told = re.findall(rf"StepFailed: (Step '1_{name}' .*?)\n20\d\d-", run.log, flags=re.DOTALL)
        assert len(told) == 1, f"{name} is told {len(told)} times:\n{run.log[-8000:]}"
        for text in said:
            assert text in told[0], f"{text!r} is not in what is told of {name}:\n{told[0]}"
    assert "sig=" not in run.log
    assert left_behind() == []


def test_a_start_task_that_fails_is_told_with_its_stderr(run_workflow: Workflow, left_behind: Left) -> None:
    run = run_workflow({"1_a.py": FINE}, 'pool_config={"start_task": "echo no compiler here >&2; exit 7"}')
    assert run.state == "failed"
    assert run.states["w.create_pool"] == "failed"
    assert "no compiler here" in run.log
    assert "exit code 7" in run.log
    assert left_behind() == []


def test_an_input_blob_that_is_gone_is_told_within_a_minute(run_workflow: Workflow, left_behind: Left) -> None:
    head = """
    from airflow.sdk import task

    @task
    def lose_inputs(workspace):
        hook = BatchWrapHook()
        for item in workspace["inputs"]:
            hook.blobs.get_blob_client(item["ref"]["container"], item["ref"]["blob"]).delete_blob()
    """
    run = run_workflow(
        {"1_a.py": FINE},
        # The workflow's own tasks are fitted with one more between set-up and step.
        'pool_config={"target_dedicated_nodes": 1})\n'
        '    lost = lose_inputs(dag.get_task("w.create_pool").output)\n'
        '    lost >> dag.get_task("w.1_a"',
        inputs={"precious.txt": "x"},
        head=head,
    )
    assert run.states["w.1_a"] == "failed"
    assert run.states["w.clean_up"] == "success"
    assert "job preparation task" in run.log
    assert "BlobNotFound" in run.log
    assert "sig=" not in run.log
    assert left_behind() == []


@pytest.mark.parametrize("how", ["repurpose=True", "repurpose=False"])
def test_a_pool_that_does_not_exist_is_told(run_workflow: Workflow, left_behind: Left, how: str) -> None:
    run = run_workflow({"1_a.py": FINE}, f'pool_id="no-such-pool", {how}')
    assert run.state == "failed"
    assert "Pool 'no-such-pool' does not exist" in run.log
    assert left_behind() == []


def test_a_results_folder_that_cannot_be_written_is_told(
    run_workflow: Workflow, left_behind: Left, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    run = run_workflow({"1_a.py": FINE}, f'pool_config={{}}, results="{blocked}/results"')
    assert run.states["w.fetch_results"] == "failed"
    assert run.states["w.clean_up"] == "success"
    assert run.state == "failed"
    assert "cannot be written" in run.log
    assert left_behind() == []


def test_a_refused_connection_is_told(run_workflow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        connection = {
            "conn_type": "azure_batch",
            "login": "account",
            "password": "c2VjcmV0LWtleS1zZWNyZXQ=",
            "extra": {"account_url": f"http://127.0.0.1:{taken.getsockname()[1]}"},
        }
        monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps(connection))
        run = run_workflow({"1_a.py": FINE})
    assert run.states["w.create_pool"] == "failed"
    assert "does not answer" in run.log
    assert "azure_batch_default" in run.log
    assert connection["password"] not in run.log


def test_a_wrong_key_is_told(
    run_workflow: Workflow, local_service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "d3Jvbmcta2V5LXdyb25nLWtleQ=="
    connection = {
        "conn_type": "azure_batch",
        "login": local_service.account,
        "password": wrong,
        "extra": {"account_url": local_service.url},
    }
    monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps(connection))
    run = run_workflow({"1_a.py": FINE})
    assert run.states["w.create_pool"] == "failed"
    assert "refused the credentials of connection 'azure_batch_default'" in run.log
    assert wrong not in run.log
    assert local_service.key not in run.log


def test_a_missing_connection_is_told(run_workflow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT")
    run = run_workflow({"1_a.py": FINE})
    assert run.states["w.create_pool"] == "failed"
    assert "AIRFLOW_CONN_AZURE_BATCH_DEFAULT" in run.log


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('steps="nowhere", pool_config={}', "nowhere"),
        ('steps="empty", pool_config={}', "empty"),
        ('steps="steps"', "pool_config"),
        ('steps="steps", pool_config={"vm_sizes": "x"}', "vm_size"),
        ('steps="steps", pool_config={"target_dedicated_nodes": "many"}', "many"),
        ('steps="steps", pool_config="batch.json"', "task_slots_per_node"),
        ('steps="steps", pool_config="batch.json"', "step_timeout"),
        ('steps="nowhere", pool_config="batch.json"', "nowhere"),
        ('steps="nowhere", pool_config="batch.json"', "step_timeout"),
        ('steps="steps", pool_config={}, inline_wait="1 min"', "config=WorkflowConfig(inline_wait=...)"),
        ('steps="steps", vm_size="x", retries=3', "vm_size is the pool's: pool_config=PoolConfig(vm_size=...)"),
        ('steps="steps", vm_size="x", retries=3', "retries is not an argument of a workflow"),
        ('steps="steps", vm_size="x", retries=3', "task_args={'retries': ...}"),
    ],
)
def test_a_wrong_set_up_is_one_import_error(dags_folder: Path, airflow_home: Path, source: str, said: str) -> None:
    from airflow.dag_processing.dagbag import DagBag

    folder = dags_folder / "wrong"
    for name in ("steps", "empty"):
        (folder / name).mkdir(parents=True)
        (folder / name / ".airflowignore").write_text("*\n")
    (folder / "steps/1_a.py").write_text(FINE)
    (folder / "batch.json").write_text('{"task_slots_per_node": "several", "workflow": {"step_timeout": 5}}')
    (folder / "wrong.py").write_text(
        "from airflow.sdk import DAG\nfrom airflow_batchwrap import BatchWorkflow\n"
        f'with DAG("wrong", schedule=None):\n    BatchWorkflow("w", {source})\n'
    )
    bag = DagBag(folder, bundle_path=folder, bundle_name="dags-folder")
    (error,) = bag.import_errors.values()
    assert "ConfigError" in error
    assert said in error.splitlines()[-1] + error


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("kind", ["step", "manifest"])
def test_more_slots_than_a_node_has_are_refused_at_once(
    bench: Bench, pool: str, client: BatchClient, kind: str, alone: bool
) -> None:
    from airflow_batchwrap import ConfigError, RunBatchManifestOperator, RunBatchTaskOperator, UsePoolOperator

    where: dict[str, Any] = {"pool_id": pool}
    if not alone:
        where = {"workspace": bench.run(bench.make(UsePoolOperator, "use", pool_id=pool))}
    work: Any
    if kind == "step":
        work = bench.make(RunBatchTaskOperator, "work", command="true", task_slots=3, **where)
    else:
        work = bench.make(RunBatchManifestOperator, "work", manifest=[{"command": "true"}], task_slots=3, **where)
    with pytest.raises(ConfigError, match=r"takes 3 task slots.*has only 2.*Lower task_slots"):
        bench.run(work)
    jobs = [job.id for job in client.list_jobs(filter=f"startswith(id, '{bench.dag.dag_id}-work')")]
    assert jobs == []
