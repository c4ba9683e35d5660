"""What became of a Batch task: the value to return, or the error to raise, with what a person needs to see."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.attempts.record import read_record
from airflow_batchwrap.engine import protocol
from airflow_batchwrap.exceptions import BatchWrapError, ConfigError, NodeLost, StepFailed, StepTimeout
from airflow_batchwrap.naming import BatchTaskKey
from airflow_batchwrap.workspace import BlobRef, ValueReference

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.hooks.views import Stuck, TaskView

_STDERR_LINES = 50
_OUTPUT_BYTES = 64 * 1024
_NOT_FOUND = 127  # what a shell exits with where the program is missing


@dataclass(frozen=True)
class Outcome:
    """Where to look for what one attempt left.

    :param name: the step or command, as messages call it.
    :param is_step: whether the engine ran it, and so a result record is due.
    :param own_job: whether the task's next try opens a new job.
    :param limit: the deadline's name and length, as messages call it.
    :param step_limit: likewise, how long it may run.
    """

    hook: BatchWrapHook
    key: BatchTaskKey
    pool_id: str
    name: str
    is_step: bool
    own_job: bool
    container: str
    prefix: str
    limit: str
    step_limit: str

    @cached_property
    def stdout(self) -> str:
        """The end of stdout, from Blob or, where nothing got there, from the node."""
        return self._output("stdout.txt")

    def value(self) -> Any:
        """Return what the step returned, or a command's last line of stdout.

        :raises StepFailed: it left no result record.
        """
        if not self.is_step:
            lines = self.stdout.splitlines()
            return lines[-1] if lines else None
        record = self._record()
        if record is None:
            raise StepFailed(
                f"Step {self.name!r} ended with exit code 0 but left no result record: something ended the process "
                "from within, such as os._exit. Return from do_action instead.",
                exit_code=0,
            )
        if record.value_file is not None:
            file = record.value_file
            return ValueReference(
                BlobRef(self.container, f"{self.prefix}/{protocol.VALUE_FILE}", file.size, file.sha256)
            ).to_xcom()
        return record.value

    def error(self, view: TaskView) -> BatchWrapError:
        """Return the error for a Batch task that is over and did not succeed."""
        where = f" on node {view.node_id}" if view.node_id else ""
        head = f"{self._what} failed{where}: {view.describe()}."
        if view.state == "missing" and not self.own_job:
            job = self.hook.find_job(self.key.job_id)
            if job is None or job.state != "active":
                return ConfigError(f"{head} Clear the set-up task, which opens a new job.")
        if view.worth_retrying:
            return NodeLost(f"{head} The step's code is not to blame: try again.")
        if view.exit_code is None or view.exit_code == 0:
            if view.failure_code == "TaskEnded":
                return self._ended(head)
            return ConfigError(head + self._tail())
        if view.failure_code == "TaskEnded":
            return self._ended(head)
        return StepFailed(head + self._story(view.exit_code), view.exit_code)

    def late(self) -> BatchWrapError:
        """Return the error for a Batch task that did not end before its deadline."""
        return StepTimeout(f"{self._what} did not end within {self.limit} and was terminated.{self._tail()}")

    def stuck(self, stuck: Stuck) -> BatchWrapError:
        """Return the error for a Batch task that will never start."""
        from airflow_batchwrap.hooks.views import ERRORS

        text = f"{self._what} cannot start: {stuck.why}"
        preparation = stuck.preparation
        if preparation is None:
            return ERRORS[stuck.kind](text)
        text += f": {preparation.describe()}."
        for name in ("stderr", "stdout"):
            path = f"{preparation.root}/{name}.txt"
            tail = self.hook.tail_node_file(self.pool_id, preparation.node_id, path).strip() if preparation.root else ""
            if tail:
                text += f"\nThe end of its {name}:\n{tail}"
                break
        return ConfigError(text)

    # --- the parts

    @property
    def _what(self) -> str:
        return f"{'Step' if self.is_step else 'Command'} {self.name!r}"

    def _ended(self, head: str) -> BatchWrapError:
        text = (
            f"{head} It was terminated: by its wall clock, {self.step_limit}, by the end of its job, "
            f"or by a person.{self._tail()}"
        )
        return StepTimeout(text)

    def _story(self, exit_code: int) -> str:
        """Return what the step left for the message: its error and traceback, then the rest of stderr."""
        record, hint = None, ""
        try:
            record = self._record() if self.is_step else None
        except StepFailed as unreadable:
            hint = f" {unreadable}"
        if record is None or record.error is None:
            if exit_code == _NOT_FOUND and self.is_step:
                hint += " Is there a python3 on the node's PATH? If not, install one in the pool's start task."
            return hint + self._tail()
        error = record.error
        story = f" {error.type}: {error.message}" if error.message else f" {error.type}"
        trace = error.traceback.strip()
        stderr = self._output("stderr.txt")
        if trace:
            story += f"\n{trace}"
            stderr = stderr.replace(trace, "")
        # What the engine itself printed is what the record says.
        own = [line for line in stderr.splitlines() if not line.startswith("batchwrap: ")]
        return story + _quoted("stderr", "\n".join(own))

    def _tail(self) -> str:
        return _quoted("stderr", self._output("stderr.txt"))

    def _record(self) -> protocol.Result | None:
        try:
            return read_record(self.hook, self.container, self.prefix)
        except protocol.ProtocolError as error:
            raise StepFailed(f"{self._what} left a result record that cannot be read: {error}") from None

    def _output(self, name: str) -> str:
        text = self.hook.tail_blob(self.container, f"{self.prefix}/{name}", _OUTPUT_BYTES)
        return self.hook.tail_task_file(self.key, name, _OUTPUT_BYTES) if text is None else text


def _quoted(name: str, text: str) -> str:
    lines = text.strip().splitlines()[-_STDERR_LINES:]
    return f"\nThe end of {name}:\n" + "\n".join(lines) if lines else ""
