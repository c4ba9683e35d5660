"""Run DAG files through ``dag.test()`` against Azurite and the local service, and look at what became of the run."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.bench import Bench
from tests.support.dag_runs import RunExample, RunFile, RunWorkflow

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.local.runner import LocalService
    from airflow_batchwrap.stack.azurite import AzuriteService


@pytest.fixture(scope="session")
def local_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """The local Batch service on a free port, for all DAG tests."""
    from airflow_batchwrap.local import runner

    folder: Path = tmp_path_factory.mktemp("batch")
    service = runner.start(folder / "data", log=folder / "service.log")
    yield service
    service.stop()


@pytest.fixture
def connections(
    airflow_home: Path, azurite: AzuriteService, local_service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow's connections, pointing at the two services."""
    batch = {
        "conn_type": "azure_batch",
        "login": local_service.account,
        "password": local_service.key,
        "extra": {"account_url": local_service.url},
    }
    wasb = {"conn_type": "wasb", "login": azurite.account, "password": azurite.key, "host": azurite.url}
    monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps(batch))
    monkeypatch.setenv("AIRFLOW_CONN_WASB_DEFAULT", json.dumps(wasb))


@pytest.fixture
def hook(connections: None) -> BatchWrapHook:
    """A hook on both services."""
    from airflow_batchwrap.hooks.batch import BatchWrapHook

    return BatchWrapHook()


@pytest.fixture
def dags_folder(airflow_home: Path) -> Iterator[Path]:
    """Airflow's DAGs folder, empty."""
    folder = airflow_home / "dags"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def left_behind(hook: BatchWrapHook) -> Callable[[], list[str]]:
    """Return the pools and jobs of the account that nobody has asked to delete."""

    def look() -> list[str]:
        pools = [pool.id for pool in hook.batch.list_pools(filter="state eq 'active'")]
        return pools + [job.id for job in hook.batch.list_jobs(filter="state eq 'active'")]

    return look


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tasks are tried again at once: ``dag.test()`` sits a delay out."""
    from airflow_batchwrap.attempts import retrying

    monkeypatch.setattr(retrying, "OWN_DELAY", timedelta(seconds=0.1))
    retrying.retry_policy.cache_clear()
    yield
    retrying.retry_policy.cache_clear()


@pytest.fixture
def run_file(connections: None, soon: None, capfd: pytest.CaptureFixture[str]) -> RunFile:
    """Run the one DAG of a file in the DAGs folder, to its end."""
    return RunFile(capfd)


@pytest.fixture
def run_example(dags_folder: Path, run_file: RunFile) -> RunExample:
    """Run one of the example DAGs."""
    return RunExample(dags_folder, run_file)


@pytest.fixture
def run_workflow(dags_folder: Path, run_file: RunFile) -> RunWorkflow:
    """Write steps and a DAG with one BatchWorkflow, and run it."""
    return RunWorkflow(dags_folder, run_file)


@pytest.fixture
def bench(connections: None, client: BatchClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Single operators on the two services; what they made is removed in the end."""
    from airflow.sdk.bases.xcom import BaseXCom

    made = Bench(tmp_path)

    def keep(key: str, value: Any, **where: Any) -> None:
        made.xcoms[key] = json.loads(json.dumps(value))

    monkeypatch.setattr(BaseXCom, "set", keep)  # what is written past an XCom backend
    yield made
    mine = f"startswith(id, '{made.dag.dag_id}') and state ne 'deleting'"
    for job in client.list_jobs(filter=mine):
        client.begin_delete_job(job.id)
    for pool in client.list_pools(filter=mine):
        client.begin_delete_pool(pool.id)


@pytest.fixture(scope="module")
def client(local_service: LocalService) -> Iterator[BatchClient]:
    """Azure's own client, to look at what the operators made."""
    from azure.batch import BatchClient
    from azure.core.credentials import AzureNamedKeyCredential

    with BatchClient(local_service.url, AzureNamedKeyCredential(local_service.account, local_service.key)) as made:
        yield made


@pytest.fixture(scope="module")
def pool(client: BatchClient) -> Iterator[str]:
    """A pool that somebody else made: one node with two slots."""
    from azure.batch import models as m

    pool_id = f"shared-{uuid.uuid4().hex[:8]}"
    image = m.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
    client.create_pool(
        m.BatchPoolCreateOptions(
            id=pool_id,
            vm_size="Standard_D2s_v3",
            virtual_machine_configuration=m.VirtualMachineConfiguration(
                image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04"
            ),
            target_dedicated_nodes=1,
            task_slots_per_node=2,
        )
    )
    yield pool_id
    client.begin_delete_pool(pool_id)
