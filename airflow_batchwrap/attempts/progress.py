"""Follow one Batch task from the worker: its states, what it prints, and its end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.exceptions import BatchWrapError, TryAgain
from airflow_batchwrap.hooks.output import FILES, READ_BYTES, OutputTail
from airflow_batchwrap.naming import BatchTaskKey
from airflow_batchwrap.triggers.events import StepEvent
from airflow_batchwrap.waiting import GRACE, STUCK_INTERVAL

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.hooks.views import TaskView

_AT_THE_END = 1024 * 1024  # bytes of each file that are logged once the task is over; the whole is in Blob


@dataclass
class Follower:
    """Write to the log of a worker what a Batch task does.

    :param tail: how far the task's output is in the log.
    :param last_state: the last state that is in the log.
    """

    hook: BatchWrapHook
    key: BatchTaskKey
    pool_id: str
    log: Any
    tail: OutputTail = field(default_factory=OutputTail)
    last_state: str = ""
    _asked: float = field(default_factory=lambda: time.monotonic() + GRACE - STUCK_INTERVAL)

    def look(self) -> StepEvent | None:
        """Look once; return the event that ends the wait, as a trigger would fire it, or None to go on.

        :raises TryAgain: the service does not answer.
        """
        from airflow_batchwrap.hooks.views import judge_wait, state_line

        view = self.hook.view_task(self.key)
        if view.over:
            return StepEvent(kind="over", view=view)
        if (line := state_line(view)) != self.last_state:
            self.last_state = line
            self.log.info("Batch task %s is %s", self.key.batch_task_id, line)
        if view.state == "running":
            self._read(view)
        elif time.monotonic() - self._asked >= STUCK_INTERVAL:
            self._asked = time.monotonic()
            stuck = judge_wait(self.hook.view_wait(self.key.job_id, self.pool_id))
            if stuck is not None:
                return StepEvent(kind="stuck", stuck=stuck)
        return None

    def _read(self, view: TaskView) -> None:
        """Log what the running task has printed since."""
        if self.tail.begin(view.reruns, view.started):
            self.log.info("Batch reruns the task; its output begins anew.")
        if not self.tail.due:
            return
        new = False
        for name in FILES:
            try:
                data = self.hook.read_task_file(self.key, name, self.tail.offsets.get(name, 0), READ_BYTES)
            except TryAgain:
                raise
            except BatchWrapError:  # a log that cannot be read ends no wait
                continue
            new = self._log(self.tail.take(name, data)) or new
        self.tail.rest(new)

    def finish(self, view: TaskView | None, container: str, prefix: str) -> None:
        """Log the rest of what a task printed that is over: from Blob, or from the node where it is not there.

        :param prefix: the folder of the attempt's results.
        """
        if view is not None and self.tail.begin(view.reruns, view.started):
            self.log.info("Batch has rerun the task; its output begins anew.")
        for name in FILES:
            offset = self.tail.offsets.get(name, 0)
            try:
                self._log(self._last_lines(name, offset, container, f"{prefix}/{name}"))
            except BatchWrapError as error:
                self.log.warning("The rest of %s cannot be read: %s", name, error)

    def _last_lines(self, name: str, offset: int, container: str, blob: str) -> list[str]:
        size = self.hook.blob_size(container, blob)
        if size is None:
            data = self.hook.read_task_file(self.key, name, offset, _AT_THE_END)
            return self.tail.take(name, data, last=True)
        left_out = max(0, size - offset - _AT_THE_END)
        if left_out:
            self.log.info(
                "%s bytes of %s are left out here: all of it is in blob %s/%s", left_out, name, container, blob
            )
        self.tail.offsets[name] = offset + left_out
        if size <= offset:
            return []
        return self.tail.take(name, self.hook.read_blob_from(container, blob, offset + left_out), last=True)

    def _log(self, lines: list[str]) -> bool:
        for line in lines:
            self.log.info("%s", line)
        return bool(lines)
