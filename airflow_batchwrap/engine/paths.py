"""Names that came from elsewhere, kept inside the folder they belong to."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Tuple

from .protocol import (
    ARCHIVE_NAME,
    ARGUMENTS_DIR,
    CALL_FILE,
    EXCHANGE_DIR,
    OUT_DIR,
    SECRETS_FILE,
    SECRETS_SCRIPT,
    STEPS_DIR,
)

# First components below the working directory that belong to the engine.
RESERVED = frozenset(
    {ARCHIVE_NAME, ARGUMENTS_DIR, CALL_FILE, EXCHANGE_DIR, OUT_DIR, SECRETS_FILE, SECRETS_SCRIPT, STEPS_DIR}
)


def relative_parts(name: str) -> Tuple[str, ...]:
    """Split a relative name with forward slashes into its components.

    :raises ValueError: it is empty or absolute, or has ``..`` or an empty component; the message completes
        "the name X ...".
    """
    if not name or "\0" in name:
        raise ValueError("is empty or holds a zero byte")
    if name.startswith("/"):
        raise ValueError("is absolute")
    parts = tuple(part for part in name.split("/") if part != ".")
    if ".." in parts:
        raise ValueError("holds '..'")
    if not parts or "" in parts:
        raise ValueError("has an empty component")
    return parts


def inside(path: str, folder: str) -> bool:
    """Whether a real path is the folder or lies below it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def remove(path: Path) -> None:
    """Remove what an earlier run left under this name, whatever it is; a link is removed, never followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path))
    elif os.path.lexists(str(path)):
        path.unlink()


def digest(path: Path) -> Tuple[int, str]:
    """Return the size in bytes and the sha256 of a file's content."""
    size, sha256 = 0, hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1024 * 1024), b""):
            size += len(chunk)
            sha256.update(chunk)
    return size, sha256.hexdigest()
