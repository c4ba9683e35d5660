"""What passes between the engine and a step that is no Python: files, and the variables that name them."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, Dict, List, Optional, Set

from . import values
from .errors import Unusable
from .files import NO_BLOB_NAME, is_blob_name, stage_files
from .output import say
from .paths import remove
from .protocol import (
    ARGS_ENV,
    CALL_ENV,
    CALL_FILE_ENV,
    CONTEXT_ENV,
    EXCHANGE_DIR,
    FILES_DIR,
    INPUTS_ENV,
    OUT_DIR,
    OUTPUT_ENV,
    PARAMS_ENV,
    RESULT_ENV,
    RESULT_LIMIT,
    STEPS_ENV,
    Call,
    ResultFile,
)

_SHOWN = 60  # characters of what is no JSON


class Exchange:
    """The files of one run of a step, below the working directory.

    :ivar output: the folder that the step puts its result files into.
    """

    def __init__(self, call: Call, step: Path, work: Path, inputs: Optional[Path]) -> None:
        self._call = call
        self._step = step
        self._work = work
        self._inputs = inputs
        self._folder = work / EXCHANGE_DIR
        self.output = OutputFolder(work, self._folder / "output")

    def open(self, arguments: List[Any]) -> Dict[str, str]:
        """Make the files.

        :return: the step's environment.
        """
        remove(self._folder)
        self._folder.mkdir()
        self.output.folder.mkdir()
        environment = {name: value for name, value in os.environ.items() if name not in (CALL_ENV, CALL_FILE_ENV)}
        environment[ARGS_ENV] = self._write("args.json", arguments)
        environment[PARAMS_ENV] = self._write("params.json", self._call.params)
        environment[CONTEXT_ENV] = self._write("context.json", self._call.context)
        environment[RESULT_ENV] = str(self._result)
        environment[OUTPUT_ENV] = str(self.output.folder)
        environment[INPUTS_ENV] = os.path.abspath(str(self._inputs or self._work))
        environment[STEPS_ENV] = str(self._step.parent)
        return environment

    def value(self) -> str:
        """Return, as JSON, what the step left as its value; nothing left is ``null``.

        Whatever is there now, a program made it: it is looked at before it is read.

        :raises Unusable: it is no file, or no JSON, or too large.
        """
        what = f"what {self._step.name} left in {RESULT_ENV}"
        data = self._read(what)
        if data is None:
            return "null"
        if not data.strip():
            raise Unusable(f"{what} is empty, which is no JSON: write null, or no file at all, where there is no value")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Unusable(f"{what} is not UTF-8 ({error.reason} at byte {error.start}): write it in UTF-8") from None
        try:
            value = json.loads(text, parse_constant=_refuse)
        except RecursionError:
            raise Unusable(f"{what} is nested too deeply; write something flatter") from None
        except ValueError as error:
            shown = text.strip()[:_SHOWN]
            raise Unusable(
                f"{what} is not JSON: {error}. It begins with {shown!r}; a text is JSON with double quotes around it: "
                '"like this"'
            ) from None
        return values.dumps(value, what)

    @property
    def _result(self) -> Path:
        return self._folder / "result.json"

    def _read(self, what: str) -> Optional[bytes]:
        try:
            # Neither through a link, nor waiting for who writes into a pipe.
            number = os.open(str(self._result), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = "is a link" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
            raise Unusable(f"{what} {reason}: write a plain file of that name") from None
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            os.close(number)
            raise Unusable(f"{what} is no plain file: write the JSON into a file of that name")
        with os.fdopen(number, "rb") as stream:
            data = stream.read(RESULT_LIMIT + 1) if found.st_size <= RESULT_LIMIT else None
        if data is None or len(data) > RESULT_LIMIT:
            raise Unusable(
                f"{what} has more than the {RESULT_LIMIT} bytes that a value may have: put large data into a file "
                f"below {OUTPUT_ENV}"
            )
        return data

    def _write(self, name: str, value: Any) -> str:
        """Write JSON for this user's eyes alone: parameters may be secret."""
        path = self._folder / name
        number = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(number, "w", encoding="ascii") as stream:
            json.dump(value, stream)
        return str(path)


class OutputFolder:
    """The folder whose files are uploaded, with all that is in it."""

    def __init__(self, work: Path, folder: Path) -> None:
        self.folder = folder
        self._target = work / OUT_DIR / FILES_DIR

    def stage(self, strict: bool = True) -> List[ResultFile]:
        """Put the files, as they are now, where Batch's output files pick them up.

        :param strict: False where the step failed already: then a file that cannot be had is only mentioned.
        :raises Unusable: something in the folder cannot be uploaded.
        """
        found: Set[str] = set()
        try:
            self._find(self.folder, "", found, strict)
        except (OSError, RecursionError) as error:
            problem = f"the files in {OUTPUT_ENV} cannot be read: {error}"
            if strict:
                raise Unusable(problem) from None
            say(f"not uploaded: {problem}")
        return stage_files(self.folder, found, self._target, strict)

    def _find(self, folder: Path, prefix: str, found: Set[str], strict: bool) -> None:
        if os.path.islink(str(folder)):
            raise OSError(f"{folder.name} was replaced by a link")
        with os.scandir(str(folder)) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    self._find(Path(entry.path), name + "/", found, strict)
                    continue
                problem = _problem(entry, name)
                if not problem:
                    found.add(name)
                elif strict:
                    raise Unusable(f"{OUTPUT_ENV} holds {name!r}, which {problem}")
                else:
                    say(f"not uploaded: {name!r} {problem}")


def _problem(entry: os.DirEntry[str], name: str) -> str:
    """Return why something cannot be uploaded; empty where it can."""
    if entry.is_symlink():
        return "is a link, and links are not followed: copy what it leads to, as with cp -L"
    if not entry.is_file(follow_symlinks=False):
        return "is neither a file nor a folder: remove it before the step ends"
    return "" if is_blob_name(name) else NO_BLOB_NAME


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is a number that JSON does not have; write null or a text instead")
