"""What every operator of this package has in common."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, ExceptionRetryPolicy
from airflow.sdk.definitions.retry_policy import RetryAction, RetryRule

from airflow_batchwrap.exceptions import ConfigError, PoolError, TryAgain

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_batchwrap.hooks.batch import BatchWrapHook

_EPOCH_KEY = "batchwrap_epoch"


def retry_policy() -> ExceptionRetryPolicy:
    """Return what to try again: what may go better later, not a wrong set-up; a step's failure as ``retries`` says."""
    return ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception=TryAgain,
                action=RetryAction.RETRY,
                retry_delay=timedelta(seconds=30),
                reason="The node or the service failed, not the step",
            ),
            RetryRule(
                exception=[ConfigError, PoolError],
                action=RetryAction.FAIL,
                reason="The set-up has to be mended first",
            ),
        ]
    )


class BatchWrapOperator(BaseOperator):
    """The root of this package's operators.

    :param azure_batch_conn_id: Airflow connection of type ``azure_batch``.
    :param wasb_conn_id: Airflow connection of type ``wasb``.
    :param deferrable: wait in the triggerer, which holds no worker; False waits on the worker, and does everything else
        alike.
    :param inline_wait: seconds to wait on the worker before deferring: a deferral itself costs about 3 s.
    :param poll_interval: the longest pause between two looks at the service, in seconds.
    """

    template_fields: Sequence[str] = ("azure_batch_conn_id", "wasb_conn_id")
    ui_color = "#dcebfa"

    def __init__(
        self,
        *,
        azure_batch_conn_id: str = "azure_batch_default",
        wasb_conn_id: str = "wasb_default",
        deferrable: bool = True,
        inline_wait: float = 10.0,
        poll_interval: float = 15.0,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", retry_policy())
        super().__init__(**kwargs)
        self.azure_batch_conn_id = azure_batch_conn_id
        self.wasb_conn_id = wasb_conn_id
        self.deferrable = deferrable
        self.inline_wait = inline_wait
        self.poll_interval = poll_interval

    @cached_property
    def hook(self) -> BatchWrapHook:
        """The hook, made on first use: it must not be made while a DAG file is parsed."""
        from airflow_batchwrap.hooks.batch import BatchWrapHook

        return BatchWrapHook(self.azure_batch_conn_id, self.wasb_conn_id)

    def connections(self) -> dict[str, Any]:
        """Return what a trigger needs to make the same hook."""
        return {"azure_batch_conn_id": self.azure_batch_conn_id, "wasb_conn_id": self.wasb_conn_id}

    @property
    def scope(self) -> str:
        """What this task and its siblings belong to: the task group, or the task itself outside one."""
        group, _, own = self.task_id.rpartition(".")
        return group or own

    def dag_folder(self, context: Context) -> Path:
        """Return the folder of the DAG file, which relative paths are relative to."""
        return Path(context["dag"].fileloc).resolve().parent

    def epoch(self, context: Context) -> int:
        """Return the current epoch: 1, and one more each time that a person cleared the task.

        A clear raises ``max_tries``; a retry does not. The state store outlives both.
        """
        store = context["task_state_store"]
        max_tries = context["ti"].max_tries
        seen = store.get(_EPOCH_KEY)
        if not isinstance(seen, dict):
            epoch = 1
        else:
            epoch = int(seen["epoch"]) + (1 if max_tries > int(seen["max_tries"]) else 0)  # type: ignore[arg-type]
        store.set(_EPOCH_KEY, {"epoch": epoch, "max_tries": max_tries})
        return epoch
