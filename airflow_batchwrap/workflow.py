"""A folder of numbered step files as an Airflow task group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator, TaskGroup
from airflow.sdk.definitions.xcom_arg import PlainXComArg, XComArg

from airflow_batchwrap import steps as step_files
from airflow_batchwrap.config import PoolConfig, WorkflowConfig
from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.operators.base import BatchWrapOperator
from airflow_batchwrap.operators.pool import (
    CreatePoolOperator,
    DeletePoolOperator,
    RepurposePoolOperator,
    UsePoolOperator,
)
from airflow_batchwrap.operators.results import FetchResultsOperator
from airflow_batchwrap.operators.setup import SetUpOperator
from airflow_batchwrap.operators.step import RunBatchTaskOperator


class _FromFarAbove(PlainXComArg):
    """The return value of a task that comes before through other tasks: it draws no edge of its own.

    An edge from the set-up to each of hundreds of steps says nothing that their chain does not; it hides the chain in
    Airflow's graph, and takes as long to parse again.
    """

    def iter_references(self) -> Iterator[tuple[Any, str]]:
        return iter(())


class BatchWorkflow(TaskGroup):
    """Run ``1_`` -> ``2_`` -> ``n_`` on a Batch pool: set-up, one task per step file, fetch, clean-up.

    Steps of one number run side by side; each step is given what the one before returned, or the list of results where
    the stage before has several, in name order. A new step file is a new task when the DAG is parsed next.

    :param steps: the folder of step files, relative to the DAG file.
    :param inputs: input files and folders, relative to the DAG file, that every step finds by name.
    :param args: the first stage's arguments: a string, split as a shell splits words, or a list.
    :param pool_config: create this pool for the run, and delete it at the end: a PoolConfig, a dict of its keys, or the
        path of a batch.json, whose ``workflow`` section is read as well.
    :param pool_id: run on this pool instead, which stays; with ``pool_config``, the id of the pool to create.
    :param repurpose: with ``pool_id`` alone, remove what an earlier run left on the pool; False changes nothing on it.
    :param results: where the result files go: a folder or URL, a relative one below ``[batchwrap] results_base``, the
        DAG's id and the run's id; None fetches nothing.
    :param include: which result files; see :class:`~airflow_batchwrap.operators.results.FetchResultsOperator`.
    :param secrets: environment variables for every step, whose values travel in a file that the node fetches and that
        Batch does not show; see :class:`~airflow_batchwrap.operators.step.RunBatchTaskOperator`.
    :param config: times, retries and places; a path is the ``workflow`` section of a batch.json.
    :param task_args: keyword arguments for every task of the group, such as ``retries`` or ``azure_batch_conn_id``.
    :raises ConfigError: at parse: a wrong folder of steps, or arguments that do not go together.
    """

    def __init__(
        self,
        group_id: str,
        *,
        steps: str | Path,
        inputs: str | Path | Sequence[str | Path] = (),
        args: Any = None,
        pool_config: PoolConfig | Mapping[str, Any] | str | Path | None = None,
        pool_id: str | XComArg | None = None,
        repurpose: bool = True,
        results: str | Path | None = None,
        include: str | Sequence[str] = "**/*",
        secrets: Mapping[str, str] | None = None,
        config: WorkflowConfig | str | Path | None = None,
        task_args: Mapping[str, Any] | None = None,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(group_id=group_id, **kwargs)
        if pool_config is None and pool_id is None:
            raise ConfigError(
                f"BatchWorkflow {group_id!r} needs a pool_config, to create a pool, or the pool_id of one."
            )
        # Relative paths are relative to the DAG file.
        folder = Path(self.dag.fileloc).resolve().parent
        found = step_files.discover(folder / steps)
        if config is None and isinstance(pool_config, str | Path):
            config = pool_config  # one batch.json holds both
        how = config if isinstance(config, WorkflowConfig) else self._config(folder, config)
        places = how.to_dict(defaults=True)  # templates as they are: the tasks render them
        # Read now, so that a wrong key is an import error of the DAG and not the failure of a run.
        if isinstance(pool_config, str | Path):
            pool_config = PoolConfig.from_json(folder / pool_config)
        elif isinstance(pool_config, Mapping):
            pool_config = PoolConfig.from_dict(pool_config)
        every = {name: places[name] for name in BatchWrapOperator.setting_names}
        common = {"dag": self.dag, "deferrable": deferrable, **every, **(task_args or {})}
        if "weight_rule" not in self.default_args | self.dag.default_args:
            # Where workers are short: what ends a run makes room, and a set-up only asks for it.
            common.setdefault("weight_rule", "upstream")
        of_setup = {name: places[name] for name in SetUpOperator.setting_names if name not in every}
        of_clean_up = {name: places[name] for name in DeletePoolOperator.setting_names if name not in every}
        of_step = {name: places[name] for name in RunBatchTaskOperator.setting_names if name not in every}
        with self:
            self.set_up = self._set_up(
                pool_config,
                pool_id,
                repurpose,
                steps=str(folder / steps),
                inputs=inputs,
                expected_steps=[step.file for step in found.steps],
                **{**of_setup, **common},
            )
            workspace: XComArg = self.set_up.output
            self.steps: dict[str, RunBatchTaskOperator] = {}
            before: list[BaseOperator] = [self.set_up]
            passed_on: dict[str, Any] = {"args": args}
            for stage in found.stages:
                # What a step is given puts it in order: the first stage after the set-up by its workspace, each other
                # one after the stage before by its value.
                tasks: list[BaseOperator] = []
                for step in stage.steps:
                    self.steps[step.name] = task = RunBatchTaskOperator(
                        task_id=step.name,
                        step=step.file,
                        workspace=workspace,
                        secrets=secrets,
                        **{**of_step, **common},
                        **passed_on,
                    )
                    tasks.append(task)
                before = tasks
                outputs = [task.output for task in tasks]
                passed_on = {"value": outputs[0] if len(outputs) == 1 else outputs}
                workspace = _FromFarAbove(self.set_up)
            #: What the workflow returns: the last step's value, or the last stage's list.
            self.output: XComArg | list[XComArg] = passed_on["value"]
            last = before
            if results is not None:
                self.fetch = FetchResultsOperator(
                    task_id="fetch_results", workspace=workspace, to=str(results), include=include, **common
                )
                for step_task in before:
                    step_task >> self.fetch
                last = [self.fetch]
            self.clean_up = DeletePoolOperator(
                task_id="clean_up", workspace=self.set_up.output, **{**of_clean_up, **common}
            )
            # After each step, not the last ones alone: when one of a stage fails, its siblings are still at work.
            # In one go: Airflow looks at the whole DAG for each call.
            self.clean_up.set_upstream(list(dict.fromkeys([*self.steps.values(), *last])))
            # Without this a failed clean-up would fail a run whose results are fetched.
            self.clean_up.as_teardown(setups=self.set_up, on_failure_fail_dagrun=False)

    @staticmethod
    def _set_up(
        pool_config: PoolConfig | None,
        pool_id: Any,
        repurpose: bool,
        **kwargs: Any,
    ) -> SetUpOperator:
        if pool_config is not None:
            return CreatePoolOperator(task_id="create_pool", pool_config=pool_config, pool_id=pool_id, **kwargs)
        if repurpose:
            return RepurposePoolOperator(task_id="repurpose_pool", pool_id=pool_id, **kwargs)
        return UsePoolOperator(task_id="use_pool", pool_id=pool_id, **kwargs)

    @staticmethod
    def _config(folder: Path, given: str | Path | None) -> WorkflowConfig:
        return WorkflowConfig() if given is None else WorkflowConfig.from_json(folder / given)
