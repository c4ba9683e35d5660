"""A real Airflow, whose components and whose Batch service can be killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import psutil
import pytest
from rich.console import Console
from rich.table import Table

from airflow_batchwrap.exceptions import BatchWrapError
from airflow_batchwrap.local import runner
from airflow_batchwrap.stack import airflow, home, process, state
from airflow_batchwrap.stack.process import ProcessId

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.local.runner import LocalService
    from airflow_batchwrap.stack.airflow import AirflowService
    from airflow_batchwrap.stack.azurite import AzuriteService
    from airflow_batchwrap.stack.rest import AirflowClient

T = TypeVar("T")

DAG_ID = "kills"
_FILES = Path(__file__).parent / "airflow"
# A death is noticed within seconds, and not within minutes; a machine that is busy still has time to answer.
_QUICK = {
    "AIRFLOW__CORE__PARALLELISM": "10",
    "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "50",
    "AIRFLOW__CORE__XCOM_BACKEND": "holds.HoldingXCom",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    # Not less than its default: a scheduler that had no processor for so long takes its own tasks for lost.
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "30",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "4",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "8",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "2",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "2",
}


@dataclass
class Run:
    """One DAG run with its folder of notes.

    :param folder: where its tries and its step's bodies leave notes, and look for leave to go on.
    """

    run_id: str
    folder: Path
    client: AirflowClient = field(repr=False)
    dag_id: str = DAG_ID

    def notes(self, name: str) -> list[dict[str, Any]]:
        """Read one kind of notes."""
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def let(self, what: str) -> None:
        """Let what waits go on: ``release`` the tries that stopped, ``go`` the step's body."""
        (self.folder / what).touch()

    def task(self, task_id: str = "step") -> Any:
        """Return the present state of one task."""
        found = self.client.task_instances(self.dag_id, self.run_id)
        return next(task for task in found if task.task_id == task_id)

    def over(self) -> bool:
        """Tell whether the run is over."""
        return self.client.run_state(self.dag_id, self.run_id) in ("success", "failed")

    def log(self, task_id: str = "step") -> list[list[str]]:
        """Read the log of each try."""
        number = self.task(task_id).try_number
        return [self.client.logs(self.dag_id, self.run_id, task_id, each) for each in range(1, number + 1)]


class Stack:
    """Everything that runs, and its ends."""

    def __init__(self, folder: Path, azurite: AzuriteService) -> None:
        self.folder = folder
        self.dags = folder / "dags"
        shutil.copytree(_FILES / "dags", self.dags)
        self.cells = folder / "cells"
        self.cells.mkdir()
        self.service = self._start_service()
        self.env = {
            **home.connections(azurite, self.service),
            **_QUICK,
            "PYTHONPATH": os.pathsep.join([str(_FILES), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        self.airflow: AirflowService = airflow.start(
            folder / "airflow", self.dags, results=folder / "results", env=self.env
        )
        self.client = self.airflow.client()
        self._dead: list[ProcessId] = []

    def stop(self) -> None:
        """Stop everything."""
        self.client.close()
        self.airflow.stop(grace=1.0)
        self.clear_away()
        self.service.stop()

    # --- runs

    def start(
        self, phase: str = "", *, wait: bool = False, inline: bool = True, fails: bool = False, dag_id: str = DAG_ID
    ) -> Run:
        """Start a run.

        :param phase: where its step's tries stop.
        :param wait: the step's body waits for leave to end.
        :param inline: the step is waited for on the worker, and not in the triggerer.
        :param fails: the step's first attempt fails.
        """
        folder = self.cells / f"{len(list(self.cells.iterdir())):03}"
        folder.mkdir()
        if not wait:
            (folder / "go").touch()
        conf = {
            "folder": str(folder),
            "phase": phase,
            "inline_wait": "600 s" if inline else "0 s",
            "fails": fails,
        }
        return Run(self.patiently(lambda: self.client.trigger(dag_id, conf)), folder, self.client, dag_id)

    def start_own(self, phase: str = "", *, retries: int, **how: Any) -> Run:
        """Start a run of a DAG with a file of its own, to be edited while it runs; see `start`.

        :param retries: of its step.
        """
        dag_id = f"{DAG_ID}_{len(list(self.dags.glob('*.py')))}"
        self._write_dag(dag_id, retries)
        self.airflow.wait_for_dag(dag_id)
        return self.start(phase, dag_id=dag_id, **how)

    def edit(self, run: Run, *, retries: int) -> None:
        """Change the retries of a step in its DAG's file, and wait until Airflow has read it."""
        self._write_dag(run.dag_id, retries)
        self.wait("the edited DAG", lambda: self.client.retries(run.dag_id, "step") == retries, 60)

    def clear(self, run: Run) -> list[str]:
        """Clear a run's step, as a person does; return what that clears."""
        return self.patiently(lambda: self.client.clear(run.dag_id, run.run_id, ["step"]))

    def _write_dag(self, dag_id: str, retries: int) -> None:
        text = (_FILES / "dags/kills.py").read_text()
        edited = text.replace(f'"{DAG_ID}"', f'"{dag_id}"').replace("RETRIES = 2", f"RETRIES = {retries}")
        path = self.dags / f"{dag_id}.py"
        # At once: a file that is half written may be read.
        path.with_suffix(".new").write_text(edited)
        path.with_suffix(".new").replace(path)

    @contextlib.contextmanager
    def paused(self, dag_id: str = DAG_ID) -> Iterator[None]:
        """Keep a DAG's runs waiting, so that many start at once and not while others are at work."""
        self.patiently(lambda: self.client.pause(dag_id, True))
        yield
        self.patiently(lambda: self.client.pause(dag_id, False))

    def patiently(self, ask: Callable[[], T]) -> T:
        """Ask Airflow's API until it answers.

        On SQLite its server can wait for itself: the log entry of one request holds up the event loop until the
        database is free, which another request keeps locked that needs the loop. It gives up after 5 s.
        """
        deadline = time.monotonic() + 30
        while True:
            try:
                return ask()
            except BatchWrapError as error:
                if not any(sign in str(error) for sign in ("Database error", "Timeout")) or time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def wait(self, what: str, look: Callable[[], T], timeout: float = 120.0) -> T:
        """Look until there is something to see."""
        deadline = time.monotonic() + timeout
        while True:
            if found := look():
                return found
            assert time.monotonic() < deadline, f"Not within {timeout:g} s: {what}"
            time.sleep(0.1)

    # --- ends and starts

    def processes(self, name: str) -> list[psutil.Process]:
        """List the processes of a component of Airflow, the one that was started first."""
        identity = self.airflow.processes[name]
        return sorted(process.family([identity]), key=lambda each: each.pid != identity.pid)

    @staticmethod
    def kill(condemned: list[psutil.Process]) -> None:
        """End processes at once, with nothing that they could do about it: ``kill -9``."""
        for each in condemned:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)

    def restart_component(self, name: str) -> None:
        """Start a component again, as a service manager does."""
        self._dead.append(self.airflow.processes[name])
        self.wait(f"the end of the {name}", lambda: self.airflow.processes[name].process() is None, 20)
        arguments = airflow.COMPONENTS[name][1:]
        pid = process.spawn(
            [sys.executable, "-P", "-m", "airflow", *map(str, arguments)],
            log=self.airflow.log(name),
            env=home.environment(self.airflow.home, self.env),
            cwd=self.airflow.home,
        )
        identity = ProcessId.of(pid)
        assert identity is not None
        self.airflow.processes[name] = identity

    def kill_service(self) -> None:
        """Kill the Batch service."""
        self.kill([psutil.Process(self.service.pid)])

    def restart_service(self) -> None:
        """Start the Batch service again, where it was."""
        port = urlsplit(self.service.url).port or 0
        self.service = self._start_service(port)

    def clear_away(self) -> list[str]:
        """End what the workers of killed schedulers left; return what that was."""
        left = process.family(self._dead)
        told = [f"{each.pid} {' '.join(each.cmdline())}" for each in left]
        process.kill(left)
        self._dead.clear()
        return told

    def _start_service(self, port: int = 0) -> LocalService:
        return runner.start(self.folder / "batch", port=port, log=self.folder / "batch.log")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, azurite: AzuriteService) -> Iterator[Stack]:
    """All of it, for all tests of a module; it is gone before other tests start theirs."""
    folder: Path = tmp_path_factory.mktemp("kills").resolve()
    with state.mark(folder):
        try:
            made = Stack(folder, azurite)
            made.airflow.wait_for_dag(DAG_ID)
            yield made
            made.stop()
            left = [f"{each.pid} {each.cmdline()}" for each in process.marked(process.MARK, str(folder))]
        finally:
            process.kill(process.marked(process.MARK, str(folder)))
    assert left == []


@pytest.fixture(scope="module")
def batch(stack: Stack) -> Iterator[BatchClient]:
    """Azure's own client, to look at what the steps made."""
    from azure.batch import BatchClient
    from azure.core.credentials import AzureNamedKeyCredential

    with BatchClient(stack.service.url, AzureNamedKeyCredential(stack.service.account, stack.service.key)) as made:
        yield made


_told: list[tuple[Any, Any, list[str]]] = []


@pytest.fixture(scope="session")
def told() -> Callable[..., None]:
    """Take down what a cell came to, for the table at the end."""

    def take(cell: Any, evidence: Any, problems: list[str]) -> None:
        if all(known[0] != cell for known in _told):
            _told.append((cell, evidence, problems))

    return take


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print a table of all cells, and leave its figures in .cache/kill-matrix.json."""
    if not _told:
        return
    table = Table(title="Kill matrix")
    for heading in ("killed", "when", "waits", "outcome", "tries", "asked", "created", "bodies", "reports", "result"):
        table.add_column(heading)
    for cell, evidence, problems in _told:
        notes = evidence.notes if evidence else {}
        numbers: list[object] = [""] * 5
        if evidence:
            made = sum(note["made"] for note in notes["submitted"])
            numbers = [evidence.tries, len(notes["asked"]), made, len(notes["bodies"]), len(notes["retries"])]
        outcome = "fails once" if cell.fails else "returns"
        waits = "inline" if cell.inline else "deferred"
        result = "; ".join(problems) or "as it should be"
        table.add_row(cell.kill, cell.phase, waits, outcome, *map(str, numbers), result)
    seconds = sum(evidence.seconds for _, evidence, _ in _told if evidence)
    wrong = sum(bool(problems) for _, _, problems in _told)
    terminalreporter.ensure_newline()
    console = Console(file=terminalreporter._tw._file, width=160)
    console.print(table)
    console.print(f"{len(_told)} cells in {seconds:.0f} s, {wrong} not as they should be")
    figures = config.rootpath / ".cache/kill-matrix.json"
    figures.parent.mkdir(exist_ok=True)
    killed = Counter(cell.kill for cell, _, _ in _told)
    figures.write_text(json.dumps({"cells": len(_told), "seconds": round(seconds), "wrong": wrong, "killed": killed}))
