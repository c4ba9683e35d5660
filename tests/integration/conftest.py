"""A real Airflow with its own local Batch service, for the tests that need more of it than ``batchwrap up`` gives."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil
import pytest

from airflow_batchwrap.exceptions import BatchWrapError
from airflow_batchwrap.local import runner
from airflow_batchwrap.stack import airflow, home, process, state
from airflow_batchwrap.stack.process import ProcessId

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.stack.azurite import AzuriteService

T = TypeVar("T")

# Many tasks write at once: wait for the lock of SQLite longer than the 5 s that Python's driver waits. Not much longer:
# the api-server can wait for a lock that it holds itself.
_LOCK_SECONDS = 12
# A death is noticed within seconds, and not within minutes; a machine that is busy still has time to answer.
_QUICK = {
    "AIRFLOW__CORE__PARALLELISM": "24",
    "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "100",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "60",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "8",
}


class RealAirflow:
    """An Airflow, and the Batch service that its connections name.

    :param folder: an empty folder for everything that they keep; DAG files go to ``dags`` in it.
    :param settings: environment variables for Airflow's processes.
    :param faults: what the Batch service does wrong on purpose; see ``batchwrap local serve --faults``.
    """

    def __init__(self, folder: Path, azurite: AzuriteService, settings: Mapping[str, str], faults: str) -> None:
        self.folder, self.dags = folder, folder / "dags"
        arguments = ["--port", "0", *(["--faults", faults] if faults else [])]
        self.service = runner.launch(folder / "batch", arguments, log=folder / "batch.log")
        database = folder / "airflow/airflow.db"
        self.connections = home.connections(azurite, self.service)
        self.env = {
            **self.connections,
            **_QUICK,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{database}?timeout={_LOCK_SECONDS}",
            **settings,
        }
        self.airflow = airflow.start(folder / "airflow", self.dags, results=folder / "results", env=self.env)
        self.client = self.airflow.client()
        self._others: list[ProcessId] = []
        self._asking = threading.RLock()

    def stop(self) -> None:
        """Stop everything."""
        self.client.close()
        self.airflow.stop(grace=1.0)
        process.stop(self._others, grace=1.0)
        self.service.stop()

    def batch(self) -> BatchClient:
        """Return Azure's own client of the Batch service; close it."""
        from azure.batch import BatchClient
        from azure.core.credentials import AzureNamedKeyCredential

        return BatchClient(self.service.url, AzureNamedKeyCredential(self.service.account, self.service.key))

    def ask(self, what: Callable[[], T]) -> T:
        """Ask Airflow's API until it answers, one question at a time.

        With several at a time its SQLite database stays locked until even the scheduler gives up.
        """
        deadline = time.monotonic() + 60
        while True:
            try:
                with self._asking:
                    return what()
            except BatchWrapError as error:
                passing = "Database error" in str(error) or "does not answer" in str(error) or " with 5" in str(error)
                if not passing or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def wait(self, what: str, look: Callable[[], T], timeout: float = 120.0, pause: float = 0.2) -> T:
        """Look until there is something to see."""
        deadline = time.monotonic() + timeout
        while True:
            if found := self.ask(look):
                return found
            assert time.monotonic() < deadline, f"Not within {timeout:g} s: {what}"
            time.sleep(pause)

    # --- its processes

    def processes(self, name: str) -> list[psutil.Process]:
        """List the processes of a component of Airflow, the one that was started first."""
        identity = self.airflow.processes[name]
        return sorted(process.family([identity]), key=lambda each: each.pid != identity.pid)

    def start_component(self, name: str) -> None:
        """Start one more of a component, which takes the place of the one there is."""
        self._others.append(self.airflow.processes[name])
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

    def revive(self) -> list[str]:
        """Start again what ended by itself, as a service manager does; return what that was.

        On SQLite a triggerer or a scheduler ends where the database stays locked for too long.
        """
        ended = self.airflow.died()
        for name in ended:
            self.start_component(name)
        return ended

    def signal(self, processes: list[psutil.Process], number: int) -> None:
        """Send a signal to processes; those that are gone are fine."""
        for each in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)


StartAirflow = Callable[..., AbstractContextManager[RealAirflow]]


@pytest.fixture(scope="session")
def real_airflow(tmp_path_factory: pytest.TempPathFactory, azurite: AzuriteService) -> StartAirflow:
    """Start an Airflow on a folder of DAG files that a function writes; everything is stopped at the block's end."""

    @contextmanager
    def start(
        write: Callable[[Path], object], *, settings: Mapping[str, str] | None = None, faults: str = ""
    ) -> Iterator[RealAirflow]:
        folder: Path = tmp_path_factory.mktemp("airflow").resolve()
        (folder / "dags").mkdir()
        write(folder / "dags")
        with state.mark(folder):
            try:
                started = RealAirflow(folder, azurite, settings or {}, faults)
                yield started
                started.stop()
                left = [f"{each.pid} {each.cmdline()}" for each in process.marked(process.MARK, str(folder))]
            finally:
                process.kill(process.marked(process.MARK, str(folder)))
        assert left == [], os.linesep.join(left)

    return start
