"""What a step may know and nobody else: secrets, and those of the DAG's params that are secret."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.engine import protocol
from airflow_batchwrap.exceptions import ConfigError

if TYPE_CHECKING:
    from airflow.sdk import Context

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Confidential:
    """What travels in a file that one Batch task alone, or the entries of one manifest, may fetch.

    Its values are in no text of it, and in no fingerprint: whoever tries out all short passwords finds one by its hash.

    :param params: parameters for ``engine.params``; a command has none.
    """

    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    params: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.environment or self.params)

    @property
    def names(self) -> list[list[str]]:
        """The names of its values, which are no secret."""
        return [sorted(self.environment), sorted(self.params)]

    def for_step(self) -> bytes:
        """Return the file that the engine reads."""
        return protocol.Secrets(dict(self.environment), dict(self.params)).dumps().encode()

    def for_command(self) -> bytes:
        """Return the script that a shell reads before a command."""
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in self.environment.items()]
        return "".join(lines).encode()

    def mask(self) -> None:
        """Have Airflow mask the values in this task's log, whoever prints them."""
        from airflow.sdk.log import mask_secret

        for value in (*self.environment.values(), *self.params.values()):
            mask_secret(value)


def split_confidential(
    operator: Any, context: Context, params: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[dict[str, Any], Confidential]:
    """Return the params of a run that may be shown, and what may not: the other params, and a task's secrets.

    Airflow masks the values of both in this task's log from now on.

    :param operator: has ``secrets``, whose templates are rendered here: what is a template field, Airflow shows.
    :param params: of the run, as plain JSON.
    :param environment: the variables that are no secrets.
    :raises ConfigError: a secret cannot be an environment variable.
    """
    secrets = secrets_of(operator.task_id, operator.render_template(operator.secrets, context), environment)
    shown, hidden = part_params(context, params)
    confidential = Confidential(secrets, hidden)
    confidential.mask()
    return shown, confidential


def secrets_of(task_id: str, given: Any, environment: Mapping[str, str]) -> dict[str, str]:
    """Return a task's secrets by name, once their templates are rendered.

    :param environment: the variables that are no secrets.
    :raises ConfigError: a name or a value cannot be an environment variable. No value is in the message.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"Task {task_id!r}: secrets is a {type(given).__name__}. Give a dict: names and values.")
    for name, value in given.items():
        problem = ""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            problem = "is no name of an environment variable: use letters, digits and underscores"
        elif name in environment:
            problem = "is in environment as well, where Batch shows it: leave it there or here"
        elif not isinstance(value, str) or "\0" in value:
            kind = "holds a zero byte" if isinstance(value, str) else f"is a {type(value).__name__}"
            problem = f"{kind}, not a text: give a text, or a template that renders to one"
        if problem:
            raise ConfigError(f"Task {task_id!r}: the secret {name!r} {problem}.")
    return dict(given)


def part_params(context: Context, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the run's params in two: those that may be shown, and those that may not.

    A param is secret by its schema (``Param(..., secret=True)`` or ``format="password"``), or by its name, or one
    within it, as Airflow itself knows a sensitive field: ``[core] sensitive_var_conn_names`` adds names.
    """
    schemas: dict[str, Any] = {}
    for owner in (context.get("dag"), context.get("task")):
        declared: Any = owner.params if owner is not None else {}
        for name in declared:
            schemas[name] = declared.get_param(name).schema
    secret = {
        name
        for name, value in params.items()
        if schemas.get(name, {}).get("secret") is True
        or schemas.get(name, {}).get("format") == "password"
        or _has_sensitive_name({name: value})
    }
    return (
        {name: value for name, value in params.items() if name not in secret},
        {name: value for name, value in params.items() if name in secret},
    )


def _has_sensitive_name(value: Any) -> bool:
    from airflow.sdk._shared.secrets_masker import should_hide_value_for_key

    if isinstance(value, Mapping):
        hide: Callable[[str], bool] = should_hide_value_for_key
        return any(hide(name) or _has_sensitive_name(item) for name, item in value.items())
    return isinstance(value, list | tuple) and any(_has_sensitive_name(item) for item in value)
