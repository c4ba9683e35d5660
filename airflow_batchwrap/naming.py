"""Airflow's ids become legal Batch ids and blob names: derived, never random, and readable.

A Batch id is at most 64 of ``[A-Za-z0-9_-]`` and is compared without regard to case
(https://learn.microsoft.com/python/api/azure-batch/azure.batch.models.batchpoolcreateoptions). Airflow's ids are
longer, richer and case-sensitive, so each name here ends in a short hash of the exact originals: two different
originals never share a name, and the same original always has the same one.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

MAX_BATCH_ID = 64  # characters
# characters; https://learn.microsoft.com/rest/api/storageservices/Naming-and-Referencing-Containers--Blobs--and-Metadata
MAX_CONTAINER = 63
MAKER = "batchwrap_maker"  # metadata: which task instance made a pool or job
CONTENT = "batchwrap_content"  # metadata: what it was made for
VERSION = "batchwrap_version"  # metadata: this package's
INSTANCE = "batchwrap_instance"  # metadata: of which Airflow the maker is
WORKSPACE = "batchwrap_workspace"  # metadata of a manifest's job: the family of the set-up on whose workspace it runs
CONTAINER_DAG = "batchwrap_dag"  # metadata of a Blob container: whose it is
CONTAINER_ROLE = "batchwrap_role"  # metadata of a Blob container: what it is for
CONTAINER_PREFIX = "batchwrap-"  # what the names of all containers begin with that this package names
_SUFFIX = 12  # characters: e999-a99999
_HASH = 10  # hex digits: 40 bits, of names that also agree in their readable part

#: What a DAG's container holds. "results": what its steps leave. "inputs": archives, inputs and calls, which a node may
#: read and list. "secrets": what one Batch task alone may read; no address of the whole container is ever signed.
ContainerRole = Literal["results", "inputs", "secrets"]
#: Of these, what nobody uses any more is swept; results are kept as long as ``retention_days`` says.
SWEPT_ROLES: tuple[ContainerRole, ...] = ("inputs", "secrets")
_ROLE_NAMES: dict[ContainerRole, str] = {"results": "", "inputs": "in-", "secrets": "secret-"}


@dataclass(frozen=True, order=True)
class BatchTaskKey:
    """What it takes to find one Batch task: its job's id and its own."""

    job_id: str
    batch_task_id: str

    def __str__(self) -> str:
        return f"{self.job_id}/{self.batch_task_id}"


@dataclass(frozen=True)
class Maker:
    """Which task of which Airflow makes pools, jobs and blobs: all that they are named by, and known by.

    :param instance: the name of the Airflow, as :func:`airflow_batchwrap.instance.name_of_instance` has it.
    :param map_index: -1 where the task is not mapped.
    :param scope: the workflow's group id, or the task's own id outside a group; it is there to be read.
    """

    instance: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    scope: str = ""

    @property
    def family(self) -> str:
        """What the ids of all pools, and of all jobs, that this task makes in this run begin with."""
        readable = [self.dag_id] if self.scope in ("", self.dag_id) else [self.dag_id, self.scope]
        exact = self.instance, self.dag_id, self.task_id, self.run_id, self.map_index
        return batch_id([*readable, run_slug(self.run_id, 40)], exact) + "-"

    @property
    def mark(self) -> str:
        """The metadata by which the task knows what it made, in whichever try."""
        return digest(self.instance, self.dag_id, self.task_id, self.run_id, self.map_index)

    @property
    def container(self) -> str:
        """The container of the DAG's results."""
        return self.container_for("results")

    def container_for(self, role: ContainerRole) -> str:
        """Return the name of one of the DAG's own containers: no other DAG's things, and no other Airflow's, are in it.

        :param role: what it holds.
        """
        return container_name(self.dag_id, self.instance, role)

    def container_marks(self, version: str, role: ContainerRole) -> dict[str, str]:
        """Return the metadata of such a container, by which the sweep knows it: HTTP headers, so ASCII alone.

        :param version: this package's.
        """
        dag_id, instance = (quote(text, safe="") for text in (self.dag_id, self.instance))
        return {CONTAINER_DAG: dag_id, INSTANCE: instance, CONTAINER_ROLE: role, VERSION: version}

    @property
    def folder(self) -> str:
        """The DAG's folder in a container that the user named, which may serve many DAGs and many Airflows."""
        return digest(self.instance, self.dag_id)

    def metadata(self, version: str, try_number: int) -> dict[str, str]:
        """Return what a pool or a job bears, for people and for the sweep.

        :param version: this package's.
        """
        return {
            MAKER: self.mark,
            INSTANCE: self.instance,
            VERSION: version,
            "dag_id": self.dag_id,
            "run_id": self.run_id,
            "task_id": self.task_id,
            "try_number": str(try_number),
            **({"map_index": str(self.map_index)} if self.map_index >= 0 else {}),
        }


@dataclass(frozen=True)
class Attempt:
    """One submission of a step: the epoch that a person's clear starts, and the number within it.

    :param epoch: 1 for the first; one more each time that a person clears the task.
    :param number: 1 for the first; one more after each attempt that failed and was reported.
    """

    epoch: int = 1
    number: int = 1

    def __str__(self) -> str:
        return f"e{self.epoch}-a{self.number}"

    @classmethod
    def parse(cls, text: str) -> Attempt | None:
        """Read what ``str`` wrote; None where the text is something else."""
        match = re.fullmatch(r"e(\d+)-a(\d+)", text)
        return cls(int(match[1]), int(match[2])) if match else None

    @property
    def order(self) -> tuple[int, int]:
        return self.epoch, self.number


def digest(*exact: object, length: int = _HASH) -> str:
    """Return a short hash of the exact originals, stable everywhere."""
    text = json.dumps([str(part) for part in exact], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def slug(text: str, length: int) -> str:
    """Return what is left of a text in ``[A-Za-z0-9_-]``, at most ``length`` characters, never empty."""
    legal = re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9_-]", "-", text)).strip("-_")
    return legal[:length].strip("-_") or "x"


def run_slug(run_id: str, length: int) -> str:
    """Return a run id, its date kept readable: ``manual__2026-11-22T19:00:01+00:00`` -> ``manual-20261122T190001``."""
    short = re.sub(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(\.\d+)?(\+00:00|Z)?", r"\1\2\3T\4\5\6", run_id)
    return slug(short.replace("__", "-"), length)


def batch_id(readable: list[str], exact: tuple[object, ...], suffix: str = "") -> str:
    """Return a Batch id: the readable parts, shortened evenly where they are too long, a hash, and a suffix.

    :param readable: at least one part, the most important first.
    :param exact: the originals that the id stands for.
    :param suffix: kept whole at the end, such as ``e1-a2``.
    """
    tail = "-".join(part for part in (digest(*exact), suffix) if part)
    # Room is kept for the longest suffix, so that the readable part is the same whatever the suffix is.
    room = MAX_BATCH_ID - _HASH - _SUFFIX - len(readable) - 1
    parts = [slug(part, MAX_BATCH_ID) for part in readable]
    # The longest part gives way first, so that short ones stay whole.
    while sum(map(len, parts)) > room:
        longest = max(range(len(parts)), key=lambda index: len(parts[index]))
        parts[longest] = parts[longest][:-1]
    return "-".join([part.strip("-_") or "x" for part in parts] + [tail])


def setup_suffix(epoch: int, number: int = 1) -> str:
    """Return how the id of one pool or job of a family ends.

    :param number: 2 and more where Azure still holds the id before it, being deleted.
    """
    return f"e{epoch}" + (f"-{number}" if number > 1 else "")


def setup_order(suffix: str) -> tuple[int, int] | None:
    """Read what :func:`setup_suffix` wrote: epoch and number; None where the text is something else."""
    match = re.fullmatch(r"e(\d+)(?:-(\d+))?", suffix)
    return (int(match[1]), int(match[2] or 1)) if match else None


def family_of(entity_id: str) -> str:
    """Return the family of a pool or a job that a set-up made: the same for all that its tries and epochs make."""
    match = re.fullmatch(r"(.+-)e\d+(?:-\d+)?", entity_id)
    return match[1] if match else entity_id


def step_id(task_id: str, map_index: int, attempt: Attempt) -> str:
    """Return the Batch task's id of one attempt at a step, unique within its job."""
    name = task_id.rpartition(".")[2]
    return batch_id([name] if map_index < 0 else [name, str(map_index)], (task_id, map_index), str(attempt))


def step_family(task_id: str, map_index: int) -> str:
    """Return what the Batch task ids of all attempts at one step begin with."""
    return step_id(task_id, map_index, Attempt()).removesuffix(str(Attempt()))


def container_name(dag_id: str, instance: str, role: ContainerRole = "results") -> str:
    """Return the name of the Blob container that holds the results, or other things, of one DAG of one Airflow."""
    head = CONTAINER_PREFIX + _ROLE_NAMES[role]
    readable = re.sub(r"[^a-z0-9]+", "-", dag_id.lower()).strip("-") or "x"
    tail = digest(instance, dag_id) if role == "results" else digest(instance, dag_id, role)
    return f"{head}{readable[: MAX_CONTAINER - len(head) - len(tail) - 1].strip('-')}-{tail}"


def run_prefix(run_id: str, scope: str, map_index: int = -1) -> str:
    """Return the folder, in a container, of one run's results: ``<run>/<scope>``.

    :param map_index: of the set-up task, where it is mapped.
    """
    index = "" if map_index < 0 else f"-{map_index}"
    return f"{run_slug(run_id, 60)}-{digest(run_id, length=6)}/{slug(scope, 100)}{index}-{digest(scope, length=6)}"


def result_folder(task_id: str, group: str, map_index: int) -> str:
    """Return the folder, in a run's, of one task's results: ``1_extract``, and ``1_extract[3]`` where it is mapped.

    Named by the task and not by its step: two tasks of one run may well run the same step.

    :param group: the task group of the run's set-up task; empty where that is in none.
    """
    if not group or task_id.startswith(group + "."):
        name = task_id[len(group) + 1 :] if group else task_id
    else:
        name = f"{task_id}-{digest(task_id, length=6)}"
    return name if map_index < 0 else f"{name}[{map_index}]"
