"""A service killed at random moments while clients work: what it acknowledged or showed, it still knows.

A few kills in every run, and many with ``make soak``; the moments come from a seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from azure.batch import BatchClient
from azure.batch import models as m
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import AzureError, HttpResponseError, IncompleteReadError

if TYPE_CHECKING:
    from airflow_batchwrap.local.runner import LocalService
    from tests.support.wire import Wire

#: What the tasks do; {} is a file that says that the command ran.
COMMANDS = ("/bin/sh -c 'echo x >> {}'", "/bin/sh -c 'sleep 0.3; echo x >> {}'", "/bin/sh -c 'echo x >> {}; exit 3'")


@dataclass
class Ledger:
    """What the service has acknowledged, and what it has shown."""

    ran: Path
    pools: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    tasks: dict[tuple[str, str], str] = field(default_factory=dict)
    results: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    #: Jobs that were asked to go, with an answer or without one.
    doomed: set[str] = field(default_factory=set)
    #: Tasks that were to be ended: none of them may wait or run again.
    terminated: set[tuple[str, str]] = field(default_factory=set)
    #: Jobs whose running tasks were to be ended.
    stirred: set[str] = field(default_factory=set)
    #: Changes that were sent: the last one may have been made though no answer came.
    sent: dict[str, int] = field(default_factory=dict)


class Worker(threading.Thread):
    """A client that adds, changes, looks and deletes until the service is gone.

    :param service: the service.
    :param ledger: where it notes what it was told.
    :param name: what its ids begin with.
    :param seed: what it does, in which order.
    """

    def __init__(self, service: LocalService, ledger: Ledger, name: str, seed: str) -> None:
        super().__init__(name=name)
        self._ledger = ledger
        self._random = random.Random(seed)
        credential = AzureNamedKeyCredential(service.account, service.key)
        self._client = BatchClient(service.url, credential, retry_total=0, connection_timeout=5, read_timeout=20)
        self._number = 0
        self._jobs: list[str] = []
        self.fault: BaseException | None = None

    def run(self) -> None:
        """Work until the connection fails."""
        try:
            with self._client:
                while True:
                    self._step()
        except HttpResponseError as error:
            # One with a status is an answer, and a wrong one. Without: the connection broke in the midst of an answer,
            # which the client says in several ways.
            if error.status_code is not None and not isinstance(error, IncompleteReadError):
                self.fault = error
        except AzureError:
            pass
        except BaseException as error:
            self.fault = error

    def _fresh(self, stem: str) -> str:
        self._number += 1
        return f"{self.name}-{stem}{self._number}"

    def _step(self) -> None:
        ledger, client, chance = self._ledger, self._client, self._random.random()
        if not self._jobs or chance < 0.1:
            job = self._fresh("j")
            client.create_job(m.BatchJobCreateOptions(id=job, pool_info=m.BatchPoolInfo(pool_id="main"), priority=1))
            ledger.jobs[job] = 1
            self._jobs.append(job)
            return
        job = self._random.choice(self._jobs)
        if chance < 0.4:
            task = self._task()
            client.create_task(job, task)
            ledger.tasks[job, task.id] = task.command_line
        elif chance < 0.6:
            tasks = [self._task() for _ in range(self._random.randint(2, 20))]
            client.create_task_collection(job, m.BatchTaskGroup(task_values=tasks))
            ledger.tasks |= {(job, task.id): task.command_line for task in tasks}
        elif chance < 0.7:
            priority = ledger.sent[job] = self._random.randint(-1000, 1000)
            client.update_job(job, m.BatchJobUpdateOptions(priority=priority))
            ledger.jobs[job] = priority
        elif chance < 0.78:
            self._terminate(job)
        elif chance < 0.8:
            self._stir(job)
        elif chance < 0.83:
            self._upset()
        elif chance < 0.95:
            for shown in client.list_tasks(job):
                if shown.state == "completed":
                    ledger.results[job, shown.id] = shown.as_dict()["executionInfo"]
        elif chance < 0.97:
            pool, nodes = self._fresh("p"), self._random.randint(0, 1)
            client.create_pool(_pool(pool, nodes))
            ledger.pools[pool] = nodes
        elif len(self._jobs) > 2:
            self._jobs.remove(job)
            ledger.doomed.add(job)
            client._delete_job_internal(job)
            ledger.deleted.add(job)

    def _terminate(self, job: str) -> None:
        """End a task by request, if it has not ended."""
        mine = [task for known, task in list(self._ledger.tasks) if known == job]
        if mine:
            task = self._random.choice(mine)
            self._ledger.stirred.add(job)
            with _refused():
                self._client.terminate_task(job, task)
                self._ledger.terminated.add((job, task))

    def _stir(self, job: str) -> None:
        """Disable a job, in some way, and enable it again."""
        way = self._random.choice(["requeue", "terminate", "wait"])
        self._ledger.stirred.add(job)
        with _refused():
            self._client._disable_job_internal(job, m.BatchJobDisableOptions(disable_tasks=way))
        with _refused():
            self._client._enable_job_internal(job)

    def _upset(self) -> None:
        """Do something to a node."""
        client: Any = self._client
        node = self._random.choice(list(client.list_nodes("main"))).id
        option = self._random.choice(["requeue", "taskcompletion"])
        acts = [
            lambda: client._reboot_node_internal("main", node, {"nodeRebootOption": option}),
            lambda: client._reimage_node_internal("main", node, {"nodeReimageOption": option}),
            lambda: client._deallocate_node_internal("main", node, {"nodeDeallocateOption": option}),
            lambda: client._start_node_internal("main", node),
            lambda: client.disable_node_scheduling("main", node, {"nodeDisableSchedulingOption": option}),
            lambda: client.enable_node_scheduling("main", node),
        ]
        with _refused():
            self._random.choice(acts)()

    def _task(self) -> m.BatchTaskCreateOptions:
        name = self._fresh("t")
        command = self._random.choice(COMMANDS).replace("{}", str(self._ledger.ran / name))
        return m.BatchTaskCreateOptions(id=name, command_line=command)


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """What cannot be done just now: another client was there first."""
    try:
        yield
    except HttpResponseError as error:
        if error.status_code != 409:
            raise


def _pool(name: str, nodes: int, slots: int = 1) -> m.BatchPoolCreateOptions:
    image = m.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server", version="latest")
    machine = m.VirtualMachineConfiguration(image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04")
    return m.BatchPoolCreateOptions(
        id=name,
        vm_size="Standard_D2s_v3",
        virtual_machine_configuration=machine,
        target_dedicated_nodes=nodes,
        task_slots_per_node=slots,
    )


def running(data: Path) -> list[psutil.Process]:
    """The processes that belong to the nodes of a data directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            root = process.environ().get("AZ_BATCH_NODE_ROOT_DIR", "")
            if root.startswith(str(data)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def helpers(wire: Wire) -> list[psutil.Process]:
    """The processes the service itself has started for itself."""
    children = psutil.Process(wire.service.pid).children()
    return [child for child in children if any("launcher" in part for part in child.cmdline())]


def crash(wire: Wire, ledger: Ledger, dice: random.Random, number: int) -> list[psutil.Process]:
    """Let clients work, and kill the service in the midst of it; what its tasks left running."""
    workers = [Worker(wire.service, ledger, f"w{number}-{one}", f"{dice.random()}") for one in range(3)]
    helper = helpers(wire)
    for worker in workers:
        worker.start()
    threading.Event().wait(dice.uniform(0.05, 0.8))
    service = psutil.Process(wire.service.pid)
    os.kill(wire.service.pid, signal.SIGKILL)
    service.wait(10)
    left = running(wire.service.data)
    for worker in workers:
        worker.join(30)
        assert not worker.is_alive()
        assert worker.fault is None
    psutil.wait_procs(helper, 10)
    assert not [one for one in helper if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    return left


def compare(wire: Wire, ledger: Ledger) -> None:
    """Hold a service that was started again to what it had said before."""
    client = wire.client
    pools = {pool.id: pool.target_dedicated_nodes for pool in client.list_pools()}
    assert ledger.pools.items() <= pools.items()
    jobs = {job.id: job for job in client.list_jobs()}
    for name in ledger.deleted & set(jobs):
        assert jobs[name].state == "deleting"
    kept = {job: priority for job, priority in ledger.jobs.items() if job not in ledger.doomed}
    for name, priority in kept.items():
        assert jobs[name].priority in (priority, ledger.sent.get(name))
        ledger.jobs[name] = jobs[name].priority or 0
        shown = {task.id: task for task in client.list_tasks(name)}
        for (job, task), command in ledger.tasks.items():
            if job == name:
                assert shown[task].command_line == command
        for job, task in ledger.terminated:
            if job == name:
                assert shown[task].state == "completed"
        for (job, task), result in ledger.results.items():
            if job == name:
                assert shown[task].as_dict()["executionInfo"] == result
        counts = client.get_job_task_counts(name).task_counts
        assert (counts.active or 0) + (counts.running or 0) + (counts.completed or 0) == len(shown)


def finish(wire: Wire, ledger: Ledger) -> None:
    """Let all that is left run to its end, then delete everything: nothing may stay behind."""
    client: Any = wire.client
    kept = [job for job in ledger.jobs if job not in ledger.doomed]
    for node in client.list_nodes("main"):
        with _refused():
            client.enable_node_scheduling("main", node.id)
        wire.until(lambda node=node: client.get_node("main", node.id).state != "deallocating")  # type: ignore[misc]
        with _refused():
            client._start_node_internal("main", node.id)
    for job in kept:
        with _refused():
            client._enable_job_internal(job)
        wire.until(lambda job=job: not client.get_job_task_counts(job).task_counts.active, 60)  # type: ignore[misc]
        wire.until(lambda job=job: not client.get_job_task_counts(job).task_counts.running, 60)  # type: ignore[misc]
        for task in client.list_tasks(job):
            assert task.execution_info is not None
            failure = task.execution_info.failure_info
            if job in ledger.stirred and failure is not None and failure.code == "TaskEnded":
                continue
            assert task.execution_info.exit_code == (3 if "exit 3" in str(task.command_line) else 0)
            assert (ledger.ran / task.id).exists()
    for each in client.list_jobs():
        with contextlib.suppress(HttpResponseError):
            client._delete_job_internal(each.id)
    wire.until(lambda: not list(client.list_jobs()), 60)
    for pool in client.list_pools():
        client._delete_pool_internal(pool.id)
    wire.until(lambda: not list(client.list_pools()), 60)
    wire.until(lambda: not list((wire.service.data / "nodes").iterdir()), 60)
    assert not running(wire.service.data)


def _crashes(begin: Callable[[], Wire], tmp_path: Path, seed: int, kills: int) -> None:
    dice, ledger = random.Random(seed), Ledger(tmp_path / "ran")
    ledger.ran.mkdir()
    wire = begin()
    wire.client.create_pool(_pool("main", 2, 4))
    ledger.pools["main"] = 2
    for number in range(kills):
        left = crash(wire, ledger, dice, number)
        wire = begin()
        compare(wire, ledger)
        gone = psutil.wait_procs(left, 10)[1]
        assert not [one for one in gone if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    finish(wire, ledger)
    assert "Traceback" not in (wire.service.data / "service.log").read_text()


def test_nothing_is_lost(own: Callable[[], Wire], tmp_path: Path) -> None:
    _crashes(own, tmp_path, seed=2026, kills=3)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_in_many_crashes(own: Callable[[], Wire], tmp_path: Path, seed: int) -> None:
    _crashes(own, tmp_path, seed, kills=12)


@pytest.mark.as_user
def test_lost_helper_costs_a_run_and_no_task(own: Callable[[], Wire]) -> None:
    wire = own()
    job = wire.job(wire.pool())
    mark = "$AZ_BATCH_NODE_SHARED_DIR/mark"
    task = wire.add(job, f"/bin/sh -c 'test -e {mark} && exit 0; touch {mark}; sleep 641'")
    wire.until(lambda: running(wire.service.data)[1:])
    old = running(wire.service.data)
    (helper,) = helpers(wire)
    helper.kill()
    info = wire.state(job, task, "completed").execution_info
    assert info is not None
    assert (info.exit_code, info.requeue_count) == (0, 0)
    assert not [one for one in psutil.wait_procs(old, 10)[1] if one.status() != psutil.STATUS_ZOMBIE]
    assert helpers(wire) != [helper]
