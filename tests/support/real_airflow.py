"""The one harness for a real Airflow: its processes, the Batch services that its connections name, and their ends.

    with RealAirflow.running(folder, azurite, settings=QUICK) as stack:
        stack.add_dags("mine", write)
        stack.airflow.wait_for_dag("mine")
        run_id = stack.ask(lambda: stack.client.trigger("mine"))
        stack.wait("the run's end", lambda: stack.client.run_state("mine", run_id) == "success")

`tests/integration/real` shares one; who needs other settings, or kills it, starts its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

import psutil

from airflow_batchwrap.exceptions import BatchWrapError
from airflow_batchwrap.local import runner
from airflow_batchwrap.stack import airflow, home, process, state
from airflow_batchwrap.stack.process import ProcessId
from tests.support.polling import until

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.local.runner import LocalService
    from airflow_batchwrap.stack.azurite import AzuriteService

T = TypeVar("T")

#: The id of the Airflow connection of type azure_batch that operators take by default.
DEFAULT = "azure_batch_default"
#: A death is noticed within seconds, and not within minutes; a machine that is busy still has time to answer.
QUICK = {
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
#: What Airflow's API says when its database is locked, or when it is too busy to answer. It passes.
_PASSING = ("Database error", "does not answer", " with 5")


class RealAirflow:
    """An Airflow, and the Batch services that its connections name.

    :param folder: an empty folder for everything that they keep; DAG files go to ``dags`` in it, see `add_dags`.
    :param azurite: the blob service.
    :param settings: environment variables for Airflow's processes.
    :param services: connection id -> further words for ``batchwrap local serve``, such as ``--faults``. Each connection
        has a Batch service of its own; the default connection is always there.
    :param shared: a Batch service that somebody else has started, and stops, for the default connection.
    :param lock_seconds: how long Airflow waits for its database, in seconds. None: as long as that of ``make up``.
    """

    def __init__(
        self,
        folder: Path,
        azurite: AzuriteService,
        *,
        settings: Mapping[str, str],
        services: Mapping[str, Sequence[str]] | None = None,
        shared: LocalService | None = None,
        lock_seconds: float | None = None,
    ) -> None:
        self.folder, self.dags = folder, folder / "dags"
        self.dags.mkdir(exist_ok=True)
        self._words: dict[str, Sequence[str]] = {DEFAULT: (), **(services or {})}
        self._shared = shared
        self._replaced: list[ProcessId] = []
        self._asking = threading.RLock()
        with state.mark(folder):
            self.services = {
                name: shared if shared is not None and name == DEFAULT else self._serve(name) for name in self._words
            }
            self.connections = self._connections(azurite)
            self.env = {**self.connections, **settings}
            if lock_seconds is not None:
                address = f"sqlite:///{folder / 'airflow/airflow.db'}?timeout={lock_seconds:g}"
                self.env.setdefault("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", address)
            self.airflow = airflow.start(folder / "airflow", self.dags, results=folder / "results", env=self.env)
        self.client = self.airflow.client()

    @classmethod
    @contextmanager
    def running(cls, folder: Path, azurite: AzuriteService, **how: Any) -> Iterator[Self]:
        """Start one, and stop it at the block's end; then nothing of it may be left.

        :param how: the other parameters of the class.
        """
        try:
            started = cls(folder, azurite, **how)
            yield started
            started.stop()
            left = [f"{each.pid} {each.cmdline()}" for each in state.what_is_left(folder)]
        finally:
            process.kill(state.what_is_left(folder))
        assert left == [], os.linesep.join(left)

    def stop(self) -> None:
        """Stop everything."""
        self.client.close()
        self.airflow.stop(grace=1.0)
        process.stop(self._replaced, grace=1.0)
        self.clear_away()
        for service in self.services.values():
            if service is not self._shared:
                service.stop()

    # --- its Batch services

    @property
    def service(self) -> LocalService:
        """The Batch service of the default connection."""
        return self.services[DEFAULT]

    def batch(self, connection: str = DEFAULT) -> BatchClient:
        """Return Azure's own client of a Batch service; close it."""
        from azure.batch import BatchClient
        from azure.core.credentials import AzureNamedKeyCredential

        service = self.services[connection]
        return BatchClient(service.url, AzureNamedKeyCredential(service.account, service.key))

    def kill_service(self) -> None:
        """Kill the Batch service of the default connection."""
        self.kill([psutil.Process(self.service.pid)])

    def restart_service(self) -> None:
        """Start it again, where it was."""
        port = urlsplit(self.service.url).port or 0
        with state.mark(self.folder):
            self.services[DEFAULT] = self._serve(DEFAULT, port)

    def _serve(self, name: str, port: int = 0) -> LocalService:
        data = self.folder / ("batch" if name == DEFAULT else name)
        return runner.launch(data, ["--port", str(port), *self._words[name]], log=data.with_suffix(".log"))

    def _connections(self, azurite: AzuriteService) -> dict[str, str]:
        found = home.connections(azurite, self.service)
        for name, service in self.services.items():
            of_this = home.connections(azurite, service)
            found[f"AIRFLOW_CONN_{name.upper()}"] = of_this[f"AIRFLOW_CONN_{DEFAULT.upper()}"]
        return found

    # --- its DAG files, its API and its database

    def add_dags(self, name: str, write: Callable[[Path], object]) -> None:
        """Add a folder of DAG files. It appears at once, whole: Airflow may look at any moment.

        :param name: the folder's.
        :param write: writes the files into the folder that it is given.
        """
        made = self.folder / f"dags of {name}"
        made.mkdir()
        write(made)
        made.rename(self.dags / name)

    def ask(self, question: Callable[[], T]) -> T:
        """Ask Airflow's API until it answers, one question at a time.

        With several at a time its SQLite database stays locked until even the scheduler gives up.

        :raises BatchWrapError: if the answer is an error that does not pass by itself.
        :raises AssertionError: if there is no answer within a minute.
        """
        refused: list[str] = []

        def answer() -> tuple[T] | None:
            try:
                with self._asking:
                    return (question(),)
            except BatchWrapError as error:
                if not any(sign in str(error) for sign in _PASSING):
                    raise
                refused.append(str(error))
                return None

        found = until(answer, lambda: f"an answer of Airflow's API; the last one was: {refused[-1]}", 60, pause=0.5)
        assert found is not None
        return found[0]

    def wait(
        self, what: str | Callable[[], str], look: Callable[[], T], timeout: float = 120.0, pause: float = 0.2
    ) -> T:
        """Look until there is something to see, as `until` does; the look may ask Airflow's API."""
        return until(lambda: self.ask(look), what, timeout, pause)

    def query(self, sql: str, values: Mapping[str, Any] | Sequence[Any] = ()) -> list[Any]:
        """Read Airflow's database.

        :return: the rows.
        """
        path = self.airflow.home / "airflow.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as database:
            return database.execute(sql, values).fetchall()

    # --- its processes

    def processes(self, name: str) -> list[psutil.Process]:
        """List the processes of a component of Airflow, the one that was started first."""
        identity = self.airflow.processes[name]
        return sorted(process.family([identity]), key=lambda each: each.pid != identity.pid)

    def start_component(self, name: str) -> None:
        """Start one more of a component, which takes the place of the one there is."""
        self._replaced.append(self.airflow.processes[name])
        arguments = airflow.COMPONENTS[name][1:]
        with state.mark(self.folder):
            pid = process.spawn(
                [sys.executable, "-P", "-m", "airflow", *map(str, arguments)],
                log=self.airflow.log(name),
                env=home.environment(self.airflow.home, self.env),
                cwd=self.airflow.home,
            )
        identity = ProcessId.of(pid)
        assert identity is not None
        self.airflow.processes[name] = identity

    def restart_component(self, name: str) -> None:
        """Start a component that was killed again, as a service manager does."""
        until(lambda: self.airflow.processes[name].process() is None, f"the end of the {name}")
        self.start_component(name)

    def revive(self) -> list[str]:
        """Start again what ended by itself, as a service manager does; return what that was.

        On SQLite a triggerer or a scheduler ends where the database stays locked for too long.
        """
        ended = self.airflow.died()
        for name in ended:
            self.start_component(name)
        return ended

    def clear_away(self) -> None:
        """End what components that were replaced have left, such as a killed scheduler's workers."""
        process.kill(process.family(self._replaced))
        self._replaced.clear()

    @staticmethod
    def signal(processes: Sequence[psutil.Process], number: int) -> None:
        """Send a signal to processes; those that are gone are fine."""
        for each in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    @classmethod
    def kill(cls, condemned: Sequence[psutil.Process]) -> None:
        """End processes at once, with nothing that they could do about it: ``kill -9``."""
        cls.signal(condemned, signal.SIGKILL)


def runs(pid: int) -> bool:
    """Tell whether a process runs; these numbers are not given away again within a test."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
