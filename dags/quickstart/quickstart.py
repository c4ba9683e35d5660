"""Three steps on an input file: each is one Airflow task, runs on a Batch pool, and passes its result on."""

from airflow.sdk import DAG

from airflow_batchwrap import BatchWorkflow, PoolConfig

with DAG("quickstart", schedule=None, catchup=False, tags=["batchwrap"], doc_md=__doc__):
    BatchWorkflow(
        "sensors",
        steps="steps",
        inputs="inputs",
        args="readings.csv -40 60",
        pool_config=PoolConfig.from_json("batch.json"),
        results="results",
    )
