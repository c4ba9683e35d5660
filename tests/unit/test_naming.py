"""Ids are legal, readable, stable, and never shared by two originals."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batchwrap import naming
from airflow_batchwrap.naming import Attempt, Maker

LEGAL = re.compile(r"[A-Za-z0-9_-]{1,64}")
CONTAINER = re.compile(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*")
texts = st.text(min_size=1, max_size=300)


@given(texts, texts, texts, texts, st.integers(-1, 10_000), st.integers(1, 999), st.integers(1, 20))
def test_setup_ids_are_legal_and_tell_their_order(
    dag: str, scope: str, task: str, run: str, index: int, epoch: int, number: int
) -> None:
    family = Maker("here", dag, run, task, index, scope).family
    suffix = naming.setup_suffix(epoch, number)
    assert LEGAL.fullmatch(family + suffix)
    assert naming.setup_order(suffix) == (epoch, number)


@pytest.mark.parametrize("suffix", ["", "e", "e1-", "x", "e1-2-3", "1-a1"])
def test_something_else_is_no_order(suffix: str) -> None:
    assert naming.setup_order(suffix) is None


@given(texts, st.integers(-1, 10_000), st.integers(1, 999), st.integers(1, 9999))
def test_step_ids_are_legal_and_begin_with_their_family(task: str, index: int, epoch: int, number: int) -> None:
    attempt = Attempt(epoch, number)
    found = naming.step_id(task, index, attempt)
    assert LEGAL.fullmatch(found)
    family = naming.step_family(task, index)
    assert found.startswith(family)
    assert Attempt.parse(found[len(family) :]) == attempt


@given(st.lists(st.tuples(texts, texts), min_size=2, max_size=6, unique=True))
def test_two_originals_never_share_an_id(originals: list[tuple[str, str]]) -> None:
    ids = {Maker("here", dag, run, "create", scope=dag).family.lower() for dag, run in originals}
    assert len(ids) == len(originals)


def test_ids_that_differ_by_case_differ() -> None:
    # Batch compares without regard to case, Airflow does not.
    one, other = (Maker("here", "pi", run, "pi.create", scope="pi").family for run in ("Run", "run"))
    assert one.lower() != other.lower()


def test_two_set_ups_of_one_group_have_ids_of_their_own() -> None:
    one, other = (Maker("here", "pi", "run", task, scope="g").family for task in ("g.a", "g.b"))
    assert one != other


def test_ids_are_readable() -> None:
    run = "manual__2026-11-22T19:00:01.512345+00:00"
    assert Maker("here", "pi", run, "pi.create", scope="pi").family.startswith("pi-manual-20261122T190001-")
    assert naming.step_id("pi.1_extract", 3, Attempt(2, 4)).startswith("1_extract-3-")
    assert naming.step_id("pi.1_extract", 3, Attempt(2, 4)).endswith("-e2-a4")


ROLES: tuple[naming.ContainerRole, ...] = ("results", "inputs", "secrets")


@given(texts, texts, texts)
def test_container_names_are_legal_and_each_dags_own(dag: str, other: str, instance: str) -> None:
    makers = {Maker(where, each, "r", "t") for where in {"here", instance} for each in {dag, other}}
    names = {maker.container_for(role) for maker in makers for role in ROLES}
    assert all(CONTAINER.fullmatch(name) for name in names)
    assert len(names) == len(ROLES) * len(makers)


def test_a_dag_named_like_another_ones_container_has_its_own() -> None:
    assert naming.container_name("pi", "here", "inputs").startswith("batchwrap-in-pi-")
    assert naming.container_name("in-pi", "here").startswith("batchwrap-in-pi-")
    assert naming.container_name("pi", "here", "inputs") != naming.container_name("in-pi", "here")


@given(texts, texts)
def test_containers_tell_whose_they_are_in_plain_ascii(dag: str, instance: str) -> None:
    marks = Maker(instance, dag, "r", "t").container_marks("1.0", "inputs")
    assert all(value.isascii() and value.isprintable() for value in marks.values())
    assert unquote(marks[naming.CONTAINER_DAG]) == dag
    assert unquote(marks[naming.INSTANCE]) == instance


def test_two_airflows_share_no_name() -> None:
    one, other = (Maker(instance, "pi", "scheduled__2026-11-22", "pi.create", scope="pi") for instance in ("a", "b"))
    assert one.family != other.family
    assert one.mark != other.mark
    assert one.container != other.container
    assert one.folder != other.folder
    assert one.metadata("1", 1)["batchwrap_instance"] == "a"


def test_runs_have_folders_of_their_own() -> None:
    assert naming.run_prefix("a:b", "x") != naming.run_prefix("a-b", "x")
    assert naming.run_prefix("a", "x") != naming.run_prefix("a", "y")
    assert len({naming.run_prefix("a", "x", index) for index in (-1, 0, 1)}) == 3


def test_result_folders_are_named_by_the_task() -> None:
    assert naming.result_folder("g.1_a", "g", -1) == "1_a"
    assert naming.result_folder("outer.g.1_a", "outer.g", 3) == "1_a[3]"
    assert naming.result_folder("1_a", "", -1) == "1_a"
    # Another group's task may have the same name.
    others = {naming.result_folder(task, "g", -1) for task in ("g.1_a", "1_a", "h.1_a", "g.h.1_a")}
    assert len(others) == 4


def test_an_attempt_is_read_back_and_nothing_else_is() -> None:
    assert Attempt.parse("e1-a2") == Attempt(1, 2)
    assert Attempt.parse("e1") is None
    assert Attempt.parse("result") is None
