"""Run DAG files through ``dag.test()`` against Azurite and the local service, and look at what became of the run."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import shutil
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from azure.batch import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.local.runner import LocalService
    from airflow_batchwrap.stack.azurite import AzuriteService

EXAMPLES = Path(__file__).resolve().parents[3] / "dags"


@dataclass(frozen=True)
class Run:
    """A finished DAG run."""

    dag_id: str
    run_id: str
    state: str
    states: dict[str, str]
    xcoms: dict[str, Any] = field(default_factory=dict)
    batch: dict[str, Any] = field(default_factory=dict)
    log: str = ""


@pytest.fixture(scope="session")
def local_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """The local Batch service on a free port, for all DAG tests."""
    from airflow_batchwrap.local import runner

    folder: Path = tmp_path_factory.mktemp("batch")
    service = runner.start(folder / "data", log=folder / "service.log")
    yield service
    service.stop()


@pytest.fixture
def connections(
    airflow_home: Path, azurite: AzuriteService, local_service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow's connections, pointing at the two services."""
    batch = {
        "conn_type": "azure_batch",
        "login": local_service.account,
        "password": local_service.key,
        "extra": {"account_url": local_service.url},
    }
    wasb = {"conn_type": "wasb", "login": azurite.account, "password": azurite.key, "host": azurite.url}
    monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps(batch))
    monkeypatch.setenv("AIRFLOW_CONN_WASB_DEFAULT", json.dumps(wasb))


@pytest.fixture
def hook(connections: None) -> BatchWrapHook:
    """A hook on both services."""
    from airflow_batchwrap.hooks.batch import BatchWrapHook

    return BatchWrapHook()


@pytest.fixture
def dags_folder(airflow_home: Path) -> Iterator[Path]:
    """Airflow's DAGs folder, empty."""
    folder = airflow_home / "dags"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


RunFile = Callable[..., Run]


@pytest.fixture
def left_behind(hook: BatchWrapHook) -> Callable[[], list[str]]:
    """Return the pools and jobs of the account that nobody has asked to delete."""

    def look() -> list[str]:
        pools = [pool.id for pool in hook.batch.list_pools(filter="state eq 'active'")]
        return pools + [job.id for job in hook.batch.list_jobs(filter="state eq 'active'")]

    return look


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tasks are tried again at once: ``dag.test()`` sits a delay out."""
    from airflow_batchwrap.attempts import retrying

    monkeypatch.setattr(retrying, "OWN_DELAY", timedelta(seconds=0.1))
    retrying.retry_policy.cache_clear()
    yield
    retrying.retry_policy.cache_clear()


@pytest.fixture
def run_file(connections: None, soon: None, capfd: pytest.CaptureFixture[str]) -> RunFile:
    """Run the one DAG of a file in the DAGs folder, to its end."""

    def run(file: Path, conf: dict[str, Any] | None = None) -> Run:
        spec = importlib.util.spec_from_file_location(f"dag_{uuid.uuid4().hex}", file)
        assert spec is not None
        assert spec.loader is not None
        from airflow.sdk.definitions._internal.contextmanager import DagContext

        # As Airflow's own DAG processor finds a DAG that no variable holds.
        module = importlib.util.module_from_spec(spec)
        DagContext.autoregistered_dags.clear()
        DagContext.current_autoregister_module_name = module.__name__
        sys.modules[module.__name__] = module
        try:
            spec.loader.exec_module(module)
        finally:
            DagContext.current_autoregister_module_name = None
        ((dag, _),) = DagContext.autoregistered_dags
        capfd.readouterr()
        return finish(dag, dag.test(run_conf=conf), "".join(capfd.readouterr()))

    return run


@pytest.fixture
def run_example(dags_folder: Path, run_file: RunFile) -> Callable[..., Run]:
    """Run one of the example DAGs."""

    def run(name: str, conf: dict[str, Any] | None = None) -> Run:
        shutil.copytree(EXAMPLES / name, dags_folder / name)
        return run_file(dags_folder / name / f"{name}.py", conf)

    return run


@pytest.fixture
def run_workflow(dags_folder: Path, run_file: RunFile) -> Callable[..., Run]:
    """Write steps and a DAG with one BatchWorkflow, and run it.

    ``steps`` and ``inputs`` are texts by file name; ``arguments`` is the source of BatchWorkflow's other arguments, and
    ``head`` source that goes before.
    """

    def run(
        steps: dict[str, str],
        arguments: str = 'pool_config={"target_dedicated_nodes": 1}',
        inputs: dict[str, str] | None = None,
        head: str = "",
    ) -> Run:
        dag_id = f"test_{uuid.uuid4().hex[:8]}"
        folder = dags_folder / dag_id
        (folder / "steps").mkdir(parents=True)
        (folder / "steps/.airflowignore").write_text("*\n")
        for name, text in steps.items():
            (folder / "steps" / name).write_text(textwrap.dedent(text))
        (folder / "inputs").mkdir()
        for name, text in (inputs or {}).items():
            (folder / "inputs" / name).write_text(text)
        given = 'inputs="inputs", ' if inputs else ""
        (folder / "dag.py").write_text(
            "from airflow.sdk import DAG\n"
            "from airflow_batchwrap import *\n"
            f"{textwrap.dedent(head)}\n"
            f"with DAG({dag_id!r}, schedule=None) as dag:\n"
            f'    BatchWorkflow("w", steps="steps", {given}{arguments})\n'
        )
        return run_file(folder / "dag.py")

    return run


class Instance:
    """What an operator asks of its task instance."""

    def __init__(
        self, operator: BaseOperator, run_id: str, try_number: int, map_index: int, cleared: int, states: dict[str, str]
    ) -> None:
        self.dag_id, self.task_id, self.run_id = operator.dag_id, operator.task_id, run_id
        self.try_number, self.max_tries, self.map_index = try_number, cleared + (operator.retries or 0), map_index
        self.xcoms: dict[str, Any] = {}
        self._run_states = states

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))

    def get_dr_count(self, dag_id: str, run_ids: list[str], states: list[str]) -> int:
        return sum(self._run_states.get(run_id) in states for run_id in run_ids)


class Bench:
    """Run single operators on the two services, as often and in whatever order a test wants.

    Airflow's part is in memory: ids, XComs, and a state store for each task and run.
    """

    def __init__(self, folder: Path) -> None:
        from airflow.sdk import DAG

        self.folder = folder
        self.dag = DAG(f"bench_{uuid.uuid4().hex[:8]}", schedule=None)
        self.dag.fileloc = str(folder / "dag.py")
        self.runs: dict[str, str] = {}
        self.xcoms: dict[str, Any] = {}
        #: The tries that Airflow has replaced by others.
        self.superseded: set[int] = set()
        self._stores: dict[tuple[str, str, int], dict[str, Any]] = {}

    def steps(self, name: str = "steps", /, **texts: str) -> str:
        """Write step files: ``_1_a="..."`` is ``1_a.py``."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        for stem, text in texts.items():
            (folder / f"{stem.removeprefix('_')}.py").write_text(textwrap.dedent(text))
        return name

    def make(self, kind: Callable[..., Any], task_id: str | None = None, **arguments: Any) -> Any:
        """Make an operator in the bench's DAG."""
        given = {"poll_interval": 1.0, **arguments}
        return kind(task_id=task_id or f"t{len(self.dag.task_dict)}", dag=self.dag, **given)

    def context(
        self, operator: BaseOperator, run_id: str = "r1", try_number: int = 1, cleared: int = 0, map_index: int = -1
    ) -> Any:
        """Return what Airflow hands to a try.

        :param cleared: how many tries there were when a person cleared the task last.
        """
        self.runs.setdefault(run_id, "running")
        values = self._stores.setdefault((operator.task_id, run_id, map_index), {})
        return {
            "dag": self.dag,
            "task": operator,
            "run_id": run_id,
            "params": {},
            "ti": Instance(operator, run_id, try_number, map_index, cleared, self.runs),
            "task_state_store": MemoryStore(values, lambda: try_number in self.superseded),
        }

    def gate(self) -> tuple[str, Path]:
        """Return a command that waits until a file is there, and that file."""
        path = self.folder / f"gate-{uuid.uuid4().hex[:8]}"
        return f"until [ -e {path} ]; do sleep 0.05; done", path

    def forget(self) -> None:
        """Do as Airflow does when a person deletes the runs."""
        self._stores.clear()

    def run(self, operator: Any, **of_context: Any) -> Any:
        """Run one try to its end, deferral included; return what it returns."""
        return self.begin(operator, **of_context).finish()

    def submit(self, operator: Any, **of_context: Any) -> Try:
        """Begin a try that is deferred at once; without ``finish`` it is one whose worker or triggerer died."""
        before = operator.inline_wait
        operator.inline_wait = 0
        begun = self.begin(operator, **of_context)
        operator.inline_wait = before
        assert begun.trigger is not None
        return begun

    def begin(self, operator: Any, **of_context: Any) -> Try:
        """Run one try until it ends or is deferred."""
        from airflow.sdk.exceptions import TaskDeferred
        from airflow.sdk.execution_time.task_runner import _run_execute_callable

        # Each try is a process of its own on a worker.
        operator.__dict__.pop("hook", None)
        operator.__dict__.pop("settings", None)
        begun = Try(operator, self.context(operator, **of_context))
        self.xcoms = begun.context["ti"].xcoms
        try:
            begun.result = _run_execute_callable(begun.context, operator.execute, operator)
        except TaskDeferred as deferred:
            path, arguments = deferred.trigger.serialize()
            begun.trigger = path, json.loads(json.dumps(arguments))
            begun.method = deferred.method_name
        return begun


@dataclass
class Try:
    """One try of an operator, ended or deferred."""

    operator: Any
    context: Any
    result: Any = None
    trigger: tuple[str, dict[str, Any]] | None = None
    method: str = ""

    def finish(self) -> Any:
        """Wait with the trigger where it was deferred, and go on; return what it returns."""
        if self.trigger is not None:
            self.result = getattr(self.operator, self.method)(self.context, asyncio.run(self.event()))
        return json.loads(json.dumps(self.result))

    async def event(self) -> dict[str, Any]:
        """Return what the trigger, made again from what it was serialized to, has to say."""
        assert self.trigger is not None
        path, arguments = self.trigger
        module, _, name = path.rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        (event,) = [event async for event in kind(**arguments).run()]
        payload: dict[str, Any] = json.loads(json.dumps(event.payload))
        return payload


class MemoryStore:
    """A task state store.

    :param is_gone: tells whether Airflow knows the task instance no more.
    """

    def __init__(self, values: dict[str, Any], is_gone: Callable[[], bool]) -> None:
        self._values = values
        self._is_gone = is_gone

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def set(self, key: str, value: Any) -> None:
        from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
        from airflow.sdk.execution_time.comms import ErrorResponse

        if self._is_gone():
            # As Airflow 3.3 answers where the task instance has been moved to the history.
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": 404}))
        self._values[key] = json.loads(json.dumps(value))


@pytest.fixture
def bench(connections: None, client: BatchClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Single operators on the two services; what they made is removed in the end."""
    from airflow.sdk.bases.xcom import BaseXCom

    made = Bench(tmp_path)

    def keep(key: str, value: Any, **where: Any) -> None:
        made.xcoms[key] = json.loads(json.dumps(value))

    monkeypatch.setattr(BaseXCom, "set", keep)  # what is written past an XCom backend
    yield made
    mine = f"startswith(id, '{made.dag.dag_id}') and state ne 'deleting'"
    for job in client.list_jobs(filter=mine):
        client.begin_delete_job(job.id)
    for pool in client.list_pools(filter=mine):
        client.begin_delete_pool(pool.id)


@pytest.fixture(scope="module")
def client(local_service: LocalService) -> Iterator[BatchClient]:
    """Azure's own client, to look at what the operators made."""
    from azure.batch import BatchClient
    from azure.core.credentials import AzureNamedKeyCredential

    with BatchClient(local_service.url, AzureNamedKeyCredential(local_service.account, local_service.key)) as made:
        yield made


@pytest.fixture(scope="module")
def pool(client: BatchClient) -> Iterator[str]:
    """A pool that somebody else made: one node with two slots."""
    from azure.batch import models as m

    pool_id = f"shared-{uuid.uuid4().hex[:8]}"
    image = m.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
    client.create_pool(
        m.BatchPoolCreateOptions(
            id=pool_id,
            vm_size="Standard_D2s_v3",
            virtual_machine_configuration=m.VirtualMachineConfiguration(
                image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04"
            ),
            target_dedicated_nodes=1,
            task_slots_per_node=2,
        )
    )
    yield pool_id
    client.begin_delete_pool(pool_id)


def finish(dag: Any, run: Any, log: str) -> Run:
    """Read what the run left in Airflow's database."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    xcoms: dict[str, Any] = {}
    batch: dict[str, Any] = {}
    with create_session() as session:
        rows = session.scalars(
            select(XComModel).where(XComModel.dag_id == dag.dag_id, XComModel.run_id == run.run_id)
        ).all()
        for row in rows:
            value = XComModel.deserialize_value(row)
            name = row.task_id if row.map_index < 0 else f"{row.task_id}[{row.map_index}]"
            if row.key == "return_value":
                xcoms[name] = value
            elif row.key == "batch":
                batch[name] = value
        states = {
            ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]": str(ti.state)
            for ti in run.get_task_instances(session=session)
        }
    return Run(dag.dag_id, run.run_id, str(run.state), states, xcoms, batch, log)
