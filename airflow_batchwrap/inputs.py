"""Input files: what a step finds in its working directory, gathered from local files and folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from airflow_batchwrap.exceptions import ConfigError

# Characters. A blob's name has 1,024 at most, and the folder that it is put in takes some of them:
# https://learn.microsoft.com/rest/api/storageservices/Naming-and-Referencing-Containers--Blobs--and-Metadata
_LONGEST_NAME = 900


def collect(inputs: str | Path | Sequence[str | Path], base: Path) -> list[tuple[str, Path]]:
    """Return the input files, by the name that a step opens them with, in name order.

    A file is called by its own name. A folder stands for all files below it, called by their path within it; names
    that begin with a dot are left out, since nobody means to upload a ``.git`` or a ``.env``.

    :param inputs: one path or several; relative ones are relative to ``base``.
    :raises ConfigError: a path is missing, two files have one name, a name cannot be a blob's, or a symbolic link
        leaves its folder.
    """
    paths = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    found: dict[str, Path] = {}
    for given in paths:
        path = base / Path(given).expanduser()
        if path.is_dir():
            for name, file in _walk(path):
                _add(found, name, file)
        elif path.is_file():
            _add(found, path.name, path)
        else:
            raise ConfigError(f"Input {str(given)!r} is no file or folder: looked for {str(path)!r}. Check `inputs`.")
    return sorted(found.items())


def _walk(folder: Path) -> list[tuple[str, Path]]:
    root = folder.resolve()
    files = []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if any(part.startswith(".") or part == "__pycache__" for part in name.parts):
            continue
        if file.is_symlink() and file.is_dir():
            raise ConfigError(
                f"Input {str(file)!r} is a link to a folder, which is not followed. Put the folder itself there, or "
                "name it in `inputs`."
            )
        if file.is_dir():
            continue
        # Unlike Path.resolve() before Python 3.13 this raises nothing for a link that leads to itself.
        if not Path(os.path.realpath(file)).is_relative_to(root):
            raise ConfigError(
                f"Input {str(file)!r} is a symbolic link that leaves its folder. Copy the file there, or name its "
                "target in `inputs`."
            )
        if not file.is_file():
            raise ConfigError(f"Input {str(file)!r} is no regular file. Remove it, or name the files in `inputs`.")
        files.append((name.as_posix(), file))
    return files


def _add(found: dict[str, Path], name: str, file: Path) -> None:
    if len(name) > _LONGEST_NAME or any(
        ord(sign) < 32 or sign == "\\" or 0xD800 <= ord(sign) <= 0xDFFF for sign in name
    ):
        raise ConfigError(
            f"Input {name!r} has a name that no blob can have: a control character, a backslash, a byte that is not "
            f"UTF-8, or more than {_LONGEST_NAME} characters. Rename it."
        )
    earlier = found.get(name)
    if earlier is not None and earlier.resolve() != file.resolve():
        raise ConfigError(
            f"Two inputs are called {name!r}: {str(earlier)!r} and {str(file)!r}. Rename one, or put both in folders "
            "below one folder and give that as the input."
        )
    found[name] = file
