"""The Batch operator that Airflow's own Azure provider publishes: it runs on the local service as it is."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from tests.support.dag_runs import RunFile

DAG = """
from airflow.providers.microsoft.azure.operators.batch import AzureBatchOperator
from airflow.sdk import DAG
from azure.batch import models

common = dict(
    batch_pool_id="published",
    batch_pool_vm_size="Standard_D2s_v3",
    vm_node_agent_sku_id="batch.node.ubuntu 24.04",
    vm_publisher="canonical",
    vm_offer="ubuntu-24_04-lts",
    vm_sku="server",
    vm_version="latest",
    target_dedicated_nodes=1,
    poll_interval=1,
)
with DAG("published", schedule=None) as dag:
    waits = AzureBatchOperator(
        task_id="waits",
        batch_job_id="waits",
        batch_task_id="task",
        batch_task_command_line="/bin/sh -c 'echo waited'",
        batch_start_task=models.BatchStartTask(command_line="/bin/true", wait_for_success=True),
        batch_job_preparation_task=models.BatchJobPreparationTask(command_line="/bin/true"),
        **common,
    )
    defers = AzureBatchOperator(
        task_id="defers",
        batch_job_id="defers",
        batch_task_id="task",
        batch_task_command_line="/bin/sh -c 'sleep 0.5; echo deferred'",
        deferrable=True,
        **common,
    )
    fails = AzureBatchOperator(
        task_id="fails",
        batch_job_id="fails",
        batch_task_id="task",
        batch_task_command_line="/bin/sh -c 'exit 7'",
        deferrable=True,
        **common,
    )
    waits >> defers >> fails
"""


def test_published_operator_waits_and_defers(
    dags_folder: Path,
    run_file: RunFile,
    client: BatchClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from airflow.providers.microsoft.azure.hooks import batch

    # It looks for its nodes every 10 seconds and for its tasks every 15: here it looks sooner, else it is as it is.
    sooner = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 100))
    monkeypatch.setattr(batch, "time", sooner)
    file = dags_folder / "published.py"
    file.write_text(DAG)
    run = run_file(file)
    assert run.states == {"waits": "success", "defers": "success", "fails": "failed"}
    assert "Failed tasks: ['task']" in run.log
    for job, line in (("waits", "waited\n"), ("defers", "deferred\n")):
        assert b"".join(client.download_task_file(job, "task", "stdout.txt")).decode() == line
    failed = client.get_task("fails", "task").execution_info
    assert failed is not None
    assert failed.exit_code == 7
    for job in run.states:
        client.begin_delete_job(job)
    client.begin_delete_pool("published")
