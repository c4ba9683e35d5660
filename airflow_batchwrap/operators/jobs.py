"""Open a run's job: shared by the set-up tasks and by a step that runs alone on a pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_batchwrap import __version__
from airflow_batchwrap.exceptions import ConfigError, PoolError
from airflow_batchwrap.naming import container_name, digest, run_prefix, setup_id
from airflow_batchwrap.operators.base import BatchWrapOperator
from airflow_batchwrap.workspace import BlobRef, InputFile, Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context
    from azure.batch.models import ResourceFile

    from airflow_batchwrap.archive import Archive

SAME_ID_TRIES = 20  # ids that Azure may still hold, being deleted, from earlier tries of one set-up
MAKER = "batchwrap_maker"  # metadata: which task instance made a pool or job
CONTENT = "batchwrap_content"  # metadata: what it was made for
# Batch takes 32,768 characters of resource files in all; an address with its SAS is about 500.
_MOST_INPUT_URLS = 40
_SAS_EXTRA = timedelta(days=1)  # beyond the deadline that a SAS serves


class JobOperator(BatchWrapOperator):
    """The part of an operator that packs, uploads and opens a job.

    :param steps: the folder of step files, relative to the DAG file; None where only commands are run.
    :param inputs: input files and folders, relative to the DAG file, that every step finds by name.
    :param expected_steps: the step files that the DAG was drawn from; another set on disk is an error.
    :param output_container: the Blob container for results; derived from the DAG's id by default.
    :param job_wall_clock: the longest life of the job, queueing included; Azure ends it then, Airflow or no Airflow.
    :param batch_retries: how often Batch itself reruns a Batch task that exits with another code than 0.
    """

    template_fields: Sequence[str] = (*BatchWrapOperator.template_fields, "inputs", "output_container")

    def __init__(
        self,
        *,
        steps: str | Path | None = None,
        inputs: str | Path | Sequence[str | Path] = (),
        expected_steps: Sequence[str] | None = None,
        output_container: str | None = None,
        job_wall_clock: timedelta = timedelta(days=7),
        batch_retries: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.steps = steps
        self.inputs = inputs
        self.expected_steps = expected_steps
        self.output_container = output_container
        self.job_wall_clock = job_wall_clock
        self.batch_retries = batch_retries

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

    def open_workspace(
        self, context: Context, workspace: Workspace, archive: Archive | None, files: list[tuple[str, Path]]
    ) -> Workspace:
        """Upload what the steps need and open the job; return the workspace with both in it."""
        from airflow_batchwrap.hooks.blobs import INPUTS_CONTAINER

        hook, run_id = self.hook, str(context["run_id"])
        container = self.output_container or container_name(self.dag_id)
        hook.ensure_container(container)
        ref: BlobRef | None = None
        if archive is not None:
            hook.ensure_container(INPUTS_CONTAINER)
            ref = hook.upload_bytes(INPUTS_CONTAINER, f"archives/{archive.sha256}.pyz", archive.data)
        inputs = hook.upload_inputs(files)
        resource_files, inputs_dir = self._bring(inputs)
        prefix = run_prefix(run_id, self.scope)
        workspace = replace(
            workspace,
            archive=ref,
            steps=archive.steps if archive is not None else (),
            inputs=inputs,
            inputs_dir=inputs_dir,
            output_container=container,
            # A container that the user named may serve many DAGs.
            output_prefix=f"{digest(self.dag_id)}/{prefix}" if self.output_container else prefix,
        )
        return replace(workspace, job_id=self._open_job(context, workspace, resource_files))

    def _bring(self, inputs: tuple[InputFile, ...]) -> tuple[list[ResourceFile], str]:
        """Return what the job preparation task downloads, and where the steps find it."""
        from airflow_batchwrap.hooks import models
        from airflow_batchwrap.hooks.blobs import INPUTS_CONTAINER

        if not inputs:
            return [], ""
        hook, lifetime = self.hook, self.job_wall_clock + _SAS_EXTRA
        base = f"$AZ_BATCH_JOB_PREP_WORKING_DIR/{models.INPUTS_DIR}"
        if len(inputs) <= _MOST_INPUT_URLS:
            return [
                models.resource_file(hook.sas_url(item.ref, lifetime), f"{models.INPUTS_DIR}/{item.name}")
                for item in inputs
            ], base
        prefix = hook.gather_set(inputs)
        url = hook.container_sas_url(INPUTS_CONTAINER, lifetime)
        return [models.resource_folder(url, prefix, models.INPUTS_DIR)], f"{base}/{prefix.rstrip('/')}"

    def _open_job(self, context: Context, workspace: Workspace, inputs: list[ResourceFile]) -> str:
        """Open the run's job, or adopt the one that an earlier try of this set-up opened."""
        from airflow_batchwrap.hooks import models
        from airflow_batchwrap.hooks.views import text

        content = digest(*[(item.name, item.ref.sha256) for item in workspace.inputs], workspace.pool_id)
        for number in range(1, SAME_ID_TRIES + 1):
            job_id = self.id_of(context, workspace.epoch, number)
            job = models.job_options(
                job_id,
                workspace.pool_id,
                inputs=inputs,
                input_count=len(workspace.inputs),
                wall_clock=self.job_wall_clock,
                batch_retries=self.batch_retries,
                metadata={**self.made_by(context), CONTENT: content},
            )
            if self.hook.create_job(job):
                self.log.info("Opened Batch job %s on pool %s", job_id, workspace.pool_id)
                return job_id
            existing = self.hook.find_job(job_id)
            if existing is None or text(existing.state) != "active":
                continue  # Azure frees an id minutes after its entity is deleted
            if models.metadata_of(existing).get(CONTENT) == content:
                self.log.info("Found Batch job %s, which an earlier try opened", job_id)
                return job_id
            self.hook.delete_job(job_id)
        raise PoolError(f"No free id for a job: {SAME_ID_TRIES} jobs of earlier tries are still being deleted.")

    def id_of(self, context: Context, epoch: int, number: int) -> str:
        """Return the id of this run's pool or job; of the ``number``-th, where Azure still holds those before it."""
        map_index = context["ti"].map_index
        return setup_id(
            self.dag_id, self.scope, str(context["run_id"]), -1 if map_index is None else map_index, epoch, number
        )

    def made_by(self, context: Context) -> dict[str, str]:
        """Return who made a pool or a job, for people and for the sweep."""
        return {
            MAKER: digest(self.dag_id, self.task_id, context["run_id"], context["ti"].map_index),
            "batchwrap_version": __version__,
            "dag_id": self.dag_id,
            "run_id": str(context["run_id"]),
            "task_id": self.task_id,
            "try_number": str(context["ti"].try_number),
        }
