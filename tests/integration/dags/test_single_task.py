"""RunBatchTaskOperator alone on a pool: a step or a command in a job of its own, which ends with the task."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.stack.azurite import AzuriteService
    from tests.support.bench import Bench
    from tests.support.dag_runs import RunFile

SECRET = "hush-hush-7391"
QUOTES = """
set -e
a='it'"'"'s'
printf '%s\\n' "$a" "say \\"hi\\"" 'back\\slash $HOME'
cat <<END
last line of "$a"; $((6 * 7))
END
"""


@pytest.fixture
def jobs(bench: Bench, client: BatchClient) -> Callable[[], list[str]]:
    """Return the bench's jobs that nobody has asked to delete."""
    return lambda: [
        job.id for job in client.list_jobs(filter="state eq 'active'") if job.id.startswith(bench.dag.dag_id)
    ]


def alone(bench: Bench, pool: str, **arguments: Any) -> Any:
    from airflow_batchwrap import RunBatchTaskOperator

    return bench.make(RunBatchTaskOperator, pool_id=pool, **arguments)


@pytest.mark.parametrize("inline_wait", [0, 10])
def test_a_step_alone(bench: Bench, pool: str, jobs: Callable[[], list[str]], inline_wait: int) -> None:
    bench.steps(
        _1_a="import helper\ndef do_action(engine, *args):\n    return helper.read('note.txt'), list(args)\n",
        helper="def read(name):\n    return open(name).read()\n",
    )
    (bench.folder / "note.txt").write_text("from the driver")
    work = alone(bench, pool, step="steps/1_a.py", inputs="note.txt", args="x 'y z'", inline_wait=inline_wait)
    begun = bench.submit(work) if not inline_wait else bench.begin(work)
    assert len(jobs()) == (0 if inline_wait else 1)
    assert begun.finish() == ["from the driver", ["x", "y z"]]
    assert jobs() == []


@pytest.mark.parametrize(
    ("command", "value"),
    [
        ("echo hi", "hi"),
        ("true", None),
        (QUOTES, 'last line of "it\'s"; 42'),
        ("printf 'ümläut — 漢字'", "ümläut — 漢字"),
        ('cat "$AZ_BATCH_JOB_PREP_WORKING_DIR/inputs/note.txt"', "from the driver"),
    ],
)
def test_a_command_returns_its_last_line(
    bench: Bench, pool: str, jobs: Callable[[], list[str]], command: str, value: Any
) -> None:
    (bench.folder / "note.txt").write_text("from the driver")
    assert bench.run(alone(bench, pool, command=command, inputs=["note.txt"])) == value
    assert jobs() == []


def test_failures_are_told_and_leave_no_job(bench: Bench, pool: str, jobs: Callable[[], list[str]]) -> None:
    from airflow_batchwrap import ConfigError, PoolError, StepFailed

    work = alone(bench, pool, command="echo before; echo the reason >&2; exit 3", retries=1)
    for number in (1, 2):
        with pytest.raises(StepFailed, match="exit code 3") as failed:
            bench.run(work, try_number=number)
        assert failed.value.exit_code == 3
        assert "the reason" in str(failed.value)
        assert bench.xcoms["batch"]["exit_code"] == 3
        assert jobs() == []
    begun = bench.submit(alone(bench, pool, command="exit 4"))
    with pytest.raises(StepFailed, match="exit code 4"):
        begun.finish()
    with pytest.raises(StepFailed, match="exit code 127"):
        bench.run(alone(bench, pool, command="no-such-program-anywhere"))
    with pytest.raises(ConfigError, match="either a step or a command"):
        bench.run(alone(bench, pool))
    with pytest.raises(ConfigError, match="either a workspace"):
        bench.run(alone(bench, "", command="true"))
    with pytest.raises(PoolError, match="'nowhere' does not exist"):
        bench.run(alone(bench, "nowhere", command="true"))
    with pytest.raises(ConfigError, match=r"step_timeout = 'soon'"):
        bench.run(alone(bench, pool, command="true", step_timeout="soon"))
    with pytest.raises(ConfigError, match="output_container"):
        bench.run(alone(bench, pool, command="true", output_container="No Container"))
    assert jobs() == []


def test_values_of_environment_variables_are_neither_logged_nor_in_an_xcom(
    bench: Bench, pool: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from airflow_batchwrap import StepFailed

    work = alone(
        bench,
        pool,
        command='test "$TOKEN" = "' + SECRET[::-1] + '"; echo "$((N + 1))"; exit "$N"',
        environment={"TOKEN": "{{ run_id[::-1] }}", "N": 5},
    )
    assert "environment" not in work.template_fields
    with pytest.raises(StepFailed) as failed:
        bench.run(work, run_id=SECRET)
    assert SECRET[::-1] not in str(failed.value) + str(bench.xcoms) + "".join(capfd.readouterr())
    assert failed.value.exit_code == 5


def test_a_task_alone_in_a_dag(dags_folder: Path, run_file: RunFile, pool: str) -> None:
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.utils.session import create_session
    from sqlalchemy import select

    (dags_folder / "alone.py").write_text(
        f"""
from airflow.sdk import DAG, task
from airflow_batchwrap import RunBatchTaskOperator

with DAG("alone", schedule=None, params={{"word": "hello", "seconds": "90"}}):
    @task
    def where():
        return {pool!r}

    run = RunBatchTaskOperator(
        task_id="run",
        command="echo {{{{ params.word }}}} $TOKEN | tr a-z A-Z | cut -c1-8",
        pool_id=where(),
        environment={{"TOKEN": "{{{{ 'HUSH' + '-7391' }}}}"}},
        step_timeout="{{{{ params.seconds }}}} s",
        inline_wait=0,
    )

    @task
    def after(said):
        return said + "!"

    after(run.output)
"""
    )
    run = run_file(dags_folder / "alone.py")
    assert run.state == "success", run.log[-4000:]
    assert run.xcoms["run"] == "HELLO HU"
    assert run.xcoms["after"] == "HELLO HU!"
    assert "Request URL" not in run.log
    with create_session() as session:
        rendered = session.scalars(
            select(RenderedTaskInstanceFields).where(
                RenderedTaskInstanceFields.dag_id == "alone", RenderedTaskInstanceFields.task_id == "run"
            )
        ).one()
        assert rendered.rendered_fields["pool_id"] == pool
        assert rendered.rendered_fields["step_timeout"] == "90 s"
        assert "HUSH" not in str(rendered.rendered_fields)
    assert "HUSH-7391" not in run.log


def test_an_archive_that_was_exchanged_is_not_run(
    bench: Bench, pool: str, azurite: AzuriteService, tmp_path: Path
) -> None:
    """Who may write to the container of archives cannot have their own code run in a step's place."""
    from azure.storage.blob import BlobServiceClient

    from airflow_batchwrap import StepFailed

    bench.steps(_1_exchanged="def do_action(engine, *args):\n    return 'mine'\n")
    assert bench.run(alone(bench, pool, step="steps/1_exchanged.py")) == "mine"
    ran = tmp_path / "ran"
    with BlobServiceClient.from_connection_string(azurite.connection_string) as client:
        (blob,) = [
            client.get_blob_client(container.name, name)
            for container in client.list_containers()
            for name in client.get_container_client(container.name).list_blob_names(name_starts_with="archives/")
            if b"1_exchanged" in client.get_blob_client(container.name, name).download_blob().readall()
        ]
        there = blob.get_blob_properties()
        evil = f"open({str(ran)!r}, 'w')\n#".encode().ljust(there.size, b" ")
        blob.upload_blob(evil, overwrite=True, metadata=there.metadata)
        with pytest.raises(StepFailed, match=f"exit code 3.*\n.*\n?.*sha256 {hashlib.sha256(evil).hexdigest()}"):
            bench.run(alone(bench, pool, step="steps/1_exchanged.py"))
        assert not ran.exists()
        blob.delete_blob()
    assert bench.run(alone(bench, pool, step="steps/1_exchanged.py")) == "mine"
