"""The archive of engine and steps: one file, the same bytes wherever it is packed, known by its sha256."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from airflow_batchwrap import engine
from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.steps import StepFolder, discover

SIZE_LIMIT = 100 * 1024 * 1024  # bytes; the archive travels with every Batch task, large files belong to the inputs

# Python 3.4 to 3.7 and even 2.7 must be able to read this part, and print that they are too old.
_MAIN = """\
import sys

if sys.version_info < (3, 8):
    sys.stderr.write(
        "batchwrap: this node's python3 is Python %d.%d, and steps need Python 3.8 or newer: use a newer image "
        "(Ubuntu 22.04 or later), or install one with the pool's start task\\n" % sys.version_info[:2]
    )
    sys.exit(3)

from batchwrap_engine.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
"""


@dataclass(frozen=True)
class Archive:
    """A packed archive.

    :param steps: the step files' names, in the order in which they run.
    """

    data: bytes
    sha256: str
    steps: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)


def build(folder: StepFolder | str | os.PathLike[str], *, size_limit: int = SIZE_LIMIT) -> Archive:
    """Pack the engine and a steps folder.

    The same content gives the same bytes on every machine: names are sorted, dates and modes fixed, and nothing is
    compressed, because different builds of zlib compress differently. Dot-files, ``__pycache__`` and compiled files
    stay behind.

    :param size_limit: bytes that the steps folder may hold.
    :raises ConfigError: it holds more, or a link that leads out of it, or something that is no file.
    """
    steps = folder if isinstance(folder, StepFolder) else discover(folder)
    members = {"__main__.py": (_MAIN.encode(), False)}
    for path in sorted(Path(engine.__file__).parent.glob("*.py")):
        members[f"batchwrap_engine/{path.name}"] = (path.read_bytes(), False)
    files = [(name, path, _regular(path, steps.path)) for name, path in _files(steps.path)]
    sizes = {name: path.stat().st_size for name, path, _ in files}
    if sum(sizes.values()) > size_limit:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ConfigError(
            f"the steps folder {steps.path} holds {sum(sizes.values())} bytes, more than the {size_limit} that may "
            f"travel with every step (its largest file is {largest}, {sizes[largest]} bytes): give large files to the "
            "workflow as inputs= and keep only code here"
        )
    for name, path, mode in files:
        members[f"steps/{name}"] = (path.read_bytes(), bool(mode & stat.S_IXUSR))
    data = _pack(members)
    return Archive(data, hashlib.sha256(data).hexdigest(), tuple(step.file for step in steps.steps))


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file that travels, with its name relative to the folder."""

    def fail(error: OSError) -> None:
        raise ConfigError(f"the steps folder {folder} cannot be read: {error}") from error

    for here, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in folders:
            if (Path(here) / name).is_symlink():
                raise ConfigError(
                    f"the steps folder {folder} holds a link to a folder, {Path(here, name)}: put the folder itself "
                    "there, as links to folders are not followed"
                )
        for name in sorted(names):
            if not name.startswith(".") and not name.endswith((".pyc", ".pyo")):
                path = Path(here) / name
                yield path.relative_to(folder).as_posix(), path


def _regular(path: Path, folder: Path) -> int:
    """Return the mode of a file that may travel."""
    try:
        # Unlike Path.resolve() before Python 3.13 this raises OSError for a link that leads to itself.
        real = Path(os.path.realpath(path, strict=True))
        mode = real.stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"{path} in the steps folder cannot be read: {error.strerror}: remove or repair it"
        ) from error
    if not real.is_relative_to(folder.resolve()):
        raise ConfigError(
            f"{path} is a link that leads out of the steps folder: copy the file there, or give it to the workflow as "
            "one of inputs="
        )
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path} in the steps folder is neither a file nor a folder: remove it")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{path!r} in the steps folder has a name that is not UTF-8: rename it") from None
    return mode


def _pack(members: dict[str, tuple[bytes, bool]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as packed:
        for name in sorted(members):
            data, executable = members[name]
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # Unix, wherever this runs
            info.external_attr = (stat.S_IFREG | (0o755 if executable else 0o644)) << 16
            packed.writestr(info, data)
    return buffer.getvalue()
