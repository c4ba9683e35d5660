"""What goes to Batch for one attempt at a step: the call, its files, its fingerprint, and which attempt it is."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.attempts.confidential import Confidential
from airflow_batchwrap.config import WorkflowConfig
from airflow_batchwrap.engine import protocol
from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.naming import Attempt, Maker
from airflow_batchwrap.workspace import InputFile, ValueReference, Workspace

if TYPE_CHECKING:
    from datetime import timedelta

    from azure.batch.models import BatchTaskCreateOptions, ResourceFile

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.hooks.views import TaskView


@dataclass(frozen=True)
class Submission:
    """One attempt at a step or a command, ready to be built.

    :param step: the step file; empty for a command.
    :param command: the command; empty for a step.
    :param arguments: plain JSON values, or references among them.
    :param output_prefix: the folder of this attempt's results.
    :param params: without those that are secret.
    :param context: what the step may read of Airflow's.
    :param settings: of these, the times, slots and retries count.
    :param maker: whose containers the uploads go to.
    :param confidential: what travels in a file of its own, and counts in the fingerprint by its names alone.
    """

    workspace: Workspace
    step: str
    command: str
    arguments: Sequence[Any]
    params: Mapping[str, Any]
    context: Mapping[str, Any]
    output_prefix: str
    settings: WorkflowConfig
    maker: Maker
    environment: Mapping[str, str] = field(default_factory=dict)
    confidential: Confidential = field(default_factory=Confidential)

    def fingerprint(self) -> str:
        """Return what makes this submission this one.

        No SAS, no time and no try number is in it, and of the environment the names alone: a value may well be a token
        that is rendered anew for each try.
        """
        archive = self.workspace.archive
        data = {
            "archive": archive.sha256 if archive else None,
            "step": self.step,
            "command": self.command,
            "arguments": self.arguments,
            "inputs": [[item.name, item.ref.sha256] for item in self.workspace.inputs],
            "params": self.params,
            "environment": sorted(self.environment),
            "confidential": self.confidential.names,
        }
        if options := java_options_of(self.step, self.settings):  # else as before there were any
            data["java_options"] = options
        text = json.dumps(data, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def build(self, hook: BatchWrapHook, batch_task_id: str) -> BatchTaskCreateOptions:
        """Return the Batch task; upload what does not fit into it."""
        from airflow_batchwrap.hooks import models

        settings = self.settings
        # Its inputs are downloaded when it starts, and its results uploaded when it ends: queueing counts.
        lifetime = settings.job_wall_clock + settings.sas_extra
        container_url = hook.container_sas_url(self.workspace.output_container, lifetime, write=True)
        # A node's locale may be C: without UTF-8 mode a step's plain open() would read and write ASCII.
        environment = {"PYTHONUTF8": "1", **self.environment, models.FINGERPRINT_ENV: self.fingerprint()}
        files: list[ResourceFile] = []
        if self.command:
            command = self.command
            if self.confidential:
                files.append(self.secret_file(hook, lifetime))
                command = f". ./{protocol.SECRETS_SCRIPT}; {command}"
            command_line = models.shell_command(command)
        else:
            if self.workspace.archive is None:
                raise ConfigError(
                    f"The workspace holds no steps, so {self.step!r} cannot run: give its set-up `steps`."
                )
            command_line = models.engine_command(self.workspace.archive.sha256)
            files.append(models.resource_file(hook.sas_url(self.workspace.archive, lifetime), protocol.ARCHIVE_NAME))
            if self.confidential:
                files.append(self.secret_file(hook, lifetime))
            variable, call_files = self.call_files(hook, lifetime)
            environment |= variable
            files += call_files
        return models.task_options(
            batch_task_id,
            command_line,
            resource_files=files,
            output_files=models.step_outputs(container_url, self.output_prefix),
            environment=environment,
            wall_clock=settings.step_timeout,
            batch_retries=settings.batch_retries,
            required_slots=settings.task_slots,
        )

    def call(self, folder: str = protocol.ARGUMENTS_DIR) -> tuple[protocol.Call, list[InputFile]]:
        """Return the engine's call, and the blobs that its arguments stand for, by their names below a folder.

        :param folder: on the node, relative to the working directory.
        """
        references: list[InputFile] = []
        call = protocol.Call(
            step=self.step,
            arguments=[_argument(value, folder, references) for value in self.arguments],
            context=dict(self.context),
            params=dict(self.params),
            inputs=[item.name for item in self.workspace.inputs],
            inputs_dir=self.workspace.inputs_dir,
            output_container=self.workspace.output_container,
            secrets_file=protocol.SECRETS_FILE if self.confidential else "",
            java_options=java_options_of(self.step, self.settings),
        )
        return call, references

    def call_files(self, hook: BatchWrapHook, lifetime: timedelta) -> tuple[dict[str, str], list[ResourceFile]]:
        """Return the environment variable that says what to run, and the files that go with it.

        :param lifetime: of the addresses.
        """
        from airflow_batchwrap.hooks import models

        call, references = self.call()
        files, prefix = hook.bring(self.maker, references, protocol.ARGUMENTS_DIR, models.FILE_MODE, lifetime)
        if prefix:
            call, _ = self.call(f"{protocol.ARGUMENTS_DIR}/{prefix.rstrip('/')}")
        data = call.dumps().encode()
        if len(data) <= protocol.INLINE_CALL_LIMIT:
            return {protocol.CALL_ENV: data.decode()}, files
        name = f"calls/{hashlib.sha256(data).hexdigest()}.json"
        ref = hook.upload_bytes(hook.own_container(self.maker, "inputs"), name, data, lifetime)
        files.append(models.resource_file(hook.sas_url(ref, lifetime), protocol.CALL_FILE))
        return {protocol.CALL_FILE_ENV: protocol.CALL_FILE}, files

    def secret_file(self, hook: BatchWrapHook, lifetime: timedelta) -> ResourceFile:
        """Upload what is confidential; return the file by which it comes to the node."""
        from airflow_batchwrap.hooks import models

        path, data = protocol.SECRETS_FILE, self.confidential.for_step()
        if self.command:
            path, data = protocol.SECRETS_SCRIPT, self.confidential.for_command()
        ref = hook.upload_secret(self.maker, self.workspace.job_id, data, lifetime)
        return models.resource_file(hook.sas_url(ref, lifetime), path, models.SECRET_MODE)


def _argument(value: Any, folder: str, references: list[InputFile]) -> protocol.Argument:
    """Return how a value travels; a reference, alone or in a stage's list, becomes a file on the node."""
    reference = ValueReference.from_xcom(value)
    if reference is not None:
        name = f"{len(references)}.json"
        references.append(InputFile(name, reference.ref))
        return protocol.Argument("file", path=f"{folder}/{name}", size=reference.ref.size, sha256=reference.ref.sha256)
    if isinstance(value, list | tuple) and _has_reference(value):
        return protocol.Argument("list", items=[_argument(item, folder, references) for item in value])
    if _has_reference(value):
        raise ConfigError(
            "An argument is a dict that holds the value of a step, and that value is too large to travel in it. Pass "
            "it as an argument of its own, or in a list."
        )
    return protocol.Argument("value", value=value)


def _has_reference(value: Any) -> bool:
    if ValueReference.from_xcom(value) is not None:
        return True
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(_has_reference(item) for item in below)


def java_options_of(step: str, settings: WorkflowConfig) -> list[str]:
    """Return the options of the virtual machine that runs a step; none where it is no jar."""
    return shlex.split(settings.java_options) if step.endswith(".jar") else []


def plain_values(value: Any, what: str) -> Any:
    """Return a value as it arrives after a journey as JSON.

    :raises ConfigError: it is not JSON.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what} cannot be passed as JSON: {error}. Use strings, numbers, lists and dicts.") from None


def choose_attempt(
    found: Mapping[Attempt, TaskView], epoch: int, reported: Sequence[int]
) -> tuple[Attempt, TaskView | None]:
    """Return the attempt to go on with, and the Batch task that is it already.

    One that lives or succeeded is adopted; one that failed without Airflow's hearing of it is reported now; only a
    failure that was reported makes room for the next attempt.

    :param found: the Batch tasks of this step in the job.
    :param reported: the numbers of this epoch's attempts whose failure was reported.
    """
    own = sorted((attempt for attempt in found if attempt.epoch == epoch), key=lambda attempt: attempt.number)
    for attempt in reversed(own):
        if attempt.number not in reported:
            return attempt, found[attempt]
        break
    last = max([attempt.number for attempt in own] + list(reported), default=0)
    return Attempt(epoch, last + 1), None
