"""The name of an Airflow: one, whoever makes it, and legal."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from airflow_batchwrap import instance
from airflow_batchwrap.exceptions import ConfigError, PoolError
from airflow_batchwrap.naming import INSTANCE

_SETTLED = 0.3  # seconds, in place of one: this process asks itself


@dataclass
class Variables:
    """What Airflow keeps, behind the three calls that tasks have; each is slow at random, and stalls where asked to.

    :param stalls: thread's name -> seconds before its first write.
    """

    stalls: dict[str, float] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    written: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: str, default: str = "") -> str:
        self._be_slow()
        with self.lock:
            return self.held.get(key, default)

    def set(self, key: str, value: str, description: str) -> None:
        self._be_slow()
        time.sleep(self.stalls.pop(threading.current_thread().name, 0.0))
        with self.lock:
            self.written.append((key, value))
            self.held[key] = value

    def delete(self, key: str) -> None:
        with self.lock:
            self.held.pop(key, None)

    def _be_slow(self) -> None:
        time.sleep(random.uniform(0, _SETTLED / 10))


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Variables:
    made = Variables()
    monkeypatch.setattr("airflow.sdk.Variable", made)
    monkeypatch.setattr(instance, "_SETTLED", _SETTLED)
    monkeypatch.setenv("AIRFLOW__BATCHWRAP__INSTANCE", "")
    return made


def ask_at_once(count: int) -> set[str]:
    with ThreadPoolExecutor(count, thread_name_prefix="asks") as pool:
        return set(pool.map(lambda _: instance.name_of_instance(), range(count)))


def test_many_that_ask_at_once_have_one_name_and_it_stays(variables: Variables) -> None:
    (name,) = ask_at_once(16)
    assert variables.held == {instance.VARIABLE: name}
    assert {value for key, value in variables.written if key == instance.VARIABLE} == {name}
    count = len(variables.written)
    assert ask_at_once(4) == {name}
    assert len(variables.written) == count


@pytest.mark.parametrize("settled", [0.5, 1.5, 4.0])
def test_a_task_that_stalls_before_it_writes_its_proposal_takes_the_others_name(
    variables: Variables, settled: float
) -> None:
    variables.stalls = {"asks_0": settled * _SETTLED}
    (name,) = ask_at_once(4)
    assert variables.held == {instance.VARIABLE: name}


def test_a_proposal_whose_task_was_killed_is_taken_up(variables: Variables) -> None:
    variables.held[instance.PROPOSAL] = "0a1b2c3d"
    assert ask_at_once(2) == {"0a1b2c3d"}
    assert variables.held == {instance.VARIABLE: "0a1b2c3d"}


def test_a_name_that_was_deleted_is_made_anew(variables: Variables) -> None:
    before = ask_at_once(1)
    del variables.held[instance.VARIABLE]
    assert ask_at_once(1) != before


def test_the_configuration_wins(variables: Variables, monkeypatch: pytest.MonkeyPatch) -> None:
    variables.held[instance.VARIABLE] = "kept"
    assert instance.name_of_instance() == "kept"
    monkeypatch.setenv("AIRFLOW__BATCHWRAP__INSTANCE", "production")
    assert instance.name_of_instance() == "production"
    assert variables.written == []


@pytest.mark.parametrize("name", ["a b", "a/b", "ä", "x" * 65, "a\n", "<prod>"])
def test_a_bad_name_is_refused(variables: Variables, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    variables.held[instance.VARIABLE] = name
    with pytest.raises(ConfigError, match="use 1 to 64 letters"):
        instance.name_of_instance()
    variables.held.clear()
    monkeypatch.setenv("AIRFLOW__BATCHWRAP__INSTANCE", f"x{name}")
    with pytest.raises(ConfigError, match=r"\[batchwrap\] instance"):
        instance.name_of_instance()


def test_what_is_refused_and_why() -> None:
    assert instance.why_not_ours({INSTANCE: "here"}, "here") == ""
    assert instance.why_not_ours({INSTANCE: "Here"}, "here") == "made by the Airflow 'Here'"
    assert instance.why_not_ours({}, "here") == "bears no instance"
    instance.refuse_anothers("Pool 'p'", {}, "here")  # whoever names it knows whose it is
    with pytest.raises(PoolError, match="Pool 'p' was made by the Airflow 'there', and this is the Airflow 'here'"):
        instance.refuse_anothers("Pool 'p'", {INSTANCE: "there"}, "here")
