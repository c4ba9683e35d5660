"""Links of a set-up task: the pool, and the run's job."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from airflow_batchwrap.links import addresses
from airflow_batchwrap.links.base import StoredLink, account, push

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.workspace import Workspace


class PoolLink(StoredLink):
    """The pool."""

    name = "Batch pool"


class JobLink(StoredLink):
    """The run's Batch job."""

    name = "Batch job"


def push_pool_links(context: Context, hook: BatchWrapHook, workspace: Workspace) -> None:
    """Push the links of a set-up task, once the pool and the job are there."""

    def found() -> Iterable[tuple[StoredLink, str]]:
        url, resource_id = account(hook)
        pool = addresses.pool_address(url, resource_id, workspace.pool_id)
        job = addresses.job_address(url, resource_id, workspace.job_id)
        # The portal has one page for both.
        return [(PoolLink(), pool), (JobLink(), "" if job == pool else job)]

    push(context, found)
