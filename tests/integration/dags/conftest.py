"""Run DAG files through ``dag.test()`` against Azurite and the local service, and look at what became of the run."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
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
def run_file(connections: None, capfd: pytest.CaptureFixture[str]) -> RunFile:
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
