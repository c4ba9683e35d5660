"""Wait for a manifest's Batch job in the triggerer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.triggers.base import WaitTrigger
from airflow_batchwrap.triggers.events import ManifestEvent

if TYPE_CHECKING:
    from azure.batch.aio import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.hooks.manifest import JobWatch

#: Why a manifest's job was ended, for who looks at it: it stays until the next try has read what has succeeded in it.
CLEARED = "its Airflow task was cleared"


class ManifestTrigger(WaitTrigger):
    """Fire when all Batch tasks of a job are over, when too many have failed, or when none can ever start.

    A look is one request, however many Batch tasks there are: the job is the manifest's own, so its counts are.

    :param pool_id: the pool it runs on.
    :param expected: how many Batch tasks it has.
    :param allowed: how many of them may fail.
    """

    event = ManifestEvent
    arguments = (*WaitTrigger.arguments, "pool_id", "job_id", "expected", "allowed")

    def __init__(self, *, pool_id: str, job_id: str, expected: int, allowed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pool_id = pool_id
        self.job_id = job_id
        self.expected = expected
        self.allowed = allowed
        self._watch: JobWatch | None = None

    async def look(self, hook: BatchWrapHook, client: BatchClient) -> ManifestEvent | None:
        """Count the Batch tasks, and look closer where the counts ask for it."""
        from airflow_batchwrap.hooks.manifest import JobWatch, judge_stall

        if self._watch is None:
            self._watch = JobWatch(self.expected, self.allowed, self.log)
        answer = self._watch.judge(await hook.acount_tasks(client, self.job_id))
        if answer in ("beyond", "gone"):
            return ManifestEvent(kind=answer)
        if answer == "prove" and not await hook.ahas_work(client, self.job_id):
            return ManifestEvent(kind="over")
        if answer == "ask":
            return ManifestEvent.of_stall(judge_stall(await hook.aview_wait(client, self.job_id, self.pool_id)))
        return None

    async def end(self, hook: BatchWrapHook) -> None:
        """End the job, which is the manifest's alone, with all that runs in it.

        One whose task was cleared stays as it ended: the next try reads in it what has succeeded, and removes it.
        """
        from airflow_batchwrap.triggers.cancel import was_ended_for_good

        if not was_ended_for_good(self.ended_as):
            if await asyncio.to_thread(hook.terminate_job, self.job_id, CLEARED):
                self.log.info("Ended job %s and all that ran in it: a person has cleared the task", self.job_id)
        elif await asyncio.to_thread(hook.delete_job, self.job_id):
            self.log.info("Removed job %s with all that ran in it: a person has ended the task", self.job_id)
