"""The name of a real Airflow: one for all tasks that ask at once, and what `batchwrap sweep` learns of it."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.instance import PROPOSAL, VARIABLE
from airflow_batchwrap.stack.sweep import RunStates, SweepOptions

if TYPE_CHECKING:
    from tests.support.real_airflow import RealAirflow

pytestmark = pytest.mark.timeout(600)

AT_ONCE = 5
DAG = """
    from airflow.sdk import DAG, Variable, task

    with DAG("names_itself", schedule=None):
        @task
        def ask(number):
            import os

            from airflow_batchwrap.instance import name_of_instance

            configured = name_of_instance()
            os.environ["AIRFLOW__BATCHWRAP__INSTANCE"] = ""  # of this task's process
            return [configured, name_of_instance()]

        ask.expand(number=list(range(AT_ONCE)))

    with DAG("forgets_its_name", schedule=None):
        @task
        def forget():
            Variable.delete("VARIABLE")

        forget()
"""


@pytest.fixture(scope="module")
def names(stack: RealAirflow) -> Iterator[list[list[str]]]:
    """What tasks that ask at once are told: the configured name, and the one that is kept."""

    def write(folder: Path) -> None:
        text = textwrap.dedent(DAG).replace("AT_ONCE", str(AT_ONCE)).replace("VARIABLE", VARIABLE)
        (folder / "names.py").write_text(text)

    stack.add_dags("names", write)
    stack.airflow.wait_for_dag("names_itself")
    run_id = run(stack, "names_itself")
    yield [
        stack.ask(lambda index=index: stack.client.xcom("names_itself", run_id, "ask", map_index=index))  # type: ignore[misc]
        for index in range(AT_ONCE)
    ]
    run(stack, "forgets_its_name")


def run(stack: RealAirflow, dag_id: str) -> str:
    """Run a DAG to its success."""
    client = stack.client
    run_id = stack.ask(lambda: client.trigger(dag_id))
    stack.wait(f"the end of {dag_id}", lambda: client.run_state(dag_id, run_id) in ("success", "failed"), 300)
    assert stack.ask(lambda: client.run_state(dag_id, run_id)) == "success"
    return run_id


def test_tasks_that_ask_at_once_have_one_name_and_the_configuration_wins(
    stack: RealAirflow, names: list[list[str]]
) -> None:
    assert {configured for configured, _ in names} == {os.environ["AIRFLOW__BATCHWRAP__INSTANCE"]}
    (kept,) = {kept for _, kept in names}
    assert len(kept) == 8
    held = stack.query("select key from variable where key like 'batchwrap%'")
    assert (held, PROPOSAL in str(held)) == ([(VARIABLE,)], False)


def test_the_sweep_asks_the_airflow_for_its_name(stack: RealAirflow, names: list[list[str]]) -> None:
    kept, air = names[0][1], stack.airflow
    options = SweepOptions(False, None, "azure_batch_default", air.url, air.user, air.password)
    with RunStates(options) as states:
        name, source = stack.ask(lambda: states.instance(None))
        assert name == kept
        assert source == f"its variable {VARIABLE}; it does not show whether [batchwrap] instance is set"
        assert stack.ask(lambda: states.instance(kept))[0] == kept
        with pytest.raises(ConfigError, match=f"--instance is 'production', and the Airflow at --airflow is '{kept}'"):
            stack.ask(lambda: states.instance("production"))
