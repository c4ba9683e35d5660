"""A real Airflow for the kill matrix: its one DAG, whose runs stop where a test wants them to, and its runs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.real_airflow import RealAirflow

if TYPE_CHECKING:
    from airflow_batchwrap.stack.azurite import AzuriteService
    from airflow_batchwrap.stack.rest import AirflowClient, TaskInstance

DAG_ID = "kills"
# Python's own: what is killed may hold the lock.
_LOCK_SECONDS = 5.0
_ROOT = Path(__file__).resolve().parents[2]
_FILES = _ROOT / "tests/kills/airflow"
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

    def task(self, task_id: str = "step") -> TaskInstance:
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


class KillStack(RealAirflow):
    """Everything that runs, and its ends."""

    def __init__(self, folder: Path, azurite: AzuriteService) -> None:
        shutil.copytree(_FILES / "dags", folder / "dags")
        self.cells = folder / "cells"
        self.cells.mkdir()
        # holds.py, and this package for it.
        path = [str(_FILES), str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        settings = {**_QUICK, "PYTHONPATH": os.pathsep.join(path)}
        super().__init__(folder, azurite, settings=settings, lock_seconds=_LOCK_SECONDS)

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
        return Run(self.ask(lambda: self.client.trigger(dag_id, conf)), folder, self.client, dag_id)

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
        return self.ask(lambda: self.client.clear(run.dag_id, run.run_id, ["step"]))

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
        self.ask(lambda: self.client.pause(dag_id, True))
        yield
        self.ask(lambda: self.client.pause(dag_id, False))
