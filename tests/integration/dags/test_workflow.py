"""What a folder of steps becomes when a DAG file is parsed: tasks, their order, and nothing more."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from airflow.sdk import DAG

HEAD = """
from datetime import timedelta
from airflow.sdk import DAG, TaskGroup, task
from airflow_batchwrap import BatchWorkflow, PoolConfig, WorkflowConfig, RunBatchTaskOperator
"""
PARSE = """
import runpy, sys
runpy.run_path(sys.argv[1])
loaded = sorted(name for name in sys.modules if name.split(".")[0] in ("azure", "adlfs", "msal"))
print(loaded)
"""


def steps(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".airflowignore").write_text("*\n")
    for name in names:
        (folder / name).write_text("def do_action(engine, *args):\n    pass\n")


def parse(folder: Path, body: str) -> DAG:
    """Parse a DAG file as Airflow does, serialization included, and return its DAG."""
    from airflow.dag_processing.dagbag import DagBag
    from airflow.serialization.serialized_objects import DagSerialization

    (folder / "flow.py").write_text(HEAD + body)
    bag = DagBag(folder, bundle_path=folder, bundle_name="dags-folder")
    assert bag.import_errors == {}
    (dag,) = bag.dags.values()
    DagSerialization.serialize_dag(dag)
    return dag


def edges(dag: Any, task_id: str) -> tuple[set[str], set[str]]:
    found = dag.get_task(task_id)
    return found.upstream_task_ids, found.downstream_task_ids


def test_the_graph_of_a_folder(dags_folder: Path) -> None:
    steps(dags_folder / "steps", "1_a.py", "2_b.py", "2_c.py", "10_d.py", "helper.py", "_0_no.py")
    dag = parse(
        dags_folder,
        """
with DAG("flow", schedule=None):
    @task
    def before(): ...

    @task
    def after(value): ...

    @task
    def last(): ...

    flow = BatchWorkflow("w", steps="steps", pool_config={}, results="r")
    before() >> flow >> last()
    after(flow.output)
""",
    )
    work = {"w.1_a", "w.2_b", "w.2_c", "w.10_d"}
    assert set(dag.task_ids) == work | {"w.create_pool", "w.fetch_results", "w.clean_up", "before", "after", "last"}
    # The chain itself says that the later ones come after the set-up.
    assert edges(dag, "w.create_pool") == ({"before"}, {"w.1_a", "w.clean_up"})
    assert edges(dag, "w.1_a") == ({"w.create_pool"}, {"w.2_b", "w.2_c", "w.clean_up"})
    assert edges(dag, "w.10_d") == ({"w.2_b", "w.2_c"}, {"w.fetch_results", "w.clean_up", "after"})
    # The clean-up waits for every step: one of a stage may fail while its siblings are at work.
    assert edges(dag, "w.clean_up")[0] == work | {"w.create_pool", "w.fetch_results"}
    assert edges(dag, "w.clean_up")[1] == set()
    # What comes after the group waits for its results and not for its clean-up.
    assert edges(dag, "last")[0] == {"w.fetch_results"}
    assert edges(dag, "after")[0] == {"w.10_d"}
    # A late step has its set-up through the chain: it is cleared with it, and skipped where that fails.
    late: Any = dag.get_task("w.10_d")
    assert [task.task_id for task in late.get_upstreams_only_setups()] == ["w.create_pool"]
    clean_up: Any = dag.get_task("w.clean_up")
    assert clean_up.is_teardown
    assert not clean_up.on_failure_fail_dagrun
    assert dag.get_task("w.create_pool").is_setup
    # What makes room for other runs goes before what asks for it.
    weights = [dag.get_task(name).weight_rule for name in dag.task_ids if name.startswith("w.")]
    assert set(map(str, weights)) == {"upstream"}


def test_the_folder_as_it_is_when_the_dag_is_parsed(dags_folder: Path) -> None:
    body = 'with DAG("flow", schedule=None):\n    BatchWorkflow("w", steps="steps", pool_config={})\n'
    steps(dags_folder / "steps", "1_a.py", "2_b.py")
    assert {"w.1_a", "w.2_b"} < set(parse(dags_folder, body).task_ids)
    steps(dags_folder / "steps", "3_new.py")
    (dags_folder / "steps/2_b.py").rename(dags_folder / "steps/2_renamed.py")
    dag = parse(dags_folder, body)
    assert {name for name in dag.task_ids if name[2].isdigit()} == {"w.1_a", "w.2_renamed", "w.3_new"}
    assert edges(dag, "w.3_new")[0] == {"w.2_renamed"}


def test_workflows_beside_and_within_other_things(dags_folder: Path) -> None:
    steps(dags_folder / "steps", "1_a.py", "2_b.py")
    dag = parse(
        dags_folder,
        """
with DAG("flow", schedule=None, default_args={"retries": 4}) as dag:
    one = BatchWorkflow("one", steps="steps", pool_config={}, config=WorkflowConfig(step_timeout="2 h"))
    with TaskGroup("outer") as outer:
        two = BatchWorkflow(
            "two", steps="steps", pool_id="p", default_args={"retries": 2}, task_args={"retry_delay": timedelta(1)}
        )
        three = BatchWorkflow("three", steps="steps", pool_id="p", repurpose=False, prefix_group_id=False)
    one >> outer
four = BatchWorkflow("four", steps="steps", pool_config={}, dag=dag, deferrable=False)
""",
    )
    assert {"one.create_pool", "outer.two.repurpose_pool", "use_pool", "four.create_pool"} < set(dag.task_ids)
    assert {"outer.two.1_a", "1_a", "four.2_b"} < set(dag.task_ids)
    assert edges(dag, "outer.two.repurpose_pool")[0] == {"one.2_b"}
    assert edges(dag, "use_pool")[0] == {"one.2_b"}
    tasks: dict[str, Any] = {name: dag.get_task(name) for name in dag.task_ids}
    assert {tasks[name].retries for name in tasks if not name.startswith("outer.two.")} == {4}
    assert {tasks[name].retries for name in tasks if name.startswith("outer.two.")} == {2}
    assert tasks["outer.two.2_b"].retry_delay == timedelta(1)
    assert tasks["one.1_a"].settings.step_timeout == timedelta(hours=2)
    assert not tasks["four.1_a"].deferrable
    # Ids that Batch compares: each workflow's own.
    context = {"run_id": "r", "ti": type("Ti", (), {"map_index": -1})}
    set_ups = [task for task in tasks.values() if task.is_setup]
    assert len({task.maker(context).family for task in set_ups}) == len(set_ups) == 4


def test_the_workflow_section_of_the_pools_file_counts(dags_folder: Path) -> None:
    steps(dags_folder / "steps", "1_a.py")
    (dags_folder / "batch.json").write_text(
        '{"task_slots_per_node": 2, "workflow": {"job_wall_clock": "3 days", "task_slots": 2}}'
    )
    dag = parse(
        dags_folder,
        'with DAG("flow", schedule=None):\n    BatchWorkflow("w", steps="steps", pool_config="batch.json")\n',
    )
    step: Any = dag.get_task("w.1_a")
    assert (step.settings.job_wall_clock, step.settings.task_slots) == (timedelta(days=3), 2)
    set_up: Any = dag.get_task("w.create_pool")
    assert set_up.settings.job_wall_clock == timedelta(days=3)


def test_slots_that_no_node_has_are_an_error_at_parse(dags_folder: Path) -> None:
    from airflow.sdk import DAG

    from airflow_batchwrap import BatchWorkflow, ConfigError, WorkflowConfig

    steps(dags_folder / "steps", "1_a.py")
    given: dict[str, Any] = {"steps": dags_folder / "steps", "pool_config": {}}
    with DAG("flow", schedule=None):
        with pytest.raises(ConfigError, match=r"task_slots = 2 is more than the 1 that a node of its pool has"):
            BatchWorkflow("one", config=WorkflowConfig(task_slots=2), **given)
        # What is known only when a task runs is judged then.
        late = BatchWorkflow("two", config=WorkflowConfig(task_slots="{{ params.slots }}"), **given)
    assert late.steps["1_a"].task_slots == "{{ params.slots }}"


def test_parsing_loads_nothing_of_azure(dags_folder: Path) -> None:
    steps(dags_folder / "steps", "1_a.py", "2_b.py")
    (dags_folder / "flow.py").write_text(
        HEAD
        + """
with DAG("flow", schedule=None):
    flow = BatchWorkflow("w", steps="steps", pool_config=PoolConfig(vm_size="Standard_D2s_v3"), results="r")
    RunBatchTaskOperator(task_id="one", pool_id="p", command="true")
"""
    )
    script = [sys.executable, "-c", PARSE, str(dags_folder / "flow.py")]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
