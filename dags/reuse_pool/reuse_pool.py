"""One pool for two workflows: the second takes the pool over with other inputs, and no node is started again."""

from airflow.sdk import DAG

from airflow_batchwrap import BatchWorkflow, CreatePoolOperator, DeletePoolOperator

with DAG("reuse_pool", schedule=None, catchup=False, tags=["batchwrap"], doc_md=__doc__):
    create = CreatePoolOperator(task_id="create_pool", pool_config={"target_dedicated_nodes": 1})
    pool_id = create.output["pool_id"]
    delete = DeletePoolOperator(task_id="delete_pool", workspace=create.output)

    monday = BatchWorkflow("monday", steps="steps", inputs="inputs/monday", args="words.txt", pool_id=pool_id)
    tuesday = BatchWorkflow("tuesday", steps="steps", inputs="inputs/tuesday", args="words.txt", pool_id=pool_id)

    create >> monday >> tuesday >> delete.as_teardown(setups=create)
