"""Ways to a pool, and its end: create, use as it is, repurpose, delete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.attempts.belongings import remove_workspace
from airflow_batchwrap.config import PoolConfig
from airflow_batchwrap.exceptions import BatchWrapError, ConfigError, PoolError, TryAgain
from airflow_batchwrap.instance import refuse_anothers
from airflow_batchwrap.naming import INSTANCE, MAKER, SWEPT_ROLES, Maker, digest
from airflow_batchwrap.operators.base import BatchWrapOperator, Setting, Templated
from airflow_batchwrap.operators.setup import SetUpOperator
from airflow_batchwrap.version import __version__
from airflow_batchwrap.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_batchwrap.attempts.belongings import Belongings
    from airflow_batchwrap.operators.setup import SetUpTry


class CreatePoolOperator(SetUpOperator):
    """Create a pool for this run; its teardown deletes it.

    :param pool_config: a PoolConfig, a dict of its keys, or the path of a batch.json relative to the DAG file.
    :param pool_id: derived from the run by default. With one given there can be one run at a time.
    """

    def __init__(
        self,
        *,
        pool_config: Templated[PoolConfig | dict[str, Any] | str | Path | None] = None,
        pool_id: Templated[str | None] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # A PoolConfig renders its own templates; its repr, which Airflow's UI shows, hides what is secret in it.
        self.pool_config = PoolConfig.from_dict(pool_config) if isinstance(pool_config, dict) else pool_config
        self.pool_id = pool_id

    def config(self, context: Context) -> PoolConfig:
        """Return the validated configuration, its templates rendered."""
        if isinstance(self.pool_config, PoolConfig):
            return self.pool_config
        if isinstance(self.pool_config, str | Path):
            return PoolConfig.from_json(self.dag_folder(context) / self.pool_config)
        return PoolConfig()

    def nodes_needed(self, context: Context) -> int | None:
        """Return the configuration's ``min_nodes`` where the operator has none of its own."""
        return self.config(context).min_nodes if self.min_nodes is None else self.min_nodes

    def start_task_failures(self, context: Context) -> int | None:
        """Return the configuration's ``max_start_task_failures`` where the operator has none of its own."""
        own = self.max_start_task_failures
        return self.config(context).max_start_task_failures if own is None else own

    def pool_wait(self, context: Context) -> timedelta:
        """Return the configuration's time where it has one."""
        config = self.config(context)
        own = "pool_wait_timeout" in config.model_fields_set
        return config.pool_wait_timeout if own else super().pool_wait(context)

    def foresee_pool(self, work: SetUpTry, belongings: Belongings, epoch: int) -> str:
        """Return the id that the pool has, or is to have; not one that a user named, which may be another's pool."""
        return "" if self.pool_id else belongings.foresee("pool", epoch, self._content(self.config(work.context)))

    def acquire_pool(self, work: SetUpTry, belongings: Belongings, epoch: int) -> tuple[str, bool]:
        """Create the pool, or adopt the one that an earlier try of this set-up created."""
        from airflow_batchwrap.hooks import models

        config, nodes_within = self.config(work.context), self.pool_wait(work.context)
        agent, content = self._node_agent(config), self._content(config)
        made: list[str] = []

        def make(pool_id: str, metadata: Mapping[str, str]) -> bool:
            options = models.pool_options(pool_id, config, agent, metadata, nodes_within)
            if created := self.hook.create_pool(options):
                made.append(pool_id)
            return created

        pool_id = belongings.claim("pool", epoch, content, make, named=self.pool_id)
        if not made:
            self._wake(pool_id, nodes_within)
        return pool_id, True

    @staticmethod
    def _content(config: PoolConfig) -> str:
        return digest(json.dumps(config.to_dict(), sort_keys=True, default=str))

    def _wake(self, pool_id: str, nodes_within: timedelta) -> None:
        """Have a pool that an earlier try made bring its nodes back, where it was emptied or is soon to be."""
        try:
            view = self.hook.view_pool(pool_id)
            own = view.formula
            if own is None or view.allocation_state != "steady":
                return
            idle_soon = own.fresh_until < datetime.now(UTC) + nodes_within
            if idle_soon and self.hook.set_formula(pool_id, own.resized(own.dedicated, own.spot, nodes_within)):
                self.log.info("Woke pool %s: it has its nodes again, or keeps them", pool_id)
        except BatchWrapError as error:
            # It wakes by itself, some minutes after the first Batch task waits on it.
            self.log.warning("%s", error)

    def _node_agent(self, config: PoolConfig) -> str:
        """Return the image's node agent: the configured or well-known one, else the one that Batch lists for it."""
        if config.node_agent:
            return config.node_agent
        wanted = (config.image_publisher, config.image_offer, config.image_sku)
        images = self.hook.supported_images()
        for image in images:
            if tuple(str(image[key]).lower() for key in ("publisher", "offer", "sku")) == tuple(map(str.lower, wanted)):
                return str(image["node_agent_sku_id"])
        offered = sorted({f"{image['publisher']} {image['offer']} {image['sku']}" for image in images})
        raise ConfigError(
            f"Batch has no verified Linux image {' '.join(wanted)!r}. It has: {', '.join(offered[:20])}. "
            "Choose one of these with image_publisher, image_offer and image_sku."
        )


class UsePoolOperator(SetUpOperator):
    """Open a job on a pool as it is: nothing on it changes.

    :param pool_id: the pool. One usable node is enough, unless ``min_nodes`` asks for more.
    """

    def __init__(self, *, pool_id: Templated[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pool_id = pool_id

    def nodes_needed(self, context: Context) -> int | None:
        """Return one node by default: a shared pool need not be whole."""
        return 1 if self.min_nodes is None else self.min_nodes

    def acquire_pool(self, work: SetUpTry, belongings: Belongings, epoch: int) -> tuple[str, bool]:
        """Find the pool."""
        pool = self.hook.find_pool(self.pool_id)
        if pool is None:
            raise PoolError(
                f"Pool {self.pool_id!r} does not exist in the account of connection {self.azure_batch_conn_id!r}. "
                "Check pool_id, or give a pool_config to have one created."
            )
        if pool.state != "active":
            raise PoolError(f"Pool {self.pool_id!r} is {pool.state}. Use another pool.")
        return pool.entity_id, False


class RepurposePoolOperator(UsePoolOperator):
    """Take an existing pool for this run: its nodes stay up, what an earlier run of this workflow left is removed."""

    def acquire_pool(self, work: SetUpTry, belongings: Belongings, epoch: int) -> tuple[str, bool]:
        """Find the pool and remove what is left of earlier jobs."""
        pool_id, owned = super().acquire_pool(work, belongings, epoch)
        self._clear(work.context, belongings, pool_id)
        return pool_id, owned

    def _clear(self, context: Context, belongings: Belongings, pool_id: str) -> None:
        """Delete what earlier runs of this workflow left on the pool: a job's release tasks remove its inputs.

        A job with work to do stays, and so does one whose run goes on: between two steps it has no work either.
        """
        for job in self.hook.find_jobs_of_pool(pool_id):
            made_by = job.metadata
            mine = {INSTANCE: belongings.maker.instance, "dag_id": self.dag_id, "task_id": self.task_id}
            same = all(made_by.get(name) == value for name, value in mine.items())
            if not same or made_by.get(MAKER) in (None, belongings.maker.mark):
                continue
            run_id = made_by.get("run_id", "")
            if job.state != "completed" and self.hook.has_work(job.entity_id):
                self.log.info("Left job %s of run %s alone: it has work to do", job.entity_id, run_id)
            elif not self._is_over(context, run_id):
                self.log.info("Left job %s alone: its run %s is not known to be over", job.entity_id, run_id)
            elif self.hook.delete_job(job.entity_id):
                self.log.info("Removed job %s, left on the pool by run %s", job.entity_id, run_id)

    def _is_over(self, context: Context, run_id: str) -> bool:
        """Return whether a run of this DAG is over; False for one that this Airflow does not know."""
        count: int = context["ti"].get_dr_count(self.dag_id, run_ids=[run_id], states=["success", "failed"])
        return count > 0


class DeletePoolOperator(BatchWrapOperator):
    """Remove a run's job, and its pool if the run owns it: the teardown of a workflow. Doing it twice does no harm.

    :param workspace: what the set-up task returned.
    :param pool_id: delete this pool, in place of a workspace. One that another Airflow made is refused.
    :param retention_days: delete result files of this DAG, of earlier runs, once they are older than that; by
        default they are kept.
    :param unused_for: delete archives, inputs and calls of this DAG that no run of it has used for so long; None keeps
        them.
    """

    def __init__(
        self,
        *,
        workspace: Templated[Any] = None,
        pool_id: Templated[str | None] = None,
        retention_days: Setting[int | str | None] = None,
        unused_for: Setting[timedelta | str | None] = timedelta(days=30),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.workspace = workspace
        self.pool_id = pool_id
        self.retention_days = retention_days
        self.unused_for = unused_for

    def execute(self, context: Context) -> dict[str, Any]:
        """Remove; return what was removed."""
        if self.pool_id and self.workspace:
            raise ConfigError(
                f"Task {self.task_id!r} has both a workspace and the pool_id {self.pool_id!r}. Give the workspace, for "
                "a run's job and its own pool, or the pool_id, for a pool whoever made it in this Airflow."
            )
        if self.pool_id:
            workspace = Workspace(self.pool_id, owns_pool=True, job_id="")
        else:
            workspace = Workspace.from_xcom(self.workspace)
        maker = self.maker(context)
        self._refuse_anothers(workspace, maker.instance)
        removed = remove_workspace(self.hook, self.log, workspace, maker)
        if removed.failed:
            raise TryAgain(f"Not everything could be removed. Left behind: {'; '.join(removed.failed)}")
        if (days := self.settings.retention_days) and workspace.output_container:
            self._delete_old_results(maker, workspace, timedelta(days=days))
        if (unused_for := self.settings.unused_for) is not None:
            self._delete_unused(maker, unused_for)
        return {"job_id": removed.job_id, "pool_id": removed.pool_id}

    def _refuse_anothers(self, workspace: Workspace, instance: str) -> None:
        """Refuse to delete what another Airflow made: a workspace is as old as the database that it came with."""
        job = self.hook.find_job(workspace.job_id) if workspace.job_id else None
        pool = self.hook.find_pool(workspace.pool_id) if workspace.owns_pool else None
        for noun, there in (("Job", job), ("Pool", pool)):
            if there is not None:
                refuse_anothers(f"{noun} {there.entity_id!r}", there.metadata, instance)

    def _delete_unused(self, maker: Maker, unused_for: timedelta) -> None:
        """Delete what no run has used for long; that it could not be is no reason to fail: the next run tries again."""
        for role in SWEPT_ROLES:
            name, marks = maker.container_for(role), maker.container_marks(__version__, role)
            try:
                if count := self.hook.delete_unused(self.hook.find_unused(name, marks, unused_for)):
                    self.log.info("Deleted %s blobs of container %s that no run uses any more", count, name)
            except BatchWrapError as error:
                self.log.warning("What no run uses any more stays in container %s: %s", name, error)

    def _delete_old_results(self, maker: Maker, workspace: Workspace, age: timedelta) -> None:
        # The DAG's own container, or its folder in one that was named and may serve many DAGs.
        root = "" if workspace.output_container == maker.container else f"{maker.folder}/"
        count = self.hook.delete_blobs_before(workspace.output_container, root, datetime.now(UTC) - age)
        self.log.info("Deleted %s result files older than %s days", count, age.days)
