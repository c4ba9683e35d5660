"""Azurite, the local Batch service and Airflow, started in order and written down as they start."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_batchwrap.exceptions import BatchWrapError, ConfigError
from airflow_batchwrap.stack import airflow, azurite, home, state
from airflow_batchwrap.stack.airflow import AirflowService
from airflow_batchwrap.stack.paths import project_dir
from airflow_batchwrap.stack.process import ProcessId

if TYPE_CHECKING:
    from airflow_batchwrap.local.runner import LocalService
    from airflow_batchwrap.local.tls import TlsFiles

LogProgress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to start, and where.

    :param folder: the state directory: databases, blobs, nodes and logs live below it.
    :param dags: the folder of DAG files.
    :param results: where fetched result files go.
    :param port: Airflow's port; 0 for a free one.
    :param host: the address that Airflow listens on.
    :param tls: whether the two services speak TLS, and Airflow signs in with a managed identity in place of keys.
    """

    folder: Path
    dags: Path
    results: Path
    port: int = 0
    host: str = home.LOOPBACK
    tls: bool = False


def find_dags(named: Path | None) -> Path:
    """Find the folder of DAG files.

    :param named: the one that was asked for; None to look for it.
    :return: that one; else ``dags`` in the current folder; else the checkout's.
    :raises ConfigError: there is none.
    """
    project = project_dir()
    candidates = [named] if named else [Path("dags"), *([project / "dags"] if project else [])]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate.resolve()
    raise ConfigError(f"There is no folder of DAG files at {candidates[0].absolute()}. Name one with --dags FOLDER.")


def start(plan: Plan, *, log_progress: LogProgress, owner: ProcessId | None) -> AirflowService:
    """Start everything. On an error, or when interrupted, all that was started is stopped again.

    :param log_progress: called with what starts, for a person to read.
    :param owner: the process that stops it at its end; None where it is left running.
    :raises BatchWrapError: something did not start.
    """
    # While it starts, this process answers for it: if it is killed now, the next command stops what it had started.
    record = state.Record(owner=owner or ProcessId.of(os.getpid()))
    record.write(plan.folder)
    try:
        with state.mark(plan.folder):
            service = _start_all(plan, record, log_progress)
    except BaseException:
        state.sweep(plan.folder, grace=1.0)
        raise
    record.state, record.owner = "up", owner
    record.write(plan.folder)
    return service


def _start_all(plan: Plan, record: state.Record, log_progress: LogProgress) -> AirflowService:
    folder = plan.folder
    if plan.port and not airflow.is_free(plan.port):
        raise ConfigError(f"Port {plan.port} is taken, or reserved. Free it, or leave the port out to have one chosen.")
    log_progress("Azurite")
    azurite.install()
    blobs = azurite.start(
        folder / "azurite", log=folder / "azurite.log", tls=_certificate(folder) if plan.tls else None
    )
    _note(record, folder, "azurite", blobs.pid, blobs.url)
    log_progress("the local Batch service")
    batch = _start_batch(folder, plan.tls)
    _note(record, folder, "batch", batch.pid, batch.url)

    def spawned(service: AirflowService) -> None:
        record.airflow = service.processes
        record.addresses["airflow"] = service.url
        record.write(folder)

    log_progress("Airflow")
    return airflow.start(
        folder / "airflow",
        plan.dags,
        results=plan.results,
        port=plan.port,
        host=plan.host,
        env={**home.connections(blobs, batch, keys=False), **batch.identity()}
        if plan.tls
        else home.connections(blobs, batch),
        on_spawn=spawned,
        on_wait=lambda missing: log_progress(f"Airflow: {missing}"),
    )


def _certificate(folder: Path) -> TlsFiles:
    """Make the certificate that both services show: of one authority, which the local Batch service keeps."""
    from airflow_batchwrap.local import tls
    from airflow_batchwrap.local.home import Home

    return tls.make(Home.make(folder / "batch"))


def _start_batch(folder: Path, tls: bool) -> LocalService:
    from airflow_batchwrap.local import runner

    try:
        return runner.launch(folder / "batch", ["--tls"] if tls else [], log=folder / "batch.log")
    except runner.LocalServiceError as error:
        raise BatchWrapError(str(error)) from None


def _note(record: state.Record, folder: Path, name: str, pid: int, url: str) -> None:
    identity = ProcessId.of(pid)
    if identity is not None:
        record.services[name] = identity
    record.addresses[name] = url
    record.write(folder)
