"""A folder of numbered step files as an Airflow task group."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from airflow_batchwrap.steps import Stage


class _FromFarAbove(PlainXComArg):
    """The return value of a task that comes before through other tasks: it draws no edge of its own.

    An edge from the set-up to each of hundreds of steps says nothing that their chain does not; it hides the chain in
    Airflow's graph, and takes as long to parse again.
    """

    def iter_references(self) -> Iterator[tuple[Any, str]]:
        return iter(())


def _all_of(*parts: Callable[[], Any]) -> list[Any]:
    """Return what each part reads.

    :raises ConfigError: with the problems of all of them.
    """
    read, problems = [], []
    for part in parts:
        try:
            read.append(part())
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        # A file that cannot be read at all is no part's own: it is said once.
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return read


def _refuse_misplaced(group_id: str, given: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that a task group does not have, and say where they belong."""
    places = []
    for name in sorted(set(given) - set(inspect.signature(TaskGroup.__init__).parameters)):
        if name in WorkflowConfig.model_fields or name in WorkflowConfig.aliases:
            places.append(f"{name} is a setting: config=WorkflowConfig({name}=...)")
        elif name in PoolConfig.model_fields or name in PoolConfig.aliases:
            places.append(f"{name} is the pool's: pool_config=PoolConfig({name}=...)")
        else:
            places.append(
                f"{name} is not an argument of a workflow; one of all its tasks is: task_args={{{name!r}: ...}}"
            )
    if places:
        raise ConfigError(f"BatchWorkflow {group_id!r}: {'; '.join(places)}.")


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
    :raises ConfigError: at parse: a wrong folder of steps, wrong keys or values in the files, or arguments that do not
        go together. It has all that is wrong in folder and files.
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
        _refuse_misplaced(group_id, kwargs)
        super().__init__(group_id=group_id, **kwargs)
        if pool_config is None and pool_id is None:
            raise ConfigError(
                f"BatchWorkflow {group_id!r} needs a pool_config, to create a pool, or the pool_id of one."
            )
        # Relative paths are relative to the DAG file.
        folder = Path(self.dag.fileloc).resolve().parent
        # Read now, so that a wrong key is an import error of the DAG and not the failure of a run.
        found, self._settings, pool = _all_of(
            lambda: step_files.discover(folder / steps),
            lambda: self._read_settings(folder, config, pool_config),
            lambda: self._read_pool(folder, pool_config),
        )
        self._check_slots(pool)
        self._every = self._for_every_task(deferrable, task_args or {})
        with self:
            self.set_up = self._set_up(
                pool,
                pool_id,
                repurpose,
                steps=str(folder / steps),
                inputs=inputs,
                expected_steps=[step.file for step in found.steps],
                **self._for_tasks_of(SetUpOperator),
            )
            last = self._chain(found.stages, args, secrets)
            if results is not None:
                last = [self._fetch_after(last, to=str(results), include=include)]
            self.clean_up = self._clean_up_after(last)

    # --- what the tasks are given

    @staticmethod
    def _read_settings(folder: Path, config: WorkflowConfig | str | Path | None, pool_config: object) -> dict[str, Any]:
        """Return the times, numbers and places; templates as they are: the tasks render them."""
        if config is None and isinstance(pool_config, str | Path):
            config = pool_config  # one batch.json holds both
        if config is None:
            config = WorkflowConfig()
        elif not isinstance(config, WorkflowConfig):
            config = WorkflowConfig.from_json(folder / config)
        return config.to_dict(defaults=True)

    @staticmethod
    def _read_pool(folder: Path, given: PoolConfig | Mapping[str, Any] | str | Path | None) -> PoolConfig | None:
        if isinstance(given, str | Path):
            return PoolConfig.from_json(folder / given)
        return PoolConfig.from_dict(given) if isinstance(given, Mapping) else given

    def _check_slots(self, pool: PoolConfig | None) -> None:
        """Refuse steps that take more slots than a node of the run's own pool has, as far as both are known by now."""
        wanted = self._settings["task_slots"]
        if pool is None or not isinstance(wanted, int) or "task_slots_per_node" in pool.late_keys:
            return
        if wanted > pool.task_slots_per_node:
            raise ConfigError(
                f"BatchWorkflow {self.group_id!r}: task_slots = {wanted} is more than the {pool.task_slots_per_node} "
                "that a node of its pool has (task_slots_per_node): its steps would wait for ever. Lower the first, or "
                "raise the second."
            )

    def _for_every_task(self, deferrable: bool, task_args: Mapping[str, Any]) -> dict[str, Any]:
        settings = {name: self._settings[name] for name in BatchWrapOperator.setting_names}
        every = {"dag": self.dag, "deferrable": deferrable, **settings, **task_args}
        if "weight_rule" not in self.default_args | self.dag.default_args:
            # Where workers are short: what ends a run makes room, and a set-up only asks for it.
            every.setdefault("weight_rule", "upstream")
        return every

    def _for_tasks_of(self, kind: type[BatchWrapOperator]) -> dict[str, Any]:
        """Return the keyword arguments of an operator that are settings of the workflow, and those of every task."""
        return {**{name: self._settings[name] for name in kind.setting_names}, **self._every}

    # --- the tasks

    def _chain(self, stages: Sequence[Stage], args: Any, secrets: Mapping[str, str] | None) -> list[BaseOperator]:
        """Make a task for each step; return those of the last stage.

        What a step is given puts it in order: the first stage after the set-up by its workspace, each other one after
        the stage before by its value.
        """
        workspace: XComArg = self.set_up.output
        passed_on: dict[str, Any] = {"args": args}
        self.steps: dict[str, RunBatchTaskOperator] = {}
        last: list[BaseOperator] = [self.set_up]
        for stage in stages:
            last = []
            for step in stage.steps:
                self.steps[step.name] = task = RunBatchTaskOperator(
                    task_id=step.name,
                    step=step.file,
                    workspace=workspace,
                    secrets=secrets,
                    **self._for_tasks_of(RunBatchTaskOperator),
                    **passed_on,
                )
                last.append(task)
            outputs = [task.output for task in last]
            passed_on = {"value": outputs[0] if len(outputs) == 1 else outputs}
            workspace = _FromFarAbove(self.set_up)
        #: What the workflow returns: the last step's value, or the last stage's list.
        self.output: XComArg | list[XComArg] = passed_on["value"]
        return last

    def _fetch_after(self, last: Sequence[BaseOperator], **what: Any) -> FetchResultsOperator:
        self.fetch = FetchResultsOperator(
            task_id="fetch_results",
            workspace=_FromFarAbove(self.set_up),
            **self._for_tasks_of(FetchResultsOperator),
            **what,
        )
        for task in last:
            task >> self.fetch
        return self.fetch

    def _clean_up_after(self, last: Sequence[BaseOperator]) -> DeletePoolOperator:
        clean_up = DeletePoolOperator(
            task_id="clean_up", workspace=self.set_up.output, **self._for_tasks_of(DeletePoolOperator)
        )
        # After each step, not the last ones alone: when one of a stage fails, its siblings are still at work.
        # In one go: Airflow looks at the whole DAG for each call.
        clean_up.set_upstream(list(dict.fromkeys([*self.steps.values(), *last])))
        # Without this a failed clean-up would fail a run whose results are fetched.
        clean_up.as_teardown(setups=self.set_up, on_failure_fail_dagrun=False)
        return clean_up

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
