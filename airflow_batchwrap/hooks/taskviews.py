"""What the service says of a job and a Batch task, as small values.

The SDK's models stay in the hook: their repr prints whole bodies, environment values included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from airflow_batchwrap.hooks.words import failure_text, moment, text

# Failure codes that a new try can cure; everything else needs a person.
_TRY_AGAIN = {
    "BlobDownloadTimedOut",
    "BlobDownloadMiscError",
    "FileUploadTimedOut",
    "FileUploadMiscError",
    "Unknown",
    "MaxInternalRetryCountReached",
}
_REMEDIES = {
    "BlobNotFound": "The blob was deleted after it was uploaded: clear the set-up task, which uploads it again.",
    "BlobAccessDenied": "The SAS has expired, or a storage firewall shuts the nodes out: nodes in the storage "
    "account's region need a VNet rule or a private endpoint.",
    "ResourceContainerAccessDenied": "A storage firewall cannot list the private addresses of nodes in its own region: "
    "give the pool's subnet a VNet rule, or the storage account a private endpoint.",
    "FileUploadAccessDenied": "The SAS has expired before the upload, or a storage firewall shuts the nodes out.",
    "FileUploadContainerNotFound": "The results container was deleted while the step ran.",
    "CommandProgramNotFound": "The program is not on the node's PATH: install it in the pool's start task.",
    "DiskFull": "Choose a vm_size with a larger disk.",
}

_SIGNALS = {1: "SIGHUP", 2: "SIGINT", 6: "SIGABRT", 9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 15: "SIGTERM"}


@dataclass(frozen=True)
class EntityView:
    """A pool or a job, as far as it takes to know whose it is.

    :param state: of a pool: active or deleting; of a job: active, disabled, terminating, completed, deleting, ...
    :param metadata: by name.
    :param created: when it was made; None where that was not asked for.
    :param pool_id: of a job: the pool it runs on; empty where that was not asked for.
    """

    entity_id: str
    state: str
    metadata: Mapping[str, str]
    created: datetime | None = None
    pool_id: str = ""

    @classmethod
    def of(cls, entity: Any) -> EntityView:
        """Read an SDK ``BatchPool`` or ``BatchJob``."""
        run = getattr(entity, "execution_info", None)
        return cls(
            entity_id=entity.id,
            state=text(entity.state),
            metadata={item.name: item.value for item in entity.metadata or ()},
            created=entity.creation_time,
            pool_id=(run.pool_id or "") if run else "",
        )


@dataclass(frozen=True)
class TaskView:
    """One Batch task, as far as waiting needs it.

    :param state: active, preparing, running or completed; ``missing`` where it is gone.
    :param failure_code: of the failure information, which an upload that failed sets even where the exit code is 0.
    """

    state: str
    node_id: str = ""
    exit_code: int | None = None
    failure_category: str = ""
    failure_code: str = ""
    failure_message: str = ""
    started: str = ""
    ended: str = ""
    reruns: int = 0
    created: str = ""

    @property
    def over(self) -> bool:
        return self.state in ("completed", "missing")

    @property
    def succeeded(self) -> bool:
        """Exit code 0 alone is not success: an upload that failed leaves it, and sets the failure information."""
        return self.state == "completed" and self.exit_code == 0 and not self.failure_code

    @property
    def worth_retrying(self) -> bool:
        """Whether the failure lies with the service or the node rather than with the step."""
        code = self.failure_code
        if code == "FailureExitCode" or (not code and self.exit_code is not None):
            return False
        return (
            self.state == "missing"
            or self.failure_category.lower() == "servererror"
            or code in _TRY_AGAIN
            or re.fullmatch(r"ResourceFile\w*Failed", code) is not None
        )

    def describe(self) -> str:
        """Return how it ended, in words, with the remedy where there is a usual one."""
        if self.state == "missing":
            return "the Batch task is gone: it or its job was deleted while it waited or ran"
        parts = []
        if self.exit_code is not None:
            parts.append(f"exit code {self.exit_code}{signal_of(self.exit_code)}")
        if self.failure_code and self.failure_code != "FailureExitCode":
            said = self.failure_message.rstrip(".")
            parts.append(f"{self.failure_code}: {said}" if said else self.failure_code)
            if remedy := _REMEDIES.get(self.failure_code):
                parts.append(remedy.rstrip("."))
        return "; ".join(parts) or f"state {self.state}, no exit code"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, task: Any) -> TaskView:
        """Read an SDK ``BatchTask``."""
        run, node = task.execution_info, task.node_info
        failure = run.failure_info if run else None
        return cls(
            state=text(task.state),
            node_id=(node.node_id or "") if node else "",
            exit_code=run.exit_code if run else None,
            failure_category=text(failure.category) if failure else "",
            failure_code=(failure.code or "") if failure else "",
            failure_message=failure_text(failure) if failure else "",
            started=moment(run.start_time) if run else "",
            ended=moment(run.end_time) if run else "",
            reruns=((run.retry_count or 0) + (run.requeue_count or 0)) if run else 0,
            created=moment(task.creation_time),
        )


@dataclass(frozen=True)
class PreparationView:
    """How a job's preparation went on one node.

    :param root: its directory, relative to the node's root as the files of a node are addressed:
        ``workitems/<job>/job-1/jobpreparation``.
    """

    node_id: str
    state: str
    failed: bool
    exit_code: int | None = None
    failure_code: str = ""
    failure_message: str = ""
    root: str = ""

    @classmethod
    def of(cls, status: Any) -> PreparationView:
        """Read an SDK ``BatchJobPreparationAndReleaseTaskStatus``."""
        info = status.job_preparation_task_execution_info
        failure = info.failure_info if info else None
        return cls(
            node_id=status.node_id or "",
            state=text(info.state) if info else "",
            failed=bool(info) and text(info.state) == "completed" and text(info.result) == "failure",
            exit_code=info.exit_code if info else None,
            failure_code=(failure.code or "") if failure else "",
            failure_message=failure_text(failure) if failure else "",
            root=(info.task_root_directory or "") if info else "",
        )

    def describe(self) -> str:
        view = TaskView(
            "completed",
            exit_code=self.exit_code,
            failure_code=self.failure_code,
            failure_message=self.failure_message,
        )
        return view.describe()


def state_line(view: TaskView) -> str:
    """Return a Batch task's state as the log has it, once at each change."""
    rerun = f", rerun {view.reruns} by Batch" if view.reruns else ""
    return (f"{view.state} on node {view.node_id}" if view.node_id else view.state) + rerun


def signal_of(exit_code: int) -> str:
    """Return what a shell's exit code above 128 means: the signal that ended the process."""
    number = exit_code - 128
    return f" (ended by signal {number}, {_SIGNALS[number]})" if number in _SIGNALS else ""
