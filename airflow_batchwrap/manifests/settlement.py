"""What became of a manifest: its table, and the error to raise where too much of it failed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.attempts.record import read_record
from airflow_batchwrap.engine import protocol
from airflow_batchwrap.exceptions import BatchWrapError, NodeLost, StepFailed, StepTimeout, TryAgain
from airflow_batchwrap.manifests.rows import CANCELLED, FAILED, MISSING, NOT_SUBMITTED, SUCCEEDED, Row, count, to_file
from airflow_batchwrap.naming import BatchTaskKey
from airflow_batchwrap.workspace import BlobRef, ValueReference

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.hooks.views import Stuck, TaskView
    from airflow_batchwrap.triggers.events import ManifestEvent

_FIRST_FAILURES = 5  # of so many an error shows the end of stderr
_STDERR_LINES = 20
_STDERR_BYTES = 4096
_TOGETHER = 1000  # entries whose values are read before the next are: so much is held in memory
_CUTS = ("late", "beyond", "stuck", "ended")  # kinds of event that end a manifest before its entries have
_TIME_TO_END = 30.0  # seconds that running Batch tasks are given to end once their job was terminated


@dataclass
class Settlement:
    """End a round of a manifest.

    :param table: the blob that the table becomes.
    :param rows: the entries as they were submitted.
    :param allowed: how many of them may fail.
    :param max_failures: the same as the DAG's author gave it.
    :param values: whether to read what the steps returned.
    :param limit: the deadline's name and length, as messages call it.
    """

    hook: BatchWrapHook
    log: Any
    pool_id: str
    job_id: str
    container: str
    table: str
    rows: Sequence[Row]
    allowed: int
    max_failures: str
    values: bool
    limit: str

    def settle(self, event: ManifestEvent) -> tuple[dict[str, Any], BatchWrapError | None]:
        """Write the table.

        :param event: why the wait ended.
        :return: the table's reference with the counts, and what is to be raised.
        :raises TryAgain: the job is gone, or the service does not answer: another try goes on.
        """
        if event.kind == "gone":
            raise self._gone()
        why = self._why_stuck(event.stuck) if event.stuck is not None else ""
        rows, views = self._ended_rows(event)
        written, ref = self._write(rows)
        counts = count(written)
        result = {"container": ref.container, "blob": ref.blob, "size": ref.size, "sha256": ref.sha256, **counts}
        self.log.info("The table of %s is blob %s of container %s", counts, ref.blob, ref.container)
        return result, self._failure(event, why, written, counts, views, ref)

    def _ended_rows(self, event: ManifestEvent) -> tuple[list[Row], dict[str, TaskView]]:
        """End what still runs, where the event says so; return what became of each entry, and what the service says."""
        cut = event.kind in _CUTS
        # What was over before we ended the rest had an end of its own, be it that a person ended it.
        before = self.hook.view_job(self.job_id) if event.kind == "beyond" else {}
        over = {task_id: view for task_id, view in before.items() if view.over}
        if cut:
            self._end(event.kind)
        views = {**self.hook.view_job(self.job_id), **over}
        if not views and not cut:
            raise self._gone()
        rows = [
            row if row.is_over else row.seen(views.get(row.batch_task_id), cut=cut and row.batch_task_id not in over)
            for row in self.rows
        ]
        return rows, views

    def _write(self, rows: Sequence[Row]) -> tuple[list[Row], BlobRef]:
        """Write the table; return its rows without their values, and where it is."""
        written: list[Row] = []
        with to_file(self._valued(rows, written)) as table:
            return written, self.hook.upload_stream(self.container, self.table, table)

    # --- what is read

    def _valued(self, rows: Sequence[Row], written: list[Row]) -> Iterator[Row]:
        """Yield the rows with their values, and keep them without."""
        from airflow_batchwrap.hooks.blobs import side_by_side

        for first in range(0, len(rows), _TOGETHER):
            some = list(rows[first : first + _TOGETHER])
            if self.values:
                read = [row for row in some if row.state == SUCCEEDED and row.job_id == self.job_id]
                found = dict(
                    zip(
                        (row.entry for row in read),
                        side_by_side(partial(self._with_value, row) for row in read),
                        strict=True,
                    )
                )
                some = [found.get(row.entry, row) for row in some]
                if len(rows) > _TOGETHER:
                    self.log.info("Read the values of %s of %s entries", first + len(some), len(rows))
            written += [replace(row, value=None) for row in some]
            yield from some

    def _with_value(self, row: Row) -> Row:
        if row.command:
            lines = (self.hook.tail_blob(self.container, f"{row.output_prefix}/stdout.txt") or "").splitlines()
            return replace(row, value=lines[-1] if lines else None)
        try:
            record = read_record(self.hook, self.container, row.output_prefix)
        except protocol.ProtocolError as error:
            return replace(row, state=FAILED, failure=f"its result record cannot be read: {error}")
        if record is None:
            return replace(row, state=FAILED, failure="it left no result record: something ended it early")
        if record.value_file is None:
            return replace(row, value=record.value)
        file = record.value_file
        ref = BlobRef(self.container, f"{row.output_prefix}/{file.path}", file.size, file.sha256)
        return replace(row, value=ValueReference(ref).to_xcom())

    # --- what is ended

    def _end(self, reason: str) -> None:
        """End the job, and give what runs in it the time to end."""
        self.hook.terminate_job(self.job_id, f"manifest: {reason}")
        until = time.monotonic() + _TIME_TO_END
        while time.monotonic() < until:
            counts = self.hook.count_tasks(self.job_id)
            if counts is None or not counts.running:
                return
            time.sleep(0.5)

    # --- what is said

    def _failure(
        self,
        event: ManifestEvent,
        why: str,
        rows: Sequence[Row],
        counts: dict[str, int],
        views: dict[str, TaskView],
        ref: BlobRef,
    ) -> BatchWrapError | None:
        from airflow_batchwrap.hooks.views import ERRORS

        failed = [row for row in rows if row.state in (FAILED, MISSING)]
        table = f"The table of all entries is blob {ref.blob!r} of container {ref.container!r}."
        summary = f"{counts[FAILED]} of {counts['entries']} entries failed"
        if left := counts[CANCELLED] + counts[NOT_SUBMITTED]:
            summary += f", {left} did not come to their end"
        if event.stuck is not None:
            return ERRORS[event.stuck.kind](f"The manifest cannot go on: {why} {summary}. {table}")
        if event.kind == "late":
            head = f"The manifest did not end within {self.limit} and was terminated: {summary}."
            return StepTimeout(f"{head} {table}{self._first(failed)}")
        if event.kind == "ended":
            head = f"Job {self.job_id!r} of the manifest was ended ({event.reason}) before its entries were: {summary}."
            return StepFailed(f"{head} {table}{self._first(failed)}")
        if len(failed) <= self.allowed and not left:
            if failed:
                self.log.warning(
                    "%s, and max_failures (%s) allows %s.%s",
                    summary,
                    self.max_failures,
                    self.allowed,
                    self._first(failed),
                )
            return None
        text = f"{summary}, and max_failures ({self.max_failures}) allows {self.allowed}. {table}{self._first(failed)}"
        lost = [row for row in failed if row.state == MISSING or views[row.batch_task_id].worth_retrying]
        return NodeLost(text) if failed and len(lost) == len(failed) else StepFailed(text)

    def _first(self, failed: Sequence[Row]) -> str:
        """Return the first failures, each with the end of its stderr."""
        parts = [f"\nThe first {_FIRST_FAILURES} failures:"] if len(failed) > _FIRST_FAILURES else []
        for row in failed[:_FIRST_FAILURES]:
            part = f"\n{row.describe()}: {row.failure}"
            try:
                stderr = self.hook.tail_blob(self.container, f"{row.output_prefix}/stderr.txt", _STDERR_BYTES)
                if stderr is None:
                    key = BatchTaskKey(row.job_id, row.batch_task_id)
                    stderr = self.hook.tail_task_file(key, "stderr.txt", _STDERR_BYTES)
            except TryAgain:  # a tail decorates an error that is on its way
                stderr = ""
            lines = stderr.strip().splitlines()[-_STDERR_LINES:]
            parts.append(part + "".join(f"\n    {line}" for line in lines))
        return "".join(parts)

    def _why_stuck(self, stuck: Stuck) -> str:
        """Return why the Batch tasks can never start, with what the preparation has printed."""
        preparation = stuck.preparation
        if preparation is None:
            return stuck.why
        why = f"{stuck.why}: {preparation.describe()}."
        if preparation.root:
            path = f"{preparation.root}/stderr.txt"
            if tail := self.hook.tail_node_file(self.pool_id, preparation.node_id, path).strip():
                why += f"\nThe end of its stderr:\n{tail}\n"
        return why

    def _gone(self) -> NodeLost:
        return NodeLost(
            f"Job {self.job_id!r} of the manifest was deleted while it was waited for. A new try submits its entries "
            "again."
        )
