"""Which tasks of a job wait for which others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

from airflow_batchwrap.local.model.runs import Runs

#: The ids that a range of ids means.
_NUMBER = re.compile(r"0|-?[1-9][0-9]*")


class _Depending(Protocol):
    @property
    def uid(self) -> int: ...
    @property
    def body(self) -> bytes: ...


T = TypeVar("T", bound=_Depending)


class _Waiting(Generic[T]):
    """A task that waits, and how far its dependencies were found to be satisfied."""

    __slots__ = ("ids", "key", "ranges", "reading", "revision", "task")

    def __init__(self, task: T, depends: dict[str, Any], revision: int) -> None:
        self.task = task
        self.ids: list[str] = depends.get("taskIds", [])
        self.ranges = [(one["start"], one["end"]) for one in depends.get("taskIdRanges", ())]
        self.revision = revision
        self.reading = self.read()
        self.key = ""

    def read(self) -> Iterator[str]:
        return (name.lower() for name in self.ids)


class Dependencies(Generic[T]):
    """The dependencies among a job's tasks.

    A waiting task watches the first of its dependencies that is not satisfied, and looks on from there when it is. Of a
    range it looks at what is missing, and at nothing else: hundreds of tasks may wait for the last of a hundred
    thousand.
    """

    __slots__ = ("_numbers", "_revision", "_satisfied", "_waiting", "_watched")

    def __init__(self) -> None:
        self._satisfied: set[str] = set()
        #: Those that are numbers, for the ranges.
        self._numbers = Runs()
        self._watched: dict[str, dict[int, _Waiting[T]]] = {}
        self._waiting: dict[int, _Waiting[T]] = {}
        #: Rises when a dependency that was satisfied no longer is.
        self._revision = 0

    def hold(self, task: T) -> bool:
        """See whether a task has to wait, and let it.

        :param task: the task.
        :return: whether it waits; `satisfy` gives it back when it no longer does.
        """
        if b'"dependsOn":' not in task.body:
            return False
        waiting = _Waiting(task, json.loads(task.body).get("dependsOn") or {}, self._revision)
        return not self._advance(waiting)

    def _advance(self, waiting: _Waiting[T]) -> bool:
        """Look for the next dependency that is not satisfied; whether there is none."""
        while True:
            key = self._missing(waiting)
            if key is not None:
                waiting.key = key
                self._watched.setdefault(key, {})[waiting.task.uid] = waiting
                self._waiting[waiting.task.uid] = waiting
                return False
            if waiting.revision == self._revision:
                self._waiting.pop(waiting.task.uid, None)
                return True
            waiting.revision, waiting.reading = self._revision, waiting.read()

    def _missing(self, waiting: _Waiting[T]) -> str | None:
        for key in waiting.reading:
            if key not in self._satisfied:
                return key
        for start, end in waiting.ranges:
            if start <= end and (number := self._numbers.missing(start)) <= end:
                return str(number)
        return None

    def satisfy(self, name: str) -> list[T]:
        """Note that a task has ended so that those that wait for it may run.

        :param name: its id.
        :return: the tasks that wait no longer.
        """
        key = name.lower()
        self._satisfied.add(key)
        if _NUMBER.fullmatch(key):
            self._numbers.add(int(key))
        return [waiting.task for waiting in self._watched.pop(key, {}).values() if self._advance(waiting)]

    def unsatisfy(self, name: str) -> None:
        """Note that a task has not ended so after all: it was reactivated or deleted.

        :param name: its id.
        """
        key = name.lower()
        if key in self._satisfied:
            self._satisfied.discard(key)
            self._revision += 1
            if _NUMBER.fullmatch(key):
                self._numbers.remove(int(key))

    def remove(self, task: T) -> None:
        """Let a waiting task go; one that does not wait is no error.

        :param task: the task.
        """
        waiting = self._waiting.pop(task.uid, None)
        if waiting is not None:
            watchers = self._watched[waiting.key]
            del watchers[task.uid]
            if not watchers:
                del self._watched[waiting.key]
