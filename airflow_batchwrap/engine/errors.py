"""The engine's own errors; a step meets only :class:`CommandFailed`."""

from __future__ import annotations

from typing import Any, Tuple


class Unusable(Exception):
    """The step, its arguments, its inputs, its value or its files cannot be used: somebody has to change them.

    :param message: problem, value and remedy.
    :param traceback: the user's frames, where loading the step file raised.
    """

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


class CommandFailed(RuntimeError):
    """A program that the step started did not succeed.

    :param message: the command, the exit code and the end of its stderr.
    :param exit_code: the program's; negative for a signal, 127 where it was not found, 124 after its timeout.
    """

    def __init__(self, message: str, exit_code: int, stdout: str = "", stderr: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr

    def __reduce__(self) -> Tuple[Any, ...]:  # so that it crosses from a process of multiprocessing
        return type(self), (str(self), self.exit_code, self.stdout, self.stderr)
