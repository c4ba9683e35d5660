"""A round of a manifest: what it runs, in which job, and how much of it may fail."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.naming import digest
from airflow_batchwrap.operators.claim import CONTENT, MAKER, Claim
from airflow_batchwrap.operators.jobs import JobOperator
from airflow_batchwrap.operators.rows import Row
from airflow_batchwrap.workspace import BlobRef, Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context
    from azure.batch.models import ResourceFile

_ROUND = "batchwrap_round"  # metadata: the epoch and the round that a job is for
_PRINT = "batchwrap_fingerprint"  # metadata: of the manifest and all it runs with
_BEGAN = "batchwrap_began"  # metadata: when the job was made, in seconds since 1970


@dataclass(frozen=True)
class Round:
    """One go at what is left of a manifest: the first has all entries, each later one those that did not succeed.

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


def claim_job(
    operator: JobOperator,
    context: Context,
    workspace: Workspace,
    resource_files: list[ResourceFile],
    epoch: int,
    number: int,
    fingerprint: str,
) -> tuple[str, float, str]:
    """Open a round's job, or find it.

    :param epoch: of the manifest's task.
    :param number: of the round, from 1.
    :return: its id, when it was made, and whether it is "new", "found", or "ended" already.
    :raises ConfigError: an earlier try of this round ran something else.
    """
    from airflow_batchwrap.hooks import models

    find, mark = operator.noticing(operator.hook.find_jobs), f"e{epoch}-{number}"
    content = digest(mark, fingerprint, workspace.pool_id, workspace.output_container, workspace.output_prefix)
    mine = {
        item.entity_id: item
        for item in find(operator.family(context))
        if item.metadata.get(MAKER) == operator.maker(context)
        and item.metadata.get(_ROUND) == mark
        and item.state != "deleting"
    }
    for item in mine.values():
        if item.metadata.get(_PRINT) != fingerprint:
            raise ConfigError(
                f"Job {item.entity_id} of an earlier try has another manifest, archive, inputs, parameters or "
                "environment. It is ended now; clear the task to start over."
            )
        if item.metadata.get(CONTENT) == content and item.state in ("terminating", "completed"):
            operator.log.info("Found job %s, which has ended meanwhile", item.entity_id)
            return item.entity_id, float(item.metadata[_BEGAN]), "ended"
    now = time.time()
    metadata = {CONTENT: content, _ROUND: mark, _PRINT: fingerprint, _BEGAN: f"{now:.3f}"}
    made: list[str] = []

    def make(job_id: str) -> bool:
        operator.has_made = True
        job = models.job_options(
            job_id,
            workspace.pool_id,
            inputs=resource_files,
            input_count=len(workspace.inputs),
            wall_clock=operator.settings.job_wall_clock,
            batch_retries=operator.settings.batch_retries,
            metadata={**operator.made_by(context), **metadata},
        )
        if not operator.hook.create_job(job):
            return False
        made.append(job_id)
        return True

    job_id = Claim(
        noun="job",
        family=operator.family(context),
        epoch=epoch,
        maker=operator.maker(context),
        content=content,
        find=find,
        make=make,
        delete=operator.hook.delete_job,
        log=operator.log,
    ).take()
    if job_id in made:
        return job_id, now, "new"
    # An answer that was lost may have made it just now.
    return job_id, float(mine[job_id].metadata[_BEGAN]) if job_id in mine else now, "found"


def fingerprint_of(
    workspace: Workspace, rows: Sequence[Row], params: Mapping[str, Any], environment: Mapping[str, str]
) -> str:
    """Return what makes a manifest this one: no SAS, no time and no try number is in it."""
    text = json.dumps(
        {
            "archive": workspace.archive.sha256 if workspace.archive else None,
            "entries": [[row.step, row.command, row.args] for row in rows],
            "inputs": [[item.name, item.ref.sha256] for item in workspace.inputs],
            "params": params,
            "environment": digest(*sorted(environment.items())),
        },
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def left_of(rows: Sequence[Row], before: Sequence[Row]) -> list[Row]:
    """Return the rows of the next round: what succeeded as it is, and the rest once more.

    :raises ConfigError: the manifest is another than the round before had.
    """
    if [(row.step, row.command, row.args) for row in rows] != [(row.step, row.command, row.args) for row in before]:
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
