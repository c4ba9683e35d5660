"""Extra links: there as soon as the Batch task is, the same after a deferral, and open to nobody without the token."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from airflow_batchwrap.local.runner import LocalService
    from tests.support.bench import Bench
    from tests.support.dag_runs import RunWorkflow

SUBSCRIPTION = "/subscriptions/0000/resourceGroups/rg/providers"
ACCOUNT = f"{SUBSCRIPTION}/Microsoft.Batch/batchAccounts/mybatch"
STORAGE = f"{SUBSCRIPTION}/Microsoft.Storage/storageAccounts/mystorage"


def links_of(run: Any) -> dict[str, dict[str, str]]:
    """What Airflow's API server would show: the XComs of a run's links, by task."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    found: dict[str, dict[str, str]] = {}
    with create_session() as session:
        query = select(XComModel).where(XComModel.dag_id == run.dag_id, XComModel.run_id == run.run_id)
        for row in session.scalars(query.where(XComModel.key.startswith("_link_"))):
            name = row.task_id.rpartition(".")[2]
            found.setdefault(name, {})[row.key.removeprefix("_link_")] = XComModel.deserialize_value(row)
    return found


@pytest.mark.parametrize("inline_wait", [0, 30])
def test_links_of_a_run(run_workflow: RunWorkflow, local_service: LocalService, inline_wait: int) -> None:
    run = run_workflow(
        {"1_one.py": "def do_action(engine):\n    return 1\n"},
        f'pool_config={{"target_dedicated_nodes": 1}}, results="r", task_args={{"inline_wait": {inline_wait}}}',
    )
    assert run.state == "success", run.log
    batch, links = run.batch["w.1_one"], links_of(run)
    page = f"{local_service.url}/ui"
    job = f"{page}/jobs/{batch['job_id']}"
    task = f"{job}/tasks/{batch['batch_task_id']}"
    assert links["1_one"] == {"BatchTaskLink": task, "ResultsLink": f"{task}#files"}
    assert links["create_pool"] == {"PoolLink": f"{page}/pools/{batch['pool_id']}", "JobLink": job}
    # Azurite has no page of its own.
    assert links["fetch_results"] == {"ResultsLink": ""}
    assert "clean_up" not in links


def test_a_link_is_there_while_the_step_runs_and_leads_to_its_page(bench: Bench, pool: str, local_service: Any) -> None:
    from airflow_batchwrap import DeletePoolOperator, RunBatchTaskOperator, UsePoolOperator

    workspace = bench.run(bench.make(UsePoolOperator, pool_id=pool))
    shut, gate = bench.gate()
    begun = bench.submit(bench.make(RunBatchTaskOperator, workspace=workspace, command=f"{shut}; echo end"))
    link = bench.xcoms["_link_BatchTaskLink"]
    assert httpx.get(link, trust_env=False).status_code == httpx.codes.FORBIDDEN
    token = (local_service.data / "page-token").read_text().strip()
    with httpx.Client(trust_env=False, follow_redirects=True) as browser:
        shown = browser.get(link, params={"token": token})
    assert shown.status_code == httpx.codes.OK
    assert f">{bench.xcoms['batch']['batch_task_id']}<" in shown.text.replace(" ", "")
    assert token not in json.dumps(bench.xcoms)
    gate.touch()
    assert begun.finish() == "end"
    bench.run(bench.make(DeletePoolOperator, workspace=workspace))


def test_of_azure_the_links_lead_to_the_portal(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, local_service: LocalService
) -> None:
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.links.pool import push_pool_links
    from airflow_batchwrap.links.step import push_task_links
    from airflow_batchwrap.naming import BatchTaskKey
    from airflow_batchwrap.workspace import Workspace

    def set_connections(batch: dict[str, Any], wasb: dict[str, Any]) -> None:
        url = "https://mybatch.westeurope.batch.azure.com"
        account = {"conn_type": "azure_batch", "login": "mybatch", "password": local_service.key}
        monkeypatch.setenv(
            "AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps({**account, "extra": {"account_url": url, **batch}})
        )
        # The SAS is the connection's whole secret, and part of the client's own address.
        sas = "https://mystorage.blob.core.windows.net/?sv=2024-11-04&sig=c2VjcmV0"
        monkeypatch.setenv(
            "AIRFLOW_CONN_WASB_DEFAULT",
            json.dumps({"conn_type": "wasb", "login": "mystorage", "extra": {"sas_token": sas, **wasb}}),
        )

    operator = bench.make(_operator(), command="true", pool_id="p")
    place = Workspace("p", False, "j", output_container="results")

    def pushed() -> dict[str, str]:
        context = bench.context(operator)
        bench.xcoms = {}
        push_pool_links(context, BatchWrapHook(), place)
        push_task_links(context, BatchWrapHook(), place, BatchTaskKey("j", "t"))
        assert "sig" not in json.dumps(bench.xcoms)
        return {name.removeprefix("_link_"): url for name, url in bench.xcoms.items()}

    set_connections({"resource_id": ACCOUNT}, {"resource_id": STORAGE})
    page = f"https://portal.azure.com/#resource{ACCOUNT}/overview"
    links = pushed()
    assert links.pop("ResultsLink").endswith("storageAccounts%2Fmystorage/path/results")
    assert links == {"PoolLink": page, "BatchTaskLink": page}
    set_connections({}, {})
    assert {url.rpartition("/")[2] for url in pushed().values()} == {
        "Microsoft.Batch%2FbatchAccounts",
        "Microsoft.Storage%2FstorageAccounts",
    }


def test_a_link_that_cannot_be_had_fails_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.links.pool import push_pool_links
    from airflow_batchwrap.workspace import Workspace

    monkeypatch.delenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT")
    context = bench.context(bench.make(_operator(), command="true", pool_id="p"))
    push_pool_links(context, BatchWrapHook(), Workspace("p", False, "j"))
    assert bench.xcoms == {}


def _operator() -> Any:
    from airflow_batchwrap import RunBatchTaskOperator

    return RunBatchTaskOperator
