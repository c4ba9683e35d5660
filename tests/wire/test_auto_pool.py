"""Auto pools: made for a job, and gone with it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

if TYPE_CHECKING:
    from tests.support.wire import Wire


def specification(wire: Wire, lifetime: str = "job", nodes: int = 1, **more: Any) -> m.BatchPoolInfo:
    """What a job needs for a pool of its own."""
    options = wire.pool_options("unused", nodes, 2)
    pool = m.BatchPoolSpecification(
        vm_size=options.vm_size,
        virtual_machine_configuration=options.virtual_machine_configuration,
        task_slots_per_node=2,
        target_dedicated_nodes=nodes,
    )
    auto = m.BatchAutoPoolSpecification(pool_lifetime_option=lifetime, pool=pool, **more)
    return m.BatchPoolInfo(auto_pool_specification=auto)


def create(wire: Wire, info: m.BatchPoolInfo, **more: Any) -> tuple[str, str]:
    """A job with an auto pool, and the pool's id."""
    job = wire.name("job")
    wire.client.create_job(m.BatchJobCreateOptions(id=job, pool_info=info, **more))
    execution = wire.client.get_job(job).execution_info
    assert execution is not None
    assert execution.pool_id is not None
    return job, execution.pool_id


def pools(wire: Wire) -> set[str]:
    """The ids of all pools."""
    return {pool.id for pool in wire.client.list_pools()}


def test_pool_lives_as_long_as_its_job(wire: Wire) -> None:
    job, pool = create(wire, specification(wire))
    assert re.fullmatch(r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}", pool)
    task = wire.run(job, "/bin/true")
    assert task.node_info is not None
    assert task.node_info.pool_id == pool
    shown = wire.client.get_job(job).pool_info
    assert shown.pool_id is None
    auto = shown.auto_pool_specification
    assert auto is not None
    assert auto.pool is not None
    assert (auto.pool_lifetime_option, auto.pool.target_dedicated_nodes) == ("job", 1)
    assert wire.client.get_pool(pool).task_slots_per_node == 2
    wire.terminate(job)
    wire.until(lambda: pool not in pools(wire))


def test_pool_goes_with_a_deleted_job_after_its_release_task(wire: Wire) -> None:
    job, pool = create(
        wire,
        specification(wire),
        job_preparation_task=m.BatchJobPreparationTask(command_line="/bin/true"),
        job_release_task=m.BatchJobReleaseTask(command_line="/bin/true"),
    )
    wire.run(job, "/bin/true")
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.until(lambda: pool not in pools(wire))


def test_pool_can_be_kept(wire: Wire) -> None:
    job, pool = create(wire, specification(wire, nodes=0, keep_alive=True, auto_pool_id_prefix="Mine"))
    assert pool.startswith("Mine_")
    wire.terminate(job)
    assert wire.client.get_pool(pool).state == "active"
    wire.client.begin_delete_pool(pool, polling_interval=1)


def test_only_keep_alive_can_be_changed(wire: Wire) -> None:
    job, pool = create(wire, specification(wire, nodes=0))
    options = m.BatchJobDisableOptions(disable_tasks="requeue")
    wire.client.begin_disable_job(job, options, polling_interval=0).wait()
    with pytest.raises(HttpResponseError) as caught:
        wire.client.update_job(job, m.BatchJobUpdateOptions(pool_info=m.BatchPoolInfo(pool_id="other")))
    assert caught.value.status_code == 400
    kept = specification(wire, nodes=0, keep_alive=True)
    wire.client.update_job(job, m.BatchJobUpdateOptions(pool_info=kept))
    wire.terminate(job)
    assert wire.client.get_pool(pool).state == "active"
    wire.client.begin_delete_pool(pool, polling_interval=1)


def test_job_on_a_pool_gets_no_auto_pool_later(wire: Wire, job: str) -> None:
    options = m.BatchJobDisableOptions(disable_tasks="requeue")
    wire.client.begin_disable_job(job, options, polling_interval=0).wait()
    with pytest.raises(HttpResponseError) as caught:
        wire.client.update_job(job, m.BatchJobUpdateOptions(pool_info=specification(wire)))
    assert caught.value.status_code == 400


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"lifetime": "jobschedule"}, "poolLifetimeOption"),
        ({"auto_pool_id_prefix": "x" * 21}, "autoPoolIdPrefix"),
        ({"nodes": -1}, "targetDedicatedNodes"),
    ],
)
def test_auto_pools_that_cannot_be(wire: Wire, info: dict[str, Any], said: str) -> None:
    with pytest.raises(HttpResponseError) as caught:
        create(wire, specification(wire, **info))
    assert caught.value.status_code == 400
    assert said in str(caught.value)


def test_auto_pool_needs_its_pool(wire: Wire) -> None:
    auto = m.BatchAutoPoolSpecification(pool_lifetime_option="job")
    for info in (
        m.BatchPoolInfo(auto_pool_specification=auto),
        m.BatchPoolInfo(),
        m.BatchPoolInfo(pool_id="p", auto_pool_specification=auto),
    ):
        with pytest.raises(HttpResponseError) as caught:
            create(wire, info)
        assert caught.value.status_code == 400
