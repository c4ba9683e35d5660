"""Wait for a pool's nodes, or for its resize, in the triggerer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.triggers.base import WaitTrigger
from airflow_batchwrap.triggers.events import PoolEvent, ResizeEvent, RoomEvent

if TYPE_CHECKING:
    from azure.batch.aio import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.hooks.poolwatch import PoolWatch


class PoolTrigger(WaitTrigger):
    """Fire when a pool is ready or cannot become ready.

    :param min_nodes: how many usable nodes are enough; None for all that the pool asks for.
    :param job_id: the run's job, which goes with its set-up.
    :param owns_pool: whether the pool goes as well, and may be asked for nodes again.
    :param max_start_task_failures: on how many nodes the start task may fail; None for as many as leave enough others.
    """

    event = PoolEvent
    arguments = (*WaitTrigger.arguments, "pool_id", "min_nodes", "job_id", "owns_pool", "max_start_task_failures")

    def __init__(
        self,
        *,
        pool_id: str,
        min_nodes: int | None,
        job_id: str = "",
        owns_pool: bool = False,
        max_start_task_failures: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pool_id = pool_id
        self.min_nodes = min_nodes
        self.job_id = job_id
        self.owns_pool = owns_pool
        self.max_start_task_failures = max_start_task_failures
        self._watch: PoolWatch | None = None

    async def look(self, hook: BatchWrapHook, client: BatchClient) -> PoolEvent | None:
        """Look at the pool and its nodes; ask again for nodes where there was no room for them."""
        from airflow_batchwrap.hooks.poolwatch import PoolWatch

        self._watch = watch = self._watch or PoolWatch(
            self.min_nodes, self.log, self.max_start_task_failures, first_pause=self.poll_interval
        )
        view = await hook.aview_pool(client, self.pool_id)
        verdict = watch.judge(view)
        if verdict.answer in ("ready", "failed"):
            return PoolEvent(kind="judged", verdict=verdict)
        if self.owns_pool and watch.is_to_ask(verdict):
            await asyncio.to_thread(hook.ask_again, view, timedelta(seconds=self.deadline - time.time()))
        return None

    def ends_in(self, state: str) -> bool:
        """Return whether no other try follows: one that does takes the pool and the job again."""
        from airflow_batchwrap.triggers.cancel import was_ended_for_good

        return was_ended_for_good(state)

    async def end(self, hook: BatchWrapHook) -> None:
        """Remove what the set-up made: after a set-up that did not succeed, Airflow runs no teardown."""
        from airflow_batchwrap.exceptions import BatchWrapError

        ends: list[tuple[str, str, Callable[[str], bool]]] = []
        ends += [("job", self.job_id, hook.delete_job)] if self.job_id else []
        ends += [("pool", self.pool_id, hook.delete_pool)] if self.owns_pool and self.pool_id else []
        for noun, entity_id, delete in ends:
            try:
                if await asyncio.to_thread(delete, entity_id):
                    self.log.info("Removed %s %s, whose set-up was ended", noun, entity_id)
            except BatchWrapError as error:  # one's failure does not keep the other
                self.log.warning("Left behind %s %s, for the sweep: %s", noun, entity_id, error)


class RoomTrigger(PoolTrigger):
    """Fire when it is time to ask again for what there was no room for: a pool, or a job.

    Whether there is room only the request itself shows, and the operator sends it. Meanwhile no worker is held.

    :param again_at: when, in seconds since 1970.
    """

    event = RoomEvent  # type: ignore[assignment]
    arguments = (*PoolTrigger.arguments, "again_at")

    def __init__(self, *, again_at: float, pool_id: str = "", min_nodes: int | None = None, **kwargs: Any) -> None:
        super().__init__(pool_id=pool_id, min_nodes=min_nodes, **kwargs)
        self.again_at = again_at

    async def wait(self) -> RoomEvent:
        """Wait until then, or until the deadline."""
        await asyncio.sleep(max(0.0, min(self.again_at, self.deadline) - time.time()))
        return RoomEvent(kind="again")


class ResizeTrigger(WaitTrigger):
    """Fire when a resize is done, cannot be done, or can be asked for again; the operator looks which.

    :param wanted: the fields of a :class:`~airflow_batchwrap.hooks.resizing.Resize`.
    :param again_at: when to ask again for nodes that there was no room for, in seconds since 1970; 0 for at once.
    """

    event = ResizeEvent
    arguments = (*WaitTrigger.arguments, "wanted", "again_at")

    def __init__(self, *, wanted: dict[str, Any], again_at: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.wanted = wanted
        self.again_at = again_at
        self._line = ""

    async def look(self, hook: BatchWrapHook, client: BatchClient) -> ResizeEvent | None:
        """Look at the pool and its nodes."""
        from airflow_batchwrap.hooks.resizing import Resize, judge_resize

        resize = Resize(**self.wanted)
        view = await hook.aview_pool(client, resize.pool_id)
        if (line := view.progress()) != self._line:
            self._line = line
            self.log.info("%s", line)
        verdict = judge_resize(view, resize)
        goes_on = verdict.answer == "wait" or (verdict.kind == "no_capacity" and time.time() < self.again_at)
        return None if goes_on else ResizeEvent(kind="changed")
