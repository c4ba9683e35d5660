"""Before the step runs: its files, its inputs and its arguments, all checked."""

from __future__ import annotations

import json
import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, List, Optional

from .errors import Unusable
from .paths import RESERVED, digest, inside, relative_parts, remove
from .protocol import EXCHANGE_DIR, OUT_DIR, STEPS_DIR, Argument, Call, ProtocolError, Secrets

_STEPS_PREFIX = "steps/"


def extract_steps(archive: Path, work: Path) -> Path:
    """Unpack the archive's steps to real files, so that tracebacks have their source lines, jars and data files have
    a path, and the processes a step starts can import it.

    Batch may run the same task again in the same directory (after a node's recovery), so what an earlier run left is
    removed first.

    :return: the steps' folder.
    """
    remove(work / OUT_DIR)
    remove(work / EXCHANGE_DIR)
    folder = work / STEPS_DIR
    remove(folder)
    folder.mkdir()
    with zipfile.ZipFile(str(archive)) as packed:
        for info in packed.infolist():
            if not info.filename.startswith(_STEPS_PREFIX) or info.is_dir():
                continue
            name = info.filename[len(_STEPS_PREFIX) :]
            try:
                target = folder.joinpath(*relative_parts(name))
            except ValueError as error:
                raise Unusable(f"the archive holds a file whose name {name!r} {error}: pack it again") from None
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(packed.read(info))
            target.chmod(0o755 if (info.external_attr >> 16) & 0o100 else 0o644)
    return folder


def with_secrets(call: Call, work: Path) -> Call:
    """Read the file of secrets, where the call has one: its variables go into the environment, its parameters into the
    call that is returned.

    The file stays: Batch brings it only once to a node, and may run the task there again.

    :raises ProtocolError: the file is missing, or malformed. No value is in the message.
    """
    if not call.secrets_file:
        return call
    try:
        text = work.joinpath(*relative_parts(call.secrets_file)).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ProtocolError(
            f"the secrets file {call.secrets_file!r} cannot be read ({reason}): Batch should have put it there"
        ) from None
    secrets = Secrets.loads(text)
    os.environ.update(secrets.environment)
    return replace(call, params={**call.params, **secrets.params})


def step_file(folder: Path, step: str) -> Path:
    """Return the path of a step's file in the archive.

    :raises Unusable: the archive holds no such step.
    """
    try:
        path = folder.joinpath(*relative_parts(step))
    except ValueError as error:
        raise Unusable(f"the step's name {step!r} {error}: name a step file such as '1_extract.py'") from None
    if not path.is_file():
        numbered = (each.name for each in folder.iterdir() if each.is_file())
        present = ", ".join(sorted(name for name in numbered if name[0].isdigit() or name.endswith(".py"))) or "none"
        raise Unusable(f"the archive holds no step {step!r}; it holds: {present}. Was the steps folder changed?")
    return path


def input_directory(call: Call, work: Path) -> Optional[Path]:
    """Return where the input files are; None where the call has none."""
    if not call.inputs_dir:
        if call.inputs:
            raise Unusable("the call names inputs but no input directory: this is a flaw in what submitted the step")
        return None
    for name in re.findall(r"\$\{?(\w+)", call.inputs_dir):
        if name not in os.environ:
            raise Unusable(
                f"the input directory {call.inputs_dir!r} needs the environment variable {name}, which this task does "
                "not have: only a task whose job has a preparation task has it"
            )
    return work / os.path.expandvars(call.inputs_dir)


def link_inputs(names: List[str], folder: Path, work: Path) -> List[str]:
    """Put every input at hand by its name, as a link into the input directory.

    :return: the links' names, relative to the working directory.
    :raises Unusable: a name escapes or is the engine's, or the file is not there.
    """
    real_folder = os.path.realpath(str(folder))
    links = []
    for name in names:
        try:
            parts = relative_parts(name)
        except ValueError as error:
            raise Unusable(f"the input's name {name!r} {error}: use a name relative to the input directory") from None
        if parts[0] in RESERVED:
            raise Unusable(f"the input {name!r} has a name that the engine uses itself: rename it")
        source, link = folder.joinpath(*parts), work.joinpath(*parts)
        if not source.is_file():
            raise Unusable(
                f"the input {name!r} is missing from the input directory {folder}: the job preparation task should "
                "have put it there; look at its output, and at the list of inputs"
            )
        if not inside(os.path.realpath(str(source)), real_folder):
            raise Unusable(f"the input {name!r} is a link that leads out of the input directory: give the file itself")
        if os.path.abspath(str(source)) != os.path.abspath(str(link)):
            _link(source, link, name)
            links.append("/".join(parts))
    return links


def _link(source: Path, link: Path, name: str) -> None:
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
    except OSError:  # an input named as another one's folder, or a file of that name
        raise Unusable(f"the input {name!r} needs a folder where a file of that name is: rename one of them") from None
    if link.is_dir() and not link.is_symlink():
        raise Unusable(f"the input {name!r} has the name of a folder in the working directory: rename one of them")
    remove(link)
    link.symlink_to(os.path.abspath(str(source)))


def argument_value(argument: Argument, work: Path) -> Any:
    """Resolve one argument to the value that ``do_action`` receives.

    :raises Unusable: its file is missing, or is not what was sent.
    """
    if argument.kind == "value":
        return argument.value
    if argument.kind == "list":
        return [argument_value(item, work) for item in argument.items]
    try:
        path = work.joinpath(*relative_parts(argument.path))
    except ValueError as error:
        raise Unusable(f"the argument file's name {argument.path!r} {error}") from None
    if not path.is_file():
        raise Unusable(f"the argument file {argument.path!r} did not arrive: the value of an earlier step is gone")
    size, sha256 = digest(path)
    if (size, sha256) != (argument.size, argument.sha256):
        raise Unusable(
            f"the argument file {argument.path!r} is not what was sent: {size} bytes, sha256 {sha256}, instead of "
            f"{argument.size} bytes, sha256 {argument.sha256}. Run the step that wrote it again"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Unusable(f"the argument file {argument.path!r} is not JSON: {error}") from None
