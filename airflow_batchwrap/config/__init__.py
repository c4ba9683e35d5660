"""The configuration files and what they mean: ``batch.json``, ``task.json`` and ``credentials.json``.

Nothing here imports Airflow or Azure: the hook turns a :class:`PoolConfig` into Azure's own models.
"""

from __future__ import annotations

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
