"""Signatures, hosts, versions, limits, headers and errors, whatever the operation."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import secrets
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceModifiedError, ResourceNotFoundError

if TYPE_CHECKING:
    from tests.support.wire import Wire

VERSION = "api-version=2025-06-01"


class Answer:
    """An HTTP answer, read."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = {name.lower(): value for name, value in answer.getheaders()}
        self.body: dict[str, Any] = json.loads(answer.read() or b"{}")

    @property
    def code(self) -> str:
        """The error's code."""
        return str(self.body["code"])


def send(
    wire: Wire,
    path: str,
    *,
    method: str = "GET",
    query: str = VERSION,
    key: str | None = None,
    date: str | None = None,
    body: bytes = b"",
    sign: bool = True,
    no_length: str = "0",
    **headers: str,
) -> Answer:
    """Send a request signed by hand, so that any part of it can be wrong.

    ``no_length`` is signed where a request that may have a body has none.
    """
    sent = {"ocp-date": date or formatdate(usegmt=True)} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    if body:
        sent |= {"Content-Length": str(len(body)), "Content-Type": "application/json; odata=minimalmetadata"}
    lower = {name.lower(): value for name, value in sent.items()}
    length = lower.get("content-length") or ("" if method in ("GET", "HEAD") else no_length)
    lines = [method, "", "", length, "", lower.get("content-type", ""), "", "", "", "", "", ""]
    lines += [f"ocp-date:{sent['ocp-date']}", f"/{wire.service.account}{path}"]
    lines += sorted(part.replace("=", ":", 1) for part in query.split("&") if part)
    digest = hmac.new(base64.b64decode(key or wire.service.key), "\n".join(lines).encode(), hashlib.sha256).digest()
    if sign:
        sent["Authorization"] = f"SharedKey {wire.service.account}:{base64.b64encode(digest).decode()}"
    connection = http.client.HTTPConnection(wire.service.url.removeprefix("http://"), timeout=20)
    try:
        connection.request(method, f"{path}?{query}", body or None, sent)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def test_request_signed_by_hand_is_answered(wire: Wire) -> None:
    answer = send(wire, "/pools", client_request_id="mine")
    assert answer.status == 200
    assert answer.headers["dataserviceversion"] == "3.0"
    assert answer.headers["client-request-id"] == "mine"
    assert len(answer.headers["request-id"]) == 36


@pytest.mark.parametrize(("no_length", "status"), [("0", 404), ("", 404), ("1", 403)])
def test_length_of_no_body_may_be_signed_in_two_ways(wire: Wire, no_length: str, status: int) -> None:
    # azure-batch for Python signs "0", @azure/batch for JavaScript nothing: neither sends the header.
    assert send(wire, "/jobs/nowhere", method="DELETE", no_length=no_length).status == status


def test_wrong_key_is_refused(wire: Wire) -> None:
    answer = send(wire, "/pools", key=base64.b64encode(secrets.token_bytes(64)).decode())
    assert (answer.status, answer.code) == (403, "AuthenticationFailed")
    assert set(answer.body) == {"odata.metadata", "code", "message"}
    text = answer.body["message"]["value"].split("\n")
    assert answer.body["message"]["lang"] == "en-US"
    assert text[1] == f"RequestId:{answer.headers['request-id']}"
    assert text[2].startswith("Time:")
    assert len(text[2].rpartition(".")[2]) == 8


def test_no_signature_is_refused(wire: Wire) -> None:
    assert send(wire, "/pools", sign=False).code == "MissingRequiredHeader"


def test_signature_covers_path_and_query(wire: Wire) -> None:
    assert send(wire, "/jobs", query=f"{VERSION}&maxresults=5").status == 200
    connection = http.client.HTTPConnection(wire.service.url.removeprefix("http://"), timeout=20)
    try:
        date, account = formatdate(usegmt=True), wire.service.account
        # A signature that is good for another path.
        lines = ["GET", *[""] * 11, f"ocp-date:{date}", f"/{account}/jobs", VERSION.replace("=", ":")]
        digest = hmac.new(base64.b64decode(wire.service.key), "\n".join(lines).encode(), hashlib.sha256).digest()
        stolen = f"SharedKey {account}:{base64.b64encode(digest).decode()}"
        for path, status in (("/jobs", 200), ("/pools", 403)):
            connection.request("GET", f"{path}?{VERSION}", headers={"ocp-date": date, "Authorization": stolen})
            assert Answer(connection.getresponse()).status == status
    finally:
        connection.close()


@pytest.mark.parametrize("seconds", [-16 * 60, 16 * 60])
def test_date_outside_the_window_is_refused(wire: Wire, seconds: int) -> None:
    answer = send(wire, "/pools", date=formatdate(time.time() + seconds, usegmt=True))
    assert (answer.status, answer.code) == (403, "AuthenticationFailed")


def test_date_within_the_window_is_taken(wire: Wire) -> None:
    assert send(wire, "/pools", date=formatdate(time.time() - 14 * 60, usegmt=True)).status == 200


@pytest.mark.parametrize("host", ["batch.example.com", "127.0.0.1:1", "evil.localhost"])
def test_foreign_host_is_refused(wire: Wire, host: str) -> None:
    answer = send(wire, "/pools", Host=host)
    assert (answer.status, answer.code) == (400, "InvalidHost")


def test_localhost_is_a_name_of_the_service(wire: Wire) -> None:
    port = wire.service.url.rpartition(":")[2]
    assert send(wire, "/pools", Host=f"localhost:{port}").status == 200


@pytest.mark.parametrize(
    ("path", "method", "query", "status", "code"),
    [
        ("/nonsense", "GET", VERSION, 400, "InvalidUri"),
        ("/pools", "PUT", VERSION, 405, "UnsupportedHttpVerb"),
        ("/pools", "GET", "api-version=2019-06-01.9.0", 400, "UnsupportedRequestVersion"),
        ("/pools", "GET", "", 400, "MissingRequiredQueryParameter"),
        ("/pools", "GET", f"{VERSION}&color=red", 400, "UnsupportedQueryParameter"),
        ("/pools", "GET", f"{VERSION}&maxresults=0", 400, "OutOfRangeQueryParameterValue"),
        ("/pools", "GET", f"{VERSION}&maxresults=1001", 400, "OutOfRangeQueryParameterValue"),
        ("/pools", "GET", f"{VERSION}&maxresults=many", 400, "InvalidQueryParameterValue"),
        ("/pools/none", "GET", VERSION, 404, "PoolNotFound"),
        ("/jobs/none", "GET", VERSION, 404, "JobNotFound"),
    ],
)
def test_refusals(wire: Wire, path: str, method: str, query: str, status: int, code: str) -> None:
    answer = send(wire, path, method=method, query=query)
    assert (answer.status, answer.code) == (status, code)


def test_timeout_is_taken_in_both_spellings(wire: Wire) -> None:
    assert send(wire, "/pools", query=f"{VERSION}&timeOut=30").status == 200
    assert send(wire, "/pools", query=f"{VERSION}&timeout=30").status == 200


@pytest.mark.parametrize("size", [1024 * 1024 + 1, 3 * 1024 * 1024])
def test_large_body_is_refused(wire: Wire, job: str, size: int) -> None:
    answer = send(wire, f"/jobs/{job}/tasks", method="POST", body=b"x" * size)
    assert (answer.status, answer.code) == (413, "RequestBodyTooLarge")


def test_create_tasks_of_the_client_halves_what_is_too_large(wire: Wire, job: str) -> None:
    tasks = [
        m.BatchTaskCreateOptions(
            id=f"large-{number}",
            command_line="/bin/true",
            environment_settings=[m.EnvironmentSetting(name="X", value="x" * 20_000)],
        )
        for number in range(100)
    ]
    wire.client.create_tasks(job, tasks)
    wire.until(lambda: wire.client.get_job_task_counts(job).task_counts.succeeded == 100)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "InvalidRequestBody"),
        (b"[]", "InvalidRequestBody"),
        (b'{"id": "t", "commandLine": "x", "colour": "red"}', "InvalidRequestBody"),
        (b'{"id": "t"}', "MissingRequiredProperty"),
        (b'{"id": "t", "commandLine": null}', "MissingRequiredProperty"),
        (b'{"id": 5, "commandLine": "x"}', "InvalidRequestBody"),
        (b'{"id": "a b", "commandLine": "x"}', "InvalidPropertyValue"),
        (b'{"id": "t", "commandLine": " "}', "InvalidPropertyValue"),
        (b'{"id": "t", "commandLine": "x", "requiredSlots": "many"}', "InvalidRequestBody"),
        (b'{"id": "t", "commandLine": "x", "constraints": {"maxWallClockTime": "1h"}}', "InvalidPropertyValue"),
        (b'{"id": "t", "commandLine": "x", "userIdentity": {"autoUser": {"scope": "all"}}}', "InvalidPropertyValue"),
        (b'{"id": "t", "commandLine": "x", "dependsOn": {"taskIds": ["a"]}}', "TaskDependenciesNotSpecifiedOnJob"),
    ],
)
def test_bodies_that_do_not_fit(wire: Wire, job: str, body: bytes, code: str) -> None:
    answer = send(wire, f"/jobs/{job}/tasks", method="POST", body=body)
    assert (answer.status, answer.code) == (400, code)


def test_integers_are_taken_as_strings_and_enumerations_in_any_case(wire: Wire, job: str) -> None:
    body = {
        "id": "2",
        "commandLine": "/bin/true",
        "requiredSlots": "2",
        "userIdentity": {"autoUser": {"scope": "Pool", "elevationLevel": "NonAdmin"}},
    }
    assert send(wire, f"/jobs/{job}/tasks", method="POST", body=json.dumps(body).encode()).status == 201
    task = wire.state(job, "2", "completed")
    assert task.required_slots == 2
    assert task.user_identity is not None
    assert task.user_identity.auto_user is not None
    assert task.user_identity.auto_user.elevation_level == "nonadmin"


def test_created_entity_says_where_it_is(wire: Wire, pool: str) -> None:
    name = wire.name("job")
    body = json.dumps({"id": name, "poolInfo": {"poolId": pool}}).encode()
    answer = send(wire, "/jobs", method="POST", body=body)
    url = f"{wire.service.url}/jobs/{name}"
    assert answer.status == 201
    # Of a job the real service names its first run, whatever its id.
    named = f"{wire.service.url}/jobs/job-1"
    assert (answer.headers["location"], answer.headers["dataserviceid"]) == (named, named)
    shown = send(wire, f"/jobs/{name}")
    assert shown.body["url"] == url
    assert shown.body["eTag"] == shown.headers["etag"] == answer.headers["etag"]
    assert shown.headers["etag"].startswith("0x8D")
    assert shown.headers["last-modified"].endswith("GMT")


def test_conditions(wire: Wire, job: str) -> None:
    client = wire.client
    first = client.get_job(job)
    with pytest.raises(ResourceModifiedError) as unchanged:
        client.get_job(job, etag=first.etag, match_condition=MatchConditions.IfModified)
    assert unchanged.value.status_code == 304
    client.update_job(
        job, m.BatchJobUpdateOptions(priority=5), etag=first.etag, match_condition=MatchConditions.IfNotModified
    )
    with pytest.raises(ResourceModifiedError) as stale:
        client.update_job(
            job, m.BatchJobUpdateOptions(priority=6), etag=first.etag, match_condition=MatchConditions.IfNotModified
        )
    assert stale.value.status_code == 412
    changed = client.get_job(job)
    assert changed.priority == 5
    assert changed.etag != first.etag
    with pytest.raises(HttpResponseError) as since:
        client.get_job(job, if_modified_since=changed.last_modified)
    assert since.value.status_code == 304
    with pytest.raises(HttpResponseError) as until:
        client.delete_task(
            job, wire.run(job, "/bin/true").id, if_unmodified_since=changed.last_modified.replace(year=2001)
        )
    assert until.value.status_code == 412


def test_conflicts_and_absences_have_their_codes(wire: Wire, pool: str, job: str) -> None:
    def code(call: Callable[[], Any]) -> str:
        with pytest.raises(HttpResponseError) as caught:
            call()
        assert caught.value.error is not None
        return str(caught.value.error.code)

    client = wire.client
    info = m.BatchPoolInfo(pool_id=pool)
    task = wire.run(job, "/bin/true")
    assert code(lambda: client.create_job(m.BatchJobCreateOptions(id=job.upper(), pool_info=info))) == "JobExists"
    assert code(lambda: client.create_pool(wire.pool_options(pool))) == "PoolExists"
    assert code(lambda: wire.add(job, "/bin/true", id=task.id)) == "TaskExists"
    assert code(lambda: client.terminate_task(job, task.id)) == "TaskCompleted"
    assert code(lambda: client.reactivate_task(job, task.id)) == "TaskSucceeded"
    assert code(lambda: client.get_task(job, "none")) == "TaskNotFound"
    assert code(lambda: client.get_node(pool, "none")) == "NodeNotFound"
    assert code(lambda: list(client.list_tasks("none"))) == "JobNotFound"
    with pytest.raises(ResourceNotFoundError):
        client.pool_exists("none")
    assert client.pool_exists(pool)
    with pytest.raises(ResourceExistsError):
        client.create_pool(wire.pool_options(pool.upper()))


def test_ids_are_found_in_any_case(wire: Wire, pool: str, job: str) -> None:
    assert wire.client.get_pool(pool.upper()).id == pool
    task = wire.run(job, "/bin/true", id="Some-Task")
    assert wire.client.get_task(job.upper(), "SOME-task").id == task.id == "Some-Task"


def test_page_says_what_this_is(wire: Wire) -> None:
    connection = http.client.HTTPConnection(wire.service.url.removeprefix("http://"), timeout=20)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == 200
        assert b"local Azure Batch service" in answer.read()
        connection.request("GET", "/", headers={"Host": "evil.example"})
        assert connection.getresponse().status == 400
    finally:
        connection.close()
