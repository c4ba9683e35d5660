"""Pools and their nodes: created, resized, shrunk, deleted."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

if TYPE_CHECKING:
    from tests.support.wire import Wire


def code_of(error: HttpResponseError) -> str:
    """The error's code."""
    assert error.error is not None
    return str(error.error.code)


def node_root(wire: Wire, node: str) -> Path:
    """A node's directory on this machine."""
    return wire.service.data / "nodes" / node


def test_pool_comes_back_as_it_was_created_with_defaults(wire: Wire) -> None:
    name = wire.pool(1, metadata=[m.BatchMetadataItem(name="a", value="1")], display_name="Ä pool")
    pool = wire.client.get_pool(name)
    assert pool.state == "active"
    assert pool.allocation_state == "steady"
    assert (pool.current_dedicated_nodes, pool.target_dedicated_nodes) == (1, 1)
    assert (pool.current_low_priority_nodes, pool.target_low_priority_nodes) == (0, 0)
    assert pool.display_name == "Ä pool"
    assert pool.metadata is not None
    assert pool.metadata[0].value == "1"
    assert pool.task_slots_per_node == 1
    assert pool.resize_timeout == datetime.timedelta(minutes=15)
    assert pool.task_scheduling_policy is not None
    assert pool.task_scheduling_policy.node_fill_type == "Spread"
    assert pool.enable_auto_scale is False
    assert pool.virtual_machine_configuration is not None
    assert pool.virtual_machine_configuration.image_reference.offer == "ubuntu-24_04-lts"
    wire.client.begin_delete_pool(name, polling_interval=0).wait()


def test_spot_nodes_stand_beside_dedicated_ones(wire: Wire) -> None:
    name = wire.name("pool")
    wire.client.create_pool(wire.pool_options(name, target_dedicated_nodes=1, target_low_priority_nodes=2))
    nodes = wire.nodes(name, 3, "idle")
    assert sorted(node.is_dedicated is True for node in nodes) == [False, False, True]
    assert all(node.id.startswith("tvmps_") for node in nodes)
    assert {node.id[-1] for node in nodes if node.is_dedicated} == {"d"}
    assert len({node.ip_address for node in nodes}) == 3
    counts = {one.pool_id: one for one in wire.client.list_pool_node_counts()}[name]
    assert counts.dedicated is not None
    assert counts.low_priority is not None
    assert (counts.dedicated.idle, counts.dedicated.total) == (1, 1)
    assert (counts.low_priority.idle, counts.low_priority.total) == (2, 2)
    wire.client.begin_delete_pool(name, polling_interval=0).wait()


def test_node_has_the_directories_of_a_node(wire: Wire, pool: str) -> None:
    node = next(iter(wire.client.list_nodes(pool)))
    files = list(wire.client.list_node_files(pool, node.id))
    assert sorted(str(file.name) for file in files) == [
        "applications",
        "fsmounts",
        "shared",
        "startup",
        "volatile",
        "workitems",
    ]
    shown = wire.client.get_node(pool, node.id)
    assert shown.scheduling_state == "enabled"
    assert shown.vm_size == "standard_d2s_v3"


def test_resize_up_and_down(wire: Wire) -> None:
    name = wire.pool(1)
    before = wire.client.get_pool(name)
    first = wire.nodes(name, 1, "idle")[0].id
    wire.client.begin_resize_pool(name, m.BatchPoolResizeOptions(target_dedicated_nodes=3), polling_interval=0).wait()
    nodes = wire.nodes(name, 3, "idle")
    assert first in {node.id for node in nodes}
    assert wire.client.get_pool(name).etag != before.etag
    wire.client.begin_resize_pool(name, m.BatchPoolResizeOptions(target_dedicated_nodes=0), polling_interval=0).wait()
    wire.nodes(name, 0)
    assert not wire.root(first).exists()
    assert wire.client.get_pool(name).current_dedicated_nodes == 0
    wire.client.begin_delete_pool(name, polling_interval=0).wait()


def test_shrinking_requeues_what_runs(wire: Wire) -> None:
    name = wire.pool(1)
    job = wire.job(name)
    task = wire.add(job, "/bin/sleep 60")
    wire.state(job, task, "running")
    wire.client.begin_resize_pool(name, m.BatchPoolResizeOptions(target_dedicated_nodes=0), polling_interval=0).wait()
    waiting = wire.state(job, task, "active")
    assert waiting.execution_info is not None
    assert waiting.execution_info.requeue_count == 1
    assert waiting.node_info is None
    wire.client.begin_delete_pool(name, polling_interval=0).wait()
    # The job may outlive its pool; a new pool of the same id takes the task up.
    wire.client.create_pool(wire.pool_options(name))
    wire.state(job, task, "running")
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.client.begin_delete_pool(name, polling_interval=0).wait()


def test_shrinking_can_wait_for_tasks_or_end_them(wire: Wire) -> None:
    name = wire.pool(2)
    job = wire.job(name)
    patient, killed = wire.add(job, "/bin/sleep 0.4"), wire.add(job, "/bin/sleep 60")
    places = {task: wire.state(job, task, "running").node_info for task in (patient, killed)}

    def remove(task: str, option: str) -> None:
        place = places[task]
        assert place is not None
        assert place.node_id is not None
        options = m.BatchNodeRemoveOptions(node_ids=[place.node_id], node_deallocation_option=option)
        wire.client.begin_remove_nodes(name, options, polling_interval=0).wait()

    remove(patient, "taskcompletion")
    done = wire.state(job, patient, "completed")
    assert done.execution_info is not None
    assert done.execution_info.result == "success"
    remove(killed, "terminate")
    ended = wire.state(job, killed, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.failure_info is not None
    assert ended.execution_info.failure_info.code == "TaskEnded"
    wire.nodes(name, 0)
    pool = wire.client.get_pool(name)
    assert pool.target_dedicated_nodes == 0
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.client.begin_delete_pool(name, polling_interval=0).wait()


def test_resize_that_waits_can_be_stopped(wire: Wire) -> None:
    name = wire.pool(1)
    job = wire.job(name)
    task = wire.add(job, "/bin/sleep 60")
    wire.state(job, task, "running")
    options = m.BatchPoolResizeOptions(target_dedicated_nodes=0, node_deallocation_option="taskcompletion")
    wire.client.begin_resize_pool(name, options)
    assert wire.client.get_pool(name).allocation_state == "resizing"
    with pytest.raises(HttpResponseError) as caught:
        wire.client.begin_resize_pool(name, m.BatchPoolResizeOptions(target_dedicated_nodes=2))
    assert (caught.value.status_code, code_of(caught.value)) == (409, "PoolBeingResized")
    wire.client.begin_stop_pool_resize(name, polling_interval=0).wait()
    pool = wire.client.get_pool(name)
    assert (pool.allocation_state, pool.target_dedicated_nodes) == ("steady", 1)
    assert wire.client.get_task(job, task).state == "running"
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.run(other := wire.job(name), "/bin/true")
    wire.client.begin_delete_job(other, polling_interval=0).wait()
    wire.client.begin_delete_pool(name, polling_interval=0).wait()


def test_deleted_pool_is_gone_with_its_nodes(wire: Wire) -> None:
    name = wire.pool(2)
    roots = [wire.root(node.id) for node in wire.client.list_nodes(name)]
    wire.client.begin_delete_pool(name, polling_interval=0).wait()
    with pytest.raises(ResourceNotFoundError):
        wire.client.get_pool(name)
    assert not [root for root in roots if root.exists()]


def test_update_and_replace(wire: Wire) -> None:
    name = wire.pool(0)
    client = wire.client
    client.update_pool(name, m.BatchPoolUpdateOptions(metadata=[m.BatchMetadataItem(name="k", value="v")]))
    client.update_pool(name, m.BatchPoolUpdateOptions(start_task=m.BatchStartTask(command_line="/bin/true")))
    pool = client.get_pool(name)
    assert pool.metadata is not None
    assert pool.metadata[0].name == "k"
    assert pool.start_task is not None
    assert pool.start_task.wait_for_success is True
    options = m.BatchPoolReplaceOptions(metadata=[], application_package_references=[])
    client.replace_pool_properties(name, options)
    replaced = client.get_pool(name)
    assert (replaced.start_task, replaced.metadata) == (None, None)
    client.begin_delete_pool(name, polling_interval=0).wait()


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ({"target_dedicated_nodes": -1}, 400, "targetDedicatedNodes"),
        ({"task_slots_per_node": 257}, 400, "taskSlotsPerNode"),
        ({"vm_size": None}, 400, "vmSize"),
        ({"virtual_machine_configuration": None}, 400, "virtualMachineConfiguration"),
    ],
)
def test_pools_that_cannot_be(wire: Wire, options: dict[str, object], status: int, said: str) -> None:
    name = wire.name("pool")
    asked = wire.pool_options(name)
    for key, value in options.items():
        setattr(asked, key, value)
    with pytest.raises(HttpResponseError) as caught:
        wire.client.create_pool(asked)
    assert caught.value.status_code == status
    assert said in str(caught.value)
    with pytest.raises(ResourceNotFoundError):
        wire.client.get_pool(name)


def test_supported_images_offer_one_to_choose(wire: Wire) -> None:
    images = list(wire.client.list_supported_images())
    newest = [image for image in images if image.node_agent_sku_id == "batch.node.ubuntu 24.04"]
    assert newest[0].image_reference.sku == "server"
    assert newest[0].verification_type == "verified"
    assert newest[0].os_type == "linux"
    only = list(wire.client.list_supported_images(filter="nodeAgentSKUId eq 'batch.node.el 9'"))
    assert [image.image_reference.publisher for image in only] == ["almalinux"]
