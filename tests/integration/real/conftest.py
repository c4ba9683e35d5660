"""One real Airflow for all tests of this folder: it starts with the first one and stops after the last one.

A test gets DAGs of its own into it by `add_dags`, and asks only for what these have made. What needs other settings, or
kills components in `make test`, has an Airflow of its own elsewhere.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.real import plays
from tests.integration.real.plays import Play, PlayOf
from tests.integration.real.seen import noting
from tests.support.backfill import NARROW, QUOTA_OF_SAMPLE
from tests.support.real_airflow import QUICK, RealAirflow
from tests.support.soak import FAULTS_OF_SAMPLE, FAULTY

if TYPE_CHECKING:
    from airflow_batchwrap.stack.azurite import AzuriteService

_SETTINGS = {
    **QUICK,
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "2",
    # This process sweeps as the same Airflow.
    "AIRFLOW__BATCHWRAP__INSTANCE": os.environ["AIRFLOW__BATCHWRAP__INSTANCE"],
}


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory, azurite: AzuriteService) -> Iterator[RealAirflow]:
    """The Airflow, with a Batch service that fails on purpose, and one that has little room."""
    folder: Path = tmp_path_factory.mktemp("airflow").resolve()
    settings = {**_SETTINGS, **noting(folder / "notes")}
    services = {FAULTY: ["--faults", FAULTS_OF_SAMPLE], NARROW: ["--quota", QUOTA_OF_SAMPLE]}
    with RealAirflow.running(folder, azurite, settings=settings, services=services) as made:
        yield made


@pytest.fixture(scope="package")
def play(stack: RealAirflow, airflow_home: Path) -> Iterator[PlayOf]:
    """Make a run to end something of, not started yet. This process has Airflow's connections as well."""
    stack.add_dags("cancel", plays.write_dags)
    stack.airflow.wait_for_dag("cancel_plain")

    def make(dag_id: str, how: str) -> Play:
        return Play(stack, dag_id, how, stack.folder / f"run-{uuid.uuid4().hex[:8]}")

    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.connections.items():
            patch.setenv(name, value)
        yield make
