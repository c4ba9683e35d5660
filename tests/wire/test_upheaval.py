"""Everything that can be done to nodes and pools, at random and all at once: no task is lost, and all comes to rest.

A short walk in every run, longer ones with ``make soak``; what is done comes from a seed.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

if TYPE_CHECKING:
    from tests.support.wire import Services, Wire

#: The node operations and the option that says what becomes of a node's tasks.
NODE_OPERATIONS = {"reboot": "nodeRebootOption", "reimage": "nodeReimageOption", "deallocate": "nodeDeallocateOption"}
POOL_OPERATIONS = ("start", "disable", "enable", "resize", "remove", "stop", "scale", "leave")
OPTIONS = ("requeue", "terminate", "taskcompletion")
#: What an operation may be refused with: the state it met does not allow it. Anything else is a fault.
REFUSALS = {404, 409, 503}
#: Azure's pollers would each ask from a thread of their own.
NEVER: dict[str, Any] = {"polling_interval": 3600}


class Walk:
    """A pool, its jobs, and a random hand."""

    def __init__(self, wire: Wire, seed: int) -> None:
        self.wire = wire
        self.random = random.Random(seed)
        self.pool = wire.name("pool")
        start = m.BatchStartTask(command_line="/bin/sleep 0.05")
        options = wire.pool_options(self.pool, 2, 2, target_low_priority_nodes=2, start_task=start)
        wire.client.create_pool(options)
        preparation = m.BatchJobPreparationTask(command_line="/bin/sleep 0.05")
        release = m.BatchJobReleaseTask(command_line="/bin/true")
        self.jobs = [
            wire.job(self.pool),
            wire.job(self.pool, job_preparation_task=preparation, job_release_task=release),
        ]
        self.done: set[str] = set()

    def step(self) -> None:
        """Do one thing; a refusal is fine."""
        what = self.random.choice(["tasks"] * 5 + [*NODE_OPERATIONS, *POOL_OPERATIONS])
        try:
            self._do(what, self.random.choice(OPTIONS))
            self.done.add(what)
        except HttpResponseError as error:
            assert error.status_code in REFUSALS, f"{what}: {error}"  # noqa: PT017

    def _do(self, what: str, option: str) -> None:
        client, pool = self.wire.client, self.pool
        nodes = [node.id for node in client.list_nodes(pool)]
        node = self.random.choice(nodes) if nodes else "none"
        if what == "tasks":
            for job in self.jobs:
                self.wire.add(job, self.random.choice(["/bin/true", "/bin/sleep 0.2", "/bin/sleep 0.6"]))
        elif what in NODE_OPERATIONS:
            options: Any = {NODE_OPERATIONS[what]: option}
            getattr(client, f"begin_{what}_node")(pool, node, options, **NEVER)
        elif what == "start":
            client.begin_start_node(pool, node, **NEVER)
        elif what == "disable":
            client.disable_node_scheduling(
                pool, node, m.BatchNodeDisableSchedulingOptions(node_disable_scheduling_option=option)
            )
        elif what == "enable":
            client.enable_node_scheduling(pool, node)
        elif what == "resize":
            targets: Any = {"target_dedicated_nodes": self.random.randint(0, 3), "node_deallocation_option": option}
            client.begin_resize_pool(
                pool, m.BatchPoolResizeOptions(target_low_priority_nodes=self.random.randint(0, 3), **targets), **NEVER
            )
        elif what == "remove":
            client.begin_remove_nodes(
                pool, m.BatchNodeRemoveOptions(node_ids=[node], node_deallocation_option=option), **NEVER
            )
        elif what == "stop":
            client.begin_stop_pool_resize(pool, **NEVER)
        elif what == "scale":
            formula = "$TargetDedicatedNodes = min(3, $PendingTasks.GetSample(1) / 2); $TargetLowPriorityNodes = 1;"
            client.enable_pool_auto_scale(
                pool,
                m.BatchPoolEnableAutoScaleOptions(auto_scale_formula=f"{formula} $NodeDeallocationOption = {option};"),
            )
        else:
            client.disable_pool_auto_scale(pool)

    def recover(self) -> bool:
        """Bring each node back to work; whether all are."""
        client = self.wire.client
        if client.get_pool(self.pool).allocation_state != "steady":
            return False
        nodes = list(client.list_nodes(self.pool))
        for node in nodes:
            try:
                if node.state == "deallocated":
                    client.begin_start_node(self.pool, node.id, **NEVER)
                if node.scheduling_state == "disabled":
                    client.enable_node_scheduling(self.pool, node.id)
            except HttpResponseError as error:
                assert error.status_code in REFUSALS  # noqa: PT017
        return all(node.state in ("idle", "running") and node.scheduling_state == "enabled" for node in nodes)

    def left(self) -> int:
        """How many tasks have not completed."""
        tasks = [task for job in self.jobs for task in self.wire.client.list_tasks(job, select=["id", "state"])]
        return sum(task.state != "completed" for task in tasks)


@pytest.mark.parametrize(
    ("seed", "steps"),
    [(1, 60), *(pytest.param(seed, 400, marks=pytest.mark.soak) for seed in range(2, 7))],
)
def test_no_task_is_lost_and_all_comes_to_rest(services: Services, tmp_path: Path, seed: int, steps: int) -> None:
    wire = services(tmp_path / "data", "--faults", f"seed={seed},preempt=0.1", "--time-scale", "50")
    walk = Walk(wire, seed)
    client = wire.client
    for _ in range(steps):
        walk.step()
    assert len(walk.done) > 5, walk.done
    client.disable_pool_auto_scale(walk.pool)
    wire.until(walk.recover, 60)
    targets = m.BatchPoolResizeOptions(target_dedicated_nodes=3, target_low_priority_nodes=0)
    client.begin_resize_pool(walk.pool, targets, polling_interval=0).wait()
    wire.until(lambda: walk.left() == 0, 60)
    wire.until(lambda: all(node.running_task_slots_count == 0 for node in client.list_nodes(walk.pool)))
    wire.nodes(walk.pool, 3, "idle")
    for job in walk.jobs:
        wire.terminate(job)
        wire.job_state(job, "completed")
    client.begin_delete_pool(walk.pool, polling_interval=0).wait()
    assert list((wire.service.data / "nodes").iterdir()) == []
    wire.service.stop()
    log = (wire.service.data / "service.log").read_text()
    assert "Traceback" not in log, log[-3000:]
