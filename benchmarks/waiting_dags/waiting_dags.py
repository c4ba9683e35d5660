"""The DAGs of benchmarks/waiting.py; sizes and pools come by environment variables."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, BaseOperator
from waiting_peer import FireOperator

from airflow_batchwrap import BatchWorkflow, RunBatchTaskOperator, UsePoolOperator

TASKS = int(os.environ.get("WAITING_TASKS", "10"))
PUBLISHED = int(os.environ.get("WAITING_PUBLISHED", "10"))
ROUNDS = int(os.environ.get("WAITING_ROUNDS", "3"))
SECONDS = float(os.environ.get("WAITING_SECONDS", "8"))
POOL = "waiting"
#: Long enough for any measurement; the services are stopped under them in the end.
FOR_EVER = timedelta(days=7)


def nothing() -> None:
    """Do nothing."""


with DAG("wait_one", schedule=None):
    RunBatchTaskOperator(
        task_id="wait",
        workspace=UsePoolOperator(task_id="use_pool", pool_id=POOL).output,
        inline_wait=0,
        step_timeout=FOR_EVER,
        command="exec sleep 86400",
    )

with DAG("wait_many", schedule=None):
    RunBatchTaskOperator.partial(
        task_id="wait",
        workspace=UsePoolOperator(task_id="use_pool", pool_id=POOL).output,
        inline_wait=0,
        retries=3,
        step_timeout=FOR_EVER,
    ).expand(command=[f"exec sleep {86400 + number}" for number in range(TASKS)])

if PUBLISHED:
    from airflow.providers.microsoft.azure.operators.batch import AzureBatchOperator

    for dag_id, count in (("published_one", 1), ("published_many", PUBLISHED)):
        with DAG(dag_id, schedule=None):
            AzureBatchOperator.partial(
                task_id="wait",
                batch_pool_id="published",
                batch_pool_vm_size="Standard_D2s_v3",
                vm_node_agent_sku_id="batch.node.ubuntu 24.04",
                vm_publisher="canonical",
                vm_offer="ubuntu-24_04-lts",
                vm_sku="server",
                vm_version="latest",
                # It waits until all nodes are idle: on a pool that works it would never come to defer.
                enable_auto_scale=True,
                auto_scale_formula="$TargetDedicatedNodes = 0;",
                batch_job_id=dag_id,
                batch_task_command_line="/bin/sleep 86400",
                deferrable=True,
                retries=3,
            ).expand(batch_task_id=[f"task-{number}" for number in range(count)])

with DAG("latency_short", schedule=None):
    workspace = UsePoolOperator(task_id="use_pool", pool_id=POOL).output
    before: BaseOperator | None = None
    for number in range(ROUNDS):
        task = RunBatchTaskOperator(task_id=f"ours_{number}", workspace=workspace, command="exec sleep 2")
        if before is not None:
            before >> task
        before = task

with DAG("latency_deferred", schedule=None):
    workspace = UsePoolOperator(task_id="use_pool", pool_id=POOL).output
    before = None
    for number in range(ROUNDS):
        ours = RunBatchTaskOperator(
            task_id=f"ours_{number}", workspace=workspace, command=f"exec sleep {SECONDS}", inline_wait=0
        )
        plain = FireOperator(task_id=f"plain_{number}", seconds=SECONDS)
        if before is not None:
            before >> ours
        ours >> plain
        before = plain

with DAG("chain_python", schedule=None):
    before = PythonOperator(task_id="begin", python_callable=nothing)
    for number in range(1, 6):
        following = PythonOperator(task_id=f"{number}_step", python_callable=nothing)
        before >> following
        before = following

with DAG("chain_batch", schedule=None):
    BatchWorkflow("w", steps="chain_steps", pool_id=POOL, repurpose=False)
