"""A real Airflow, Azurite and a local Batch service with an access log, for benchmarks/waiting.py.

The harness is that of the tests.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from azure.batch import BatchClient
from azure.batch import models as m

from airflow_batchwrap.stack import azurite

# A script's own folder is on its path, and not the repository's.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from tests.support.polling import until
from tests.support.real_airflow import DEFAULT, RealAirflow

DAGS = Path(__file__).parent / "waiting_dags"
POOL, NODES, SLOTS = "waiting", 4, 256  # 256 slots: the most that Batch gives a node
MIB = 1024 * 1024
#: Operations that read what a task prints.
LOG_READS = {"download_task_file", "get_task_file_properties"}
#: What Airflow ships with, where stack/home.py chooses otherwise.
DEFAULTS = {
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "1",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "5",
    "AIRFLOW__CORE__PARALLELISM": "32",
}


@dataclass(frozen=True)
class Request:
    """A line of the access log."""

    when: float
    status: str
    operation: str
    path: str


class Stack(RealAirflow):
    """What runs, and what one can ask of it."""

    def run(self, dag_id: str, timeout: float) -> str:
        """Run a DAG to its end; return the run's id."""
        run_id = self.client.trigger(dag_id)
        state = self.client.wait_for_run(dag_id, run_id, timeout=timeout, interval=1)
        if state != "success":
            raise RuntimeError(f"{dag_id} has {state}; states: {self.states(dag_id)}")
        return run_id

    def defer(self, dag_id: str, tasks: int, timeout: float) -> str:
        """Start a run and wait until so many of its tasks are deferred; return the run's id."""
        run_id = self.client.trigger(dag_id)

        def deferred() -> bool:
            states = self.states(dag_id, run_id)
            if states["failed"]:
                raise RuntimeError(f"{dag_id}: tasks failed: {dict(states)}")
            return states["deferred"] >= tasks

        until(deferred, lambda: f"{tasks} deferred tasks: {self.states(dag_id, run_id)}", timeout, pause=0.5)
        return run_id

    def states(self, dag_id: str, run_id: str = "%") -> Counter[str]:
        """Count the task instances by state."""
        query = "SELECT state, count(*) FROM task_instance WHERE dag_id LIKE ? AND run_id LIKE ? GROUP BY state"
        return Counter({str(state): count for state, count in self.query(query, [dag_id, run_id])})

    def ends(self, dag_id: str, run_id: str) -> dict[str, float]:
        """Return when each task ended (seconds since 1970), by the last part of its id."""
        query = "SELECT task_id, end_date FROM task_instance WHERE dag_id = ? AND run_id = ?"
        rows = self.query(query, [dag_id, run_id])
        return {task.rpartition(".")[2]: _seconds(end) for task, end in rows if end}

    def parse_durations(self, dag_id: str) -> dict[str, float]:
        """Return how long the DAG processor took to read a DAG's file last (s), by the moment."""
        query = "SELECT last_parsed_time, last_parse_duration FROM dag WHERE dag_id = ?"
        return {str(when): float(took) for when, took in self.query(query, [dag_id]) if took}

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """Read an XCom."""
        return self.client.xcom(dag_id, run_id, task_id, key, map_index)

    def requests(self, began: float, ended: float) -> list[Request]:
        """Read the requests that came to the Batch service between two moments."""
        found = []
        for line in (self.folder / "access.log").read_text().splitlines():
            when, status, operation, _, path, _ = line.split(" ")
            moment = datetime.fromisoformat(when).timestamp()
            if began <= moment < ended:
                found.append(Request(moment, status, operation, path))
        return found

    def triggerer(self) -> tuple[float, float]:
        """Return the triggerer's memory (USS, MiB) and its processor time (s) so far, with its child's."""
        identity = self.airflow.processes["triggerer"]
        parent = psutil.Process(identity.pid)
        memory = cpu = 0.0
        for process in (parent, *parent.children(recursive=True)):
            memory += process.memory_full_info().uss / MIB
            times = process.cpu_times()
            cpu += times.user + times.system
        return memory, cpu


def _seconds(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@contextmanager
def started(variables: dict[str, str], dags: Path = DAGS, dag_id: str = "chain_batch") -> Iterator[Stack]:
    """Start all of it in a folder of its own, with one pool; stop it in the end.

    :param variables: for Airflow's processes.
    :param dags: the folder of DAG files.
    :param dag_id: one of them, which is waited for.
    """
    with tempfile.TemporaryDirectory(prefix="batchwrap-waiting-") as name:
        folder = Path(name).resolve()
        shutil.copytree(dags, folder / "dags")
        azurite.install()
        blobs = azurite.start(folder / "azurite", log=folder / "azurite.log")
        try:
            settings = {
                "PYTHONPATH": str(DAGS),
                "AIRFLOW__TRIGGERER__CAPACITY": "20000",
                "AIRFLOW__CORE__MAX_MAP_LENGTH": "20000",
                **variables,
            }
            log = {DEFAULT: ["--access-log", str(folder / "access.log")]}
            with Stack.running(folder, blobs, settings=settings, services=log, lock_seconds=None) as stack:
                with stack.batch() as sdk:
                    _make_pool(sdk)
                stack.airflow.wait_for_dag(dag_id)
                yield stack
        finally:
            blobs.stop()


def _make_pool(client: BatchClient) -> None:
    image = m.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
    machine = m.VirtualMachineConfiguration(image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04")
    client.create_pool(
        m.BatchPoolCreateOptions(
            id=POOL,
            vm_size="Standard_D2s_v3",
            virtual_machine_configuration=machine,
            target_dedicated_nodes=NODES,
            task_slots_per_node=SLOTS,
        )
    )
