"""A manifest: very many Batch tasks in a job of their own, one Airflow task for all of them."""
