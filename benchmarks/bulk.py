"""What a manifest costs: how fast its entries are submitted, and how many requests it takes from start to finish.

    python benchmarks/bulk.py                  # 20,000 entries
    python benchmarks/bulk.py --tasks 2000 --threads 4

Two parts, on a local Batch service and an Azurite. `rate` submits the same Batch tasks by turns with the SDK's own
`create_tasks` and with this package, with as many threads, into jobs whose pool does not exist, so that nothing runs
meanwhile. `requests` runs a DAG with one RunBatchManifestOperator by `dag.test()`, and counts the lines of the access
log. docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import runpy
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.manifests.rows import Row

NODES, SLOTS = 2, 4
ROUNDS = 3  # of the submissions by turns
DAG_FILE = """
import os
from airflow.sdk import DAG
from airflow_batchwrap import RunBatchManifestOperator

with DAG("bulk", schedule=None) as dag:
    RunBatchManifestOperator(
        task_id="many",
        manifest="task.json",
        pool_id=os.environ["BULK_POOL"],
        keep_output=False,
        threads=int(os.environ["BULK_THREADS"]),
    )
"""
STEP = "def do_action(engine, number):\n    return None\n"

Figures = Iterator[tuple[str, str, str]]


@dataclass
class Services:
    """The two services, and where the requests are written down."""

    hook: BatchWrapHook
    client: BatchClient
    log: Path

    def operations(self) -> Counter[str]:
        """Return how often each operation was asked for so far."""
        return Counter(line.split(" ")[2] for line in self.log.read_text().splitlines())


def start(stack: ExitStack, folder: Path) -> Services:
    """Start both services and point Airflow's connections at them."""
    from azure.batch import BatchClient
    from azure.core.credentials import AzureNamedKeyCredential

    from airflow_batchwrap.local import runner
    from airflow_batchwrap.stack import azurite, home

    log = folder / "requests.log"
    service = runner.launch(folder / "data", ["--port", "0", "--access-log", str(log)])
    stack.callback(service.stop)
    store = azurite.start(folder / "azurite", log=folder / "azurite.log")
    stack.callback(store.stop)
    batch = {
        "conn_type": "azure_batch",
        "login": service.account,
        "password": service.key,
        "extra": {"account_url": service.url},
    }
    wasb = {"conn_type": "wasb", "login": store.account, "password": store.key, "host": store.url}
    os.environ["AIRFLOW_CONN_AZURE_BATCH_DEFAULT"] = json.dumps(batch)
    os.environ["AIRFLOW_CONN_WASB_DEFAULT"] = json.dumps(wasb)
    home.migrate(folder / "airflow.db")
    from airflow_batchwrap.hooks.batch import BatchWrapHook

    client = BatchClient(service.url, AzureNamedKeyCredential(service.account, service.key))
    stack.callback(client.close)
    return Services(BatchWrapHook(), client, log)


def pool(client: BatchClient) -> str:
    """Make a pool of two nodes with four slots each."""
    from azure.batch import models as m

    image = m.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
    client.create_pool(
        m.BatchPoolCreateOptions(
            id="bulk",
            vm_size="Standard_D2s_v3",
            virtual_machine_configuration=m.VirtualMachineConfiguration(
                image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04"
            ),
            target_dedicated_nodes=NODES,
            task_slots_per_node=SLOTS,
        )
    )
    return "bulk"


def rate(services: Services, tasks: int, threads: int) -> Figures:
    """Submit the same Batch tasks by turns; making ours is part of the time, making the SDK's models is not."""
    from azure.batch import models as m

    from airflow_batchwrap import archive
    from airflow_batchwrap.config import WorkflowConfig
    from airflow_batchwrap.manifests.bodies import Bodies
    from airflow_batchwrap.manifests.rows import Row
    from airflow_batchwrap.naming import Maker
    from airflow_batchwrap.workspace import Workspace

    hook, client = services.hook, services.client
    with tempfile.TemporaryDirectory() as steps:
        Path(steps, "1_nothing.py").write_text(STEP)
        built = archive.build(Path(steps))
    hook.ensure_container("bulk")
    ref = hook.upload_bytes("bulk", "archive.pyz", built.data)
    workspace = Workspace("nowhere", False, "", archive=ref, steps=built.steps, output_container="bulk")
    bodies = Bodies(
        hook,
        workspace,
        WorkflowConfig(),
        environment={},
        params={},
        context={"dag_id": "bulk", "run_id": "manual", "task_id": "many", "map_index": -1, "try_number": 1},
        keep_output=False,
        maker=Maker("benchmark", "bulk", "manual", "many"),
    )
    made = 0

    def job() -> str:
        nonlocal made
        made += 1
        client.create_job(m.BatchJobCreateOptions(id=f"rate-{made}", pool_info=m.BatchPoolInfo(pool_id="nowhere")))
        return f"rate-{made}"

    def by_sdk(rows: list[Row]) -> float:
        models = [m.BatchTaskCreateOptions(bodies(row)) for row in rows]
        job_id, began = job(), time.perf_counter()
        client.create_tasks(job_id, models, max_concurrency=threads)
        return _submitted(job_id, began)

    def by_us(rows: list[Row]) -> float:
        job_id, began = job(), time.perf_counter()
        hook.create_tasks(job_id, rows, bodies, threads=threads)
        return _submitted(job_id, began)

    def _submitted(job_id: str, began: float) -> float:
        took = time.perf_counter() - began
        counts = hook.count_tasks(job_id)
        if counts is None or counts.waiting != tasks:
            raise RuntimeError(f"{counts} were submitted, and not {tasks}")
        client.begin_delete_job(job_id, polling_interval=0).wait()
        return tasks / took

    kinds = {"commands": {"command": "true"}, "steps": {"step": "1_nothing.py", "args": [1]}}
    for kind, what in kinds.items():
        fixed: dict[str, Any] = what
        rows = [Row(n, **fixed).placed("many", 1, "job", "many") for n in range(tasks)]
        size = len(json.dumps(bodies(rows[0])))
        sdk, ours = [], []
        for turn in range(ROUNDS):
            # The one that goes first meets another machine than the one that goes second.
            order = [(by_sdk, sdk), (by_us, ours)]
            for submit, figures in order if turn % 2 == 0 else reversed(order):
                figures.append(submit(rows))
        theirs, own = statistics.median(sdk), statistics.median(ours)
        yield (
            f"{kind} ({size} bytes each): the SDK's create_tasks, {threads} threads",
            f"{theirs:.0f} a second",
            _spread(sdk),
        )
        yield f"{kind}: this package, {threads} threads", f"{own:.0f} a second", _spread(ours)
        yield f"{kind}: share of the SDK's rate (target 90 %)", f"{own / theirs:.0%}", ""


def requests(services: Services, tasks: int, threads: int) -> Figures:
    """Run a manifest of no-ops from start to finish, and count what the Batch service was asked."""
    file = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"], "bulk.py")
    file.parent.mkdir()
    file.write_text(DAG_FILE)
    file.with_name("task.json").write_text(json.dumps({"tasks": [{"command": "true"}] * tasks}))
    os.environ |= {"BULK_POOL": pool(services.client), "BULK_THREADS": str(threads)}
    dag = runpy.run_path(str(file))["dag"]
    before = services.operations()
    began = time.perf_counter()
    run = dag.test()
    took = time.perf_counter() - began
    found = services.operations() - before
    if str(run.state) != "success":
        raise RuntimeError(f"the run's state is {run.state}")
    yield f"{tasks} no-ops, start to finish", f"{took:.1f} s", f"{tasks / took:.0f} a second, {NODES * SLOTS} slots"
    yield (
        "requests to Batch (target 3,000 for 20,000)",
        str(found.total()),
        ", ".join(f"{name} {number}" for name, number in found.most_common()),
    )


def _spread(figures: list[float]) -> str:
    return f"{min(figures):.0f} to {max(figures):.0f} in {len(figures)} turns"


PARTS = {"rate": rate, "requests": requests}


def measure(tasks: int = 20_000, threads: int = 8, parts: tuple[str, ...] = tuple(PARTS)) -> Figures:
    """Measure what is asked for.

    :param tasks: how many entries.
    :param threads: how many requests submit them at a time.
    :param parts: which of `PARTS`.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="batchwrap-bulk-")))
        # Airflow reads its home when it is first imported.
        os.environ |= {
            "AIRFLOW_HOME": str(folder),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        }
        services = start(stack, folder)
        for name in parts:
            yield f"load average before {name}", f"{os.getloadavg()[0]:.1f}", ""
            yield from PARTS[name](services, tasks, threads)


def main() -> None:
    """Measure, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which of {', '.join(PARTS)}; both by default")
    parser.add_argument("--tasks", type=int, default=20_000, help="how many entries (20,000)")
    parser.add_argument("--threads", type=int, default=8, help="how many requests at a time (8)")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    logging.getLogger("azure").setLevel(logging.WARNING)
    table = Table("", "figure", "", title=f"A manifest of {options.tasks}, Python {sys.version.split()[0]}")
    for row in measure(options.tasks, options.threads, tuple(options.parts) or tuple(PARTS)):
        print(*row, sep="  |  ", file=sys.stderr, flush=True)
        table.add_row(*row)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
