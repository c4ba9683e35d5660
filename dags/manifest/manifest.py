"""A manifest file, run in two ways on one pool.

`run` is one mapped task for each entry, with a log, retries and an XCom of its own. `run_all` is one task for all of
them, however many thousand there are: submitted in bulk, with progress in its log, and a table of results.
"""

from pathlib import Path

from airflow.sdk import DAG, task

from airflow_batchwrap import (
    BatchWrapHook,
    CreatePoolOperator,
    DeletePoolOperator,
    Manifest,
    RunBatchManifestOperator,
    RunBatchTaskOperator,
)

manifest = Manifest.from_json(Path(__file__).with_name("task.json"))

with DAG("manifest", schedule=None, catchup=False, tags=["batchwrap"], doc_md=__doc__):
    create = CreatePoolOperator(
        task_id="create_pool",
        pool_config={"target_dedicated_nodes": 1, "task_slots_per_node": 2},
        steps="steps",
        inputs="inputs",
        output_container=manifest.output_container,
    )
    run = RunBatchTaskOperator.partial(task_id="run", workspace=create.output).expand_kwargs(manifest.mapped())
    run_all = RunBatchManifestOperator(
        task_id="run_all", manifest="task.json", workspace=create.output, values=True, max_failures="10%"
    )

    @task
    def summary(table: dict) -> dict:
        """Read the table, which stays in Blob; the XCom is its name, its sha256 and the counts."""
        rows = list(BatchWrapHook().table_rows(table))
        return {" ".join([row["step"], *row["args"]]): row["value"] for row in rows if row["state"] == "succeeded"}

    clean_up = DeletePoolOperator(task_id="clean_up", workspace=create.output)

    create >> [run, run_all] >> clean_up.as_teardown(setups=create)
    summary(run_all.output)
