"""What callbacks, a listener and an XCom backend note of the DAG ``ordinary``, and how a test reads it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLUGINS = Path(__file__).parent / "plugins"
TASKS = ("WAY.one", "WAY.many", "WAY.bad", "WAY.final")

# Seconds that deferred work takes on a real Airflow, which fails a task that is back from the triggerer before its
# scheduler has heard that it went there, whoever's task it is.
PAUSE = 10


def noting(notes: Path, pause: int = PAUSE) -> dict[str, str]:
    """Return the settings that bring the plugin into an Airflow. It minds the DAGs ``ordinary`` and ``consumer`` only.

    :param notes: the file for its notes.
    :param pause: seconds that deferred work takes.
    """
    path = [str(PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "ORDINARY_NOTES": str(notes),
        "ORDINARY_PAUSE": str(pause),
        "PYTHONPATH": os.pathsep.join(path),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PLUGINS),
        "AIRFLOW__CORE__XCOM_BACKEND": "noting.WrappingXCom",
    }


@dataclass
class Seen:
    """What callbacks, listener and XCom backend noted of one run, and what is in Airflow's database after it."""

    log: Path
    home: Path

    def notes(self, way: str, *wanted: str) -> list[dict[str, Any]]:
        """Return the notes of a way, all or those of some kinds, with WAY for its name."""
        lines = [line.replace(f'"{way}', '"WAY') for line in self.log.read_text().splitlines() if f'"{way}' in line]
        notes = [json.loads(line) for line in lines]
        return [note for note in notes if not wanted or note["what"] in wanted]

    def tasks(self, way: str, without: Collection[str] = ()) -> dict[tuple[str, int], list[dict[str, Any]]]:
        """Return the notes of each task of a way, in order.

        :param without: kinds of notes to leave out.
        """
        found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for note in self.notes(way):
            task = note.pop("task", "")
            if task in TASKS and note["what"] not in without and note.get("key", "return_value") == "return_value":
                if task == "WAY.final":
                    # Without retries there are two all the same, for what is not the step's fault.
                    note.pop("of", None)
                found.setdefault((task, note.pop("index")), []).append(note)
        return found

    def rows(self, way: str, query: str) -> list[Any]:
        """Ask Airflow's database; return the rows as JSON has them, with WAY for the way's name."""
        with closing(sqlite3.connect(f"file:{self.home / 'airflow.db'}?mode=ro", uri=True)) as database:
            rows = database.execute(query, {"way": way}).fetchall()
        found: list[Any] = json.loads(json.dumps(rows).replace(way, "WAY"))
        return found

    def errors(self, way: str) -> Counter[tuple[str, str]]:
        """Return how often each error was logged in each file of a way's logs."""
        found: Counter[tuple[str, str]] = Counter()
        for path in self.home.glob(f"logs/*/*/task_id={way}.*/**/attempt=*.log"):
            events = [json.loads(line) for line in path.read_text().splitlines()]
            name = "/".join(path.parts[path.parts.index("logs") + 3 :]).replace(way, "WAY")
            found.update((name, event["event"]) for event in events if event["level"] in ("error", "critical"))
        return found
