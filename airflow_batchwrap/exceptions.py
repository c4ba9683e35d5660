"""What can go wrong: a type for each thing that the caller may do next.

::

    BatchWrapError
    ├── ConfigError      fix the set-up: nothing was run
    │   └── AccessDenied the service refuses the credentials: fix them, or the roles of the identity
    ├── PoolError        fix the pool: it cannot be had, or its nodes cannot work
    ├── StepFailed       fix the step's code: it ran and did not succeed
    │   └── StepTimeout  give the step more time, or less to do
    └── TryAgain         the same call may succeed later
        ├── NodeLost     the node went away under the step
        ├── NoCapacity   a quota is used up, or Azure has no machines of that size for now
        └── Throttled    the service asks for fewer requests

A message names the problem, the value that caused it, and the remedy, and never a key, a SAS or the value of an
environment variable.
"""

from __future__ import annotations


class BatchWrapError(Exception):
    """The root of every error this package raises on purpose."""


class ConfigError(BatchWrapError):
    """The set-up is wrong: a file, an argument, a connection. Trying again gives the same answer."""


class AccessDenied(ConfigError):
    """The service refuses the credentials, or what they may do (401, 403).

    Where work runs already, a few looks may fail so before the wait ends: a role that was just granted takes minutes to
    be known, and a service that is being changed may refuse everybody.
    """


class PoolError(BatchWrapError):
    """The pool is missing, cannot get its nodes, or its nodes cannot run tasks."""


class StepFailed(BatchWrapError):
    """The step's own code failed, or it could not be called.

    :param message: the problem, with the traceback and the end of stderr where there are any.
    :param exit_code: the process's exit code; None where it never started or was ended from outside.
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StepTimeout(StepFailed):
    """The step did not end before its deadline and was terminated."""


class TryAgain(BatchWrapError):
    """Nothing is wrong with the set-up or the code: the same call may succeed later."""


class NodeLost(TryAgain):
    """The node went away, or failed, under the step."""


class NoCapacity(TryAgain):
    """There is no room for now: a quota of the account is used up, or Azure has too few machines of that size.

    Others that end make room. Where nobody is to end, the message says what to do.
    """


class Throttled(TryAgain):
    """The service asks for fewer requests, or does not answer for now.

    :param message: the problem and the remedy.
    :param retry_after: how many seconds the service asks to be left alone; None where it does not say.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
