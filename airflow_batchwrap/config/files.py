"""Reading and writing configuration files, and finding them from where a DAG file stands."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from airflow_batchwrap.exceptions import ConfigError

# Frames of these stand between a DAG file and the code that wants to know it.
_NOT_A_CALLER = frozenset({"airflow", "airflow_batchwrap", "contextlib", "functools", "pydantic"})


def caller_folder() -> Path | None:
    """Return the folder of the file that called into this package: the DAG file, where one is being parsed.

    :return: None where there is no such file: an interactive session, ``python -c``.
    """
    frame = sys._getframe(1)
    while True:
        name = str(frame.f_globals.get("__name__", ""))
        file = frame.f_code.co_filename
        if name.partition(".")[0] not in _NOT_A_CALLER and not file.startswith("<"):
            return Path(file).resolve().parent
        if frame.f_back is None:
            return None
        frame = frame.f_back


def resolve_path(path: str | os.PathLike[str], base: Path | None = None) -> Path:
    """Return an absolute path: as it is, else under ``base`` where it exists there, else under the working directory.

    :param path: ``~`` is the home directory.
    :param base: the folder of the DAG file; None leaves the working directory alone.
    :return: where nothing exists, the path under ``base``, so that the error names the place that was meant.
    """
    given = Path(path).expanduser()
    if given.is_absolute():
        return given
    if base is None:
        return Path.cwd() / given
    there, here = base / given, Path.cwd() / given
    return here if not there.exists() and here.exists() else there


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, strictly: a key that is given twice is refused, for one of the two would be lost.

    :raises ConfigError: it cannot be read, is not JSON, or is not an object.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist. Create it, or pass the path of the file you mean.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, not a file. Pass the path of the JSON file in it.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text. Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from None
    try:
        data = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}. "
            "Mind a missing or trailing comma, and use double quotes."
        ) from None
    except _BadJson as error:
        raise ConfigError(f"{path}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply to be a configuration file.") from None
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path} holds a JSON {_json_type(data)}, not an object: begin it with {{ and end it with }}."
        )
    return data


class _BadJson(Exception):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _BadJson(f"the key {key!r} is given twice. Keep the one you mean.")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise _BadJson(f"{name} is not a JSON value. Use a number, a string or null.")


def _json_type(value: object) -> str:
    if isinstance(value, list):
        return "array"
    return "string" if isinstance(value, str) else "number, boolean or null"


def write_json(path: Path, data: dict[str, Any], *, private: bool = False) -> None:
    """Write a JSON file in one step: a reader sees the old file or the new one, never half of it.

    :param private: readable by its owner alone, for a file with secrets.
    :raises ConfigError: it cannot be written.
    """
    temporary: Path | None = None
    try:
        path = path.resolve()  # a link stays a link: its target is replaced
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            json.dump(data, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(_mode(path, private))
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}. Check the folder and its permissions."
        ) from None


def _mode(path: Path, private: bool) -> int:
    before = path.stat().st_mode & 0o777 if path.exists() else 0o644
    return before & 0o600 if private else before
