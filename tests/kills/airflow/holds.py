"""Points at which a try of the held step stops until it is let go on, and notes of what it did.

Everything goes through files in the cell's own folder, which the run's conf names: what a killed process noted stays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.xcom import BaseXCom

from airflow_batchwrap import CreatePoolOperator, DeletePoolOperator, PoolError, RunBatchTaskOperator, StepFailed
from airflow_batchwrap.workspace import Workspace
from tests.support.polling import until

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_batchwrap.hooks.batch import BatchWrapHook

_LONGEST = 300.0  # seconds: a try that nobody let go on ends by itself


class Cell:
    """One run's folder, and the point at which its tries stop.

    :param context: of the task that asks.
    """

    def __init__(self, context: Context) -> None:
        params: dict[str, Any] = dict(context["params"])
        self.folder = Path(params["folder"])
        self.phase = str(params["phase"])
        self.try_number = context["ti"].try_number

    def note(self, name: str, **what: Any) -> None:
        """Add a line to one of the cell's notes."""
        line = json.dumps({"pid": os.getpid(), "parent": os.getppid(), "try": self.try_number, **what}) + "\n"
        descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def hold(self, phase: str) -> None:
        """Stop here until the test lets go, if this is where this cell stops."""
        if phase != self.phase:
            return
        self.note("reached")
        leave = [self.folder / name for name in ("release", f"release-{self.try_number}")]
        until(lambda: any(path.exists() for path in leave), "leave for this try to go on", _LONGEST, pause=0.05)


_held: list[Cell] = []  # what runs in this process: Airflow starts one for each try


class HoldingXCom(BaseXCom):
    """Airflow's own XCom, which stops once a result is stored and before its task is told to have succeeded."""

    @classmethod
    def set(cls, key: str, value: Any, **rest: Any) -> None:
        """Store, then stop."""
        super().set(key, value, **rest)
        if key == cls.XCOM_RETURN_KEY and _held:
            _held[-1].hold("stored")


class HeldStep(RunBatchTaskOperator):
    """RunBatchTaskOperator, stopped before or after it submits, before it reads a result, or before it reports one."""

    @cached_property
    def hook(self) -> BatchWrapHook:
        """The hook, whose submissions are noted."""
        hook = super().hook
        create_task: Callable[[str, Any], bool] = hook.create_task

        def noting(job_id: str, task: Any) -> bool:
            cell = _held[-1]
            cell.hold("before")
            cell.note("asked", id=task.id)
            made = create_task(job_id, task)
            cell.note("submitted", id=task.id, made=made)
            cell.hold("after")
            return made

        setattr(hook, "create_task", noting)  # noqa: B010 - a method, for mypy
        return hook

    def execute(self, context: Context) -> Any:
        """Run, from the start of a try."""
        with self._holding(context):
            return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Run, from the end of the wait in the triggerer."""
        with self._holding(context):
            return super().execute_complete(context, event)

    def settle(self, *arguments: Any, **named: Any) -> Any:
        """Read the result, and report a failure."""
        _held[-1].hold("completed")
        return super().settle(*arguments, **named)

    @contextmanager
    def _holding(self, context: Context) -> Iterator[None]:
        cell = Cell(context)
        _held.append(cell)
        cell.note("tries")
        try:
            yield
        except StepFailed:
            # The failure is noted in the state store, and Airflow has not heard of it yet.
            cell.hold("stored")
            raise


class HeldSetUp(CreatePoolOperator):
    """CreatePoolOperator, stopped when its pool and its job are there; a try that is told to fails then."""

    def settle(self, work: Any, event: Any) -> dict[str, Any]:
        """Return the workspace."""
        cell = Cell(work.context)
        cell.hold("set_up")
        if (cell.folder / f"fail-{cell.try_number}").exists():
            raise PoolError("This try was told to fail.")
        return super().settle(work, event)


class NotingEnd(DeletePoolOperator):
    """DeletePoolOperator, which notes the Batch tasks of the job that it is about to delete."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Note, and remove."""
        cell, job_id = Cell(context), Workspace.from_xcom(self.workspace).job_id
        with self.hook.batch_call(f"list the Batch tasks of job {job_id!r}"):
            found = list(self.hook.batch.list_tasks(job_id))
        for task in found:
            info = task.execution_info
            cell.note(
                "batch",
                job=job_id,
                id=task.id,
                state=str(task.state),
                exit_code=info.exit_code if info else None,
                requeues=info.requeue_count if info else None,
            )
        return super().execute(context)


def note_retry(context: Context) -> None:
    """Note that Airflow reports a failure that is tried again."""
    error = context.get("exception")
    Cell(context).note("retries", task=context["ti"].task_id, error=type(error).__name__)


def note_failure(context: Context) -> None:
    """Note that Airflow reports a failure for good."""
    Cell(context).note("failures", task=context["ti"].task_id, error=type(context.get("exception")).__name__)
