"""The whole system on one machine: Azurite, the local Batch service and a real Airflow, started together."""
