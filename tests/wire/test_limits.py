"""What an account may have and a request may hold: quotas, machines that are not to be had, lengths."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

from airflow_batchwrap.exceptions import BatchWrapError, ConfigError, NoCapacity
from airflow_batchwrap.hooks.errors import translate
from airflow_batchwrap.hooks.views import NodeView, PoolView, WaitView, judge_pool, judge_wait
from airflow_batchwrap.local import runner
from airflow_batchwrap.local.quotas import Quotas, QuotasError
from tests.support.raw import signed

if TYPE_CHECKING:
    from tests.support.wire import Wire

GAP = datetime.timedelta(minutes=5)


@pytest.fixture(scope="module")
def small(services: Callable[..., Wire], tmp_path_factory: pytest.TempPathFactory) -> Wire:
    """An account that may have little."""
    data: Path = tmp_path_factory.mktemp("small")
    return services(data / "data", "--quota", "jobs=2,pools=2,cores=5,spot-cores=2")


def refused(call: Callable[[], object]) -> tuple[int | None, str, BatchWrapError]:
    """The status and the code that a call is refused with, and what becomes of it for a user."""
    with pytest.raises(HttpResponseError) as caught:
        call()
    answer: Any = caught.value
    return answer.status_code, answer.error.code, translate(answer, "do it", "the Batch account", "my_conn")


def view(wire: Wire, name: str) -> PoolView:
    """The pool as the waits see it."""
    return PoolView.of(wire.client.get_pool(name), [NodeView.of(node) for node in wire.client.list_nodes(name)])


def steady(wire: Wire, name: str) -> PoolView:
    """The pool as the waits see it, once its resize is over."""
    wire.until(lambda: wire.client.get_pool(name).allocation_state == "steady")
    return view(wire, name)


def make(wire: Wire, dedicated: int, spot: int = 0, **more: Any) -> str:
    """A pool, whose nodes may not all come."""
    name = wire.name("pool")
    wire.client.create_pool(wire.pool_options(name, dedicated, target_low_priority_nodes=spot, **more))
    return name


def gone(wire: Wire, *pools: str) -> None:
    """Delete pools."""
    for name in pools:
        wire.client.begin_delete_pool(name, polling_interval=0).wait()


def again(wire: Wire, name: str) -> None:
    """Ask for a pool's nodes once more, as who waits for them does."""
    pool = wire.client.get_pool(name)
    options = m.BatchPoolResizeOptions(
        target_dedicated_nodes=pool.target_dedicated_nodes, target_low_priority_nodes=pool.target_low_priority_nodes
    )
    wire.client.begin_resize_pool(name, options, polling_interval=0).wait()


def test_pools_have_a_quota_and_a_new_one_has_room_once_another_is_gone(small: Wire) -> None:
    first, second = make(small, 0), make(small, 0)
    status, code, error = refused(lambda: make(small, 0))
    assert (status, code, type(error)) == (409, "PoolQuotaReached", NoCapacity)
    assert "quota of pools is used up" in str(error)
    # One that is there already is said to be there, whatever the quota.
    assert refused(lambda: small.client.create_pool(small.pool_options(first, 0)))[1] == "PoolExists"
    gone(small, first)
    third = make(small, 0)
    gone(small, second, third)


def test_jobs_have_a_quota_and_a_new_one_has_room_once_another_is_over(small: Wire) -> None:
    first, second = small.job("none"), small.job("none")
    status, code, error = refused(lambda: small.job("none"))
    assert (status, code, type(error)) == (409, "ActiveJobAndScheduleQuotaReached", NoCapacity)
    assert "quota of active jobs and schedules is used up" in str(error)
    small.terminate(first)
    small.client.begin_delete_job(second, polling_interval=0).wait()
    for job in (small.job("none"), small.job("none")):
        small.client.begin_delete_job(job, polling_interval=0).wait()


def test_cores_have_a_quota_that_a_resize_meets_and_that_passes(small: Wire) -> None:
    # Nodes of two cores: two dedicated ones and a spot node are within the quota, and no part of a node is.
    name = make(small, 3, 2)
    short = steady(small, name)
    assert [error.partition(":")[0] for error in short.resize_errors] == [
        "AccountCoreQuotaReached",
        "AccountLowPriorityCoreQuotaReached",
    ]
    assert (short.targets, short.present) == ((3, 2), (2, 1))
    verdict = judge_pool(short)
    assert (verdict.answer, verdict.ask, type(verdict.error())) == ("short", True, NoCapacity)
    small.nodes(name, 3, "idle")
    assert judge_pool(view(small, name), 3).answer == "ready"
    # Another pool gets nothing until the first one gives something back.
    other = make(small, 1)
    assert judge_pool(steady(small, other)).answer == "short"
    again(small, other)
    stuck = judge_wait(WaitView("active", pool=steady(small, other)))
    assert stuck is not None
    assert stuck.kind == "no_capacity"
    gone(small, name)
    again(small, other)
    small.nodes(other, 1, "idle")
    assert view(small, other).resize_errors == ()
    gone(small, other)


def test_machines_that_are_not_to_be_had_come_once_they_are_asked_for_again(
    services: Callable[..., Wire], tmp_path: Path
) -> None:
    wire = services(tmp_path / "data", "--time-scale", "1200", "--faults", "allocation=3x")
    name = make(wire, 1, 1)
    failed = steady(wire, name)
    assert failed.present == (0, 0)
    assert [error.partition(":")[0] for error in failed.resize_errors] == ["AllocationFailed", "AllocationFailed"]
    verdict = judge_pool(failed)
    assert (verdict.answer, verdict.ask, type(verdict.error())) == ("short", True, NoCapacity)
    assert "insufficient capacity for the requested VM size" in verdict.why
    again(wire, name)
    assert judge_pool(steady(wire, name)).answer == "short"
    # A formula asks by itself.
    scaled = wire.name("pool")
    options = wire.pool_options(scaled, target_dedicated_nodes=None, enable_auto_scale=True)
    options.auto_scale_formula, options.auto_scale_evaluation_interval = "$TargetDedicatedNodes = 2;", GAP
    wire.client.create_pool(options)
    wire.nodes(scaled, 2, "idle")
    again(wire, name)
    wire.nodes(name, 2, "idle")
    assert judge_pool(view(wire, name)).answer == "ready"
    wire.service.stop()


@pytest.mark.parametrize("spec", ["cores", "cores=many", "cores=-1", "cores=1.5", "nodes=3", "7", "pools=²"])
def test_a_quota_that_cannot_be_read_is_refused(spec: str) -> None:
    with pytest.raises(QuotasError, match=r"such as cores=20|a whole number"):
        Quotas.parse(spec)


def test_quotas_are_generous_where_nothing_is_said(tmp_path: Path) -> None:
    assert Quotas.parse("") == Quotas() == Quotas(1000, None, None, None)
    assert Quotas.parse(" spot-cores=0, jobs=1 ") == Quotas(jobs=1, spot_cores=0)
    with pytest.raises(runner.LocalServiceError, match="There is no quota 'nodes'"):
        runner.launch(tmp_path / "data", ["--quota", "nodes=3"])


def files(count: int) -> list[m.ResourceFile]:
    """Resource files of about 400 characters each, as signed addresses are."""
    return [
        m.ResourceFile(http_url=f"http://h/c/{'x' * 340}{index:04}", file_path=f"f{index}") for index in range(count)
    ]


def test_resource_files_have_a_length_together(wire: Wire, pool: str, job: str) -> None:
    wire.add(job, "/bin/true", id="fits", resource_files=files(75))
    status, code, error = refused(lambda: wire.add(job, "/bin/true", resource_files=files(90)))
    assert (status, code, type(error)) == (400, "InvalidPropertyValue", ConfigError)
    assert "Total size of resourceFiles cannot be more than 32768 characters" in str(error)
    preparation = m.BatchJobPreparationTask(command_line="/bin/true", resource_files=files(90))
    assert refused(lambda: wire.job(pool, job_preparation_task=preparation))[:2] == (400, "InvalidPropertyValue")
    start = m.BatchStartTask(command_line="/bin/true", resource_files=files(90))
    options = wire.pool_options(wire.name("pool"), 0, start_task=start)
    assert refused(lambda: wire.client.create_pool(options))[:2] == (400, "InvalidPropertyValue")


def test_resource_files_are_counted_as_json_with_spaces(wire: Wire, job: str) -> None:
    def sent(characters: int) -> int:
        file = {"httpUrl": "http://127.0.0.1:9/file", "filePath": ""}
        file["filePath"] = "x" * (characters - len(json.dumps([file])))
        body = {"id": f"c{characters}", "commandLine": "/bin/true", "resourceFiles": [file]}
        return signed(wire.service, "POST", f"/jobs/{job}/tasks", body=body)[0]

    assert (sent(32_768), sent(32_769)) == (201, 400)


def test_numbers_have_limits(wire: Wire, pool: str) -> None:
    def sent(path: str, body: dict[str, Any]) -> str:
        status, answer = signed(wire.service, "POST", path, body=body)
        return "taken" if status < 400 else f"{status} {answer['code']}"

    image = {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server"}
    machine = {"imageReference": image, "nodeAgentSKUId": "batch.node.ubuntu 24.04"}

    def made(**more: Any) -> str:
        return sent(
            "/pools", {"id": wire.name("most"), "vmSize": "small", "virtualMachineConfiguration": machine, **more}
        )

    refusal = "400 InvalidPropertyValue"
    assert (made(resizeTimeout="PT5M"), made(resizeTimeout="PT4M59S")) == ("taken", refusal)
    assert (made(taskSlotsPerNode=256), made(taskSlotsPerNode=257)) == ("taken", refusal)
    assert [made(**{kind: 1001}) for kind in ("targetDedicatedNodes", "targetLowPriorityNodes")] == [refusal] * 2
    package = {"applicationId": "none", "version": "1"}
    # Ten are looked at, and are not there.
    packages = [made(applicationPackageReferences=[package] * count) for count in (10, 11)]
    assert packages == ["409 InvalidApplicationPackageReferences", refusal]
    nodes = [f"tvm-{number}" for number in range(101)]
    removals = [sent(f"/pools/{pool}/removenodes", {"nodeList": nodes[:count]}) for count in (100, 101)]
    assert removals == ["404 NodeNotFound", refusal]


@pytest.mark.usefixtures("airflow_home")
def test_one_of_many_tasks_that_is_too_long_is_refused_with_the_reason(
    wire: Wire, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_batchwrap import BatchWrapHook

    login = {"login": wire.service.account, "password": wire.service.key}
    connection = {"conn_type": "azure_batch", **login, "extra": {"account_url": wire.service.url}}
    monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps(connection))

    def body(index: int) -> dict[str, Any]:
        given = [file.as_dict() for file in files(90 if index else 1)]
        return {"id": f"many-{index}", "commandLine": "/bin/true", "resourceFiles": given}

    with pytest.raises(ConfigError, match=r"Batch refuses 1 of 2.*'many-1': InvalidPropertyValue.*32768 characters"):
        BatchWrapHook().create_tasks(job, [0, 1], body, threads=1)
    assert wire.client.get_task(job, "many-0").id == "many-0"


def test_names_have_a_length(wire: Wire, pool: str, job: str) -> None:
    wire.job(pool, display_name="x" * 1024)
    long = "x" * 1025
    refusals = [
        lambda: wire.job(pool, display_name=long),
        lambda: wire.add(job, "/bin/true", display_name=long),
        lambda: wire.add(job, "/bin/true", id="t" * 65),
        lambda: make(wire, 0, display_name=long),
        lambda: make(wire, 0, user_accounts=[m.UserAccount(name="u" * 21, password="Secret-1")]),
        lambda: wire.client.update_pool(pool, m.BatchPoolUpdateOptions(display_name=long)),
    ]
    for refusal in refusals:
        assert refused(refusal)[:2] == (400, "InvalidPropertyValue")


def test_an_environment_that_linux_does_not_take_fails_the_task_and_no_more(wire: Wire, job: str) -> None:
    large = [m.EnvironmentSetting(name="LARGE", value="x" * 200_000)]
    done = wire.run(job, "/bin/true", environment_settings=large)
    assert done.execution_info is not None
    assert done.execution_info.failure_info is not None
    assert done.execution_info.failure_info.code == "CommandLaunchFailed"
    assert "Argument list too long" in str(done.execution_info.failure_info.message)


def test_a_task_of_more_slots_than_a_node_has_waits_for_ever_and_is_known_to(wire: Wire, pool: str, job: str) -> None:
    # The real service takes it, too: https://github.com/Azure/Batch/issues/117. The pool's nodes have four slots.
    large = wire.add(job, "/bin/true", required_slots=5)
    wire.run(job, "/bin/true", required_slots=4)
    assert wire.client.get_task(job, large).state == "active"
    seen = view(wire, pool)
    assert seen.task_slots_per_node == 4
    assert judge_wait(WaitView("active", pool=seen), 4) is None
    stuck = judge_wait(WaitView("active", pool=seen), 5)
    assert stuck is not None
    assert "it takes 5 task slots on one node" in stuck.why
    wire.client.delete_task(job, large)
