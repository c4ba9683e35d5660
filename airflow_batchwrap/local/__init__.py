"""A local Azure Batch service: the Batch REST API on loopback, with real processes behind it.

It stands alone: it imports neither Airflow, nor the Azure SDK, nor any other part of this package.
"""
