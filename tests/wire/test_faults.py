"""Faults on purpose: seen by clients, survived by them, and the same again from the same seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import BatchClient
from azure.batch import models as m
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError

from airflow_batchwrap.local import runner
from airflow_batchwrap.local.faults import Faults, FaultsError

if TYPE_CHECKING:
    from tests.support.web import Web
    from tests.support.wire import Wire

Begin = Callable[[str], "Wire"]


@pytest.fixture
def faulty(wire: Wire, tmp_path: Path) -> Iterator[Begin]:
    """Starts services with faults."""
    begun: list[Wire] = []

    def begin(spec: str) -> Wire:
        service = runner.launch(tmp_path / f"data-{len(begun)}", ["--faults", spec])
        client = BatchClient(service.url, AzureNamedKeyCredential(service.account, service.key), retry_total=0)
        begun.append(type(wire)(service, client))
        return begun[-1]

    yield begin
    for one in begun:
        one.client.close()
        one.service.stop()
        assert "Traceback" not in (one.service.data / "service.log").read_text()


def fates(wire: Wire, requests: int) -> list[str]:
    """What becomes of some requests."""
    found = []
    for _ in range(requests):
        try:
            list(wire.client.list_jobs())
        except (ServiceRequestError, ServiceResponseError):
            found.append("cut")
        except HttpResponseError as error:
            answer: Any = error.response
            code = error.error.code if error.error else ""
            found.append(f"{error.status_code} {code}, again in {answer.headers.get('Retry-After')} s")
        else:
            found.append("fine")
    return found


def test_requests_go_wrong_at_their_rates_and_the_same_again(faulty: Begin) -> None:
    spec = "seed=3,429=0.2,503=0.2,drop=0.2,retry-after=0"
    first = fates(faulty(spec), 100)
    refused = {"429 TooManyRequests, again in 0 s", "503 ServerBusy, again in 0 s"}
    assert set(first) == {"fine", "cut", *refused}
    assert all(8 <= number <= 70 for number in Counter(first).values())
    assert fates(faulty(spec), 100) == first


def test_client_with_retries_gets_through(faulty: Begin) -> None:
    wire = faulty("seed=1,429=0.1,503=0.1,retry-after=0")
    credential = AzureNamedKeyCredential(wire.service.account, wire.service.key)
    with BatchClient(wire.service.url, credential, retry_backoff_factor=0.01, retry_total=20) as client:
        client.create_job(m.BatchJobCreateOptions(id="j", pool_info=m.BatchPoolInfo(pool_id="none")))
        for number in range(30):
            client.create_task("j", m.BatchTaskCreateOptions(id=f"t{number}", command_line="/bin/true"))
        assert [task.id for task in client.list_tasks("j")] == sorted(f"t{number}" for number in range(30))


def test_spot_nodes_are_preempted_and_tasks_queued_again(faulty: Begin) -> None:
    wire = faulty("seed=2,preempt=0.5")
    name = wire.name("pool")
    wire.client.create_pool(wire.pool_options(name, 0, target_low_priority_nodes=2))
    first = {node.id for node in wire.nodes(name, 2, "idle")}
    job = wire.job(name)
    tasks = [wire.add(job, "/bin/sleep 0.2") for _ in range(4)]
    for task in tasks:
        found = wire.state(job, task, "completed").execution_info
        assert found is not None
        # It ran again, which is counted only where a user's request leads to it.
        assert (found.exit_code, found.requeue_count) == (0, 0)
    wire.until(lambda: {node.id for node in wire.client.list_nodes(name)} != first)


def test_dedicated_nodes_are_not_preempted(faulty: Begin) -> None:
    wire = faulty("preempt=1")
    info = wire.run(wire.job(wire.pool()), "/bin/true").execution_info
    assert info is not None
    assert (info.exit_code, info.requeue_count) == (0, 0)


def test_downloads_fail(faulty: Begin, web: Web) -> None:
    wire = faulty("download=1")
    web.files["/a"] = b"a"
    file = m.ResourceFile(http_url=f"{web.url}/a?sig=secret", file_path="a")
    info = wire.run(wire.job(wire.pool()), "/bin/true", resource_files=[file]).execution_info
    assert info is not None
    assert info.failure_info is not None
    assert info.failure_info.code == "BlobDownloadMiscError"
    assert "--faults" in str(info.failure_info.message)
    assert web.asked == []


def test_download_is_tried_again_where_the_server_has_enough(faulty: Begin, wire: Wire, job: str) -> None:
    # Another service stands in for a blob service that is busy, 429, and then finds no api-version, 400.
    for spec, status in (("429=3x", 400), ("429=4x", 429)):
        file = m.ResourceFile(http_url=f"{faulty(spec).service.url}/jobs", file_path="a")
        info = wire.run(job, "/bin/true", resource_files=[file]).execution_info
        assert info is not None
        assert info.failure_info is not None
        assert f"the server answered {status}" in str(info.failure_info.message)


@pytest.mark.parametrize(
    "spec", ["nonsense=1", "503", "503=often", "503=1.5", "drop=-1", "seed=x", "503=x", "503=-1x", "drop=1.5x"]
)
def test_unreadable_specification_is_refused(spec: str) -> None:
    with pytest.raises(FaultsError, match=spec.partition("=")[0]):
        Faults.parse(spec)


def test_unreadable_specification_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(runner.LocalServiceError, match="There is no fault 'nonsense'"):
        runner.launch(tmp_path / "data", ["--faults", "nonsense=1"])


def test_a_count_goes_wrong_so_often_and_never_again() -> None:
    faults = Faults.parse("503=2x,drop=0.5,allocation=0x")
    assert bool(faults)
    assert [faults.strikes("503") for _ in range(5)] == [True, True, False, False, False]
    assert not faults.strikes("allocation")


def test_of_several_faults_of_a_request_the_cut_comes_first_then_503() -> None:
    faults = Faults.parse("429=3x,503=2x,drop=1x")
    assert [faults.request().split(" ")[0] for _ in range(4)] == ["cut", "503", "429", ""]


def test_one_kind_does_not_disturb_another() -> None:
    alone, both = Faults.parse("seed=5,503=0.5"), Faults.parse("seed=5,503=0.5,download=0.5")
    found = [[], []]  # type: list[list[bool]]
    for _ in range(50):
        both.strikes("download")
        for one, faults in zip(found, (alone, both), strict=True):
            one.append(faults.strikes("503"))
    assert found[0] == found[1]
