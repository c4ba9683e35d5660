"""``batchwrap sweep``: the sweep from a command line, which asks Airflow by its REST API."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_batchwrap import sweep
from airflow_batchwrap.exceptions import BatchWrapError, ConfigError
from airflow_batchwrap.instance import VARIABLE, checked
from airflow_batchwrap.stack.rest import AirflowClient

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class SweepOptions:
    """What to look at, and whom to ask.

    :param delete: remove the orphans.
    :param older_than: let go of what runs unknown to Airflow made, once it is older than this.
    :param conn_id: the Batch account's connection.
    :param unused_for: look for blobs that have not been used for so long as well; None leaves Blob alone.
    :param wasb_conn_id: the storage account's connection.
    :param instance: the name of the Airflow that made what is meant; another one's is left alone. None asks it.
    :param airflow: the address of Airflow's API server; None asks nobody, and knows of no run.
    :param user: who signs in there.
    :param token: in place of user and password.
    """

    delete: bool
    older_than: timedelta | None
    conn_id: str
    airflow: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    unused_for: timedelta | None = None
    wasb_conn_id: str = "wasb_default"
    instance: str | None = None


class RunStates(AirflowClient):
    """What becomes of runs, by Airflow's REST API."""

    def __init__(self, options: SweepOptions) -> None:
        super().__init__(str(options.airflow), options.user or "", options.password or "")
        if options.token:
            self._http.headers["Authorization"] = f"Bearer {options.token}"

    def ask(self, dag_id: str, run_id: str) -> sweep.RunState:
        """Return what became of a run."""
        run = self._send("GET", self._run(dag_id, run_id), missing=True)
        if run is None:
            return "unknown"
        return "over" if run["state"] in ("success", "failed") else "live"

    def instance(self, given: str | None) -> tuple[str, str]:
        """Return the Airflow's name: its own, of its configuration or its variable; the given one where it shows none.

        With it comes where it is from, for people.

        Airflow shows its configuration only with ``[api] expose_config``.

        :raises ConfigError: another name was given, or none where this Airflow shows none.
        """
        path = "/api/v2/config/section/batchwrap/option/instance"
        shown = self._send("GET", path, missing=True, hidden=True, headers={"Accept": "application/json"})
        options = [option for section in (shown or {}).get("sections", ()) for option in section["options"]]
        own, source = str(options[0]["value"] or "") if options else "", "its [batchwrap] instance"
        if not own:
            told = self._send("GET", f"/api/v2/variables/{VARIABLE}", missing=True, hidden=True)
            own, source = str(told["value"] or "") if told else "", f"its variable {VARIABLE}"
            source += "" if shown else "; it does not show whether [batchwrap] instance is set"
        if own and given and given != own:
            raise ConfigError(
                f"--instance is {given!r}, and the Airflow at --airflow is {own!r}: what it says of its runs is not "
                "true of another Airflow's, which may have the same names. Leave --instance out. If [batchwrap] "
                f"instance is set there, and {own!r} is an old value of the variable {VARIABLE}, delete the variable."
            )
        if not own and not given:
            raise ConfigError(
                "The Airflow at --airflow shows no name: no task of batchwrap has run there, or this user may not read "
                f"the variable {VARIABLE}. Give --instance: its [batchwrap] instance, or that variable."
            )
        return (checked(own), source) if own else (checked(given or ""), "--instance")


def run(options: SweepOptions, console: Console) -> None:
    """Show what would go and what stays, and remove it if asked to.

    :raises ConfigError: neither an Airflow nor an age was given, or no way to sign in.
    :raises BatchWrapError: not everything could be removed.
    """
    from airflow_batchwrap.hooks.batch import BatchWrapHook

    by_age_alone = options.older_than is not None or options.unused_for is not None
    if not options.airflow and not by_age_alone:
        raise ConfigError(
            "Nothing says which runs are over. Give --airflow, the address of the Airflow that ran them, or "
            "--older-than, the age from which what batchwrap made is an orphan, or --unused-for, for blobs."
        )
    if not options.airflow and not options.instance:
        raise ConfigError(
            "Nothing says whose things are meant: several Airflows may share the accounts. Give --airflow, which knows "
            f"its own name, or --instance: [batchwrap] instance, or the Airflow variable {VARIABLE}."
        )
    if options.airflow and not (options.token or (options.user and options.password)):
        raise ConfigError(
            "No way to sign in to Airflow. Set BATCHWRAP_AIRFLOW_TOKEN, or --user and BATCHWRAP_AIRFLOW_PASSWORD."
        )
    hook = BatchWrapHook(options.conn_id, options.wasb_conn_id)
    with ExitStack() as stack:
        ask: sweep.Ask = _nobody
        if options.airflow:
            states = stack.enter_context(RunStates(options))
            ask, (instance, source) = states.ask, states.instance(options.instance)
        else:
            instance, source = checked(options.instance or ""), "--instance"
        console.print(f"What the Airflow {instance!r} made ({source}):", markup=False, highlight=False)
        ages = options.older_than, options.unused_for
        found = sweep.sweep(hook, ask, *ages, instance=instance, delete=options.delete)
    show(found, options.delete, console)
    if options.delete and any(item.goes and not item.removed for item in found):
        raise BatchWrapError("Not everything could be removed: the table says why.")


def show(found: list[sweep.Finding], delete: bool, console: Console) -> None:
    """Print the table."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("", "What", "DAG", "Run", "Age", "Why"):
        table.add_column(title, overflow="fold")
    for item in found:
        becomes = "removed" if item.removed else "stays" if not item.goes else "left" if delete else "would go"
        row = (becomes, f"{item.noun} {item.entity_id}", item.dag_id, item.run_id, item.age_text, item.why)
        table.add_row(*map(Text, row), style=None if item.goes else "dim")
    if found:
        console.print(table)
    console.print(sweep.summary(found, delete), markup=False)


def _nobody(dag_id: str, run_id: str) -> sweep.RunState:
    return "unknown"
