"""What nodes are granted: the least, for a while; and that no key leaves Airflow."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_batchwrap.naming import Maker, container_name

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.local.runner import LocalService
    from airflow_batchwrap.stack.azurite import AzuriteService
    from tests.support.bench import Bench

MAKE = """
    def do_action(engine, *args):
        open("out.txt", "w").write(open("in.txt").read())
        engine.add_file_to_upload("out.txt")
        return ["x" * 60_000, *args]
"""


def granted(url: str) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query))


def answer(method: str, url: str, data: bytes | None = None) -> int:
    request = urllib.request.Request(url, data, {"x-ms-blob-type": "BlockBlob"}, method=method)
    try:
        with urllib.request.urlopen(request) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def with_path(url: str, more: str, query: str = "") -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(path=parts.path + more, query=query + parts.query))


@pytest.fixture
def entities(bench: Bench, client: BatchClient, pool: str) -> Callable[[], list[Any]]:
    """Return all that Batch holds of the bench's runs."""

    def look() -> list[Any]:
        jobs = [job for job in client.list_jobs() if job.id.startswith(bench.dag.dag_id)]
        tasks = [task for job in jobs for task in client.list_tasks(job.id)]
        return [*jobs, *tasks, client.get_pool(pool), *client.list_nodes(pool)]

    return look


def test_nodes_are_granted_the_least(
    bench: Bench,
    pool: str,
    client: BatchClient,
    entities: Callable[[], list[Any]],
    azurite: AzuriteService,
    local_service: LocalService,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from airflow_batchwrap import RunBatchTaskOperator, UsePoolOperator

    bench.steps(_1_make=MAKE)
    (bench.folder / "in.txt").write_text("the input")
    set_up = bench.make(
        UsePoolOperator, pool_id=pool, steps="steps", inputs="in.txt", job_wall_clock="2 days", sas_extra="3 h"
    )
    workspace = bench.run(set_up)
    first = bench.make(
        RunBatchTaskOperator, step="1_make.py", workspace=workspace, step_timeout="1 h", job_wall_clock="1 h"
    )
    passed = bench.run(first)
    second = bench.make(
        RunBatchTaskOperator,
        step="1_make.py",
        workspace=workspace,
        value=[passed],
        sas_extra="2 h",
        job_wall_clock="1 day",
    )
    again = bench.run(second)

    job = client.get_job(workspace["job_id"])
    assert job.job_preparation_task is not None
    (brought,) = job.job_preparation_task.resource_files or []
    tasks = {task.id: client.get_task(job.id, task.id) for task in client.list_tasks(job.id)}
    one, other = (tasks[name] for name in sorted(tasks))
    archive, value = other.resource_files or []
    assert value.file_path is not None
    reads = [
        (brought.http_url, 51),
        ((one.resource_files or [])[0].http_url, 25),
        (archive.http_url, 26),
        (value.http_url, 26),
    ]
    now = datetime.now(UTC)
    for url, hours in reads:
        given = granted(url or "")
        assert (given["sp"], given["sr"]) == ("r", "b")
        left = datetime.fromisoformat(given["se"]) - now
        assert timedelta(hours=hours) - timedelta(minutes=5) < left <= timedelta(hours=hours)
        assert answer("GET", str(url)) == 200
        assert answer("PUT", str(url), b"x") == 403
        assert answer("DELETE", str(url)) == 403
    writes = {
        str(file.destination.container.container_url) for file in other.output_files or [] if file.destination.container
    }
    (write,) = writes
    given = granted(write)
    assert (given["sr"], set(given["sp"])) == ("c", {"c", "w"})
    assert urllib.parse.urlsplit(write).path.endswith(f"/{workspace['output_container']}")
    assert answer("GET", with_path(write, "", "restype=container&comp=list&")) == 403
    assert answer("PUT", with_path(write, "/mine.txt"), b"x") == 201
    assert answer("GET", with_path(write, "/mine.txt")) == 403
    assert answer("DELETE", with_path(write, "/mine.txt")) == 403
    elsewhere = write.replace(
        f"/{workspace['output_container']}?", f"/{container_name(bench.dag.dag_id, 'tests', 'inputs')}/mine.txt?"
    )
    assert answer("PUT", elsewhere, b"x") == 403

    told = "".join(capfd.readouterr()) + json.dumps([workspace, passed, again, bench.xcoms])
    assert "sig=" not in told
    batch = json.dumps([entity.as_dict() for entity in entities()], default=str)
    assert "sig=" in batch  # so that what follows looks at the right thing
    for key in (azurite.key, local_service.key):
        assert key not in told
        assert key not in batch


def test_many_inputs_open_to_a_node_what_is_its_dags_and_nothing_else(
    bench: Bench, pool: str, client: BatchClient, hook: BatchWrapHook
) -> None:
    from airflow_batchwrap import UsePoolOperator

    theirs = hook.upload_bytes(
        hook.own_container(Maker("tests", "another_dag", "r", "t"), "inputs"), "calls/1.json", b"theirs"
    )
    secret = hook.upload_secret(Maker("tests", bench.dag.dag_id, "r", "t"), "job", b"hush", timedelta(hours=1))
    (bench.folder / "in").mkdir()
    for number in range(41):
        (bench.folder / f"in/{number}.txt").write_text(str(number))
    workspace = bench.run(bench.make(UsePoolOperator, pool_id=pool, inputs="in"))
    preparation = client.get_job(workspace["job_id"]).job_preparation_task
    assert preparation is not None
    (brought,) = preparation.resource_files or []
    url = str(brought.storage_container_url)
    given = granted(url)
    assert (given["sr"], set(given["sp"])) == ("c", {"r", "l"})
    own = container_name(bench.dag.dag_id, "tests", "inputs")
    assert answer("GET", with_path(url, "", "restype=container&comp=list&")) == 200
    assert answer("GET", with_path(url, f"/{brought.blob_prefix}7.txt")) == 200
    assert answer("PUT", with_path(url, "/mine.txt"), b"x") == 403
    for ref in (theirs, secret):
        assert answer("GET", url.replace(f"/{own}?", f"/{ref.container}/{ref.blob}?")) == 403
        assert answer("GET", url.replace(f"/{own}?", f"/{ref.container}?restype=container&comp=list&")) == 403


def test_a_connection_that_is_a_sas_serves_too(
    bench: Bench,
    pool: str,
    azurite: AzuriteService,
    hook: BatchWrapHook,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

    from airflow_batchwrap import FetchResultsOperator, RunBatchTaskOperator, UsePoolOperator

    sas = generate_account_sas(
        azurite.account,
        azurite.key,
        ResourceTypes(container=True, object=True),
        AccountSasPermissions(read=True, write=True, list=True, create=True, add=True, delete=True),
        datetime.now(UTC) + timedelta(hours=1),
    )
    conn = {"conn_type": "wasb", "login": azurite.account, "host": azurite.url, "extra": {"sas_token": sas}}
    monkeypatch.setenv("AIRFLOW_CONN_WASB_DEFAULT", json.dumps(conn))
    bench.steps(_1_make=MAKE)
    (bench.folder / "in").mkdir()
    for number in range(41):
        (bench.folder / f"in/{number}.txt").write_text(str(number))
    (bench.folder / "in/in.txt").write_text("the input")
    workspace = bench.run(bench.make(UsePoolOperator, pool_id=pool, steps="steps", inputs="in"))
    work = bench.make(RunBatchTaskOperator, step="1_make.py", workspace=workspace, args=["a" * 5000])
    passed = bench.run(work)
    assert hook.value_of(passed)[1] == "a" * 5000
    (file,) = bench.run(bench.make(FetchResultsOperator, workspace=workspace, to=tmp_path / "out"))
    assert file["size"] == len("the input")
    assert "sig=" not in json.dumps([workspace, passed, file])
