"""A bench for single operators: tries on the local services, with Airflow's part in memory."""

from __future__ import annotations

import asyncio
import importlib
import json
import textwrap
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

T = TypeVar("T")


class Instance:
    """What an operator asks of its task instance."""

    def __init__(
        self, operator: BaseOperator, run_id: str, try_number: int, map_index: int, cleared: int, states: dict[str, str]
    ) -> None:
        self.dag_id, self.task_id, self.run_id = operator.dag_id, operator.task_id, run_id
        self.try_number, self.max_tries, self.map_index = try_number, cleared + (operator.retries or 0), map_index
        self.xcoms: dict[str, Any] = {}
        self._run_states = states

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))

    def get_dr_count(self, dag_id: str, run_ids: list[str], states: list[str]) -> int:
        return sum(self._run_states.get(run_id) in states for run_id in run_ids)


class Bench:
    """Run single operators on the two services, as often and in whatever order a test wants.

    Airflow's part is in memory: ids, XComs, and a state store for each task and run.
    """

    def __init__(self, folder: Path) -> None:
        from airflow.sdk import DAG

        self.folder = folder
        self.dag = DAG(f"bench_{uuid.uuid4().hex[:8]}", schedule=None)
        self.dag.fileloc = str(folder / "dag.py")
        self.runs: dict[str, str] = {}
        self.xcoms: dict[str, Any] = {}
        #: The tries that Airflow has replaced by others.
        self.superseded: set[int] = set()
        self._stores: dict[tuple[str, str, int], dict[str, Any]] = {}
        self._airflows: dict[str, tuple[dict[tuple[str, str, int], dict[str, Any]], dict[str, str]]] = {}

    def steps(self, name: str = "steps", /, **texts: str) -> str:
        """Write step files: ``_1_a="..."`` is ``1_a.py``."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        for stem, text in texts.items():
            (folder / f"{stem.removeprefix('_')}.py").write_text(textwrap.dedent(text))
        return name

    def make(self, kind: Callable[..., T], task_id: str | None = None, /, **arguments: Any) -> T:
        """Make an operator in the bench's DAG."""
        given = {"poll_interval": 1.0, **arguments}
        return kind(task_id=task_id or f"t{len(self.dag.task_dict)}", dag=self.dag, **given)

    def context(
        self,
        operator: BaseOperator,
        run_id: str = "r1",
        try_number: int = 1,
        cleared: int = 0,
        map_index: int = -1,
        clears: int = 0,
    ) -> Any:
        """Return what Airflow hands to a try.

        :param cleared: how many tries there were when a person cleared the task last.
        :param clears: how often a person has cleared any task of the run.
        """
        self.runs.setdefault(run_id, "running")
        values = self._stores.setdefault((operator.task_id, run_id, map_index), {})
        return {
            "dag": self.dag,
            "task": operator,
            "run_id": run_id,
            "dag_run": SimpleNamespace(clear_number=clears),
            "params": {},
            "ti": Instance(operator, run_id, try_number, map_index, cleared, self.runs),
            "task_state_store": MemoryStore(values, lambda: try_number in self.superseded),
        }

    def gate(self) -> tuple[str, Path]:
        """Return a command that waits until a file is there, and that file."""
        path = self.folder / f"gate-{uuid.uuid4().hex[:8]}"
        return f"until [ -e {path} ]; do sleep 0.05; done", path

    def forget(self) -> None:
        """Do as Airflow does when a person deletes the runs."""
        self._stores.clear()

    def become(self, airflow: str) -> None:
        """Go on as another Airflow, which has the same DAG and run ids, and a memory of its own.

        The test sets its ``[batchwrap] instance``.
        """
        self._stores, self.runs = self._airflows.setdefault(airflow, ({}, {}))

    def run(self, operator: Any, **of_context: Any) -> Any:
        """Run one try to its end, deferral included; return what it returns."""
        return self.begin(operator, **of_context).finish()

    def submit(self, operator: Any, **of_context: Any) -> Try:
        """Begin a try that is deferred at once; without ``finish`` it is one whose worker or triggerer died."""
        before = operator.inline_wait
        operator.inline_wait = 0
        begun = self.begin(operator, **of_context)
        operator.inline_wait = before
        assert begun.trigger is not None
        return begun

    def begin(self, operator: Any, **of_context: Any) -> Try:
        """Run one try until it ends or is deferred."""
        from airflow.sdk.execution_time.task_runner import _run_execute_callable

        # Each try is a process of its own on a worker.
        operator.__dict__.pop("hook", None)
        operator.__dict__.pop("settings", None)
        begun = Try(operator, self.context(operator, **of_context))
        self.xcoms = begun.context["ti"].xcoms
        begun.go(lambda: _run_execute_callable(begun.context, operator.execute, operator))
        return begun


@dataclass
class Try:
    """One try of an operator, ended or deferred."""

    operator: Any
    context: Any
    result: Any = None
    trigger: tuple[str, dict[str, Any]] | None = None
    method: str = ""

    @property
    def trigger_arguments(self) -> dict[str, Any]:
        """What its trigger is made of; only where it was deferred."""
        assert self.trigger is not None, "This try was not deferred."
        return self.trigger[1]

    def go(self, part: Callable[[], Any]) -> None:
        """Run a part of it, to its end or until it is deferred."""
        from airflow.sdk.exceptions import TaskDeferred

        self.trigger = None
        try:
            self.result = part()
        except TaskDeferred as deferred:
            path, arguments = deferred.trigger.serialize()
            self.trigger = path, json.loads(json.dumps(arguments))
            self.method = deferred.method_name

    def finish(self) -> Any:
        """Wait with the trigger as often as it is deferred, and go on; return what it returns."""
        while self.trigger is not None:
            self.go_on()
        return json.loads(json.dumps(self.result))

    def go_on(self) -> None:
        """Wait with the trigger, and go on until it ends or is deferred again."""
        event = asyncio.run(self.event())
        self.go(lambda: getattr(self.operator, self.method)(self.context, event))

    async def event(self) -> dict[str, Any]:
        """Return what the trigger, made again from what it was serialized to, has to say."""
        assert self.trigger is not None
        path, arguments = self.trigger
        module, _, name = path.rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        (event,) = [event async for event in kind(**arguments).run()]
        payload: dict[str, Any] = json.loads(json.dumps(event.payload))
        return payload


class MemoryStore:
    """A task state store.

    :param is_gone: tells whether Airflow knows the task instance no more.
    """

    def __init__(self, values: dict[str, Any], is_gone: Callable[[], bool]) -> None:
        self._values = values
        self._is_gone = is_gone

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def set(self, key: str, value: Any) -> None:
        from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
        from airflow.sdk.execution_time.comms import ErrorResponse

        if self._is_gone():
            # As Airflow 3.3 answers where the task instance has been moved to the history.
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": 404}))
        self._values[key] = json.loads(json.dumps(value))
