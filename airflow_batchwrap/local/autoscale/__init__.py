"""The language of Azure Batch's autoscale formulas: `Formula.parse`, `Formula.evaluate`, and the samples they look at.

Pure: no input or output, no clock (the caller gives the time), bounded work. docs/autoscale.md says what is documented
by Azure and what is an assumption.
"""

from airflow_batchwrap.local.autoscale.errors import (
    EVALUATION_ERROR,
    INSUFFICIENT_SAMPLE_DATA,
    AutoScaleError,
    FormulaSyntaxError,
    FormulaTooLong,
)
from airflow_batchwrap.local.autoscale.evaluation import OPTIONS, PoolState
from airflow_batchwrap.local.autoscale.formula import AutoScaleResult, Formula
from airflow_batchwrap.local.autoscale.samples import METRICS, PERIOD, SampleSeries, SampleStore
from airflow_batchwrap.local.autoscale.values import Interval, Timestamp, Value

__all__ = [
    "EVALUATION_ERROR",
    "INSUFFICIENT_SAMPLE_DATA",
    "METRICS",
    "OPTIONS",
    "PERIOD",
    "AutoScaleError",
    "AutoScaleResult",
    "Formula",
    "FormulaSyntaxError",
    "FormulaTooLong",
    "Interval",
    "PoolState",
    "SampleSeries",
    "SampleStore",
    "Timestamp",
    "Value",
]
