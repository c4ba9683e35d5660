"""``batchwrap demo``: one run of a DAG on a real Airflow, shown as it goes, with nothing left running."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape

from airflow_batchwrap.exceptions import StepFailed
from airflow_batchwrap.local.node import removal
from airflow_batchwrap.stack import report, services, state
from airflow_batchwrap.stack.airflow import AirflowService
from airflow_batchwrap.stack.process import ProcessId

# A demo's services hold nothing worth waiting for.
_STOP_GRACE = 1.0
JAVA_EXAMPLE = "java_pi"


@dataclass(frozen=True)
class DemoOptions:
    """What a demo is asked to do.

    :param dags: the folder of DAG files; None to look for it.
    :param base: the folder below which the demo gets a state directory of its own.
    :param keep: keep databases, blobs and logs, and not only the result files.
    :param timeout: seconds that the run may take.
    :param tls: whether the services speak TLS, and an identity signs in.
    """

    dag: str
    dags: Path | None
    base: Path
    keep: bool = False
    timeout: float = 600.0
    tls: bool = False


def run(options: DemoOptions, console: Console) -> None:
    """Start everything, run the DAG once, show what came of it, and stop everything.

    :raises StepFailed: the run failed, naming the task and the end of its log.
    :raises BatchWrapError: something did not start.
    """
    started = time.monotonic()
    dags = services.find_dags(options.dags)
    base = state.make_folder(options.base)
    for folder in state.sweep_abandoned(base):
        console.print(f"Stopped what an earlier command had left running: {escape(str(folder))}")
    folder = state.make_folder(base / time.strftime(f"demo-%Y%m%d-%H%M%S-{os.getpid()}"))
    plan = services.Plan(folder, dags, folder / "results", tls=options.tls)
    succeeded = False
    with ending_by_signal():
        try:
            _run(plan, options, console)
            succeeded = True
        except KeyboardInterrupt:
            console.print("Interrupted.")
            raise
        finally:
            with undisturbed(), console.status("Stopping"):
                state.sweep(folder, grace=_STOP_GRACE)
                _tidy(folder, everything=succeeded and not options.keep)
    if options.keep:
        console.print(f"Kept databases, blobs and logs: {escape(str(folder))}", soft_wrap=True)
    console.print(f"Everything is stopped. {time.monotonic() - started:.0f} s in all.")


def _run(plan: services.Plan, options: DemoOptions, console: Console) -> None:
    airflow = start_services(plan, console, owner=ProcessId.of(os.getpid()))
    with console.status(f"Waiting for Airflow to read the DAG {escape(options.dag)}"):
        airflow.wait_for_dag(options.dag)
    with airflow.client() as client:
        run = report.Run(client, options.dag, client.trigger(options.dag))
        console.print(f"Running {escape(options.dag)}  {escape(run.run_id)}")
        progress = report.Progress(console)
        with console.status(f"Running {escape(options.dag)}"):
            outcome = client.wait_for_run(options.dag, run.run_id, timeout=options.timeout, on_change=progress)
        tasks = client.task_instances(options.dag, run.run_id)
        console.print(report.table(run, tasks))
        if outcome != "success":
            failed = report.failures(run, tasks)
            ends = "\n\n".join(f"{name} failed. The end of its log:\n{log}" for name, log in failed)
            raise StepFailed(
                f"The run {run.run_id} of {options.dag} failed. Databases, blobs and logs: {plan.folder}\n\n{ends}"
            )
        console.print(f"Value: {escape(report.value_text(report.final_value(run, tasks)))}")
        files = report.fetched_files(run, tasks)
        console.print("Fetched files:" if files else "No files were fetched.")
        for path in files:
            # A path is for a person to copy: never broken over two lines.
            console.print(f"  {path}", soft_wrap=True, highlight=False, markup=False)
        _mention_java(options, console)


def _mention_java(options: DemoOptions, console: Console) -> None:
    """Say how to see the Java example, which builds its jar first and so is no part of the demo's minute."""
    if options.dag == JAVA_EXAMPLE:
        return
    if shutil.which("javac"):
        console.print(f"The Java example: make demo ARGS='--dag {JAVA_EXAMPLE}'", highlight=False)
    else:
        console.print(f"The Java example, {JAVA_EXAMPLE}, is skipped: there is no javac on PATH.", highlight=False)


def start_services(plan: services.Plan, console: Console, *, owner: ProcessId | None) -> AirflowService:
    """Start everything, and show what is waited for.

    :param owner: the process that stops it at its end; None where it is left running.
    """
    began = time.monotonic()
    shown = ""
    with console.status("Starting") as status:

        def log_progress(what: str) -> None:
            nonlocal shown
            status.update(f"Starting {escape(what)}")
            component = what.partition(":")[0]
            if component != shown:
                shown = component
                console.print(f"Starting {escape(component)}")

        service = services.start(plan, log_progress=log_progress, owner=owner)
    console.print(f"All of it answers after {time.monotonic() - began:.0f} s.")
    return service


@contextlib.contextmanager
def ending_by_signal() -> Iterator[None]:
    """End in order, as after Ctrl-C, when asked to by a signal or when the terminal is closed."""

    def end(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep a second Ctrl-C from leaving things running: stopping takes a few seconds at most."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tidy(folder: Path, *, everything: bool) -> None:
    """Remove what a demo that went well leaves behind, except its result files."""
    if everything:
        for path in folder.iterdir():
            if path.name == "results":
                continue
            if path.is_dir() and not path.is_symlink():
                # As an ordinary user too, whose steps may have locked their directories.
                removal.remove(path)
            else:
                path.unlink(missing_ok=True)
