"""The configuration files and what they mean: ``batch.json``, ``task.json`` and ``credentials.json``.

Nothing here imports Airflow or Azure: the hook turns a :class:`PoolConfig` into Azure's own models. The names are
loaded on first use: a DAG file that is parsed needs no credentials.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_batchwrap.config.credentials import Credentials, connection_env
    from airflow_batchwrap.config.durations import format_duration, parse_duration
    from airflow_batchwrap.config.files import caller_folder, resolve_path
    from airflow_batchwrap.config.manifest import Manifest, ManifestEntry, check_container_name
    from airflow_batchwrap.config.pool import PoolConfig, ResourceFileConfig, StartTaskConfig
    from airflow_batchwrap.config.workflow import WorkflowConfig

__all__ = [
    "Credentials",
    "Manifest",
    "ManifestEntry",
    "PoolConfig",
    "ResourceFileConfig",
    "StartTaskConfig",
    "WorkflowConfig",
    "caller_folder",
    "check_container_name",
    "connection_env",
    "format_duration",
    "parse_duration",
    "resolve_path",
]

# Module -> the names that it holds.
_MODULES = {
    "credentials": ("Credentials", "connection_env"),
    "durations": ("format_duration", "parse_duration"),
    "files": ("caller_folder", "resolve_path"),
    "manifest": ("Manifest", "ManifestEntry", "check_container_name"),
    "pool": ("PoolConfig", "ResourceFileConfig", "StartTaskConfig"),
    "workflow": ("WorkflowConfig",),
}
_HOLDERS = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOLDERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOLDERS[name]}"), name)
    globals()[name] = value
    return value
