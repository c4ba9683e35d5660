"""Two real Airflows on one Batch account and one storage account: the same DAGs, the same run ids, neither touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.real_airflow import QUICK, RealAirflow

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.stack.azurite import AzuriteService

RUN_ID = "nightly-2026-11-26"  # Airflow keeps scheduled__... for its scheduler
RESULTS = "shared-results"
TASKS_AT_ONCE = 6

STEPS = {
    "1_first.py": '''
        """Note that it ran; wait for leave to end."""
        import time
        from pathlib import Path

        def do_action(engine, folder):
            with (Path(folder) / "bodies").open("a") as file:
                file.write("1_first\\n")
            deadline = time.monotonic() + 900
            while not (Path(folder) / "go").exists():
                assert time.monotonic() < deadline, "nobody let the step go on"
                time.sleep(0.1)
            Path("whose.txt").write_text(folder)
            engine.add_file_to_upload("whose.txt")
            return folder
    ''',
    "2_second.py": '''
        """Note that it ran; return what came before, and what an input says."""
        from pathlib import Path

        def do_action(engine, folder):
            with (Path(folder) / "bodies").open("a") as file:
                file.write("2_second\\n")
            return [folder, Path("in.txt").read_text()]
    ''',
}
DAGS = """
    from __future__ import annotations

    from airflow.sdk import DAG, BaseOperator, task
    from naming_trigger import NamingTrigger

    from airflow_batchwrap import BatchWorkflow, WorkflowConfig
    from airflow_batchwrap.instance import name_of_instance


    class InTriggerer(BaseOperator):
        def execute(self, context):
            self.defer(trigger=NamingTrigger(), method_name="told")

        def told(self, context, event):
            return event


    with DAG("names", schedule=None):
        @task
        def worker(number):
            return name_of_instance()

        worker.expand(number=list(range(COUNT))) >> InTriggerer(task_id="triggerer")

    with DAG("twin", schedule=None, params={"folder": ""}):
        BatchWorkflow(
            "w",
            steps="steps",
            inputs="in.txt",
            args=["{{ params.folder }}"],
            pool_config={"target_dedicated_nodes": 1},
            config=WorkflowConfig(output_container="RESULTS"),
            results="results",
            task_args={"inline_wait": "0 s", "poll_interval": "2 s"},
        )
"""
TRIGGER = """
    from __future__ import annotations

    import asyncio

    from airflow.triggers.base import BaseTrigger, TriggerEvent

    from airflow_batchwrap.instance import name_of_instance


    class NamingTrigger(BaseTrigger):
        def serialize(self):
            return "naming_trigger.NamingTrigger", {}

        async def run(self):
            yield TriggerEvent(await asyncio.to_thread(name_of_instance))
"""


@dataclass
class Side:
    """One of the two Airflows.

    :param folder: where its steps leave notes, and find leave to go on.
    """

    stack: RealAirflow
    folder: Path
    name: str = ""

    def trigger(self, dag_id: str, **conf: Any) -> None:
        """Start the run whose id both Airflows know."""
        self.stack.ask(lambda: self.stack.client.trigger(dag_id, conf, RUN_ID))

    def wait(self, dag_id: str) -> str:
        """Wait for the end of that run; return its state."""
        client = self.stack.client
        ended = ("success", "failed")
        self.stack.wait(f"the end of {dag_id}", lambda: client.run_state(dag_id, RUN_ID) in ended, 400)
        return self.stack.ask(lambda: client.run_state(dag_id, RUN_ID))

    def xcom(self, dag_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        return self.stack.ask(lambda: self.stack.client.xcom(dag_id, RUN_ID, task_id, key, map_index))

    def tries(self, task_id: str) -> int:
        tasks = self.stack.ask(lambda: self.stack.client.task_instances("twin", RUN_ID))
        return next(task.try_number for task in tasks if task.task_id == task_id)

    def state_of(self, task_id: str) -> str | None:
        tasks = self.stack.client.task_instances("twin", RUN_ID)
        return next((task.state for task in tasks if task.task_id == task_id), None)

    def bodies(self) -> list[str]:
        notes = self.folder / "bodies"
        return notes.read_text().split() if notes.exists() else []

    def mine(self, client: BatchClient) -> dict[str, dict[str, Any]]:
        """Return the pools and jobs that bear this Airflow's name and are not being deleted, as Batch has them."""
        return {name: entity for name, entity in entities(client).items() if self.name in marks(entity).values()}

    def wait_for_step(self) -> None:
        """Wait until the first step has begun."""
        self.stack.wait("the first step", lambda: self.bodies() == ["1_first"], 300)

    def sweep(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``batchwrap sweep`` as a person of this Airflow does."""
        air = self.stack.airflow
        command = ["sweep", "--airflow", air.url, "--user", air.user, *words]
        env = {**os.environ, **self.stack.connections, "BATCHWRAP_AIRFLOW_PASSWORD": air.password}
        done = subprocess.run(
            [sys.executable, "-m", "airflow_batchwrap.cli", *command],
            env=env, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        print(f"$ batchwrap sweep {' '.join(words)}  (the Airflow {self.name!r})\n{done.stdout}{done.stderr}")
        return done


def marks(entity: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in entity.get("metadata", ())}


def entities(client: BatchClient) -> dict[str, dict[str, Any]]:
    """Return the pools and jobs that are not being deleted, by kind and id: a pool and its job have one id."""
    living = "state ne 'deleting'"
    pools = {f"pool {pool.id}": pool.as_dict() for pool in client.list_pools(filter=living)}
    return pools | {f"job {job.id}": job.as_dict() for job in client.list_jobs(filter=living)}


def write_dags(folder: Path) -> None:
    text = textwrap.dedent(DAGS).replace("COUNT", str(TASKS_AT_ONCE)).replace("RESULTS", RESULTS)
    (folder / "two.py").write_text(text)
    (folder / "in.txt").write_text("an input")
    steps = folder / "steps"
    steps.mkdir()
    (steps / ".airflowignore").write_text("*\n")
    for name, step in STEPS.items():
        (steps / name).write_text(textwrap.dedent(step))


@pytest.fixture
def sides(tmp_path_factory: pytest.TempPathFactory, azurite: AzuriteService) -> Iterator[tuple[Side, Side]]:
    """Two Airflows on one Batch service: one that makes its own name, and one whose configuration names it."""
    plugins: Path = tmp_path_factory.mktemp("plugins")
    (plugins / "naming_trigger.py").write_text(textwrap.dedent(TRIGGER))
    path = os.pathsep.join([str(plugins), *filter(None, [os.environ.get("PYTHONPATH")])])
    common = {**QUICK, "PYTHONPATH": path, "AIRFLOW__CORE__PARALLELISM": "8"}
    named = {"AIRFLOW__BATCHWRAP__INSTANCE": "the-other", "AIRFLOW__API__EXPOSE_CONFIG": "True"}
    with ExitStack() as stack:
        made: list[Side] = []
        for settings in ({}, named):
            shared = made[0].stack.service if made else None
            folder: Path = tmp_path_factory.mktemp("airflow").resolve()
            how: dict[str, Any] = {"settings": {**common, **settings}, "shared": shared}
            airflow = stack.enter_context(RealAirflow.running(folder, azurite, **how))
            airflow.add_dags("two", write_dags)
            notes = folder / "notes"
            notes.mkdir()
            made.append(Side(airflow, notes))
        for side in made:
            side.stack.airflow.wait_for_dag("twin")
        yield made[0], made[1]


def names_of(side: Side) -> set[str]:
    """Return the names that all tasks of the DAG ``names`` have read, on workers and in the triggerer."""
    assert side.wait("names") == "success"
    found = {side.xcom("names", "worker", map_index=number) for number in range(TASKS_AT_ONCE)}
    return found | {side.xcom("names", "triggerer")}


def leave_orphan(client: BatchClient, side: Side) -> str:
    """Make a pool as a killed run of an Airflow leaves it: of the run that both know, and that the sweep asks for."""
    from airflow_batchwrap import __version__
    from airflow_batchwrap.config import PoolConfig
    from airflow_batchwrap.hooks.models import pool_options
    from airflow_batchwrap.naming import Maker

    maker = Maker(side.name, "twin", RUN_ID, "w.lost")
    metadata = maker.metadata(__version__, 1)
    client.create_pool(pool_options(f"{maker.family}e1", PoolConfig(), "batch.node.ubuntu 24.04", metadata))
    return f"{maker.family}e1"


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_two_airflows_on_one_account(sides: tuple[Side, Side], azurite: AzuriteService) -> None:
    from azure.storage.blob import BlobServiceClient

    one, other = sides
    # Each Airflow has one name, whoever asks for it first, and they differ.
    for side in sides:
        side.trigger("names")
    found = [names_of(side) for side in sides]
    assert [len(names) for names in found] == [1, 1], found
    one.name, other.name = (names.pop() for names in found)
    assert other.name == "the-other"
    assert one.name != other.name
    proposed = "select count(*) from variable where key = 'batchwrap_instance_proposed'"
    assert one.stack.query(proposed) == [(0,)]

    # The same DAG with the same run id on both: two pools, two jobs, and no more.
    for side in sides:
        side.trigger("twin", folder=str(side.folder))
    with one.stack.batch() as client:
        for side in sides:
            side.wait_for_step()
        first = {side.name: side.mine(client) for side in sides}
        assert [len(first[side.name]) for side in sides] == [2, 2]
        assert len(entities(client)) == 4

        # One's set-up is cleared while both pools live: it takes its own again.
        steady = {name: marks(entity) for name, entity in first[other.name].items()}
        one.stack.ask(lambda: one.stack.client.clear("twin", RUN_ID, ["w.create_pool"]))
        one.stack.wait(
            "the set-up's second try",
            lambda: one.state_of("w.create_pool") == "success" and one.tries("w.create_pool") >= 2,
            300,
        )
        assert one.mine(client).keys() == first[one.name].keys()
        assert {name: marks(entity) for name, entity in other.mine(client).items()} == steady

        # One ends, and sweeps: that the run is over is true of its own things alone.
        (one.folder / "go").touch()
        assert one.wait("twin") == "success"
        orphan = leave_orphan(client, one)
        assert one.mine(client).keys() == {f"pool {orphan}"}
        refused = one.sweep("--delete", "--instance", other.name)
        assert refused.returncode == 1
        assert f"the Airflow at --airflow is {one.name!r}" in " ".join(refused.stderr.split())
        swept = one.sweep("--delete", "--older-than", "0", "--unused-for", "0")
        assert swept.returncode == 0, swept.stderr
        assert swept.stdout.count(f"made by the Airflow {other.name!r}") >= 3, "a pool, a job, a container"
        assert one.mine(client) == {}
        assert {name: marks(entity) for name, entity in other.mine(client).items()} == steady
        assert {entity["state"] for entity in other.mine(client).values()} == {"active"}

        # The other one, which was at work all the time, goes on and ends; its own sweep finds nothing to do.
        assert other.bodies() == ["1_first"]
        assert other.state_of("w.create_pool") == "success"
        (other.folder / "go").touch()
        assert other.wait("twin") == "success"
        swept = other.sweep("--delete")
        assert swept.returncode == 0, swept.stderr
        assert "its [batchwrap] instance" in swept.stdout
        assert entities(client) == {}

    # Both are right, each step ran once, and their results lie apart in the container that both name.
    folders = set()
    for side in sides:
        assert side.xcom("twin", "w.2_second") == [str(side.folder), "an input"]
        assert sorted(side.bodies()) == ["1_first", "2_second"]
        workspace = side.xcom("twin", "w.create_pool")
        assert workspace["output_container"] == RESULTS
        folders.add(workspace["output_prefix"])
        (fetched,) = (side.stack.folder / "results").rglob("whose.txt")
        assert fetched.read_text() == str(side.folder)
    assert len(folders) == 2
    with BlobServiceClient(azurite.url, {"account_name": azurite.account, "account_key": azurite.key}) as blobs:
        names = [blob.name for blob in blobs.get_container_client(RESULTS).list_blobs()]
    assert {name.partition("/")[0] for name in names} == {folder.partition("/")[0] for folder in folders}
    print(f"names: {one.name!r} (made by {TASKS_AT_ONCE} tasks at once), {other.name!r} ([batchwrap] instance)")
    print(f"folders: {json.dumps(sorted(folders), indent=1)}, {len(names)} blobs")
