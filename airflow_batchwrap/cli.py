"""The console script `batchwrap`. Commands import what they need when they run: `batchwrap --help` stays quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from airflow_batchwrap.exceptions import BatchWrapError, StepFailed
from airflow_batchwrap.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

STATE = Path(".batchwrap")


class _Group(TyperGroup):
    """Print this package's own errors as one message: a traceback says nothing to the person who has to act."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BatchWrapError as error:
            typer.secho("Error: ", fg="red", bold=True, nl=False, err=True)
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    name="batchwrap",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Run folders of numbered steps on Azure Batch from Airflow, or all of it on this machine.",
)

Dags = Annotated[Path | None, typer.Option("--dags", help="Folder of DAG files. Default: ./dags.", show_default=False)]
State = Annotated[Path, typer.Option("--state", help="Folder for databases, blobs, nodes, logs and results.")]

Tls = Annotated[bool, typer.Option("--tls", help="TLS, and a managed identity in place of account keys.")]


def _console() -> Console:
    from rich.console import Console

    # Without a terminal rich would cut every line at 80 columns.
    return Console() if sys.stdout.isatty() else Console(width=160)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"batchwrap {__version__}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Run folders of numbered steps on Azure Batch from Airflow, or all of it on this machine."""


@app.command()
def demo(
    dag: Annotated[str, typer.Option("--dag", help="The DAG to run.")] = "quickstart",
    keep: Annotated[bool, typer.Option("--keep", help="Keep databases, blobs and logs, not only the results.")] = False,
    dags: Dags = None,
    state: State = STATE,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds that the run may take.")] = 600.0,
    tls: Tls = False,
) -> None:
    """Run a DAG once on a real Airflow with local services, show what came of it, and stop everything."""
    from airflow_batchwrap.stack import demo as runner

    runner.run(runner.DemoOptions(dag, dags, state, keep, timeout, tls), _console())


@app.command()
def up(
    dags: Dags = None,
    state: State = STATE,
    port: Annotated[int, typer.Option("--port", help="Airflow's port. Default: 8080, or a free one.")] = 0,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; another one only in a container.")] = (
        "127.0.0.1"
    ),
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, and stop everything at the end.")] = False,
    tls: Tls = False,
) -> None:
    """Start Airflow and the local services, and leave them running."""
    from airflow_batchwrap.stack import up as runner

    options = runner.UpOptions(dags, state, port, host, tls)
    start = runner.up_and_wait if foreground else runner.up
    start(options, _console())


@app.command()
def down(state: State = STATE) -> None:
    """Stop what `up` left running. Databases, blobs and results stay."""
    from airflow_batchwrap.stack import up as runner

    runner.down(state, _console())


@app.command()
def status(state: State = STATE) -> None:
    """Show what runs; the exit code is 1 where something does not."""
    from airflow_batchwrap.stack import up as runner

    if not runner.status(state, _console()):
        raise typer.Exit(1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def local(ctx: typer.Context) -> None:
    """The local Azure Batch service: serve, start, stop, status."""
    from airflow_batchwrap.local.commands import app as service

    service(args=ctx.args, prog_name="batchwrap local")


@app.command()
def plan(steps: Annotated[Path, typer.Argument(help="Folder of step files.")]) -> None:
    """Show which steps a folder holds, stage by stage, in the order in which they run."""
    from airflow_batchwrap.steps import discover

    for place, stage in enumerate(discover(steps).stages, 1):
        names = "  |  ".join(
            step.file if step.language == "python" else f"{step.file} ({step.language})" for step in stage.steps
        )
        together = "  (side by side; the next stage gets the list of their results)" if len(stage.steps) > 1 else ""
        typer.echo(f"{place}. {names}{together}")
    _warn_of_dag_files(steps)


def _warn_of_dag_files(steps: Path) -> None:
    """Warn of files that Airflow would import as DAG files: zips, and by the words that it looks for in safe mode."""
    import shlex
    import zipfile

    folder = steps.resolve()
    if any((each / ".airflowignore").exists() for each in (folder, *folder.parents)):
        return
    taken = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes().lower() if path.suffix == ".py" else b""
        words = b"airflow" in content and (b"dag" in content or b"asset" in content)
        if words or (path.suffix != ".py" and zipfile.is_zipfile(path)):
            taken.append(path.relative_to(folder).as_posix())
    if taken:
        typer.echo(
            f"In its DAGs folder, Airflow would import {', '.join(taken)} as a DAG file, because of words in the text, "
            "or as it is a zip file, as jars are. Keep it out of the steps: "
            f"`echo '*' > {shlex.quote(str(steps / '.airflowignore'))}`",
            err=True,
        )


@app.command()
def connections(
    credentials: Annotated[Path, typer.Argument(help="A credentials.json, of this or the older wrapper.")] = Path(
        "credentials.json"
    ),
) -> None:
    """Print the Airflow connections of a credentials.json, account keys included, as lines for a shell."""
    import shlex

    from airflow_batchwrap.config import Credentials, connection_env

    for name, value in connection_env(Credentials.from_json(credentials.absolute())).items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@app.command()
def sweep(
    delete: Annotated[bool, typer.Option("--delete", help="Remove what would go; without it nothing changes.")] = False,
    airflow: Annotated[
        str | None,
        typer.Option(
            "--airflow", envvar="BATCHWRAP_AIRFLOW_URL", help="Airflow's address: it knows which runs are over."
        ),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            envvar="BATCHWRAP_AIRFLOW_USER",
            help="Its user; the password comes from "
            "BATCHWRAP_AIRFLOW_PASSWORD, or a token in place of both from BATCHWRAP_AIRFLOW_TOKEN.",
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            help="Also what runs made that the Airflow knows no more, once it is older: '7 days'. "
            "What any of its runs made, without --airflow.",
        ),
    ] = None,
    conn_id: Annotated[
        str, typer.Option("--conn-id", help="Airflow connection of the Batch account, as AIRFLOW_CONN_... sets it.")
    ] = "azure_batch_default",
    unused_for: Annotated[
        str | None,
        typer.Option("--unused-for", help="Also archives, inputs and calls in Blob that nothing used for so long."),
    ] = None,
    wasb_conn_id: Annotated[
        str, typer.Option("--wasb-conn-id", help="Airflow connection of the storage account, for --unused-for.")
    ] = "wasb_default",
    instance: Annotated[
        str | None,
        typer.Option(
            "--instance",
            help="The name of the Airflow that made what is meant: its [batchwrap] instance, or its variable "
            "batchwrap_instance. Needed where --airflow does not show it.",
        ),
    ] = None,
) -> None:
    """List pools and jobs whose DAG run is over, and unused blobs; remove them with --delete."""
    import os

    from airflow_batchwrap.config.durations import parse_duration
    from airflow_batchwrap.stack import sweep as runner

    ages = []
    for name, given in (("--older-than", older_than), ("--unused-for", unused_for)):
        try:
            ages.append(None if given is None else parse_duration(given))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=name) from None
    password, token = (os.environ.get(f"BATCHWRAP_AIRFLOW_{name}") for name in ("PASSWORD", "TOKEN"))
    whom = airflow, user, password, token
    runner.run(runner.SweepOptions(delete, ages[0], conn_id, *whom, ages[1], wasb_conn_id, instance), _console())


@app.command()
def run(
    steps: Annotated[Path, typer.Argument(help="Folder of step files.")],
    args: Annotated[list[str] | None, typer.Argument(help="The first step's arguments, after --.")] = None,
    inputs: Annotated[
        list[Path] | None, typer.Option("--input", help="File or folder that steps find by name.")
    ] = None,
    param: Annotated[list[str] | None, typer.Option("--param", help="NAME=VALUE, for engine.params.")] = None,
    java_options: Annotated[
        str, typer.Option("--java-options", help="For steps that are jars, such as '-Xmx2g'.", show_default=False)
    ] = "",
    results: Annotated[Path, typer.Option("--results", help="Folder for the files that steps chose.")] = Path(
        "results"
    ),
    work: Annotated[
        Path | None,
        typer.Option("--work", help="Folder for working directories, kept. Else they are kept after a step failed."),
    ] = None,
) -> None:
    """Run a folder of steps on this machine, without Airflow and without Batch."""
    import shlex
    import shutil
    import tempfile

    params = dict(_name_and_value(each) for each in param or [])
    folder = work or Path(tempfile.mkdtemp(prefix="batchwrap-run-"))
    stays = work is not None
    try:
        _run_steps(steps, args or [], inputs or [], params, folder, results, java_options)
    except StepFailed:
        if not stays:
            # What the steps printed is in it, and the message names its files.
            typer.echo(f"Working directories and logs are kept: rm -r {shlex.quote(str(folder))}", err=True)
        stays = True
        raise
    finally:
        if not stays:
            shutil.rmtree(folder, ignore_errors=True)


def _run_steps(
    steps: Path,
    args: list[str],
    inputs: list[Path],
    params: dict[str, str],
    work: Path,
    results: Path,
    java_options: str,
) -> None:
    import json
    import shlex

    from airflow_batchwrap.engine_run import StepReport, run_workflow

    def report(step: StepReport) -> None:
        after = "" if step.exit_code is None else f"  {step.seconds:.1f} s, exit code {step.exit_code}"
        typer.echo(f"{step.step}: {step.state}{after}", err=True)

    try:
        options = shlex.split(java_options)
    except ValueError as error:
        raise typer.BadParameter(f"{error}: close the quote", param_hint="--java-options") from None
    done = run_workflow(steps, args, inputs, params, work=work, results=results, java_options=options, on_step=report)
    for file in done.files:
        typer.echo(f"file: {file}", err=True)
    # The value alone goes to stdout, for the next program to read.
    typer.echo(json.dumps(done.value, ensure_ascii=False))


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--param")
    return name, value


if __name__ == "__main__":
    app()
