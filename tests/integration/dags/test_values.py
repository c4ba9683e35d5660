"""Arguments and values on their way through a workflow, in whole DAG runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_batchwrap.workspace import ValueReference

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from tests.support.bench import Bench
    from tests.support.dag_runs import RunFile

ECHO = "def do_action(engine, *args):\n    return list(args)\n"
BIG = "def do_action(engine, *args):\n    return {'ü': list(args), 'big': ['\\u6f22' * 10] * 9000}\n"
SEEN = """def do_action(engine, *args):
    return [[len(x["big"]), x["ü"]] if isinstance(x, dict) else x for x in (args[0] if len(args) == 1 else args)]
"""


# Keys that mean something in Airflow's XComs, and in those of this package.
RESERVED = [{"__type": "datetime", "__var": 5}, {"__classname__": "a.B"}, {"batchwrap_reference": {}}]


def write(folder: Path, steps: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    (folder / ".airflowignore").write_text("*\n")
    for name, text in steps.items():
        (folder / name).write_text(text)


def test_values_travel_from_step_to_step(
    dags_folder: Path, run_file: RunFile, left_behind: Callable[[], list[str]], hook: BatchWrapHook
) -> None:
    write(
        dags_folder / "steps",
        {
            "1_first.py": ECHO,
            "2_none.py": "def do_action(engine, got):\n    print('got', got)\n",
            # A gap, and two side by side, one of them with a large value.
            "10_b_small.py": "def do_action(engine, *args):\n    return ['small', len(args), {'n': [None, 1.5]}]\n",
            "10_a_big.py": BIG,
            "011_seen.py": SEEN,
            "12_big.py": BIG,
            "13_seen.py": "def do_action(engine, x):\n    return [len(x['big']), x['ü']]\n",
            "14_big.py": BIG,
        },
    )
    (dags_folder / "values.py").write_text(
        """
from airflow.sdk import DAG, task
from airflow_batchwrap import BatchWorkflow, BatchWrapHook

with DAG("values", schedule=None, params={"word": "ünï cöde"}):
    flow = BatchWorkflow("w", steps="steps", args="plain '{{ params.word }}' 3", pool_config={})

    @task
    def after(value):
        return [sorted(value), len(BatchWrapHook().value_of(value)["big"]), BatchWrapHook().value_of([1, value])[0]]

    after(flow.output)
"""
    )
    run = run_file(dags_folder / "values.py")
    assert run.state == "success", run.log[-4000:]
    values = {name.removeprefix("w."): value for name, value in run.xcoms.items()}
    assert values["1_first"] == ["plain", "ünï cöde", "3"]
    assert "2_none" not in values
    assert values["10_b_small"] == ["small", 0, {"n": [None, 1.5]}]
    assert list(values["10_a_big"]) == ["batchwrap_reference"]
    seen = [[9000, []], ["small", 0, {"n": [None, 1.5]}]]
    assert values["011_seen"] == seen
    assert values["13_seen"] == [9000, [seen]]
    assert values["after"] == [["batchwrap_reference"], 9000, 1]
    # By reference means: not through Airflow.
    assert max(len(json.dumps(value)) for value in values.values()) < 48 * 1024
    assert hook.value_of(values["14_big"])["ü"] == [values["13_seen"]]
    assert left_behind() == []


def test_values_that_no_xcom_can_hold_travel_all_the_same(
    dags_folder: Path, run_file: RunFile, left_behind: Callable[[], list[str]]
) -> None:
    odd = "[12345678901234567890123, 'a\\0b', os.fsdecode(b'caf\\xe9'), 20.0]"
    write(
        dags_folder / "steps",
        {
            "1_give.py": f"import os\ndef do_action(engine):\n    return {odd}\n",
            "2_see.py": "def do_action(engine, got):\n    return [ascii(each) for each in got]\n",
        },
    )
    (dags_folder / "odd.py").write_text(
        """
from airflow.sdk import DAG
from airflow_batchwrap import BatchWorkflow

with DAG("odd", schedule=None):
    BatchWorkflow("w", steps="steps", pool_config={})
"""
    )
    run = run_file(dags_folder / "odd.py")
    assert run.state == "success", run.log[-4000:]
    assert list(run.xcoms["w.1_give"]) == ["batchwrap_reference"]
    assert run.xcoms["w.2_see"] == ["12345678901234567890123", r"'a\x00b'", r"'caf\udce9'", "20.0"]
    assert left_behind() == []


def test_templates_and_defaults_reach_every_part(
    dags_folder: Path, run_file: RunFile, left_behind: Callable[[], list[str]], hook: BatchWrapHook
) -> None:
    write(
        dags_folder / "single",
        {
            "only.py": "def do_action(engine, *args):\n"
            "    return [len(args), args[-1], engine.params['n'], engine.output_container]\n"
        },
    )
    once = (
        "import pathlib\n"
        "def do_action(engine, *args):\n"
        f"    marker = pathlib.Path({str(dags_folder / 'marker')!r})\n"
        "    if not marker.exists():\n"
        "        marker.touch()\n"
        "        raise OSError('not yet')\n"
        "    return [*args, engine.context['attempt']]\n"
    )
    write(dags_folder / "steps", {"1_a.py": ECHO, "2_b.py": once})
    (dags_folder / "late.py").write_text(
        """
from datetime import timedelta
from airflow.sdk import DAG, TaskGroup, task
from airflow_batchwrap import BatchWorkflow, CreatePoolOperator, DeletePoolOperator, PoolConfig, WorkflowConfig

with DAG(
    "late",
    schedule=None,
    params={"n": 2, "container": "templated-container", "minutes": 3, "wait": "0 s"},
    default_args={"retries": 1, "retry_delay": timedelta(0)},
) as dag:
    @task
    def lots():
        return ["x" * 100] * 200 + [{"k": "é"}]

    create = CreatePoolOperator(
        task_id="create_pool",
        pool_config=PoolConfig(
            target_dedicated_nodes="{{ params.n }}", min_nodes=1, pool_wait_timeout="{{ params.minutes }} min"
        ),
    )
    with TaskGroup("outer"):
        one = BatchWorkflow(
            "one",
            steps="single",
            args=lots(),
            pool_id=create.output["pool_id"],
            config=WorkflowConfig(
                output_container="{{ params.container }}",
                step_timeout="{{ params.minutes }} min",
                inline_wait="{{ params.wait }}",
                task_slots="{{ params.n - 1 }}",
            ),
        )
    two = BatchWorkflow(
        "two",
        steps="steps",
        args=["{{ run_id }}", 1, None],
        pool_id="{{ ti.xcom_pull('create_pool')['pool_id'] }}",
        repurpose=False,
    )

    @task
    def after(one, two):
        return [one, two]

    delete = DeletePoolOperator(task_id="delete_pool", workspace=create.output)
    create >> one >> two >> delete.as_teardown(setups=create)
    after(one.output, two.output)
"""
    )
    run = run_file(dags_folder / "late.py")
    assert run.state == "success", run.log[-4000:]
    assert run.xcoms["outer.one.only"] == [201, {"k": "é"}, 2, "templated-container"]
    assert run.xcoms["two.1_a"] == [run.run_id, 1, None]
    # Its first attempt failed, and Airflow tried it again.
    assert "OSError: not yet" in run.log
    assert run.xcoms["after"] == [run.xcoms["outer.one.only"], [[run.run_id, 1, None], 2]]
    workspace = run.xcoms["outer.one.repurpose_pool"]
    assert workspace["output_container"] == "templated-container"
    assert hook.list_blobs("templated-container", workspace["output_prefix"] + "/only/e1-a1/result.json")
    assert run.xcoms["two.use_pool"]["pool_id"] == run.xcoms["create_pool"]["pool_id"] == workspace["pool_id"]
    assert left_behind() == []


def test_hundreds_of_large_values_fan_in_to_one_step(
    bench: Bench, pool: str, client: BatchClient, hook: BatchWrapHook
) -> None:
    from airflow_batchwrap import RunBatchTaskOperator, UsePoolOperator
    from airflow_batchwrap.naming import container_name

    bench.steps(_1_sum="def do_action(engine, got):\n    return [len(got), sum(each[0] for each in got)]\n")
    workspace = bench.run(bench.make(UsePoolOperator, pool_id=pool, steps="steps"))
    results, passed = workspace["output_container"], []
    for number in range(300):
        data = json.dumps([number, "x" * 60_000]).encode()
        ref = hook.upload_bytes(results, f"made/{number}.json", data)
        passed.append(ValueReference(ref).to_xcom())
    work = bench.make(RunBatchTaskOperator, step="1_sum.py", workspace=workspace, value=passed)
    assert bench.run(work) == [300, sum(range(300))]

    (task,) = client.list_tasks(workspace["job_id"])
    files = task.resource_files or []
    assert len(json.dumps([file.as_dict() for file in files])) < 32_768
    (many,) = [file for file in files if file.blob_prefix]
    url = str(many.storage_container_url)
    assert f"/{container_name(bench.dag.dag_id, 'tests', 'inputs')}?" in url

    # A next attempt copies nothing anew, and what was lost on the way is told.
    own = container_name(bench.dag.dag_id, "tests", "inputs")
    before = hook.list_blobs(own, str(many.blob_prefix))
    assert len(before) == 300
    hook.blobs.get_container_client(own).delete_blob(f"{many.blob_prefix}7.json")
    assert bench.run(work, try_number=2, cleared=1) == [300, sum(range(300))]
    assert hook.list_blobs(own, str(many.blob_prefix)) == before


def test_a_late_value_that_is_wrong_is_told_where_it_is_used(bench: Bench, pool: str) -> None:
    from airflow_batchwrap import ConfigError, PoolConfig, RunBatchTaskOperator, UsePoolOperator

    for arguments, said in (
        ({"output_container": "No_Good"}, "output_container = 'No_Good'"),
        ({"job_wall_clock": "{{ 'never' }}"}, "still a template"),
        ({"pool_wait_timeout": "5"}, "pool_wait_timeout = '5'"),
    ):
        with pytest.raises(ConfigError, match=said):
            bench.run(bench.make(UsePoolOperator, pool_id=pool, **arguments))
    with pytest.raises(ConfigError, match="'soon'"):
        PoolConfig(pool_wait_timeout="{{ x }}").rendered(lambda _: "soon")
    with pytest.raises(ConfigError, match="cannot be passed as JSON"):
        bench.run(bench.make(RunBatchTaskOperator, pool_id=pool, command="true", args=[timedelta(1)]))


def test_a_value_that_would_mean_something_to_airflow_arrives_as_it_is(bench: Bench, hook: BatchWrapHook) -> None:
    from airflow.sdk.serde import deserialize, serialize

    from airflow_batchwrap import CreatePoolOperator, RunBatchTaskOperator

    steps = bench.steps(_1_a=f"def do_action(engine):\n    return {RESERVED!r}\n", _2_b=ECHO)
    workspace = bench.run(bench.make(CreatePoolOperator, "create_pool", pool_config={}, steps=steps))
    first = bench.run(bench.make(RunBatchTaskOperator, "1_a", step="1_a.py", workspace=workspace))
    stored = deserialize(serialize(first))
    assert hook.value_of(stored) == RESERVED
    second = bench.run(bench.make(RunBatchTaskOperator, "2_b", step="2_b.py", workspace=workspace, value=stored))
    assert hook.value_of(second) == [RESERVED]
