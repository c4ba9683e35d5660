"""Numbered files to ordered stages.

Of Python files it reads the names only, of others the first bytes too, so that a DAG file parses quickly.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.languages import known_by_suffix, language_of

# Characters: Airflow's own limit for a task id (`validate_key`).
# https://github.com/apache/airflow/blob/main/task-sdk/src/airflow/sdk/definitions/_internal/node.py
TASK_ID_LIMIT = 250

_NUMBER = re.compile(r"[0-9]+")
_TASK_ID = re.compile(r"[\w.-]+")
_LEFTOVERS = ("~", ".pyc", ".pyo")  # of editors and of Python: never steps, whatever their names begin with


@dataclass(frozen=True)
class Step:
    """One step file.

    :param name: the file's stem, which is the Airflow task's id: ``1_extract``.
    :param file: the file's name: ``1_extract.py``.
    :param number: what the name starts with; None where it starts with no number.
    :param language: what runs it; see :func:`airflow_batchwrap.languages.language_of`.
    """

    name: str
    file: str
    number: int | None
    language: str = "python"


@dataclass(frozen=True)
class Stage:
    """Steps of one number, in name order; they run side by side."""

    number: int | None
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class StepFolder:
    """A folder's steps, stage by stage in the order in which they run."""

    path: Path
    stages: tuple[Stage, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, in order."""
        return tuple(step for stage in self.stages for step in stage.steps)


def discover(folder: str | os.PathLike[str]) -> StepFolder:
    """Find the steps of a folder.

    Files whose names start with a number are steps, in numeric order; equal numbers are one stage. Where there is
    none, a single ``.py`` file is a workflow of one step, and so is a single ``.sh``, ``.jar``, ``.R`` or ``.jl``
    file where there is no ``.py`` file. Everything else in the folder travels along as a helper; names that start
    with ``_`` or ``.`` are never steps.

    :raises ConfigError: there is no such folder, nothing in it is a step, a file with a number is none, several files
        have no order, or a name cannot be an Airflow task id.
    """
    path = Path(folder)
    names = _names(path)
    numbered = [name for name in names if _number(name) is not None]
    steps = _steps(path, numbered or _without_number(path, names))
    _check_names(path, steps)
    steps.sort(key=lambda step: (step.number or 0, step.name))
    stages = tuple(Stage(number, tuple(group)) for number, group in groupby(steps, key=lambda step: step.number))
    return StepFolder(path, stages)


def _names(path: Path) -> list[str]:
    """Return the names of what may be a step, in order."""
    try:
        with os.scandir(path) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(("_", "."))
                and not entry.name.endswith(_LEFTOVERS)
                and not _is_folder(entry)
            )
    except FileNotFoundError:
        raise ConfigError(f"there is no steps folder {path}: create it, with a step file such as 1_hello.py") from None
    except NotADirectoryError:
        raise ConfigError(f"{path} is a file: steps= is the folder that holds the step files") from None
    except OSError as error:
        raise ConfigError(f"the steps folder {path} cannot be read: {error.strerror}: check its mode") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _without_number(path: Path, names: Sequence[str]) -> list[str]:
    """Return the one file of a folder in which none has a number."""
    known = [name for name in names if known_by_suffix(name) is not None]
    found = [name for name in known if name.endswith(".py")] or known
    if not found:
        raise ConfigError(
            f"the steps folder {path} holds no step file: add one such as 1_hello.py, with "
            "'def do_action(engine, *args): ...' in it, or a program such as 1_hello.sh"
        )
    if len(found) > 1:
        raise ConfigError(
            f"the steps in {path} have no order: {', '.join(found)}: let each name start with its number, as in "
            f"1_{found[0]}; a helper module's name starts with _, or no number where others have one"
        )
    return found


def _steps(path: Path, names: Sequence[str]) -> list[Step]:
    """Return the steps of these names.

    :raises ConfigError: with all files that nothing could run.
    """
    steps, problems = [], []
    for name in names:
        try:
            steps.append(Step(Path(name).stem, name, _number(name), language_of(path / name)))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(f"the steps folder {path}: " + "\n".join(problems))
    return steps


def driver_arguments(args: str | Sequence[Any] | None) -> list[Any]:
    """Turn what the DAG's author gave as ``args`` into the first stage's positional arguments.

    :param args: a string is split as a shell splits words; a list or tuple is taken as it is; None is no argument.
    :raises ConfigError: it is something else, or a string with an open quote.
    """
    if args is None:
        return []
    if isinstance(args, str):
        try:
            return shlex.split(args)
        except ValueError as error:
            raise ConfigError(f"args {args!r} cannot be split into words: {error}: close the quote") from None
    if isinstance(args, list | tuple):
        return list(args)
    raise ConfigError(f"args is a {type(args).__name__}: give a string such as 'input.txt 2 34', or a list of values")


def _number(name: str) -> int | None:
    match = _NUMBER.match(name)
    return int(match.group()) if match else None


def _check_names(path: Path, steps: Sequence[Step]) -> None:
    seen: dict[str, str] = {}
    for step in steps:
        if not _TASK_ID.fullmatch(step.name):
            raise ConfigError(
                f"the step file {step.file!r} in {path} has a name that cannot be an Airflow task id: use letters, "
                "digits, '-', '.' and '_' only"
            )
        if len(step.name) > TASK_ID_LIMIT:
            raise ConfigError(
                f"the step file {step.file!r} in {path} has a name of {len(step.name)} characters: Airflow takes "
                f"{TASK_ID_LIMIT} at most, shorten it"
            )
        other = seen.setdefault(step.name.casefold(), step.file)
        if other != step.file and Path(other).stem == step.name:
            raise ConfigError(f"{other} and {step.file} in {path} are both the step {step.name!r}: rename one")
        if other != step.file:
            raise ConfigError(
                f"the step files {other} and {step.file} in {path} differ in the case of their letters only, which "
                "Azure Batch takes for the same: rename one"
            )
