"""What one task has made on the account: its pool and its job, each claimed once, and removed by nobody else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from airflow_batchwrap.attempts.claim import CONTENT, MAKER, Claim
from airflow_batchwrap.exceptions import BatchWrapError
from airflow_batchwrap.naming import INSTANCE, WORKSPACE, family_of
from airflow_batchwrap.version import __version__

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.hooks.views import EntityView
    from airflow_batchwrap.naming import Maker
    from airflow_batchwrap.workspace import Workspace

Noun = Literal["pool", "job"]


@dataclass
class Belongings:
    """The pools and jobs of one task in one run.

    :param maker: which task.
    :param try_number: of the Airflow task.
    :param has_made: whether there may be anything to remove, should this try fail.
    """

    hook: BatchWrapHook
    maker: Maker
    try_number: int
    log: Any
    has_made: bool = False

    def claim(
        self,
        noun: Noun,
        epoch: int,
        content: str,
        make: Callable[[str, Mapping[str, str]], bool],
        *,
        named: str | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> str:
        """Return the id of the pool or the job that this task has, or of a new one.

        :param content: what it has to be made for: one that was made for something else is replaced.
        :param make: makes one of an id and with some metadata; returns False where the id is taken.
        :param named: the id that a user has chosen for it; by default it is derived.
        :param extra: metadata of the caller's.
        :raises TryAgain: the service does not answer, or holds the ids of earlier tries, being deleted.
        :raises PoolError: a pool with the chosen id is somebody else's.
        """
        metadata = {**self.maker.metadata(__version__, self.try_number), CONTENT: content, **(extra or {})}

        def make_one(entity_id: str) -> bool:
            self.has_made = True
            return make(entity_id, metadata)

        claim = self._claim(noun, epoch, content, make_one)
        return claim.take_named(named) if named else claim.take()

    def foresee(self, noun: Noun, epoch: int, content: str) -> str:
        """Return the id that :meth:`claim` is about to return, as far as can be told; nothing is made."""
        return self._claim(noun, epoch, content, lambda _: False).foresee()

    def _claim(self, noun: Noun, epoch: int, content: str, make: Callable[[str], bool]) -> Claim:
        return Claim(
            noun=noun,
            family=self.maker.family,
            epoch=epoch,
            maker=self.maker.mark,
            content=content,
            find=lambda prefix: self.find(noun, prefix),
            make=make,
            delete=self._delete(noun),
            log=self.log,
        )

    def find(self, noun: Noun, prefix: str | None = None) -> Sequence[EntityView]:
        """Return the pools or jobs whose id begins with ``prefix``, the task's own family by default."""
        find = self.hook.find_pools if noun == "pool" else self.hook.find_jobs
        found = find(self.maker.family if prefix is None else prefix)
        self.has_made = self.has_made or bool(found)
        return found

    def remove(self, *nouns: Noun, spare: Collection[str] = ()) -> list[str]:
        """Delete whatever this task made in this run, known to it or not: an answer may have been lost, or cut short.

        :param spare: the ids of what stays.
        :return: what could not be deleted.
        """
        left: list[str] = []
        for noun in nouns:
            try:
                for item in self.find(noun):
                    mine = item.metadata.get(MAKER) == self.maker.mark and item.entity_id not in spare
                    if mine and item.state != "deleting":
                        self._delete(noun)(item.entity_id)
                        self.log.info("Removed %s %s", noun, item.entity_id)
            except BatchWrapError as error:
                left.append(f"perhaps a {noun} {self.maker.family}... ({error})")
                break  # the service does not answer: the next call would wait as long, and in vain
        return left

    def _delete(self, noun: Noun) -> Callable[[str], bool]:
        return self.hook.delete_pool if noun == "pool" else lambda job_id: delete_job(self.hook, self.maker, job_id)


@dataclass(frozen=True)
class Removal:
    """What became of a workspace's job and pool.

    :param job_id: the job that was removed; None where there was none.
    :param pool_id: the pool that was removed; None where there was none, or where it is not the run's.
    :param failed: what could not be removed, and why.
    """

    job_id: str | None = None
    pool_id: str | None = None
    failed: tuple[str, ...] = ()


def delete_job(hook: BatchWrapHook, maker: Maker, job_id: str) -> bool:
    """Delete a job, and the secrets that were uploaded for its Batch tasks; return whether there was such a job."""
    was_there = hook.delete_job(job_id)
    hook.delete_secrets(maker, job_id)
    return was_there


def manifest_jobs(hook: BatchWrapHook, workspace: Workspace, instance: str) -> list[str]:
    """Return the jobs that manifests have opened on a workspace, whichever try or epoch of its set-up it came from.

    :param instance: the name of this Airflow.
    """
    if not workspace.job_id:
        return []
    marks = {INSTANCE: instance, WORKSPACE: family_of(workspace.job_id)}
    jobs = hook.find_jobs_of_pool(workspace.pool_id)
    return [job.entity_id for job in jobs if marks.items() <= job.metadata.items()]


def remove_workspace(hook: BatchWrapHook, log: Any, workspace: Workspace, maker: Maker) -> Removal:
    """Delete a workspace's job, and its pool if the run owns it; the failure of one does not keep the other.

    A manifest ends its own job. Where its Airflow task was ended while the triggerer was dead, or had not taken it up,
    nobody did: without a pool it would count against the account's quota of jobs until its wall clock.

    :param maker: whose secrets go with the job.
    """
    removed: dict[Noun, str] = {}
    failed: list[str] = []
    try:
        for job_id in manifest_jobs(hook, workspace, maker.instance):
            if delete_job(hook, maker, job_id):
                log.info("Removed job %s, which a manifest has left", job_id)
    except BatchWrapError as error:
        failed.append(f"perhaps jobs of manifests on pool {workspace.pool_id} ({error})")
    ends: list[tuple[Noun, str, Callable[[str], bool]]] = [
        ("job", workspace.job_id, lambda job_id: delete_job(hook, maker, job_id))
    ]
    if workspace.owns_pool:
        ends.append(("pool", workspace.pool_id, hook.delete_pool))
    for noun, entity_id, delete in ends:
        try:
            if entity_id and delete(entity_id):
                removed[noun] = entity_id
                log.info("Removed %s %s", noun, entity_id)
        except BatchWrapError as error:
            failed.append(f"{noun} {entity_id} ({error})")
    return Removal(removed.get("job"), removed.get("pool"), tuple(failed))
