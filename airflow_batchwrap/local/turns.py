"""How long the service's loop keeps others waiting: a line in a file for each long turn, for those who look for stalls.

A thread asks the loop for an answer again and again, and notes how long that took: that long, any request would have
waited. Time in which this machine's other programs had the processor is no fault of a turn, and is left out where the
system says how long that was (Linux: Documentation/scheduler/sched-stats.rst in the kernel's sources).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

#: Between two questions, in seconds: a turn may be longer than it looks by so much.
PAUSE = 0.005
#: What is noted, in seconds.
NOTED = 0.01
#: After so long (seconds) it is looked where the loop is just then.
_SUSPECT = 0.025
#: How many calls of a stack are noted, innermost last.
_DEEP = 12


def _had(thread: int) -> tuple[float, float]:
    """How long a thread has had a processor, and has waited for one, in seconds; 0 where the system does not say."""
    try:
        had, waited, _ = Path(f"/proc/self/task/{thread}/schedstat").read_text().split()
        return int(had) / 1e9, int(waited) / 1e9
    except (OSError, ValueError):
        return 0.0, 0.0


class Turns:
    """Watches a loop from a thread of its own.

    :param loop: the loop, which runs in the thread that makes this.
    :param file: where the lines go. Each is a JSON object: ``at`` (seconds since the epoch, its end), ``seconds``,
        ``worked`` (how long of it the loop had a processor), ``stack`` (where the loop was when it had taken 25 ms;
        empty for a shorter one). The time of the file's last change says until when the loop was watched.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, file: TextIO) -> None:
        self._loop, self._file = loop, file
        self._ident, self._native = threading.get_ident(), threading.get_native_id()
        self._over = threading.Event()
        self._answered = threading.Event()
        self._answered_at, self._had = 0.0, (0.0, 0.0)
        self._thread = threading.Thread(target=self._watch, name="turns", daemon=True)

    def _answer(self) -> None:
        # Read here, since the thread that asked may wake late, and the loop has gone on by then.
        self._answered_at, self._had = time.perf_counter(), _had(self._native)
        self._answered.set()

    def _watch(self) -> None:
        while not self._over.wait(PAUSE):
            had, waited = _had(self._native)
            self._answered.clear()
            began = time.perf_counter()
            self._loop.call_soon_threadsafe(self._answer)
            stack: list[str] = []
            if not self._answered.wait(_SUSPECT):
                stack = self._stack()
                while not self._answered.wait(0.1):
                    if self._over.is_set():
                        return
            now_had, now_waited = self._had
            seconds = self._answered_at - began - (now_waited - waited)
            if seconds >= NOTED:
                worked = round(now_had - had, 4)
                line = {"at": time.time(), "seconds": round(seconds, 4), "worked": worked, "stack": stack}
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()
            os.utime(self._file.fileno())

    def _stack(self) -> list[str]:
        frame = sys._current_frames().get(self._ident)
        calls = traceback.extract_stack(frame)[-_DEEP:] if frame is not None else []
        return [f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in calls]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for as long as this context is open."""
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()
