"""The set-up that all ways to a pool share: upload, open the run's job, wait for nodes, undo on failure."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_batchwrap.exceptions import BatchWrapError, PoolError, TryAgain
from airflow_batchwrap.links.pool import JobLink, PoolLink, push_pool_links
from airflow_batchwrap.operators.base import BatchWrapOperator
from airflow_batchwrap.operators.jobs import JobOperator
from airflow_batchwrap.operators.superseded import leave_if_superseded
from airflow_batchwrap.triggers.cancel import TaskIdentity, state_in_time, was_ended, was_ended_for_good
from airflow_batchwrap.waiting import TRIGGER_PADDING, pause_after
from airflow_batchwrap.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_batchwrap.hooks.views import Verdict


class SetUpOperator(JobOperator):
    """Get a pool, open a job on it, upload what the steps need; the end is a workspace.

    :param pool_wait_timeout: how long to wait for usable nodes.
    :param min_nodes: how many usable nodes are enough; None for the class's own default.
    """

    template_fields: Sequence[str] = (*JobOperator.template_fields, "pool_wait_timeout")
    setting_names: Sequence[str] = (*JobOperator.setting_names, "pool_wait_timeout")
    operator_extra_links = (PoolLink(), JobLink())

    def __init__(
        self,
        *,
        pool_wait_timeout: timedelta | str = timedelta(minutes=30),
        min_nodes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pool_wait_timeout = pool_wait_timeout
        self.min_nodes = min_nodes
        # What this process has done so far; nothing of it outlives a deferral.
        self._context: Context | None = None
        self._made: Workspace | None = None
        self._ended = ""

    @abstractmethod
    def acquire_pool(self, context: Context, epoch: int) -> tuple[str, bool]:
        """Return a pool's id, and whether this run owns it.

        :raises PoolError: it cannot be had.
        """

    def nodes_needed(self, context: Context) -> int | None:
        """Return how many usable nodes end the wait; None for all that the pool asks for."""
        return self.min_nodes

    def pool_wait(self, context: Context) -> timedelta:
        """Return how long to wait for them."""
        return self.settings.pool_wait_timeout

    def execute(self, context: Context) -> dict[str, Any]:
        """Make the workspace and wait for nodes."""
        from airflow_batchwrap.hooks.views import judge_pool

        began = time.time()
        self.has_made = context["ti"].try_number > 1
        self._context, self._made, self._ended = context, None, ""
        workspace: Workspace | None = None
        try:
            settings, needed, pool_wait = self.settings, self.nodes_needed(context), self.pool_wait(context)
            archive, files = self.pack(context), self.input_files(context)
            epoch = self.epoch(context)
            pool_id, owned = self.acquire_pool(context, epoch)
            self._made = workspace = Workspace(pool_id, owned, job_id="", epoch=epoch)
            self._made = workspace = self.open_workspace(context, workspace, archive, files)
            push_pool_links(context, self.hook, workspace)
            deadline = time.time() + pool_wait.total_seconds()
            if self.execution_timeout and self.deferrable:
                # Airflow forgets it while a task is deferred.
                deadline = min(deadline, began + self.execution_timeout.total_seconds())
            inline = min(deadline, time.time() + settings.inline_wait.total_seconds())
            verdict = self._wait(workspace, needed, inline if self.deferrable else deadline)
            if self._ended:
                raise PoolError(f"Waiting for pool {pool_id!r} was ended with the Airflow task ({self._ended}).")
            if verdict is None and self.deferrable and time.time() < deadline:
                self._defer(context, workspace, needed, deadline)
            if verdict is None:
                verdict = judge_pool(self.hook.view_pool(pool_id), needed)
            return self._settle(context, workspace, verdict)
        except (Exception, AirflowTaskTimeout):
            if not self._ended:
                leave_if_superseded(context, self.log)
            self._undo(context, workspace)
            raise

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on after the wait in the triggerer."""
        from airflow_batchwrap.hooks.views import Verdict

        workspace = Workspace.from_xcom(event["resume"]["workspace"])
        self._context, self._made, self._ended = context, workspace, ""
        try:
            if error := event.get("error"):
                raise PoolError(error)
            verdict = Verdict(**event["verdict"]) if event.get("verdict") else None
            return self._settle(context, workspace, verdict)
        except (Exception, AirflowTaskTimeout):
            if not self._ended:
                leave_if_superseded(context, self.log)
            self._undo(context, workspace)
            raise

    def on_kill(self) -> None:
        """Remove what this set-up made, if a person has ended it: Airflow runs no teardown then.

        A worker that is shut down leaves it alone, and so does one whose task was cleared: the next try takes it again.
        """
        context = self._context
        if context is None or self._ended:
            return
        state = state_in_time(TaskIdentity(**self.identity(context)).state)
        if not was_ended(state):
            self.log.info("Left the pool and the job alone: Airflow has the set-up as %s", state)
            return
        self._ended = state
        if was_ended_for_good(state):
            self.log.info("Removing what this set-up made: it was ended (%s)", state)
            self._undo(context, self._made)

    # --- the parts

    def _wait(self, workspace: Workspace, needed: int | None, until: float) -> Verdict | None:
        """Look at the pool until there is a verdict; None where the time is up."""
        from airflow_batchwrap.hooks.views import judge_pool

        began, told = time.monotonic(), ""
        while not self._ended:
            try:
                view = self.hook.view_pool(workspace.pool_id)
                if (line := view.progress()) != told:
                    told = line
                    self.log.info("Pool %s: %s", workspace.pool_id, line)
                verdict = judge_pool(view, needed)
                if verdict.answer != "wait":
                    return verdict
            except TryAgain as error:  # a missed look fails nothing; the deadline does
                self.log.warning("%s", error)
            left = until - time.time()
            if left <= 0:
                return None
            time.sleep(min(pause_after(time.monotonic() - began, self.settings.poll_interval.total_seconds()), left))
        return None

    def _defer(self, context: Context, workspace: Workspace, needed: int | None, deadline: float) -> None:
        from airflow_batchwrap.triggers.pool import PoolTrigger

        trigger = PoolTrigger(
            pool_id=workspace.pool_id,
            min_nodes=needed,
            job_id=workspace.job_id,
            owns_pool=workspace.owns_pool,
            identity=self.identity(context),
            deadline=deadline,
            poll_interval=self.settings.poll_interval.total_seconds(),
            resume={"workspace": workspace.to_xcom()},
            **self.connections(),
        )
        timeout = timedelta(seconds=max(0.0, deadline - time.time()) + TRIGGER_PADDING)
        self.defer(trigger=trigger, method_name="execute_complete", timeout=timeout)

    def _settle(self, context: Context, workspace: Workspace, verdict: Verdict | None) -> dict[str, Any]:
        """Return the workspace of a pool that is ready.

        :raises PoolError: it is not.
        """
        if verdict is not None and verdict.answer == "ready":
            # So that `create.output["pool_id"]` names the pool for another workflow.
            context["ti"].xcom_push(key="pool_id", value=workspace.pool_id)
            context["ti"].xcom_push(key="job_id", value=workspace.job_id)
            return workspace.to_xcom()
        if verdict is None or verdict.answer == "wait":
            told = self.hook.view_pool(workspace.pool_id).progress()
            limit = self.pool_wait(context)
            name = "pool_wait_timeout"
            if self.execution_timeout and self.execution_timeout < limit:
                limit, name = self.execution_timeout, "execution_timeout"
            raise PoolError(
                f"Pool {workspace.pool_id!r} was not ready within {limit.total_seconds() / 60:.3g} min: {told}. "
                f"Raise {name}, or accept fewer nodes with min_nodes."
            )
        why = verdict.why
        if verdict.node_id:
            for name in ("stderr", "stdout"):
                tail = self.hook.tail_node_file(workspace.pool_id, verdict.node_id, f"startup/{name}.txt").strip()
                if tail:
                    why += f"\nThe end of the start task's {name}:\n{tail}"
                    break
        raise PoolError(why)

    def _undo(self, context: Context, workspace: Workspace | None) -> None:
        """Remove what this set-up made: after a set-up that failed, Airflow runs no teardown."""
        if self._ended and not was_ended_for_good(self._ended):
            return  # cleared: the next try takes it again
        left = remove(self, workspace)["failed"] if workspace is not None else []
        if not left and self.has_made:
            left = self.remove_made(context, "job", "pool")
        if left:
            self.log.error("Left behind after the failed set-up: %s", "; ".join(left))


def remove(operator: BatchWrapOperator, workspace: Workspace) -> dict[str, Any]:
    """Delete a workspace's job, and its pool if the run owns it; one's failure does not keep the other.

    :return: ``job_id`` and ``pool_id`` that were removed, None where there was none; ``failed``, what could not be.
    """
    removed: dict[str, Any] = {"job_id": None, "pool_id": None, "failed": []}
    ends: list[tuple[str, str, Callable[[str], bool]]] = [("job_id", workspace.job_id, operator.hook.delete_job)]
    if workspace.owns_pool:
        ends.append(("pool_id", workspace.pool_id, operator.hook.delete_pool))
    for name, entity_id, delete in ends:
        noun = name.removesuffix("_id")
        if not entity_id:
            continue
        try:
            if delete(entity_id):
                removed[name] = entity_id
                operator.log.info("Removed %s %s", noun, entity_id)
        except BatchWrapError as error:
            removed["failed"].append(f"{noun} {entity_id} ({error})")
    return removed
