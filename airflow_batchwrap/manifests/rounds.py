"""A round of a manifest: what it runs, in which job, and how much of it may fail."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from airflow_batchwrap.attempts.submission import java_options_of
from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.manifests.rows import Row
from airflow_batchwrap.naming import MAKER, WORKSPACE, digest, family_of
from airflow_batchwrap.workspace import BlobRef, Workspace

if TYPE_CHECKING:
    from azure.batch.models import ResourceFile

    from airflow_batchwrap.attempts.confidential import Confidential
    from airflow_batchwrap.attempts.opening import Opening
    from airflow_batchwrap.config import WorkflowConfig
    from airflow_batchwrap.hooks.views import EntityView

_ROUND = "batchwrap_round"  # metadata: the epoch and the round that a job is for
_PRINT = "batchwrap_fingerprint"  # metadata: of the manifest and all it runs with
_BEGAN = "batchwrap_began"  # metadata: when the job was made, in seconds since 1970


@dataclass(frozen=True)
class Round:
    """The entries that are submitted together: in the first round all of them, in each later one what did not succeed.

    :param began: seconds since 1970.
    :param expected: how many Batch tasks its job has.
    :param allowed: how many entries may fail.
    :param folder: of the manifest's results in ``container``; an entry's has its number added.
    :param plan: the rows as they were before: the manifest may change on disk while it runs.
    """

    pool_id: str
    job_id: str
    epoch: int
    number: int
    began: float
    expected: int
    allowed: int
    container: str
    folder: str
    plan: BlobRef

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Round:
        return cls(**{**data, "plan": BlobRef(**data["plan"])})


@dataclass(frozen=True)
class RoundJob:
    """The job of a round.

    :param began: when it was made, in seconds since 1970.
    :param epoch: of the manifest's task when the round began.
    :param state: ``new``, ``found`` where an earlier try opened it, ``ended`` where it has ended since, or is on
        another pool than the workspace is now.
    """

    job_id: str
    began: float
    epoch: int
    number: int
    state: Literal["new", "found", "ended"]


def claim_job(
    opening: Opening,
    workspace: Workspace,
    resource_files: Sequence[ResourceFile],
    *,
    epoch: int,
    number: int,
    fingerprint: str,
) -> RoundJob:
    """Open a round's job, or find the one that an earlier try opened for the same round.

    A job that goes on is found whatever the epoch: a clear of another task raises it too, and what runs goes on then.
    One of this round that runs something else is ended, and the round after it takes its place.

    :param epoch: of the manifest's task.
    :param number: of the round, from 1.
    :param fingerprint: of what it runs.
    """
    belongings = opening.belongings
    mine = [
        (mark, item)
        for item in belongings.find("job")
        if item.metadata.get(MAKER) == belongings.maker.mark
        and item.state != "deleting"
        and (mark := _mark_of(item)) is not None
        and mark[1] >= number
    ]
    for mark, item in sorted(mine, key=lambda pair: pair[0], reverse=True):
        if item.metadata.get(_PRINT) == fingerprint:
            over = item.state in ("terminating", "completed")
            what = ", which has ended meanwhile" if over else ""
            if item.pool_id.lower() != workspace.pool_id.lower():  # the set-up has made another one
                over, what = True, f" on pool {item.pool_id}, which this try's workspace is not on any more"
            belongings.log.info("Found job %s%s", item.entity_id, what)
            began = float(item.metadata[_BEGAN])
            return RoundJob(item.entity_id, began, *mark, "ended" if over else "found")
        belongings.log.warning(
            "Job %s of an earlier try has another manifest, archive, inputs, parameters or environment than this try. "
            "It is ended, and all its entries are submitted again.",
            item.entity_id,
        )
        number = max(number, mark[1] + 1)
    now = time.time()
    content = digest(f"e{epoch}-{number}", fingerprint, workspace.pool_id, workspace.output_prefix)
    extra = {_ROUND: f"e{epoch}-{number}", _PRINT: fingerprint, _BEGAN: f"{now:.3f}"}
    if workspace.job_id:  # its clean-up ends this job as well, should nobody else have done so
        extra[WORKSPACE] = family_of(workspace.job_id)
    job_id = opening.open_job(workspace, resource_files, epoch=epoch, content=content, extra=extra)
    # Another try may have opened it a moment ago, or an answer was lost: what is there already is left out then.
    return RoundJob(job_id, now, epoch, number, "found")


def _mark_of(item: EntityView) -> tuple[int, int] | None:
    """Return the epoch and the number of the round that a job is for; None where it is no manifest's."""
    match = re.fullmatch(r"e(\d+)-(\d+)", item.metadata.get(_ROUND, ""))
    return (int(match[1]), int(match[2])) if match else None


def fingerprint_of(
    workspace: Workspace,
    rows: Sequence[Row],
    params: Mapping[str, Any],
    environment: Mapping[str, str],
    confidential: Confidential,
    settings: WorkflowConfig,
) -> str:
    """Return what makes a manifest this one.

    No SAS, no time and no try number is in it, and of the environment and of what is confidential the names alone: a
    value may well be a token that is rendered anew for each try.
    """
    data = {
        "archive": workspace.archive.sha256 if workspace.archive else None,
        "entries": [[row.step, row.command, row.args] for row in rows],
        "inputs": [[item.name, item.ref.sha256] for item in workspace.inputs],
        "params": params,
        "environment": sorted(environment),
        "confidential": confidential.names,
    }
    if any(java_options_of(row.step, settings) for row in rows):  # else as before there were any
        data["java_options"] = settings.java_options
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def same_entries(rows: Sequence[Row], before: Sequence[Row]) -> bool:
    """Return whether two manifests have the same entries."""
    return [(row.step, row.command, row.args) for row in rows] == [(row.step, row.command, row.args) for row in before]


def left_of(rows: Sequence[Row], before: Sequence[Row]) -> list[Row]:
    """Return the rows of the next round: what succeeded as it is, and the rest once more.

    :raises ConfigError: the manifest is another than the round before had.
    """
    if not same_entries(rows, before):
        raise ConfigError(
            "The manifest has changed since the try before, so that its results do not fit any more. Clear the "
            "task, which runs the new manifest from its beginning."
        )
    return [row if row.is_over else row.again() for row in before]


def allowed_failures(given: float | str, entries: int, task_id: str) -> int:
    """Return how many of the entries may fail.

    :param given: what the DAG's author gave as ``max_failures``.
    :raises ConfigError: ``max_failures`` is neither a number nor a share.
    """
    text = str(given).strip()
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
        elif text.isdecimal():
            return int(text)
        else:
            share = float(text)
            if share >= 1:
                raise ValueError
        if not 0 <= share <= 1:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"Task {task_id!r}: max_failures = {given!r} cannot be read: use a whole number of entries, such "
            'as 5, or a share of them, such as "2%" or 0.02.'
        ) from None
    return math.floor(share * entries + 1e-9)
