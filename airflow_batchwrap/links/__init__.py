"""Where a person finds in a browser what a task made: Airflow's extra links."""
