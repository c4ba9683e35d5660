"""The name of an Airflow: its pools, jobs and blobs bear it, those of another Airflow bear another."""

from __future__ import annotations

import re
import secrets
import time
from typing import Any

from airflow_batchwrap.exceptions import ConfigError, Throttled

#: The Airflow variable that keeps the name where ``[batchwrap] instance`` gives none.
VARIABLE = "batchwrap_instance"
_LEGAL = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SETTLED = 1.0  # seconds after which a name that was written is read again: another task may have written its own


def name_of_instance() -> str:
    """Return the name of the Airflow that this task runs in.

    It is what ``[batchwrap] instance`` says, else the Airflow variable ``batchwrap_instance``, which is made once, with
    a random value. All workers of an Airflow read the same variable.

    :raises ConfigError: the name has other characters than letters, digits, dot, dash and underscore, or more than 64.
    :raises Throttled: Airflow does not answer.
    """
    from airflow.sdk.configuration import conf

    name = str(conf.get("batchwrap", "instance", fallback="") or "") or _kept()
    if _LEGAL.fullmatch(name) is None:
        raise ConfigError(
            f"[batchwrap] instance, or the Airflow variable {VARIABLE}, is {name!r}: use 1 to 64 letters, digits, "
            "dots, dashes and underscores."
        )
    return name


def _kept() -> str:
    """Return the name that Airflow keeps; make one where there is none.

    Tasks that find none at the same time each write their own, the last one stays, and all read that one: each waits
    until whoever had found none as well has written.
    """
    if name := _read():
        return name
    _write(secrets.token_hex(4))
    while True:
        written = _read()
        time.sleep(_SETTLED)
        if (name := _read()) and name == written:
            return name


def _read() -> str:
    from airflow.sdk import Variable

    return str(_asked(lambda: Variable.get(VARIABLE, default="")) or "")


def _write(name: str) -> None:
    from airflow.sdk import Variable

    text = "The name of this Airflow, which all that it makes on Azure Batch and Blob bears. Do not change it."
    _asked(lambda: Variable.set(VARIABLE, name, description=text))


def _asked(ask: Any) -> Any:
    from airflow.sdk.exceptions import AirflowRuntimeError

    try:
        return ask()
    except (AirflowRuntimeError, OSError) as error:
        raise Throttled(
            f"Airflow does not answer for the variable {VARIABLE!r} ({type(error).__name__}). Try again later, or set "
            "[batchwrap] instance."
        ) from None
