"""What becomes of a task's directory when its retention time is over."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from airflow_batchwrap.local.control.base import Base
from airflow_batchwrap.local.control.events import TaskEnded
from airflow_batchwrap.local.control.turnstile import sliced
from airflow_batchwrap.local.model.entities import Task
from airflow_batchwrap.local.model.states import TaskState
from airflow_batchwrap.local.node import removal, threads
from airflow_batchwrap.local.node.layout import job_directory
from airflow_batchwrap.local.wire import times

#: How often all tasks are looked through, in seconds; a shorter retention time has a timer of its own.
SWEEP = 3600.0
#: The usual retention time, as it stands in a task's body.
_USUAL = b'"retentionTime":"P7D"'
_WEEK = 7 * 86_400.0


class Retention:
    """Removes the directories of tasks that ended long enough ago, and what could not be removed before.

    :param base: the state.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        base.events.on(TaskEnded, lambda event: self._ended(event.task))

    def begin(self) -> None:
        """Look through all tasks now, and again from time to time."""
        if not self._base.stopping:
            self._base.spawn(self._sweep())
            asyncio.get_running_loop().call_later(SWEEP, self.begin)

    def _ended(self, task: Task) -> None:
        """See to a task's directory, if it is soon to go."""
        if task.state == TaskState.COMPLETED and task.node_id is not None and _USUAL not in task.body:
            left = retention(task) - (times.now() - (task.ended or 0.0))
            if left < SWEEP:
                asyncio.get_running_loop().call_later(max(0.0, left), self._due, task, task.ended)

    def _due(self, task: Task, ended: float | None) -> None:
        # A task that was reactivated has a directory of its new run.
        if task.state == TaskState.COMPLETED and task.ended == ended and not self._base.stopping:
            self._base.spawn(self._remove(task))

    async def _remove(self, task: Task) -> None:
        node_ids = [task.node_id, *(subtask["nodeId"] for subtask in task.subtasks or ())]
        for node_id in node_ids:
            if (node := self._base.node(task.pool_id, node_id)) is not None:
                directory = job_directory(self._base.root(node), task.job.id) / task.id
                await self._base.remove(directory)

    async def _sweep(self) -> None:
        for left in await threads.apart(_set_aside, self._base.config.aside):
            await removal.remove_in_turns(left)
        for job in self._base.jobs:
            async for task in sliced(job.tasks):
                if task.state == TaskState.COMPLETED and task.node_id is not None and task.ended is not None:
                    if _USUAL not in task.body:
                        self._ended(task)
                    elif times.now() - task.ended > _WEEK:
                        await self._remove(task)


def _set_aside(aside: Path) -> list[Path]:
    return list(aside.iterdir()) if aside.is_dir() else []


def retention(task: Task) -> float:
    """How long a task's directory is kept after its end.

    :param task: the task.
    :return: seconds.
    """
    return times.parse_duration(json.loads(task.body)["constraints"]["retentionTime"])
