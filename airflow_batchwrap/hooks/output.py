"""What a running Batch task has printed so far: read by range, logged line by line, each line once and in order."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

#: The files that Batch makes of a task's output, and what stands before their lines in Airflow's log.
FILES = {"stdout.txt": "stdout", "stderr.txt": "stderr"}
READ_BYTES = 64 * 1024  # of one file in one look: a step that prints a lot delays nobody else's lines for long
_SOONEST, _LATEST = 1.0, 15.0  # seconds between two reads: the quieter a step is, the less it is asked


@dataclass
class OutputTail:
    """How far a Batch task's output is in the log, and when to look for more.

    :param offsets: bytes of each file that are in the log.
    :param reruns: how often Batch had rerun the task then: a rerun begins its files anew.
    :param started: when the run had started that they are of: one whose node was lost is not counted as a rerun, but
        starts again too.
    """

    offsets: dict[str, int] = field(default_factory=dict)
    reruns: int = 0
    started: str = ""
    _pause: float = _SOONEST
    _due: float = 0.0

    @classmethod
    def from_json(cls, data: Any) -> OutputTail:
        """Read what :meth:`to_json` wrote; the beginning where it is something else."""
        try:
            offsets = {str(name): int(size) for name, size in dict(data["offsets"]).items()}
            return cls(offsets, int(data["reruns"]), str(data.get("started", "")))
        except (KeyError, TypeError, ValueError):
            return cls()

    def to_json(self) -> dict[str, Any]:
        return {"offsets": dict(self.offsets), "reruns": self.reruns, "started": self.started}

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._due

    def begin(self, reruns: int, started: str = "") -> bool:
        """Start over where Batch runs the task again; return whether it does.

        :param reruns: how often it has rerun the task, as far as it counts.
        :param started: when the present run started; empty before that.
        """
        other = bool(started and self.started and started != self.started)
        if not other and reruns <= self.reruns:
            self.started = started or self.started
            return False
        # Of a task that waits for its rerun, the time is still that of the run before, or none.
        self.started = started if other else ""
        self.reruns, self.offsets = max(reruns, self.reruns), {}
        return True

    def rest(self, new: bool) -> None:
        """Choose when to look again.

        :param new: whether there was anything new this time.
        """
        self._pause = _SOONEST if new else min(self._pause * 1.5, _LATEST)
        self._due = time.monotonic() + self._pause

    def take(self, name: str, data: bytes, *, last: bool = False) -> list[str]:
        """Return the whole lines of what was read from the file's offset on, and move the offset past them.

        :param last: nothing more will come: what has no end of line yet is a line as well.
        """
        end = data.rfind(b"\n") + 1
        if last or (not end and len(data) >= READ_BYTES):
            end = len(data) if last else _whole_characters(data)
        self.offsets[name] = self.offsets.get(name, 0) + end
        text = data[:end].decode("utf-8", "replace")
        lines = text.removesuffix("\n").split("\n") if end else []
        return [f"[{FILES[name]}] {line.rstrip(chr(13))}" for line in lines]


def _whole_characters(data: bytes) -> int:
    """Return how many bytes there are up to the last one that certainly ends a UTF-8 character."""
    for back in range(1, 4):
        byte = data[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:  # the first byte of a character that may go on in what is not read yet
            return len(data) - back
    return len(data)
