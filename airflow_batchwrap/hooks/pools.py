"""Pools, nodes and jobs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.config.values import SHORTEST_RESIZE
from airflow_batchwrap.hooks.autoscale import EVALUATION_INTERVAL, ScaleFormula
from airflow_batchwrap.hooks.errors import code_of
from airflow_batchwrap.hooks.poolviews import NodeView, PoolView
from airflow_batchwrap.hooks.taskviews import EntityView
from airflow_batchwrap.hooks.words import text

if TYPE_CHECKING:
    from azure.batch import BatchClient
    from azure.batch.aio import BatchClient as AsyncBatchClient
    from azure.batch.models import BatchJobCreateOptions, BatchPoolCreateOptions

# The SDK's pollers re-read the entity in a thread of their own; nobody waits for them here, so they look once.
_NO_POLLING = 24 * 3600  # seconds
_ENTITY_SELECT = ["id", "state", "metadata"]
_WHOLE_SELECT = [*_ENTITY_SELECT, "creationTime"]
_NODE_SELECT = ["id", "state", "startTaskInfo", "errors"]
_GONE = {"PoolNotFound", "JobNotFound", "PoolBeingDeleted", "JobBeingDeleted"}


class PoolCalls:
    """The part of BatchWrapHook that deals with pools, nodes and jobs."""

    if TYPE_CHECKING:

        @property
        def batch(self) -> BatchClient: ...

        def batch_call(self, doing: str) -> AbstractContextManager[None]: ...

    # --- pools

    def create_pool(self, pool: BatchPoolCreateOptions) -> bool:
        """Create a pool.

        :return: whether it was created; False where one of that id exists, being deleted included.
        """
        from azure.core.exceptions import ResourceExistsError

        with self.batch_call(f"create pool {pool.id!r}"):
            try:
                self.batch.create_pool(pool)
            except ResourceExistsError as error:
                if code_of(error) in ("PoolExists", "PoolBeingDeleted"):
                    return False
                raise
        return True

    def find_pool(self, pool_id: str) -> EntityView | None:
        """Return a pool; None where there is none."""
        from azure.core.exceptions import ResourceNotFoundError

        with self.batch_call(f"read pool {pool_id!r}"):
            try:
                return EntityView.of(self.batch.get_pool(pool_id, select=_ENTITY_SELECT))
            except ResourceNotFoundError:
                return None

    def find_pools(self, prefix: str) -> list[EntityView]:
        """Return the pools whose id begins with ``prefix``, those being deleted included."""
        with self.batch_call(f"list the pools whose id begins with {prefix!r}"):
            found = self.batch.list_pools(select=_ENTITY_SELECT, filter=f"startswith(id, '{prefix}')")
            return [EntityView.of(pool) for pool in found]

    def all_pools(self) -> list[EntityView]:
        """Return the account's pools with their ages, those being deleted left out."""
        with self.batch_call("list the pools"):
            found = self.batch.list_pools(select=_WHOLE_SELECT, filter="state ne 'deleting'")
            return [EntityView.of(pool) for pool in found]

    def view_pool(self, pool_id: str) -> PoolView:
        """Return a pool with its nodes, as far as waiting needs them."""
        from azure.core.exceptions import ResourceNotFoundError

        with self.batch_call(f"read pool {pool_id!r}"):
            try:
                pool = self.batch.get_pool(pool_id)
                nodes = [NodeView.of(node) for node in self.batch.list_nodes(pool_id, select=_NODE_SELECT)]
            except ResourceNotFoundError:
                return PoolView(pool_id, "missing")
        return PoolView.of(pool, nodes)

    async def aview_pool(self, client: AsyncBatchClient, pool_id: str) -> PoolView:
        """Return what :meth:`view_pool` does, without blocking."""
        from azure.core.exceptions import ResourceNotFoundError

        with self.batch_call(f"read pool {pool_id!r}"):
            try:
                pool = await client.get_pool(pool_id)
                nodes = [NodeView.of(node) async for node in client.list_nodes(pool_id, select=_NODE_SELECT)]
            except ResourceNotFoundError:
                return PoolView(pool_id, "missing")
        return PoolView.of(pool, nodes)

    def delete_pool(self, pool_id: str) -> bool:
        """Ask for a pool's end; Azure takes minutes over it.

        :return: whether there was one to delete.
        """
        return self._end(f"delete pool {pool_id!r}", "begin_delete_pool", pool_id)

    def resize_pool(self, pool_id: str, dedicated: int, spot: int, option: str, timeout: timedelta) -> bool:
        """Ask for other numbers of nodes, on a pool that does not scale by itself.

        :param option: what becomes of Batch tasks on nodes that go.
        :param timeout: how long Azure tries; 5 minutes at least.
        :return: whether the request was taken; False while another resize goes on.
        """
        from azure.batch.models import BatchPoolResizeOptions

        options = BatchPoolResizeOptions(
            target_dedicated_nodes=dedicated,
            target_low_priority_nodes=spot,
            node_deallocation_option=option,
            resize_timeout=timeout,
        )
        return self._unless_resizing(
            f"resize pool {pool_id!r}",
            lambda: self.batch.begin_resize_pool(pool_id, options, polling_interval=_NO_POLLING),
        )

    def set_formula(self, pool_id: str, formula: ScaleFormula) -> bool:
        """Give a pool another autoscale formula, which is evaluated at once.

        :return: whether it was taken; False while a resize goes on.
        """
        from azure.batch.models import BatchPoolEnableAutoScaleOptions

        options = BatchPoolEnableAutoScaleOptions(
            auto_scale_formula=formula.text, auto_scale_evaluation_interval=EVALUATION_INTERVAL
        )
        return self._unless_resizing(
            f"set the autoscale formula of pool {pool_id!r}",
            lambda: self.batch.enable_pool_auto_scale(pool_id, options),
        )

    def ask_again(self, view: PoolView, timeout: timedelta) -> bool:
        """Ask again for the nodes that a pool did not get: for the same targets, or by its own formula.

        :param timeout: how long Azure tries, or the formula holds the pool's whole size.
        :return: whether the request was taken; False while a resize goes on.
        """
        if view.formula is not None:
            own = view.formula
            return self.set_formula(view.pool_id, own.resized(own.dedicated, own.spot, timeout))
        return self.resize_pool(view.pool_id, *view.targets, "taskcompletion", max(timeout, SHORTEST_RESIZE))

    def stop_resize(self, pool_id: str) -> bool:
        """Leave a pool that is being resized with the nodes that it has.

        :return: whether there was a resize to stop.
        """
        from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError

        with self.batch_call(f"stop the resize of pool {pool_id!r}"):
            try:
                self.batch.begin_stop_pool_resize(pool_id, polling_interval=_NO_POLLING)
            except (ResourceNotFoundError, ResourceExistsError):
                return False
        return True

    def _unless_resizing(self, doing: str, call: Callable[[], object]) -> bool:
        from azure.core.exceptions import ResourceExistsError

        with self.batch_call(doing):
            try:
                call()
            except ResourceExistsError as error:
                if code_of(error) == "PoolBeingResized":
                    return False
                raise
        return True

    # --- jobs

    def create_job(self, job: BatchJobCreateOptions) -> bool:
        """Create a job.

        :return: whether it was created; False where one of that id exists, being deleted included.
        """
        from azure.core.exceptions import ResourceExistsError

        with self.batch_call(f"create job {job.id!r}"):
            try:
                self.batch.create_job(job)
            except ResourceExistsError as error:
                if code_of(error) in ("JobExists", "JobBeingDeleted"):
                    return False
                raise
        return True

    def find_job(self, job_id: str) -> EntityView | None:
        """Return a job; None where there is none."""
        from azure.core.exceptions import ResourceNotFoundError

        with self.batch_call(f"read job {job_id!r}"):
            try:
                return EntityView.of(self.batch.get_job(job_id, select=_ENTITY_SELECT))
            except ResourceNotFoundError:
                return None

    def find_jobs(self, prefix: str) -> list[EntityView]:
        """Return the jobs whose id begins with ``prefix``, those being deleted included."""
        return self._list_jobs(f"startswith(id, '{prefix}')", f"whose id begins with {prefix!r}")

    def all_jobs(self) -> list[EntityView]:
        """Return the account's jobs with their ages and pools, those being deleted left out."""
        with self.batch_call("list the jobs"):
            found = self.batch.list_jobs(select=[*_WHOLE_SELECT, "executionInfo"], filter="state ne 'deleting'")
            return [EntityView.of(job) for job in found]

    def find_jobs_of_pool(self, pool_id: str) -> list[EntityView]:
        """Return the jobs bound to a pool, those being deleted left out.

        :param pool_id: in the service's own spelling: the filter minds the case, as an id does not.
        """
        where = f"executionInfo/poolId eq '{pool_id}' and state ne 'deleting'"
        return self._list_jobs(where, f"of pool {pool_id!r}")

    def _list_jobs(self, where: str, which: str) -> list[EntityView]:
        with self.batch_call(f"list the jobs {which}"):
            found = self.batch.list_jobs(select=[*_ENTITY_SELECT, "executionInfo"], filter=where)
            return [EntityView.of(job) for job in found]

    def delete_job(self, job_id: str) -> bool:
        """Ask for a job's end: its running Batch tasks are ended, its release tasks run.

        :return: whether there was one to delete.
        """
        return self._end(f"delete job {job_id!r}", "begin_delete_job", job_id)

    def _end(self, doing: str, method: str, entity_id: str) -> bool:
        from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError

        with self.batch_call(doing):
            try:
                getattr(self.batch, method)(entity_id, polling_interval=_NO_POLLING)
            except (ResourceNotFoundError, ResourceExistsError) as error:
                if code_of(error) in _GONE:
                    return False
                raise
        return True

    # --- what the account offers

    def supported_images(self) -> list[dict[str, Any]]:
        """Return the verified Linux images and their node agents, as plain values."""
        with self.batch_call("list supported images"):
            found = list(
                self.batch.list_supported_images(filter="verificationType eq 'verified' and osType eq 'linux'")
            )
        return [
            {
                "publisher": image.image_reference.publisher,
                "offer": image.image_reference.offer,
                "sku": image.image_reference.sku,
                "node_agent_sku_id": image.node_agent_sku_id,
                "end_of_life": image.batch_support_end_of_life,
                "verified": text(image.verification_type) == "verified",
            }
            for image in found
            if image.image_reference
        ]
