"""Links that a task leaves as XComs as soon as it knows them.

Airflow itself writes and reads the links' XComs past a custom XCom backend, by its base class; so they are here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

    from airflow_batchwrap.hooks.batch import BatchWrapHook

log = logging.getLogger(__name__)


class StoredLink(BaseOperatorLink):
    """A link whose address the task has pushed while it ran: Airflow asks for it only when a try has ended."""

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return what was pushed; empty, which shows no link, where nothing was."""
        from airflow.sdk.bases.xcom import BaseXCom

        key: Any = ti_key  # which is frozen, and Airflow's own annotation is of one that is not
        pushed = BaseXCom.get_value(ti_key=key, key=self.xcom_key)
        return pushed if isinstance(pushed, str) else ""


def push(context: Context, addresses: Callable[[], Iterable[tuple[StoredLink, str]]]) -> None:
    """Push addresses; a link that cannot be had is none, and fails nothing.

    :param addresses: returns them; an empty one is not pushed.
    """
    from airflow.sdk.bases.xcom import BaseXCom

    ti = context["ti"]
    where: dict[str, Any] = {"dag_id": ti.dag_id, "task_id": ti.task_id, "run_id": ti.run_id, "map_index": ti.map_index}
    try:
        for link, address in addresses():
            if address:
                BaseXCom.set(link.xcom_key, address, **where)
    except Exception as error:  # whatever reading a connection or writing an XCom raises
        log.warning("There will be no links: %s", type(error).__name__)


def account(hook: BatchWrapHook) -> tuple[str, str]:
    """Return the Batch account's address and, where the connection's extra has it, its resource id."""
    extra: dict[str, Any] = hook.get_connection(hook.azure_batch_conn_id).extra_dejson
    url = extra.get("account_url") or extra.get("extra__azure_batch__account_url") or ""
    return str(url), str(extra.get("resource_id") or "")


def storage_resource_id(hook: BatchWrapHook) -> str:
    """Return the storage account's resource id, where the connection's extra has it."""
    return str(hook.get_connection(hook.wasb_conn_id).extra_dejson.get("resource_id") or "")
