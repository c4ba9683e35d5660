"""What runs left behind: pools and jobs with this package's metadata, whose DAG run is over; and unused blobs.

The operator and the command line share this; they differ in how they ask Airflow about a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from airflow_batchwrap.exceptions import BatchWrapError
from airflow_batchwrap.instance import why_not_ours
from airflow_batchwrap.naming import CONTAINER_DAG, INSTANCE, MAKER, VERSION

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.hooks.unused import OwnContainer
    from airflow_batchwrap.hooks.views import EntityView

RunState = Literal["over", "live", "unknown"]
#: Returns, for a DAG's id and a run's id, what became of the run.
Ask = Callable[[str, str], RunState]


@dataclass(frozen=True)
class Finding:
    """A pool or a job of this package, or the unused blobs of a container of it, and what is to become of it.

    :param noun: "pool", "job" or "blobs".
    :param entity_id: its id; of blobs, their container.
    :param age: since it was made; of blobs, since the oldest was written or used again; of another Airflow's
        container, since that was last changed.
    :param goes: whether it is an orphan.
    :param why: why it goes, or stays.
    :param removed: whether it was deleted now.
    :param unused: which blobs.
    :param instance: the name of the Airflow that made it; empty where it bears none.
    :param others: whether that is not the Airflow that sweeps, which leaves it alone.
    """

    noun: str
    entity_id: str
    dag_id: str
    run_id: str
    task_id: str
    version: str
    age: timedelta
    goes: bool
    why: str
    removed: bool = False
    unused: OwnContainer | None = field(default=None, repr=False)
    instance: str = ""
    others: bool = False

    @property
    def age_text(self) -> str:
        """The age, for people."""
        hours, seconds = divmod(int(self.age.total_seconds()), 3600)
        return f"{hours // 24} d {hours % 24} h" if hours >= 24 else f"{hours} h {seconds // 60} min"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON; the age in seconds."""
        known = {name: value for name, value in self.__dict__.items() if name != "unused"}
        return {**known, "age": round(self.age.total_seconds())}


def sweep(
    hook: BatchWrapHook,
    ask: Ask,
    older_than: timedelta | None,
    unused_for: timedelta | None,
    *,
    instance: str,
    delete: bool,
) -> list[Finding]:
    """Look at pools and jobs, then at Blob, and remove what goes where that is asked for.

    What costs most goes first: a storage account that does not answer keeps no pool.

    :param older_than: as :func:`look`.
    :param unused_for: as :func:`look_for_unused`; None leaves Blob alone.
    :param instance: the name of the Airflow that is asked; what another one made, or nobody knows who, is left alone.
    :param delete: whether anything is removed.
    """
    found = look(hook, ask, instance, older_than)
    found = remove(hook, found) if delete else found
    unused = [] if unused_for is None else look_for_unused(hook, unused_for, instance)
    return found + (remove(hook, unused) if delete else unused)


def look(hook: BatchWrapHook, ask: Ask, instance: str, older_than: timedelta | None = None) -> list[Finding]:
    """Return this package's pools and jobs, each with what is to become of it; nothing is changed.

    A run that Airflow knows decides: what belongs to one that is over goes, what belongs to one that goes on stays,
    however old. Airflow is asked only of what itself has made: another one has runs of the same names.

    :param ask: what became of a run.
    :param instance: as :func:`sweep`.
    :param older_than: let go of what a run that Airflow does not know made, once it is older than this; None leaves it
        alone.
    """
    now, asked = datetime.now(UTC), cache(ask)
    jobs = hook.all_jobs()
    found = [_judge("job", job, asked, instance, older_than, now) for job in jobs if MAKER in job.metadata]
    going = {finding.entity_id for finding in found if finding.goes}
    staying = [job for job in jobs if job.entity_id not in going]
    for pool in hook.all_pools():
        if MAKER in pool.metadata:
            finding = _judge("pool", pool, asked, instance, older_than, now)
            if finding.goes and (user := _user(hook, pool.entity_id, staying)):
                finding = replace(finding, goes=False, why=f"{finding.why}, but job {user} works on it")
            found.append(finding)
    return sorted(found, key=lambda finding: (not finding.goes, finding.noun, finding.entity_id))


def look_for_unused(hook: BatchWrapHook, unused_for: timedelta, instance: str) -> list[Finding]:
    """Return, for each DAG's container that has any, the archives, inputs, calls and secrets that nothing uses.

    What another Airflow's containers hold is not looked at.

    :param unused_for: since they were written, or used again; what a run said that it needs longer stays in any case.
    :param instance: as :func:`sweep`.
    """
    now, found = datetime.now(UTC), []
    for name, marks, changed in hook.own_containers():
        theirs, dag_id, version = (marks.get(key, "") for key in (INSTANCE, CONTAINER_DAG, VERSION))
        if left := why_not_ours(marks, instance):
            whose = dag_id, "", "", version
            found.append(Finding("blobs", name, *whose, now - changed, False, left, instance=theirs, others=True))
            continue
        container = hook.find_unused(name, marks, unused_for)
        if not container.unused:
            continue
        age = now - min(blob.last_modified for blob in container.unused)
        used = "nobody needs them" if container.role == "secrets" else f"not used for {_length(unused_for)}"
        why = f"{len(container.unused)} of {container.count} blobs, {container.size / 1e6:.1f} MB: {used}"
        found.append(Finding("blobs", name, dag_id, "", "", version, age, True, why, False, container, theirs))
    return found


def remove(hook: BatchWrapHook, findings: Sequence[Finding]) -> list[Finding]:
    """Delete the orphans among these; the failure of one keeps no other.

    :return: the findings, with what was removed, and why something could not be.
    """
    calls = {"job": hook.delete_job, "pool": hook.delete_pool}
    done = []
    for finding in findings:
        if finding.goes:
            try:
                if finding.unused is not None:
                    hook.delete_unused(finding.unused)
                else:
                    calls[finding.noun](finding.entity_id)
                finding = replace(finding, removed=True)
            except BatchWrapError as error:
                finding = replace(finding, why=f"{finding.why}; it could not be removed: {error}")
        done.append(finding)
    return done


def summary(findings: Sequence[Finding], delete: bool) -> str:
    """Return one line: how many there are, go, and went, and how many are not this Airflow's."""
    going = sum(finding.goes for finding in findings)
    stay, containers = f"{len(findings) - going} of them stay", sum(item.noun == "blobs" for item in findings)
    if others := sum(finding.others for finding in findings):
        stay += f" ({others} not this Airflow's)"
    what = f"{len(findings) - containers} pools and jobs of batchwrap"
    what += f", {containers} containers of uploads" if containers else ""
    if delete:
        return f"{what}: {sum(item.removed for item in findings)} removed, {stay}"
    return f"{what}: {going} would go, {stay}; nothing was removed"


def _judge(
    noun: str, item: EntityView, ask: Ask, instance: str, older_than: timedelta | None, now: datetime
) -> Finding:
    made_by = {name: item.metadata.get(name, "") for name in ("dag_id", "run_id", "task_id", VERSION, INSTANCE)}
    age = now - item.created if item.created else timedelta(0)
    goes, why = False, why_not_ours(item.metadata, instance)
    others = bool(why)
    if not others:
        goes, why = _fate(made_by["dag_id"], made_by["run_id"], age, ask, older_than)
    ids = made_by["dag_id"], made_by["run_id"], made_by["task_id"], made_by[VERSION]
    return Finding(noun, item.entity_id, *ids, age, goes, why, instance=made_by[INSTANCE], others=others)


def _fate(dag_id: str, run_id: str, age: timedelta, ask: Ask, older_than: timedelta | None) -> tuple[bool, str]:
    """Return whether what a run of this Airflow made goes, and why."""
    state = ask(dag_id, run_id) if dag_id and run_id else "unknown"
    if state != "unknown":
        return state == "over", "its run is over" if state == "over" else "its run goes on"
    goes = older_than is not None and age >= older_than
    why = "its run is not known to this Airflow"
    return goes, f"{why}, and it is older than {_length(older_than)}" if goes and older_than is not None else why


def _user(hook: BatchWrapHook, pool_id: str, staying: Sequence[EntityView]) -> str:
    """Return a job that keeps a pool in use: its run goes on, or it has work; whoever's it is."""
    for job in staying:
        if job.pool_id.lower() != pool_id.lower() or job.state == "completed":
            continue
        if MAKER in job.metadata or hook.has_work(job.entity_id):
            return job.entity_id
    return ""


def _length(length: timedelta) -> str:
    return str(length).removesuffix(", 0:00:00")
