"""Wait for a Batch task in the triggerer."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.naming import BatchTaskKey
from airflow_batchwrap.triggers.base import WaitTrigger
from airflow_batchwrap.waiting import GRACE, STUCK_INTERVAL

if TYPE_CHECKING:
    from azure.batch.aio import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook


class BatchTaskTrigger(WaitTrigger):
    """Fire when a Batch task is over or can never start.

    :param pool_id: the pool it runs on.
    :param job_id: its Batch job.
    :param batch_task_id: its id.
    """

    arguments = (*WaitTrigger.arguments, "pool_id", "job_id", "batch_task_id")

    def __init__(self, *, pool_id: str, job_id: str, batch_task_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pool_id = pool_id
        self.job_id = job_id
        self.batch_task_id = batch_task_id
        self._told = ""
        self._asked = time.monotonic() + GRACE - STUCK_INTERVAL

    async def look(self, hook: BatchWrapHook, client: BatchClient) -> dict[str, Any] | None:
        """Look at the Batch task and, while it waits, at what may keep it."""
        from airflow_batchwrap.hooks.views import judge_wait

        view = await hook.aview_task(client, BatchTaskKey(self.job_id, self.batch_task_id))
        if view.over:
            return {"view": view.to_json()}
        if (line := f"{view.state} {view.node_id}".strip()) != self._told:
            self._told = line
            self.log.info("Batch task %s is %s", self.batch_task_id, line)
        if view.state != "running" and time.monotonic() - self._asked >= STUCK_INTERVAL:
            self._asked = time.monotonic()
            stuck = judge_wait(await hook.aview_wait(client, self.job_id, self.pool_id))
            if stuck is not None:
                return {"stuck": asdict(stuck)}
        return None
