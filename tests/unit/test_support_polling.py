"""The one way to wait in a test: it returns what it found, and at its deadline says what did not come."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.polling import until


def test_what_was_found_is_returned() -> None:
    left = iter([None, 0, "", "there", "not asked for"])
    assert until(lambda: next(left), "the word", pause=0) == "there"
    assert next(left) == "not asked for"


def test_the_deadline_says_what_did_not_come() -> None:
    with pytest.raises(AssertionError, match=r"^Not within 0\.1 s: a node that is idle$"):
        until(lambda: False, "a node that is idle", 0.1)


def test_words_may_be_made_at_the_deadline() -> None:
    states: list[str] = []
    with pytest.raises(AssertionError, match="the run's end; its tasks: failed"):
        until(lambda: states.append("failed"), lambda: f"the run's end; its tasks: {states[-1]}", 0)


def test_without_words_it_says_the_look_itself() -> None:
    nodes: list[str] = []
    with pytest.raises(AssertionError, match=r'nodes == \["idle"\]'):
        until(lambda: nodes == ["idle"], timeout=0)
    with pytest.raises(AssertionError, match="exists"):
        until(Path("/no such file").exists, timeout=0)


def test_an_error_of_the_look_is_no_reason_to_look_again() -> None:
    with pytest.raises(ZeroDivisionError):
        until(lambda: 1 / 0, "nothing")


def test_there_is_a_look_at_the_deadline() -> None:
    """A machine that slept between two looks must not make a wait fail whose end has come meanwhile."""
    began = time.monotonic()
    assert until(lambda: time.monotonic() - began > 0.15, "0.15 s", 0.1, pause=0.2)


def test_a_process_of_its_own_can_import_it() -> None:
    """It needs nothing but the standard library and the repository on the path: tasks of a real Airflow use it."""
    root = Path(__file__).parents[2]
    code = "from tests.support.polling import until; until(int, 'more than 0', 0)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(root)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "AssertionError: Not within 0 s: more than 0" in done.stderr
