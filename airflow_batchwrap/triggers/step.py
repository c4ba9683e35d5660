"""Wait for a Batch task in the triggerer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.naming import BatchTaskKey
from airflow_batchwrap.triggers.base import WaitTrigger
from airflow_batchwrap.triggers.events import StepEvent

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.triggers.watch import Update


class BatchTaskTrigger(WaitTrigger):
    """Fire when a Batch task is over or can never start; log what it prints meanwhile.

    All of these that wait for one job's Batch tasks share its watcher, and with it the requests.

    :param pool_id: the pool it runs on.
    :param began: when the wait began, in seconds since 1970: the longer it has lasted, the longer the pauses.
    :param last_state: the last state that is in the log.
    :param output: how far its output is in the log; None to log nothing of it.
    """

    event = StepEvent
    arguments = (*WaitTrigger.arguments, "pool_id", "job_id", "batch_task_id", "began", "last_state", "output")

    def __init__(
        self,
        *,
        pool_id: str,
        job_id: str,
        batch_task_id: str,
        began: float = 0.0,
        last_state: str = "",
        output: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pool_id = pool_id
        self.job_id = job_id
        self.batch_task_id = batch_task_id
        self.began = began
        self.last_state = last_state
        self.output = output

    async def wait(self) -> StepEvent:
        """Wait in the job's watcher."""
        from airflow_batchwrap.hooks.output import OutputTail
        from airflow_batchwrap.triggers.watch import Waiter, Watcher, WatchKey

        key = WatchKey(self.azure_batch_conn_id, self.wasb_conn_id, self.pool_id, self.job_id)
        waited = max(0.0, time.time() - self.began) if self.began else 0.0
        tail = None if self.output is None else OutputTail.from_json(self.output)
        waiter = Waiter(self.batch_task_id, time.monotonic() - waited, self.poll_interval, tail)
        event: StepEvent | None = None
        async with Watcher.joined(key, waiter):
            while event is None:
                left = self.deadline - time.time()
                if left <= 0:
                    event = StepEvent.late()
                    break
                try:
                    async with asyncio.timeout(left):
                        event = self._read(await waiter.updates.get())
                except TimeoutError:
                    event = StepEvent.late()
        return replace(event, output=None if tail is None else tail.to_json())

    def _read(self, update: Update) -> StepEvent | None:
        """Log what an update says; return the event that ends the wait."""
        from airflow_batchwrap.hooks.views import state_line

        for line in update.lines:
            self.log.info("%s", line)
        if update.warning:
            self.log.warning("%s", update.warning)
        if update.error:
            return StepEvent.failed(update.error)
        if update.stuck is not None:
            return StepEvent(kind="stuck", stuck=update.stuck)
        view = update.view
        if view is None:
            return None
        if view.over:
            return StepEvent(kind="over", view=view)
        if (line := state_line(view)) != self.last_state:
            self.last_state = line
            self.log.info("Batch task %s is %s", self.batch_task_id, line)
        return None

    async def end(self, hook: BatchWrapHook) -> None:
        """Terminate this Batch task and no other."""
        await asyncio.to_thread(hook.terminate_task, BatchTaskKey(self.job_id, self.batch_task_id))
        self.log.info("Terminated Batch task %s, whose Airflow task was ended", self.batch_task_id)
