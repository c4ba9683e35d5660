"""What the demo shows of a DAG run: progress, the table of its tasks, its value, its files, its failure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from airflow_batchwrap.stack.rest import AirflowClient, TaskInstance

_COLOURS = {"success": "green", "failed": "red", "upstream_failed": "red", "running": "cyan", "deferred": "magenta"}
_STEP_NUMBER = re.compile(r"^(\d+)")
_NODE_DIGITS = re.compile(r"([0-9a-f]{8})[0-9a-f]{24,}")
# A value longer than this is cut: it is for a person to glance at.
_VALUE_CHARACTERS = 2000
_LOG_LINES = 40


@dataclass(frozen=True)
class Run:
    """One DAG run and the client to ask about it."""

    client: AirflowClient
    dag_id: str
    run_id: str

    def xcom(self, task: TaskInstance, key: str = "return_value") -> Any:
        """Read an XCom of one of its tasks; None where there is none."""
        return self.client.xcom(self.dag_id, self.run_id, task.task_id, key, task.map_index)

    def log(self, task: TaskInstance) -> list[str]:
        """Read the log of a task's last try."""
        return self.client.logs(self.dag_id, self.run_id, task.task_id, max(task.try_number, 1), task.map_index)


def label(task: TaskInstance) -> str:
    """Name a task for a person.

    :return: its id, with the map index where it is mapped.
    """
    return task.task_id if task.map_index < 0 else f"{task.task_id}[{task.map_index}]"


class Progress:
    """Print each change of a task's state as one line, and on a terminal show what runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._known: dict[str, str | None] = {}

    def __call__(self, tasks: list[TaskInstance]) -> None:
        """Take note of the tasks' states."""
        for task in tasks:
            name = label(task)
            if task.state and task.state != self._known.get(name) and task.state not in {"scheduled", "queued"}:
                self._console.print(f"  {escape(name)}: {_coloured(task.state)}")
            self._known[name] = task.state


def table(run: Run, tasks: list[TaskInstance]) -> Table:
    """Show each task's state, duration, node and exit code.

    :param tasks: its tasks, in the order to show.
    :return: the table; "-" stands for what a task does not have.
    """
    shown = Table(title=f"{escape(run.dag_id)}  {escape(run.run_id)}", title_justify="left")
    for heading in ("task", "state", "seconds", "node", "exit code"):
        shown.add_column(heading, justify="right" if heading in {"seconds", "exit code"} else "left", overflow="fold")
    for task in tasks:
        found = run.xcom(task, "batch")
        batch = found if isinstance(found, dict) else {}
        seconds = "-" if task.duration is None else f"{task.duration:.1f}"
        node, code = (batch.get(name) for name in ("node_id", "exit_code"))
        cells = ["-" if cell is None else escape(_short_node(str(cell))) for cell in (node, code)]
        shown.add_row(escape(label(task)), _coloured(task.state or "-"), seconds, *cells)
    return shown


def final_value(run: Run, tasks: list[TaskInstance]) -> Any:
    """Find what the workflow returned.

    :return: the value of the last step; a list of them where several steps share the last number; None without steps.
    """
    numbered = [(int(found[1]), task) for task in tasks if (found := _STEP_NUMBER.match(_stem(task)))]
    last = max((number for number, _ in numbered), default=None)
    values = [run.xcom(task) for number, task in sorted(numbered, key=lambda pair: pair[1].task_id) if number == last]
    return values[0] if len(values) == 1 else values or None


def value_text(value: Any) -> str:
    """Write a value for a person, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, indent=None)
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]}... ({len(text)} characters)"


def fetched_files(run: Run, tasks: list[TaskInstance]) -> list[str]:
    """List the files that were fetched.

    :return: their paths, relative to the current folder where they lie below it.
    """
    listed = [run.xcom(task) for task in tasks if _stem(task) == "fetch_results"]
    return [_shown(file["path"]) for files in listed if isinstance(files, list) for file in files]


def failures(run: Run, tasks: list[TaskInstance]) -> list[tuple[str, str]]:
    """Say which tasks failed, and why.

    :return: for each one that failed itself, its name and the end of its log; what was skipped after it is left out.
    """
    return [(label(task), "\n".join(run.log(task)[-_LOG_LINES:])) for task in tasks if task.state == "failed"]


def _short_node(node: str) -> str:
    """Leave of the 64 digits in a node's name the first eight: by these the nodes of a pool differ."""
    return _NODE_DIGITS.sub(r"\1...", node)


def _stem(task: TaskInstance) -> str:
    return task.task_id.rpartition(".")[2]


def _shown(path: str) -> str:
    here, there = Path.cwd(), Path(path)
    return str(there.relative_to(here)) if there.is_relative_to(here) else path


def _coloured(state: str) -> str:
    return f"[{_COLOURS.get(state, 'yellow')}]{escape(state)}[/]"
