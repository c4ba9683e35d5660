"""A small backfill: six runs at once where there is room for two jobs. The whole is `make soak`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.backfill import NARROW, backfill

if TYPE_CHECKING:
    from tests.support.real_airflow import RealAirflow

RUNS = 6


@pytest.mark.timeout(400)
def test_sample(stack: RealAirflow) -> None:
    made = backfill(stack, RUNS, 5, connection=NARROW, pause="2 s")
    assert made.problems == []
    assert made.states() == {"success": RUNS}
    assert sum(made.refused.values()) > 0, "no run met the quota"
