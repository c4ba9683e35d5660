"""Two Airflows on one account, with the same DAG, task and run ids: what one makes, the other neither takes nor ends.

`tests/integration/test_two_airflows.py` does it with two real ones (`make soak`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from tests.support.bench import Bench

STEP = """
    def do_action(engine, who):
        with open("who.txt", "w") as file:
            file.write(who)
        engine.add_file_to_upload("who.txt")
        return who
"""
#: What each of both is called.
ONE, OTHER = "one", "other"
At = Callable[[str], None]


@pytest.fixture
def at(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> At:
    """Go on as the Airflow of that name."""

    def become(name: str) -> None:
        monkeypatch.setenv("AIRFLOW__BATCHWRAP__INSTANCE", name)
        bench.become(name)

    return become


def living(bench: Bench, client: BatchClient) -> set[tuple[str, str]]:
    mine = f"startswith(id, '{bench.dag.dag_id}') and state ne 'deleting'"
    found = {("pool", pool.id) for pool in client.list_pools(filter=mine)}
    return found | {("job", job.id) for job in client.list_jobs(filter=mine)}


def both(workspace: dict[str, Any]) -> set[tuple[str, str]]:
    return {("pool", workspace["pool_id"]), ("job", workspace["job_id"])}


def test_the_same_ids_in_two_airflows_share_nothing(
    bench: Bench, at: At, client: BatchClient, hook: BatchWrapHook
) -> None:
    from airflow_batchwrap import CreatePoolOperator, DeletePoolOperator, RunBatchTaskOperator, SweepOrphansOperator

    bench.steps(_1_a=STEP)
    container = f"named-{bench.dag.dag_id.replace('_', '-')}"
    create = bench.make(CreatePoolOperator, "create", pool_config={}, steps="steps", output_container=container)
    step = bench.make(RunBatchTaskOperator, "step", step="1_a.py")
    delete = bench.make(DeletePoolOperator, "delete")
    made: dict[str, dict[str, Any]] = {}
    for name in (ONE, OTHER):
        at(name)
        made[name] = bench.run(create)
        step.workspace, step.args = made[name], [name]
        assert bench.run(step) == name
    assert len(both(made[ONE]) | both(made[OTHER])) == 4
    folders = {name: workspace["output_prefix"] for name, workspace in made.items()}
    assert len(set(folders.values())) == 2
    for name, folder in folders.items():
        (blob,) = [each for each in hook.list_blobs(container, f"{folder}/") if each.endswith("who.txt")]
        assert hook.read_blob(container, blob) == name.encode()

    # A retry of one's set-up, and one that was cleared for another archive, leave the other's alone.
    at(ONE)
    assert bench.run(create, try_number=2) == made[ONE]
    bench.steps(_1_a=f"{STEP}\n    # another one")
    made[ONE] = bench.run(create, try_number=3, cleared=2)
    assert living(bench, client) == both(made[ONE]) | both(made[OTHER])

    # Its run is over; the other's, of the same name, goes on. It cleans up, and sweeps.
    bench.runs["r1"] = "success"
    swept = bench.run(bench.make(SweepOrphansOperator, "sweep", delete=True, older_than="0"))
    rows = {(row["noun"], row["entity_id"]): row for row in swept}
    assert {name for name in rows if rows[name]["removed"]} >= both(made[ONE])
    assert {rows[name]["why"] for name in both(made[OTHER])} == {"made by the Airflow 'other'"}
    delete.workspace = made[ONE]
    assert bench.run(delete) == {"job_id": None, "pool_id": None}
    assert living(bench, client) == both(made[OTHER])

    at(OTHER)
    step.workspace = made[OTHER]
    assert bench.run(step, try_number=2, cleared=1) == OTHER
    delete.workspace = made[OTHER]
    assert bench.run(delete) == {"job_id": made[OTHER]["job_id"], "pool_id": made[OTHER]["pool_id"]}
    assert living(bench, client) == set()


def test_what_names_another_airflow_is_neither_deleted_nor_resized_nor_taken(
    bench: Bench, at: At, client: BatchClient
) -> None:
    from airflow_batchwrap import CreatePoolOperator, DeletePoolOperator, PoolError, ResizePoolOperator

    name = f"{bench.dag.dag_id}-chosen"
    create = bench.make(CreatePoolOperator, "create", pool_config={}, pool_id=name)
    at(ONE)
    workspace = bench.run(create)
    before = client.get_pool(name).as_dict()
    at(OTHER)
    refused = "'one', and this is the Airflow 'other'"
    for operator in (
        bench.make(DeletePoolOperator, pool_id=name),
        bench.make(DeletePoolOperator, workspace=workspace),  # as in a database that was copied
        bench.make(ResizePoolOperator, pool_id=name, target_dedicated_nodes=2),
        bench.make(ResizePoolOperator, workspace=workspace, target_dedicated_nodes=2),
    ):
        with pytest.raises(PoolError, match=refused):
            bench.run(operator)
    with pytest.raises(PoolError, match=r"not this run's \(made by the Airflow 'one'\)"):
        bench.run(create)
    assert client.get_pool(name).as_dict() == before
    assert client.get_job(workspace["job_id"]).state == "active"
    at(ONE)
    resized = bench.run(bench.make(ResizePoolOperator, pool_id=name, target_dedicated_nodes=2))
    assert resized["target_dedicated_nodes"] == 2
    bench.run(bench.make(DeletePoolOperator, workspace=workspace))
    assert living(bench, client) == set()


def test_a_pool_that_bears_no_name_is_its_users_own_business(
    bench: Bench, at: At, client: BatchClient, pool: str
) -> None:
    from azure.batch import models as m

    from airflow_batchwrap import DeletePoolOperator, ResizePoolOperator

    at(ONE)
    resized = bench.run(bench.make(ResizePoolOperator, pool_id=pool, target_dedicated_nodes=1))
    assert resized["usable_nodes"] == 1
    name, there = f"{bench.dag.dag_id}-nobodys", client.get_pool(pool)
    client.create_pool(
        m.BatchPoolCreateOptions(
            id=name, vm_size=there.vm_size, virtual_machine_configuration=there.virtual_machine_configuration
        )
    )
    assert bench.run(bench.make(DeletePoolOperator, pool_id=name)) == {"job_id": None, "pool_id": name}


def test_repurposing_removes_the_jobs_of_this_airflow_alone(
    bench: Bench, at: At, client: BatchClient, pool: str
) -> None:
    from airflow_batchwrap import RepurposePoolOperator

    take = bench.make(RepurposePoolOperator, "take", pool_id=pool)
    jobs = {}
    for name in (ONE, OTHER):
        at(name)
        jobs[name] = bench.run(take, run_id="over")["job_id"]
        bench.runs["over"] = "success"
    at(ONE)
    now = bench.run(take, run_id="now")["job_id"]
    assert living(bench, client) == {("job", jobs[OTHER]), ("job", now)}
