"""What an attacker sends: to keep connections or the loop busy, to get in, or to be shown as something else."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import stalls
from tests.support.raw import ask, connect, head, page, signed
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
            assert b"200 OK" in connection.recv(64 * 1024)
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
            assert b"200 OK" in connection.recv(64 * 1024)


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
