"""A few runs of the soak, by the seed in SOAK_SEED: the whole is `make soak`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.soak import FAULTY, soak

if TYPE_CHECKING:
    from tests.support.real_airflow import RealAirflow

RUNS = 3


@pytest.mark.timeout(300)
def test_sample(stack: RealAirflow, tmp_path: Path) -> None:
    assert soak(stack, tmp_path, RUNS, 4, connection=FAULTY).problems == []
