"""One real Airflow for all tests of a module, and the table of what the kill matrix came to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from rich.table import Table

from tests.support.kill_stack import DAG_ID, KillStack

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.stack.azurite import AzuriteService
    from tests.kills.test_kills import Cell, Evidence, Record


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, azurite: AzuriteService) -> Iterator[KillStack]:
    """All of it, for all tests of a module; it is gone before other tests start theirs."""
    folder: Path = tmp_path_factory.mktemp("kills").resolve()
    with KillStack.running(folder, azurite) as made:
        made.airflow.wait_for_dag(DAG_ID)
        yield made


@pytest.fixture(scope="module")
def batch(stack: KillStack) -> Iterator[BatchClient]:
    """Azure's own client, to look at what the steps made."""
    with stack.batch() as made:
        yield made


_cells: list[tuple[Cell, Evidence | None, list[str]]] = []


@pytest.fixture(scope="session")
def record() -> Record:
    """Take down what a cell came to, for the table at the end."""

    def take(cell: Cell, evidence: Evidence | None, problems: list[str]) -> None:
        if all(known[0] != cell for known in _cells):
            _cells.append((cell, evidence, problems))

    return take


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print a table of all cells, and leave its figures in .cache/kill-matrix.json."""
    if not _cells:
        return
    table = Table(title="Kill matrix")
    for heading in ("killed", "when", "waits", "outcome", "tries", "asked", "created", "bodies", "reports", "result"):
        table.add_column(heading)
    for cell, evidence, problems in _cells:
        notes = evidence.notes if evidence else {}
        numbers: list[object] = [""] * 5
        if evidence:
            made = sum(note["made"] for note in notes["submitted"])
            numbers = [evidence.tries, len(notes["asked"]), made, len(notes["bodies"]), len(notes["retries"])]
        outcome = "fails once" if cell.fails else "returns"
        waits = "inline" if cell.inline else "deferred"
        result = "; ".join(problems) or "as it should be"
        table.add_row(cell.kill, cell.phase, waits, outcome, *map(str, numbers), result)
    seconds = sum(evidence.seconds for _, evidence, _ in _cells if evidence)
    wrong = sum(bool(problems) for _, _, problems in _cells)
    terminalreporter.ensure_newline()
    console = Console(file=terminalreporter._tw._file, width=160)
    console.print(table)
    console.print(f"{len(_cells)} cells in {seconds:.0f} s, {wrong} not as they should be")
    figures = config.rootpath / ".cache/kill-matrix.json"
    figures.parent.mkdir(exist_ok=True)
    killed = Counter(cell.kill for cell, _, _ in _cells)
    figures.write_text(json.dumps({"cells": len(_cells), "seconds": round(seconds), "wrong": wrong, "killed": killed}))
