"""What runs a step file, by its name and, where that does not say it, by its mode and first bytes."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

from airflow_batchwrap.engine.protocol import INTERPRETERS, PYTHON_SUFFIX
from airflow_batchwrap.exceptions import ConfigError

PROGRAM = "program"  # started by the node's system itself

_HEAD = 4096  # bytes that are read of a script
# How programs begin: ELF, of Linux (https://man7.org/linux/man-pages/man5/elf.5.html), and Mach-O, of macOS, where
# `batchwrap run` may run (https://github.com/apple-oss-distributions/xnu/blob/main/EXTERNAL_HEADERS/mach-o/loader.h,
# fat.h).
_BINARIES = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
_SUFFIXES = ".py, .sh, .jar, .R or .jl"


def known_by_suffix(name: str) -> str | None:
    """Return what runs a file of this name; None where the name does not say it."""
    suffix = Path(name).suffix
    return "python" if suffix == PYTHON_SUFFIX else INTERPRETERS.get(suffix)


def language_of(path: Path) -> str:
    """Return what runs a step file: ``python``, ``bash``, ``java``, ``Rscript``, ``julia`` or ``program``.

    Nothing of a Python file is read.

    :raises ConfigError: nothing could run it. The message begins with the file's name.
    """
    name = path.name
    language = known_by_suffix(name)
    if language == "python":
        return language
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{name} is neither a file nor a folder: remove it")
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
        if language == "java" and not zipfile.is_zipfile(path):
            raise ConfigError(
                f"{name} is no jar: build it again; a file of Git LFS has to be fetched with git lfs pull"
            )
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}: repair or remove it") from error
    is_script = language == "bash" or head.startswith(b"#!")
    if is_script and b"\r\n" in head:
        raise ConfigError(
            f"{name} has Windows line ends (CRLF), which a script must not have: convert it with dos2unix, and write "
            "'* text=auto eol=lf' into .gitattributes"
        )
    if language is None:
        _check_program(name, bool(mode & stat.S_IXUSR), head)
    return language or PROGRAM


def _check_program(name: str, executable: bool, head: bytes) -> None:
    runs = head.startswith((b"#!", *_BINARIES))
    if executable and runs:
        return
    if executable:
        raise ConfigError(
            f"{name} is executable, but neither a program of Linux nor a script that begins with #!: write the line "
            "'#!/bin/sh' first; a file that is no step has a name without a number, or one that begins with _"
        )
    if runs:
        raise ConfigError(f"{name} is a program that may not be executed: chmod +x, and git update-index --chmod=+x")
    raise ConfigError(
        f"{name} begins with a number, as a step does, and is none: a step ends in {_SUFFIXES}, or is executable "
        "(chmod +x). Give data and notes names without a number, or with _ before it"
    )
