"""A step that is no Python: what starts it, its run, and what became of it."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple

from . import commands
from .errors import Unusable
from .exchange import Exchange
from .output import say
from .protocol import ARGS_ENV, INTERPRETERS, StepError

# Bytes of all arguments together. One of 128 KiB is too long for Linux, and so are all of them with the environment
# from a quarter of the stack's limit on: https://man7.org/linux/man-pages/man2/execve.2.html
COMMAND_LINE_LIMIT = 100_000

_REMEDIES = {
    "bash": "install it with the pool's start task, for example 'apt-get update && apt-get install -y bash' "
    "(elevated), or use an image that has it",
    "java": "install one with the pool's start task, for example 'apt-get update && apt-get install -y "
    "default-jre-headless' (elevated), or use an image that has it",
    "Rscript": "install it with the pool's start task, for example 'apt-get update && apt-get install -y r-base-core' "
    "(elevated), or use an image that has R",
    "julia": "unpack it with the pool's start task and link it into /usr/local/bin (elevated), or use an image that "
    "has Julia",
}
_INSTALL = "install it with the pool's start task, or use an image that has it"


def run(
    step: Path, exchange: Exchange, arguments: List[Any], java_options: Sequence[str]
) -> Tuple[Optional[StepError], str]:
    """Run a step file to its end.

    :param java_options: of the virtual machine, where the step is a jar.
    :return: the error that ended it, or else its value as JSON.
    :raises Unusable: it cannot be started, or what it left is no value.
    """
    environment = exchange.open(arguments)
    words = [os.fsencode(word) for word in _command(step, java_options)]
    try:
        code = commands.attached([*words, *_command_line(arguments)], environment)
    except OSError as error:
        raise Unusable(_why_not_started(step, error)) from None
    except KeyboardInterrupt:
        return StepError("KeyboardInterrupt", f"{step.name} was interrupted"), ""
    if code == 0:
        return None, exchange.value()
    message = f"{step.name} ended with {commands.ending(code)}{_hint(step, code)}"
    say(message)
    return StepError("ProgramFailed", message), ""


def _command(step: Path, java_options: Sequence[str]) -> List[str]:
    """Return the words that start a step file, without its arguments.

    :raises Unusable: the node does not have what runs it.
    """
    interpreter = INTERPRETERS.get(step.suffix)
    if interpreter is None:
        _check_first_line(step)
        return [str(step)]
    found = shutil.which(interpreter)
    if found is None:
        raise Unusable(
            f"{step.name} needs {interpreter}, and there is none on this node's PATH: {_REMEDIES[interpreter]}"
        )
    if interpreter == "bash":
        return [found, "-euo", "pipefail", str(step)]
    if interpreter == "java":
        return [found, *(java_options or _java_options(os.environ)), "-jar", str(step)]
    return [found, str(step)]


def _java_options(environment: Mapping[str, str]) -> List[str]:
    """Return what JAVA_OPTS says, the variable that start scripts of Java programs read."""
    try:
        return shlex.split(environment.get("JAVA_OPTS", ""))
    except ValueError as error:
        raise Unusable(f"the environment variable JAVA_OPTS cannot be split into words: {error}") from None


def _check_first_line(step: Path) -> None:
    """Find out before the start what the system would say in words that name neither program nor remedy.

    :raises Unusable: the first line names a program that the node does not have.
    """
    with step.open("rb") as stream:
        first = stream.readline(256)
    if not first.startswith(b"#!"):
        return
    words = os.fsdecode(first[2:]).split()
    if not words:
        raise Unusable(f"the first line of {step.name} names no program after #!: write '#!/bin/sh', for example")
    program = words[0]
    if not os.path.exists(program):
        raise Unusable(f"{step.name} needs {program}, which its first line names, and this node has none: {_INSTALL}")
    if os.path.basename(program) == "env":
        rest = words[2:] if words[1:2] == ["-S"] else words[1:]
        named = rest[0] if rest else ""
        if named and not named.startswith("-") and "=" not in named and shutil.which(named) is None:
            raise Unusable(
                f"{step.name} needs {named}, which its first line names, and there is none on this node's PATH: "
                f"{_REMEDIES.get(named, _INSTALL)}"
            )


def _command_line(arguments: List[Any]) -> List[bytes]:
    """Return the arguments as words: a string as it is, anything else as JSON.

    None of them where one cannot be a word, or where they are too long: a part would be taken for the whole.
    """
    words = []
    for value in arguments:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        try:
            words.append(text.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:
            return _left_out("one of them is no Unicode text")
    if any(b"\0" in word for word in words):
        return _left_out("one of them holds a zero byte")
    size = sum(map(len, words))
    if size > COMMAND_LINE_LIMIT:
        return _left_out(f"they have {size} bytes, more than the {COMMAND_LINE_LIMIT} that are safe")
    return words


def _left_out(why: str) -> List[bytes]:
    say(f"the arguments are not on the command line, as {why}: they are in the file that {ARGS_ENV} names")
    return []


def _why_not_started(step: Path, error: OSError) -> str:
    if error.errno == errno.ENOEXEC:
        why = "it is a program for another kind of system or processor, or a script whose first line lacks #!"
    elif error.errno in (errno.ENOENT, errno.ENOTDIR):
        why = (
            "what loads it (its dynamic linker) is not on this node: build the program on the pool's image, or link it "
            "statically"
        )
    elif error.errno == errno.EACCES:
        why = "it may not be executed: set its mode with chmod +x; where it is set, the node's disk forbids programs"
    else:
        why = str(error)
    return f"{step.name} cannot be started: {why}"


def _hint(step: Path, code: int) -> str:
    """Return what is likely behind an exit code that alone says little."""
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return "; the node may have run out of memory"
    if _has_crlf(step):
        return (
            "; the file has Windows line ends (CRLF), which a script must not have: convert it with dos2unix, and "
            "write '* text=auto eol=lf' into .gitattributes"
        )
    if code == commands.NOT_FOUND:
        return f"; a program that it calls is not on this node's PATH: {_INSTALL}"
    return ""


def _has_crlf(step: Path) -> bool:
    try:
        with step.open("rb") as stream:
            head = stream.read(64 * 1024)
    except OSError:  # the step has removed it
        return False
    is_script = step.suffix == ".sh" or head.startswith(b"#!")
    return is_script and b"\r\n" in head
