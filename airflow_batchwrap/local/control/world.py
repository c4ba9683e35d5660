"""All that the service holds and knows, passed to every part."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.local.control.pace import INSTANT, Pace
from airflow_batchwrap.local.faults import Faults
from airflow_batchwrap.local.identity import Identity
from airflow_batchwrap.local.model.entities import Job, JobSchedule, Node, Pool, Task
from airflow_batchwrap.local.model.registry import Registry
from airflow_batchwrap.local.node import removal, threads
from airflow_batchwrap.local.node.blob import BlobClient
from airflow_batchwrap.local.quotas import Quotas
from airflow_batchwrap.local.store import Store

if TYPE_CHECKING:
    from airflow_batchwrap.local.control.autoscaler import Autoscaler
    from airflow_batchwrap.local.control.boots import Boots
    from airflow_batchwrap.local.control.jobs import Jobs
    from airflow_batchwrap.local.control.nodes import Nodes
    from airflow_batchwrap.local.control.retention import Retention
    from airflow_batchwrap.local.control.scheduler import Scheduler
    from airflow_batchwrap.local.control.schedules import Schedules
    from airflow_batchwrap.local.control.upkeep import Upkeep

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """How the service was started.

    :param data: the data directory, with no symbolic link in its path.
    :param account: the account's name.
    :param key: the account's key, decoded.
    :param url: the service's address, such as ``http://127.0.0.1:1234``.
    :param hosts: the values of the Host header that name this service, in lower case.
    :param pace: how long things take.
    :param capacity: how many nodes there are to be had, over all pools; None for as many as are wanted. More wait for
        others to go, until their pool's resize timeout.
    :param quotas: how many jobs, pools and cores the account may have.
    :param faults: what goes wrong on purpose.
    :param identity: whose tokens are taken; None for nobody's.
    :param trusted: certificates of authorities that nodes trust, beside the well-known ones, when they transfer files.
    """

    data: Path
    account: str
    key: bytes = field(repr=False)
    url: str = ""
    hosts: frozenset[str] = frozenset()
    pace: Pace = INSTANT
    capacity: int | None = None
    quotas: Quotas = field(default_factory=Quotas)
    faults: Faults = field(default_factory=Faults)
    identity: Identity | None = None
    trusted: tuple[Path, ...] = ()

    @property
    def nodes(self) -> Path:
        """The directory of all nodes."""
        return self.data / "nodes"

    @property
    def aside(self) -> Path:
        """The directory of what could not be removed yet."""
        return self.data / "removed"


class World:
    """The state, and the parts that change it.

    :param config: how the service was started.
    :param store: where the state is kept.
    """

    scheduler: Scheduler
    node_control: Nodes
    boots: Boots
    autoscaler: Autoscaler
    upkeep: Upkeep
    job_control: Jobs
    schedule_control: Schedules
    retention: Retention

    def __init__(self, config: Config, store: Store) -> None:
        self.config = config
        self.store = store
        self.pace = config.pace
        self.blobs = BlobClient(config.faults, config.trusted)
        self.pools: Registry[Pool] = Registry()
        self.jobs: Registry[Job] = Registry()
        self.schedules: Registry[JobSchedule] = Registry()
        #: Set when the service stops: from then on no ending changes any state, so that a restart finds it as it was.
        self.stopping = False
        self._background: set[asyncio.Task[None]] = set()

    def root(self, node: Node) -> Path:
        """A node's root directory.

        :param node: the node.
        :return: the path.
        """
        return self.config.nodes / node.directory

    def node(self, pool_id: str | None, node_id: str | None) -> Node | None:
        """Find a node.

        :param pool_id: its pool's id.
        :param node_id: its id.
        :return: the node, None where it is gone.
        """
        pool = self.pools.get(pool_id or "")
        return pool.nodes.get(node_id or "") if pool else None

    def shift(self, task: Task, state: str, result: str | None = None) -> None:
        """Pass a task into another state and keep the job's counts in step.

        :param task: the task.
        :param state: the state.
        :param result: the result, where the state is completed.
        """
        counts, slots = task.job.counts, task.job.slot_counts
        counts[task.standing] -= 1
        slots[task.standing] -= task.slots
        task.move(state)
        task.result = result
        counts[task.standing] += 1
        slots[task.standing] += task.slots
        self.store.touch(task)

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
        if not task.cancelled() and (error := task.exception()):
            log.error("A background task of the local Batch service failed.", exc_info=error)

    async def close(self) -> None:
        """End what goes on by itself, and close the transfers and the store."""
        background = list(self._background)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await self.blobs.close()
        await self.store.close()
