"""What an attacker sends: to keep connections or the loop busy, to get in, or to be shown as something else."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from azure.batch import models as m

from airflow_batchwrap.local import runner
from tests.support import stalls
from tests.support.raw import ask, connect, head, page, signed, status_of
from tests.support.stalls import Watched
from tests.support.wire import Services, Wire


@pytest.fixture(scope="module")
def watched(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A service that gives requests half a second to arrive, and whose loop is watched."""
    data: Path = tmp_path_factory.mktemp("hostile") / "data"
    with stalls.watched(services, data, "--request-time", "0.5") as found:
        yield found
    assert "Traceback" not in (data / "service.log").read_text()


@pytest.fixture
def hasty(watched: Watched) -> Wire:
    """The same service; see `watched`."""
    watched.forget()
    return watched.wire


# --- connections


@pytest.mark.parametrize("answered", [True, False])
def test_trickle_of_line_ends_keeps_no_connection_open(hasty: Wire, answered: bool) -> None:
    with connect(hasty.service) as connection:
        if answered:
            connection.sendall(head(hasty.service, "GET", "/jobs"))
            assert status_of(connection) == 200
        gone = threading.Event()

        def trickle() -> None:
            with contextlib.suppress(OSError):
                while not gone.wait(0.05):
                    connection.sendall(b"\r\n")

        thread = threading.Thread(target=trickle)
        thread.start()
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1000) == b""
        gone.set()
        thread.join()
        assert time.monotonic() - began < 5


def test_line_ends_before_a_request_are_taken(hasty: Wire) -> None:
    request = head(hasty.service, "GET", "/jobs")
    with connect(hasty.service) as connection:
        for before in (b"\r\n\r\n", b"\n", b""):
            for part in (before, request):
                connection.sendall(part)
            assert status_of(connection) == 200


def closed(connection: socket.socket) -> bool:
    """Whether the other side closes a connection, within its time-out."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(1024 * 1024):
            pass
    return True


@pytest.mark.parametrize(
    "framing",
    [
        b"0\r\n" + b"Trailer: x\r\n" * 100,
        b"1;" + b"x" * 100,
        b"0\r\nName" + b"x" * 100,
    ],
)
def test_what_frames_a_body_is_bounded(hasty: Wire, framing: bytes) -> None:
    start = b"POST /jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + framing
    with connect(hasty.service) as connection:
        sent, filling = 0, framing[-10:] * 20_000
        with contextlib.suppress(ConnectionError):
            connection.sendall(start)
            while sent < 100 * 1024 * 1024:
                connection.sendall(filling)
                sent += len(filling)
        assert sent < 100 * 1024 * 1024


@pytest.mark.parametrize("part", ["header", "query"])
def test_head_of_64_kib_is_taken_and_no_larger_one(hasty: Wire, part: str) -> None:
    def sent(size: int) -> tuple[int, bytes]:
        # What frames the rest of the head is less than a kilobyte.
        filling = "x" * (size - 1024)
        more = {"X_Filling": filling} if part == "header" else {"query": {"$select": filling}}
        return ask(hasty.service, head(hasty.service, "GET", "/jobs", **more))

    status, answer = sent(64 * 1024)
    assert b"headers are larger" not in answer
    assert status == (200 if part == "header" else 400)
    status, answer = sent(66 * 1024)
    assert status == 400
    assert answer == b"The request line and the headers are larger than 65536 bytes."


def test_answers_that_nobody_reads_are_given_up(hasty: Wire) -> None:
    host = hasty.service.url.partition("://")[2]
    request = f"GET /ui/static/page.js HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    with connect(hasty.service) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(ConnectionError):
            for _ in range(2000):
                connection.sendall(request)
        # What is left of the answers in the system's buffers ends, instead of waiting for a reader.
        service = psutil.Process(hasty.service.pid)
        own = connection.getsockname()[1]
        hasty.until(lambda: own not in [peer.raddr.port for peer in service.net_connections() if peer.raddr])


def test_requests_far_ahead_of_their_answers_are_refused(watched: Watched) -> None:
    watched.forget()
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(watched.wire.service) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request * 50_000)
        assert closed(connection)
    watched.no_stall()


@pytest.mark.parametrize("option", ["--plain-http", "--tls"])
def test_idle_strangers_make_room_for_clients(tmp_path: Path, option: str) -> None:
    # Half of so few files as a process may open are soon taken.
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        service = runner.launch(tmp_path / "data", [option])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    try:
        with contextlib.ExitStack() as stack:
            known = stack.enter_context(connect(service))
            request = head(service, "GET", "/jobs")
            known.sendall(request)
            assert status_of(known) == 200
            # Over TLS they do not even begin to speak it.
            for _ in range(400):
                stack.enter_context(socket.create_connection(known.getpeername(), timeout=20))
            assert signed(service, "GET", "/jobs")[0] == 200
            known.sendall(request)
            assert status_of(known) == 200
            assert len(psutil.Process(service.pid).net_connections()) < 110
    finally:
        service.stop()
    assert "Traceback" not in (service.data / "service.log").read_text()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /jobs HTTP/1.1\r\nHost: HOST\r\nHost: evil.example\r\n\r\n",
        b"GET /jobs HTTP/1.1\r\nHost: HOST\r\nhost: HOST\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: HOST\r\n\r\n",
        b"GET http://HOST/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: HOST\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: +4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4, 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nabcde\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: HOST\r\n X: folded\r\n\r\n",
        b"GET / HTTP/1.1\nHost: HOST\nX\x00: y\n\n",
    ],
)
def test_request_that_can_be_read_in_two_ways_is_refused(hasty: Wire, request_: bytes) -> None:
    host = hasty.service.url.partition("://")[2].encode()
    # What is smuggled behind it must find no answer of its own.
    behind = b"GET / HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n"
    with connect(hasty.service) as connection:
        connection.sendall((request_ + behind).replace(b"HOST", host))
        answer = b""
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(64 * 1024):
                answer += chunk
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "named",
    [
        "Host: HOST@evil.example",
        "Host: HOST, evil.example",
        "Host: HOST.",
        "Host:",
        "X-Forwarded-Host: HOST",
        "Host: evil.example",
        "Host: evil.example:80",
        "Host: HOST:80",
        "Host: [::1]",
        "Host: 0.0.0.0",
    ],
)
@pytest.mark.parametrize("path", ["/", "/ui/", "/ui/static/page.js", "/jobs", "/msi/token"])
def test_no_other_name_is_this_service(hasty: Wire, named: str, path: str) -> None:
    # A name that an attacker has made to lead here makes no page of theirs one of ours.
    host = hasty.service.url.partition("://")[2]
    request = f"GET {path} HTTP/1.1\r\n{named.replace('HOST', host)}\r\nConnection: close\r\n\r\n"
    assert ask(hasty.service, request.encode())[0] == 400


def test_malformed_requests_do_not_fill_the_log(hasty: Wire) -> None:
    log = hasty.service.data / "service.log"
    before = log.stat().st_size
    for _ in range(50):
        ask(hasty.service, b"nonsense\r\n\r\n")
    assert log.stat().st_size == before


# --- numbers, dates and texts that Python cannot hold


@pytest.mark.parametrize(
    "text",
    [
        "priority eq " + "9" * 5000,
        "priority eq 1." + "9" * 5000,
        "id gt datetime'2026-01-01T00:00:00Z'",
        "creationTime gt datetime'9999-12-31T23:59:59-23:59'",
        "creationTime gt 0001-01-01T00:00:00+23:59",
        "creationTime gt datetime'2026-13-01T00:00:00Z'",
        "creationTime gt 2026-01-01T1::..:",
    ],
)
def test_odd_value_in_a_filter_is_no_fault(hasty: Wire, text: str) -> None:
    hasty.job("nowhere")
    assert signed(hasty.service, "GET", "/jobs", {"$filter": text})[0] in (200, 400)


@pytest.mark.parametrize(
    "date",
    [
        "Mon, 01 Jan 2024 00:00:00 +99999999999999999999",
        "Mon, 01 Jan 99999999999 00:00:00 GMT",
        "Mon, 01 Jan 0001 00:00:00 -0000",
        "Mon, " + "9" * 5000 + " Jan 2024 00:00:00 GMT",
        "x",
    ],
)
def test_odd_date_is_no_fault(hasty: Wire, date: str) -> None:
    job = hasty.job("nowhere")
    for name in ("if-modified-since", "if-unmodified-since"):
        conditions: Any = {name.replace("-", "_"): date}
        status, _ = ask(hasty.service, head(hasty.service, "GET", f"/jobs/{job}", **conditions))
        assert status in (200, 304, 400, 412)
    status, answer = ask(hasty.service, head(hasty.service, "GET", f"/jobs/{job}", ocp_date=date))
    assert (status, json.loads(answer)["code"]) == (403, "AuthenticationFailed")


@pytest.mark.parametrize(
    ("schedule", "status"),
    [
        ({"recurrenceInterval": "P99999999D"}, 400),
        ({"recurrenceInterval": "P" + "9" * 5000 + "D"}, 400),
        ({"recurrenceInterval": "P10675199DT2H48M5.4775807S"}, 201),
        ({"recurrenceInterval": "PT1M", "doNotRunUntil": "0001-01-01T00:00:00+23:00"}, 400),
        ({"recurrenceInterval": "PT1M", "doNotRunUntil": "9999-12-31T23:59:59-23:00"}, 400),
        ({"recurrenceInterval": "PT1M", "doNotRunUntil": "9999-12-31T23:59:59.9999999Z"}, 201),
        ({"recurrenceInterval": "PT1M", "doNotRunUntil": "0001-01-01T00:00:00Z"}, 201),
    ],
)
def test_no_schedule_spoils_the_list(hasty: Wire, schedule: dict[str, str], status: int) -> None:
    name = hasty.name("schedule")
    body = {"id": name, "schedule": schedule, "jobSpecification": {"poolInfo": {"poolId": "nowhere"}}}
    assert signed(hasty.service, "POST", "/jobschedules", body=body)[0] == status
    for path in ["/jobschedules", f"/jobschedules/{name}"]:
        assert signed(hasty.service, "GET", path)[0] in (200, 404 if status == 400 else 200)


@pytest.mark.parametrize("text", ["\\ud800", "a\\udfff", "\\uD800\\uD800", "\\ud83dx"])
def test_half_of_a_character_is_refused(hasty: Wire, job: str, text: str) -> None:
    raw = b'{"id": "j", "poolInfo": {"poolId": "p"}, "displayName": "%s"}' % text.encode()
    for body in (raw, raw.replace(text.encode(), b"\xed\xa0\x80")):
        status, answer = ask(hasty.service, head(hasty.service, "POST", "/jobs", body) + body)
        assert (status, json.loads(answer)["code"]) == (400, "InvalidRequestBody")


def test_whole_characters_are_taken(hasty: Wire) -> None:
    name = hasty.name("job")
    raw = b'{"id": "%s", "poolInfo": {"poolId": "p"}, "displayName": "\\ud83d\\ude00 \\\\ud800"}' % name.encode()
    assert ask(hasty.service, head(hasty.service, "POST", "/jobs", raw) + raw)[0] == 201
    assert signed(hasty.service, "GET", f"/jobs/{name}")[1]["displayName"] == "\U0001f600 \\ud800"


# --- filters


@pytest.mark.parametrize(
    "text",
    [
        "(" * 1000,
        "(" * 1000 + "id eq 'a'" + ")" * 1000,
        "not " * 5000 + "id eq 'a'",
        "(not " * 500 + "id eq 'a'" + ")" * 500,
    ],
)
def test_filter_that_is_nested_deep_is_refused(hasty: Wire, text: str) -> None:
    status, answer = signed(hasty.service, "GET", "/jobs", {"$filter": text})
    assert (status, answer["code"]) == (400, "InvalidQueryParameterValue")


@pytest.mark.parametrize("word", ["and", "or"])
def test_filter_of_thousands_of_conditions_is_answered(hasty: Wire, job: str, word: str) -> None:
    text = f" {word} ".join(["id eq 'a'"] * 2500)
    for query in (text, "(" * 90 + "id eq 'a'" + ")" * 90):
        status, answer = signed(hasty.service, "GET", "/jobs", {"$filter": query})
        assert (status, answer["value"]) == (200, [])


# --- bodies that keep the loop


MEGABYTE = 1024 * 1024
JOB = b'{"id": "x", "poolInfo": {"poolId": "p"}, "metadata": '


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(JOB + b"[" * 70 + b'"' + b'\\"' * (MEGABYTE // 2 - 100), id="quotes"),
        pytest.param(JOB + b"[" * 70 + b'"' * (MEGABYTE - 200), id="empty strings"),
        pytest.param(b"[" * MEGABYTE, id="open lists"),
        pytest.param(b'{"":' * (MEGABYTE // 4), id="open objects"),
        pytest.param(b"9" * MEGABYTE, id="a number"),
    ],
)
def test_large_body_that_is_no_json_keeps_nobody(watched: Watched, body: bytes) -> None:
    watched.forget()
    service = watched.wire.service
    status, answer = ask(service, head(service, "POST", "/jobs", body) + body)
    assert (status, json.loads(answer)["code"]) == (400, "InvalidRequestBody")
    watched.no_stall()


@pytest.mark.parametrize(("deep", "status"), [(60, 201), (65, 400), (900, 400), (50_000, 400)])
def test_settings_without_a_shape_are_bounded_in_depth(hasty: Wire, deep: int, status: int) -> None:
    body: dict[str, Any] = hasty.pool_options(hasty.name("deep"), 0).as_dict()
    extension = {"name": "e", "publisher": "p", "type": "t", "settings": "HERE"}
    body["virtualMachineConfiguration"]["extensions"] = [extension]
    nested = '{"a":' + "[" * (deep - 1) + "]" * (deep - 1) + "}"
    raw = json.dumps(body).replace('"HERE"', nested).encode()
    found, answer = ask(hasty.service, head(hasty.service, "POST", "/pools", raw) + raw)
    assert found == status, answer
    if status == 400:
        assert json.loads(answer)["code"] == "InvalidRequestBody"


def test_long_quoted_command_keeps_nobody(watched: Watched) -> None:
    wire = watched.wire
    job = wire.job(wire.pool())
    watched.forget()
    task = wire.run(job, "/bin/true " + "'a' " * 120_000)
    assert task.execution_info is not None
    watched.no_stall()


# --- names in headers


def test_name_begins_no_header_of_its_own(hasty: Wire) -> None:
    pool = hasty.pool()
    node = next(iter(hasty.client.list_nodes(pool))).id
    name = "u\r\nX-Evil: yes\r\n\r\n<script>é"
    raw = json.dumps({"name": name, "password": "x"}).encode()
    request = head(hasty.service, "POST", f"/pools/{pool}/nodes/{node}/users", raw) + raw
    with connect(hasty.service) as connection:
        connection.sendall(request)
        answer = connection.recv(64 * 1024)
    assert answer.startswith((b"HTTP/1.1 201 ", b"HTTP/1.1 400 "))
    assert b"\r\nX-Evil" not in answer
    assert b"<script>" not in answer


# --- tokens of the managed identity


TOKEN = "/msi/token?api-version=2019-08-01&resource=https://batch.core.windows.net/"


def test_task_gets_no_token_of_the_identity(hasty: Wire) -> None:
    job = hasty.job(hasty.pool())
    # The nodes fetch for whoever may add a task; the secret that a token asks for is in no request of theirs.
    file = m.ResourceFile(http_url=hasty.service.url + TOKEN, file_path="token")
    fetched = hasty.run(job, "/bin/cat token", resource_files=[file])
    assert fetched.execution_info is not None
    assert fetched.execution_info.failure_info is not None
    shown = hasty.run(job, "/usr/bin/env")
    assert "IDENTITY" not in hasty.text(job, shown.id)
    assert hasty.service.identity()["IDENTITY_HEADER"] not in hasty.text(job, shown.id)


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST", "HEAD"])
@pytest.mark.parametrize("secret", ["", "x", "\xff"])
def test_page_of_another_site_gets_no_token(hasty: Wire, method: str, secret: str) -> None:
    host = hasty.service.url.partition("://")[2]
    named = f"X-IDENTITY-HEADER: {secret}\r\n" if secret else ""
    request = f"{method} {TOKEN} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://evil.example\r\n{named}"
    request += "Access-Control-Request-Headers: x-identity-header\r\nConnection: close\r\n\r\n"
    with connect(hasty.service) as connection:
        connection.sendall(request.encode("latin-1"))
        answer = b""
        while chunk := connection.recv(64 * 1024):
            answer += chunk
    assert answer.split()[1] in (b"401", b"405")
    assert b"access-control" not in answer.lower()
    assert b"access_token" not in answer


# --- what is hidden on the page


HOSTILE = {
    "addresses": "http://a" * (MEGABYTE // 10),
    "hosts": "http://" * (MEGABYTE // 10),
    "users": "http://x" + "http:" * (MEGABYTE // 10),
    "marks": "https://a?" + "?" * (MEGABYTE // 2),
    "signatures": "sig=" * (MEGABYTE // 8),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hiding_secrets_keeps_nobody(watched: Watched, name: str) -> None:
    wire = watched.wire
    job = wire.job("nowhere")
    task = wire.add(job, HOSTILE[name])
    watched.forget()
    status, text = page(wire.service, f"/ui/jobs/{job}/tasks/{task}")
    assert status == 200, text
    watched.no_stall()


def test_many_items_keep_nobody(watched: Watched) -> None:
    wire = watched.wire
    metadata = [{"name": f"n{number}", "value": f"http://a{number}?sig=secret"} for number in range(15_000)]
    body = {"id": wire.name("job"), "poolInfo": {"poolId": "nowhere"}, "metadata": metadata}
    assert signed(wire.service, "POST", "/jobs", body=body)[0] == 201
    watched.forget()
    status, text = page(wire.service, f"/ui/jobs/{body['id']}")
    assert status == 200, text
    assert "metadata that are not shown" in text
    assert "secret" not in text
    watched.no_stall()
