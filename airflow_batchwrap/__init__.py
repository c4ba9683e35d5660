"""A folder of numbered step files becomes Airflow tasks that run on an Azure Batch pool.

The public names are loaded on first use, so that importing this package costs nothing and imports no Airflow:
Airflow imports it while it discovers providers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.version import __version__

if TYPE_CHECKING:
    from airflow_batchwrap.config import Credentials as Credentials
    from airflow_batchwrap.config import Manifest as Manifest
    from airflow_batchwrap.config import PoolConfig as PoolConfig
    from airflow_batchwrap.config import WorkflowConfig as WorkflowConfig
    from airflow_batchwrap.exceptions import BatchWrapError as BatchWrapError
    from airflow_batchwrap.exceptions import ConfigError as ConfigError
    from airflow_batchwrap.exceptions import NoCapacity as NoCapacity
    from airflow_batchwrap.exceptions import NodeLost as NodeLost
    from airflow_batchwrap.exceptions import PoolError as PoolError
    from airflow_batchwrap.exceptions import StepFailed as StepFailed
    from airflow_batchwrap.exceptions import StepTimeout as StepTimeout
    from airflow_batchwrap.exceptions import Throttled as Throttled
    from airflow_batchwrap.exceptions import TryAgain as TryAgain
    from airflow_batchwrap.hooks.batch import BatchWrapHook as BatchWrapHook
    from airflow_batchwrap.operators.manifest import RunBatchManifestOperator as RunBatchManifestOperator
    from airflow_batchwrap.operators.pool import CreatePoolOperator as CreatePoolOperator
    from airflow_batchwrap.operators.pool import DeletePoolOperator as DeletePoolOperator
    from airflow_batchwrap.operators.pool import RepurposePoolOperator as RepurposePoolOperator
    from airflow_batchwrap.operators.pool import UsePoolOperator as UsePoolOperator
    from airflow_batchwrap.operators.resize import ResizePoolOperator as ResizePoolOperator
    from airflow_batchwrap.operators.results import FetchResultsOperator as FetchResultsOperator
    from airflow_batchwrap.operators.step import RunBatchTaskOperator as RunBatchTaskOperator
    from airflow_batchwrap.operators.sweep import SweepOrphansOperator as SweepOrphansOperator
    from airflow_batchwrap.workflow import BatchWorkflow as BatchWorkflow

# Public name -> the module that holds it.
_PUBLIC = {
    "BatchWorkflow": "airflow_batchwrap.workflow",
    "BatchWrapError": "airflow_batchwrap.exceptions",
    "BatchWrapHook": "airflow_batchwrap.hooks.batch",
    "ConfigError": "airflow_batchwrap.exceptions",
    "CreatePoolOperator": "airflow_batchwrap.operators.pool",
    "Credentials": "airflow_batchwrap.config",
    "DeletePoolOperator": "airflow_batchwrap.operators.pool",
    "FetchResultsOperator": "airflow_batchwrap.operators.results",
    "Manifest": "airflow_batchwrap.config",
    "NoCapacity": "airflow_batchwrap.exceptions",
    "NodeLost": "airflow_batchwrap.exceptions",
    "PoolConfig": "airflow_batchwrap.config",
    "PoolError": "airflow_batchwrap.exceptions",
    "RepurposePoolOperator": "airflow_batchwrap.operators.pool",
    "ResizePoolOperator": "airflow_batchwrap.operators.resize",
    "RunBatchManifestOperator": "airflow_batchwrap.operators.manifest",
    "RunBatchTaskOperator": "airflow_batchwrap.operators.step",
    "StepFailed": "airflow_batchwrap.exceptions",
    "StepTimeout": "airflow_batchwrap.exceptions",
    "SweepOrphansOperator": "airflow_batchwrap.operators.sweep",
    "Throttled": "airflow_batchwrap.exceptions",
    "TryAgain": "airflow_batchwrap.exceptions",
    "UsePoolOperator": "airflow_batchwrap.operators.pool",
    "WorkflowConfig": "airflow_batchwrap.config",
}

__all__ = [
    "BatchWorkflow",
    "BatchWrapError",
    "BatchWrapHook",
    "ConfigError",
    "CreatePoolOperator",
    "Credentials",
    "DeletePoolOperator",
    "FetchResultsOperator",
    "Manifest",
    "NoCapacity",
    "NodeLost",
    "PoolConfig",
    "PoolError",
    "RepurposePoolOperator",
    "ResizePoolOperator",
    "RunBatchManifestOperator",
    "RunBatchTaskOperator",
    "StepFailed",
    "StepTimeout",
    "SweepOrphansOperator",
    "Throttled",
    "TryAgain",
    "UsePoolOperator",
    "WorkflowConfig",
    "__version__",
]


def __getattr__(name: str) -> Any:
    try:
        module = _PUBLIC[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
