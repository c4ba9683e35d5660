"""Ids are legal, readable, stable, and never shared by two originals."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from airflow_batchwrap import naming
from airflow_batchwrap.naming import Attempt

LEGAL = re.compile(r"[A-Za-z0-9_-]{1,64}")
CONTAINER = re.compile(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*")
texts = st.text(min_size=1, max_size=300)


@given(texts, texts, texts, st.integers(-1, 10_000), st.integers(1, 999), st.integers(1, 20))
def test_setup_ids_are_legal(dag: str, scope: str, run: str, index: int, epoch: int, number: int) -> None:
    assert LEGAL.fullmatch(naming.setup_id(dag, scope, run, index, epoch, number))


@given(texts, texts, st.integers(-1, 10_000), st.integers(1, 999), st.integers(1, 9999))
def test_step_ids_are_legal_and_begin_with_their_family(
    task: str, step: str, index: int, epoch: int, number: int
) -> None:
    attempt = Attempt(epoch, number)
    found = naming.step_id(task, step, index, attempt)
    assert LEGAL.fullmatch(found)
    family = naming.step_family(task, step, index)
    assert found.startswith(family)
    assert Attempt.parse(found[len(family) :]) == attempt


@given(st.lists(st.tuples(texts, texts), min_size=2, max_size=6, unique=True))
def test_two_originals_never_share_an_id(originals: list[tuple[str, str]]) -> None:
    ids = {naming.setup_id(dag, dag, run, -1, 1).lower() for dag, run in originals}
    assert len(ids) == len(originals)


def test_ids_that_differ_by_case_differ() -> None:
    # Batch compares without regard to case, Airflow does not.
    one, other = naming.setup_id("pi", "pi", "Run", -1, 1), naming.setup_id("pi", "pi", "run", -1, 1)
    assert one.lower() != other.lower()


def test_ids_are_readable() -> None:
    run = "manual__2026-11-22T19:00:01.512345+00:00"
    assert naming.setup_id("pi", "pi", run, -1, 1).startswith("pi-manual-20261122T190001-")
    assert naming.step_id("pi.1_extract", "1_extract", 3, Attempt(2, 4)).startswith("1_extract-3-")
    assert naming.step_id("pi.1_extract", "1_extract", 3, Attempt(2, 4)).endswith("-e2-a4")


@given(texts)
def test_container_names_are_legal(dag: str) -> None:
    assert CONTAINER.fullmatch(naming.container_name(dag))


def test_runs_have_folders_of_their_own() -> None:
    assert naming.run_prefix("a:b", "x") != naming.run_prefix("a-b", "x")
    assert naming.run_prefix("a", "x") != naming.run_prefix("a", "y")


def test_an_attempt_is_read_back_and_nothing_else_is() -> None:
    assert Attempt.parse("e1-a2") == Attempt(1, 2)
    assert Attempt.parse("e1") is None
    assert Attempt.parse("result") is None
