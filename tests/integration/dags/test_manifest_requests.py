"""What a manifest asks of Batch: bulk requests, taken again where they must be; and what is wrong, told."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import manifests
from tests.support.manifests import jobs_of, manifest

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from tests.support.bench import Bench


@pytest.fixture
def workspace(bench: Bench, pool: str) -> dict[str, Any]:
    """A workspace with the steps of `manifests`."""
    return manifests.workspace(bench, pool)


def bulk_job(client: BatchClient) -> str:
    """Return a job whose pool does not exist: nothing in it runs."""
    from azure.batch import models as m

    job_id = f"bulk-{uuid.uuid4().hex[:8]}"
    client.create_job(m.BatchJobCreateOptions(id=job_id, pool_info=m.BatchPoolInfo(pool_id="nowhere")))
    return job_id


def test_a_busy_service_is_given_time_and_nothing_is_lost_or_doubled(
    connections: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azure.batch import BatchClient
    from azure.core.credentials import AzureNamedKeyCredential

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.local import runner

    log = tmp_path / "requests.log"
    faults = "seed=3,429=0.2,503=0.2,drop=0.2,retry-after=1"
    service = runner.launch(tmp_path / "busy", ["--port", "0", "--faults", faults, "--access-log", str(log)])
    try:
        conn = {"login": service.account, "password": service.key, "extra": {"account_url": service.url}}
        monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps({"conn_type": "azure_batch", **conn}))
        with BatchClient(service.url, AzureNamedKeyCredential(service.account, service.key)) as client:
            job_id = bulk_job(client)
            told: list[int] = []
            BatchWrapHook().create_tasks(
                job_id,
                range(1500),
                lambda number: {"id": f"t{number}", "commandLine": "true"},
                threads=4,
                log_progress=told.append,
            )
            assert told[-1] == 1500
            assert {str(task.id) for task in client.list_tasks(job_id, select=["id"])} == {
                f"t{number}" for number in range(1500)
            }
        sent = [line.split(" ") for line in log.read_text().splitlines() if "create_task_collection" in line]
        assert {line[1] for line in sent} >= {"200", "429", "503"}
        # Together: four threads that are told to wait do not ask four times a second.
        assert len(sent) < 60
    finally:
        service.stop()


def test_requests_that_are_too_large_are_split(
    hook: BatchWrapHook, client: BatchClient, capfd: pytest.CaptureFixture[str]
) -> None:
    job_id = bulk_job(client)
    large = [{"name": "LARGE", "value": "x" * 30_000}]  # a hundred of them are three times what a request may hold
    new = hook.create_tasks(
        job_id,
        range(150),
        lambda number: {"id": f"t{number}", "commandLine": "true", "environmentSettings": large},
        threads=2,
    )
    assert new == 150
    # Once more: all are there.
    again = hook.create_tasks(job_id, range(150), lambda number: {"id": f"t{number}", "commandLine": "true"}, threads=2)
    assert again == 0
    counts = hook.count_tasks(job_id)
    assert counts is not None
    assert counts.waiting == 150
    client.begin_delete_job(job_id)
    assert hook.count_tasks("no-such-job") is None


def test_what_batch_refuses_is_told(hook: BatchWrapHook, client: BatchClient) -> None:
    from airflow_batchwrap import ConfigError

    job_id = bulk_job(client)
    with pytest.raises(ConfigError, match=r"refuses 1 of 3 Batch tasks of job .*'t1'"):
        hook.create_tasks(
            job_id,
            range(3),
            lambda number: {"id": f"t{number}", "commandLine": "" if number == 1 else "true"},
            threads=1,
        )
    client.begin_delete_job(job_id)
    with pytest.raises(ConfigError, match="submit 1 Batch tasks to job"):
        hook.create_tasks("no-such-job", [1], lambda number: {"id": "t", "commandLine": "true"}, threads=1)


def test_a_manifest_without_a_workspace_brings_its_own(
    bench: Bench, pool: str, hook: BatchWrapHook, client: BatchClient
) -> None:
    from airflow_batchwrap import RunBatchManifestOperator

    bench.steps(_1_read="def do_action(engine, name):\n    return open(name).read()\n")
    (bench.folder / "word.txt").write_text("lemon")
    (bench.folder / "task.json").write_text('{"tasks": [["1_read.py", "word.txt"]]}')
    work = bench.make(
        RunBatchManifestOperator,
        "many",
        manifest="task.json",
        pool_id=pool,
        steps="steps",
        inputs="word.txt",
        values=True,
    )
    assert [row["value"] for row in hook.table_rows(bench.run(work))] == ["lemon"]
    assert jobs_of(client, bench, "active") == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"manifest": [["9_none.py"]]}, "names steps that the set-up has not packed: 9_none.py"),
        ({"manifest": 7}, "is a int: give a Manifest"),
        ({"manifest": []}, "lists nothing to run"),
        ({"max_failures": "many"}, "max_failures = 'many' cannot be read"),
        ({"max_failures": 1.5}, "max_failures = 1.5 cannot be read"),
        ({"max_failures": "101%"}, "cannot be read"),
        ({"max_failures": -1}, "cannot be read"),
        ({"pool_id": "p"}, "either a workspace"),
    ],
)
def test_what_is_wrong_is_told(
    bench: Bench, workspace: dict[str, Any], client: BatchClient, arguments: dict[str, Any], words: str
) -> None:
    from airflow_batchwrap import ConfigError

    work = (
        manifest(bench, workspace, **{"entries": [["1_echo.py"]], **arguments})
        if "manifest" not in arguments
        else (manifest(bench, workspace, arguments["manifest"]))
    )
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        bench.run(work)
    assert jobs_of(client, bench, "active") == []
