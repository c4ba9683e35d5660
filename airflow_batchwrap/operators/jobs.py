"""The options of an operator that opens a job: a set-up task, or a step or a manifest that is alone on its pool."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.attempts.belongings import Belongings
from airflow_batchwrap.attempts.opening import Opening
from airflow_batchwrap.exceptions import ConfigError, PoolError
from airflow_batchwrap.operators.base import Setting, Templated
from airflow_batchwrap.operators.room import RoomOperator
from airflow_batchwrap.operators.waiting import E, W
from airflow_batchwrap.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_batchwrap.archive import Archive


class JobOperator(RoomOperator[W, E]):
    """The part of an operator that packs, uploads and opens a job.

    :param steps: the folder of step files, relative to the DAG file; None where only commands are run.
    :param inputs: input files and folders, relative to the DAG file, that every step finds by name.
    :param expected_steps: the step files that the DAG was drawn from; another set on disk is an error.
    :param output_container: the Blob container for results; derived from the DAG's id by default.
    :param pool_wait_timeout: how long to wait for room where a quota of the account is used up, and, of a set-up, for
        usable nodes.
    :param job_wall_clock: the longest life of the job, queueing included; Azure ends it then, even without Airflow.
    :param batch_retries: how often Batch itself reruns a Batch task that exits with another code than 0.
    :param sas_extra: how much longer than the deadline that it serves a SAS is valid.
    """

    def __init__(
        self,
        *,
        steps: str | Path | None = None,
        inputs: Templated[str | Path | Sequence[str | Path]] = (),
        expected_steps: Sequence[str] | None = None,
        output_container: Setting[str | None] = None,
        pool_wait_timeout: Setting[timedelta | str] = timedelta(minutes=30),
        job_wall_clock: Setting[timedelta | str] = timedelta(days=7),
        batch_retries: Setting[int | str] = 0,
        sas_extra: Setting[timedelta | str] = timedelta(days=1),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.steps = steps
        self.inputs = inputs
        self.expected_steps = expected_steps
        self.output_container = output_container
        self.pool_wait_timeout = pool_wait_timeout
        self.job_wall_clock = job_wall_clock
        self.batch_retries = batch_retries
        self.sas_extra = sas_extra

    def belongings(self, context: Context) -> Belongings:
        """Return what this task has made on the account in this run; nothing is asked for yet."""
        return Belongings(self.hook, self.maker(context), context["ti"].try_number, self.log)

    def opening(self, context: Context, belongings: Belongings) -> Opening:
        """Return what makes this task's workspace."""
        return Opening(belongings, context, self.settings, self.group)

    def pack(self, context: Context) -> Archive | None:
        """Build the archive; None where there are no steps.

        :raises ConfigError: the folder holds other steps than the DAG was drawn from.
        """
        if self.steps is None:
            return None
        from airflow_batchwrap import archive

        built = archive.build(self.dag_folder(context) / self.steps)
        if self.expected_steps is not None and tuple(self.expected_steps) != built.steps:
            missing = sorted(set(self.expected_steps) - set(built.steps))
            added = sorted(set(built.steps) - set(self.expected_steps))
            raise ConfigError(
                f"The steps in {str(self.steps)!r} have changed since the DAG was read: gone {missing}, new {added}. "
                "Start a new run, which draws the DAG from the files as they are now."
            )
        return built

    def input_files(self, context: Context) -> list[tuple[str, Path]]:
        """Return the input files by name.

        :raises ConfigError: one is missing or unfit.
        """
        from airflow_batchwrap.inputs import collect

        return collect(self.inputs, self.dag_folder(context)) if self.inputs else []

    def check_slots(self, pool_id: str) -> None:
        """Refuse what would wait for ever: a Batch task that takes more slots than a node of the pool has.

        :raises ConfigError: it does.
        """
        from airflow_batchwrap.hooks.views import slots_problem

        wanted = self.settings.task_slots
        if wanted > 1 and (problem := slots_problem(wanted, self.hook.view_pool(pool_id))):
            raise ConfigError(f"Task {self.task_id!r} cannot run: {problem}")

    def workspace_on(self, pool_id: str, epoch: int) -> Workspace:
        """Return a workspace without a job on a pool that is there.

        :raises PoolError: it is not.
        """
        pool = self.hook.find_pool(pool_id)
        if pool is None or pool.state != "active":
            problem = "does not exist" if pool is None else f"is {pool.state}"
            raise PoolError(f"Pool {pool_id!r} {problem}. Check pool_id, or create one with CreatePoolOperator.")
        return Workspace(pool.entity_id, owns_pool=False, job_id="", epoch=epoch)
