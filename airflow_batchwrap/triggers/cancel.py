"""Whether a person really ended an Airflow task: only then is its Batch task terminated.

Airflow calls ``on_kill`` for a person's deed (mark failed, mark success, clear), and also where a worker is shut down
or a triggerer has lost its triggers to another one: the work must go on then. The task's state in
Airflow says which it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Seconds: Airflow kills a task's process 5 s after it was asked to end (`escalation_delay`).
# https://github.com/apache/airflow/blob/main/task-sdk/src/airflow/sdk/execution_time/supervisor.py
TIME_TO_ASK = 3.0
# Seconds. The first question in a triggerer takes some by itself, and many on a busy machine: it is then that its
# supervisor builds the API which answers. The 30 s of Airflow's `[triggerer] on_kill_timeout` end only the trigger.
TIME_OF_TRIGGER = 120.0
# The states of a task that goes on: here, on another worker, in another triggerer, or in another try, as where Airflow
# has not heard of this one for a while.
_GOES_ON = {"running", "deferred", "queued", "scheduled", "up_for_retry", "up_for_reschedule"}
_NO_STATE = "none"
# The states of a task that a person has cleared: it begins anew.
_BEGINS_ANEW = {_NO_STATE, "restarting"}


@dataclass(frozen=True)
class TaskIdentity:
    """Which Airflow task it is."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1

    def state(self) -> str:
        """Ask Airflow for the task's state: "gone" where the run was deleted, "none" where there is none."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        states: dict[str, Any] = RuntimeTaskInstance.get_task_states(
            dag_id=self.dag_id, task_ids=[self.task_id], run_ids=[self.run_id], map_index=self.map_index
        )
        name = self.task_id if self.map_index < 0 else f"{self.task_id}_{self.map_index}"
        of_run = states.get(self.run_id, {})
        if name not in of_run:
            return "gone"
        return _NO_STATE if of_run[name] is None else str(getattr(of_run[name], "value", of_run[name]))


def state_in_time(ask: Callable[[], str], seconds: float | None = None) -> str:
    """Return what Airflow says of a task, or "unknown" where it does not say so in time.

    In a thread of its own: a signal may have come while this very thread was talking to Airflow, and would wait for
    itself for ever.

    :param seconds: how long it may take; None for what a worker has.
    """
    found: list[str] = []

    def run() -> None:
        try:
            found.append(ask())
        except Exception:
            found.append("unknown")

    thread = threading.Thread(target=run, name="batchwrap-ask-state", daemon=True)
    thread.start()
    thread.join(TIME_TO_ASK if seconds is None else seconds)
    return found[0] if found else "unknown"


def was_ended(state: str, deferred: bool = False) -> bool:
    """Return whether a task in this state was ended by a person, or with its DAG run.

    A task that is cleared while it runs on a worker is "restarting". One that has no state then is another matter: a
    scheduler that was slow or stopped lost sight of it, and runs it again. Cleared while it was deferred, it has none.

    :param deferred: whether it was deferred until now; else it ran on a worker.
    """
    return state not in _GOES_ON and state != "unknown" and (deferred or state != _NO_STATE)


def was_ended_for_good(state: str) -> bool:
    """Return whether a task in this state was ended, and no other try of it follows."""
    return was_ended(state, deferred=True) and state not in _BEGINS_ANEW
