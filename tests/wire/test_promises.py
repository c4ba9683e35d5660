"""What was acknowledged a moment before the service was killed is done by the next one.

The helper process is stopped first, so that no command can be ended before the service is gone: what was promised of
running tasks is still to be done then.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from azure.batch import models as m

from tests.support.wire import Services, Wire

#: Verbs that end a running task, by the name of the job that they were tried on.
TERMINATING = ("task", "disabled-job", "terminated-job", "scheduling", "resize", "removal")


@dataclass
class Crash:
    """A service that was killed after many promises, and started again.

    :param wire: the new service.
    :param ran: where each task notes that it began.
    :param nodes: the nodes that something was asked of, by its name.
    """

    wire: Wire
    ran: Path
    nodes: dict[str, str]

    def marked(self, name: str) -> bool:
        """Whether a node has what the first run left there."""
        return (self.wire.root(self.nodes[name]) / "shared" / "first").exists()

    def begun(self, job: str) -> int:
        """How often a job's task began."""
        return (self.ran / job).read_text().count("x")


def _kill(wire: Wire) -> None:
    service = psutil.Process(wire.service.pid)
    (helper,) = [child for child in service.children() if any("launcher" in part for part in child.cmdline())]
    os.kill(service.pid, signal.SIGKILL)
    service.wait(10)
    helper.resume()
    psutil.wait_procs([helper], 10)


def _begin(wire: Wire, pool: str, name: str, ran: Path) -> None:
    """A job whose task leaves a mark on its node when it runs for the first time, and does not end."""
    wire.client.create_job(m.BatchJobCreateOptions(id=name, pool_info=m.BatchPoolInfo(pool_id=pool)))
    first = f"test -e {ran / name} || touch $AZ_BATCH_NODE_SHARED_DIR/first"
    wire.add(name, f"/bin/sh -c '{first}; echo x >> {ran / name}; exec sleep 641'", id="t")


def _targets(option: str) -> m.BatchPoolResizeOptions:
    return m.BatchPoolResizeOptions(target_dedicated_nodes=0, node_deallocation_option=option)


def _going(node: str, option: str) -> m.BatchNodeRemoveOptions:
    return m.BatchNodeRemoveOptions(node_ids=[node], node_deallocation_option=option)


@pytest.fixture(scope="module")
def crash(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Crash:
    """Promises of every kind, a death, and a new service."""
    folder = tmp_path_factory.mktemp("promises")
    ran = folder / "ran"
    ran.mkdir()
    wire = services(folder / "data")
    client: Any = wire.client
    nodes: dict[str, str] = {}
    names = (
        *TERMINATING,
        "requeued-job",
        "reboot",
        "reimage",
        "deallocate",
        "retained",
        "completed-removal",
        "stopped",
    )
    for name in names:
        client.create_pool(wire.pool_options(name, 2 if "removal" in name else 1, slots=2))
    for name in names:
        nodes[name] = str(wire.nodes(name, 2 if "removal" in name else 1, "idle")[0].id)
        _begin(wire, name, name, ran)
    for name in names:
        wire.until(lambda name=name: (ran / name).exists())  # type: ignore[misc]
        nodes[name] = str(client.get_task(name, "t").node_info.node_id)
    wire.run("retained", "true", id="done")
    (helper,) = psutil.Process(wire.service.pid).children()
    helper.suspend()
    node, patient = nodes.__getitem__, "taskcompletion"
    asked: dict[str, Any] = {
        "disabled-job": lambda name: client._disable_job_internal(name, {"disableTasks": "terminate"}),
        "requeued-job": lambda name: client._disable_job_internal(name, {"disableTasks": "requeue"}),
        "terminated-job": lambda name: client._terminate_job_internal(name, {"terminateReason": "enough"}),
        "resize": lambda name: client._resize_pool_internal(name, _targets("terminate")),
        "removal": lambda name: client._remove_nodes_internal(name, _going(node(name), "terminate")),
        "completed-removal": lambda name: client._remove_nodes_internal(name, _going(node(name), patient)),
        "reboot": lambda name: client._reboot_node_internal(name, node(name), {"nodeRebootOption": patient}),
        "reimage": lambda name: client._reimage_node_internal(name, node(name), {"nodeReimageOption": patient}),
        "retained": lambda name: client._reimage_node_internal(name, node(name), {"nodeReimageOption": "retaineddata"}),
        "deallocate": lambda name: client._deallocate_node_internal(
            name, node(name), {"nodeDeallocateOption": patient}
        ),
        "stopped": lambda name: client._resize_pool_internal(name, _targets(patient)),
    }
    for name, ask in asked.items():
        ask(name)
    client._stop_pool_resize_internal("stopped")
    client.terminate_task("task", "t")
    client.disable_node_scheduling(
        "scheduling",
        node("scheduling"),
        m.BatchNodeDisableSchedulingOptions(node_disable_scheduling_option="terminate"),
    )
    _kill(wire)
    # Seven days of retention are over in six seconds.
    return Crash(services(folder / "data", "--time-scale", "100000"), ran, nodes)


@pytest.mark.parametrize("job", TERMINATING)
def test_task_that_was_to_end_has_ended_and_runs_no_more(crash: Crash, job: str) -> None:
    info = crash.wire.state(job, "t", "completed").execution_info
    assert info is not None
    assert info.failure_info is not None
    assert info.failure_info.code == "TaskEnded"
    assert crash.begun(job) == 1


def test_jobs_are_where_they_were_to_be(crash: Crash) -> None:
    for name in ("disabled-job", "requeued-job"):
        assert crash.wire.job_state(name, "disabled")
    ended = crash.wire.job_state("terminated-job", "completed").execution_info
    assert ended is not None
    assert ended.termination_reason == "enough"
    assert crash.wire.client.get_task("requeued-job", "t").state == "active"
    assert crash.begun("requeued-job") == 1


def test_nodes_that_were_to_go_are_gone_and_no_others(crash: Crash) -> None:
    assert not crash.wire.nodes("resize", 0)
    for name in ("removal", "completed-removal"):
        (left,) = crash.wire.nodes(name, 1, "idle", "running")
        assert left.id != crash.nodes[name]


def test_reboot_that_waited_for_tasks_is_over_and_the_node_works(crash: Crash) -> None:
    crash.wire.until(lambda: crash.begun("reboot") == 2)
    assert crash.marked("reboot")


@pytest.mark.parametrize("name", ["reimage", "retained"])
def test_reimage_that_waited_has_wiped_the_node(crash: Crash, name: str) -> None:
    # Where data is retained, nothing is placed on the node before it was wiped: the retention ends in six seconds.
    crash.wire.until(lambda: crash.begun(name) == 2, 30)
    assert not crash.marked(name)


def test_deallocation_that_waited_for_tasks_is_done(crash: Crash) -> None:
    node = crash.nodes["deallocate"]
    crash.wire.until(lambda: crash.wire.client.get_node("deallocate", node).state == "deallocated")
    assert not crash.marked("deallocate")
    assert crash.wire.client.get_task("deallocate", "t").state == "active"
    assert crash.begun("deallocate") == 1


def test_resize_that_was_stopped_stays_so(crash: Crash) -> None:
    (node,) = crash.wire.nodes("stopped", 1, "idle", "running")
    assert node.id == crash.nodes["stopped"]
