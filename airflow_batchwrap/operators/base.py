"""What every operator of this package has in common."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, ExceptionRetryPolicy
from airflow.sdk.definitions.retry_policy import RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowRuntimeError, AirflowTaskTimeout

from airflow_batchwrap.config import WorkflowConfig
from airflow_batchwrap.exceptions import ConfigError, PoolError, StepFailed, TryAgain
from airflow_batchwrap.operators.superseded import leave_if_superseded

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_batchwrap.hooks.batch import BatchWrapHook

_EPOCH_KEY = "batchwrap_epoch"
_OWN_RETRIES = 2
_OWN_DELAY = timedelta(seconds=30)

Time = timedelta | float | str


@cache
def retry_policy(*, steps_too: bool = True) -> ExceptionRetryPolicy:
    """Return what to try again: what may go better later, not a wrong set-up; a step's failure as ``retries`` says.

    :param steps_too: whether the retries are meant for the step's own failures as well.
    """
    rules = [
        RetryRule(
            exception=TryAgain,
            action=RetryAction.RETRY,
            retry_delay=_OWN_DELAY,
            reason="The node or the service failed, not the step",
        ),
        RetryRule(
            exception=[ConfigError, PoolError],
            action=RetryAction.FAIL,
            reason="The set-up has to be mended first",
        ),
    ]
    if not steps_too:
        never = "The step failed, and the task has no retries for that"
        rules.append(RetryRule(exception=[StepFailed, AirflowTaskTimeout], action=RetryAction.FAIL, reason=never))
    return ExceptionRetryPolicy(rules=rules)


class BatchWrapOperator(BaseOperator):
    """The root of this package's operators.

    :param azure_batch_conn_id: Airflow connection of type ``azure_batch``.
    :param wasb_conn_id: Airflow connection of type ``wasb``.
    :param deferrable: wait in the triggerer, which holds no worker; False waits on the worker, and does everything else
        alike.
    :param inline_wait: how long to wait on the worker before deferring: a deferral itself costs about 3 s. A number is
        seconds; like all times of these operators it may also be text with a unit, or a template of such.
    :param poll_interval: the longest pause between two looks at the service; as ``inline_wait``.

    Airflow's ``retries`` say how often a failed step is tried again. Where there are none (0, Airflow's default), the
    task has two all the same, 30 s apart, for what is not the step's fault: a lost node, a busy service, a worker that
    died. Of a mapped task Airflow knows the retries before the operator does: say them yourself there.
    """

    template_fields: Sequence[str] = ("azure_batch_conn_id", "wasb_conn_id", "inline_wait", "poll_interval")
    # The arguments that WorkflowConfig knows as well, and validates.
    setting_names: Sequence[str] = ("inline_wait", "poll_interval")
    ui_color = "#dcebfa"

    azure_batch_conn_id: str
    wasb_conn_id: str
    deferrable: bool
    inline_wait: Time
    poll_interval: Time

    def __init__(
        self,
        *,
        azure_batch_conn_id: str = "azure_batch_default",
        wasb_conn_id: str = "wasb_default",
        deferrable: bool = True,
        inline_wait: Time = 10.0,
        poll_interval: Time = 15.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.retry_policy is None:
            # Without retries of their own, tasks still outlive a lost node, a busy service and a crash of Airflow.
            steps_too = bool(self.retries)
            if not steps_too:
                self.retries, self.retry_delay = _OWN_RETRIES, _OWN_DELAY
            self.retry_policy = retry_policy(steps_too=steps_too)
        self.keep(
            azure_batch_conn_id=azure_batch_conn_id,
            wasb_conn_id=wasb_conn_id,
            deferrable=deferrable,
            inline_wait=inline_wait,
            poll_interval=poll_interval,
        )

    def keep(self, **arguments: Any) -> None:
        """Set attributes while this is made, all in one go.

        Airflow's operators look for a converter whenever an attribute is set, and a DAG of hundreds of steps would do
        so thousands of times when it is parsed.
        """
        vars(self).update(arguments)

    @cached_property
    def hook(self) -> BatchWrapHook:
        """The hook, made on first use: it must not be made while a DAG file is parsed."""
        from airflow_batchwrap.hooks.batch import BatchWrapHook

        return BatchWrapHook(self.azure_batch_conn_id, self.wasb_conn_id)

    @cached_property
    def settings(self) -> WorkflowConfig:
        """The times, numbers and places that were given, their templates rendered, validated.

        :raises ConfigError: one of them is wrong.
        """
        given = {name: getattr(self, name) for name in self.setting_names}
        times = {name: timedelta(seconds=value) for name, value in given.items() if isinstance(value, float | int)}
        times = {name: value for name, value in times.items() if name in ("inline_wait", "poll_interval")}
        source = f"Task {self.task_id!r}"
        settings = WorkflowConfig.from_dict({**given, **times}, source=source)
        if settings.late_keys:
            raise ConfigError(f"{source}: {', '.join(settings.late_keys)} is still a template after it was rendered.")
        return settings

    def connections(self) -> dict[str, Any]:
        """Return what a trigger needs to make the same hook."""
        return {"azure_batch_conn_id": self.azure_batch_conn_id, "wasb_conn_id": self.wasb_conn_id}

    def identity(self, context: Context) -> dict[str, Any]:
        """Return which Airflow task this is: what a trigger needs to ask what has become of it."""
        return {
            "dag_id": self.dag_id,
            "run_id": str(context["run_id"]),
            "task_id": self.task_id,
            "map_index": self.map_index(context),
        }

    @property
    def scope(self) -> str:
        """What this task and its siblings belong to: the task group, or the task itself outside one."""
        return self.group or self.task_id

    @property
    def group(self) -> str:
        """The id of the task group that this task's id begins with; empty outside one."""
        return self.task_id.rpartition(".")[0]

    @staticmethod
    def map_index(context: Context) -> int:
        """Return the task's map index; -1 where it is not mapped."""
        index = context["ti"].map_index
        return -1 if index is None else index

    def dag_folder(self, context: Context) -> Path:
        """Return the folder of the DAG file, which relative paths are relative to."""
        return Path(context["dag"].fileloc).resolve().parent

    def epoch(self, context: Context) -> int:
        """Return the current epoch: 1, and a higher number each time that a person cleared the task.

        A clear sets ``max_tries`` anew, to the tries so far and the retries that the DAG file has then; a retry does
        not, whatever has become of the retries in the file. Of a task that was cleared while it ran Airflow 3.3 forgets
        that again, but counts the clears of the run. A retry after a clear of another task is taken for a clear, too:
        what then still runs, because the worker died, is ended and done anew.

        The state store outlives clears and retries, unless Airflow is set to empty it after a success: then the tries
        that the clear added tell.
        """
        store, max_tries = context["task_state_store"], context["ti"].max_tries
        clears = int(getattr(context.get("dag_run"), "clear_number", None) or 0)
        seen = store.get(_EPOCH_KEY)
        if isinstance(seen, dict):
            known = int(seen["max_tries"]), int(seen.get("clears") or 0)  # type: ignore[arg-type]
            epoch = int(seen["epoch"]) + int(known != (max_tries, clears))  # type: ignore[arg-type]
        else:
            epoch = 1 + max(0, max_tries - (self.retries or 0))
        try:
            store.set(_EPOCH_KEY, {"epoch": epoch, "max_tries": max_tries, "clears": clears})
        except AirflowRuntimeError:
            leave_if_superseded(context, self.log)
            raise
        return epoch
