"""A load as a farm has it: eight clients at once, 200 running tasks, faults on. Nothing is lost or doubled.

A short one in every run, a longer one with ``make soak``.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from azure.batch import BatchClient
from azure.batch import models as m
from azure.core.credentials import AzureNamedKeyCredential

from tests.support.farm import Client, Gate, judge, sure

if TYPE_CHECKING:
    from tests.support.wire import Services

SEED = int(os.environ.get("FARM_SEED", "1"))
CLIENTS, NODES, SPOT, SLOTS = 8, 40, 10, 4
FAULTS = "429=0.02,503=0.02,drop=0.03,preempt=0.005,retry-after=0"


@pytest.mark.parametrize("steps", [6, pytest.param(400, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_nothing_is_lost(services: Services, tmp_path: Path, steps: int) -> None:
    wire = services(tmp_path / "data", "--faults", f"seed={SEED},{FAULTS}")
    notes = tmp_path / "farm"
    notes.mkdir()
    gate = Gate(notes)
    service = wire.service
    with ExitStack() as stack:
        credential = AzureNamedKeyCredential(service.account, service.key)
        batches = [stack.enter_context(BatchClient(service.url, credential, retry_total=0)) for _ in range(CLIENTS)]
        options = wire.pool_options("farm", NODES, SLOTS, target_low_priority_nodes=SPOT)
        sure(lambda: wire.client.create_pool(options), "PoolExists")
        clients = [Client(batch, f"job{number}", notes, f"{SEED}:{number}") for number, batch in enumerate(batches)]
        workers = stack.enter_context(ThreadPoolExecutor(CLIENTS))

        def begin(client: Client) -> None:
            pool = m.BatchPoolInfo(pool_id="farm")
            job = m.BatchJobCreateOptions(id=client.job, pool_info=pool)
            sure(lambda: client.batch.create_job(job), "JobExists")
            for _ in range(3):
                client.add(10)

        list(workers.map(begin, clients))

        def running() -> int:
            nodes = sure(lambda: list(wire.client.list_nodes("farm"))) or []
            return sum(node.running_task_slots_count or 0 for node in nodes)

        # 240 tasks wait at the gate, and each slot has one of them.
        wire.until(lambda: running() == (NODES + SPOT) * SLOTS, timeout=60)

        def work(client: Client) -> None:
            for number in range(steps):
                if client is clients[0] and number == steps // 2:
                    gate.open()
                client.step()

        list(workers.map(work, clients))

        def rest() -> bool:
            counts = [sure(lambda one=one: one.batch.get_job_task_counts(one.job)) for one in clients]  # type: ignore[misc]
            return all(one and not one.task_counts.active and not one.task_counts.running for one in counts)

        wire.until(rest, timeout=60 + steps)
        noted: dict[str, Counter[tuple[str, str]]] = {}
        for line in (notes / "notes").read_text().splitlines():
            what, task, dedicated = line.split()
            noted.setdefault(task, Counter())[what, dedicated] += 1
        came = sum(workers.map(lambda client: judge(client, noted), clients), Counter[str]())
        did = sum((client.did for client in clients), Counter[str]())
        print(f"{sum(came.values())} tasks: {dict(came)}; {dict(did)}")
        assert came["success"] > 100
        assert noted.keys() <= set().union(*(client.acknowledged for client in clients))
        # A spot node that was taken away has taken its files along.
        there = {node.id for node in sure(lambda: list(wire.client.list_nodes("farm"))) or [] if node.state == "idle"}
        for client in clients:
            ran = {name: task for name, task in client.listed().items() if task.node_info}
            done = sorted(
                name
                for name, task in ran.items()
                if task.execution_info.result == "success" and task.node_info.node_id in there  # type: ignore[operator,union-attr]
            )
            assert done
            for name in done[:: max(1, len(done) // 5)]:
                text = sure(lambda: b"".join(client.batch.download_task_file(client.job, name, "stdout.txt")))  # noqa: B023
                assert text == f"{name}\n".encode()
        wire.until(lambda: running() == 0)
    service.stop()
    log = (service.data / "service.log").read_text()
    assert "Traceback" not in log, log[-3000:]
