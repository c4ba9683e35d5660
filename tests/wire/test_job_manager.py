"""Job manager tasks: created with their job, before and in place of other tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

if TYPE_CHECKING:
    from tests.support.wire import Wire


def managed(wire: Wire, pool: str, command: str, job: dict[str, Any] | None = None, **more: Any) -> str:
    """A job with a job manager called ``boss``."""
    manager = m.BatchJobManagerTask(id="boss", command_line=command, **more)
    return wire.job(pool, job_manager_task=manager, **(job or {}))


def gated(gate: Path) -> str:
    """A command that ends once a file is there."""
    return f"/bin/sh -c 'until test -e {gate}; do sleep 0.02; done'"


def test_manager_is_a_task_of_the_job_and_ends_it(wire: Wire, pool: str) -> None:
    job = managed(wire, pool, "/bin/sh -c 'echo I am $AZ_BATCH_TASK_ID of $AZ_BATCH_JOB_ID; exit 0'")
    ended = wire.job_state(job, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.termination_reason == "JMComplete"
    (task,) = wire.client.list_tasks(job)
    assert (task.id, task.state) == ("boss", "completed")
    assert wire.text(job, "boss") == f"I am boss of {job}\n"
    manager = ended.job_manager_task
    assert manager is not None
    assert (manager.kill_job_on_completion, manager.run_exclusive, manager.allow_low_priority_node) == (
        True,
        True,
        True,
    )
    assert (manager.required_slots, task.required_slots) == (1, 1)


def test_failed_manager_ends_its_job_after_its_retries(wire: Wire, pool: str) -> None:
    job = managed(wire, pool, "/bin/false", constraints=m.BatchTaskConstraints(max_task_retry_count=1))
    ended = wire.job_state(job, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.termination_reason == "JMComplete"
    boss = wire.client.get_task(job, "boss")
    assert boss.execution_info is not None
    assert (boss.execution_info.result, boss.execution_info.retry_count) == ("failure", 1)


def test_running_tasks_are_ended_with_the_manager(wire: Wire, pool: str, tmp_path: Path) -> None:
    job = managed(wire, pool, gated(tmp_path / "gate"), run_exclusive=False)
    wire.state(job, "boss", "running")
    other = wire.add(job, "/bin/sleep 60")
    wire.state(job, other, "running")
    (tmp_path / "gate").touch()
    wire.job_state(job, "completed")
    ended = wire.client.get_task(job, other).execution_info
    assert ended is not None
    assert ended.failure_info is not None
    assert ended.failure_info.code == "TaskEnded"


def test_manager_need_not_end_its_job(wire: Wire, pool: str) -> None:
    job = managed(wire, pool, "/bin/true", kill_job_on_completion=False)
    wire.state(job, "boss", "completed")
    wire.run(job, "/bin/true")
    assert wire.client.get_job(job).state == "active"


def test_manager_that_is_left_alone_lets_the_job_end_with_its_last_task(wire: Wire, pool: str) -> None:
    options = {"all_tasks_complete_mode": "terminatejob"}
    job = managed(wire, pool, "/bin/sleep 0.2", options, kill_job_on_completion=False)
    assert wire.client.get_job(job).state == "active"
    ended = wire.job_state(job, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.termination_reason == "AllTasksComplete"


def test_exclusive_manager_has_its_node_to_itself(wire: Wire, tmp_path: Path) -> None:
    pool = wire.pool(1, 4)
    holder = wire.job(pool)
    held = wire.add(holder, gated(tmp_path / "held"))
    wire.state(holder, held, "running")
    job = managed(wire, pool, gated(tmp_path / "gate"), kill_job_on_completion=False)
    mate = wire.add(job, "/bin/true")
    wire.run(holder, "/bin/true")
    assert {wire.client.get_task(job, name).state for name in ("boss", mate)} == {"active"}
    (tmp_path / "held").touch()
    wire.state(job, "boss", "running")
    other = wire.add(holder, "/bin/true")
    (node,) = wire.client.list_nodes(pool)
    assert node.running_task_slots_count == 4
    assert wire.client.get_task(job, mate).state == "active"
    assert wire.client.get_task(holder, other).state == "active"
    (tmp_path / "gate").touch()
    wire.state(job, mate, "completed")
    wire.state(holder, other, "completed")
    wire.client.begin_delete_pool(pool, polling_interval=1)


def test_manager_can_refuse_spot_nodes(wire: Wire) -> None:
    pool = wire.name("pool")
    options = wire.pool_options(pool, 0, target_low_priority_nodes=1, target_dedicated_nodes=0)
    wire.client.create_pool(options)
    wire.nodes(pool, 1, "idle")
    job = managed(wire, pool, "/bin/true", allow_low_priority_node=False)
    willing = managed(wire, pool, "/bin/true")
    wire.job_state(willing, "completed")
    assert wire.client.get_task(job, "boss").state == "active"
    both = m.BatchPoolResizeOptions(target_dedicated_nodes=1, target_low_priority_nodes=1)
    wire.client.begin_resize_pool(pool, both, polling_interval=1)
    wire.job_state(job, "completed")
    node = wire.client.get_task(job, "boss").node_info
    assert node is not None
    assert str(node.node_id).endswith("_d")
    wire.client.begin_delete_pool(pool, polling_interval=1)


def test_manager_has_files_outputs_and_environment_of_its_own(wire: Wire, pool: str) -> None:
    command = "/bin/sh -c 'env > env.txt; cat env.txt'"
    settings = [m.EnvironmentSetting(name="WHO", value="manager")]
    common = {"common_environment_settings": [m.EnvironmentSetting(name="ALL", value="tasks")]}
    job = managed(wire, pool, command, common, environment_settings=settings, display_name="the boss")
    wire.job_state(job, "completed")
    variables = dict(line.split("=", 1) for line in wire.text(job, "boss").splitlines())
    assert (variables["WHO"], variables["ALL"]) == ("manager", "tasks")
    assert variables["AZ_BATCH_ACCOUNT_URL"] == wire.service.url
    # A token for the service came with API versions that had authenticationTokenSettings; 2025-06-01 has none.
    assert "AZ_BATCH_AUTHENTICATION_TOKEN" not in variables
    assert wire.client.get_task(job, "boss").display_name == "the boss"


def test_manager_comes_back_as_it_was_sent(wire: Wire, pool: str) -> None:
    job = managed(wire, wire.name("no-pool"), "/bin/true", run_exclusive=False, required_slots=3, display_name="b")
    shown = json.loads(json.dumps(wire.client.get_job(job).as_dict()["jobManagerTask"]))
    assert shown | {"runExclusive": False, "requiredSlots": 3, "displayName": "b", "id": "boss"} == shown
    wire.terminate(job)


@pytest.mark.parametrize(
    ("more", "said"),
    [({"required_slots": 0}, "requiredSlots"), ({"command_line": " "}, "commandLine"), ({"id": "no id"}, "id")],
)
def test_managers_that_cannot_be(wire: Wire, pool: str, more: dict[str, Any], said: str) -> None:
    manager = m.BatchJobManagerTask(**{"id": "boss", "command_line": "/bin/true", **more})
    with pytest.raises(HttpResponseError) as caught:
        wire.job(pool, job_manager_task=manager)
    assert caught.value.status_code == 400
    assert said in str(caught.value)


def test_ids_of_the_jobs_own_tasks_differ(wire: Wire, pool: str) -> None:
    preparation = m.BatchJobPreparationTask(id="BOSS", command_line="/bin/true")
    with pytest.raises(HttpResponseError) as caught:
        managed(wire, pool, "/bin/true", {"job_preparation_task": preparation})
    assert caught.value.status_code == 400
