"""A job's tasks that wait for a place, in the order they were added."""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar


class _Queued(Protocol):
    @property
    def uid(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def gang(self) -> bool: ...


T = TypeVar("T", bound=_Queued)


class Ready(Generic[T]):
    """Waiting tasks, by the slots they need.

    A task that fits may overtake an older one of the same job that needs more slots than are free, so that a large one
    does not leave slots empty. A task that left (deleted, terminated) is skipped when it comes up.
    """

    __slots__ = ("_gangs", "_queues", "_waiting")

    def __init__(self) -> None:
        self._queues: dict[int, list[int]] = {}
        self._waiting: dict[int, T] = {}
        #: Those that need several nodes at once.
        self._gangs: dict[int, T] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._gangs)

    def add(self, task: T) -> None:
        """Queue a task by its number, so that one that comes back stands where it stood.

        :param task: the task.
        """
        if task.gang:
            self._gangs[task.uid] = task
        elif task.uid not in self._waiting:
            self._waiting[task.uid] = task
            heapq.heappush(self._queues.setdefault(task.slots, []), task.uid)

    def remove(self, task: T) -> None:
        """Take a task out; one that is not there is no error.

        :param task: the task.
        """
        self._waiting.pop(task.uid, None)
        self._gangs.pop(task.uid, None)

    def gangs(self) -> list[T]:
        """The tasks that need several nodes at once.

        :return: them, oldest first; they stay queued.
        """
        return [self._gangs[uid] for uid in sorted(self._gangs)]

    def first(self, slots: int) -> T | None:
        """The oldest task that needs no more slots than these.

        :param slots: free slots.
        :return: the task, which stays queued; None where there is none.
        """
        best: int | None = None
        for needed, queue in self._queues.items():
            while queue and queue[0] not in self._waiting:
                heapq.heappop(queue)
            if needed <= slots and queue and (best is None or queue[0] < best):
                best = queue[0]
        return None if best is None else self._waiting[best]
