"""What becomes of a task whose run is over."""

from __future__ import annotations

import json
from enum import Enum, auto

from airflow_batchwrap.local.model.entities import Task
from airflow_batchwrap.local.model.states import Ending, JobState
from airflow_batchwrap.local.node.run import Outcome


class Verdict(Enum):
    """What becomes of it."""

    #: Nobody asks: it is being deleted.
    FORGOTTEN = auto()
    #: It goes back into the queue, as if it had never been placed.
    WAITS = auto()
    #: It goes back into the queue, and that is counted as a requeue.
    REQUEUED = auto()
    #: It goes back into the queue, and that is counted as a retry.
    RETRIED = auto()
    #: It has completed without its command.
    NEVER_RAN = auto()
    #: It has completed.
    COMPLETED = auto()


def of_run(task: Task, ending: Ending | None, outcome: Outcome | None) -> Verdict:
    """Judge a run.

    :param task: the task, preparing or running.
    :param ending: why the run was ended from outside; None where it was not.
    :param outcome: how it ended; None where the task never came beyond the job's preparation.
    :return: what becomes of the task.
    """
    if ending == Ending.DISCARD:
        return Verdict.FORGOTTEN
    if ending == Ending.REQUEUE:
        return Verdict.REQUEUED
    if ending == Ending.LOST:
        # Learn: BatchTaskExecutionInfo.requeueCount is of what a user's request leads to.
        return Verdict.WAITS
    if outcome is None:
        # Not ended from outside: the preparation failed, or never ended, and the task waits for another node
        # (azure-notes.md, trap 1).
        return Verdict.WAITS if ending is None else Verdict.NEVER_RAN
    if outcome.retriable and ending is None and task.job.state == JobState.ACTIVE and _may_retry(task):
        return Verdict.RETRIED
    return Verdict.COMPLETED


def _may_retry(task: Task) -> bool:
    limit = int(json.loads(task.body)["constraints"]["maxTaskRetryCount"])
    return limit < 0 or task.retries < limit
