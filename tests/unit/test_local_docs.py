"""The pages of the local service name what there is: its options, faults, quotas and roles, and nothing else."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from airflow_batchwrap.local import faults, identity, quotas
from airflow_batchwrap.local.commands import app

DOCS = Path(__file__).parents[2] / "docs"


def text(page: str = "local-service.md") -> str:
    """A page."""
    return (DOCS / page).read_text(encoding="utf-8")


def first_cells(heading: str) -> set[str]:
    """What is in code in the first column of the first table below a heading or a table's own head."""
    rows = re.search(rf"^{re.escape(heading)}.*?\n((?:\|[^\n]*\n)+)", text(), re.M | re.S)
    assert rows is not None, heading
    cells = [row.split("|")[1] for row in rows[1].splitlines()]
    return {code.split()[0] for cell in cells for code in re.findall(r"`([^`]+)`", cell)}


def test_every_option_is_there() -> None:
    commands: Any = typer.main.get_command(app)
    known = {each.opts[0] for each in commands.commands["serve"].params if not each.hidden} - {"--help"}
    assert first_cells("| Option of `serve` and `start`") == known


def test_start_takes_every_option_of_serve() -> None:
    """But for the one that is for the tests alone."""
    commands: Any = typer.main.get_command(app)
    serve, start = ({each.name for each in commands.commands[name].params} for name in ("serve", "start"))
    assert serve - start == {"turns"}
    assert not start - serve


def test_every_fault_and_quota_is_there() -> None:
    assert first_cells("### Faults") - {"seed"} == set(faults.KINDS)
    assert first_cells("### Quotas") == set(quotas.KINDS)


def test_every_role_is_there() -> None:
    row = next(line for line in text().splitlines() if line.startswith("| `--role NAME`"))
    assert set(re.findall(r"`(\w+)`", row.split("|")[3])) == set(identity.ROLES)


@pytest.mark.parametrize("page", ["local-service.md", "local-page.md"])
def test_tables_end_before_the_text_goes_on(page: str) -> None:
    """A line right below a table is shown as a row of it."""
    lines = text(page).splitlines()
    after = [line for before, line in itertools.pairwise(lines) if before.startswith("|") and line]
    assert [line for line in after if not line.startswith("|")] == []
