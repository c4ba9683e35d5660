"""What all lifecycles stand on: the state and its keeping, events, and what goes on by itself."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from airflow_batchwrap.local.config import Config
from airflow_batchwrap.local.control.events import Events
from airflow_batchwrap.local.control.turnstile import Turnstile
from airflow_batchwrap.local.model.entities import Node
from airflow_batchwrap.local.model.state import State
from airflow_batchwrap.local.node import removal, threads
from airflow_batchwrap.local.node.blob import BlobClient
from airflow_batchwrap.local.node.endpoints import Doors
from airflow_batchwrap.local.store import Store, StoreError

log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=4096)
def _root(nodes: Path, directory: str) -> Path:
    # Made anew for each task, it would cost more than most of what else is done for one.
    return nodes / directory


class Base(State):
    """The state, and what is needed to change it.

    :param config: how the service was started.
    :param store: where the state is kept.
    """

    def __init__(self, config: Config, store: Store) -> None:
        super().__init__()
        self.config = config
        self.store = store
        self.pace = config.pace
        self.blobs = BlobClient(config.faults, config.trusted)
        self.doors = Doors()
        self.events = Events()
        self.turnstile = Turnstile()
        #: Set when the service stops: from then on no ending changes any state, so that a restart finds it as it was.
        self.stopping = False
        self._background: set[asyncio.Task[None]] = set()

    def root(self, node: Node) -> Path:
        """A node's root directory.

        :param node: the node.
        :return: the path.
        """
        return _root(self.config.nodes, node.directory)

    async def remove(self, directory: Path) -> None:
        """Remove a directory of a node. What cannot be removed now is moved aside, and tried again later.

        :param directory: the directory; one that is gone already is no error.
        """
        if not await removal.remove_in_turns(directory, self.config.nodes):
            moved = await threads.apart(removal.set_aside, directory, self.config.aside, self.config.nodes)
            log.warning(
                "%s cannot be removed: it holds files of another user, or a mount. It is tried again every hour, or "
                "remove it by hand.",
                moved or directory,
            )

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let something go on by itself; a fault in it is logged, not lost.

        :param work: what goes on.
        :return: its asyncio task.
        """
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, StoreError):
            # Said once, by the store.
            return
        log.error("A background task of the local Batch service failed.", exc_info=error)

    async def close(self) -> None:
        """End what goes on by itself, and close the transfers and the store."""
        self.doors.close_all()
        background = list(self._background)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await self.blobs.close()
        await self.store.close()
