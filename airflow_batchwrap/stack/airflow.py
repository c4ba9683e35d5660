"""A real Airflow on loopback: scheduler, dag-processor, triggerer and api-server, each a child of its own."""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from airflow_batchwrap.exceptions import BatchWrapError, ConfigError
from airflow_batchwrap.stack import home as homes
from airflow_batchwrap.stack import process
from airflow_batchwrap.stack.process import ProcessId
from airflow_batchwrap.stack.rest import AirflowClient

# Component -> seconds to wait before its start, then its command. The api-server takes longest by far: it comes first
# and the others leave it a core to itself: on two cores all are ready after 17 s, against 22 s when started at once.
# `--skip-serve-logs`: logs are read from the disk, and the servers for them would listen on every interface.
COMPONENTS: dict[str, tuple[float, *tuple[str, ...]]] = {
    "api-server": (0, "api-server"),
    "dag-processor": (0, "dag-processor"),
    "triggerer": (2, "triggerer", "--skip-serve-logs"),
    "scheduler": (2, "scheduler", "--skip-serve-logs"),
}
_API_SERVER = "api-server"
# Below the ports that Linux and macOS hand out themselves (from 32768 and 49152), so that nothing takes the chosen one
# by accident in the seconds before Airflow listens on it.
_PORTS = range(20000, 32000)
_PORT_TRIES = 3
_TAKEN = "address already in use"


@dataclass
class AirflowService:
    """A running Airflow.

    :param url: the address of its UI and REST API.
    :param password: of the user ``admin``.
    :param home: its AIRFLOW_HOME, with the components' logs.
    :param processes: component -> its process.
    """

    url: str
    home: Path
    password: str = field(repr=False)
    processes: dict[str, ProcessId] = field(default_factory=dict)
    user: str = homes.USER

    def client(self) -> AirflowClient:
        """Sign in as its user.

        :return: a client; close it.
        """
        return AirflowClient(self.url, self.user, self.password)

    def log(self, component: str) -> Path:
        """Name the log file of a component."""
        return self.home / f"{component}.log"

    def died(self) -> list[str]:
        """Return which components have ended by themselves."""
        return [name for name, identity in self.processes.items() if process.ended(identity.pid)]

    def wait_until_ready(self, *, timeout: float = 180, on_wait: Callable[[str], None] | None = None) -> None:
        """Wait until all components are healthy and tasks can be run.

        :param timeout: seconds.
        :param on_wait: called after each look with what is waited for.
        :raises BatchWrapError: a component ended, or is not healthy by then.
        """
        deadline = time.monotonic() + timeout
        warm = False
        with self.client() as client:
            while True:
                self.check()
                states = client.health()
                warm = warm or (bool(states) and client.warm_up())
                missing = [
                    name for name in ("scheduler", "dag_processor", "triggerer") if states.get(name) != "healthy"
                ]
                if states and warm and not missing:
                    return
                waiting = ", ".join(missing) if states else _API_SERVER
                if time.monotonic() > deadline:
                    raise BatchWrapError(
                        f"Airflow is not ready after {timeout:g} s: waiting for {waiting}. "
                        f"Give it more time, or see the logs in {self.home}"
                    )
                if on_wait is not None:
                    on_wait(waiting)
                time.sleep(0.1)

    def wait_for_dag(self, dag_id: str, *, timeout: float = 60) -> None:
        """Wait until a DAG was read.

        :param timeout: seconds.
        :raises ConfigError: it is not there by then, with the import errors.
        """
        deadline = time.monotonic() + timeout
        with self.client() as client:
            while not client.knows(dag_id):
                self.check()
                errors = client.import_errors()
                if errors or time.monotonic() > deadline:
                    reason = "\n".join(errors) or f"Nothing in the DAG folder defines it within {timeout:g} s."
                    raise ConfigError(f"Airflow does not know the DAG {dag_id!r}.\n{reason}")
                time.sleep(0.1)

    def check(self) -> None:
        """Make sure that every component runs.

        :raises BatchWrapError: one has ended, with the end of its log.
        """
        for name in self.died():
            log = self.log(name)
            raise ComponentDied(
                name, f"Airflow's {name} ended by itself. The end of its log {log}:\n{process.tail(log)}"
            )

    def stop(self, *, grace: float = 3.0) -> None:
        """Stop all components, the api-server last: the others report to it. Stopping twice does no harm.

        :param grace: seconds that each of the two passes may take before what is left is killed. The scheduler ends
            within 2 s; a triggerer takes 10 s, nearly all of them a wait after its work has ended.
        """
        stop(self.processes, grace=grace)


class ComponentDied(BatchWrapError):
    """A component of Airflow ended by itself.

    :param message: what to say, with the end of its log.
    """

    def __init__(self, component: str, message: str) -> None:
        super().__init__(message)
        self.component = component


def start(
    home: Path,
    dags: Path,
    *,
    results: Path,
    port: int = 0,
    host: str = homes.LOOPBACK,
    env: Mapping[str, str] | None = None,
    timeout: float = 180,
    on_spawn: Callable[[AirflowService], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> AirflowService:
    """Start an Airflow and wait until it can run tasks.

    :param home: its AIRFLOW_HOME, made where it is missing.
    :param dags: the folder of DAG files.
    :param results: where ``BatchWorkflow`` puts the files it fetches.
    :param port: the port of its UI and API; 0 for a free one.
    :param host: the address they listen on. Other than loopback only where nobody else reaches it: in a container.
    :param env: variables for its processes beside this process's own: the connections.
    :param timeout: seconds.
    :param on_spawn: called when its processes were started, before they are ready.
    :param on_wait: called after each look with what is waited for.
    :raises ConfigError: the port is taken, or the folder of DAG files is none.
    :raises BatchWrapError: it did not start; nothing of it is left running.
    """
    if not dags.is_dir():
        raise ConfigError(f"There is no folder of DAG files at {dags}. Name one with --dags.")
    tries = _PORT_TRIES if port == 0 else 1
    while True:
        tries -= 1
        options = homes.settings(dags.absolute(), port or free_port(), results.absolute(), host)
        service = _spawn(home.absolute(), options, env or {})
        try:
            if on_spawn is not None:
                on_spawn(service)
            service.wait_until_ready(timeout=timeout, on_wait=on_wait)
        except BaseException as error:
            service.stop(grace=1.0)
            if not (isinstance(error, ComponentDied) and _TAKEN in str(error)):
                raise
            if not tries:
                raise ConfigError(
                    f"Airflow cannot listen on {service.url}: the port is taken. Free it, or leave the port out."
                ) from None
        else:
            return service


def _spawn(home: Path, options: homes.Settings, env: Mapping[str, str]) -> AirflowService:
    password = homes.create(home, options)
    service = AirflowService(f"http://{homes.LOOPBACK}:{options['api']['port']}", home, password)
    whole = homes.environment(home, env)
    try:
        for name, (pause, *arguments) in COMPONENTS.items():
            time.sleep(pause)
            # Each start begins its own log: an old "address already in use" must not be read as today's.
            service.log(name).unlink(missing_ok=True)
            command = [sys.executable, "-P", "-m", "airflow", *arguments]
            pid = process.spawn(command, log=service.log(name), env=whole, cwd=home)
            identity = ProcessId.of(pid)
            if identity is not None:
                service.processes[name] = identity
    except BaseException:
        service.stop(grace=1.0)
        raise
    return service


def stop(processes: Mapping[str, ProcessId], *, grace: float = 3.0) -> None:
    """Stop the components of an Airflow, also of one that another process started.

    :param processes: component -> its process.
    :param grace: seconds that each of the two passes may take before what is left is killed.
    """
    process.stop([identity for name, identity in processes.items() if name != _API_SERVER], grace=grace)
    process.stop([identity for name, identity in processes.items() if name == _API_SERVER], grace=grace)


def free_port() -> int:
    """Choose a port that nothing listens on.

    :return: the port. Another program may take it before it is used: the caller has to expect that.
    :raises ConfigError: none was found.
    """
    for port in random.sample(_PORTS, 100):
        if is_free(port):
            return port
    raise ConfigError(f"No free port found between {_PORTS.start} and {_PORTS.stop} on 127.0.0.1.")


def is_free(port: int) -> bool:
    """Return whether a server could listen on a port of this machine."""
    with contextlib.closing(socket.socket()) as probe:
        # As the servers do: a port whose last connections are still fading is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
