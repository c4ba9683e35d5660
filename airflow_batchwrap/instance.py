"""The name of an Airflow: its pools, jobs and blobs bear it, those of another Airflow bear another."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from typing import Any

from airflow_batchwrap.exceptions import ConfigError, PoolError, Throttled
from airflow_batchwrap.naming import INSTANCE

#: The Airflow variable that keeps the name where ``[batchwrap] instance`` gives none.
VARIABLE = "batchwrap_instance"
#: The Airflow variable that holds a proposed name while the first tasks of an Airflow agree on one; removed after that.
PROPOSAL = "batchwrap_instance_proposed"
_LEGAL = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SETTLED = 1.0  # seconds after which what was written is read again: another task may have written something else
_TEXT = "Tells what this Airflow made on Azure Batch and Blob from what another Airflow made there. Do not change it."
_PROPOSAL_TEXT = f"Tasks agree on a value for {VARIABLE}. It goes by itself."


def name_of_instance() -> str:
    """Return the name of the Airflow that this task runs in.

    It is what ``[batchwrap] instance`` says, else the Airflow variable ``batchwrap_instance``, which is made once, with
    a random value. All workers of an Airflow read the same variable.

    :raises ConfigError: the name has other characters than letters, digits, dot, dash and underscore, or more than 64.
    :raises Throttled: Airflow does not answer.
    """
    from airflow.sdk.configuration import conf

    return checked(str(conf.get("batchwrap", "instance", fallback="") or "") or _kept())


def checked(name: str) -> str:
    """Return a name that is fit to be an Airflow's.

    :raises ConfigError: it is not.
    """
    if _LEGAL.fullmatch(name) is None:
        raise ConfigError(
            f"[batchwrap] instance, or the Airflow variable {VARIABLE}, is {name!r}: use 1 to 64 letters, digits, "
            "dots, dashes and underscores."
        )
    return name


def why_not_ours(marks: Mapping[str, str], instance: str) -> str:
    """Return why the Airflow ``instance`` leaves alone what bears these metadata; empty where it is its own.

    :param marks: of a pool, a job or a Blob container.
    """
    theirs = marks.get(INSTANCE, "")
    if theirs == instance:
        return ""
    return f"made by the Airflow {theirs!r}" if theirs else "bears no instance"


def refuse_anothers(what: str, marks: Mapping[str, str], instance: str) -> None:
    """Refuse to change or delete what another Airflow made; what bears no name is its user's own business.

    :param what: such as ``Pool 'p'``, for the message.
    :raises PoolError: it names another Airflow.
    """
    if marks.get(INSTANCE) and (why := why_not_ours(marks, instance)):
        raise PoolError(
            f"{what} was {why}, and this is the Airflow {instance!r}: nothing is done to it here. Do it in that "
            "Airflow, or on the account itself. If this Airflow had that name before, set it as [batchwrap] instance."
        )


def _kept() -> str:
    """Return the name that Airflow keeps; where there is none, agree on one with the others that look for it now.

    Airflow's API has no "write this unless something is there": of two writers the later one wins. So the name is
    written only after a proposal has stood unchanged for a while (``_SETTLED``), by tasks that then all write the same
    one; and whoever has written it reads it again after that while. A task that stalls between its look and its write
    of a proposal does no harm: before it goes further it finds the name. What is left: a task that stalls for longer
    than ``_SETTLED`` between its last look and its write of the name itself, while others have agreed on another
    proposal. Who cannot bear that, once in the life of an Airflow, sets ``[batchwrap] instance``.
    """
    if name := _read(VARIABLE):
        return name
    if not (proposal := _read(PROPOSAL)):
        _write(PROPOSAL, proposal := secrets.token_hex(4), _PROPOSAL_TEXT)
    while True:
        time.sleep(_SETTLED)
        if name := _read(VARIABLE):
            _forget(PROPOSAL)
            return name
        now = _read(PROPOSAL)
        if now and now == proposal:
            _write(VARIABLE, now, _TEXT)
        elif not now:
            _write(PROPOSAL, now := secrets.token_hex(4), _PROPOSAL_TEXT)
        proposal = now


def _read(variable: str) -> str:
    from airflow.sdk import Variable

    return str(_asked(lambda: Variable.get(variable, default="")) or "")


def _write(variable: str, name: str, text: str) -> None:
    from airflow.sdk import Variable

    _asked(lambda: Variable.set(variable, name, description=text))


def _forget(variable: str) -> None:
    from airflow.sdk import Variable

    _asked(lambda: Variable.delete(variable))


def _asked(ask: Any) -> Any:
    from airflow.sdk.exceptions import AirflowRuntimeError

    try:
        return ask()
    except (AirflowRuntimeError, OSError) as error:
        raise Throttled(
            f"Airflow does not answer for the variable {VARIABLE!r} ({type(error).__name__}). Try again later, or set "
            "[batchwrap] instance."
        ) from None
