"""What the lifecycles tell each other: calls go down (schedules, jobs, pools, nodes, tasks), events go up.

events.on(TaskEnded, self._task_ended)    # of those who want to know, in the order in which they said so
events.tell(TaskEnded(task, ran=True))    # of the one lifecycle that makes it happen
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from airflow_batchwrap.local.model.entities import Job, Node, Pool, Task


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """A task runs no longer, or has completed without a run.

    :param task: the task, in the state that follows.
    :param ran: whether its command, or what comes before it, was tried.
    """

    task: Task
    ran: bool


@dataclass(frozen=True, slots=True)
class CommandStarted:
    """A task's command has begun.

    :param node: where.
    """

    node: Node


@dataclass(frozen=True, slots=True)
class NodeGone:
    """A node is in its pool no more.

    :param node: the node.
    :param replaced: whether another one is to come for it: it was preempted.
    """

    node: Node
    replaced: bool


@dataclass(frozen=True, slots=True)
class PoolOpened:
    """A pool was created.

    :param pool: the pool.
    """

    pool: Pool


@dataclass(frozen=True, slots=True)
class PoolSteady:
    """A resize is over.

    :param pool: the pool.
    """

    pool: Pool


@dataclass(frozen=True, slots=True)
class PoolClosing:
    """A pool is being deleted.

    :param pool: the pool.
    """

    pool: Pool


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A job has completed, or is gone.

    :param job: the job.
    """

    job: Job


E = TypeVar("E")


class Events:
    """Brings events to those who want to know, at once and in order."""

    def __init__(self) -> None:
        self._wanted: dict[type[Any], list[Callable[[Any], None]]] = {}

    def on(self, kind: type[E], follow: Callable[[E], None]) -> None:
        """Want to know of a kind of event.

        :param kind: the class of the event.
        :param follow: called with each.
        """
        self._wanted.setdefault(kind, []).append(follow)

    def tell(self, event: object) -> None:
        """Say that something has happened.

        :param event: what.
        """
        for follow in self._wanted.get(type(event), ()):
            follow(event)
