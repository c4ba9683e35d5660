"""The contract between Airflow's side and the engine on the node. Version 1.

Airflow's side imports this module; the engine, the weaker side, owns it. Everything that crosses is JSON.

One run of a step, in the Batch task's working directory:

* The archive arrives as :data:`ARCHIVE_NAME` and is started by ``python3 batchwrap.pyz``, once the shell that does so
  has found that its sha256 is the one that was packed; else the exit code is :data:`EXIT_ENGINE_FAILED`.
* The *call* says what to run. It is the value of :data:`CALL_ENV` where that is at most :data:`INLINE_CALL_LIMIT`
  bytes; a larger one is the file that :data:`CALL_FILE_ENV` names, relative to the working directory.
* What only this Batch task may read (*secrets*) is the file that the call's ``secrets_file`` names: JSON with the
  environment variables and the parameters that are not to stand in the call or among the Batch task's own variables.
* The engine leaves its answer below :data:`OUT_DIR`: :data:`RESULT_FILE` (the *result record*, always),
  :data:`VALUE_FILE` (the value, where it is too large for the record) and the files the step chose, below
  :data:`FILES_DIR`.
* A step file that is no Python runs as a program of its own. What it is given and leaves lies below
  :data:`EXCHANGE_DIR`, in the files and folders that the environment variables :data:`ARGS_ENV` and the following
  name: ``engine``, which a Python step gets, is the same for Python.
* The exit code says who has to act: :data:`EXIT_DONE`, :data:`EXIT_STEP_RAISED`, :data:`EXIT_UNUSABLE`,
  :data:`EXIT_ENGINE_FAILED`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Optional

PROTOCOL_VERSION = 1

ARCHIVE_NAME = "batchwrap.pyz"
CALL_ENV = "BATCHWRAP_CALL"
CALL_FILE_ENV = "BATCHWRAP_CALL_FILE"
CALL_FILE = "batchwrap-call.json"
SECRETS_FILE = "batchwrap-secrets.json"  # for a step
SECRETS_SCRIPT = "batchwrap-secrets.sh"  # for a command, which a shell reads first
ARGUMENTS_DIR = "batchwrap-arguments"  # values that travel as files, one file each
STEPS_DIR = "batchwrap-steps"  # where the engine unpacks the archive's steps
EXCHANGE_DIR = "batchwrap-exchange"  # between the engine and a step that is no Python
OUT_DIR = "batchwrap-out"  # no leading dot: Batch's output file patterns skip dot-files
RESULT_FILE = "result.json"
VALUE_FILE = "value.json"
FILES_DIR = "files"

# What runs a step file, by its suffix; any other one is a program that the node's system starts itself.
PYTHON_SUFFIX = ".py"
INTERPRETERS = {".sh": "bash", ".jar": "java", ".R": "Rscript", ".r": "Rscript", ".jl": "julia"}

# What a step that is no Python finds in its environment: names of files, JSON but for the folders.
ARGS_ENV = "BATCHWRAP_ARGS"  # a list: the arguments
PARAMS_ENV = "BATCHWRAP_PARAMS"  # an object: the DAG run's parameters
CONTEXT_ENV = "BATCHWRAP_CONTEXT"  # an object: dag_id, run_id, task_id, map_index, try_number, attempt
RESULT_ENV = "BATCHWRAP_RESULT"  # not there yet: what the step writes into it is its value
OUTPUT_ENV = "BATCHWRAP_OUTPUT"  # a folder: what the step puts into it is uploaded
INPUTS_ENV = "BATCHWRAP_INPUTS"  # a folder: the inputs
STEPS_ENV = "BATCHWRAP_STEPS"  # a folder: the steps, and what travels with them

# Bytes of JSON that a step may leave as its value in a file: as much as a result record may have.
RESULT_LIMIT = 256 * 1024 * 1024

# The one key of what stands in an XCom for a value in Blob. No record's own value has it: it would be taken for one.
REFERENCE = "batchwrap_reference"

INLINE_VALUE_LIMIT = 48 * 1024  # bytes of JSON that a result record, and so an XCom, carries itself
INLINE_CALL_LIMIT = 4 * 1024  # bytes of JSON that an environment variable carries
# Of values. Readers of JSON recurse: Python's own gives up near 1000 levels, databases and browsers earlier.
DEPTH_LIMIT = 200

# Keys of a dict that mean something in an XCom. Airflow's:
# https://github.com/apache/airflow/blob/main/task-sdk/src/airflow/sdk/serde/__init__.py (CLASSNAME, SCHEMA_ID).
_RESERVED = frozenset({"__classname__", "__id__", REFERENCE})
# There too (OLD_TYPE, OLD_DATA): the two together.
_OLD_RESERVED = frozenset({"__type", "__var"})

EXIT_DONE = 0
EXIT_STEP_RAISED = 1  # the user's code raised
EXIT_UNUSABLE = 2  # the step or its arguments cannot be used
EXIT_ENGINE_FAILED = 3  # the engine itself failed

DONE = "done"
STEP_RAISED = "step_raised"
UNUSABLE = "unusable"
ENGINE_FAILED = "engine_failed"
EXIT_CODES = {
    DONE: EXIT_DONE,
    STEP_RAISED: EXIT_STEP_RAISED,
    UNUSABLE: EXIT_UNUSABLE,
    ENGINE_FAILED: EXIT_ENGINE_FAILED,
}


class ProtocolError(ValueError):
    """What arrived does not follow this protocol, or follows another version of it."""


@dataclass(frozen=True)
class Argument:
    """One value for the step: ``kind`` says which of the three it is.

    :param kind: ``value`` (in ``value``), ``file`` (JSON in the file ``path``, relative to the working directory,
        with its ``size`` in bytes and ``sha256``) or ``list`` (the values of ``items``, in order).
    """

    kind: str
    value: Any = None
    path: str = ""
    size: int = 0
    sha256: str = ""
    items: List[Argument] = field(default_factory=list)

    def to_json(self) -> Dict[str, Any]:
        if self.kind == "value":
            return {"kind": "value", "value": self.value}
        if self.kind == "file":
            return {"kind": "file", "path": self.path, "size": self.size, "sha256": self.sha256}
        return {"kind": "list", "items": [item.to_json() for item in self.items]}

    @classmethod
    def from_json(cls, data: Dict[str, Any]) -> Argument:
        try:
            kind = data["kind"]
            if kind == "value":
                return cls("value", value=data["value"])
            if kind == "file":
                return cls("file", path=data["path"], size=data["size"], sha256=data["sha256"])
            if kind == "list":
                return cls("list", items=[cls.from_json(item) for item in data["items"]])
        except (KeyError, TypeError) as error:
            raise ProtocolError(f"an argument is malformed: {type(error).__name__}: {error}") from error
        raise ProtocolError(f"an argument of kind {kind!r} is not known to protocol version {PROTOCOL_VERSION}")


@dataclass(frozen=True)
class Call:
    """What to run.

    :param step: the step file's name below the archive's steps, such as ``1_extract.py``.
    :param arguments: the positional arguments of ``do_action`` after the engine.
    :param context: dag_id, run_id, task_id, map_index, try_number, attempt; strings and integers.
    :param params: the DAG run's parameters, as the step reads them from ``engine.params``.
    :param inputs: the input files' names, relative to the input directory, as the step sees them.
    :param inputs_dir: where the input files are: absolute, or relative to the working directory, with ``$NAME``
        expanded from the environment; empty where there are none.
    :param output_container: the Blob container that the step's files go to; empty outside Batch.
    :param secrets_file: a file of :class:`Secrets`, relative to the working directory; empty where there are none.
    :param java_options: options of the virtual machine, for a step that is a jar.
    """

    step: str
    arguments: List[Argument] = field(default_factory=list)
    context: Dict[str, Any] = field(default_factory=dict)
    params: Dict[str, Any] = field(default_factory=dict)
    inputs: List[str] = field(default_factory=list)
    inputs_dir: str = ""
    output_container: str = ""
    secrets_file: str = ""
    java_options: List[str] = field(default_factory=list)
    protocol: int = PROTOCOL_VERSION

    def dumps(self) -> str:
        # Not asdict, whose copies cost ten times as much as the JSON. Keys stay in their order: a step may well go
        # through a dict in the order it was made.
        data = dict(vars(self))
        data["arguments"] = [argument.to_json() for argument in self.arguments]
        for later in ("secrets_file", "java_options"):
            if not data[later]:
                del data[later]  # an engine that was packed before this field was added refuses it
        return json.dumps(data, allow_nan=False, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> Call:
        data = _object(text, "call")
        try:
            data["arguments"] = [Argument.from_json(item) for item in data.get("arguments", [])]
            return cls(**data)
        except TypeError as error:  # a field that is missing or unknown
            raise ProtocolError(f"the call is malformed: {error}") from error


@dataclass(frozen=True)
class Secrets:
    """What travels beside the call, in a file that the Batch task alone may fetch.

    :param environment: environment variables for the step and for what it starts.
    :param params: parameters that belong to the call's own.
    """

    environment: Dict[str, str] = field(default_factory=dict, repr=False)
    params: Dict[str, Any] = field(default_factory=dict, repr=False)
    protocol: int = PROTOCOL_VERSION

    def __bool__(self) -> bool:
        return bool(self.environment or self.params)

    def dumps(self) -> str:
        return json.dumps(vars(self), allow_nan=False, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> Secrets:
        data = _object(text, "secrets file")
        try:
            return cls(**data)
        except TypeError as error:  # a field that is missing or unknown: its name, and no value
            raise ProtocolError(f"the secrets file is malformed: {error}") from error


@dataclass(frozen=True)
class ValueFile:
    """The value, in a file of its own below :data:`OUT_DIR`."""

    path: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class ResultFile:
    """One file that the step chose.

    :param path: as the step named it, relative to the working directory, with forward slashes.
    :param stored: where it lies below :data:`FILES_DIR`; differs from ``path`` only where a component of it starts
        with a dot, which Batch's output file patterns would skip.
    """

    path: str
    stored: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class StepError:
    """The exception that ended the step: type name, message, and the traceback as Python prints it."""

    type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class Result:
    """The result record.

    :param outcome: one of :data:`DONE`, :data:`STEP_RAISED`, :data:`UNUSABLE`, :data:`ENGINE_FAILED`.
    :param value: what ``do_action`` returned, where it is small enough; else None, with ``value_file`` given.
    :param started: UTC, ISO 8601; likewise ``ended``.
    """

    outcome: str
    started: str
    ended: str
    value: Any = None
    value_file: Optional[ValueFile] = None
    files: List[ResultFile] = field(default_factory=list)
    error: Optional[StepError] = None
    python: str = ""
    protocol: int = PROTOCOL_VERSION

    def dumps(self) -> str:
        return json.dumps(asdict(self), allow_nan=False, indent=1)

    @classmethod
    def loads(cls, text: str) -> Result:
        """Read a record, which anything on the node may have written: each part is what it is said to be, or refused.

        :raises ProtocolError: it is not a result record.
        """
        data = _object(text, "result record")
        try:
            if data.get("value_file") is not None:
                data["value_file"] = ValueFile(**data["value_file"])
            if data.get("error") is not None:
                data["error"] = StepError(**data["error"])
            data["files"] = [ResultFile(**item) for item in data.get("files", [])]
            result = cls(**data)
        except TypeError as error:  # a field that is missing or unknown
            raise ProtocolError(f"the result record is malformed: {error}") from error
        result._check()
        return result

    def _check(self) -> None:
        _typed(self, str, "outcome", "started", "ended", "python")
        if self.outcome not in EXIT_CODES:
            raise ProtocolError(f"the result record is malformed: its outcome is {self.outcome[:80]!r}")
        for file in [*self.files, *([self.value_file] if self.value_file else [])]:
            _typed(file, int, "size")
            _typed(file, str, "path", "sha256")
        for file in self.files:
            _typed(file, str, "stored")
        if self.value_file is not None and self.value_file.path != VALUE_FILE:
            raise ProtocolError(f"the result record is malformed: its value is to be in {self.value_file.path[:80]!r}")
        if self.error is not None:
            _typed(self.error, str, "type", "message", "traceback")
        # In this order: what is too deep cannot be measured.
        if not fits_xcom(self.value) or len(json.dumps(self.value, separators=(",", ":"))) > INLINE_VALUE_LIMIT:
            raise ProtocolError("the result record is malformed: it holds a value that had to go into a file")


def fits_xcom(value: Any) -> bool:
    """Return whether every part of a JSON value can be stored as an XCom, and comes back from there as it is.

    Airflow's workers send XComs as msgpack, whose whole numbers have 64 bits and whose strings are UTF-8 (a file name
    that is not UTF-8 holds lone surrogates); PostgreSQL's jsonb, where it keeps them, has no NUL. A dict with the keys
    that Airflow's own serialization uses is refused there, or comes back as another object.
    """
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if depth > DEPTH_LIMIT:
            return False
        if isinstance(item, dict):
            if not _RESERVED.isdisjoint(item) or _OLD_RESERVED.issubset(item):
                return False
            stack.extend((key, depth) for key in item)
            stack.extend((child, depth + 1) for child in item.values())
        elif isinstance(item, list):
            stack.extend((child, depth + 1) for child in item)
        elif isinstance(item, str):
            if any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in item):
                return False
        elif isinstance(item, int):
            if not -(2**63) <= item < 2**63:
                return False
        elif isinstance(item, float) and not math.isfinite(item):
            return False
    return True


def _typed(part: object, kind: type, *names: str) -> None:
    for name in names:
        value = getattr(part, name)
        if type(value) is not kind:
            raise ProtocolError(
                f"the result record is malformed: {name} is a {type(value).__name__}, not a {kind.__name__}"
            )


def _object(text: str, what: str) -> Dict[str, Any]:
    """Parse a JSON object of this protocol's version."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ProtocolError(f"the {what} is not JSON: {error}") from error
    except RecursionError:
        raise ProtocolError(f"the {what} is nested too deeply to be one") from None
    if not isinstance(data, dict):
        raise ProtocolError(f"the {what} is a {type(data).__name__}, not a JSON object")
    if data.get("protocol") != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the {what} follows protocol {data.get('protocol')!r}, this side follows {PROTOCOL_VERSION}: "
            "pack the archive and run the workflow with the same version of airflow-batchwrap"
        )
    return data
