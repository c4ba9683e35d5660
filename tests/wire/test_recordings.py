"""The real service's recorded answers, beside those of the local one: how many are equal, for each api-version.

The recordings and the tool that replays them lie beside the project, and are not part of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.given import PROJECT, found

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.wire import Wire

RECORDINGS = Path(
    os.environ.get("BATCHWRAP_RECORDINGS") or found("recordings") or PROJECT.parent / "shared" / "recordings"
)
#: How long a state is waited for that a recording polled for, in seconds. Nodes are here at once; some states, such as
#: that of a task that only runs on Windows, never come.
PATIENCE = 0.5
#: Of the pairs of each api-version, at least these shares are equal in status, and in shape apart from what a change
#: of the API or the speed of this service explains. What is left, docs/local-service.md says.
NEW = {
    "2025-06-01": (1.0, 0.95),
    "2024-02-01.19.0": (0.975, 0.85),
    "2023-11-01.18.0": (0.97, 0.85),
}
OLD = {
    "2023-05-01.17.0": (1.0, 0.83),
    "2022-10-01.16.0": (0.97, 0.83),
    "2022-06-01.15.0": (1.0, 0.85),
    "2022-01-01.15.0": (0.98, 0.75),
    "2021-06-01.14.0": (1.0, 0.85),
    "2020-09-01.12.0": (0.94, 0.8),
    "2020-03-01.11.0": (0.96, 0.78),
    "2019-08-01.10.0": (0.85, 0.65),
}
Shares = dict[str, tuple[float, float]]
_LINE = re.compile(r"apart from drift and timing: (\S+) +(\d+) of (\d+) equal in shape, (\d+) in status")


@pytest.fixture(scope="module")
def replay() -> ModuleType:
    """The tool that replays recordings."""
    tool = RECORDINGS / "replay.py"
    if not tool.is_file():
        pytest.skip(f"There are no recordings of the real service: {tool} is missing (or name their folder in "
                    "BATCHWRAP_RECORDINGS).")  # fmt: skip
    specification = importlib.util.spec_from_file_location("batchwrap_replay", tool)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _as_of(local: Any) -> Any:
    """Undo for the tool that it gives a property of versions before 2020-09 its newer name, in requests and answers."""
    plain = local.request

    def request(method: str, target: str, headers: Any = None, body: Any = None) -> Any:
        old = re.search(r"api-version=20(?:19|20-0[1-8])", target) is not None
        if old and body:
            body = body.replace('"taskSlotsPerNode"', '"maxTasksPerNode"')
        status, answered, text = plain(method, target, headers, body)
        return status, answered, text.replace('"maxTasksPerNode"', '"taskSlotsPerNode"') if old else text

    local.request = request
    return local


def compare(
    replay: ModuleType, wire: Wire, versions: dict[str, tuple[float, float]]
) -> dict[str, tuple[int, int, int]]:
    """Replay all recordings of some api-versions: pairs, those equal in status, those equal in shape, by version."""
    local = _as_of(replay.Local(wire.service.url, wire.service.account, wire.service.key))
    results: list[Any] = []
    for path in sorted(RECORDINGS.glob("*/*.json")):
        recording = json.loads(path.read_text())
        if recording["api"] in versions:
            results += replay.Replay(local, recording, path.stem, {name: name for name in versions}, PATIENCE).run()
    local.empty()
    if local.connection is not None:
        local.connection.close()
    lines: list[str] = []
    replay.show(results, lines.append)
    found = [match for line in lines if (match := _LINE.match(line))]
    counts = {match[1]: (int(match[3]), int(match[4]), int(match[2])) for match in found if match[1] != "all"}
    print("\n".join(lines))
    return counts


def check(counts: dict[str, tuple[int, int, int]], floors: Shares) -> None:
    """Compare the shares with what they must be at least."""
    assert counts.keys() == floors.keys()
    short = {
        api: (pairs, status, shape)
        for api, (pairs, status, shape) in counts.items()
        if status < floors[api][0] * pairs or shape < floors[api][1] * pairs
    }
    assert not short, "pairs, equal in status, equal in shape; the tool's whole comparison is above"


@pytest.mark.timeout(180)
def test_answers_are_those_of_the_real_service(replay: ModuleType, own: Callable[[], Wire]) -> None:
    counts = compare(replay, own(), NEW)
    check(counts, NEW)
    pairs, status, shape = (sum(column) for column in zip(*counts.values(), strict=True))
    assert status >= 0.98 * pairs
    assert shape >= 0.85 * pairs


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_older_answers_are_those_of_the_real_service(replay: ModuleType, own: Callable[[], Wire]) -> None:
    check(compare(replay, own(), OLD), OLD)
