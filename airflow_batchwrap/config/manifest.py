"""Which steps to run with which arguments: ``task.json``."""

from __future__ import annotations

import os
import re
from typing import Any, Self

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from airflow_batchwrap.config.base import ConfigModel, describe, explain, same
from airflow_batchwrap.config.files import caller_folder, read_json_object, resolve_path
from airflow_batchwrap.exceptions import ConfigError

# https://learn.microsoft.com/rest/api/storageservices/Naming-and-Referencing-Containers--Blobs--and-Metadata
_CONTAINER = re.compile(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*")

# Old or other name -> key; the upper-case ones are the predecessor's.
FILE_ALIASES = {
    "TASK_OUTPUT_CONTAINER": "output_container",
    "JOB_MANIFEST": "tasks",
    "TASKS": "tasks",
    "entries": "tasks",
    "TASK_MODULES": "steps",
    "TASK_ARGS": "args",
    "TASK_MODULES_DIRECTORY": "steps_folder",
}
ENTRY_ALIASES = {
    "TASK_MODULE": "step",
    "TASK": "step",
    "task": "step",
    "TASK_INPUT": "args",
    "TASK_ARGS": "args",
    "input": "args",
}


def check_container_name(name: str) -> str:
    """Return the name of a Blob container if Azure takes it.

    :raises ValueError: it does not.
    """
    if not _CONTAINER.fullmatch(name):
        raise ValueError(
            "not a container's name: use 3 to 63 lower-case letters, digits and single dashes, "
            "with a letter or digit at both ends"
        )
    return name


class ManifestEntry(ConfigModel):
    """One step, or one command, to run as one Batch task.

    :param step: the step file's name.
    :param args: one string, split as a shell splits words, or the positional arguments themselves.
    :param command: a command line for a shell on the node, instead of a step.
    """

    model_config = ConfigDict(str_strip_whitespace=False)

    step: str = ""
    args: str | tuple[Any, ...] = ()
    command: str = ""

    @model_validator(mode="before")
    @classmethod
    def _one_of_the_two(cls, data: Any) -> Any:
        if isinstance(data, dict):
            if ("step" in data) == ("command" in data):
                raise ValueError("use either a step or a command, and not both")
            if "command" in data and data.get("args"):
                raise ValueError("a command takes no args: write them into the command")
        return data

    @field_validator("command")
    @classmethod
    def _something_to_run(cls, value: str) -> str:
        if not value.strip():
            raise ValueError('use a command line, such as "sort words.txt"')
        return value

    @field_validator("step")
    @classmethod
    def _a_file_name(cls, value: str) -> str:
        if not value.strip() or value in (".", "..") or "/" in value or "\\" in value:
            raise ValueError("use the name of a step file, such as 1_task.py, without a folder")
        return value.strip()

    @field_validator("args", mode="before")
    @classmethod
    def _nothing_is_none(cls, value: Any) -> Any:
        if value is None:
            return ()
        if isinstance(value, (str, list, tuple)):
            return value
        raise ValueError('use a string, such as "input.txt 2 34", or a JSON array of the arguments')


class Manifest(ConfigModel):
    """A manifest: its entries are run side by side, each step with its own arguments.

    :param output_container: the Blob container for results; None leaves it to the workflow.
    :param entries: what to run, in the file's order.
    :param steps: the step files that an older file lists as its workflow.
    :param steps_folder: where an older file says they are.
    :param args: the first step's arguments in an older file.
    """

    output_container: str | None = None
    entries: tuple[ManifestEntry, ...] = Field(default=(), alias="tasks")
    steps: tuple[str, ...] = ()
    steps_folder: str | None = None
    args: str | tuple[Any, ...] = ()

    @field_validator("output_container")
    @classmethod
    def _legal(cls, value: str | None) -> str | None:
        return None if value is None else check_container_name(value)

    def mapped(self) -> list[dict[str, Any]]:
        """Return the entries as ``RunBatchTaskOperator.partial(...).expand_kwargs`` takes them: one task each."""
        return [
            {"command": entry.command}
            if entry.command
            else {"step": entry.step, "args": entry.args if isinstance(entry.args, str) else list(entry.args)}
            for entry in self.entries
        ]

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Self:
        """Read a manifest.

        :param path: a relative one is looked for beside the file of the caller, then in the working directory.
        :raises ConfigError: with all that is wrong in it.
        """
        file = resolve_path(path, caller_folder())
        return cls.from_dict(read_json_object(file), source=str(file))

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, source: str = "manifest") -> Self:
        """Build a manifest from the content of a file.

        :raises ConfigError: with all that is wrong in it.
        """
        values, problems = _renamed(data, FILE_ALIASES)
        tasks = values.get("tasks", [])
        if isinstance(tasks, (list, tuple)):
            values["tasks"] = [_entry(item, index, problems) for index, item in enumerate(tasks)]
        if values.get("steps_folder") == "":
            del values["steps_folder"]
        try:
            manifest = cls.model_validate(values)
        except ValidationError as error:
            problems += explain(error, known=["output_container", "tasks", "steps", "steps_folder", "args"])
            raise ConfigError(describe(source, problems)) from None
        if not manifest.entries and not manifest.steps:
            problems.append('it lists nothing to run: add "tasks": [{"step": "1_task.py", "args": "input.txt 2 34"}].')
        if problems:
            raise ConfigError(describe(source, problems))
        return manifest


def _renamed(data: dict[str, Any], aliases: dict[str, str], place: str = "") -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    named: dict[str, str] = {}
    problems = []
    for name, value in data.items():
        key = aliases.get(name, name)
        if key in values and not same(values[key], value):
            problems.append(f"{place}{named[key]} and {name} are two names of one key with different values: keep one.")
            continue
        values[key], named[key] = value, name
    return values, problems


def _entry(item: Any, index: int, problems: list[str]) -> Any:
    """Return an entry's keys, from an object or from the predecessor's pair ``["1_task.py", "input.txt 2 34"]``."""
    if isinstance(item, (list, tuple)) and 1 <= len(item) <= 2:
        return {"step": item[0], "args": item[1] if len(item) == 2 else None}
    if isinstance(item, str):
        return {"step": item}
    if isinstance(item, dict):
        values, found = _renamed(item, ENTRY_ALIASES, f"tasks.{index}.")
        problems += found
        return values
    return item
