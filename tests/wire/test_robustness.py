"""Slow, malformed and hostile requests: refused, bounded, and no burden to other clients."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psutil
import pytest
from azure.batch import BatchClient
from azure.core.credentials import AzureNamedKeyCredential

from airflow_batchwrap.local import runner
from airflow_batchwrap.local.wire import routes
from tests.support.raw import ask, connect, head, signed

if TYPE_CHECKING:
    from tests.support.wire import Wire


@pytest.fixture(scope="module")
def hasty(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """A service that gives requests half a second to arrive."""
    service = runner.launch(tmp_path_factory.mktemp("hasty") / "data", ["--request-time", "0.5"])
    with BatchClient(service.url, AzureNamedKeyCredential(service.account, service.key), retry_total=0) as client:
        yield type(wire)(service, client)
    service.stop()
    assert "Traceback" not in (service.data / "service.log").read_text()


def test_slow_clients_are_cut_off_and_others_served(hasty: Wire) -> None:
    begun = [
        b"",
        b"GET /pools?api-ver",
        b"GET /pools HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        head(hasty.service, "POST", "/jobs", b"x" * 1000) + b'{"id": "a"',
    ]
    slow = [connect(hasty.service) for _ in range(20) for _ in begun]
    for connection, text in zip(slow, begun * 20, strict=True):
        connection.sendall(text)
    assert [list(hasty.client.list_jobs()) for _ in range(20)] == [[]] * 20
    for connection in slow:
        with connection, contextlib.suppress(ConnectionResetError):
            assert connection.recv(1000) == b""
    service = psutil.Process(hasty.service.pid)
    hasty.until(lambda: len(service.net_connections()) < 10)


def test_dripping_client_is_cut_off(hasty: Wire) -> None:
    with connect(hasty.service) as connection:
        gone = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                for letter in b"GET /pools HTTP/1.1\r\nX-Slow: " + b"x" * 10_000:
                    connection.sendall(bytes([letter]))
                    if gone.wait(0.02):
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1000) == b""
        gone.set()
        thread.join()


def test_idle_connection_may_wait_between_requests(hasty: Wire) -> None:
    request = head(hasty.service, "GET", "/jobs")
    with connect(hasty.service) as connection:
        for pause in (0.8, 0):
            connection.sendall(request)
            with contextlib.closing(http.client.HTTPResponse(connection)) as answer:
                answer.begin()
                assert answer.status == 200
                answer.read()
            threading.Event().wait(pause)


@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /jobs/%ff%00?api-version=%zz&%ff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://other/jobs HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT evil:443 HTTP/1.1\r\nHost: evil\r\n\r\n",
        b"GET /jobs HTTP/1.1\r\n\r\n",
        b"GET /jobs HTTP/1.1\r\nHost: x\r\nBad Header\r\n\r\n",
        b"GET /jobs HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
def test_malformed_request_is_refused(hasty: Wire, request_: bytes) -> None:
    assert ask(hasty.service, request_)[0] in (0, 400, 403, 405)
    assert list(hasty.client.list_jobs()) == []


@pytest.mark.parametrize("large", [b"GET /jobs HTTP/1.1\r\nX-Large: ", b"GET /", b"GET /jobs HTTP/1.1\r\n"])
def test_endless_head_is_refused(hasty: Wire, large: bytes) -> None:
    filling = b"x" * 1024 if large.endswith((b": ", b"/")) else b"A: b\r\n" * 170
    with connect(hasty.service) as connection:
        sent = 0
        with contextlib.suppress(ConnectionError, TimeoutError):
            connection.sendall(large)
            while sent < 64 * 1024 * 1024:
                connection.sendall(filling)
                sent += len(filling)
        assert sent < 8 * 1024 * 1024


DEEP = b'{"id": "d", "poolInfo": {"poolId": "p"}, "metadata": '


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        DEEP + b"[" * 900 + b"]" * 900 + b"}",
        b'{"id": "x", "poolInfo": {"poolId": "p"}, "priority": NaN}',
        b'{"id": "x", "poolInfo": {"poolId": "p"}, "constraints": {"maxWallClockTime": 5}}',
        b'{"id": "x", "poolInfo": {"poolId": "p"}, "constraints": {"maxWallClockTime": []}}',
        b'{"id": "x", "poolInfo": {"poolId": "p"}, "priority": 1e400}',
        b'{"id": "x", "poolInfo": {"poolId": "p"}, "priority": ' + b"9" * 5000 + b"}",
        b'{"id": "\\ud800", "poolInfo": {"poolId": "p"}}',
        b'{"id": "x", "displayName": "\\ud800", "poolInfo": {"poolId": "p"}, "priority": 5000}',
        gzip.compress(b'{"id": "x", "poolInfo": {"poolId": "p"}}', mtime=0),
        b'{"id": "x", "poolInfo": {"poolId": "p"}, "odata.type": 1e999}',
    ],
)
def test_hostile_body_is_refused(hasty: Wire, body: bytes) -> None:
    status, answer = ask(hasty.service, head(hasty.service, "POST", "/jobs", body) + body)
    assert status == 400
    assert json.loads(answer)["code"]
    assert list(hasty.client.list_jobs()) == []


def test_number_that_json_cannot_hold_comes_into_no_list(wire: Wire) -> None:
    image = {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server", "version": "latest"}
    extension = {"name": "one", "publisher": "a", "type": "b", "settings": {"large": "@"}}
    machine = {"imageReference": image, "nodeAgentSKUId": "batch.node.ubuntu 24.04", "extensions": [extension]}
    pool = {"id": wire.name("pool"), "vmSize": "standard_d2s_v3", "virtualMachineConfiguration": machine}
    for number, status in ((b"1e999", 400), (b"-1e400", 400), (b"1e300", 201)):
        body = json.dumps(pool).encode().replace(b'"@"', number)
        assert ask(wire.service, head(wire.service, "POST", "/pools", body) + body)[0] == status
    assert b"Infinity" not in ask(wire.service, head(wire.service, "GET", "/pools"))[1]


def test_places_and_ranges_of_very_many_digits(wire: Wire, pool: str, job: str) -> None:
    task = wire.run(job, "/bin/echo hello").id
    node = next(iter(wire.client.list_nodes(pool))).id
    many = {"$skiptoken": "9" * 5000}
    for path in ("/supportedimages", f"/pools/{pool}/nodes/{node}/files", f"/jobs/{job}/tasks/{task}/files"):
        status, answer = signed(wire.service, "GET", path, many)
        assert (status, answer["code"]) == (400, "InvalidQueryParameterValue")
    file = f"/jobs/{job}/tasks/{task}/files/stdout.txt"
    for asked, status in (("9" * 5000 + "-", 400), ("1-" + "9" * 5000, 400), ("1-" + "9" * 50, 200)):
        assert ask(wire.service, head(wire.service, "GET", file, Range=f"bytes={asked}"))[0] == status


def test_compressed_body_is_refused_by_its_header(hasty: Wire) -> None:
    body = b"not gzip at all"
    request = head(hasty.service, "POST", "/jobs", body, Content_Encoding="gzip")
    assert ask(hasty.service, request + body)[0] == 400


def test_body_shorter_than_announced_waits_for_nobody(hasty: Wire) -> None:
    body = b'{"id": "x", "poolInfo": {"poolId": "p"}}'
    request = head(hasty.service, "POST", "/jobs", body, length="4000")
    assert ask(hasty.service, request + body)[0] == 0
    assert list(hasty.client.list_jobs()) == []


def _path(template: str, dice: random.Random, known: dict[str, str]) -> str:
    path = template
    for name in ("applicationId", "poolId", "jobScheduleId", "jobId", "taskId", "nodeId", "userName", "extensionName"):
        odd = dice.choice(["x", "..", "%00", "a b", "é", "x" * 300, "'", "{}"])
        path = path.replace("{" + name + "}", quote(known.get(name, odd) if dice.random() < 0.8 else odd, safe=""))
    odd = dice.choice(["stdout.txt", "../../../etc/passwd", "wd/..", "\0", "a" * 5000, "/etc/passwd", ""])
    return path.replace("{filePath}", quote(odd, safe=""))


VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2**70, 1.5, "", "x", "\0", "P1D", "PT", "2026-01-01T00:00:00Z", [], {}, [None], [{}], {"a": 1},
    "é" * 99,
)  # fmt: skip
NAMES = (
    "id", "commandLine", "poolInfo", "poolId", "value", "targetDedicatedNodes", "vmSize", "constraints", "schedule",
    "virtualMachineConfiguration", "autoScaleFormula", "metadata", "dependsOn", "jobSpecification", "nodeList", "name",
    "priority", "multiInstanceSettings", "containerUrl", "startTime", "exitConditions", "startTask",
    "autoPoolSpecification",
)  # fmt: skip


def _anything(dice: random.Random, depth: int = 0) -> Any:
    if depth > 3 or dice.random() < 0.4:
        return dice.choice(VALUES)
    if dice.random() < 0.2:
        return [_anything(dice, depth + 1) for _ in range(dice.randint(0, 3))]
    return {dice.choice(NAMES): _anything(dice, depth + 1) for _ in range(dice.randint(0, 5))}


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 40))])
def test_no_request_is_answered_with_a_fault_of_the_service(wire: Wire, pool: str, job: str, seed: int) -> None:
    dice = random.Random(seed)
    node = next(iter(wire.client.list_nodes(pool))).id
    known = {"poolId": pool, "jobId": job, "nodeId": node, "taskId": wire.run(job, "/bin/true").id}
    # What would take the session's pool away from other tests is left out.
    spared = ("poolId",)
    for operation in [*routes.OPERATIONS.values()] * 4:
        changing = operation.method not in ("GET", "HEAD") and "jobs" not in operation.path
        mine = {name: value for name, value in known.items() if not (changing and name in spared)}
        path = _path(operation.path, dice, mine)
        body = json.dumps(_anything(dice)).encode() if operation.method in ("POST", "PUT", "PATCH") else b""
        status, answer = ask(wire.service, head(wire.service, operation.method, path, body) + body)
        assert status < 500, (operation, path, body, answer)
        assert status, (operation, path, body)


def test_sigterm_under_load_is_quick(own: Callable[[], Wire]) -> None:
    wire = own()
    job = wire.job(wire.pool(2, 8))
    tasks: Any = {"value": [{"id": f"t{number}", "commandLine": "/bin/sleep 0.05"} for number in range(100)]}
    wire.client.create_task_collection(job, tasks)
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                ask(wire.service, head(wire.service, "GET", f"/jobs/{job}/tasks"))

    threads = [threading.Thread(target=load) for _ in range(4)]
    half = connect(wire.service)
    half.sendall(b"GET /jobs HTTP/1.1\r\n")
    for thread in threads:
        thread.start()
    try:
        wire.until(lambda: wire.client.get_job_task_counts(job).task_counts.succeeded)
        service = psutil.Process(wire.service.pid)
        os.kill(wire.service.pid, signal.SIGTERM)
        assert service.wait(10) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        half.close()
