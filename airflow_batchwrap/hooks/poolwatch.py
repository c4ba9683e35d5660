"""How a pool comes along while somebody waits for it: the log's lines, and when to ask again for nodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from airflow_batchwrap.hooks.views import PoolView, Verdict, judge_pool
from airflow_batchwrap.waiting import pause_after

_FIRST_PAUSE = 15.0  # seconds between two requests for what there was no room for; doubled each time
_LONGEST_PAUSE = 300.0


@dataclass
class PoolWatch:
    """Watch a pool: log its progress, each line once, and judge it. Both ways of waiting share it.

    :param needed: how many usable nodes are enough; None for all that the pool asks for.
    :param max_start_task_failures: on how many nodes the start task may fail; None for as many as leave enough others.
    :param first_pause: seconds between the first two requests for nodes that there was no room for.
    :param clock: seconds.
    """

    needed: int | None
    log: Any
    max_start_task_failures: int | None = None
    first_pause: float = _FIRST_PAUSE
    clock: Callable[[], float] = time.monotonic
    line: str = ""
    _logged: set[str] = field(default_factory=set)
    _asks: int = 0
    _next: float = 0.0

    def judge(self, view: PoolView) -> Verdict:
        """Log what is new, and return what follows."""
        if (line := view.progress()) != self.line:
            self.line = line
            self.log.info("Pool %s: %s", view.pool_id, line)
        verdict = judge_pool(view, self.needed, self.max_start_task_failures)
        for warning in (*verdict.warnings, *((verdict.why,) if verdict.answer == "short" else ())):
            if warning not in self._logged:
                self._logged.add(warning)
                self.log.warning("%s", warning)
        return verdict

    def is_to_ask(self, verdict: Verdict) -> bool:
        """Return whether to ask the service for the pool's nodes again now, with longer and longer pauses."""
        if verdict.answer != "short" or not verdict.ask:
            return False
        if self._asks and self.clock() < self._next:
            return False
        self._next = self.clock() + pause_for_room(self._asks, self.first_pause)
        self._asks += 1
        return self._asks > 1  # the pool has asked by itself a moment ago


def pause_for_room(asked: int, first: float = _FIRST_PAUSE) -> float:
    """Return how many seconds to wait before the next request for what there was no room for.

    :param asked: how often it was asked for before.
    :param first: the first pause, in seconds.
    """
    return pause_after(first * 2.0 ** min(asked, 10), max(first, _LONGEST_PAUSE), share=1.0)
