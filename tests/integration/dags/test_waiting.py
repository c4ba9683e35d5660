"""Waiting in the triggerer: an event always comes, in time, and whoever reads the log knows what goes on."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from airflow_batchwrap.triggers.base import WaitTrigger
from airflow_batchwrap.triggers.events import Event, PoolEvent
from airflow_batchwrap.triggers.pool import PoolTrigger
from airflow_batchwrap.triggers.step import BatchTaskTrigger

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.local.runner import LocalService
    from tests.support.bench import Bench

RESUME = {"workspace": {"pool_id": "p"}}


def common(seconds: float = 20) -> dict[str, Any]:
    return {
        "deadline": time.time() + seconds,
        "poll_interval": 0.5,
        "azure_batch_conn_id": "azure_batch_default",
        "wasb_conn_id": "wasb_default",
        "resume": RESUME,
    }


async def event(trigger: WaitTrigger) -> dict[str, Any]:
    (found,) = [item.payload async for item in trigger.run()]
    assert found.pop("resume") == RESUME
    told: dict[str, Any] = json.loads(json.dumps(found))
    return told


@pytest.mark.parametrize("value", [None, "", -1, "x", {}, float("inf")])
def test_making_a_trigger_never_fails(value: Any) -> None:
    # One that raised would end the triggerer, and the next one.
    given = dict.fromkeys(common(), value)
    assert PoolTrigger(pool_id=value, min_nodes=value, **given).serialize()[1]["pool_id"] == value
    step = BatchTaskTrigger(pool_id=value, job_id=value, batch_task_id=value, **given)
    path, arguments = step.serialize()
    assert path == "airflow_batchwrap.triggers.step.BatchTaskTrigger"
    assert BatchTaskTrigger(**arguments).serialize() == (path, arguments)


def set_connection(monkeypatch: pytest.MonkeyPatch, service: LocalService, **changes: Any) -> None:
    conn = {"login": service.account, "password": service.key, "extra": {"account_url": service.url}, **changes}
    monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps({"conn_type": "azure_batch", **conn}))


async def test_a_service_that_does_not_answer_is_waited_for_until_the_deadline(
    connections: None, local_service: LocalService, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        set_connection(monkeypatch, local_service, extra={"account_url": url})
        began = time.monotonic()
        assert await event(PoolTrigger(pool_id="p", min_nodes=None, **common(2))) == PoolEvent.late().to_json()
    assert 2 <= time.monotonic() - began < 10
    told = "".join(capfd.readouterr())
    assert "not answer" in told
    assert local_service.key not in told


WRONG = "d3Jvbmcta2V5LXdyb25nLWtleQ=="


@pytest.fixture
def triggers(connections: None) -> list[WaitTrigger]:
    """A trigger of each way to look."""
    return [
        PoolTrigger(pool_id="nowhere", min_nodes=None, **common()),
        BatchTaskTrigger(pool_id="nowhere", job_id="j", batch_task_id="t", **common()),
    ]


async def test_a_wrong_key_is_told_after_some_looks(
    triggers: list[WaitTrigger], local_service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_batchwrap.triggers.patience.MOST", 1)
    set_connection(monkeypatch, local_service, password=WRONG)
    for trigger in triggers:
        told = (await event(trigger))["error"]
        assert "refused the credentials of connection 'azure_batch_default'" in told
        assert WRONG not in told


async def test_a_refusal_that_passes_ends_no_wait(
    triggers: list[WaitTrigger],
    local_service: LocalService,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for trigger in triggers:
        set_connection(monkeypatch, local_service, password=WRONG)
        waiting = asyncio.create_task(event(trigger))
        told = ""
        while "refused the credentials" not in told:
            await asyncio.sleep(0.05)
            told += "".join(capfd.readouterr())
        set_connection(monkeypatch, local_service)
        assert (await waiting)["error"] == ""


def test_a_refusal_that_lasts_leads_to_another_try_that_adopts(
    bench: Any, pool: str, local_service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_batchwrap import RunBatchTaskOperator, UsePoolOperator
    from airflow_batchwrap.exceptions import TryAgain

    monkeypatch.setattr("airflow_batchwrap.triggers.patience.MOST", 1)
    shut, gate = bench.gate()
    workspace = bench.run(bench.make(UsePoolOperator, pool_id=pool))
    operator = bench.make(RunBatchTaskOperator, workspace=workspace, command=shut)
    first = bench.submit(operator)
    set_connection(monkeypatch, local_service, password=WRONG)
    with pytest.raises(TryAgain, match="refused the credentials"):
        first.finish()
    set_connection(monkeypatch, local_service)
    second = bench.submit(operator, try_number=2)
    gate.touch()
    second.finish()
    batch_task = first.context["ti"].xcoms["batch"]["batch_task_id"]
    assert second.context["ti"].xcoms["batch"]["batch_task_id"] == batch_task


async def test_a_connection_that_is_missing_or_half_is_told(
    connections: None, local_service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_connection(monkeypatch, local_service, extra={})
    told = await event(PoolTrigger(pool_id="p", min_nodes=None, **common()))
    assert "has no account_url" in told["error"]
    assert "Set it in Airflow's Admin > Connections" in told["error"]
    monkeypatch.delenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT")
    told = await event(PoolTrigger(pool_id="p", min_nodes=None, **common()))
    assert "AIRFLOW_CONN_AZURE_BATCH_DEFAULT" in told["error"]


async def test_what_is_not_there_is_told(connections: None) -> None:
    verdict = (await event(PoolTrigger(pool_id="nowhere", min_nodes=None, **common())))["verdict"]
    assert verdict["answer"] == "failed"
    view = (await event(BatchTaskTrigger(pool_id="nowhere", job_id="j", batch_task_id="t", **common())))["view"]
    assert view["state"] == "missing"


class Clumsy(WaitTrigger):
    """Looks that fail in a way that nobody thought of."""

    failures = 0

    async def look(self, hook: Any, client: Any) -> Event | None:
        self.failures -= 1
        if self.failures >= 0:
            raise ZeroDivisionError("secret=abc")
        return Event(kind="seen")


async def test_a_look_may_fail_a_few_times(connections: None) -> None:
    trigger = Clumsy(**common())
    trigger.poll_interval = 0.01
    trigger.failures = 5
    assert await event(trigger) == {"kind": "seen", "error": ""}
    trigger.failures = 6
    assert await event(trigger) == {
        "kind": "error",
        "error": "Waiting failed in the triggerer: ZeroDivisionError",
    }


async def test_an_event_leaves_airflow_time_to_hear_that_the_task_went(
    connections: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_batchwrap.triggers import base

    monkeypatch.setattr(base, "_SOONEST", 1.0)
    began = time.monotonic()
    await event(Clumsy(**common()))  # no scheduler is there, as in `dag.test()`
    assert time.monotonic() - began < 1.0
    trigger, instance = Clumsy(**common()), SimpleNamespace(task_id="t")
    trigger.task_instance = cast("Any", instance)
    began = time.monotonic()
    assert await event(trigger) == {"kind": "seen", "error": ""}
    assert time.monotonic() - began >= 1.0


def test_states_are_logged_once_each(
    bench: Bench, pool: str, client: BatchClient, capfd: pytest.CaptureFixture[str]
) -> None:
    from airflow_batchwrap import CreatePoolOperator, DeletePoolOperator, RunBatchTaskOperator

    shut, gate = bench.gate()
    begun = bench.submit(bench.make(CreatePoolOperator, pool_config={"start_task": shut}))
    capfd.readouterr()
    threading.Timer(1, gate.touch).start()
    workspace = begun.finish()
    told = "".join(capfd.readouterr())
    assert "0 of 1 nodes usable (1 waitingforstarttask" in told
    assert told.count("1 of 1 nodes usable (1 idle") == 1
    shut, gate = bench.gate()
    begun = bench.submit(bench.make(RunBatchTaskOperator, workspace=workspace, command=f"{shut}; echo end"))
    threading.Timer(1, gate.touch).start()
    assert begun.finish() == "end"
    told = "".join(capfd.readouterr())
    assert told.count("is running") == 1
    assert "Request URL" not in told
    bench.run(bench.make(DeletePoolOperator, workspace=workspace))


def test_a_trigger_can_be_cancelled(connections: None, pool: str) -> None:
    async def cancelled() -> None:
        waiting = asyncio.create_task(event(Clumsy(**common())))
        await asyncio.sleep(0)
        waiting.cancel()
        await waiting

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


def test_both_connections_can_be_tried(
    hook: BatchWrapHook, local_service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_batchwrap.hooks.batch import BatchWrapHook

    assert hook.test_connection() == (True, "The Batch account and the storage account answer.")
    set_connection(monkeypatch, local_service, login="somebody-else")
    works, told = BatchWrapHook().test_connection()
    assert not works
    assert "refused the credentials" in told
    assert local_service.key not in told
