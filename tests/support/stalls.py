"""A local service whose loop is watched: no turn of it may keep others waiting.

with stalls.watched(services, tmp_path / "data") as watched:
    watched.wire.pool(nodes=1000)
    watched.no_stall()
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.polling import until
from tests.support.wire import Services, Wire

#: How long a turn of the service's loop may take, in seconds.
LONGEST = 0.05


@dataclass
class Watched:
    """A service whose long turns are written to a file."""

    wire: Wire
    file: Path
    since: float

    def turns(self) -> list[dict[str, Any]]:
        """The turns of 10 ms and more since the last `forget`, the longest first."""
        now = time.time()
        # The file's time moves on with each answer of the loop: what was under way has been noted then.
        until(lambda: self.file.stat().st_mtime > now, "the loop's next answer", timeout=60)
        lines = [json.loads(line) for line in self.file.read_text().splitlines()]
        return sorted((line for line in lines if line["at"] >= self.since), key=lambda line: -line["seconds"])

    def forget(self) -> None:
        """Count from now on."""
        self.since = time.time()

    def no_stall(self, longest: float = LONGEST) -> None:
        """Assert that no turn took longer, and say where the loop was in those that did.

        :param longest: how long one may take, in seconds; what other programs took of the processor is left out.
        """
        # The loop's own work counts as it is. What it waited for (a thread, the interpreter's lock) takes longer where
        # many other programs run, and counts by that.
        crowd = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        long = [line for line in self.turns() if line["worked"] > longest or line["seconds"] > longest * crowd]
        assert not long, "\n".join(
            f"{line['seconds']} s ({line['worked']} s of work) in {' > '.join(line['stack'])}" for line in long[:5]
        )


@contextmanager
def watched(services: Services, data: Path, *arguments: str) -> Iterator[Watched]:
    """Start a service and watch its loop.

    :param services: the fixture.
    :param data: the data directory.
    :param arguments: further words for `batchwrap local serve`.
    :return: the service; assert `no_stall` before the context ends.
    """
    file = data.with_name(data.name + ".turns")
    wire = services(data, "--turns", os.fspath(file), *arguments)
    yield Watched(wire, file, time.time())
