"""The part of Airflow's public REST API (v2) that the demo and the tests speak."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from airflow_batchwrap.exceptions import BatchWrapError

# States in which a DAG run changes no more.
_RUN_ENDED = frozenset({"success", "failed"})
# Rows of one answer, the most that Airflow gives (its `[api] maximum_page_limit`).
_PAGE = 100


@dataclass(frozen=True)
class TaskInstance:
    """One task of a DAG run, as Airflow reports it.

    :param task_id: the task, with its group before it.
    :param map_index: -1 where the task is not mapped.
    :param state: Airflow's state; None before it is scheduled.
    :param try_number: 0 before the first try.
    :param duration: seconds that its last try took; None before it ended.
    :param started: when its last try started, in ISO 8601; None before that.
    """

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    duration: float | None
    started: str | None


class AirflowClient:
    """A signed-in user of one Airflow.

    :param url: the address of its API server.
    :param timeout: seconds that one request may take.
    """

    def __init__(self, url: str, user: str, password: str, *, timeout: float = 30.0) -> None:
        self._user, self._password = user, password
        # Nothing from the environment: a proxy has no business between this machine and itself.
        self._http = httpx.Client(base_url=url, timeout=timeout, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def health(self) -> dict[str, str | None]:
        """Ask for the state of each component.

        :return: component -> "healthy", "unhealthy" or None; empty while the server does not answer.
        """
        try:
            answer = self._http.get("/api/v2/monitor/health")
            states = answer.json() if answer.status_code == httpx.codes.OK else {}
        except (httpx.TransportError, ValueError):
            return {}
        return {name: (state or {}).get("status") for name, state in states.items()}

    def warm_up(self) -> bool:
        """Have the server build its execution API, which it does at the first request and takes seconds for.

        Otherwise the first task of the first run waits for that, and its first request fails.
        """
        try:
            return self._http.get("/execution/health").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def knows(self, dag_id: str) -> bool:
        """Return whether a DAG was read.

        :return: True once a run of it can be triggered.
        """
        return self._send("GET", f"/api/v2/dags/{quote(dag_id, safe='')}", missing=True) is not None

    def import_errors(self) -> list[str]:
        """Read why DAG files could not be imported.

        :return: for each broken file its name and traceback.
        """
        answer = self._send("GET", "/api/v2/importErrors")
        return [f"{each['filename']}\n{each['stack_trace']}" for each in answer["import_errors"]]

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, run_id: str | None = None) -> str:
        """Start a run of a DAG.

        :param conf: the run's params.
        :param run_id: the run's id; by default Airflow makes one.
        :return: the run's id.
        """
        body: dict[str, Any] = {"logical_date": None, "conf": conf or {}}
        body |= {"dag_run_id": run_id} if run_id else {}
        return str(self._send("POST", f"/api/v2/dags/{quote(dag_id, safe='')}/dagRuns", json=body)["dag_run_id"])

    def pause(self, dag_id: str, paused: bool) -> None:
        """Pause a DAG, whose runs wait then, or let it go on."""
        self._send("PATCH", f"/api/v2/dags/{quote(dag_id, safe='')}", json={"is_paused": paused})

    def clear(self, dag_id: str, run_id: str, task_ids: list[str]) -> list[str]:
        """Clear tasks of a run, as a person does who wants them to run again.

        :param run_id: the run; one that is over runs again.
        :param task_ids: the tasks, whatever their states.
        :return: the tasks that were cleared: Airflow adds the set-up and the teardown that they need.
        """
        body = {"dry_run": False, "only_failed": False, "dag_run_id": run_id, "task_ids": task_ids}
        answer = self._send("POST", f"/api/v2/dags/{quote(dag_id, safe='')}/clearTaskInstances", json=body)
        return sorted(row["task_id"] for row in answer["task_instances"])

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Give a task a state, as a person does who knows better.

        :param state: "success", "failed" or "skipped".
        """
        path = f"{self._run(dag_id, run_id)}/taskInstances/{quote(task_id, safe='')}"
        self._send("PATCH", path, json={"new_state": state})

    def mark_run(self, dag_id: str, run_id: str, state: str) -> None:
        """Give a run a state, and with it all of its tasks that are at work.

        :param state: "success" or "failed".
        """
        self._send("PATCH", self._run(dag_id, run_id), json={"state": state})

    def retries(self, dag_id: str, task_id: str) -> int:
        """Return how many retries a task has by the DAG file as Airflow read it last."""
        path = f"/api/v2/dags/{quote(dag_id, safe='')}/tasks/{quote(task_id, safe='')}"
        return int(self._send("GET", path)["retries"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Ask for the state of a run.

        :return: "queued", "running", "success" or "failed".
        """
        return str(self._send("GET", self._run(dag_id, run_id))["state"])

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """List the tasks of a run.

        :return: all of them, the first to start first, those that have not started last.
        """
        rows: list[dict[str, Any]] = []
        while True:
            query = {"limit": _PAGE, "offset": len(rows)}
            answer = self._send("GET", f"{self._run(dag_id, run_id)}/taskInstances", params=query)
            rows += answer["task_instances"]
            if len(rows) >= answer["total_entries"] or not answer["task_instances"]:
                break
        rows.sort(key=lambda row: (row["start_date"] is None, row["start_date"], row["task_id"], row["map_index"]))
        return [
            TaskInstance(
                row["task_id"], row["map_index"], row["state"], row["try_number"], row["duration"], row["start_date"]
            )
            for row in rows
        ]

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """Read an XCom.

        :param task_id: the task that pushed it.
        :param map_index: the task's map index; -1 where it is not mapped.
        :return: its value; None also where there is no such XCom.
        """
        path = f"{self._run(dag_id, run_id)}/taskInstances/{quote(task_id, safe='')}/xcomEntries/{quote(key, safe='')}"
        answer = self._send("GET", path, params={"map_index": map_index}, missing=True)
        return None if answer is None else answer["value"]

    def logs(self, dag_id: str, run_id: str, task_id: str, try_number: int, map_index: int = -1) -> list[str]:
        """Read the log of one try of a task.

        :param try_number: the try, from 1.
        :param map_index: the task's map index; -1 where it is not mapped.
        :return: its lines, with the message of an exception after the line that reports it.
        """
        path = f"{self._run(dag_id, run_id)}/taskInstances/{quote(task_id, safe='')}/logs/{try_number}"
        query = {"full_content": "true", "map_index": map_index}
        answer = self._send("GET", path, params=query, headers={"Accept": "application/json"}, missing=True)
        return list(_lines(answer["content"])) if answer else []

    def links(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, str | None]:
        """Read the extra links of a task.

        :param map_index: the task's map index; -1 where it is not mapped.
        :return: name -> address; None where there is none (yet).
        """
        path = f"{self._run(dag_id, run_id)}/taskInstances/{quote(task_id, safe='')}/links"
        answer = self._send("GET", path, params={"map_index": map_index})
        return dict(answer["extra_links"])

    def wait_for_run(
        self,
        dag_id: str,
        run_id: str,
        *,
        timeout: float,
        on_change: Callable[[list[TaskInstance]], None] | None = None,
        interval: float = 0.5,
    ) -> str:
        """Wait until a run has ended.

        :param timeout: seconds to wait.
        :param on_change: called with all tasks after each look, the last one included.
        :param interval: seconds between two looks.
        :return: "success" or "failed".
        :raises BatchWrapError: it has not ended by then.
        """
        deadline = time.monotonic() + timeout
        while True:
            state = self.run_state(dag_id, run_id)
            if on_change is not None:
                on_change(self.task_instances(dag_id, run_id))
            if state in _RUN_ENDED:
                return state
            if time.monotonic() > deadline:
                raise BatchWrapError(f"The run {run_id} of {dag_id} is still {state} after {timeout:g} s.")
            time.sleep(interval)

    @staticmethod
    def _run(dag_id: str, run_id: str) -> str:
        return f"/api/v2/dags/{quote(dag_id, safe='')}/dagRuns/{quote(run_id, safe='')}"

    def _send(self, method: str, path: str, *, missing: bool = False, hidden: bool = False, **rest: Any) -> Any:
        """Ask; return the answer's JSON.

        :param missing: return None where there is no such thing, in place of an error.
        :param hidden: return None where this user may not see it, in place of an error.
        """
        if "Authorization" not in self._http.headers:
            self._sign_in()
        try:
            answer = self._http.request(method, path, **rest)
        except httpx.TransportError as error:
            raise BatchWrapError(f"Airflow does not answer at {self._http.base_url}: {error!r}") from None
        if (missing and answer.status_code == httpx.codes.NOT_FOUND) or (
            hidden and answer.status_code == httpx.codes.FORBIDDEN
        ):
            return None
        if answer.is_error:
            raise BatchWrapError(f"Airflow answered {method} {path} with {answer.status_code}: {answer.text[:500]}")
        return answer.json()

    def _sign_in(self) -> None:
        body = {"username": self._user, "password": self._password}
        try:
            answer = self._http.post("/auth/token", json=body)
        except httpx.TransportError as error:
            raise BatchWrapError(f"Airflow does not answer at {self._http.base_url}: {error!r}") from None
        if answer.is_error:
            raise BatchWrapError(f"Airflow refused the log-in of {self._user!r} with {answer.status_code}.")
        self._http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"


def _lines(content: list[Any]) -> Iterator[str]:
    for entry in content:
        if not isinstance(entry, dict):
            yield str(entry)
            continue
        event = str(entry.get("event", ""))
        if not event.startswith("::"):  # the marks of a foldable group
            yield event
        for error in entry.get("error_detail") or []:
            yield f"{error.get('exc_type')}: {error.get('exc_value')}"
