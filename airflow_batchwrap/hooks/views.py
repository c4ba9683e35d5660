"""What the service says of a Batch task, a node and a pool, and what follows from it.

Pure functions on small values: the blocking wait, the triggers and the tests share them, so that both ways of waiting
decide alike. The SDK's models stay in the hook: their repr prints whole bodies, environment values included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from airflow_batchwrap.hooks.autoscale import ScaleFormula
from airflow_batchwrap.hooks.errors import scrub

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

_USABLE = {"idle", "running"}
# A preempted spot node is not among them: Azure goes on trying to give it back.
_GONE = {"starttaskfailed", "unusable", "leavingpool", "offline", "deallocated", "deallocating"}
_NO_SAMPLES = "InsufficientSampleData"  # what the formula of a new pool may meet, and what passes
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


@dataclass(frozen=True)
class NodeView:
    """One node."""

    node_id: str
    state: str
    exit_code: int | None = None
    failure: str = ""
    errors: tuple[str, ...] = ()

    @classmethod
    def of(cls, node: Any) -> NodeView:
        """Read an SDK ``BatchNode``."""
        start = node.start_task_info
        failure = start.failure_info if start else None
        return cls(
            node_id=node.id,
            state=text(node.state),
            exit_code=start.exit_code if start else None,
            failure=": ".join(part for part in (failure.code, failure_text(failure)) if part) if failure else "",
            errors=tuple(f"{error.code}: {error.message}" for error in node.errors or ()),
        )


@dataclass(frozen=True)
class PoolView:
    """One pool with its nodes.

    :param state: active or deleting; ``missing`` where there is none.
    :param target: nodes asked for, dedicated and spot; with autoscale, by the last evaluation.
    :param autoscale: whether it scales by itself.
    :param formula: by which it does, where that is this package's own.
    :param evaluated: whether its formula was evaluated yet.
    :param scale_error: why the last evaluation failed.
    :param targets: dedicated and spot nodes asked for.
    :param present: dedicated and spot nodes there are.
    """

    pool_id: str
    state: str
    allocation_state: str = ""
    target: int = 0
    autoscale: bool = False
    resize_errors: tuple[str, ...] = ()
    nodes: tuple[NodeView, ...] = ()
    formula: ScaleFormula | None = None
    evaluated: bool = False
    scale_error: str = ""
    targets: tuple[int, int] = (0, 0)
    present: tuple[int, int] = (0, 0)

    @property
    def usable(self) -> int:
        return sum(node.state in _USABLE for node in self.nodes)

    @property
    def failed_start(self) -> NodeView | None:
        return next((node for node in self.nodes if node.state == "starttaskfailed"), None)

    def progress(self) -> str:
        """Return one line for the log: how many nodes are usable and what the others do."""
        states: dict[str, int] = {}
        for node in self.nodes:
            states[node.state] = states.get(node.state, 0) + 1
        told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        return f"{self.usable} of {self.target} nodes usable ({told or 'none yet'}; allocation {self.allocation_state})"

    @classmethod
    def of(cls, pool: Any, nodes: list[NodeView]) -> PoolView:
        """Read an SDK ``BatchPool``."""
        targets = pool.target_dedicated_nodes or 0, pool.target_low_priority_nodes or 0
        run = pool.auto_scale_run
        return cls(
            pool_id=pool.id,
            state=text(pool.state),
            allocation_state=text(pool.allocation_state),
            target=sum(targets),
            autoscale=bool(pool.enable_auto_scale),
            formula=ScaleFormula.read(pool.auto_scale_formula) if pool.enable_auto_scale else None,
            evaluated=run is not None,
            scale_error=f"{run.error.code}: {run.error.message}" if run and run.error else "",
            targets=targets,
            present=(pool.current_dedicated_nodes or 0, pool.current_low_priority_nodes or 0),
            resize_errors=tuple(f"{error.code}: {error.message}" for error in pool.resize_errors or ()),
            nodes=tuple(nodes),
        )


@dataclass(frozen=True)
class Verdict:
    """What follows from a look at a pool.

    :param answer: ``ready``, ``wait`` or ``failed``.
    :param why: for ``failed``, the problem and the remedy.
    :param node_id: for ``failed``, the node whose start task's stderr tells more.
    """

    answer: Literal["ready", "wait", "failed"]
    why: str = ""
    node_id: str = field(default="")


def judge_pool(view: PoolView, min_nodes: int | None = None) -> Verdict:
    """Return whether a pool is fit to run Batch tasks.

    Idle and running nodes both count, spot nodes as well: a busy shared pool is ready. A failed start task ends the
    wait at once, since a start task that fails on one node fails on its siblings.

    :param min_nodes: how many usable nodes are enough; None for all that the pool asks for.
    """
    name = f"Pool {view.pool_id!r}"
    if view.state == "missing":
        return Verdict("failed", f"{name} does not exist. Check pool_id, or give a pool_config to create a pool.")
    if view.state == "deleting":
        return Verdict("failed", f"{name} is being deleted. Use another pool, or wait until it is gone.")
    if view.target == 0 and view.autoscale:
        if view.scale_error and not view.scale_error.startswith(_NO_SAMPLES):
            return Verdict("failed", f"{name} has no nodes: its autoscale formula failed: {view.scale_error}")
        if view.formula is None:
            return Verdict("ready")  # it grows once there is work
        if view.formula.total:
            # Emptied for want of work it grows again; a new one waits for the first evaluation.
            return Verdict("ready" if view.evaluated else "wait")
    if view.target == 0 and not view.nodes:
        return Verdict("failed", f"{name} has no nodes and is to have none. Resize it to one node or more.")
    wanted = view.target if min_nodes is None else min(min_nodes, view.target)
    if view.usable >= max(1, wanted):
        return Verdict("ready")
    if (failed := view.failed_start) is not None:
        told = failed.failure or "no failure information"
        code = "" if failed.exit_code is None else f" with exit code {failed.exit_code}"
        why = f"{name}: the start task failed on node {failed.node_id}{code} ({told}). Mend the pool's start_task."
        return Verdict("failed", why, failed.node_id)
    lost = sum(node.state in _GONE for node in view.nodes)
    if view.allocation_state == "steady" and len(view.nodes) - lost < max(1, wanted):
        reasons = [*view.resize_errors, *(error for node in view.nodes for error in node.errors)]
        told = "; ".join(reasons) or f"{view.progress()}, and no resize error is given"
        return Verdict(
            "failed",
            f"{name} has {len(view.nodes) - lost} of the {max(1, wanted)} nodes it needs, and asks for no more: "
            f"{told}. Check the account's core quota for the vm_size, or ask for fewer (min_nodes accepts a part).",
        )
    return Verdict("wait")


@dataclass(frozen=True)
class WaitView:
    """What may keep a Batch task from starting.

    :param job_state: of its job; ``missing`` where it is gone.
    :param job_reason: why the job ended.
    """

    job_state: str
    job_reason: str = ""
    preparations: tuple[PreparationView, ...] = ()
    pool: PoolView | None = None


@dataclass(frozen=True)
class Stuck:
    """Why a waiting Batch task will never start.

    :param preparation: the job preparation that failed, where that is why.
    """

    why: str
    preparation: PreparationView | None = None


def judge_wait(view: WaitView) -> Stuck | None:
    """Return why a Batch task that waits will never start; None where it still may.

    Azure is silent about all of these: a Batch task of an ended job, or whose preparation failed on every node, stays
    active for ever.
    """
    if view.job_state in ("missing", "deleting"):
        return Stuck("its Batch job was deleted. Clear the set-up task, which opens a new one.")
    if view.job_state in ("terminating", "completed"):
        told = f" ({view.job_reason})" if view.job_reason else ""
        return Stuck(f"its Batch job has ended{told}. Clear the set-up task, which opens a new one.")
    pool = view.pool
    if pool is not None and pool.state in ("missing", "deleting"):
        return Stuck(f"its pool {pool.pool_id!r} was deleted. Clear the set-up task, or use another pool.")
    if pool is not None and (verdict := judge_pool(pool, 1)).answer == "failed":
        return Stuck(verdict.why)
    failed = {item.node_id: item for item in view.preparations if item.failed}
    if not failed or pool is None:
        return None
    # The service bars a node from the job once its preparation failed there, and tries the next one.
    if any(node.state in _USABLE and node.node_id not in failed for node in pool.nodes):
        return None
    first = next(iter(failed.values()))
    return Stuck(f"the job preparation task, which brings the inputs, failed on node {first.node_id}", first)


def state_line(view: TaskView) -> str:
    """Return a Batch task's state as the log has it, once at each change."""
    rerun = f", rerun {view.reruns} by Batch" if view.reruns else ""
    return (f"{view.state} on node {view.node_id}" if view.node_id else view.state) + rerun


def signal_of(exit_code: int) -> str:
    """Return what a shell's exit code above 128 tells: the signal that ended the process."""
    number = exit_code - 128
    return f" (ended by signal {number}, {_SIGNALS[number]})" if number in _SIGNALS else ""


def failure_text(failure: Any) -> str:
    """Return an SDK failure information's message and details as one line."""
    details = [f"{pair.name}: {pair.value}" for pair in failure.details or () if pair.value]
    return scrub("; ".join(part for part in ((failure.message or "").strip(), *details) if part))[:2000]


def text(value: object) -> str:
    """Return the wire's word for an SDK enum member or string; empty for None."""
    return "" if value is None else str(getattr(value, "value", value))


def moment(value: datetime | None) -> str:
    return value.isoformat() if value else ""
