"""Whether Airflow has put another try in the place of this one, which still runs.

A scheduler that takes a worker for lost begins another try, which goes on with the same pool, job and Batch task. Until
it is noticed and killed, the old one lives on beside it: what it removed, the new one would miss, and what it reported,
a person would hear twice. So before a try undoes or reports anything, it asks whether it is still Airflow's.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowRescheduleException, AirflowRuntimeError

if TYPE_CHECKING:
    from airflow.sdk import Context

_KEY = "batchwrap_try"
_GONE = 404  # Airflow's answer where a task instance has been moved to the history


def is_superseded(context: Context) -> bool:
    """Return whether Airflow knows this try no more.

    A note in the state store is refused then. (Airflow answers a question for one as if there were none.)
    """
    try:
        context["task_state_store"].set(_KEY, context["ti"].try_number)
    except AirflowRuntimeError as error:
        return (error.error.detail or {}).get("status_code") == _GONE
    except (OSError, EOFError):  # the supervisor, through whom it asks, was killed: another try follows
        return True
    return False


def leave_if_superseded(context: Context, log: Any) -> None:
    """End this try without a word where another one has taken its place: nothing is undone, nobody is called back.

    :raises AirflowRescheduleException: it has. Of all ends that Airflow knows, this one alone calls nobody; and should
        Airflow have changed its mind again, it means another try, which goes on with the same work.
    """
    if is_superseded(context):
        log.warning("Another try of this task has taken the place of this one, and goes on with its work.")
        raise AirflowRescheduleException(datetime.now(UTC)) from None  # type: ignore[no-untyped-call]
