"""Pools grow and shrink under a run, and a resize that cannot be is told and given up."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_batchwrap.hooks.autoscale import ScaleFormula
from tests.support.polling import until

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.local.runner import LocalService
    from tests.support.bench import Bench
    from tests.support.dag_runs import RunFile

MakePool = Callable[..., str]


def made(client: BatchClient, **options: Any) -> str:
    """A pool that somebody else made."""
    from azure.batch import models as m

    pool_id = f"theirs-{uuid.uuid4().hex[:8]}"
    image = m.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
    machine = m.VirtualMachineConfiguration(image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04")
    client.create_pool(
        m.BatchPoolCreateOptions(
            id=pool_id, vm_size="Standard_D2s_v3", virtual_machine_configuration=machine, **options
        )
    )
    return pool_id


@pytest.fixture
def make_pool(connections: None, client: BatchClient) -> Iterator[MakePool]:
    """Makes pools on the session's service, which are removed in the end."""
    pools = []

    def make(**options: Any) -> str:
        pools.append(made(client, **options))
        return pools[-1]

    yield make
    for pool_id in pools:
        client.begin_delete_pool(pool_id)


@pytest.fixture(scope="module")
def slow_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A service that takes 1.2 s for nodes, and has two of them."""
    from airflow_batchwrap.local import runner

    data: Path = tmp_path_factory.mktemp("slow")
    service = runner.launch(
        data / "data", ["--quota", "cores=4,spot-cores=4", "--profile", "azure", "--time-scale", "60"]
    )
    yield service
    service.stop()


@pytest.fixture
def slow(connections: None, slow_service: LocalService, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchClient]:
    """Azure's client of that service; the connection leads there. What was made is gone in the end."""
    from azure.batch import BatchClient
    from azure.core.credentials import AzureNamedKeyCredential

    login = {"login": slow_service.account, "password": slow_service.key}
    connection = {"conn_type": "azure_batch", **login, "extra": {"account_url": slow_service.url}}
    monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps(connection))
    with BatchClient(slow_service.url, AzureNamedKeyCredential(slow_service.account, slow_service.key)) as client:
        yield client
        for pool in client.list_pools():
            client.begin_delete_pool(pool.id)
        until(lambda: not list(client.list_pools()), "no pool")


def resized(pool_id: str, dedicated: int, spot: int, usable: int) -> dict[str, Any]:
    return {
        "pool_id": pool_id,
        "target_dedicated_nodes": dedicated,
        "target_low_priority_nodes": spot,
        "usable_nodes": usable,
    }


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_pool_of_fixed_size_grows_and_shrinks(
    bench: Bench, client: BatchClient, make_pool: MakePool, deferrable: bool
) -> None:
    from airflow_batchwrap import ResizePoolOperator

    pool_id = make_pool(target_dedicated_nodes=1)
    more = {"pool_id": pool_id, "deferrable": deferrable, "inline_wait": 0 if deferrable else 10}
    grow = bench.make(ResizePoolOperator, target_dedicated_nodes=2, target_low_priority_nodes="1", **more)
    assert bench.run(grow) == resized(pool_id, 2, 1, usable=3)
    assert bench.run(grow, try_number=2) == resized(pool_id, 2, 1, usable=3)
    # What is not named stays.
    assert bench.run(bench.make(ResizePoolOperator, target_spot_nodes=0, **more)) == resized(pool_id, 2, 0, usable=2)
    none = bench.make(ResizePoolOperator, target_dedicated_nodes=0, **more)
    assert bench.run(none) == resized(pool_id, 0, 0, usable=0)
    assert list(client.list_nodes(pool_id)) == []


def test_a_runs_own_pool_keeps_its_formula_with_other_numbers(bench: Bench, client: BatchClient) -> None:
    from airflow_batchwrap import CreatePoolOperator, DeletePoolOperator, ResizePoolOperator, RunBatchTaskOperator

    workspace = bench.run(bench.make(CreatePoolOperator, pool_config={"idle_minutes": 20}))
    pool_id = workspace["pool_id"]
    before = ScaleFormula.read(client.get_pool(pool_id).auto_scale_formula)
    assert before is not None
    grow = bench.make(ResizePoolOperator, workspace=workspace, target_dedicated_nodes=2, target_spot_nodes=1)
    assert bench.run(grow) == resized(pool_id, 2, 1, usable=3)
    after = ScaleFormula.read(client.get_pool(pool_id).auto_scale_formula)
    assert after is not None
    assert (after.dedicated, after.spot, after.idle_minutes, after.option) == (2, 1, 20, "taskcompletion")
    assert after.fresh_until - before.fresh_until < timedelta(minutes=1)
    assert bench.run(bench.make(RunBatchTaskOperator, command="echo fine", workspace=workspace)) == "fine"
    bench.run(bench.make(DeletePoolOperator, workspace=workspace))


def test_a_node_that_works_goes_when_it_has_done(bench: Bench, client: BatchClient, make_pool: MakePool) -> None:
    from azure.batch import models as m

    from airflow_batchwrap import ResizePoolOperator

    pool_id = make_pool(target_dedicated_nodes=1)
    job_id = f"works-{uuid.uuid4().hex[:8]}"
    wait, gate = bench.gate()
    client.create_job(m.BatchJobCreateOptions(id=job_id, pool_info=m.BatchPoolInfo(pool_id=pool_id)))
    client.create_task(job_id, m.BatchTaskCreateOptions(id="t", command_line=f"/bin/sh -c '{wait}'"))
    until(lambda: client.get_task(job_id, "t").state == "running", "the Batch task to run")
    begun = bench.submit(bench.make(ResizePoolOperator, pool_id=pool_id, target_dedicated_nodes=0))
    assert client.get_pool(pool_id).allocation_state == "resizing"
    gate.touch()
    assert begun.finish() == resized(pool_id, 0, 0, usable=0)
    done = client.get_task(job_id, "t")
    assert done.execution_info is not None
    assert (done.state, done.execution_info.exit_code, done.execution_info.requeue_count) == ("completed", 0, 0)
    client.begin_delete_job(job_id)


def test_anothers_formula_is_left_alone(bench: Bench, client: BatchClient, make_pool: MakePool) -> None:
    from airflow_batchwrap import PoolError, ResizePoolOperator

    formula = "$TargetDedicatedNodes = 1;"
    pool_id = make_pool(enable_auto_scale=True, auto_scale_formula=formula)
    with pytest.raises(PoolError, match="formula of its owner's"):
        bench.run(bench.make(ResizePoolOperator, pool_id=pool_id, target_dedicated_nodes=2))
    assert client.get_pool(pool_id).auto_scale_formula == formula
    with pytest.raises(PoolError, match="missing"):
        bench.run(bench.make(ResizePoolOperator, pool_id="none-such", target_dedicated_nodes=2))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"target_dedicated_nodes": 1}, "either a workspace or a pool_id"),
        ({"pool_id": "p"}, "needs target_dedicated_nodes"),
        ({"pool_id": "p", "target_dedicated_nodes": "many"}, "target_dedicated_nodes = 'many'"),
        ({"pool_id": "p", "target_dedicated_nodes": -1}, "whole number"),
        ({"pool_id": "p", "target_spot_nodes": 1, "target_low_priority_nodes": 2}, "two names of one number"),
        ({"pool_id": "p", "target_spot_nodes": 1, "node_deallocation_option": "now"}, "'now'"),
    ],
)
def test_arguments_that_cannot_be_are_told(bench: Bench, arguments: dict[str, Any], said: str) -> None:
    from airflow_batchwrap import ConfigError, ResizePoolOperator

    with pytest.raises(ConfigError, match=said):
        bench.run(bench.make(ResizePoolOperator, **arguments))


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_quota_is_waited_for_and_a_part_may_be_enough(
    bench: Bench, slow: BatchClient, deferrable: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    from airflow_batchwrap import NoCapacity, ResizePoolOperator

    pool_id = made(slow, target_dedicated_nodes=0)
    more: dict[str, Any] = {"pool_id": pool_id, "deferrable": deferrable, "inline_wait": 0 if deferrable else 10}
    short = bench.make(ResizePoolOperator, target_dedicated_nodes=3, pool_wait_timeout="6 s", **more)
    with pytest.raises(NoCapacity, match=r"2 of the 3 nodes.*AccountCoreQuotaReached.*waited for.*pool_wait_timeout"):
        bench.run(short)
    assert "Asking again in" in "".join(capfd.readouterr())
    part = bench.make(ResizePoolOperator, target_dedicated_nodes=3, min_nodes=2, **more)
    assert bench.run(part) == resized(pool_id, 3, 0, usable=2)


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_resize_that_takes_too_long_is_given_up_and_can_be_asked_for_again(
    bench: Bench, slow: BatchClient, deferrable: bool
) -> None:
    from airflow_batchwrap import NoCapacity, ResizePoolOperator

    pool_id = made(slow, target_dedicated_nodes=0)
    more = {"pool_id": pool_id, "deferrable": deferrable, "target_dedicated_nodes": 1}
    hasty = bench.make(ResizePoolOperator, pool_wait_timeout="0.3 s", inline_wait=0 if deferrable else 10, **more)
    with pytest.raises(NoCapacity, match=r"did not get 1 dedicated and 0 spot nodes.*pool_wait_timeout"):
        bench.run(hasty)
    assert slow.get_pool(pool_id).allocation_state in ("stopping", "steady")
    # At once after it, while the first may be still on its way out.
    assert bench.run(bench.make(ResizePoolOperator, **more)) == resized(pool_id, 1, 0, usable=1)


def test_a_resize_whose_worker_died_is_gone_on_with(bench: Bench, slow: BatchClient) -> None:
    from airflow_batchwrap import ResizePoolOperator

    pool_id = made(slow, target_dedicated_nodes=0)
    operator = bench.make(ResizePoolOperator, pool_id=pool_id, target_dedicated_nodes=1)
    bench.submit(operator)
    assert slow.get_pool(pool_id).allocation_state == "resizing"
    assert bench.run(operator, try_number=2) == resized(pool_id, 1, 0, usable=1)


def test_a_resize_ends_with_the_tasks_execution_timeout(bench: Bench, slow: BatchClient) -> None:
    from airflow.sdk.exceptions import AirflowTaskTimeout

    from airflow_batchwrap import ResizePoolOperator

    pool_id = made(slow, target_dedicated_nodes=0)
    brief = timedelta(seconds=0.5)
    more = {"pool_id": pool_id, "target_dedicated_nodes": 1, "execution_timeout": brief}
    with pytest.raises(AirflowTaskTimeout):
        bench.run(bench.make(ResizePoolOperator, deferrable=False, **more))
    assert slow.get_pool(pool_id).allocation_state in ("stopping", "steady")


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_set_up_that_meets_the_quota_says_so_and_its_last_try_removes_what_it_made(
    bench: Bench, slow: BatchClient, deferrable: bool
) -> None:
    from airflow_batchwrap import CreatePoolOperator, NoCapacity

    config = {"target_dedicated_nodes": 3, "pool_wait_timeout": "4 s"}
    more: dict[str, Any] = {"deferrable": deferrable, "inline_wait": 0 if deferrable else 10}
    operator, living = bench.make(CreatePoolOperator, pool_config=config, retries=1, **more), "state eq 'active'"
    for number, left in ((1, 1), (2, 0)):
        with pytest.raises(NoCapacity, match=r"2 of the 3 nodes.*AccountCoreQuotaReached.*min_nodes"):
            bench.run(operator, try_number=number)
        # What another try goes on with is not undone.
        there = [*slow.list_pools(filter=living), *slow.list_jobs(filter=living)]
        assert len(there) == 2 * left
    # A part is enough where it was asked for.
    workspace = bench.run(bench.make(CreatePoolOperator, pool_config={**config, "min_nodes": 2}, **more))
    slow.begin_delete_job(workspace["job_id"])


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_formula_can_be_changed_again_at_once(bench: Bench, slow: BatchClient, deferrable: bool) -> None:
    from airflow_batchwrap import CreatePoolOperator, ResizePoolOperator

    # Batch takes one formula in 30 s, which are 0.5 s here, and none while it resizes: both are waited for.
    workspace = bench.run(bench.make(CreatePoolOperator, pool_config={"idle_minutes": 60}))
    more = {"workspace": workspace, "deferrable": deferrable, "inline_wait": 0 if deferrable else 10}
    for spot, usable in ((1, 2), (0, 1), (2, 3)):
        done = bench.run(bench.make(ResizePoolOperator, target_spot_nodes=spot, **more))
        assert done == resized(workspace["pool_id"], 1, spot, usable)


def test_a_run_resizes_its_pool_between_steps(
    dags_folder: Path, run_file: RunFile, left_behind: Callable[[], list[str]]
) -> None:
    before = set(left_behind())
    (dags_folder / "resize.py").write_text(
        "from airflow.sdk import DAG\n"
        "from airflow_batchwrap import *\n"
        "with DAG('resizes', schedule=None, params={'nodes': 2}) as dag:\n"
        "    create = CreatePoolOperator(task_id='create', pool_config={})\n"
        "    grow = ResizePoolOperator(\n"
        "        task_id='grow', workspace=create.output, target_dedicated_nodes='{{ params.nodes }}', inline_wait=0\n"
        "    )\n"
        "    run = RunBatchTaskOperator(task_id='run', workspace=create.output, command='echo done')\n"
        "    delete = DeletePoolOperator(task_id='delete', workspace=create.output)\n"
        "    create >> grow >> run >> delete.as_teardown(setups=create)\n"
    )
    run = run_file(dags_folder / "resize.py")
    assert run.state == "success", run.log[-4000:]
    assert run.xcoms["grow"] == resized(run.xcoms["create"]["pool_id"], 2, 0, usable=2)
    assert run.xcoms["run"] == "done"
    assert set(left_behind()) == before
