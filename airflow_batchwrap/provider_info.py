"""What Airflow reads about this package (entry point group ``apache_airflow_provider``)."""

from __future__ import annotations

from typing import Any

_INTEGRATION = "Azure Batch workflows"
_PACKAGE = "airflow_batchwrap"


def _modules(kind: str, *stems: str) -> list[dict[str, Any]]:
    return [{"integration-name": _INTEGRATION, "python-modules": [f"{_PACKAGE}.{kind}.{stem}" for stem in stems]}]


def get_provider_info() -> dict[str, Any]:
    """Describe the provider; Airflow checks it against its ``provider_info.schema.json``.

    The connection types are those of apache-airflow-providers-microsoft-azure, which registers them.

    :return: the metadata, with module names only: nothing is imported here.
    """
    return {
        "package-name": "airflow-batchwrap",
        "name": "Batchwrap",
        "description": "A folder of numbered step files becomes Airflow tasks on Azure Batch pools.",
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://learn.microsoft.com/azure/batch/",
                "tags": ["azure", "service"],
            }
        ],
        "hooks": _modules("hooks", "batch"),
        "operators": _modules("operators", "pool", "step", "manifest", "results", "resize", "sweep"),
        "triggers": _modules("triggers", "pool", "step", "manifest"),
        "extra-links": [
            f"{_PACKAGE}.links.{name}"
            for name in ("pool.JobLink", "pool.PoolLink", "step.BatchTaskLink", "step.ResultsLink")
        ],
        "config": {
            "batchwrap": {
                "description": "Settings of airflow-batchwrap that hold for every DAG.\n",
                "options": {
                    "results_base": {
                        "description": (
                            "Where fetched results go: a folder, or a URL that Airflow's ObjectStoragePath opens.\n"
                            "A relative folder is under AIRFLOW_HOME. The DAG's id and the run's id are added to it\n"
                            "unless the task was given an absolute path or a URL of its own.\n"
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "s3://aws_default@my-bucket/results",
                        "default": "results",
                    },
                    "instance": {
                        "description": (
                            "The name of this Airflow. All that it makes on Azure Batch and Blob bears it, and\n"
                            "nothing of another Airflow on the same accounts is adopted, changed or deleted.\n"
                            "Where this is empty, a random name is made once and kept in the Airflow variable\n"
                            "batchwrap_instance.\n"
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "production",
                        "default": "",
                    },
                },
            }
        },
    }
