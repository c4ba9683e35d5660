"""Metrics arrive at a StatsD server, from a task and from a trigger; one that fails fails nothing."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from airflow_batchwrap import metrics
from tests.support.polling import until

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from tests.support.dag_runs import RunWorkflow

LINE = re.compile(r"airflow\.(batchwrap\.\w+)((?:,\w+=[^,:]+)*):([-\d.]+)\|(c|ms)")


@dataclass(frozen=True)
class Sent:
    """One metric as StatsD gets it."""

    name: str
    tags: dict[str, str]
    value: float
    kind: str


class StatsD:
    """A StatsD server: a UDP socket that is read when one asks."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self.sent: list[Sent] = []

    def read(self) -> None:
        """Take what has come."""
        while True:
            try:
                text = self._server.recv(65535).decode()
            except BlockingIOError:
                return
            for line in text.splitlines():
                if match := LINE.fullmatch(line):
                    tags = dict(pair.split("=", 1) for pair in match[2].split(",") if pair)
                    self.sent.append(Sent(match[1], tags, float(match[3]), match[4]))

    def of(self, name: str, count: int = 1) -> list[Sent]:
        """Wait for so many metrics of a name."""

        def look() -> list[Sent] | None:
            self.read()
            found = [each for each in self.sent if each.name == name]
            return found if len(found) >= count else None

        return until(look, lambda: f"{count} metrics {name} among {self.sent}", 5) or []


@pytest.fixture
def statsd(monkeypatch: pytest.MonkeyPatch, airflow_home: object) -> Iterator[StatsD]:
    """A StatsD server, and Airflow set up to send to it, as for the first time in a process."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        for name, value in {
            "STATSD_ON": "True",
            "STATSD_HOST": "127.0.0.1",
            "STATSD_PORT": str(server.getsockname()[1]),
            "STATSD_INFLUXDB_ENABLED": "True",
        }.items():
            monkeypatch.setenv(f"AIRFLOW__METRICS__{name}", value)
        forget()
        yield StatsD(server)
    forget()


def forget() -> None:
    """Put Airflow's metrics back to where a new process begins."""
    from airflow.sdk._shared.observability.metrics import stats

    client = getattr(stats._backend, "statsd", None)
    if client is not None:
        client.close()
    stats._factory = stats._backend = None


def test_a_run_is_counted_and_timed(run_workflow: RunWorkflow, statsd: StatsD) -> None:
    run = run_workflow(
        {"1_one.py": "import time\ndef do_action(engine):\n    time.sleep(1.5)\n    return 'x' * 60000\n"},
        inputs={"seen.txt": "never uploaded before: metrics"},
    )
    assert run.state == "success", run.log
    tags = {"dag_id": run.dag_id, "task_id": "w.1_one"}
    (ran,) = statsd.of(metrics.RUN_TIME)
    assert (ran.kind, ran.tags) == ("ms", tags)
    assert 1500 <= ran.value < 30_000
    (queued,) = statsd.of(metrics.QUEUE_TIME)
    assert (queued.kind, queued.tags) == ("ms", tags)
    assert 0 <= queued.value < 30_000
    (submitted,) = statsd.of(metrics.SUBMIT_TIME)
    assert (submitted.kind, submitted.tags) == ("ms", tags)
    assert 0 < submitted.value < 30_000
    requests = statsd.of(metrics.REQUESTS, 10)
    assert {each.kind for each in requests} == {"c"}
    assert {"GET", "POST", "DELETE"} <= {each.tags["method"] for each in requests}
    # The archive at least; the result record at least.
    assert sum(each.value for each in statsd.of(metrics.UPLOADED)) > 10_000
    assert sum(each.value for each in statsd.of(metrics.DOWNLOADED)) > 100


def test_each_request_is_counted_once_also_of_a_trigger(hook: BatchWrapHook, statsd: StatsD, pool: str) -> None:
    from airflow_batchwrap.naming import BatchTaskKey

    async def look() -> None:
        async with hook.async_batch() as client:
            assert (await hook.aview_task(client, BatchTaskKey("no-such-job", "t"))).state == "missing"

    asyncio.run(look())
    assert hook.view_task(BatchTaskKey("no-such-job", "t")).state == "missing"
    assert hook.find_pool(pool) is not None
    statsd.of(metrics.REQUESTS, 3)
    assert [(each.value, each.tags) for each in statsd.sent] == [(1, {"method": "GET"})] * 3


def test_without_a_backend_nothing_is_sent_and_a_broken_one_fails_nothing(
    hook: BatchWrapHook, monkeypatch: pytest.MonkeyPatch, statsd: StatsD, pool: str
) -> None:
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "False")
    assert hook.find_pool(pool) is not None
    forget()
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_PORT", "not a number")
    assert hook.find_pool(pool) is not None
    metrics.timing(metrics.RUN_TIME, 1.0)
    metrics.batch_task_times("", "2026-11-22T10:00:00+00:00", "")
    statsd.read()
    assert statsd.sent == []
