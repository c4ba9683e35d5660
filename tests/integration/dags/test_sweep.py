"""Orphans are found and removed; what lives, what is unknown and what is not ours stays."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from azure.batch import BatchClient
    from rich.console import Console

    from airflow_batchwrap import BatchWrapHook
    from tests.support.bench import Bench
    from tests.support.dag_runs import RunFile, RunWorkflow

INSTANCE_NAME = os.environ["AIRFLOW__BATCHWRAP__INSTANCE"]
IMAGE = {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server"}


def abandoned(client: BatchClient, dag_id: str, run_id: str, **more: str) -> str:
    """A pool as a killed run of this Airflow leaves it, but for its nodes.

    :param more: further metadata; an empty text takes one away.
    """
    from azure.batch import models as m

    from airflow_batchwrap.naming import INSTANCE, MAKER, VERSION

    of_run = {"dag_id": dag_id, "run_id": run_id, "task_id": "create"}
    marks = {MAKER: "x", VERSION: "0.1.0", INSTANCE: INSTANCE_NAME, **of_run, **more}
    machine = m.VirtualMachineConfiguration(
        image_reference=m.BatchVmImageReference(**IMAGE), node_agent_sku_id="batch.node.ubuntu 24.04"
    )
    pool_id = f"left-{uuid.uuid4().hex[:8]}"
    client.create_pool(
        m.BatchPoolCreateOptions(
            id=pool_id,
            vm_size="Standard_D2s_v3",
            virtual_machine_configuration=machine,
            metadata=[m.BatchMetadataItem(name=name, value=value) for name, value in marks.items() if value],
        )
    )
    return pool_id


def living(client: BatchClient) -> set[tuple[str, str]]:
    found = {("pool", pool.id) for pool in client.list_pools(filter="state eq 'active'")}
    return found | {("job", job.id) for job in client.list_jobs(filter="state eq 'active'")}


@pytest.fixture
def run_of() -> Callable[[str], str]:
    """Run ids that no other test of this session has."""
    mark = uuid.uuid4().hex[:6]
    return lambda name: f"{name}-{mark}"


def test_what_runs_left_goes_and_nothing_else(
    bench: Bench, client: BatchClient, pool: str, run_of: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    from azure.batch import models as m

    from airflow_batchwrap import CreatePoolOperator, RunBatchTaskOperator, SweepOrphansOperator, UsePoolOperator

    over, live, unknown = (run_of(name) for name in ("over", "live", "unknown"))
    create = bench.make(CreatePoolOperator, "create", pool_config={})
    use = bench.make(UsePoolOperator, "use", pool_id=pool)
    made = {run_id: bench.run(create, run_id=run_id) for run_id in (over, live, unknown)}
    shared = {run_id: bench.run(use, run_id=run_id) for run_id in (over, live, unknown)}
    # A run that is over, and on whose pool somebody else works.
    lent = abandoned(client, bench.dag.dag_id, over)
    job = f"borrows-{uuid.uuid4().hex[:8]}"
    client.create_job(m.BatchJobCreateOptions(id=job, pool_info=m.BatchPoolInfo(pool_id=lent)))
    client.create_task(job, m.BatchTaskCreateOptions(id="waits", command_line="/bin/true"))
    bench.runs |= {over: "failed", live: "running"}
    del bench.runs[unknown]
    shut, _ = bench.gate()
    command = bench.make(RunBatchTaskOperator, "lone", command=shut, pool_id=pool)
    bench.submit(command, run_id=live)

    before = living(client)
    mine = {made[over]["pool_id"], made[over]["job_id"], shared[over]["job_id"]}
    found = {item["entity_id"] + item["noun"]: item for item in bench.run(bench.make(SweepOrphansOperator))}
    assert living(client) == before
    assert {item["entity_id"] for item in found.values() if item["goes"] and item["run_id"] == over} == mine
    assert found[made[live]["job_id"] + "job"]["why"] == "its run goes on"
    assert found[made[unknown]["pool_id"] + "pool"]["why"] == "its run is not known to this Airflow"
    assert f"job {job} works on it" in found[lent + "pool"]["why"]
    assert not {pool, job} & {item["entity_id"] for item in found.values()}, "not this package's"
    told = "".join(capfd.readouterr())
    assert "would go: its run is over" in told
    assert "nothing was removed" in told

    removed = bench.run(bench.make(SweepOrphansOperator, delete=True))
    assert {item["entity_id"] for item in removed if item["removed"] and item["run_id"] == over} == mine
    gone = before - living(client)
    assert {name for _, name in gone} >= mine
    kept = {item["job_id"] for item in (made[live], made[unknown], shared[live], shared[unknown])}
    assert {name for _, name in living(client)} >= kept | {pool, lent, made[live]["pool_id"], made[unknown]["pool_id"]}

    # Unknown runs' things go by age, if that is asked for; live ones' never.
    for age, goes in (("1 day", False), ("0", True)):
        rows = bench.run(bench.make(SweepOrphansOperator, older_than=age))
        answer = {item["goes"] for item in rows if item["run_id"] == unknown}
        assert answer == {goes}
        assert not any(item["goes"] for item in rows if item["run_id"] == live)
    client.begin_delete_job(job)
    client.begin_delete_pool(lent)


def test_airflow_itself_is_asked(
    dags_folder: Path, run_file: RunFile, run_workflow: RunWorkflow, client: BatchClient
) -> None:
    done = run_workflow({"1_a.py": "def do_action(engine): return 1\n"})
    assert done.state == "success"
    orphan = abandoned(client, done.dag_id, done.run_id)
    stranger = abandoned(client, done.dag_id, "deleted")
    others = abandoned(client, done.dag_id, done.run_id, batchwrap_instance="production")
    nobodys = abandoned(client, done.dag_id, done.run_id, batchwrap_instance="")
    (dags_folder / "sweep.py").write_text(
        "from airflow.sdk import DAG\n"
        "from airflow_batchwrap import CreatePoolOperator, DeletePoolOperator, SweepOrphansOperator\n"
        "with DAG('sweeps', schedule=None) as dag:\n"
        "    create = CreatePoolOperator(task_id='create')\n"
        "    delete = DeletePoolOperator(task_id='delete', workspace=create.output)\n"
        "    create >> SweepOrphansOperator(task_id='sweep', delete=True) >> delete.as_teardown(setups=create)\n"
    )
    run = run_file(dags_folder / "sweep.py")
    assert run.state == "success"
    rows = {item["entity_id"]: item for item in run.xcoms["sweep"]}
    assert rows[orphan]["removed"] is True
    assert (rows[stranger]["removed"], rows[stranger]["goes"]) == (False, False)
    # A run of that name is over here: that says nothing of another Airflow's run of the same name.
    for left, why in ((others, "made by the Airflow 'production'"), (nobodys, "bears no instance")):
        assert (rows[left]["why"], rows[left]["goes"], rows[left]["removed"]) == (why, False, False)
        assert ("pool", left) in living(client)
    # Its own run's pool and job.
    own = [item for item in run.xcoms["sweep"] if item["run_id"] == run.run_id]
    assert [item["why"] for item in own] == ["its run goes on"] * 2
    for left in (stranger, others, nobodys):
        client.begin_delete_pool(left)


def test_an_age_lets_go_of_this_airflows_own_runs_alone(bench: Bench, client: BatchClient) -> None:
    from airflow_batchwrap import SweepOrphansOperator

    ours = abandoned(client, bench.dag.dag_id, "unknown")
    left = {
        abandoned(client, bench.dag.dag_id, "unknown", batchwrap_instance="production"): "production",
        abandoned(client, bench.dag.dag_id, "unknown", batchwrap_instance=""): "",
    }
    rows = {row["entity_id"]: row for row in bench.run(bench.make(SweepOrphansOperator, delete=True, older_than="0"))}
    assert rows[ours]["removed"] is True
    assert {name: rows[name]["instance"] for name in left} == left
    assert not any(rows[name]["goes"] for name in left)
    assert {("pool", name) for name in left} <= living(client)
    for name in left:
        client.begin_delete_pool(name)


def test_an_age_that_is_none_is_refused(bench: Bench) -> None:
    from airflow_batchwrap import ConfigError, SweepOrphansOperator

    with pytest.raises(ConfigError, match="older_than = 'old'"):
        bench.run(bench.make(SweepOrphansOperator, older_than="old"))


def test_the_command_without_an_airflow_goes_by_age_alone(
    hook: BatchWrapHook, client: BatchClient, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from airflow_batchwrap import ConfigError
    from airflow_batchwrap.stack.sweep import SweepOptions, run

    console: Console = Console(width=200)
    options: dict[str, Any] = {"conn_id": "azure_batch_default"}
    with pytest.raises(ConfigError, match="--older-than"):
        run(SweepOptions(delete=False, older_than=None, **options), console)
    with pytest.raises(ConfigError, match="BATCHWRAP_AIRFLOW_PASSWORD"):
        run(SweepOptions(delete=False, older_than=None, airflow="http://127.0.0.1:1", **options), console)
    with pytest.raises(ConfigError, match="Give --airflow, which knows its own name, or --instance"):
        run(SweepOptions(delete=True, older_than=timedelta(0), **options), console)
    with pytest.raises(ConfigError, match="'a b': use 1 to 64 letters"):
        run(SweepOptions(delete=True, older_than=timedelta(0), instance="a b", **options), console)
    options["instance"] = INSTANCE_NAME
    left = abandoned(client, "a [red]dag[/red]", "r")
    others = abandoned(client, "a", "r", batchwrap_instance="production")
    run(SweepOptions(delete=True, older_than=timedelta(days=1), **options), console)
    assert ("pool", left) in living(client)
    capsys.readouterr()
    run(SweepOptions(delete=False, older_than=timedelta(0), **options), console)
    shown = capsys.readouterr().out
    (row,) = [line.split() for line in shown.splitlines() if left in line]
    assert row[:6] == ["would", "go", "pool", left, "a", "[red]dag[/red]"]
    (row,) = [line.split() for line in shown.splitlines() if others in line]
    assert (row[0], row[-5:]) == ("stays", ["made", "by", "the", "Airflow", "'production'"])
    assert "nothing was removed" in shown
    assert ("pool", left) in living(client)
    run(SweepOptions(delete=True, older_than=timedelta(0), **options), console)
    assert ("pool", left) not in living(client)
    assert ("pool", others) in living(client)
    client.begin_delete_pool(others)
