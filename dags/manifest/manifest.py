"""Every entry of a manifest file is one mapped task; all of them run side by side on one pool."""

from pathlib import Path

from airflow.sdk import DAG

from airflow_batchwrap import CreatePoolOperator, DeletePoolOperator, Manifest, RunBatchTaskOperator

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
    clean_up = DeletePoolOperator(task_id="clean_up", workspace=create.output)

    create >> run >> clean_up.as_teardown(setups=create)
