"""Runs of DAG files by ``dag.test()``, in this process, and what is left of one."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import textwrap
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "dags"


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


@dataclass(frozen=True)
class RunFile:
    """Run the one DAG of a file in the DAGs folder, to its end.

    :param capture: takes what the run prints: it becomes the run's log.
    """

    capture: pytest.CaptureFixture[str]

    def __call__(self, file: Path, conf: dict[str, Any] | None = None) -> Run:
        """Run it.

        :param file: the DAG file.
        :param conf: the run's conf.
        """
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
        self.capture.readouterr()
        return finish(dag, dag.test(run_conf=conf), "".join(self.capture.readouterr()))


@dataclass(frozen=True)
class RunExample:
    """Run one of the example DAGs.

    :param dags: Airflow's DAGs folder.
    """

    dags: Path
    run_file: RunFile

    def __call__(self, name: str, conf: dict[str, Any] | None = None) -> Run:
        """Run it.

        :param name: of its folder in dags/.
        :param conf: the run's conf.
        """
        shutil.copytree(EXAMPLES / name, self.dags / name)
        return self.run_file(self.dags / name / f"{name}.py", conf)


@dataclass(frozen=True)
class RunWorkflow:
    """Write steps and a DAG with one BatchWorkflow, and run it.

    :param dags: Airflow's DAGs folder.
    """

    dags: Path
    run_file: RunFile

    def __call__(
        self,
        steps: Mapping[str, str],
        arguments: str = 'pool_config={"target_dedicated_nodes": 1}',
        inputs: Mapping[str, str] | None = None,
        head: str = "",
    ) -> Run:
        """Run it.

        :param steps: texts by file name.
        :param arguments: the source of BatchWorkflow's other arguments.
        :param inputs: texts by file name.
        :param head: source that goes before.
        """
        dag_id = f"test_{uuid.uuid4().hex[:8]}"
        folder = self.dags / dag_id
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
        return self.run_file(folder / "dag.py")


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
