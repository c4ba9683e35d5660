"""Programs that a step starts: captured, and shown live."""

from __future__ import annotations

import codecs
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from types import FrameType
from typing import IO, Dict, List, Mapping, Optional, Sequence, Union

from .errors import CommandFailed

NOT_FOUND = 127  # as a shell says it
TIMED_OUT = 124  # as timeout(1) says it
TAIL_LINES = 20
_PIPE_GRACE = 5.0  # seconds: a grandchild that was left behind may hold a pipe open for ever

Command = Union[str, Sequence[Union[str, "os.PathLike[str]"]]]


@dataclass(frozen=True)
class Completed:
    """A program that ended.

    :param exit_code: negative where a signal ended it.
    """

    command: List[str]
    exit_code: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> List[str]:
        """The lines of stdout, then those of stderr."""
        return split_lines(self.stdout) + split_lines(self.stderr)


def split_lines(text: str) -> List[str]:
    """Lines as a terminal shows them: only a newline ends one."""
    lines = [line[:-1] if line.endswith("\r") else line for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def run(
    command: Command,
    *,
    check: bool = True,
    cwd: Optional[Union[str, os.PathLike[str]]] = None,
    env: Optional[Mapping[str, str]] = None,
    timeout: Optional[float] = None,
    input: Optional[Union[str, bytes]] = None,  # noqa: A002 - the word that subprocess.run uses
    echo: bool = True,
) -> Completed:
    """Run a program to its end; see ``Engine.run``."""
    words = shlex.split(command) if isinstance(command, str) else [os.fspath(word) for word in command]
    if not words:
        raise ValueError("engine.run() was given an empty command: give the program and its arguments")
    environment: Dict[str, str] = {**os.environ, **(env or {})}
    data = input.encode("utf-8") if isinstance(input, str) else input
    guard = _Guard()
    with guard:
        process = _start(words, cwd, environment, data)
        guard.watch(process)
        return _finish(process, words, data, timeout, check, echo)


def _start(
    words: List[str], cwd: Optional[Union[str, os.PathLike[str]]], environment: Dict[str, str], data: Optional[bytes]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            words,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as error:
        if cwd is not None and not os.path.isdir(cwd):
            raise CommandFailed(
                f"cannot run {words[0]!r}: the directory {os.fspath(cwd)!r} is missing", NOT_FOUND
            ) from error
        raise CommandFailed(
            f"there is no program {words[0]!r} on this node: install it with the pool's start task, or put it into the "
            "steps folder and give its path",
            NOT_FOUND,
        ) from error
    except PermissionError as error:
        raise CommandFailed(f"{words[0]!r} may not be executed: set its mode with chmod +x", 126) from error


def _finish(
    process: subprocess.Popen[bytes],
    words: List[str],
    data: Optional[bytes],
    timeout: Optional[float],
    check: bool,
    echo: bool,
) -> Completed:
    outs: Dict[str, List[str]] = {"stdout": [], "stderr": []}
    threads = [
        threading.Thread(target=_pump, args=(process.stdout, outs["stdout"], "stdout" if echo else ""), daemon=True),
        threading.Thread(target=_pump, args=(process.stderr, outs["stderr"], "stderr" if echo else ""), daemon=True),
    ]
    if data is not None:
        threads.append(threading.Thread(target=_feed, args=(process.stdin, data), daemon=True))
    timed_out = False
    for thread in threads:
        thread.start()
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        timed_out = True
        process.kill()
        process.wait()
    except BaseException:  # ctrl-C: what this step started does not outlive it
        process.kill()
        process.wait()
        raise
    for thread in threads:
        thread.join(_PIPE_GRACE)
    done = Completed(words, process.returncode, "".join(outs["stdout"]), "".join(outs["stderr"]))
    shown = " ".join(shlex.quote(word) for word in words)[:500]
    tail = "\n".join(split_lines(done.stderr)[-TAIL_LINES:])[-4096:]
    if timed_out:
        message = f"the command did not end within {timeout} s and was killed: {shown}\n{tail}".rstrip()
        raise CommandFailed(message, TIMED_OUT, done.stdout, done.stderr)
    if check and done.exit_code != 0:
        message = f"the command ended with {ending(done.exit_code)}: {shown}\n{tail}".rstrip()
        raise CommandFailed(message, done.exit_code, done.stdout, done.stderr)
    return done


def attached(words: Sequence[Union[str, bytes]], environment: Mapping[str, str]) -> int:
    """Run a program whose stdout and stderr are this process's own, so that what it prints is seen as it comes.

    :return: its exit code; negative where a signal ended it.
    :raises OSError: it cannot be started.
    """
    guard = _Guard()
    with guard:
        process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL)
        guard.watch(process)
        try:
            return process.wait()
        except BaseException:  # ctrl-C: what this step started does not outlive it
            process.kill()
            process.wait()
            raise


def ending(exit_code: int) -> str:
    """Say how a program ended."""
    if exit_code < 0:
        return f"signal {-exit_code} ({_signal_name(-exit_code)})"
    return f"exit code {exit_code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _pump(pipe: Optional[IO[bytes]], into: List[str], echo: str) -> None:
    """Read a pipe to its end, and show it as it comes."""
    if pipe is None:
        return
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with pipe:
        while True:
            chunk = os.read(pipe.fileno(), 65536)
            text = decoder.decode(chunk, final=not chunk)
            if text:
                into.append(text)
                if not _show(text, echo):
                    echo = ""
            if not chunk:
                return


def _show(text: str, echo: str) -> bool:
    """Print on the step's own stream; one that is closed must not keep the pipe from being read."""
    stream = getattr(sys, echo, None) if echo else None
    if stream is None:
        return False
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        return False
    return True


def _feed(pipe: Optional[IO[bytes]], data: bytes) -> None:
    if pipe is None:
        return
    with contextlib.suppress(BrokenPipeError):  # a program need not read all that it is given
        pipe.write(data)
    with contextlib.suppress(BrokenPipeError):  # what is left in the buffer
        pipe.close()


class _Guard:
    """While a program starts and runs, SIGTERM to the step ends the program too.

    Outside of it SIGTERM keeps the system's own action, which is prompt even in the middle of a long computation.
    """

    def __init__(self) -> None:
        # Python lets the main thread alone have handlers.
        self._mine = threading.current_thread() is threading.main_thread()
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._asked = False

    def __enter__(self) -> None:
        # A step that has a handler of its own knows better.
        self._mine = self._mine and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if self._mine:
            signal.signal(signal.SIGTERM, self._terminate)

    def __exit__(self, *exc: object) -> None:
        if self._mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if self._asked:
                os.kill(os.getpid(), signal.SIGTERM)

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """From now on this is the program; a signal that came while it was being started is acted on now."""
        self._process = process
        if self._asked:
            self._terminate(signal.SIGTERM, None)

    def _terminate(self, number: int, frame: Optional[FrameType]) -> None:
        self._asked = True
        if self._process is None:  # it may have been started and not be known yet: watch() follows
            return
        if self._process.poll() is None:
            self._process.terminate()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
