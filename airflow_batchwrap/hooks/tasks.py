"""Batch tasks, their files, and the preparation of their job."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.exceptions import BatchWrapError
from airflow_batchwrap.hooks.errors import code_of
from airflow_batchwrap.hooks.poolviews import PoolView
from airflow_batchwrap.hooks.taskviews import PreparationView, TaskView
from airflow_batchwrap.hooks.views import WaitView
from airflow_batchwrap.hooks.words import text
from airflow_batchwrap.naming import BatchTaskKey

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from azure.batch import BatchClient
    from azure.batch.aio import BatchClient as AsyncBatchClient
    from azure.batch.models import BatchJob, BatchTask, BatchTaskCreateOptions
    from azure.core.exceptions import HttpResponseError

_JOB_SELECT = ["id", "state", "executionInfo"]
_TASK_SELECT = ["id", "state", "stateTransitionTime", "creationTime", "executionInfo", "nodeInfo"]
# All of these mean "no such file now": the node is gone, was cleaned, or has not written it yet.
_NO_FILE = {
    "FileNotFound",
    "NodeNotFound",
    "NodeStateUnusable",
    "NodeNotReady",
    "TaskNotFound",
    "TaskFilesUnavailable",
    "TaskFilesCleanedup",
    "InvalidRange",
    "OperationInvalidForCurrentState",
    "JobNotFound",
    "PoolNotFound",
}


class TaskCalls:
    """The part of BatchWrapHook that deals with Batch tasks."""

    if TYPE_CHECKING:

        @property
        def batch(self) -> BatchClient: ...

        def batch_call(self, doing: str) -> AbstractContextManager[None]: ...

        def view_pool(self, pool_id: str) -> PoolView: ...

        async def aview_pool(self, client: AsyncBatchClient, pool_id: str) -> PoolView: ...

    def create_task(self, job_id: str, task: BatchTaskCreateOptions) -> bool:
        """Submit one Batch task.

        :return: whether it was submitted; False where one of that id exists already.
        """
        from azure.core.exceptions import ResourceExistsError

        with self.batch_call(f"submit Batch task {task.id!r} to job {job_id!r}"):
            try:
                self.batch.create_task(job_id, task)
            except ResourceExistsError as error:
                if code_of(error) == "TaskExists":
                    return False
                raise
        return True

    def find_task(self, key: BatchTaskKey) -> BatchTask | None:
        """Return a Batch task whole, its environment settings included: never log it. None where there is none."""
        from azure.core.exceptions import ResourceNotFoundError

        with self.batch_call(f"read Batch task {key}"):
            try:
                return self.batch.get_task(key.job_id, key.batch_task_id)
            except ResourceNotFoundError:
                return None

    def view_task(self, key: BatchTaskKey) -> TaskView:
        """Return a Batch task's state; ``missing`` where it is gone."""
        from azure.core.exceptions import ResourceNotFoundError

        with self.batch_call(f"read Batch task {key}"):
            try:
                return TaskView.of(self.batch.get_task(key.job_id, key.batch_task_id, select=_TASK_SELECT))
            except ResourceNotFoundError:
                return TaskView("missing")

    async def aview_task(self, client: AsyncBatchClient, key: BatchTaskKey) -> TaskView:
        """Return what :meth:`view_task` does, without blocking."""
        from azure.core.exceptions import ResourceNotFoundError

        with self.batch_call(f"read Batch task {key}"):
            try:
                return TaskView.of(await client.get_task(key.job_id, key.batch_task_id, select=_TASK_SELECT))
            except ResourceNotFoundError:
                return TaskView("missing")

    def view_tasks(self, job_id: str, prefix: str) -> dict[str, TaskView]:
        """Return the states of a job's Batch tasks whose id begins with ``prefix``, by id."""
        with self.batch_call(f"list the Batch tasks of job {job_id!r}"):
            found = self.batch.list_tasks(job_id, select=_TASK_SELECT, filter=f"startswith(id, '{prefix}')")
            return {task.id: TaskView.of(task) for task in found}

    async def aview_tasks(
        self, client: AsyncBatchClient, job_id: str, since: datetime | None
    ) -> tuple[dict[str, TaskView] | None, datetime | None]:
        """Return the states of a job's Batch tasks by id, and when the last of these changes was.

        :param since: only those whose state changed then or later; None for all.
        :return: None in place of the states where the job is gone; None in place of the time where nothing was listed.
        """
        from azure.core.exceptions import ResourceNotFoundError

        views: dict[str, TaskView] = {}
        newest: datetime | None = None
        changed = None if since is None else f"stateTransitionTime ge datetime'{since:%Y-%m-%dT%H:%M:%S.%f}Z'"
        with self.batch_call(f"list the Batch tasks of job {job_id!r}"):
            try:
                async for task in client.list_tasks(job_id, select=_TASK_SELECT, filter=changed):
                    views[str(task.id)] = TaskView.of(task)
                    when = task.state_transition_time
                    if when is not None and (newest is None or when > newest):
                        newest = when
            except ResourceNotFoundError:
                return None, None
        return views, newest

    def has_work(self, job_id: str) -> bool:
        """Return whether a job has a Batch task that is not over."""
        with self.batch_call(f"list the Batch tasks of job {job_id!r}"):
            found = self.batch.list_tasks(job_id, select=["id"], filter="state ne 'completed'", max_results=1)
            return next(iter(found), None) is not None

    def terminate_task(self, key: BatchTaskKey) -> bool:
        """End one Batch task and no other.

        :return: whether it was still there to end.
        """
        from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError

        with self.batch_call(f"terminate Batch task {key}"):
            try:
                self.batch.terminate_task(key.job_id, key.batch_task_id)
            except ResourceNotFoundError:
                return False
            except ResourceExistsError as error:
                if code_of(error) in ("TaskCompleted", "JobBeingDeleted", "JobCompleted", "JobBeingTerminated"):
                    return False
                raise
        return True

    # --- what keeps a Batch task waiting

    def view_wait(self, job_id: str, pool_id: str) -> WaitView:
        """Return what may keep a job's Batch tasks from starting."""
        from azure.core.exceptions import ResourceNotFoundError

        with self.batch_call(f"read job {job_id!r}"):
            try:
                job = self.batch.get_job(job_id, select=_JOB_SELECT)
            except ResourceNotFoundError:
                return WaitView("missing")
        preparations = tuple(self.view_preparations(job_id))
        return _wait_view(job, preparations, self.view_pool(pool_id))

    async def aview_wait(self, client: AsyncBatchClient, job_id: str, pool_id: str) -> WaitView:
        """Return what :meth:`view_wait` does, without blocking."""
        from azure.core.exceptions import ResourceNotFoundError

        with self.batch_call(f"read job {job_id!r}"):
            try:
                job = await client.get_job(job_id, select=_JOB_SELECT)
            except ResourceNotFoundError:
                return WaitView("missing")
        preparations = tuple(await self.aview_preparations(client, job_id))
        return _wait_view(job, preparations, await self.aview_pool(client, pool_id))

    def view_preparations(self, job_id: str) -> list[PreparationView]:
        """Return how the job preparation task went, node by node."""
        with self.batch_call(f"read the job preparation status of {job_id!r}"):
            try:
                found = list(self.batch.list_job_preparation_and_release_task_status(job_id))
            except Exception as error:
                if _not_specified(error):
                    return []
                raise
            return [PreparationView.of(status) for status in found]

    async def aview_preparations(self, client: AsyncBatchClient, job_id: str) -> list[PreparationView]:
        """Return what :meth:`view_preparations` does, without blocking."""
        with self.batch_call(f"read the job preparation status of {job_id!r}"):
            try:
                found = [status async for status in client.list_job_preparation_and_release_task_status(job_id)]
            except Exception as error:
                if _not_specified(error):
                    return []
                raise
            return [PreparationView.of(status) for status in found]

    # --- files on nodes

    def read_task_file(self, key: BatchTaskKey, path: str, offset: int, limit: int) -> bytes:
        """Return what a Batch task's file holds from an offset on; nothing where there is nothing to read (yet).

        :param offset: bytes.
        :param limit: the most bytes to read.
        """
        from azure.core.exceptions import HttpResponseError

        with self.batch_call(f"read {path} of Batch task {key}"):
            try:
                span = f"bytes={offset}-{offset + limit - 1}"
                return b"".join(self.batch.download_task_file(key.job_id, key.batch_task_id, path, ocp_range=span))
            except HttpResponseError as error:
                if _no_file(error):
                    return b""
                raise

    async def aread_task_file(
        self, client: AsyncBatchClient, key: BatchTaskKey, path: str, offset: int, limit: int
    ) -> bytes:
        """Return what :meth:`read_task_file` does, without blocking."""
        from azure.core.exceptions import HttpResponseError

        with self.batch_call(f"read {path} of Batch task {key}"):
            try:
                span = f"bytes={offset}-{offset + limit - 1}"
                found = await client.download_task_file(key.job_id, key.batch_task_id, path, ocp_range=span)
                return b"".join([chunk async for chunk in found])
            except HttpResponseError as error:
                if _no_file(error):
                    return b""
                raise

    def tail_task_file(self, key: BatchTaskKey, path: str, limit: int = 16384) -> str:
        """Return the end of a Batch task's file, read from its node; empty where it cannot be read.

        :param limit: bytes.
        """
        doing = f"read {path} of Batch task {key}"
        return self._tail(
            doing,
            lambda: self.batch.get_task_file_properties(key.job_id, key.batch_task_id, path),
            lambda span: self.batch.download_task_file(key.job_id, key.batch_task_id, path, ocp_range=span),
            limit,
        )

    def tail_node_file(self, pool_id: str, node_id: str, path: str, limit: int = 16384) -> str:
        """Return the end of a node's file; empty where it cannot be read.

        :param path: relative to the node's root, such as ``startup/stderr.txt``.
        :param limit: bytes.
        """
        return self._tail(
            f"read {path} of node {node_id}",
            lambda: self.batch.get_node_file_properties(pool_id, node_id, path),
            lambda span: self.batch.download_node_file(pool_id, node_id, path, ocp_range=span),
            limit,
        )

    def _tail(self, doing: str, properties: Any, download: Any, limit: int) -> str:
        from azure.core.exceptions import HttpResponseError

        try:
            with self.batch_call(doing):
                try:
                    size = int(properties().content_length or 0)
                    if not size:
                        return ""
                    chunks: Iterable[bytes] = download(f"bytes={max(0, size - limit)}-{size - 1}")
                    return b"".join(chunks).decode("utf-8", "replace")
                except HttpResponseError as error:
                    if _no_file(error):
                        return ""
                    raise
        except BatchWrapError:
            # A tail is added to another error's message: it must not replace that error.
            return ""


def _wait_view(job: BatchJob, preparations: tuple[PreparationView, ...], pool: PoolView) -> WaitView:
    info = job.execution_info
    return WaitView(text(job.state), (info.termination_reason or "") if info else "", preparations, pool)


def _no_file(error: HttpResponseError) -> bool:
    """Return whether there is no such file, or range of it, now."""
    return code_of(error) in _NO_FILE or error.status_code in (404, 409, 416)


def _not_specified(error: Exception) -> bool:
    """Return whether a job has no preparation task to report on, or is gone."""
    return code_of(error) in ("JobPreparationTaskNotSpecified", "JobPreparationTaskNotRun", "JobNotFound")
