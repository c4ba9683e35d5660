"""Open a run's job: shared by the set-up tasks and by a step that runs alone on a pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_batchwrap import __version__
from airflow_batchwrap.exceptions import BatchWrapError, ConfigError
from airflow_batchwrap.naming import container_name, digest, run_prefix, setup_family
from airflow_batchwrap.operators.base import BatchWrapOperator
from airflow_batchwrap.operators.claim import CONTENT, MAKER, Claim
from airflow_batchwrap.workspace import BlobRef, InputFile, Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context
    from azure.batch.models import ResourceFile

    from airflow_batchwrap.archive import Archive
    from airflow_batchwrap.hooks.views import EntityView

# Batch takes 32,768 characters of resource files in all (Azure Batch, "resource files"); an address with its SAS has
# about 500, and more where a name is long or not ASCII.
_MOST_INPUT_URLS = 40
_MOST_INPUT_CHARACTERS = 28_000
_RESULTS_KEY = "batchwrap_results"  # state store: the run's folder of results


class JobOperator(BatchWrapOperator):
    """The part of an operator that packs, uploads and opens a job.

    :param steps: the folder of step files, relative to the DAG file; None where only commands are run.
    :param inputs: input files and folders, relative to the DAG file, that every step finds by name.
    :param expected_steps: the step files that the DAG was drawn from; another set on disk is an error.
    :param output_container: the Blob container for results; derived from the DAG's id by default.
    :param job_wall_clock: the longest life of the job, queueing included; Azure ends it then, Airflow or no Airflow.
    :param batch_retries: how often Batch itself reruns a Batch task that exits with another code than 0.
    :param sas_extra: how much longer than the deadline that it serves a SAS is valid.
    """

    template_fields: Sequence[str] = (
        *BatchWrapOperator.template_fields,
        "inputs",
        "output_container",
        "job_wall_clock",
        "batch_retries",
        "sas_extra",
    )
    setting_names: Sequence[str] = (
        *BatchWrapOperator.setting_names,
        "output_container",
        "job_wall_clock",
        "batch_retries",
        "sas_extra",
    )

    steps: str | Path | None
    inputs: str | Path | Sequence[str | Path]
    expected_steps: Sequence[str] | None
    output_container: str | None
    job_wall_clock: timedelta | str
    batch_retries: int | str
    sas_extra: timedelta | str
    has_made = False  # a pool or a job, in this try or an earlier one

    def __init__(
        self,
        *,
        steps: str | Path | None = None,
        inputs: str | Path | Sequence[str | Path] = (),
        expected_steps: Sequence[str] | None = None,
        output_container: str | None = None,
        job_wall_clock: timedelta | str = timedelta(days=7),
        batch_retries: int | str = 0,
        sas_extra: timedelta | str = timedelta(days=1),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.keep(
            steps=steps,
            inputs=inputs,
            expected_steps=expected_steps,
            output_container=output_container,
            job_wall_clock=job_wall_clock,
            batch_retries=batch_retries,
            sas_extra=sas_extra,
        )

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
        workspace, resource_files = self.lay_out(context, workspace, archive, files)
        return replace(workspace, job_id=self._open_job(context, workspace, resource_files))

    def lay_out(
        self, context: Context, workspace: Workspace, archive: Archive | None, files: list[tuple[str, Path]]
    ) -> tuple[Workspace, list[ResourceFile]]:
        """Upload what the steps need; return the workspace without a job, and what its preparation downloads."""
        from airflow_batchwrap.hooks.blobs import INPUTS_CONTAINER

        hook, named = self.hook, self.settings.output_container
        container = named or container_name(self.dag_id)
        hook.ensure_container(container)
        ref: BlobRef | None = None
        if archive is not None:
            hook.ensure_container(INPUTS_CONTAINER)
            ref = hook.upload_bytes(INPUTS_CONTAINER, f"archives/{archive.sha256}.pyz", archive.data)
        inputs = hook.upload_inputs(files)
        resource_files, inputs_dir = self._bring(inputs)
        workspace = replace(
            workspace,
            archive=ref,
            steps=archive.steps if archive is not None else (),
            inputs=inputs,
            inputs_dir=inputs_dir,
            output_container=container,
            output_prefix=self._output_prefix(context, container, workspace.epoch),
            group=self.group,
        )
        return workspace, resource_files

    def _output_prefix(self, context: Context, container: str, epoch: int) -> str:
        """Return the run's folder of results: one that no other run has used.

        A run that was deleted may come again under its old id, and its attempts begin at 1 again: what the old ones
        left is neither overwritten nor taken for theirs.
        """
        store = context["task_state_store"]
        if isinstance(known := store.get(_RESULTS_KEY), str):
            return known
        # A container that the user named may serve many DAGs.
        root = f"{digest(self.dag_id)}/" if self.settings.output_container else ""
        base = prefix = root + run_prefix(str(context["run_id"]), self.scope, self.map_index(context))
        number = 1
        while epoch == context["ti"].try_number == 1 and self.hook.has_blobs(container, f"{prefix}/"):
            number += 1
            prefix = f"{base}-{number}"
        store.set(_RESULTS_KEY, prefix)
        return prefix

    def _bring(self, inputs: tuple[InputFile, ...]) -> tuple[list[ResourceFile], str]:
        """Return what the job preparation task downloads, and where the steps find it."""
        from airflow_batchwrap.hooks import models
        from airflow_batchwrap.hooks.blobs import INPUTS_CONTAINER

        if not inputs:
            return [], ""
        hook, lifetime = self.hook, self.settings.job_wall_clock + self.settings.sas_extra
        base = f"$AZ_BATCH_JOB_PREP_WORKING_DIR/{models.INPUTS_DIR}"
        if len(inputs) <= _MOST_INPUT_URLS:
            urls = {f"{models.INPUTS_DIR}/{item.name}": hook.sas_url(item.ref, lifetime) for item in inputs}
            if sum(len(path) + len(url) for path, url in urls.items()) <= _MOST_INPUT_CHARACTERS:
                return [models.resource_file(url, path, models.INPUT_MODE) for path, url in urls.items()], base
        prefix = hook.gather_set(inputs)
        url = hook.container_sas_url(INPUTS_CONTAINER, lifetime)
        folder = models.resource_folder(url, prefix, models.INPUTS_DIR, models.INPUT_MODE)
        return [folder], f"{base}/{prefix.rstrip('/')}"

    def _open_job(self, context: Context, workspace: Workspace, inputs: list[ResourceFile]) -> str:
        """Open the run's job, or adopt the one that an earlier try of this set-up opened."""
        from airflow_batchwrap.hooks import models

        inputs_are = [(item.name, item.ref.sha256) for item in workspace.inputs]
        content = digest(*inputs_are, workspace.pool_id, workspace.output_prefix)

        def make(job_id: str) -> bool:
            self.has_made = True
            job = models.job_options(
                job_id,
                workspace.pool_id,
                inputs=inputs,
                input_count=len(workspace.inputs),
                wall_clock=self.settings.job_wall_clock,
                batch_retries=self.settings.batch_retries,
                metadata={**self.made_by(context), CONTENT: content},
            )
            return self.hook.create_job(job)

        return Claim(
            noun="job",
            family=self.family(context),
            epoch=workspace.epoch,
            maker=self.maker(context),
            content=content,
            find=self.noticing(self.hook.find_jobs),
            make=make,
            delete=self.hook.delete_job,
            log=self.log,
        ).take()

    def noticing(self, find: Callable[[str], Sequence[EntityView]]) -> Callable[[str], Sequence[EntityView]]:
        """Return a search that remembers whether there is anything to remove, should this try fail."""

        def look(prefix: str) -> Sequence[EntityView]:
            found = find(prefix)
            self.has_made = self.has_made or bool(found)
            return found

        return look

    def family(self, context: Context) -> str:
        """Return what the ids of this run's pool and job begin with."""
        return setup_family(self.dag_id, self.scope, self.task_id, str(context["run_id"]), self.map_index(context))

    def maker(self, context: Context) -> str:
        """Return the metadata by which this task knows what it made, in whichever try."""
        return digest(self.dag_id, self.task_id, context["run_id"], context["ti"].map_index)

    def remove_made(self, context: Context, *nouns: str) -> list[str]:
        """Delete whatever this task made in this run, known to it or not: an answer may have been lost, or cut short.

        :param nouns: "job", "pool".
        :return: what could not be deleted.
        """
        hook, left, family = self.hook, [], self.family(context)
        calls = {"job": (hook.find_jobs, hook.delete_job), "pool": (hook.find_pools, hook.delete_pool)}
        for noun in nouns:
            find, delete = calls[noun]
            try:
                for item in find(family):
                    if item.state != "deleting" and item.metadata.get(MAKER) == self.maker(context):
                        delete(item.entity_id)
                        self.log.info("Removed %s %s", noun, item.entity_id)
            except BatchWrapError as error:
                left.append(f"perhaps a {noun} {family}... ({error})")
                break  # the service does not answer: the next call would wait as long, and in vain
        return left

    def made_by(self, context: Context) -> dict[str, str]:
        """Return who made a pool or a job, for people and for the sweep."""
        index = self.map_index(context)
        return {
            MAKER: self.maker(context),
            "batchwrap_version": __version__,
            "dag_id": self.dag_id,
            "run_id": str(context["run_id"]),
            "task_id": self.task_id,
            "try_number": str(context["ti"].try_number),
            **({"map_index": str(index)} if index >= 0 else {}),
        }
