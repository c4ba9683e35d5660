"""Lay out what the steps of a run need in Blob, and open the run's job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.naming import digest, run_prefix
from airflow_batchwrap.workspace import BlobRef, InputFile, Workspace

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from airflow.sdk import Context
    from azure.batch.models import ResourceFile

    from airflow_batchwrap.archive import Archive
    from airflow_batchwrap.attempts.belongings import Belongings
    from airflow_batchwrap.config import WorkflowConfig

_RESULTS_KEY = "batchwrap_results"  # state store: the run's folder of results


@dataclass
class Opening:
    """Make the workspace of one task: of a set-up, or of a step or a manifest that is alone on its pool.

    :param settings: of these, the times, retries and places count.
    :param group: the task group that the task's id begins with; empty outside one.
    """

    belongings: Belongings
    context: Context
    settings: WorkflowConfig
    group: str

    def workspace(self, workspace: Workspace, archive: Archive | None, files: list[tuple[str, Path]]) -> Workspace:
        """Upload what the steps need and open the job; return the workspace with both in it."""
        return self.open(*self.lay_out(workspace, archive, files))

    def open(self, workspace: Workspace, resource_files: Sequence[ResourceFile]) -> Workspace:
        """Open the job of a workspace that is laid out; return the workspace with the job in it."""
        content = digest(*self._inputs_of(workspace), workspace.pool_id, workspace.output_prefix)
        job_id = self.open_job(workspace, resource_files, epoch=workspace.epoch, content=content)
        return replace(workspace, job_id=job_id)

    def lay_out(
        self, workspace: Workspace, archive: Archive | None, files: list[tuple[str, Path]]
    ) -> tuple[Workspace, list[ResourceFile]]:
        """Upload what the steps need; return the workspace without a job, and what its preparation downloads."""
        hook, maker = self.belongings.hook, self.belongings.maker
        container = self.settings.output_container or maker.container
        hook.ensure_container(container)
        ref: BlobRef | None = None
        if archive is not None:
            own = hook.own_container(maker, "inputs")
            ref = hook.upload_bytes(own, f"archives/{archive.sha256}.pyz", archive.data, self._lifetime)
        inputs = hook.upload_inputs(maker, files, self._lifetime)
        resource_files, inputs_dir = self.bring(inputs)
        workspace = replace(
            workspace,
            archive=ref,
            steps=archive.steps if archive is not None else (),
            inputs=inputs,
            inputs_dir=inputs_dir,
            output_container=container,
            output_prefix=self._output_prefix(container, workspace.epoch),
            group=self.group,
        )
        return workspace, resource_files

    def bring(self, inputs: tuple[InputFile, ...]) -> tuple[list[ResourceFile], str]:
        """Return what the job preparation task downloads, and where the steps find it."""
        from airflow_batchwrap.hooks import models

        if not inputs:
            return [], ""
        hook, maker = self.belongings.hook, self.belongings.maker
        files, prefix = hook.bring(maker, inputs, models.INPUTS_DIR, models.INPUT_MODE, self._lifetime)
        return files, f"$AZ_BATCH_JOB_PREP_WORKING_DIR/{models.INPUTS_DIR}/{prefix}".rstrip("/")

    def bring_again(self, workspace: Workspace) -> list[ResourceFile]:
        """Return what the preparation task of another job on a workspace downloads.

        :raises ConfigError: something of it is gone.
        """
        # It may be needed for longer than the run's own job lives.
        uploaded = [item.ref for item in workspace.inputs] + ([workspace.archive] if workspace.archive else [])
        self.belongings.hook.keep(uploaded, self._lifetime)
        return self.bring(workspace.inputs)[0]

    @property
    def _lifetime(self) -> timedelta:
        """How long nodes may need what is uploaded for them."""
        return self.settings.job_wall_clock + self.settings.sas_extra

    def open_job(
        self,
        workspace: Workspace,
        resource_files: Sequence[ResourceFile],
        *,
        epoch: int,
        content: str,
        extra: Mapping[str, str] | None = None,
    ) -> str:
        """Open a job on the workspace's pool, or find the one that an earlier try of this task opened.

        :param resource_files: what its preparation task brings to each node.
        :param content: what the job is for: one for something else is replaced.
        :param extra: metadata of the caller's.
        """
        from airflow_batchwrap.hooks import models

        def make(job_id: str, metadata: Mapping[str, str]) -> bool:
            job = models.job_options(
                job_id,
                workspace.pool_id,
                inputs=resource_files,
                input_count=len(workspace.inputs),
                wall_clock=self.settings.job_wall_clock,
                batch_retries=self.settings.batch_retries,
                metadata=metadata,
            )
            return self.belongings.hook.create_job(job)

        return self.belongings.claim("job", epoch, content, make, extra=extra)

    def _output_prefix(self, container: str, epoch: int) -> str:
        """Return the run's folder of results: one that no other run has used.

        A run that was deleted may come again under its old id, and its attempts begin at 1 again: what the old ones
        left is neither overwritten nor taken for theirs.
        """
        store, maker = self.context["task_state_store"], self.belongings.maker
        if isinstance(known := store.get(_RESULTS_KEY), str):
            return known
        # A container that the user named may serve many DAGs.
        root = f"{maker.folder}/" if self.settings.output_container else ""
        base = prefix = root + run_prefix(maker.run_id, maker.scope, maker.map_index)
        number = 1
        while epoch == self.context["ti"].try_number == 1 and self.belongings.hook.has_blobs(container, f"{prefix}/"):
            number += 1
            prefix = f"{base}-{number}"
        store.set(_RESULTS_KEY, prefix)
        return prefix

    @staticmethod
    def _inputs_of(workspace: Workspace) -> list[Any]:
        return [(item.name, item.ref.sha256) for item in workspace.inputs]
