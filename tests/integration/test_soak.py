"""The whole soak, on an Airflow of its own: nothing else may keep it busy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.real_airflow import DEFAULT, QUICK, RealAirflow
from tests.support.soak import FAULTS, soak

if TYPE_CHECKING:
    from airflow_batchwrap.stack.azurite import AzuriteService

RUNS = int(os.environ.get("SOAK_RUNS", "200"))


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory, azurite: AzuriteService) -> Iterator[RealAirflow]:
    """An Airflow whose Batch service fails on purpose."""
    folder: Path = tmp_path_factory.mktemp("soak").resolve()
    settings = {**QUICK, "AIRFLOW__CORE__PARALLELISM": "8"}
    with RealAirflow.running(folder, azurite, settings=settings, services={DEFAULT: ["--faults", FAULTS]}) as made:
        yield made


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_soak(own: RealAirflow, tmp_path: Path) -> None:
    """As many runs as SOAK_RUNS says, 200 by default."""
    assert soak(own, tmp_path, RUNS, 5 + RUNS).problems == []
