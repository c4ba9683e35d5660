"""How many transfers go on at the same time: what is slow keeps nobody else from being sent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")

#: Transfers of all tasks together: each needs a connection and a file, of the 1024 that a process may have by default.
TOGETHER = 256
#: Transfers of one task.
AT_ONCE = 8


class Lanes:
    """Room for transfers. Waiting for it has no limit of its own: nothing times out that was never sent.

    Each task has one transfer as long as there is any room, and its further ones share half of the room: so tasks with
    many slow files leave room for the files of others.
    """

    def __init__(self) -> None:
        self._all, self._further = asyncio.Semaphore(TOGETHER), asyncio.Semaphore(TOGETHER // 2)

    @asynccontextmanager
    async def _room(self, first: bool) -> AsyncIterator[None]:
        if first:
            async with self._all:
                yield
        else:
            async with self._further, self._all:
                yield

    async def each(self, items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
        """Do the transfers of a task, some at the same time.

        :param items: what is transferred.
        :param work: transfers one.
        :raises BaseExceptionGroup: some failed; the others were cancelled.
        """
        waiting = deque(items)
        idle: set[asyncio.Task[None]] = set()

        async def lane(first: bool) -> None:
            me = asyncio.current_task()
            assert me is not None  # noqa: S101 - for the type checker: it is one
            while waiting:
                idle.add(me)
                async with self._room(first):
                    idle.discard(me)
                    if waiting:
                        await work(waiting.popleft())
            idle.discard(me)
            # Those that found no room find nothing to do any more.
            for other in idle:
                other.cancel()

        async with asyncio.TaskGroup() as group:
            for number in range(min(AT_ONCE, len(waiting))):
                group.create_task(lane(number == 0))
