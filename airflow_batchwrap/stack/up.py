"""``batchwrap up``, ``down`` and ``status``: the same services, left running until they are stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from airflow_batchwrap.exceptions import BatchWrapError, ConfigError
from airflow_batchwrap.stack import airflow, home, services, state
from airflow_batchwrap.stack.demo import ending_by_signal, start_services, undisturbed

# Airflow's own port, which people look for; another one is chosen where it is taken.
_USUAL_PORT = 8080
# Between two looks at whether all of it still runs.
_LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class UpOptions:
    """What is to be left running.

    :param dags: the folder of DAG files; None to look for it.
    :param base: the folder that holds the state directories.
    :param port: Airflow's port; 0 for 8080 where it is free, and another one where it is taken.
    :param host: the address that Airflow listens on. Other than loopback only where nothing else can reach it.
    :param tls: whether the services speak TLS, and an identity signs in.
    """

    dags: Path | None
    base: Path
    port: int = 0
    host: str = home.LOOPBACK
    tls: bool = False


def up(options: UpOptions, console: Console) -> None:
    """Start everything and leave it running. Where it already runs, say where.

    :raises BatchWrapError: something did not start.
    """
    dags = services.find_dags(options.dags)
    base = state.make_folder(options.base)
    folder = state.make_folder(base / "up")
    with _alone(folder):
        state.sweep_abandoned(base)
        record = state.Record.read(folder)
        if record is not None and not record.died():
            console.print("Already running.")
            _show_address(record, folder, console)
            return
        if record is not None:
            console.print(f"No longer running: {escape(', '.join(record.died()))}. Starting afresh.")
            state.sweep(folder)
        port = options.port or (_USUAL_PORT if airflow.is_free(_USUAL_PORT) else 0)
        plan = services.Plan(folder, dags, folder / "results", port, options.host, options.tls)
        start_services(plan, console, owner=None)
        record = state.Record.read(folder) or state.Record()
        _show_address(record, folder, console)
    console.print("Stop it with: batchwrap down (or make down)")


def up_and_wait(options: UpOptions, console: Console) -> None:
    """Start everything, and stop it when this process is asked to end: for a container, or a service manager.

    :raises BatchWrapError: something did not start, or a part of it ends.
    """
    folder = options.base.resolve() / "up"
    with ending_by_signal():
        up(options, console)
        try:
            while True:
                record = state.Record.read(folder)
                if record is None:
                    return  # stopped by another command
                for name in record.died():
                    raise BatchWrapError(f"{name} ended by itself; see its log below {folder}. The rest is stopped.")
                time.sleep(_LOOK_SECONDS)
        finally:
            with undisturbed():
                down(options.base, console)


def down(base: Path, console: Console) -> None:
    """Stop what ``up`` left running, and what killed commands did. Databases, blobs and results stay.

    :param base: the folder that holds the state directories.
    """
    base = base.resolve()
    folder = base / "up"
    stopped = 0
    if folder.is_dir():
        with _alone(folder), console.status("Stopping"):
            stopped = state.sweep(folder)
    stopped += len(state.sweep_abandoned(base)) if base.is_dir() else 0
    console.print("Stopped." if stopped else "Nothing runs.")


def status(base: Path, console: Console) -> bool:
    """Show what runs.

    :param base: the folder that holds the state directories.
    :return: True if all of it runs; False if a part has ended, or nothing was started.
    """
    folder = base.resolve() / "up"
    record = state.Record.read(folder)
    if record is None:
        console.print("Nothing runs. Start it with: batchwrap up")
        return False
    died = record.died()
    table = Table()
    for heading in ("component", "state", "pid", "address", "log"):
        table.add_column(heading, overflow="fold")
    for name, each in {**record.services, **record.airflow}.items():
        log = folder / f"{name}.log" if name in record.services else folder / "airflow" / f"{name}.log"
        shown = "[red]died[/]" if name in died else "[green]running[/]"
        address = record.addresses.get("airflow" if name == "api-server" else name, "-")
        table.add_row(name, shown, str(each.pid), address, escape(_short(log)))
    console.print(table)
    if not died:
        _show_address(record, folder, console)
    return not died and record.state == "up"


def _show_address(record: state.Record, folder: Path, console: Console) -> None:
    console.print(f"Airflow: {record.addresses.get('airflow', '-')}", soft_wrap=True)
    password = home.password(folder / "airflow")
    console.print(f"Log in as {home.USER!r} with the password {password!r}", highlight=False, soft_wrap=True)
    console.print(f"Result files: {_short(folder / 'results')}", highlight=False, markup=False, soft_wrap=True)


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep two commands from starting and stopping at once; the lock goes with the process that holds it."""
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise ConfigError(f"Another batchwrap command is at work in {folder}. Wait until it is done.") from None
