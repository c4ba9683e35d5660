"""Work on files is done beside the event loop, and long work in short turns, so that nobody waits for anybody's files.

size = await threads.apart(os.path.getsize, path)

async with contextlib.aclosing(threads.in_turns(walk(...))) as batches:
    async for batch in batches: ...
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

#: Threads for what takes a moment: to open, read, write, rename. Of their own: what else waits in a thread (a container
#: engine, for example) holds up no file.
_FILES = ThreadPoolExecutor(8, thread_name_prefix="files")
#: Threads for what may take long, a turn after the other. Few, because each of them takes turns with the event loop.
_TURNS = ThreadPoolExecutor(2, thread_name_prefix="turns")
#: How long a turn is, in seconds, and how much it brings at most.
_TURN, _MOST = 0.01, 256


async def apart(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a function that looks at files in a thread. It is called and done even where nobody waits for it any more.

    :param function: the function; it takes a moment.
    :param arguments: its arguments.
    :param named: its named ones.
    :return: what it returns.
    """
    return await asyncio.shield(
        asyncio.get_running_loop().run_in_executor(_FILES, partial(function, *arguments, **named))
    )


async def opened(
    function: Callable[P, tuple[int, os.stat_result]], *arguments: P.args, **named: P.kwargs
) -> tuple[int, os.stat_result]:
    """Open a file in a thread; it is closed where nobody waits for it any more.

    :param function: opens it, such as `opening.reading`.
    :param arguments: its arguments.
    :param named: its named ones.
    :return: what it returns: a descriptor, to be closed, and what the file is.
    """
    future = asyncio.get_running_loop().run_in_executor(_FILES, partial(function, *arguments, **named))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_close)
        raise


class Together(Generic[T, R]):
    """Calls that come in one turn of the loop are done in one go, in one thread: a thread for each of a thousand would
    keep the loop from everything else.

    :param function: does something with each of some things, and returns what came of each.
    """

    def __init__(self, function: Callable[[list[T]], list[R]]) -> None:
        self._function = function
        self._asked: list[tuple[T, asyncio.Future[R]]] = []

    async def call(self, item: T) -> R:
        """Have something done.

        :param item: with what.
        :return: what came of it.
        """
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._begin)
        waiter: asyncio.Future[R] = loop.create_future()
        self._asked.append((item, waiter))
        return await waiter

    def _begin(self) -> None:
        asked, self._asked = self._asked, []
        done = asyncio.get_running_loop().run_in_executor(_FILES, self._function, [item for item, _ in asked])
        done.add_done_callback(partial(_tell, [waiter for _, waiter in asked]))


def _tell(waiters: list[asyncio.Future[R]], done: asyncio.Future[list[R]]) -> None:
    error = done.exception()
    for index, waiter in enumerate(waiters):
        if waiter.done():
            continue
        if error is not None:
            waiter.set_exception(error)
        else:
            waiter.set_result(done.result()[index])


def _close(future: asyncio.Future[tuple[int, os.stat_result]]) -> None:
    if not future.cancelled() and future.exception() is None:
        os.close(future.result()[0])


async def finish(work: Generator[None]) -> None:
    """Work a generator that brings nothing off in threads, as `in_turns` does.

    :param work: as of `in_turns`.
    """
    turns: AsyncGenerator[list[None]] = in_turns(work)
    async with aclosing(turns):
        async for _ in turns:
            pass


class _Turns(Generic[T]):
    def __init__(self, work: Generator[T | None]) -> None:
        self._work = work
        # A turn that nobody waits for any more may still be under way when the work is closed.
        self._lock = threading.Lock()

    def turn(self) -> tuple[list[T], bool]:
        with self._lock:
            end, found = time.monotonic() + _TURN, []
            for item in self._work:
                if item is not None:
                    found.append(item)
                if len(found) == _MOST or time.monotonic() > end:
                    return found, False
            return found, True

    def close(self) -> None:
        with self._lock:
            self._work.close()


async def in_turns(work: Generator[T | None]) -> AsyncGenerator[list[T]]:
    """Work a generator off in threads, in turns of some milliseconds; cancelling ends it after its turn.

    :param work: what is done between two of its yields is short; None is a pause without a result.
    :return: what it yields, a list for each turn that has something.
    """
    turns, over = _Turns(work), False
    loop = asyncio.get_running_loop()
    try:
        while not over:
            found, over = await loop.run_in_executor(_TURNS, turns.turn)
            if found:
                yield found
    finally:
        if not over:
            _TURNS.submit(turns.close)
