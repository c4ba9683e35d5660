"""What meets a quota waits for room and asks again, in the same try; then it is tried again, or leaves nothing."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_batchwrap.exceptions import NoCapacity, NodeLost, PoolError, StepTimeout
from tests.support.polling import until

if TYPE_CHECKING:
    from airflow_batchwrap.local.runner import LocalService
    from tests.support.bench import Bench, Try

MODES = pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "blocking"])
JOB_QUOTA = r"quota of active jobs and schedules is used up \(ActiveJobAndScheduleQuotaReached\)"
POOL_QUOTA = r"quota of pools is used up \(PoolQuotaReached\)"


class Account:
    """A Batch account with little room, and what others have on it."""

    def __init__(self, service: LocalService) -> None:
        from azure.batch import BatchClient
        from azure.core.credentials import AzureNamedKeyCredential

        self.service = service
        self.client = BatchClient(service.url, AzureNamedKeyCredential(service.account, service.key))

    def pool(self, nodes: int = 0) -> str:
        """Make somebody's pool."""
        from azure.batch import models as m

        pool_id = f"theirs-{uuid.uuid4().hex[:8]}"
        image = m.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
        machine = m.VirtualMachineConfiguration(image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04")
        options = m.BatchPoolCreateOptions(
            id=pool_id,
            vm_size="Standard_D2s_v3",
            virtual_machine_configuration=machine,
            target_dedicated_nodes=nodes,
        )
        self.client.create_pool(options)
        until(lambda: len(list(self.client.list_nodes(pool_id))) == nodes, "their nodes")
        return pool_id

    def job(self) -> str:
        """Open somebody's job."""
        from azure.batch import models as m

        job_id = f"theirs-{uuid.uuid4().hex[:8]}"
        self.client.create_job(m.BatchJobCreateOptions(id=job_id, pool_info=m.BatchPoolInfo(pool_id="none")))
        return job_id

    def end_job(self, job_id: str) -> None:
        """End somebody's job."""
        self.client.begin_delete_job(job_id, polling_interval=0).wait()

    def ours(self, bench: Bench) -> list[str]:
        """Return which of the bench's pools and jobs nobody has asked to delete."""
        mine = f"startswith(id, '{bench.dag.dag_id}') and state ne 'deleting'"
        pools, jobs = self.client.list_pools(filter=mine), self.client.list_jobs(filter=mine)
        return ["pool" for _ in pools] + ["job" for _ in jobs]


Accounts = Callable[..., Account]


@pytest.fixture
def account(connections: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Accounts]:
    """Start a service with further words for ``batchwrap local serve``; Airflow's connection points at it."""
    from airflow_batchwrap.local import runner

    made: list[Account] = []

    def start(*words: str) -> Account:
        service = runner.launch(tmp_path / f"account{len(made)}", [*words, "--port", "0"])
        made.append(Account(service))
        login = {"login": service.account, "password": service.key, "extra": {"account_url": service.url}}
        monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps({"conn_type": "azure_batch", **login}))
        return made[-1]

    yield start
    for each in made:
        each.client.close()
        each.service.stop()


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Decide what Airflow says of any task."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    def decide(state: str) -> None:
        def states(**asked: Any) -> dict[str, Any]:
            return {asked["run_ids"][0]: {asked["task_ids"][0]: state}}

        monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", states)

    return decide


def asking(kind: Any, before: Callable[[int], object]) -> Any:
    """Return a class of operator that calls ``before`` with a number each time that it asks the service, from 1."""

    class Asking(kind):  # type: ignore[misc]
        asks = 0

        def begin(self, work: Any) -> Any:
            type(self).asks += 1
            before(type(self).asks)
            return super().begin(work)

    return Asking


@contextmanager
def meanwhile(what: Callable[[], object]) -> Iterator[None]:
    """Do something beside the block."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            what()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    assert failed == []


@MODES
@pytest.mark.parametrize("kind", ["create", "use", "step", "manifest"])
def test_whatever_opens_a_job_waits_for_room_in_the_same_try(
    bench: Bench, account: Accounts, capfd: pytest.CaptureFixture[str], kind: str, deferrable: bool
) -> None:
    from airflow_batchwrap import (
        CreatePoolOperator,
        RunBatchManifestOperator,
        RunBatchTaskOperator,
        UsePoolOperator,
    )

    there = account("--quota", "jobs=1")
    pool, theirs = ("" if kind == "create" else there.pool(1)), there.job()
    seen: list[list[str]] = []

    def before(ask: int) -> None:
        seen.append(there.ours(bench))
        if ask == 3:
            there.end_job(theirs)

    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "create": (CreatePoolOperator, {"pool_config": {}}),
        "use": (UsePoolOperator, {"pool_id": pool}),
        "step": (RunBatchTaskOperator, {"pool_id": pool, "command": "echo 7"}),
        "manifest": (RunBatchManifestOperator, {"pool_id": pool, "manifest": [{"command": "echo 7"}] * 3}),
    }
    base, given = kinds[kind]
    operator = bench.make(asking(base, before), deferrable=deferrable, inline_wait=30, **given)
    result = bench.run(operator)
    if kind == "step":
        assert result == "7"
    elif kind == "manifest":
        assert result["succeeded"] == 3
    else:
        assert result["job_id"] in [job.id for job in there.client.list_jobs(filter="state eq 'active'")]
    # No pool is paid for before there is room for its job.
    assert seen == [[], [], []]
    log = "".join(capfd.readouterr())
    assert log.count("Asking again in 1 s") >= 1
    assert log.count("Asking again in 2 s") == 1
    assert "There is room now" in log
    assert there.ours(bench) == {"create": ["pool", "job"], "use": ["job"]}.get(kind, [])


def test_who_waits_for_room_holds_no_worker(bench: Bench, account: Accounts) -> None:
    from airflow_batchwrap import CreatePoolOperator

    there = account("--quota", "jobs=0")
    operator = bench.make(CreatePoolOperator, pool_config={}, inline_wait=60, poll_interval=1.0)
    began, pauses = time.time(), []
    waiting = bench.begin(operator)
    for _ in range(3):
        path, given = waiting.trigger or ("", {})
        assert path.endswith(".RoomTrigger")
        pauses.append(given["again_at"] - time.time())
        waiting.go_on()
    assert time.time() - began < 30
    assert [round(pause) for pause in pauses] == [1, 2, 4]
    assert there.ours(bench) == []


@MODES
def test_a_set_up_waits_for_a_pool_s_room_with_its_job(bench: Bench, account: Accounts, deferrable: bool) -> None:
    from airflow_batchwrap import CreatePoolOperator

    there = account("--quota", "pools=1")
    theirs, seen = there.pool(), []

    def before(ask: int) -> None:
        seen.append(there.ours(bench))
        if ask == 2:
            there.client.begin_delete_pool(theirs, polling_interval=0).wait()

    operator = bench.make(asking(CreatePoolOperator, before), pool_config={}, deferrable=deferrable)
    workspace = bench.run(operator)
    assert seen == [[], ["job"]]
    assert there.client.get_job(workspace["job_id"]).pool_info.pool_id == workspace["pool_id"]
    assert workspace["owns_pool"]
    assert there.ours(bench) == ["pool", "job"]


@MODES
@pytest.mark.parametrize("idle_minutes", [0, 5], ids=["fixed", "formula"])
def test_nodes_come_when_others_have_given_theirs_back(
    bench: Bench, account: Accounts, capfd: pytest.CaptureFixture[str], idle_minutes: int, deferrable: bool
) -> None:
    from airflow_batchwrap import CreatePoolOperator

    there = account("--quota", "cores=4", "--time-scale", "300")
    theirs = there.pool(1)

    def make_room() -> None:
        def short() -> bool:
            pools = [pool for pool in there.client.list_pools() if pool.id != theirs]
            return bool(pools and pools[0].resize_errors)

        until(short, "the quota of cores to be met", 60)
        there.client.begin_delete_pool(theirs)

    more = {"deferrable": deferrable, "inline_wait": 0 if deferrable else 60}
    config = {"target_dedicated_nodes": 2, "idle_minutes": idle_minutes}
    with meanwhile(make_room):
        workspace = bench.run(bench.make(CreatePoolOperator, pool_config=config, **more))
    assert there.client.get_pool(workspace["pool_id"]).current_dedicated_nodes == 2
    # A formula asks by itself, and may have its nodes before anybody has looked.
    assert idle_minutes or "AccountCoreQuotaReached" in "".join(capfd.readouterr())


@MODES
def test_machines_that_are_not_to_be_had_twice_are_asked_for_until_they_come(
    bench: Bench, account: Accounts, capfd: pytest.CaptureFixture[str], deferrable: bool
) -> None:
    from airflow_batchwrap import CreatePoolOperator

    there = account("--faults", "allocation=2x")
    more = {"deferrable": deferrable, "inline_wait": 0 if deferrable else 60}
    workspace = bench.run(bench.make(CreatePoolOperator, pool_config={"idle_minutes": 0}, **more))
    assert there.client.get_pool(workspace["pool_id"]).current_dedicated_nodes == 1
    log = "".join(capfd.readouterr())
    said = log.count("has 0 of the 1 nodes it needs: AllocationFailed")
    assert 1 <= said <= 1 + deferrable, "once on the worker, once in the triggerer"


@MODES
@pytest.mark.parametrize("limit", ["pool_wait_timeout", "execution_timeout"])
def test_when_the_time_is_over_another_try_goes_on_and_the_last_one_leaves_nothing(
    bench: Bench, account: Accounts, deferrable: bool, limit: str
) -> None:
    from airflow.sdk.exceptions import AirflowTaskTimeout

    from airflow_batchwrap import CreatePoolOperator

    there = account("--quota", "pools=1")
    there.pool()
    given = {"pool_config": {}, "deferrable": deferrable, "retries": 1, limit: timedelta(seconds=2)}
    operator = bench.make(CreatePoolOperator, **given)
    airflows = limit == "execution_timeout" and not deferrable  # Airflow itself ends it, and tells no reason
    why = None if airflows else f"{POOL_QUOTA}.*waited for until {limit}"
    error: Any = AirflowTaskTimeout if airflows else NoCapacity
    jobs = []
    for number in (1, 2):
        with pytest.raises(error, match=why):
            bench.run(operator, try_number=number)
        jobs.append(there.ours(bench))
    # What another try goes on with is not undone: after Airflow's own timeout none does.
    assert jobs == [[] if airflows else ["job"], []]


@pytest.mark.parametrize("kind", ["step", "manifest"])
@MODES
def test_a_job_s_room_is_waited_for_until_pool_wait_timeout(
    bench: Bench, account: Accounts, kind: str, deferrable: bool
) -> None:
    from airflow_batchwrap import RunBatchManifestOperator, RunBatchTaskOperator

    there = account("--quota", "jobs=0")
    pool = there.pool()
    given = {"pool_id": pool, "deferrable": deferrable, "pool_wait_timeout": "2 s", "inline_wait": 0}
    operator: Any
    if kind == "step":
        operator = bench.make(RunBatchTaskOperator, command="echo 7", **given)
    else:
        operator = bench.make(RunBatchManifestOperator, manifest=[{"command": "echo 7"}], **given)
    with pytest.raises(NoCapacity, match=f"{JOB_QUOTA}.*waited for until pool_wait_timeout \\(0:00:02\\)"):
        bench.run(operator)


@MODES
@pytest.mark.parametrize(("state", "left"), [("failed", []), ("restarting", ["job"])])
def test_an_end_by_a_person_while_it_waits_for_room(
    bench: Bench, account: Accounts, say: Callable[[str], None], state: str, left: list[str], deferrable: bool
) -> None:
    from airflow_batchwrap import CreatePoolOperator
    from airflow_batchwrap.triggers.pool import RoomTrigger

    there = account("--quota", "pools=1")
    there.pool()
    say(state)
    if deferrable:
        waiting = bench.begin(bench.make(CreatePoolOperator, pool_config={}))
        waiting.go_on()  # on the worker, and again in the triggerer
        assert there.ours(bench) == ["job"]
        asyncio.run(RoomTrigger(**waiting.trigger_arguments).on_kill())
    else:
        operator = bench.make(CreatePoolOperator, pool_config={}, deferrable=False)

        def kill() -> None:
            until(lambda: there.ours(bench) == ["job"], "its job", 60)
            operator.on_kill()

        with meanwhile(kill), pytest.raises(PoolError, match=f"was ended with the Airflow task \\({state}\\)"):
            bench.run(operator)
    assert there.ours(bench) == left


def test_a_step_that_a_person_ends_while_it_waits_for_room(
    bench: Bench, account: Accounts, say: Callable[[str], None]
) -> None:
    from airflow_batchwrap import RunBatchTaskOperator

    there = account("--quota", "jobs=0")
    pool, asked = there.pool(), threading.Event()
    say("failed")
    kind = asking(RunBatchTaskOperator, lambda _: asked.set())
    operator = bench.make(kind, pool_id=pool, command="echo 7", deferrable=False)

    def kill() -> None:
        assert asked.wait(60)
        until(lambda: operator._try is not None and operator._try.refused, "the refusal")
        operator.on_kill()

    with meanwhile(kill), pytest.raises(StepTimeout, match="Waiting for room for a job was ended"):
        bench.run(operator)
    assert there.ours(bench) == []


@pytest.mark.parametrize("what", ["jobs=1", "pools=1"])
def test_a_worker_or_triggerer_that_dies_while_it_waits_loses_nothing(
    bench: Bench, account: Accounts, what: str
) -> None:
    from airflow_batchwrap import CreatePoolOperator

    there = account("--quota", what)
    job, pool = there.job() if what == "jobs=1" else "", there.pool() if what == "pools=1" else ""
    operator = bench.make(CreatePoolOperator, pool_config={}, retries=2)
    bench.begin(operator, try_number=1)  # and nobody goes on with it
    second: Try = bench.begin(operator, try_number=2)
    second.go_on()
    before = there.ours(bench)
    assert before == (["job"] if pool else [])
    if job:
        there.end_job(job)
    else:
        there.client.begin_delete_pool(pool, polling_interval=0).wait()
    bench.run(operator, try_number=3)
    assert there.ours(bench) == ["pool", "job"], "one of each"


def test_what_is_tried_again_is_the_user_s_to_say(bench: Bench) -> None:
    from airflow.sdk.definitions.retry_policy import RetryAction

    from airflow_batchwrap import CreatePoolOperator

    theirs = bench.make(CreatePoolOperator, pool_config={}, retries=4, retry_delay=timedelta(minutes=7))
    none = bench.make(CreatePoolOperator, pool_config={})
    context: Any = SimpleNamespace()
    for operator, retries, delay in ((theirs, 4, timedelta(minutes=7)), (none, 2, timedelta(seconds=30))):
        assert (operator.retries, operator.retry_delay) == (retries, delay)
        policy = operator.retry_policy
        assert policy is not None
        assert policy.evaluate(NoCapacity("full"), 1, retries, context).action == RetryAction.DEFAULT
        lost = policy.evaluate(NodeLost("gone"), 1, retries, context)
        assert (lost.action, lost.retry_delay) == (RetryAction.RETRY, timedelta(seconds=30))
