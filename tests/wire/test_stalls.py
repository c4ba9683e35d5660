"""The service's loop is kept from nobody for long: 50 ms at most in one turn (issue 10)."""

from __future__ import annotations

from pathlib import Path

from tests.support import stalls
from tests.support.wire import Services


def test_ordinary_work_stalls_nothing(services: Services, tmp_path: Path) -> None:
    with stalls.watched(services, tmp_path / "data") as watched:
        job = watched.wire.job(watched.wire.pool(nodes=2))
        for _ in range(5):
            watched.wire.run(job, "true")
        watched.no_stall()
