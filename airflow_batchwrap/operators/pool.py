"""Ways to a pool, and its end: create, use as it is, repurpose, delete."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.config import PoolConfig
from airflow_batchwrap.exceptions import ConfigError, PoolError, TryAgain
from airflow_batchwrap.naming import digest
from airflow_batchwrap.operators.base import BatchWrapOperator
from airflow_batchwrap.operators.jobs import CONTENT, MAKER, SAME_ID_TRIES
from airflow_batchwrap.operators.setup import SetUpOperator, remove
from airflow_batchwrap.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context


class CreatePoolOperator(SetUpOperator):
    """Create a pool for this run; its teardown deletes it.

    :param pool_config: a PoolConfig, a dict of its keys, or the path of a batch.json relative to the DAG file.
    :param pool_id: derived from the run by default. With one given there can be one run at a time.
    """

    template_fields: Sequence[str] = (*SetUpOperator.template_fields, "pool_config", "pool_id")

    def __init__(
        self,
        *,
        pool_config: PoolConfig | dict[str, Any] | str | Path | None = None,
        pool_id: str | None = None,
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

    def execute(self, context: Context) -> dict[str, Any]:
        """Create the pool and open the job; wait for nodes."""
        config = self.config(context)
        if self.min_nodes is None:
            self.min_nodes = config.min_nodes
        if "pool_wait_timeout" in config.model_fields_set:
            self.pool_wait_timeout = config.pool_wait_timeout
        return super().execute(context)

    def acquire_pool(self, context: Context, epoch: int) -> tuple[str, bool]:
        """Create the pool, or adopt the one that an earlier try of this set-up created."""
        from airflow_batchwrap.hooks import models
        from airflow_batchwrap.hooks.views import text

        config = self.config(context)
        agent = self._node_agent(config)
        made_by = self.made_by(context)
        content = digest(json.dumps(config.to_dict(), sort_keys=True, default=str))
        for number in range(1, SAME_ID_TRIES + 1):
            pool_id = self.pool_id or self.id_of(context, epoch, number)
            metadata = {**made_by, CONTENT: content}
            if self.hook.create_pool(models.pool_options(pool_id, config, agent, metadata)):
                self.log.info("Created pool %s", pool_id)
                return pool_id, True
            existing = self.hook.find_pool(pool_id)
            state = text(existing.state) if existing is not None else "deleting"
            found = models.metadata_of(existing) if existing is not None else {}
            ours = found.get(MAKER) == made_by[MAKER]
            if state == "active" and ours and found.get(CONTENT) == content:
                self.log.info("Found pool %s, which an earlier try created", pool_id)
                return pool_id, True
            if self.pool_id:
                raise PoolError(
                    f"Pool {pool_id!r} exists already (state {state}) and is not this run's. Use "
                    "RepurposePoolOperator for it, or leave pool_id out to have one derived from the run."
                )
            if state == "active" and ours:
                self.hook.delete_pool(pool_id)
        raise PoolError(f"No free id for a pool: {SAME_ID_TRIES} pools of earlier tries are still being deleted.")

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

    template_fields: Sequence[str] = (*SetUpOperator.template_fields, "pool_id")

    def __init__(self, *, pool_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pool_id = pool_id

    def nodes_needed(self) -> int | None:
        """Return one node by default: a shared pool need not be whole."""
        return 1 if self.min_nodes is None else self.min_nodes

    def acquire_pool(self, context: Context, epoch: int) -> tuple[str, bool]:
        """Find the pool."""
        from airflow_batchwrap.hooks.views import text

        pool = self.hook.find_pool(self.pool_id)
        if pool is None:
            raise PoolError(
                f"Pool {self.pool_id!r} does not exist in the account of connection {self.azure_batch_conn_id!r}. "
                "Check pool_id, or give a pool_config to have one created."
            )
        if text(pool.state) != "active":
            raise PoolError(f"Pool {self.pool_id!r} is {text(pool.state)}. Use another pool.")
        return self.pool_id, False


class RepurposePoolOperator(UsePoolOperator):
    """Take an existing pool for this run: its nodes stay up, what an earlier run of this workflow left is removed."""

    def acquire_pool(self, context: Context, epoch: int) -> tuple[str, bool]:
        """Find the pool and remove what is left of earlier jobs."""
        found = super().acquire_pool(context, epoch)
        self._clear(context)
        return found

    def _clear(self, context: Context) -> None:
        """Delete earlier jobs of this package on the pool that have nothing left to do.

        A job's release tasks remove its inputs from the nodes. One that still has work is somebody's run: it stays.
        """
        from airflow_batchwrap.hooks import models
        from airflow_batchwrap.hooks.views import text

        maker = self.made_by(context)[MAKER]
        for job in self.hook.list_jobs_of_pool(self.pool_id):
            made_by = models.metadata_of(job)
            if MAKER not in made_by or made_by[MAKER] == maker or text(job.state) == "deleting":
                continue
            waiting = sum(not view.over for view in self.hook.view_tasks(job.id, "").values())
            same = made_by.get("dag_id") == self.dag_id and made_by.get("task_id") == self.task_id
            if text(job.state) == "completed" or (same and not waiting):
                self.hook.delete_job(job.id)
                self.log.info("Removed job %s, left on the pool by run %s", job.id, made_by.get("run_id"))
            else:
                self.log.info("Left job %s alone: it has %s Batch tasks to do", job.id, waiting)


class DeletePoolOperator(BatchWrapOperator):
    """Remove a run's job, and its pool if the run owns it: the teardown of a workflow. Doing it twice does no harm.

    :param workspace: what the set-up task returned.
    :param pool_id: delete this pool, instead of a workspace's.
    """

    template_fields: Sequence[str] = (*BatchWrapOperator.template_fields, "workspace", "pool_id")

    def __init__(self, *, workspace: Any = None, pool_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.workspace = workspace
        self.pool_id = pool_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Remove; return what was removed."""
        if self.pool_id:
            workspace = Workspace(self.pool_id, owns_pool=True, job_id="")
        else:
            workspace = Workspace.from_xcom(self.workspace)
        removed = remove(self, workspace)
        if removed["failed"]:
            raise TryAgain(f"Not everything could be removed. Left behind: {'; '.join(removed['failed'])}")
        return {"job_id": removed["job_id"], "pool_id": removed["pool_id"]}
