"""Airflow operators: pools, steps and results."""
