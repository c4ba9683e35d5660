"""The Batch tasks of a manifest's entries, as the JSON that goes over the wire: what is the same is made once."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.attempts.confidential import Confidential
from airflow_batchwrap.attempts.submission import Submission
from airflow_batchwrap.config import WorkflowConfig
from airflow_batchwrap.engine import protocol
from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.naming import Maker
from airflow_batchwrap.workspace import Workspace

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.manifests.rows import Row

_PREFIX = "@prefix@"  # stands for an entry's folder in the pattern that all entries share


class Bodies:
    """Make the body of an entry's Batch task; may be called from several threads.

    Two addresses are signed in all, one for the archive and one for the results' container, and not two for each entry.

    :param settings: of these, the times, slots and retries count.
    :param params: the DAG run's, without those that are secret.
    :param context: what the step may read of Airflow's.
    :param maker: whose containers the uploads go to.
    :param confidential: what all entries may read, in a file of its own.
    :param keep_output: whether stdout and stderr are kept of entries that succeed as well.
    """

    def __init__(
        self,
        hook: BatchWrapHook,
        workspace: Workspace,
        settings: WorkflowConfig,
        *,
        environment: Mapping[str, str],
        params: Mapping[str, Any],
        context: Mapping[str, Any],
        keep_output: bool,
        maker: Maker,
        confidential: Confidential | None = None,
    ) -> None:
        from azure.batch.models import OutputFileUploadCondition

        from airflow_batchwrap.hooks import models

        self._hook, self._workspace, self._settings = hook, workspace, settings
        self._params, self._context = params, context
        self._lifetime = settings.job_wall_clock + settings.sas_extra
        self._lock = threading.Lock()
        self._maker = maker
        self._confidential = confidential or Confidential()
        self._secret_files: dict[str, dict[str, Any]] = {}
        url = hook.container_sas_url(workspace.output_container, self._lifetime, write=True)
        outputs = models.step_outputs(url, _PREFIX)
        if not keep_output:
            for item in outputs:
                if item.file_pattern.startswith("../"):
                    item.upload_options.upload_condition = OutputFileUploadCondition.TASK_FAILURE
        pattern = models.task_options(
            "",
            models.engine_command(workspace.archive.sha256) if workspace.archive is not None else "",
            resource_files=[],
            output_files=outputs,
            environment={"PYTHONUTF8": "1", **environment},
            wall_clock=settings.step_timeout,
            batch_retries=settings.batch_retries,
            required_slots=settings.task_slots,
        ).as_dict()
        self._outputs: list[dict[str, Any]] = pattern.pop("outputFiles")
        self._environment: list[dict[str, Any]] = pattern.pop("environmentSettings")
        self._pattern = {name: value for name, value in pattern.items() if value is not None}
        self._archive: list[dict[str, Any]] = []
        if workspace.archive is not None:
            archive_url = hook.sas_url(workspace.archive, self._lifetime)
            self._archive = [models.resource_file(archive_url, protocol.ARCHIVE_NAME).as_dict()]

    def __call__(self, row: Row) -> dict[str, Any]:
        """Return an entry's Batch task."""
        from airflow_batchwrap.hooks import models

        body = {**self._pattern, "id": row.batch_task_id, "environmentSettings": self._environment}
        if row.command:
            command = row.command
            if self._confidential:
                command = f". ./{protocol.SECRETS_SCRIPT}; {command}"
                body["resourceFiles"] = self._secret_file(row.command)
            body["commandLine"] = models.shell_command(command)
            # Of a command there is no record and no value, and it chooses no files.
            outputs = [item for item in self._outputs if item["filePattern"].startswith("../")]
        else:
            outputs = self._outputs
            environment, files = self._call(row)
            body["environmentSettings"] = [*self._environment, environment]
            body["resourceFiles"] = [*self._archive, *self._secret_file(""), *files]
        body["outputFiles"] = [_placed(item, row.output_prefix) for item in outputs]
        return body

    def _call(self, row: Row) -> tuple[dict[str, str], list[dict[str, Any]]]:
        """Return the variable that says what to run, and the files that go with it."""
        if not self._archive:
            raise ConfigError(f"The workspace holds no steps, so {row.step!r} cannot run: give its set-up `steps`.")
        variable, files = Submission(
            workspace=self._workspace,
            step=row.step,
            command="",
            arguments=row.args,
            params=self._params,
            # As in a task that is mapped over the entries: its index says which of them it is.
            context={**self._context, "map_index": row.entry, "attempt": row.attempt},
            output_prefix=row.output_prefix,
            settings=self._settings,
            maker=self._maker,
            confidential=self._confidential,
        ).call_files(self._hook, self._lifetime)
        ((name, value),) = variable.items()
        return {"name": name, "value": value}, [file.as_dict() for file in files]

    def _secret_file(self, command: str) -> list[dict[str, Any]]:
        """Return the file of secrets, which all entries of a kind share: uploaded and signed once."""
        if not self._confidential:
            return []
        kind = "command" if command else "step"
        with self._lock:
            if kind not in self._secret_files:
                submission = Submission(
                    self._workspace,
                    "",
                    command,
                    [],
                    {},
                    self._context,
                    "",
                    self._settings,
                    self._maker,
                    confidential=self._confidential,
                )
                self._secret_files[kind] = submission.secret_file(self._hook, self._lifetime).as_dict()
            return [self._secret_files[kind]]


def _placed(output: dict[str, Any], prefix: str) -> dict[str, Any]:
    container = output["destination"]["container"]
    path = container["path"].replace(_PREFIX, prefix, 1)
    return {**output, "destination": {"container": {**container, "path": path}}}
