"""What this package tells Airflow about itself (entry point group ``apache_airflow_provider``)."""

from __future__ import annotations

from typing import Any

_INTEGRATION = "Azure Batch workflows"


def get_provider_info() -> dict[str, Any]:
    """Describe the provider; Airflow checks it against its ``provider_info.schema.json``.

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
    }
