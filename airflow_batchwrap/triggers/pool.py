"""Wait for a pool's nodes in the triggerer."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.triggers.base import WaitTrigger

if TYPE_CHECKING:
    from azure.batch.aio import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook


class PoolTrigger(WaitTrigger):
    """Fire when a pool is ready or cannot become ready.

    :param pool_id: the pool.
    :param min_nodes: how many usable nodes are enough; None for all that the pool asks for.
    """

    arguments = (*WaitTrigger.arguments, "pool_id", "min_nodes")

    def __init__(self, *, pool_id: str, min_nodes: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pool_id = pool_id
        self.min_nodes = min_nodes
        self._told = ""

    async def look(self, hook: BatchWrapHook, client: BatchClient) -> dict[str, Any] | None:
        """Look at the pool and its nodes."""
        from airflow_batchwrap.hooks.views import judge_pool

        view = await hook.aview_pool(client, self.pool_id)
        if (line := view.progress()) != self._told:
            self._told = line
            self.log.info("%s", line)
        verdict = judge_pool(view, self.min_nodes)
        return None if verdict.answer == "wait" else {"verdict": asdict(verdict)}
