"""One watcher per Batch job: all deferred tasks of a job in one triggerer share its requests.

The watcher is a loop of its own beside the triggers, and not Airflow's shared streams: those are documented for assets
alone, fail every subscriber at once where the stream fails or one of them is slow, and do nothing for ``dag.test()``.
Here a trigger's own ``run()`` joins the watcher of its job, and whichever leaves last ends it.

A look is one request: one Batch task is read where one alone is waited for; of several, only those whose state has
changed since are listed. Beside it come reads of what running tasks print, bounded for each look, and now and then a
question about what may keep a waiting task from ever starting.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from airflow_batchwrap.exceptions import AccessDenied, BatchWrapError, Throttled, TryAgain
from airflow_batchwrap.hooks.output import FILES, READ_BYTES, OutputTail
from airflow_batchwrap.hooks.views import Stuck, TaskView, judge_wait
from airflow_batchwrap.naming import BatchTaskKey
from airflow_batchwrap.triggers.patience import Patience, said_of
from airflow_batchwrap.waiting import GRACE, STUCK_INTERVAL, pause_after

if TYPE_CHECKING:
    from azure.batch.aio import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook

_FEW = 3  # newcomers whose state is read one by one; for more, all tasks of the job are listed once
_LIST_ALL = 300.0  # seconds: a task that was deleted changes no state, and shows only by not being listed
_OVERLAP = timedelta(seconds=10)  # of the spans listed: a change may show later than its time says
_ANSWER = 120.0  # seconds that the requests of a look may take
_LONGEST_BACK_OFF = 60.0  # seconds
_READERS = 16  # running tasks whose output is read in one look


class WatchKey(NamedTuple):
    """What triggers have in common that share a watcher."""

    azure_batch_conn_id: str
    wasb_conn_id: str
    pool_id: str
    job_id: str


@dataclass
class Update:
    """What a watcher has for one of those who wait; one of these at a time."""

    view: TaskView | None = None
    lines: list[str] = field(default_factory=list)
    stuck: Stuck | None = None
    warning: str = ""
    error: str = ""


@dataclass(eq=False)
class Waiter:
    """One who waits for a Batch task.

    :param since: when the wait for it began, by ``time.monotonic``.
    :param longest: the longest pause between two looks, in seconds.
    :param tail: how far its output is in the log; None where nobody wants it.
    """

    batch_task_id: str
    since: float
    longest: float
    tail: OutputTail | None = None
    view: TaskView | None = None
    updates: asyncio.Queue[Update] = field(default_factory=asyncio.Queue)

    def update(self, view: TaskView) -> None:
        if view != self.view:
            self.view = view
            self.updates.put_nowait(Update(view))


class Watcher:
    """Watch the Batch tasks of one job for everybody in this event loop who waits for one.

    :param key: the job and how to reach it.
    """

    _all: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[WatchKey, Watcher]]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, key: WatchKey) -> None:
        self.key = key
        self._waiters: list[Waiter] = []
        self._woken = asyncio.Event()
        self._newest: datetime | None = None
        self._listed = self._asked = float("-inf")
        self._turn = 0
        self._failures = 0
        self._patience = Patience()
        # A context of its own: else what it logs would go to the log of the first task that waits.
        self._loop = asyncio.get_running_loop().create_task(self._watch(), context=contextvars.Context())

    @classmethod
    @asynccontextmanager
    async def joined(cls, key: WatchKey, waiter: Waiter) -> AsyncIterator[Watcher]:
        """Wait in the watcher of a job, which is started for the first and ended with the last."""
        watchers = cls._all.setdefault(asyncio.get_running_loop(), {})
        watcher = watchers.get(key)
        if watcher is None or watcher._loop.done():
            watcher = watchers[key] = cls(key)
        watcher._waiters.append(waiter)
        watcher._woken.set()
        try:
            yield watcher
        finally:
            watcher._waiters.remove(waiter)
            if not watcher._waiters:
                if watchers.get(key) is watcher:
                    del watchers[key]
                watcher._loop.cancel()

    # --- the loop

    async def _watch(self) -> None:
        from airflow_batchwrap.hooks.batch import BatchWrapHook

        hook = BatchWrapHook(self.key.azure_batch_conn_id, self.key.wasb_conn_id)
        async with AsyncExitStack() as stack:
            client: BatchClient | None = None
            while True:
                try:
                    async with asyncio.timeout(_ANSWER):
                        if client is None:
                            # The back-off is this loop's, for all who wait together.
                            client = await stack.enter_async_context(hook.async_batch(retries=False))
                        await self._look(hook, client)
                    self._failures = 0
                    self._patience.renew()
                    pause = min((self._pause(waiter) for waiter in self._waiters), default=1.0)
                except TimeoutError:
                    pause = self._back_off(f"The Batch account has not answered within {_ANSWER:g} s.")
                except TryAgain as error:  # a missed look fails nothing; the deadlines do
                    pause = self._back_off(str(error), error.retry_after if isinstance(error, Throttled) else None)
                except Exception as error:
                    if not self._patience.lasts(error):
                        known = isinstance(error, BatchWrapError)
                        why = str(error) if known else f"Waiting failed in the triggerer: {type(error).__name__}"
                        return self._update_all(Update(error=why))
                    pause = self._back_off(said_of(error))
                    if isinstance(error, AccessDenied):
                        await stack.aclose()  # the next look signs in anew
                        client = None
                await self._rest(pause)

    async def _rest(self, pause: float) -> None:
        # A newcomer causes a look at once, but not while the service has asked for a pause.
        if self._failures:
            await asyncio.sleep(pause)
        else:
            try:
                async with asyncio.timeout(pause):
                    await self._woken.wait()
                await asyncio.sleep(0.05)  # whole waves join together
            except TimeoutError:
                pass
        self._woken.clear()

    @staticmethod
    def _pause(waiter: Waiter) -> float:
        return pause_after(time.monotonic() - waiter.since, waiter.longest)

    def _back_off(self, why: str, asked: float | None = None) -> float:
        self._failures += 1
        self._update_all(Update(warning=why))
        return max(asked or 0.0, pause_after(2.0**self._failures, _LONGEST_BACK_OFF, share=1.0))

    def _update_all(self, update: Update) -> None:
        for waiter in self._waiters:
            waiter.updates.put_nowait(update)

    # --- one look

    async def _look(self, hook: BatchWrapHook, client: BatchClient) -> None:
        await self._look_at_tasks(hook, client)
        await self._look_for_trouble(hook, client)
        await self._read_output(hook, client)

    async def _look_at_tasks(self, hook: BatchWrapHook, client: BatchClient) -> None:
        now, waiters = time.monotonic(), list(self._waiters)
        new = [waiter for waiter in waiters if waiter.view is None]
        all_due = len(waiters) > 1 and (now - self._listed > _LIST_ALL or len(new) > _FEW)
        if len(waiters) == 1 or not all_due:
            for waiter in waiters if len(waiters) == 1 else new:
                waiter.update(await hook.aview_task(client, BatchTaskKey(self.key.job_id, waiter.batch_task_id)))
        if len(waiters) == 1:
            return
        since = None if all_due or self._newest is None else self._newest - _OVERLAP
        views, newest = await hook.aview_tasks(client, self.key.job_id, since)
        if newest is not None:
            self._newest = newest
        if since is None:
            self._listed = now
        for waiter in waiters:
            view = (views or {}).get(waiter.batch_task_id)
            if view is not None:
                waiter.update(view)
            elif since is None or views is None:
                waiter.update(TaskView("missing"))

    async def _look_for_trouble(self, hook: BatchWrapHook, client: BatchClient) -> None:
        """Look at what keeps tasks waiting, where some have waited for a while."""
        now = time.monotonic()
        waiting = [
            waiter
            for waiter in self._waiters
            if waiter.view is not None
            and waiter.view.state != "running"
            and not waiter.view.over
            and now - waiter.since >= GRACE
        ]
        if not waiting or now - self._asked < STUCK_INTERVAL:
            return
        self._asked = now
        stuck = judge_wait(await hook.aview_wait(client, self.key.job_id, self.key.pool_id))
        for waiter in waiting if stuck is not None else ():
            waiter.updates.put_nowait(Update(stuck=stuck))

    async def _read_output(self, hook: BatchWrapHook, client: BatchClient) -> None:
        """Read what some of the running tasks have printed, each in its turn."""
        running = [
            waiter
            for waiter in self._waiters
            if waiter.tail is not None
            and waiter.tail.due
            and waiter.view is not None
            and waiter.view.state == "running"
        ]
        self._turn = self._turn % len(running) if running else 0
        chosen = (running[self._turn :] + running[: self._turn])[:_READERS]
        self._turn += len(chosen)
        await asyncio.gather(*(self._read(hook, client, waiter) for waiter in chosen))

    async def _read(self, hook: BatchWrapHook, client: BatchClient, waiter: Waiter) -> None:
        tail, view = waiter.tail, waiter.view
        if tail is None or view is None:
            return
        key = BatchTaskKey(self.key.job_id, waiter.batch_task_id)
        if tail.begin(view.reruns, view.started):
            waiter.updates.put_nowait(Update(lines=["Batch reruns the task; its output begins anew."]))
        new = False
        for name in FILES:
            try:
                data = await hook.aread_task_file(client, key, name, tail.offsets.get(name, 0), READ_BYTES)
            except TryAgain:
                raise
            except BatchWrapError:  # a log that cannot be read ends nobody's wait
                data = b""
            if data and (lines := tail.take(name, data)):
                new = True
                waiter.updates.put_nowait(Update(lines=lines))
        tail.rest(new)
