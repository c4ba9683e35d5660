"""A few at a time: what wakes up in hundreds at once goes on in as many turns of the loop as it takes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")

#: How many pass in one turn of the loop. Each then does some tenths of a millisecond of work.
AT_ONCE = 16
#: How many cheap things are done in one turn.
MANY = 1000


class Turnstile:
    """Lets coroutines through, so many in each turn of the loop, first come first served.

    :param at_once: how many.
    """

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = self._left = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Wait until there is room in a turn: at once where few come."""
        if self._left and not self._waiting:
            self._count()
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def _count(self) -> None:
        if self._left == self._at_once:
            asyncio.get_running_loop().call_soon(self._again)
        self._left -= 1

    def _again(self) -> None:
        self._left = self._at_once
        while self._waiting and self._left:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._count()
                waiter.set_result(None)


async def sliced(items: Iterable[T], at_once: int = MANY) -> AsyncIterator[T]:
    """Go through many things with a pause for others from time to time.

    :param items: the things; a list that changes meanwhile is to be copied.
    :param at_once: how many in one turn of the loop.
    :return: them.
    """
    for count, item in enumerate(items, 1):
        yield item
        if count % at_once == 0:
            await asyncio.sleep(0)
