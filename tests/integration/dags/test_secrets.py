"""Secrets reach the step that needs them; Batch, Airflow and the results show them to nobody."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_batchwrap.engine import protocol
from airflow_batchwrap.naming import container_name

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from tests.support.bench import Bench
    from tests.support.dag_runs import RunFile

HUSH = "HUSH-7391 'quoted'\n$HOME é"
SHOW = """
    import os, stat

    def do_action(engine, *args):
        mode = stat.S_IMODE(os.stat("batchwrap-secrets.json").st_mode)
        return [os.environ["TOKEN"][::-1], dict(engine.params).get("pin", "")[::-1], oct(mode)]
"""


@pytest.fixture
def told(client: BatchClient, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return all that Batch says of a job and its Batch tasks, and what the test has logged, as one text."""

    def look(job_id: str, *more: Any) -> str:
        tasks = [client.get_task(job_id, task.id).as_dict() for task in client.list_tasks(job_id)]
        assert tasks
        return json.dumps([client.get_job(job_id).as_dict(), tasks, more], default=str) + "".join(capfd.readouterr())

    return look


def secrets_in(hook: BatchWrapHook, dag_id: str) -> list[str]:
    return sorted(hook.list_blobs(container_name(dag_id, "tests", "secrets"), ""))


def test_a_secret_is_a_variable_of_the_step_and_shown_to_nobody(
    bench: Bench, pool: str, client: BatchClient, hook: BatchWrapHook, told: Callable[..., str]
) -> None:
    from airflow_batchwrap import DeletePoolOperator, RunBatchTaskOperator, UsePoolOperator

    bench.steps(_1_show=SHOW)
    workspace = bench.run(bench.make(UsePoolOperator, pool_id=pool, steps="steps"))
    given = {"TOKEN": "{{ run_id }}" + HUSH}
    work = bench.make(RunBatchTaskOperator, step="1_show.py", workspace=workspace, secrets=given)
    assert "secrets" not in work.template_fields
    assert bench.run(work) == [f"r1{HUSH}"[::-1], "", "0o440"]
    shown = told(workspace["job_id"], bench.xcoms, repr(work))
    assert "HUSH" not in shown

    # The file's address reads this one blob, whose name nobody can guess.
    (task,) = client.list_tasks(workspace["job_id"])
    (file,) = [item for item in task.resource_files or [] if item.file_path == protocol.SECRETS_FILE]
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(str(file.http_url)).query))
    assert (query["sr"], query["sp"]) == ("b", "r")
    (blob,) = secrets_in(hook, bench.dag.dag_id)
    job_id, _, name = blob.partition("/")
    assert (job_id, len(name)) == (workspace["job_id"], 32)

    # Its value changes nothing about which submission this is: an earlier try's is adopted.
    work.secrets = {"TOKEN": "another"}
    assert bench.run(work, try_number=2) == [f"r1{HUSH}"[::-1], "", "0o440"]

    bench.run(bench.make(DeletePoolOperator, workspace=workspace))
    assert secrets_in(hook, bench.dag.dag_id) == []


def test_a_command_has_its_secrets_too(
    bench: Bench, pool: str, hook: BatchWrapHook, told: Callable[..., str], client: BatchClient
) -> None:
    from airflow_batchwrap import RunBatchTaskOperator, UsePoolOperator

    workspace = bench.run(bench.make(UsePoolOperator, pool_id=pool))
    command = """printf %s "$TOKEN" | od -An -tx1 | tr -d ' \\n'"""
    work = bench.make(RunBatchTaskOperator, command=command, workspace=workspace, secrets={"TOKEN": HUSH})
    assert bytes.fromhex(bench.run(work)).decode() == HUSH
    assert "HUSH" not in told(workspace["job_id"], bench.xcoms)

    # A task alone on a pool ends its own job, and the secrets with it.
    lone = bench.make(RunBatchTaskOperator, command=command, pool_id=pool, secrets={"TOKEN": HUSH})
    before = secrets_in(hook, bench.dag.dag_id)
    assert bytes.fromhex(bench.run(lone)).decode() == HUSH
    assert secrets_in(hook, bench.dag.dag_id) == before
    assert len(before) == 1


def test_the_entries_of_a_manifest_share_their_secrets(
    bench: Bench, pool: str, client: BatchClient, hook: BatchWrapHook, told: Callable[..., str]
) -> None:
    from airflow_batchwrap import RunBatchManifestOperator, UsePoolOperator

    bench.steps(_1_show=SHOW)
    workspace = bench.run(bench.make(UsePoolOperator, pool_id=pool, steps="steps"))
    entries = [{"step": "1_show.py"}, {"step": "1_show.py"}, {"command": "echo ${#TOKEN}"}]
    work = bench.make(
        RunBatchManifestOperator, manifest=entries, workspace=workspace, values=True, secrets={"TOKEN": HUSH}
    )
    begun = bench.submit(work)
    job = bench.xcoms["batch"]["job_id"]
    assert len(secrets_in(hook, bench.dag.dag_id)) == 2  # one for steps, one for commands
    assert "HUSH" not in told(job, bench.xcoms)
    rows = list(hook.table_rows(begun.finish()))
    assert [row["value"] for row in rows] == [[HUSH[::-1], "", "0o440"]] * 2 + [str(len(HUSH.encode()))]
    assert secrets_in(hook, bench.dag.dag_id) == []


def test_secret_params_travel_apart_from_the_others(dags_folder: Path, run_file: RunFile, hook: BatchWrapHook) -> None:
    (dags_folder / "steps").mkdir()
    (dags_folder / "steps/.airflowignore").write_text("*\n")
    (dags_folder / "steps/1_show.py").write_text(
        "import os\n"
        "def do_action(engine):\n"
        "    call = os.environ['BATCHWRAP_CALL']\n"
        "    shown = [name for name in engine.params if name in call]\n"
        "    return [shown, {n: str(v)[::-1] for n, v in engine.params.items()}, os.environ['KEY'][::-1]]\n"
    )
    (dags_folder / "hushed.py").write_text(
        """
from airflow.sdk import DAG, Param
from airflow_batchwrap import BatchWorkflow

with DAG(
    "hushed",
    schedule=None,
    params={
        "open": "o",
        "pin": Param("HUSH-1", secret=True),
        "word": Param("HUSH-2", format="password"),
        "api_key": "HUSH-3",
    },
):
    BatchWorkflow("w", steps="steps", pool_config={}, secrets={"KEY": "{{ params.pin + '!' }}"})
"""
    )
    run = run_file(dags_folder / "hushed.py")
    assert run.state == "success", run.log[-4000:]
    assert run.xcoms["w.1_show"] == [
        ["open"],
        {"open": "o", "pin": "1-HSUH", "word": "2-HSUH", "api_key": "3-HSUH"},
        "!1-HSUH",
    ]
    assert "HUSH" not in run.log
    assert "HUSH" not in json.dumps([run.xcoms, run.batch])
    assert secrets_in(hook, "hushed") == []


def test_secrets_that_cannot_be_variables_are_refused_before_anything_is_made(bench: Bench, pool: str) -> None:
    from airflow_batchwrap import ConfigError, RunBatchTaskOperator, UsePoolOperator

    workspace = bench.run(bench.make(UsePoolOperator, pool_id=pool))
    work = bench.make(RunBatchTaskOperator, command="true", workspace=workspace, secrets={"NOT-ONE": "HUSH"})
    with pytest.raises(ConfigError, match="'NOT-ONE' is no name") as caught:
        bench.run(work)
    assert "HUSH" not in str(caught.value)
