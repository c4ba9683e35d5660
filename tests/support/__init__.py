"""What all kinds of tests share: one way to wait, typed drivers, one harness for a real Airflow.

The fixtures in the `conftest.py` files only make these and end them. docs/developing.md has a map of them.
"""
