"""What keeps a loop from others is noted, with where it was; what does not, is not."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from airflow_batchwrap.local.turns import Turns


def _stall() -> None:
    time.sleep(0.12)


async def test_long_turn_is_noted_with_its_place(tmp_path: Path) -> None:
    with (tmp_path / "turns").open("w") as file, Turns(asyncio.get_running_loop(), file).watching():
        await asyncio.sleep(0.05)
        _stall()
        await asyncio.sleep(0.05)
    lines = [json.loads(line) for line in (tmp_path / "turns").read_text().splitlines()]
    longest = max(lines, key=lambda line: line["seconds"])
    assert 0.1 < longest["seconds"] < 10
    assert longest["stack"][-1].endswith("_stall")


async def test_waiting_is_no_turn(tmp_path: Path) -> None:
    with (tmp_path / "turns").open("w") as file, Turns(asyncio.get_running_loop(), file).watching():
        await asyncio.sleep(0.3)
    assert not [line for line in (tmp_path / "turns").read_text().splitlines() if json.loads(line)["seconds"] > 0.2]
