"""Submit one attempt at a step once, whatever became of earlier tries."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.attempts.submission import choose_attempt
from airflow_batchwrap.exceptions import BatchWrapError, TryAgain
from airflow_batchwrap.naming import Attempt, BatchTaskKey, step_family, step_id

if TYPE_CHECKING:
    from airflow_batchwrap.attempts.reported import ReportedAttempts
    from airflow_batchwrap.attempts.submission import Submission
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.hooks.views import TaskView


@dataclass(frozen=True)
class Submitted:
    """An attempt that is on the service.

    :param created: when it was submitted, in seconds since 1970.
    :param found: what the service said of it, where an earlier try had submitted it; None for a new one.
    """

    key: BatchTaskKey
    attempt: Attempt
    created: float
    found: TaskView | None = None


@dataclass(frozen=True)
class Attempts:
    """All attempts at one step, or at one command, in one job.

    :param epoch: of the Airflow task.
    :param reported: which of them were reported as failures.
    """

    hook: BatchWrapHook
    job_id: str
    pool_id: str
    task_id: str
    map_index: int
    epoch: int
    reported: ReportedAttempts
    log: Any

    def submit(
        self, submission_of: Callable[[Attempt], Submission], begin: Callable[[BatchTaskKey, Attempt], None]
    ) -> Submitted:
        """Submit the attempt that is due, or adopt it where an earlier try has submitted it.

        :param submission_of: makes what an attempt submits.
        :param begin: called with the attempt just before it is submitted or adopted; may raise to prevent that.
        """
        there = self._there()
        self._end_older_epochs(there)
        while True:
            attempt, found = choose_attempt(there, self.epoch, self.reported.numbers(self.epoch))
            key, submission = self.key(attempt), submission_of(attempt)
            begin(key, attempt)
            if found is None and self.hook.create_task(self.job_id, submission.build(self.hook, key.batch_task_id)):
                self.log.info("Submitted Batch task %s to pool %s", key, self.pool_id)
                return Submitted(key, attempt, time.time())
            created = self._created_for(key, submission)
            if created is not None:
                self.log.info("Found Batch task %s, which an earlier try submitted", key)
                return Submitted(key, attempt, created, found)
            self.log.warning(
                "Batch task %s of an earlier try has another archive, arguments, inputs or parameters than this try. "
                "It is ended, and the next attempt takes its place.",
                key,
            )
            # Noted first: what we end must never be adopted.
            self.reported.add(attempt)
            end_task(self.hook, key, self.log)

    def key(self, attempt: Attempt) -> BatchTaskKey:
        """Return where an attempt is, or would be."""
        return BatchTaskKey(self.job_id, step_id(self.task_id, self.map_index, attempt))

    def _there(self) -> dict[Attempt, TaskView]:
        family = step_family(self.task_id, self.map_index)
        views = self.hook.view_tasks(self.job_id, family)
        found = {Attempt.parse(task_id[len(family) :]): view for task_id, view in views.items()}
        return {attempt: view for attempt, view in found.items() if attempt is not None}

    def _end_older_epochs(self, there: dict[Attempt, TaskView]) -> None:
        for attempt, view in there.items():
            if attempt.epoch < self.epoch and not view.over:
                self.log.info("Ending Batch task %s, which ran on after the task was cleared", self.key(attempt))
                end_task(self.hook, self.key(attempt), self.log)

    def _created_for(self, key: BatchTaskKey, submission: Submission) -> float | None:
        """Return when a Batch task was submitted; None where it runs something else than this submission."""
        from airflow_batchwrap.hooks import models

        task = self.hook.find_task(key)
        if task is None:
            raise TryAgain(f"Batch task {key} was there and is gone: its job is being deleted. Try again.")
        prints = [item.value for item in task.environment_settings or () if item.name == models.FINGERPRINT_ENV]
        if prints != [submission.fingerprint()]:
            return None
        return task.creation_time.timestamp() if task.creation_time else time.time()


def end_task(hook: BatchWrapHook, key: BatchTaskKey, log: Any) -> None:
    """End a Batch task; where that fails it ends later, and what the caller has to say goes first."""
    try:
        hook.terminate_task(key)
    except BatchWrapError as error:
        log.warning("%s It ends with its job, or by its wall clock.", error)
