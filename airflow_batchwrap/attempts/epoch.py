"""The epoch of a task: which of a person's clears its attempts belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_batchwrap.attempts.superseded import leave_if_superseded

if TYPE_CHECKING:
    from airflow.sdk import Context

_KEY = "batchwrap_epoch"


def epoch_of(context: Context, retries: int, log: Any) -> int:
    """Return the current epoch: 1, and a higher number each time that a person cleared the task.

    A clear sets ``max_tries`` anew, to the tries so far and the retries that the DAG file has then; a retry does
    not, whatever has become of the retries in the file. Of a task that was cleared while it ran Airflow 3.3 forgets
    that again, but counts the clears of the run. A retry after a clear of another task is taken for a clear, too:
    what then still runs, because the worker died, is ended and done anew.

    The state store outlives clears and retries, unless Airflow is set to empty it after a success: then the tries
    that the clear added show it.

    :param retries: of the operator, as the DAG file has them.
    """
    store, max_tries = context["task_state_store"], context["ti"].max_tries
    clears = int(getattr(context.get("dag_run"), "clear_number", None) or 0)
    seen: Any = store.get(_KEY)
    if isinstance(seen, dict):
        known = int(seen["max_tries"]), int(seen.get("clears") or 0)
        epoch = int(seen["epoch"]) + int(known != (max_tries, clears))
    else:
        epoch = 1 + max(0, max_tries - retries)
    try:
        store.set(_KEY, {"epoch": epoch, "max_tries": max_tries, "clears": clears})
    except AirflowRuntimeError:
        leave_if_superseded(context, log)
        raise
    return epoch
