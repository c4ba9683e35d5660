"""Fixtures that every kind of test may ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow_batchwrap.stack.azurite import AzuriteService


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzuriteService]:
    """Azurite's blob service on a free port, for the whole session: give containers names of their own."""
    from airflow_batchwrap.stack import azurite

    folder: Path = tmp_path_factory.mktemp("azurite")
    service = azurite.start(folder / "data", log=folder / "azurite.log")
    yield service
    service.stop()
