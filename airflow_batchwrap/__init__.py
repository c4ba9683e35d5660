"""A folder of numbered step files becomes Airflow tasks that run on an Azure Batch pool.

The public names are loaded on first use, so that importing this package costs nothing and imports no Airflow:
Airflow imports it while it discovers providers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from airflow_batchwrap.exceptions import BatchWrapError as BatchWrapError

# Public name -> the module that holds it.
_PUBLIC = {
    "BatchWrapError": "airflow_batchwrap.exceptions",
}

__all__ = ["BatchWrapError", "__version__"]


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
