"""Pools that do not get what they want at once: time, quota, capacity, spot nodes; and what they have used."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError
from azure.core.rest import HttpRequest
from typer.testing import CliRunner

from airflow_batchwrap.local.commands import app

if TYPE_CHECKING:
    from tests.support.wire import Services, Wire


@pytest.fixture(scope="module")
def scarce(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Wire:
    """A service with few nodes, on which five minutes pass in a fifth of a second."""
    data: Path = tmp_path_factory.mktemp("scarce")
    return services(data / "data", "--time-scale", "1500", "--capacity", "5", "--quota", "cores=8,spot-cores=8")


def steady(wire: Wire, name: str) -> m.BatchPool:
    """The pool, once its allocation is steady."""
    found = wire.until(lambda: p if (p := wire.client.get_pool(name)).allocation_state == "steady" else None, 30)
    assert found is not None
    return found


def errors(pool: m.BatchPool) -> list[str]:
    """The codes of the pool's resize errors."""
    return [str(error.code) for error in pool.resize_errors or []]


def gone(wire: Wire, *pools: str) -> None:
    """Delete pools."""
    for name in pools:
        wire.client.begin_delete_pool(name, polling_interval=0).wait()


def make(wire: Wire, dedicated: int, spot: int = 0, minutes: int = 5, **more: Any) -> str:
    """A pool, whose nodes may not all come."""
    name = wire.name("pool")
    timeout = datetime.timedelta(minutes=minutes)
    wire.client.create_pool(
        wire.pool_options(name, dedicated, target_low_priority_nodes=spot, resize_timeout=timeout, **more)
    )
    return name


def test_nodes_beyond_quota_and_capacity_do_not_come(scarce: Wire) -> None:
    name = make(scarce, 5, 2)
    pool = steady(scarce, name)
    assert errors(pool) == ["AccountCoreQuotaReached", "AllocationTimedout"]
    assert (pool.target_dedicated_nodes, pool.current_dedicated_nodes) == (5, 4)
    assert (pool.target_low_priority_nodes, pool.current_low_priority_nodes) == (2, 1)
    assert pool.allocation_state_transition_time is not None
    assert pool.creation_time is not None
    assert pool.allocation_state_transition_time - pool.creation_time >= datetime.timedelta(seconds=0.2)
    # Another resize forgets the errors.
    options = m.BatchPoolResizeOptions(target_dedicated_nodes=1, target_low_priority_nodes=0)
    scarce.client.begin_resize_pool(name, options, polling_interval=0).wait()
    assert errors(steady(scarce, name)) == []
    gone(scarce, name)


def test_resize_waits_for_nodes_of_others_until_it_is_stopped(scarce: Wire) -> None:
    first, day = make(scarce, 4, 1), 24 * 60
    scarce.nodes(first, 5, "idle")
    second = make(scarce, 0, 3, minutes=day)
    pool = scarce.client.get_pool(second)
    assert (pool.allocation_state, pool.current_low_priority_nodes) == ("resizing", 0)
    scarce.client.begin_resize_pool(
        first, m.BatchPoolResizeOptions(target_low_priority_nodes=0), polling_interval=0
    ).wait()
    scarce.until(lambda: scarce.client.get_pool(second).current_low_priority_nodes == 1)
    assert scarce.client.get_pool(second).allocation_state == "resizing"
    scarce.client.begin_stop_pool_resize(second, polling_interval=0).wait()
    pool = steady(scarce, second)
    assert errors(pool) == ["ResizeStopped"]
    # The target stays what was asked for, as recorded.
    assert (pool.target_low_priority_nodes, pool.current_low_priority_nodes) == (3, 1)
    gone(scarce, first, second)


def test_pool_that_waits_for_nodes_can_be_deleted(scarce: Wire) -> None:
    name = make(scarce, 3, 3, minutes=24 * 60)
    scarce.until(lambda: scarce.client.get_pool(name).current_low_priority_nodes == 2)
    gone(scarce, name)
    assert name not in [pool.id for pool in scarce.client.list_pools()]


def test_resize_timeout_has_a_least(wire: Wire) -> None:
    with pytest.raises(HttpResponseError) as caught:
        make(wire, 1, minutes=4)
    assert caught.value.status_code == 400
    assert "resizeTimeout" in str(caught.value)


def test_times_pass_as_on_azure(services: Services, tmp_path: Path) -> None:
    scale = 25  # timers are exact to a millisecond, which is little of the shortest of these times
    wire = services(tmp_path / "data", "--profile", "azure", "--time-scale", str(scale))
    name = make(wire, 1)
    assert wire.client.get_pool(name).allocation_state == "resizing"
    assert list(wire.client.list_nodes(name)) == []
    pool = steady(wire, name)
    (node,) = wire.nodes(name, 1, "idle")

    def within(first: datetime.datetime | None, last: datetime.datetime | None, seconds: float) -> bool:
        assert first is not None
        assert last is not None
        # How much later it may be is up to this machine; the clock itself may be set a little while this runs.
        return 0.95 * seconds / scale <= (last - first).total_seconds() <= seconds / scale + 5

    assert within(pool.creation_time, pool.allocation_state_transition_time, 72)
    assert within(node.allocation_time, node.state_transition_time, 20)
    # The second is added while the first one's end, which frees a slot, has the pool looked at again.
    job = wire.job(name)
    for _ in range(2):
        done = wire.run(job, "/bin/true")
        assert done.execution_info is not None
        assert within(done.creation_time, done.execution_info.start_time, 0.85)
    wire.service.stop()


def test_preempted_node_gives_its_task_back_and_is_replaced(services: Services, tmp_path: Path) -> None:
    # With this seed the first command costs a spot node its life, and the next three do not.
    wire = services(tmp_path / "data", "--faults", "seed=6,preempt=0.5")
    name = make(wire, 1, 1)
    before = {node.id: node for node in wire.nodes(name, 2, "idle")}
    lost = next(node for node in before.values() if not node.is_dedicated).id
    kept = next(node for node in before.values() if node.is_dedicated).id
    job = wire.job(name)
    wire.client.disable_node_scheduling(
        name, kept, m.BatchNodeDisableSchedulingOptions(node_disable_scheduling_option="requeue")
    )
    task = wire.add(job, "/bin/sh -c 'echo $AZ_BATCH_NODE_IS_DEDICATED; sleep 0.1'")
    wire.until(lambda: wire.client.get_node(name, lost).state == "preempted")
    # It lingers in the pool for a while.
    pool = wire.client.get_pool(name)
    assert (pool.current_low_priority_nodes, pool.allocation_state) == (1, "steady")
    counts = {one.pool_id: one for one in wire.client.list_pool_node_counts()}[name]
    assert counts.low_priority is not None
    assert counts.low_priority.preempted == 1
    done = wire.state(job, task, "completed")
    assert done.execution_info is not None
    # Nobody asked for that: it is not counted as a requeue.
    assert (done.execution_info.result, done.execution_info.requeue_count) == ("success", 0)
    assert done.execution_info.retry_count == 0
    assert wire.text(job, task) == "false\n"
    nodes = {node.id: node for node in wire.client.list_nodes(name)}
    assert lost not in nodes
    assert kept in nodes
    assert len(nodes) == 2
    assert not wire.root(lost).exists()
    wire.service.stop()


def test_node_that_keeps_data_goes_when_it_need_not_any_longer(wire: Wire) -> None:
    name = wire.pool(1)
    job = wire.job(name)
    keep = m.BatchTaskConstraints(retention_time=datetime.timedelta(seconds=1.5))
    done = wire.run(job, "/bin/true", constraints=keep)
    assert done.execution_info is not None
    assert done.execution_info.end_time is not None
    options = m.BatchPoolResizeOptions(target_dedicated_nodes=0, node_deallocation_option="retaineddata")
    wire.client.begin_resize_pool(name, options)
    waiting = wire.client.get_pool(name)
    assert (waiting.allocation_state, waiting.current_dedicated_nodes) == ("resizing", 1)
    late = wire.add(job, "/bin/true")
    pool = steady(wire, name)
    assert pool.current_dedicated_nodes == 0
    assert pool.allocation_state_transition_time is not None
    assert pool.allocation_state_transition_time - done.execution_info.end_time >= datetime.timedelta(seconds=1.5)
    assert wire.client.get_task(job, late).state == "active"
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    gone(wire, name)


def test_what_nodes_were_outlives_a_restart(own: Callable[[], Wire]) -> None:
    wire = own()
    name = wire.pool(2)
    first, second = (node.id for node in wire.nodes(name, 2, "idle"))
    options: Any = {"nodeDeallocateOption": "requeue"}
    wire.client.create_node_user(name, second, m.BatchNodeUserCreateOptions(name="ada"))
    wire.client.begin_deallocate_node(name, first, options, polling_interval=0).wait()
    wire.client.disable_node_scheduling(
        name, second, m.BatchNodeDisableSchedulingOptions(node_disable_scheduling_option="requeue")
    )
    wire.service.stop()
    wire = own()
    assert wire.client.get_node(name, first).state == "deallocated"
    wire.until(lambda: wire.client.get_node(name, second).state == "offline")
    wire.client.enable_node_scheduling(name, second)
    with pytest.raises(HttpResponseError) as caught:
        wire.client.create_node_user(name, second, m.BatchNodeUserCreateOptions(name="ada"))
    assert caught.value.status_code == 409
    wire.client.begin_start_node(name, first, polling_interval=0).wait()
    wire.nodes(name, 2, "idle")


def used(wire: Wire, **times: datetime.datetime) -> dict[str, dict[str, Any]]:
    """What pools used, by their ids, as the last api-version shows it that has it."""
    query = "".join(f"&{name}={quote(moment.isoformat())}" for name, moment in times.items())
    answer = wire.client.send_request(HttpRequest("GET", f"/poolusagemetrics?api-version=2023-11-01.18.0{query}"))
    return {one["poolId"]: one for one in answer.json()["value"]}


def test_usage_and_statistics_tell_the_time_of_nodes(wire: Wire) -> None:
    name = wire.pool(1)
    expanded = wire.client.get_pool(name, expand=["stats"])
    assert expanded.pool_statistics is not None
    assert expanded.pool_statistics.usage_statistics is not None
    assert expanded.pool_statistics.usage_statistics.dedicated_core_time > datetime.timedelta(0)
    assert wire.client.get_pool(name).pool_statistics is None
    hour = datetime.datetime.now(datetime.UTC).replace(minute=0, second=0, microsecond=0)
    hours = {"startTime": hour - datetime.timedelta(hours=1), "endtime": hour + datetime.timedelta(hours=2)}
    before = used(wire, **hours)[name]
    assert before["vmSize"] == "standard_d2s_v3"
    assert before["totalCoreHours"] > 0
    begin, end = (datetime.datetime.fromisoformat(before[key]) for key in ("startTime", "endTime"))
    assert end - begin == datetime.timedelta(hours=1)
    wire.client.begin_resize_pool(name, m.BatchPoolResizeOptions(target_dedicated_nodes=0), polling_interval=0).wait()
    wire.nodes(name, 0)
    # The time of a node that is gone still counts.
    assert used(wire, **hours)[name]["totalCoreHours"] >= before["totalCoreHours"]
    # By default the last whole hour, in which there was no pool.
    assert name not in used(wire)
    gone(wire, name)


def test_every_property_comes_back_but_secrets(wire: Wire) -> None:
    name = wire.name("pool")
    sent: dict[str, Any] = {
        "displayName": "all",
        "vmSize": "Standard_D4s_v3",
        "virtualMachineConfiguration": {
            "imageReference": {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server"},
            "nodeAgentSKUId": "batch.node.ubuntu 24.04",
            "dataDisks": [{"lun": 0, "diskSizeGB": 8, "caching": "readonly"}],
            "nodePlacementConfiguration": {"policy": "zonal"},
            "extensions": [{"name": "e", "publisher": "p", "type": "t", "settings": {"a": "b"}}],
            "osDisk": {"diskSizeGB": 64},
            "securityProfile": {"securityType": "trustedLaunch", "uefiSettings": {"secureBootEnabled": True}},
        },
        "resizeTimeout": "PT20M",
        "enableInterNodeCommunication": True,
        "networkConfiguration": {
            "dynamicVNetAssignmentScope": "none",
            "endpointConfiguration": {
                "inboundNATPools": [
                    {
                        "name": "ssh",
                        "protocol": "tcp",
                        "backendPort": 22,
                        "frontendPortRangeStart": 15000,
                        "frontendPortRangeEnd": 15100,
                    }
                ]
            },
            "publicIPAddressConfiguration": {"provision": "batchmanaged"},
        },
        "taskSlotsPerNode": 3,
        "taskSchedulingPolicy": {"nodeFillType": "pack"},
        "metadata": [{"name": "a", "value": "b"}],
        "mountConfiguration": [{"nfsMountConfiguration": {"source": "s", "relativeMountPath": "m"}}],
        "upgradePolicy": {"mode": "automatic", "automaticOSUpgradePolicy": {"disableAutomaticRollback": True}},
    }
    accounts = [
        {
            "name": "u",
            "password": "Secret-1",
            "elevationLevel": "admin",
            "linuxUserConfiguration": {"uid": 5000, "gid": 5000, "sshPrivateKey": "Secret-2"},
        }
    ]
    body: Any = {"id": name, "targetDedicatedNodes": 1, "userAccounts": accounts, **sent}
    wire.client.create_pool(body)
    shown = wire.client.get_pool(name).as_dict()
    machine, network = sent["virtualMachineConfiguration"], sent["networkConfiguration"]
    # In their normal forms, and with what the service fills in.
    machine["imageReference"]["version"] = "latest"
    machine["dataDisks"][0]["managedDisk"] = {"storageAccountType": "standard_lrs"}
    machine["nodePlacementConfiguration"]["policy"] = "Zonal"
    machine["osDisk"] |= {"ephemeralOSDiskSettings": {}, "caching": "None"}
    machine["securityProfile"]["securityType"] = "trustedlaunch"
    network["enableAcceleratedNetworking"] = False
    sent["taskSchedulingPolicy"] = {"nodeFillType": "Pack", "jobDefaultOrder": "none"}
    sent["vmSize"] = "standard_d4s_v3"
    assert {key: shown[key] for key in sent} == sent
    assert "Secret" not in str(shown)
    assert shown["userAccounts"][0]["linuxUserConfiguration"] == {"uid": 5000, "gid": 5000}
    # What cannot be mounted is told, not left out in silence.
    (node,) = wire.nodes(name, 1, "unusable")
    assert [error.code for error in node.errors or []] == ["MountConfigurationError"]
    gone(wire, name)


def test_autoscale_tries_again_for_nodes_that_were_not_to_be_had(scarce: Wire) -> None:
    other = make(scarce, 4, 1)
    scarce.nodes(other, 5, "idle")
    name = scarce.name("pool")
    options = scarce.pool_options(
        name,
        target_dedicated_nodes=None,
        enable_auto_scale=True,
        auto_scale_formula="$TargetLowPriorityNodes = 1;",
        auto_scale_evaluation_interval=datetime.timedelta(minutes=15),
        resize_timeout=datetime.timedelta(minutes=5),
    )
    scarce.client.create_pool(options)
    scarce.until(lambda: errors(scarce.client.get_pool(name)) == ["AllocationTimedout"])
    gone(scarce, other)
    scarce.nodes(name, 1, "idle")
    gone(scarce, name)


def test_empty_jobs_follow_the_scale_and_schedules_and_limits_of_time_do_not(scarce: Wire) -> None:
    pool = m.BatchPoolInfo(pool_id="none")
    empty = scarce.job("none", all_tasks_complete_mode="terminatejob")
    created = scarce.client.get_job(empty).creation_time
    ended = scarce.job_state(empty, "completed").execution_info
    assert created is not None
    assert ended is not None
    assert ended.end_time is not None
    assert ended.end_time - created < datetime.timedelta(seconds=0.9)
    limits = m.BatchJobConstraints(max_wall_clock_time=datetime.timedelta(seconds=30))
    limited = scarce.job("none", constraints=limits)
    schedule = m.BatchJobScheduleConfiguration(recurrence_interval=datetime.timedelta(minutes=1))
    options = m.BatchJobScheduleCreateOptions(
        id="minutely", schedule=schedule, job_specification=m.BatchJobSpecification(pool_info=pool)
    )
    scarce.client.create_job_schedule(options)
    found = scarce.client.get_job_schedule("minutely")
    assert found.creation_time is not None
    assert found.execution_info is not None
    assert found.execution_info.next_run_time is not None
    assert found.execution_info.next_run_time - found.creation_time > datetime.timedelta(seconds=50)
    assert scarce.client.get_job(limited).state == "active"
    scarce.client.begin_delete_job_schedule("minutely", polling_interval=0).wait()
    for job in (empty, limited):
        scarce.client.begin_delete_job(job, polling_interval=0).wait()


def test_profile_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for command in ("serve", "start"):
        result = CliRunner().invoke(app, [command, "--data", str(tmp_path / "data"), "--profile", "quick"])
        assert result.exit_code == 1
        assert "quick" in result.output
        assert "instant, azure" in result.output
    assert not (tmp_path / "data").exists()


def test_restart_removes_the_node_that_was_named(own: Callable[[], Wire]) -> None:
    wire = own()
    name = wire.pool(3)
    job = wire.job(name)
    first = wire.add(job, "/bin/sleep 60")
    busy = wire.state(job, first, "running").node_info
    assert busy is not None
    assert busy.node_id is not None
    options = m.BatchNodeRemoveOptions(node_ids=[busy.node_id], node_deallocation_option="taskcompletion")
    wire.client.begin_remove_nodes(name, options)
    assert wire.client.get_pool(name).allocation_state == "resizing"
    wire.service.stop()
    wire = own()
    steady(wire, name)
    nodes = [node.id for node in wire.nodes(name, 2, "idle", "running")]
    assert busy.node_id not in nodes
    again = wire.state(job, first, "running").node_info
    assert again is not None
    assert again.node_id in nodes
