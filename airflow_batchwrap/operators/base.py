"""What every operator of this package has in common."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from airflow.sdk import BaseOperator

from airflow_batchwrap.attempts import retrying
from airflow_batchwrap.attempts.epoch import epoch_of
from airflow_batchwrap.config import WorkflowConfig
from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.instance import name_of_instance
from airflow_batchwrap.naming import Maker

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_batchwrap.hooks.batch import BatchWrapHook

T = TypeVar("T")
Time = timedelta | float | str

#: An option that may hold a template: the operator's ``template_fields`` are those that are marked so.
Templated = Annotated[T, "templated"]
#: An option that may hold a template and that :class:`WorkflowConfig` knows as well, and validates.
Setting = Annotated[T, "setting"]


class BatchWrapOperator(BaseOperator):
    """The root of this package's operators.

    An option is written where it is given: in the signature of ``__init__``, with its type, its default, and the mark
    ``Templated`` or ``Setting``. ``template_fields`` and ``setting_names`` follow from the marks::

        def __init__(self, *, greeting: Templated[str] = "hello", **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.greeting = greeting

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

    setting_names: Sequence[str]
    _options: frozenset[str] = frozenset()
    ui_color = "#dcebfa"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls._read_marks(inspect.signature(vars(cls)["__init__"]))

    def __init__(
        self,
        *,
        azure_batch_conn_id: Templated[str] = "azure_batch_default",
        wasb_conn_id: Templated[str] = "wasb_default",
        deferrable: bool = True,
        inline_wait: Setting[Time] = 10.0,
        poll_interval: Setting[Time] = 15.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.retry_policy is None:
            # Without retries of their own, tasks still outlive a lost node, a busy service and a crash of Airflow.
            steps_too = bool(self.retries)
            if not steps_too:
                self.retries, self.retry_delay = retrying.OWN_RETRIES, retrying.OWN_DELAY
            self.retry_policy = retrying.retry_policy(steps_too=steps_too)
        self.azure_batch_conn_id = azure_batch_conn_id
        self.wasb_conn_id = wasb_conn_id
        self.deferrable = deferrable
        self.inline_wait = inline_wait
        self.poll_interval = poll_interval

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an option in one go while the operator is made.

        Airflow looks for a converter whenever an attribute of an operator is set, and a DAG of hundreds of steps would
        have it do so thousands of times when it is parsed.
        """
        if name in self._options and "_BaseOperator__instantiated" not in vars(self):
            vars(self)[name] = value
        else:
            super().__setattr__(name, value)

    @classmethod
    def _read_marks(cls, signature: inspect.Signature) -> None:
        # The annotations are text here: each module of operators postpones them.
        marks = {
            name: str(parameter.annotation).partition("[")[0]
            for name, parameter in signature.parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        settings = [name for name, mark in marks.items() if mark == "Setting"]
        templated = [name for name, mark in marks.items() if mark in ("Setting", "Templated")]
        if cls.__module__.startswith(f"{__name__.partition('.')[0]}."):
            cls._options = cls._options | marks.keys()
        if "setting_names" not in vars(cls):
            cls.setting_names = (*getattr(cls, "setting_names", ()), *settings)
        if "template_fields" not in vars(cls):
            cls.template_fields = (*cls.template_fields, *templated)

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

    def maker(self, context: Context) -> Maker:
        """Return the name that what this task makes on the account bears."""
        return Maker(name_of_instance(), **self.identity(context), scope=self.scope)

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
        """Return the current epoch: 1, and a higher number each time that a person cleared the task."""
        return epoch_of(context, self.retries or 0, self.log)


BatchWrapOperator._read_marks(inspect.signature(BatchWrapOperator.__init__))
