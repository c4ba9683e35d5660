"""A hundred runs at once where the account has room for ten jobs, on an Airflow of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.backfill import backfill
from tests.support.real_airflow import DEFAULT, QUICK, RealAirflow

if TYPE_CHECKING:
    from airflow_batchwrap.stack.azurite import AzuriteService

RUNS = int(os.environ.get("BACKFILL_RUNS", "100"))
QUOTA = "jobs=10"


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory, azurite: AzuriteService) -> Iterator[RealAirflow]:
    """An Airflow whose Batch service has a quota."""
    folder: Path = tmp_path_factory.mktemp("backfill").resolve()
    settings = {**QUICK, "AIRFLOW__CORE__PARALLELISM": "8"}
    with RealAirflow.running(folder, azurite, settings=settings, services={DEFAULT: ["--quota", QUOTA]}) as made:
        yield made


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_backfill(own: RealAirflow) -> None:
    """As many runs as BACKFILL_RUNS says, 100 by default."""
    made = backfill(own, RUNS, 10 + RUNS, pause="1 min")
    assert made.problems == []
    assert made.states() == {"success": RUNS}
    assert RUNS <= 20 or sum(made.refused.values()) > 0
