"""Links of a step: its Batch task, and where its results are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from airflow_batchwrap.links import addresses
from airflow_batchwrap.links.base import StoredLink, account, push, storage_resource_id

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.naming import BatchTaskKey
    from airflow_batchwrap.workspace import Workspace


class BatchTaskLink(StoredLink):
    """The Batch task that runs the step."""

    name = "Batch task"


class ResultsLink(StoredLink):
    """The Blob container of the results."""

    name = "Result files"


def push_task_links(context: Context, hook: BatchWrapHook, workspace: Workspace, key: BatchTaskKey) -> None:
    """Push the links of a step, once its Batch task is there."""

    def found() -> Iterable[tuple[StoredLink, str]]:
        url, resource_id = account(hook)
        task = addresses.task_address(url, resource_id, key.job_id, key.batch_task_id)
        # Azurite has no page, but the local service shows the files on the node.
        results = _container(hook, workspace) or (f"{task}#files" if addresses.is_loopback(url) else "")
        return [(BatchTaskLink(), task), (ResultsLink(), results)]

    push(context, found)


def push_results_link(context: Context, hook: BatchWrapHook, workspace: Workspace) -> None:
    """Push the link of the task that fetches results."""
    push(context, lambda: [(ResultsLink(), _container(hook, workspace))])


def _container(hook: BatchWrapHook, workspace: Workspace) -> str:
    url = str(hook.blobs.url)
    if addresses.is_loopback(url) or not workspace.output_container:
        return ""
    return addresses.container_address(url, storage_resource_id(hook), workspace.output_container)
