"""The set-up that all ways to a pool share: upload, open the run's job, wait for nodes, undo on failure."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.attempts.belongings import Belongings, manifest_jobs, remove_workspace
from airflow_batchwrap.attempts.retrying import is_tried_again
from airflow_batchwrap.attempts.trying import Try
from airflow_batchwrap.exceptions import BatchWrapError, NoCapacity, PoolError
from airflow_batchwrap.links.pool import JobLink, PoolLink, push_pool_links
from airflow_batchwrap.operators.jobs import JobOperator
from airflow_batchwrap.triggers.cancel import was_ended_for_good
from airflow_batchwrap.triggers.events import PoolEvent
from airflow_batchwrap.waiting import Deadline
from airflow_batchwrap.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_batchwrap.hooks.poolwatch import PoolWatch
    from airflow_batchwrap.hooks.views import Verdict
    from airflow_batchwrap.triggers.base import WaitTrigger

_RETURNED = "batchwrap_returned"  # state store: the pool and the job of the workspace that was returned last


@dataclass
class SetUpTry(Try):
    """One try of a set-up.

    :param belongings: what the task has made in this run.
    :param workspace: what there is of it; None until there is a pool.
    :param needed: how many usable nodes end the wait; None for all that the pool asks for.
    :param watch: how the pool comes along, where the worker waits.
    """

    belongings: Belongings | None = None
    workspace: Workspace | None = None
    needed: int | None = None
    watch: PoolWatch | None = None


class SetUpOperator(JobOperator[SetUpTry, PoolEvent]):
    """Get a pool, open a job on it, upload what the steps need; the end is a workspace.

    Where the account has no room for the pool, its nodes or the job now (a quota is used up, Azure has no machines), it
    is asked for again, with longer and longer pauses, until ``pool_wait_timeout`` is over: it counts for room and for
    usable nodes together.

    :param min_nodes: how many usable nodes are enough; None for the class's own default.
    :param max_start_task_failures: on how many nodes the start task may fail; None for as many as leave enough others.
    """

    operator_extra_links = (PoolLink(), JobLink())
    event = PoolEvent

    def __init__(
        self,
        *,
        min_nodes: int | None = None,
        max_start_task_failures: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.min_nodes = min_nodes
        self.max_start_task_failures = max_start_task_failures

    @abstractmethod
    def acquire_pool(self, work: SetUpTry, belongings: Belongings, epoch: int) -> tuple[str, bool]:
        """Return a pool's id, and whether this run owns it.

        :raises PoolError: it cannot be had.
        :raises NoCapacity: there is no room for it now.
        """

    def foresee_pool(self, work: SetUpTry, belongings: Belongings, epoch: int) -> str:
        """Return the id of the pool that :meth:`acquire_pool` is to make or find; empty where nobody knows."""
        return ""

    def nodes_needed(self, context: Context) -> int | None:
        """Return how many usable nodes end the wait; None for all that the pool asks for."""
        return self.min_nodes

    def start_task_failures(self, context: Context) -> int | None:
        """Return on how many nodes the start task may fail; None for as many as leave enough others."""
        return self.max_start_task_failures

    def pool_wait(self, context: Context) -> timedelta:
        """Return how long to wait for them."""
        return self.settings.pool_wait_timeout

    # --- the wait

    def new_try(self, context: Context) -> SetUpTry:
        """Return a try that has done nothing yet."""
        return SetUpTry(context)

    def resumed(self, context: Context, resume: Mapping[str, Any]) -> SetUpTry:
        """Return the try that goes on after the wait in the triggerer."""
        there = resume["workspace"]
        return SetUpTry(
            context,
            workspace=Workspace.from_xcom(there) if there else None,
            needed=resume.get("needed"),
        )

    def resume(self, work: SetUpTry) -> dict[str, Any]:
        """Return the workspace as far as there is one, and what is waited for."""
        there = work.workspace.to_xcom() if work.workspace else None
        return {"workspace": there, "needed": work.needed}

    def kept(self, work: SetUpTry) -> dict[str, Any]:
        """Return what is there already: it goes, should the wait for the rest fail."""
        return self.resume(work)

    def asking_again(self, context: Context, kept: Mapping[str, Any]) -> SetUpTry:
        """Return the try that asks for the rest."""
        return self.resumed(context, kept)

    def begin(self, work: SetUpTry) -> PoolEvent | None:
        """Open the job and get the pool."""
        work.deadline = work.deadline or self.room_deadline(work)
        self._open(work)
        return None

    def room_deadline(self, work: SetUpTry) -> Deadline:
        """Return until when the wait lasts, for room and for nodes together."""
        limit = self.pool_wait(work.context)
        return self.or_execution_timeout(work, Deadline.after(time.time(), "pool_wait_timeout", limit))

    def look(self, work: SetUpTry) -> PoolEvent | None:
        """Look at the pool and its nodes; ask again for nodes that there was no room for."""
        from airflow_batchwrap.hooks.poolwatch import PoolWatch

        workspace = self._of(work)
        pause = self.settings.poll_interval.total_seconds()
        work.watch = watch = work.watch or PoolWatch(
            work.needed, self.log, self.start_task_failures(work.context), first_pause=pause
        )
        view = self.hook.view_pool(workspace.pool_id)
        verdict = watch.judge(view)
        if verdict.answer in ("ready", "failed"):
            return PoolEvent(kind="judged", verdict=verdict)
        if workspace.owns_pool and watch.is_to_ask(verdict) and work.deadline is not None:
            self.hook.ask_again(view, timedelta(seconds=work.deadline.left))
        return None

    def trigger(self, work: SetUpTry, **common: Any) -> WaitTrigger:
        """Return what looks at the pool in the triggerer."""
        from airflow_batchwrap.triggers.pool import PoolTrigger

        borne = self.start_task_failures(work.context)
        return PoolTrigger(min_nodes=work.needed, max_start_task_failures=borne, **self._made(work), **common)

    def room_trigger(self, work: SetUpTry, **common: Any) -> WaitTrigger:
        """Return what waits until it is time to ask again, and removes what is there should a person end it."""
        return super().room_trigger(work, **self._made(work), **common)

    # --- the end

    def settle(self, work: SetUpTry, event: PoolEvent) -> dict[str, Any]:
        """Return the workspace of a pool that is ready.

        :raises PoolError: it is not, and has to be mended.
        :raises TryAgain: it is not, for want of room, or of nodes that were lost.
        """
        from airflow_batchwrap.hooks.views import judge_pool

        if event.kind == "error":
            raise self.looking_failed(event)
        workspace = self._of(work)
        verdict = event.verdict
        if verdict is None:
            view = self.hook.view_pool(workspace.pool_id)
            verdict = judge_pool(view, work.needed, self.start_task_failures(work.context))
        if verdict.answer == "wait":
            raise self._late(work, workspace)
        if verdict.answer != "ready":
            raise verdict.error(self._start_task_output(workspace, verdict))
        work.context["task_state_store"].set(_RETURNED, [workspace.pool_id, workspace.job_id])
        # So that `create.output["pool_id"]` names the pool for another workflow.
        work.context["ti"].xcom_push(key="pool_id", value=workspace.pool_id)
        work.context["ti"].xcom_push(key="job_id", value=workspace.job_id)
        return workspace.to_xcom()

    def end(self, work: SetUpTry) -> None:
        """Remove what this set-up made: Airflow runs no teardown for a set-up that a person has ended.

        One that was cleared leaves it: the next try takes it again.
        """
        if was_ended_for_good(work.ended):
            self.log.info("Removing what this set-up made")
            self._remove(work)

    def ended_error(self, work: SetUpTry) -> BatchWrapError:
        """Return the error of a wait that a person has ended."""
        pool = f"pool {work.workspace.pool_id!r}" if work.workspace else "a pool"
        return PoolError(f"Waiting for {pool} was ended with the Airflow task ({work.ended}).")

    def undo(self, work: SetUpTry, error: BaseException) -> None:
        """Remove what this set-up made: after a set-up that failed, Airflow runs no teardown.

        What another try goes on with stays. So does what the set-up has returned before, when it succeeded and was
        cleared after that, while steps that were not cleared run there. It empties itself, and the sweep removes it.
        """
        if work.ended:
            if was_ended_for_good(work.ended):
                self._remove(work)
        elif not is_tried_again(error, work.context):
            self._remove(work, spare=self._still_used(work))

    # --- the parts

    def _open(self, work: SetUpTry) -> None:
        """Get the pool, and open the job.

        :raises NoCapacity: there is no room for one of them now; what could be had is there.
        """
        context = work.context
        work.belongings = belongings = self.belongings(context)
        belongings.has_made = work.number > 1 or work.asked > 0
        work.needed = self.nodes_needed(context)
        archive, files = self.pack(context), self.input_files(context)
        epoch = self.epoch(context)
        opening, bare = self.opening(context, belongings), Workspace("", owns_pool=False, job_id="", epoch=epoch)
        if foreseen := self.foresee_pool(work, belongings, epoch):
            # The job first: it costs nothing, and may name a pool that is still to come. Without room for the job, the
            # nodes would be paid for in vain, and could keep those who have a job from getting theirs.
            laid, resource_files = opening.lay_out(replace(bare, pool_id=foreseen), archive, files)
            work.workspace = opening.open(laid, resource_files)
            pool_id, owned = self.acquire_pool(work, belongings, epoch)
            work.workspace = replace(work.workspace, pool_id=pool_id, owns_pool=owned)
            if pool_id != foreseen:  # the id was taken a moment ago, or is still held
                work.workspace = opening.open(work.workspace, resource_files)
        else:
            pool_id, owned = self.acquire_pool(work, belongings, epoch)
            work.workspace = replace(bare, pool_id=pool_id, owns_pool=owned)
            work.workspace = opening.workspace(work.workspace, archive, files)
        push_pool_links(context, self.hook, work.workspace)

    def _still_used(self, work: SetUpTry) -> list[str]:
        """Return the ids of the pool and the job that an earlier try has returned, where Batch tasks run there."""
        stored: Any = work.context["task_state_store"].get(_RETURNED)
        if not isinstance(stored, list):
            return []
        pool_id, job_id = map(str, stored)
        instance = self.maker(work.context).instance
        try:
            jobs = [job_id, *manifest_jobs(self.hook, Workspace(pool_id, owns_pool=True, job_id=job_id), instance)]
            return [pool_id, *jobs] if any(map(self.hook.has_work, jobs)) else []
        except BatchWrapError as error:
            self.log.warning("%s So pool %s stays: steps may run there.", error, pool_id)
            return [pool_id, job_id]

    def _remove(self, work: SetUpTry, spare: Collection[str] = ()) -> None:
        """Remove what this task made in this run.

        :param spare: the ids of what stays.
        """
        left: list[str] = []
        if (there := work.workspace) is not None:
            job_id = "" if there.job_id in spare else there.job_id
            mine = replace(there, job_id=job_id, owns_pool=there.owns_pool and there.pool_id not in spare)
            # On the way out there is no time to ask Airflow for its name again.
            maker = work.belongings.maker if work.belongings is not None else self.maker(work.context)
            left += remove_workspace(self.hook, self.log, mine, maker).failed
        if not left and work.belongings is not None and work.belongings.has_made:
            left = work.belongings.remove("job", "pool", spare=spare)
        if left:
            self.log.error("Left behind after the failed set-up: %s", "; ".join(left))

    def _late(self, work: SetUpTry, workspace: Workspace) -> BatchWrapError:
        progress = self.hook.view_pool(workspace.pool_id).progress()
        limit = work.deadline
        minutes = limit.limit.total_seconds() / 60 if limit else 0
        return NoCapacity(
            f"Pool {workspace.pool_id!r} was not ready within {minutes:.3g} min: {progress}. "
            f"Raise {limit.name if limit else 'pool_wait_timeout'}, or accept fewer nodes with min_nodes."
        )

    def _start_task_output(self, workspace: Workspace, verdict: Verdict) -> str:
        """Return the end of what a start task that failed has printed."""
        for name in ("stderr", "stdout") if verdict.node_id else ():
            tail = self.hook.tail_node_file(workspace.pool_id, verdict.node_id, f"startup/{name}.txt").strip()
            if tail:
                return f"\nThe end of the start task's {name}:\n{tail}"
        return ""

    @staticmethod
    def _made(work: SetUpTry) -> dict[str, Any]:
        """Return what is there: a person's end removes it."""
        there = work.workspace
        if there is None:
            return {"pool_id": ""}
        return {"pool_id": there.pool_id, "job_id": there.job_id, "owns_pool": there.owns_pool}

    @staticmethod
    def _of(work: SetUpTry) -> Workspace:
        if work.workspace is None:
            raise RuntimeError("The set-up has no pool yet.")
        return work.workspace
