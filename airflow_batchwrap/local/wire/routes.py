"""Which operation a request names: a table read from operations.json, all of the data plane in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from airflow_batchwrap.local.wire.errors import BatchError


@dataclass(frozen=True)
class Operation:
    """One REST operation.

    :param name: its name, as the SDK calls it.
    :param method: the HTTP verb.
    :param path: the path's template.
    :param status: the status of success.
    :param query: the query parameters it takes beside api-version and timeout.
    """

    name: str
    method: str
    path: str
    status: int
    query: frozenset[str]


@dataclass
class _Branch:
    literals: dict[str, _Branch] = field(default_factory=dict)
    parameter: tuple[str, _Branch] | None = None
    operations: dict[str, Operation] = field(default_factory=dict)


def _load() -> tuple[dict[str, Operation], _Branch]:
    rows = json.loads((Path(__file__).parent / "operations.json").read_text())
    named: dict[str, Operation] = {}
    root = _Branch()
    for name, method, path, status, query in rows:
        operation = named[name] = Operation(name, method, path, status, frozenset(query))
        branch = root
        for segment in path.strip("/").split("/"):
            if segment.startswith("{"):
                if branch.parameter is None:
                    branch.parameter = (segment.strip("{}"), _Branch())
                branch = branch.parameter[1]
            else:
                branch = branch.literals.setdefault(segment, _Branch())
        branch.operations[method] = operation
    return named, root


OPERATIONS, _ROOT = _load()


def find(method: str, raw_path: str) -> tuple[Operation, dict[str, str]]:
    """The operation a request names.

    :param method: the HTTP verb.
    :param raw_path: the path as sent, percent-encoded.
    :return: the operation and the decoded parameters of its path.
    :raises BatchError: the path or the verb is not one of Batch's.
    """
    branch, parameters = _ROOT, {}
    segments = raw_path.strip("/").split("/")
    for index, segment in enumerate(segments):
        following = branch.literals.get(segment) or branch.literals.get(segment.lower())
        if following is not None:
            branch = following
            continue
        if branch.parameter is None:
            raise BatchError("InvalidUri")
        name, branch = branch.parameter
        if name == "filePath":
            # The SDK sends a file's path as one segment (%2F); others send its slashes as they are.
            # A file's name is bytes, which need not be UTF-8.
            parameters[name] = unquote("/".join(segments[index:]), errors="surrogateescape")
            break
        parameters[name] = unquote(segment)
    operation = branch.operations.get(method)
    if operation is None:
        raise BatchError("UnsupportedHttpVerb" if branch.operations else "InvalidUri")
    return operation, parameters
