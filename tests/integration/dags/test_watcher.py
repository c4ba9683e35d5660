"""All deferred tasks of a Batch job share one watcher: its requests, its pauses, and what it reads of their output."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest

from airflow_batchwrap.triggers.watch import Watcher
from tests.support.polling import until

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.local.runner import LocalService
    from tests.support.bench import Bench


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what the hook asks in the triggerer; the requests are sent all the same."""
    from airflow_batchwrap.hooks.batch import BatchWrapHook

    counted: Counter[str] = Counter()

    def count(name: str) -> None:
        sent = getattr(BatchWrapHook, name)

        async def counting(self: BatchWrapHook, *args: Any) -> Any:
            counted[name] += 1
            return await sent(self, *args)

        monkeypatch.setattr(BatchWrapHook, name, counting)

    for name in ("aview_task", "aview_tasks", "aview_wait", "aread_task_file"):
        count(name)
    return counted


def submit_many(bench: Bench, pool: str, commands: list[str], **arguments: Any) -> list[Any]:
    """Submit commands to one job of a workspace, each as a task that is deferred at once."""
    from airflow_batchwrap import RunBatchTaskOperator, UsePoolOperator

    workspace = bench.run(bench.make(UsePoolOperator, pool_id=pool))
    make = [bench.make(RunBatchTaskOperator, workspace=workspace, command=command, **arguments) for command in commands]
    return [bench.submit(operator) for operator in make]


async def all_events(tries: list[Any], meanwhile: Callable[[], None] | None = None) -> list[dict[str, Any]]:
    waiting = [asyncio.create_task(one.event()) for one in tries]
    if meanwhile is not None:
        await asyncio.to_thread(meanwhile)
    return list(await asyncio.gather(*waiting))


def outcomes(events: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(event["view"]["state"], event["view"]["exit_code"]) for event in events]


def test_many_are_waited_for_with_the_requests_of_one(
    bench: Bench, pool: str, requests: Counter[str], client: BatchClient
) -> None:
    shut, gate = bench.gate()
    # The pool has two slots: these two run, and the others wait for them.
    tries = submit_many(bench, pool, [shut, shut, *["exit 3"] * 18])
    requests.clear()

    def look_on() -> None:
        until(lambda: requests["aview_tasks"] >= 10, "ten lists", 60)
        gate.touch()

    events = asyncio.run(all_events(tries, look_on))
    assert outcomes(events) == [("completed", 0)] * 2 + [("completed", 3)] * 18
    # One list a round, whoever waits, and no request for each of them beside it.
    assert requests["aview_task"] <= 3
    assert requests["aread_task_file"] <= 4 * (requests["aview_tasks"] + 1)


def test_one_alone_is_asked_for_by_name(bench: Bench, pool: str, requests: Counter[str]) -> None:
    shut, gate = bench.gate()
    tries = submit_many(bench, pool, [shut])
    requests.clear()
    threading.Timer(1.0, gate.touch).start()
    (event,) = asyncio.run(all_events(tries))
    assert outcomes([event]) == [("completed", 0)]
    assert requests["aview_task"] >= 2
    assert requests["aview_tasks"] == 0


def test_who_comes_later_or_too_late_is_told_as_well(bench: Bench, pool: str, client: BatchClient) -> None:
    (shut, gate), (other, second_gate) = bench.gate(), bench.gate()
    tries = submit_many(bench, pool, [shut, f"{other}; exit 4", "exit 5"])

    async def one_after_the_other() -> list[dict[str, Any]]:
        first = asyncio.create_task(tries[0].event())
        second_gate.touch()
        second = await tries[1].event()
        # Over before anybody waits for it; the watcher has been at work for long.
        third = await tries[2].event()
        gate.touch()
        return [await first, second, third]

    events = asyncio.run(one_after_the_other())
    assert outcomes(events) == [("completed", 0), ("completed", 4), ("completed", 5)]


def test_deleted_task_and_deleted_job_are_missed(
    bench: Bench, pool: str, client: BatchClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_batchwrap.triggers.watch._LIST_ALL", 0.5)
    shut, gate = bench.gate()
    tries = submit_many(bench, pool, [shut, shut, shut])
    job = tries[0].context["ti"].xcoms["batch"]["job_id"]

    async def delete() -> list[dict[str, Any]]:
        waiting = [asyncio.create_task(one.event()) for one in tries]
        await asyncio.sleep(0)
        await asyncio.to_thread(client.delete_task, job, tries[2].context["ti"].xcoms["batch"]["batch_task_id"])
        first = await waiting[2]
        await asyncio.to_thread(client.begin_delete_job, job)
        return [first, *await asyncio.gather(*waiting[:2])]

    events = asyncio.run(delete())
    gate.touch()
    assert events[0]["view"]["state"] == "missing"
    # A job that is being deleted ends its tasks first: either is true of them.
    assert {event["view"]["state"] for event in events[1:]} <= {"missing", "completed"}


def test_watcher_ends_with_the_last_that_waits(bench: Bench, pool: str) -> None:
    shut, gate = bench.gate()
    tries = submit_many(bench, pool, [shut, "true"])

    async def leave() -> tuple[int, int]:
        first = asyncio.create_task(tries[0].event())
        await tries[1].event()
        watchers = Watcher._all[asyncio.get_running_loop()]
        during = len(watchers)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return during, len(watchers)

    assert asyncio.run(leave()) == (1, 0)
    gate.touch()


def test_output_comes_while_the_step_runs_and_once(bench: Bench, pool: str, capfd: pytest.CaptureFixture[str]) -> None:
    from airflow_batchwrap import RunBatchTaskOperator

    shut, gate = bench.gate()
    step = f"for i in 1 2 3; do echo line $i; echo oh $i >&2; done; {shut}; echo 'é end'; printf last"
    operator = bench.make(RunBatchTaskOperator, pool_id=pool, command=step, inline_wait=3)
    begun = bench.begin(operator)
    before = "".join(capfd.readouterr())
    # Told on the worker, while it runs ...
    assert [before.count(f"[stdout] line {number}") for number in (1, 2, 3)] == [1, 1, 1]
    assert before.count("[stderr] oh 2") == 1
    assert "end" not in before.replace("deferr", "")
    threading.Timer(1.5, gate.touch).start()
    assert begun.finish() == "last"
    after = "".join(capfd.readouterr())
    # ... and only what is new once it was deferred, in the triggerer or at the end.
    assert "line" not in after
    assert after.count("[stdout] é end") == 1
    assert after.count("[stdout] last") == 1
    assert after.index("é end") < after.index("[stdout] last")


@pytest.mark.parametrize("deferrable", [True, False])
def test_output_of_a_step_that_fails_is_whole(
    bench: Bench, pool: str, capfd: pytest.CaptureFixture[str], deferrable: bool
) -> None:
    from airflow_batchwrap import RunBatchTaskOperator
    from airflow_batchwrap.exceptions import StepFailed

    step = "seq 1 5000; echo broken >&2; exit 7"
    operator = bench.make(RunBatchTaskOperator, pool_id=pool, command=step, deferrable=deferrable)
    with pytest.raises(StepFailed, match=r"exit code 7(?s:.)*broken"):
        bench.run(operator)
    told = "".join(capfd.readouterr())
    numbers = [int(part.split()[0]) for part in told.split("[stdout] ")[1:]]
    assert numbers == list(range(1, 5001))


def test_flood_of_output_is_cut_at_the_end_and_says_so(
    bench: Bench, pool: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_batchwrap import RunBatchTaskOperator

    monkeypatch.setattr("airflow_batchwrap.attempts.progress._AT_THE_END", 1000)
    assert bench.run(bench.make(RunBatchTaskOperator, pool_id=pool, command="seq 1 200000; echo z")) == "z"
    told = "".join(capfd.readouterr())
    assert "bytes of stdout.txt are left out here" in told
    assert "[stdout] 200000" in told


def test_busy_service_fails_nobody_and_is_left_alone_by_all(
    bench: Bench,
    pool: str,
    requests: Counter[str],
    local_service: LocalService,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # The same account behind a door that turns most requests away.
    shut, gate = bench.gate()
    tries = submit_many(bench, pool, [shut, shut, "exit 3", "exit 4"])
    with Door(local_service, open_after=3) as door:
        set_address(monkeypatch, local_service, door.url)
        requests.clear()

        def until_open() -> None:
            assert door.opened.wait(30)
            gate.touch()

        events = asyncio.run(all_events(tries, until_open))
    assert outcomes(events) == [("completed", 0), ("completed", 0), ("completed", 3), ("completed", 4)]
    # Turned away three times, each after the second it had asked for: by one of them for all.
    assert len(door.turned_away) == 3
    assert min(later - sooner for sooner, later in itertools.pairwise(door.turned_away)) >= 1
    assert "busy or failing" in "".join(capfd.readouterr())


class Door(contextlib.AbstractContextManager["Door"]):
    """A web server that answers 429 for a while, and passes requests on to the service afterwards.

    :param open_after: how many requests are turned away.
    """

    def __init__(self, service: LocalService, open_after: int) -> None:
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if len(door.turned_away) < open_after:
                    door.turned_away.append(time.monotonic())
                    return self.answer(429, {"Retry-After": "1"}, b"")
                door.opened.set()
                headers = {name: text for name, text in self.headers.items() if name.lower() != "host"}
                answer = httpx.get(f"{service.url}{self.path}", headers=headers)
                kept = {name: answer.headers[name] for name in ("content-type",) if name in answer.headers}
                return self.answer(answer.status_code, kept, answer.content)

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, text in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.turned_away: list[float] = []
        self.opened = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def set_address(monkeypatch: pytest.MonkeyPatch, service: LocalService, url: str) -> None:
    conn = {
        "conn_type": "azure_batch",
        "login": service.account,
        "password": service.key,
        "extra": {"account_url": url},
    }
    monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps(conn))


@pytest.mark.parametrize(
    ("state", "ended"),
    [
        ("failed", True),
        ("success", True),
        ("restarting", True),
        (None, True),
        ("deferred", False),
        ("running", False),
        ("queued", False),
        ("scheduled", False),
    ],
)
def test_only_what_a_person_ended_is_terminated(
    bench: Bench, pool: str, client: BatchClient, monkeypatch: pytest.MonkeyPatch, state: str | None, ended: bool
) -> None:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    from airflow_batchwrap.triggers.step import BatchTaskTrigger

    shut, gate = bench.gate()
    (one, sibling) = submit_many(bench, pool, [shut, shut])

    def states(**asked: Any) -> dict[str, Any]:
        assert asked["dag_id"] == bench.dag.dag_id
        return {asked["run_ids"][0]: {asked["task_ids"][0]: state}}

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", states)
    trigger = BatchTaskTrigger(**one.trigger_arguments)
    asyncio.run(trigger.on_kill())

    def over() -> bool:
        return client.get_task(trigger.job_id, trigger.batch_task_id).state == "completed"

    if ended:
        until(over, "the Batch task's end")
    else:
        with pytest.raises(AssertionError, match="Not within"):
            until(over, "an end that must not come", 0.2)
    other = sibling.context["ti"].xcoms["batch"]
    assert client.get_task(other["job_id"], other["batch_task_id"]).state != "completed"
    gate.touch()


def test_what_is_not_known_in_time_is_left_alone(
    bench: Bench, pool: str, client: BatchClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    from airflow_batchwrap.triggers.step import BatchTaskTrigger

    shut, gate = bench.gate()
    (one,) = submit_many(bench, pool, [shut])
    trigger = BatchTaskTrigger(**one.trigger_arguments)
    never = threading.Event()
    monkeypatch.setattr("airflow_batchwrap.triggers.cancel.TIME_OF_TRIGGER", 0.2)
    for ask in (lambda **_: never.wait(20), lambda **_: 1 / 0):
        monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", ask)
        asyncio.run(trigger.on_kill())
        assert client.get_task(trigger.job_id, trigger.batch_task_id).state != "completed"
    never.set()
    gate.touch()
