"""The Batch tasks of a manifest's entries, as the JSON that goes over the wire: what is the same is made once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.attempts.submission import Submission
from airflow_batchwrap.config import WorkflowConfig
from airflow_batchwrap.engine import protocol
from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.workspace import Workspace

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.manifests.rows import Row

_PREFIX = "@prefix@"  # stands for an entry's folder in the pattern that all entries share


class Bodies:
    """Makes the body of an entry's Batch task; may be called from several threads.

    Two addresses are signed in all, one for the archive and one for the results' container, and not two for each entry.

    :param settings: of these, the times, slots and retries count.
    :param params: the DAG run's.
    :param context: what the step may read of Airflow's.
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
    ) -> None:
        from azure.batch.models import OutputFileUploadCondition

        from airflow_batchwrap.hooks import models

        self._hook, self._workspace, self._settings = hook, workspace, settings
        self._params, self._context = params, context
        self._lifetime = settings.job_wall_clock + settings.sas_extra
        self._lock = threading.Lock()
        self._has_container = False
        url = hook.container_sas_url(workspace.output_container, self._lifetime, write=True)
        outputs = models.step_outputs(url, _PREFIX)
        if not keep_output:
            for item in outputs:
                if item.file_pattern.startswith("../"):
                    item.upload_options.upload_condition = OutputFileUploadCondition.TASK_FAILURE
        pattern = models.task_options(
            "",
            models.ENGINE_COMMAND,
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
            body["commandLine"] = models.shell_command(row.command)
            # Of a command there is no record and no value, and it chooses no files.
            outputs = [item for item in self._outputs if item["filePattern"].startswith("../")]
        else:
            outputs = self._outputs
            environment, files = self._call(row)
            body["environmentSettings"] = [*self._environment, environment]
            body["resourceFiles"] = [*self._archive, *files]
        body["outputFiles"] = [_placed(item, row.output_prefix) for item in outputs]
        return body

    def _call(self, row: Row) -> tuple[dict[str, str], list[dict[str, Any]]]:
        """Return the variable that says what to run, and the files that go with it."""
        from airflow_batchwrap.hooks import models

        if not self._archive:
            raise ConfigError(f"The workspace holds no steps, so {row.step!r} cannot run: give its set-up `steps`.")
        call, references = Submission(
            workspace=self._workspace,
            step=row.step,
            command="",
            arguments=row.args,
            params=self._params,
            # As in a task that is mapped over the entries: its index says which of them it is.
            context={**self._context, "map_index": row.entry, "attempt": row.attempt},
            output_prefix=row.output_prefix,
            settings=self._settings,
        ).call()
        files = {path: self._hook.sas_url(ref, self._lifetime) for path, ref in references.items()}
        text = call.dumps()
        name, value = protocol.CALL_ENV, text
        if len(text.encode()) > protocol.INLINE_CALL_LIMIT:
            name, value = protocol.CALL_FILE_ENV, protocol.CALL_FILE
            files[protocol.CALL_FILE] = self._upload(text.encode())
        resources = [models.resource_file(url, path).as_dict() for path, url in files.items()]
        return {"name": name, "value": value}, resources

    def _upload(self, data: bytes) -> str:
        """Upload a call that is too large for a variable; return its address."""
        from airflow_batchwrap.hooks.blobs import INPUTS_CONTAINER

        with self._lock:
            if not self._has_container:
                self._hook.ensure_container(INPUTS_CONTAINER)
                self._has_container = True
        ref = self._hook.upload_bytes(INPUTS_CONTAINER, f"calls/{hashlib.sha256(data).hexdigest()}.json", data)
        return self._hook.sas_url(ref, self._lifetime)


def _placed(output: dict[str, Any], prefix: str) -> dict[str, Any]:
    container = output["destination"]["container"]
    path = container["path"].replace(_PREFIX, prefix, 1)
    return {**output, "destination": {"container": {**container, "path": path}}}
