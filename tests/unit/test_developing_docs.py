"""docs/developing.md names every fixture, and no file and no make target that is not there; nor does the map."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "developing.md").read_text(encoding="utf-8")
CODE = set(re.findall(r"`([^`\n]+)`", PAGE))


def fixtures(path: Path) -> list[str]:
    """Name the fixtures of a file."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return [each.name for each in functions if any("pytest.fixture" in ast.unparse(on) for on in each.decorator_list)]


def test_every_shared_fixture_is_on_the_map() -> None:
    files = sorted((ROOT / "tests").rglob("conftest.py"))
    assert len(files) > 4
    missing = {f"{path.relative_to(ROOT)}: {name}" for path in files for name in fixtures(path) if name not in CODE}
    assert missing == set()


def test_files_that_are_named_are_there() -> None:
    package, tests = ROOT / "airflow_batchwrap", ROOT / "tests"
    paths = [word for word in CODE if re.fullmatch(r"[\w./*]+/[\w./*]*\w+|test_\w+\.py", word)]
    assert len(paths) > 15
    missing = [
        word
        for word in paths
        if not any(list(base.rglob(word)) for base in (ROOT / "docs", package, tests)) and not list(ROOT.glob(word))
    ]
    assert missing == []


def test_make_targets_that_are_named_are_there() -> None:
    targets = re.findall(r"^([\w-]+)(?: \w+)*:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word.split()[1] for word in CODE if word.startswith("make ")} <= set(targets)


def test_modules_on_the_map_are_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = page.split("```")[1]
    room, missing, seen = "", [], 0
    for line in drawn.splitlines():
        if word := re.match(r"[a-z]+\b", line):
            room = word[0]
        for name in re.findall(r"\b\w+\.py\b", line):
            seen += 1
            if not (ROOT / "airflow_batchwrap" / room / name).exists():
                missing.append(f"{room}/{name}")
    assert seen > 30
    assert missing == []
