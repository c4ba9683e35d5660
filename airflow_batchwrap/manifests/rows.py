"""The rows of a manifest's table: one for each entry, from what is to run to what became of it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Any

from airflow_batchwrap.attempts.submission import plain_values
from airflow_batchwrap.config import Manifest
from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.naming import Attempt, step_id
from airflow_batchwrap.steps import driver_arguments

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.views import TaskView

SUCCEEDED = "succeeded"
FAILED = "failed"
CANCELLED = "cancelled"  # ended, or kept from starting, because the manifest ended first
NOT_SUBMITTED = "not_submitted"
MISSING = "missing"  # somebody deleted the Batch task
_IN_MEMORY = 8 * 1024 * 1024  # bytes of a table that are held in memory before it goes to a file


@dataclass(frozen=True)
class Row:
    """One entry of a manifest.

    :param entry: its place in the manifest, from 0.
    :param args: the arguments as the step gets them.
    :param attempt: which submission of the entry this is.
    :param failure: how it failed, in words.
    :param output_prefix: the folder of its results in the container.
    :param value: what it returned, where values were asked for.
    """

    entry: int
    step: str = ""
    command: str = ""
    args: list[Any] = field(default_factory=list)
    state: str = NOT_SUBMITTED
    attempt: int = 1
    job_id: str = ""
    batch_task_id: str = ""
    exit_code: int | None = None
    node_id: str = ""
    failure: str = ""
    started: str = ""
    ended: str = ""
    output_prefix: str = ""
    value: Any = None

    @property
    def is_over(self) -> bool:
        """Whether a new round leaves it as it is."""
        return self.state == SUCCEEDED

    def describe(self) -> str:
        """Return what it runs, for people."""
        what = self.command or " ".join([self.step, *map(str, self.args)])
        return f"Entry {self.entry} ({what if len(what) <= 100 else what[:99] + '…'})"

    def again(self) -> Row:
        """Return the row of its next submission; one that never was submitted has its attempt before it still."""
        attempt = self.attempt if self.state == NOT_SUBMITTED else self.attempt + 1
        return Row(self.entry, self.step, self.command, self.args, attempt=attempt)

    def placed(self, task_id: str, epoch: int, job_id: str, folder: str) -> Row:
        """Return the row with where it runs.

        :param task_id: of the Airflow task.
        :param folder: of the manifest's results.
        """
        attempt = Attempt(epoch, self.attempt)
        return replace(
            self,
            job_id=job_id,
            batch_task_id=step_id(task_id, self.entry, attempt),
            output_prefix=f"{folder}[{self.entry}]/{attempt}",
        )

    def seen(self, view: TaskView | None, *, cut: bool) -> Row:
        """Return the row with what became of its Batch task.

        :param view: None where the job has no such Batch task.
        :param cut: whether the manifest was ended before its Batch tasks were.
        """
        if view is None or view.state == "missing":
            if cut:
                return replace(self, state=NOT_SUBMITTED)
            return replace(self, state=MISSING, failure="its Batch task was deleted")
        if view.succeeded:
            state = SUCCEEDED
        elif view.state != "completed" or (cut and view.failure_code == "TaskEnded"):
            state = CANCELLED
        else:
            state = FAILED
        return replace(
            self,
            state=state,
            exit_code=view.exit_code,
            node_id=view.node_id,
            failure=view.describe() if state == FAILED else "",
            started=view.started,
            ended=view.ended,
        )


def entries_of(manifest: Manifest, steps: Sequence[str]) -> list[Row]:
    """Return a manifest's entries as rows.

    :param steps: the step files that were packed.
    :raises ConfigError: an entry's step is not among them, or its arguments cannot travel.
    """
    unknown = sorted({entry.step for entry in manifest.entries if entry.step and entry.step not in steps})
    if unknown:
        raise ConfigError(
            f"The manifest names steps that the set-up has not packed: {', '.join(unknown[:10])}. Packed are "
            f"{', '.join(steps) or 'none'}. Mend the manifest, or clear the set-up task, which packs the folder again."
        )
    return [
        Row(
            number,
            entry.step,
            entry.command,
            plain_values(driver_arguments(entry.args), f"the arguments of entry {number}") if entry.step else [],
        )
        for number, entry in enumerate(manifest.entries)
    ]


def count(rows: Iterable[Row]) -> dict[str, int]:
    """Return how many rows there are, and how many of them in each state; what is missing has failed."""
    counts = {"entries": 0, SUCCEEDED: 0, FAILED: 0, CANCELLED: 0, NOT_SUBMITTED: 0}
    for row in rows:
        counts["entries"] += 1
        counts[FAILED if row.state == MISSING else row.state] += 1
    return counts


def to_file(rows: Iterable[Row]) -> IO[bytes]:
    """Return a file of JSON lines; the caller closes it."""
    target: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
    for row in rows:
        target.write(json.dumps(vars(row), separators=(",", ":")).encode() + b"\n")
    return target


def from_data(data: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return the rows that :func:`to_file` wrote."""
    return [Row(**item) for item in data]
