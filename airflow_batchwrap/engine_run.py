"""A workflow with no Batch at all: the same archive and engine, run here, step after step."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from airflow_batchwrap import archive
from airflow_batchwrap import inputs as input_files
from airflow_batchwrap import steps as step_files
from airflow_batchwrap.engine import protocol
from airflow_batchwrap.exceptions import ConfigError, StepFailed

TAIL_LINES = 20

_SIDE_BY_SIDE = 4  # steps of one stage, on a machine with fewer processors
_INPUTS = "inputs"  # below ``work``, beside the steps' folders


@dataclass(frozen=True)
class StepReport:
    """One step, as it starts and as it ends.

    :param seconds: how long it ran; 0.0 as it starts.
    :param exit_code: None as it starts; negative where a signal ended it.
    :param files: the chosen files, where they were collected to.
    :param stdout: the file that holds what the step printed, growing while it runs; likewise ``stderr``.
    """

    step: str
    state: Literal["running", "done", "failed"]
    stdout: Path
    stderr: Path
    seconds: float = 0.0
    exit_code: int | None = None
    value: Any = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class RunReport:
    """A workflow that ended well.

    :param value: what the last stage handed over: its step's value, or the list of its steps' values.
    :param steps: in the order in which they are numbered.
    """

    value: Any
    steps: tuple[StepReport, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """Every collected file."""
        return tuple(file for step in self.steps for file in step.files)


def run_workflow(
    steps: str | os.PathLike[str],
    args: str | Sequence[Any] | None = None,
    inputs: str | Path | Sequence[str | Path] = (),
    params: Mapping[str, Any] | None = None,
    *,
    work: Path,
    results: Path,
    python: str = sys.executable,
    java_options: Sequence[str] = (),
    on_step: Callable[[StepReport], None] | None = None,
) -> RunReport:
    """Run a folder of steps on this machine, as Batch nodes would run it.

    :param args: the first stage's arguments: a string is split as a shell splits words.
    :param inputs: files and folders that every step finds by name.
    :param params: what steps read from ``engine.params``.
    :param work: where each step gets its working directory; what an earlier run left there is replaced.
    :param results: where chosen files go, as ``<step>/<path>``; the same names are overwritten.
    :param python: the interpreter that runs the steps, 3.8 or newer.
    :param java_options: options of the Java virtual machine for steps that are jars.
    :param on_step: called with each step's report as it starts and as it ends, one call at a time, from other threads
        where steps run side by side.
    :raises ConfigError: the steps folder, the arguments or the inputs cannot be used.
    :raises StepFailed: a step did not succeed; the steps beside it have ended, and none after it was started.
    """
    folder = step_files.discover(steps)
    arguments = [_Handed(value=value) for value in step_files.driver_arguments(args)]
    run = _Run(
        archive.build(folder),
        dict(params or {}),
        work.resolve(),
        results.resolve(),
        python,
        list(java_options),
        on_step or (lambda _: None),
    )
    run.prepare(input_files.collect(inputs, Path.cwd()))
    reports: list[StepReport] = []
    for stage in folder.stages:
        ended = run.stage(stage, arguments)
        reports.extend(report for report, _ in ended)
        if len(ended) > 1:
            arguments = [_Handed(items=[handed for _, handed in ended])]
        else:
            arguments = [ended[0][1]] if ended[0][0].value is not None else []
    values = [report.value for report in reports[-len(folder.stages[-1].steps) :]]
    return RunReport(values[0] if len(values) == 1 else values, tuple(reports))


@dataclass(frozen=True)
class _Handed:
    """A value on its way to the next stage: itself, the file that holds it, or several of these."""

    value: Any = None
    file: Path | None = None
    meta: protocol.ValueFile | None = None
    items: list[_Handed] | None = None

    def argument(self, target: Path, prefix: str) -> protocol.Argument:
        """Put files below the next step's working directory and say where they are."""
        if self.items is not None:
            items = [item.argument(target, f"{prefix}-{index}") for index, item in enumerate(self.items)]
            return protocol.Argument("list", items=items)
        if self.file is None or self.meta is None:
            return protocol.Argument("value", value=self.value)
        name = f"{protocol.ARGUMENTS_DIR}/{prefix}.json"
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(self.file, target / name)
        return protocol.Argument("file", path=name, size=self.meta.size, sha256=self.meta.sha256)


class _Run:
    def __init__(
        self,
        packed: archive.Archive,
        params: dict[str, Any],
        work: Path,
        results: Path,
        python: str,
        java_options: list[str],
        on_step: Callable[[StepReport], None],
    ) -> None:
        self._packed = packed
        self._params = params
        self._work = work
        self._results = results
        self._python = python
        self._java_options = java_options
        self._on_step = on_step
        self._inputs: list[str] = []
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def prepare(self, inputs: list[tuple[str, Path]]) -> None:
        """Copy the inputs once, read-only, so that no step can change the originals."""
        try:
            for name in (_INPUTS, "steps"):
                if (self._work / name).exists():
                    shutil.rmtree(self._work / name)
            for name, source in inputs:
                target = self._work / _INPUTS / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                target.chmod(0o444)
            self._results.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the folder {error.filename} cannot be used: {error.strerror}: give a work and a results folder that "
                "can be written"
            ) from error
        self._inputs = [name for name, _ in inputs]

    def stage(self, stage: step_files.Stage, arguments: list[_Handed]) -> list[tuple[StepReport, _Handed]]:
        """Run a stage's steps side by side; the first failure in name order is raised when all have ended."""
        with ThreadPoolExecutor(min(len(stage.steps), max(_SIDE_BY_SIDE, os.cpu_count() or 1))) as pool:
            futures = [pool.submit(self._step, step, arguments) for step in stage.steps]
            try:
                for future in futures:
                    future.exception()
            except BaseException:  # ctrl-C here: nothing is left running
                self._stop()
                raise
        return [future.result() for future in futures]

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()

    def _step(self, step: step_files.Step, arguments: list[_Handed]) -> tuple[StepReport, _Handed]:
        folder = self._work / "steps" / step.name
        directory = folder / "wd"
        directory.mkdir(parents=True)
        (directory / protocol.ARCHIVE_NAME).write_bytes(self._packed.data)
        report = StepReport(step.name, "running", folder / "stdout.txt", folder / "stderr.txt")
        call = self._call(step, [item.argument(directory, str(index)) for index, item in enumerate(arguments)])
        self._report(report)
        started = time.monotonic()
        exit_code = self._start(directory, call, report)
        seconds = time.monotonic() - started
        result = _read_result(directory)
        files = self._collect(step, directory, result) if result is not None else ()
        if exit_code != protocol.EXIT_DONE or result is None:
            self._report(StepReport(step.name, "failed", report.stdout, report.stderr, seconds, exit_code, None, files))
            raise StepFailed(_failure(step, exit_code, result, report.stderr), exit_code)
        handed = _handed(step, directory, result)
        done = StepReport(step.name, "done", report.stdout, report.stderr, seconds, exit_code, handed.value, files)
        self._report(done)
        return done, handed

    def _call(self, step: step_files.Step, arguments: list[protocol.Argument]) -> str:
        call = protocol.Call(
            step.file,
            arguments,
            context={"task_id": step.name, "map_index": -1, "try_number": 1, "attempt": 1},
            params=self._params,
            inputs=self._inputs,
            inputs_dir=f"../../../{_INPUTS}" if self._inputs else "",  # from steps/<name>/wd; free of '$'
            java_options=self._java_options if step.language == "java" else [],
        )
        try:
            return call.dumps()
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the arguments or parameters cannot be JSON: {error}: use strings, numbers, lists and dicts"
            ) from error

    def _start(self, directory: Path, call: str, report: StepReport) -> int:
        environment = dict(os.environ)
        for name in (protocol.CALL_ENV, protocol.CALL_FILE_ENV):
            environment.pop(name, None)
        if len(call) <= protocol.INLINE_CALL_LIMIT:
            environment[protocol.CALL_ENV] = call
        else:
            (directory / protocol.CALL_FILE).write_text(call, encoding="utf-8")
            environment[protocol.CALL_FILE_ENV] = protocol.CALL_FILE
        with report.stdout.open("wb") as out, report.stderr.open("wb") as err:
            with self._lock:
                if self._stopped:
                    raise StepFailed(f"step {report.step} was not started: the run was stopped")
                try:
                    process = subprocess.Popen(
                        [self._python, protocol.ARCHIVE_NAME],
                        cwd=directory,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=err,
                    )
                except OSError as error:
                    raise ConfigError(
                        f"the interpreter {self._python} cannot be started: {error.strerror}: name another"
                    ) from error
                self._processes.add(process)
            code = process.wait()
            with self._lock:
                self._processes.discard(process)
        return code

    def _collect(self, step: step_files.Step, directory: Path, result: protocol.Result) -> tuple[Path, ...]:
        stored = directory / protocol.OUT_DIR / protocol.FILES_DIR
        base = self._results / step.name
        collected = []
        for file in result.files:
            target = Path(os.path.normpath(base / file.path))
            if base not in target.parents:
                raise StepFailed(f"step {step.name} has a result file {file.path!r} outside its folder: refused")
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)  # it may be a link, or read-only
                shutil.copyfile(stored / file.stored, target)
            except OSError as error:
                raise ConfigError(
                    f"the result file {target} cannot be written: {error.strerror}: give a results folder that can be"
                ) from error
            collected.append(target)
        return tuple(collected)

    def _report(self, report: StepReport) -> None:
        with self._lock:
            self._on_step(report)


def _read_result(directory: Path) -> protocol.Result | None:
    try:
        text = (directory / protocol.OUT_DIR / protocol.RESULT_FILE).read_text(encoding="utf-8")
        return protocol.Result.loads(text)
    except (OSError, ValueError):  # killed before it could write one: the exit code and stderr say why
        return None


def _handed(step: step_files.Step, directory: Path, result: protocol.Result) -> _Handed:
    """The step's value, checked against its sha256 where it lies in a file."""
    if result.value_file is None:
        return _Handed(value=result.value)
    path = directory / protocol.OUT_DIR / result.value_file.path
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != result.value_file.sha256:
        raise StepFailed(f"the value of step {step.name} in {path} changed after the step ended: run it again")
    return _Handed(json.loads(data), path, result.value_file)


def _failure(step: step_files.Step, exit_code: int, result: protocol.Result | None, stderr: Path) -> str:
    how = f"with exit code {exit_code}"
    if exit_code < 0:
        how = f"by signal {-exit_code} ({signal.Signals(-exit_code).name})"
    error = result.error if result is not None else None
    text = f"step {step.name} ended {how}"
    printed = stderr.read_text(encoding="utf-8", errors="replace")
    if error is not None:
        text += f": {error.type}: {error.message}" if error.type != "Unusable" else f": {error.message}"
        if error.traceback:
            text += f"\n{error.traceback.rstrip()}"
            printed = printed.replace(error.traceback, "")  # shown once
    tail = [line for line in printed.splitlines() if not line.startswith("batchwrap: ")][-TAIL_LINES:]
    if result is None:
        tail = printed.splitlines()[-TAIL_LINES:]
    if tail:
        text += f"\nThe end of its stderr ({stderr}):\n" + "\n".join(tail)
    return text
