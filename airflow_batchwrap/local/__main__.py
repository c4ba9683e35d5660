"""``python -m airflow_batchwrap.local``: the local Batch service's command line."""

from airflow_batchwrap.local.commands import app

app(prog_name="batchwrap local")
