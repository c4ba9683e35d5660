"""Conditional requests: every operation that documents them, every header, entity tags with quotes and without."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from email.utils import formatdate
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m

if TYPE_CHECKING:
    from tests.support.wire import Wire

#: Each operation that takes conditions: verb, kind of its entity, the rest of its path, its body.
TABLE: dict[str, tuple[str, str, str, Any]] = {
    "delete_pool": ("DELETE", "pool", "", None),
    "pool_exists": ("HEAD", "pool", "", None),
    "get_pool": ("GET", "pool", "", None),
    "update_pool": ("PATCH", "pool", "", {"metadata": []}),
    "enable_pool_auto_scale": ("POST", "pool", "/enableautoscale", {"autoScaleFormula": "$TargetDedicatedNodes = 0;"}),
    "resize_pool": ("POST", "pool", "/resize", {"targetDedicatedNodes": 1}),
    "stop_pool_resize": ("POST", "pool", "/stopresize", None),
    "remove_nodes": ("POST", "pool", "/removenodes", {"nodeList": ["none"]}),
    "delete_job": ("DELETE", "job", "", None),
    "get_job": ("GET", "job", "", None),
    "update_job": ("PATCH", "job", "", {"priority": 9}),
    "replace_job": ("PUT", "job", "", {"poolInfo": {"poolId": "none"}}),
    "disable_job": ("POST", "job", "/disable", {"disableTasks": "requeue"}),
    "enable_job": ("POST", "job", "/enable", None),
    "terminate_job": ("POST", "job", "/terminate", {}),
    "job_schedule_exists": ("HEAD", "schedule", "", None),
    "delete_job_schedule": ("DELETE", "schedule", "", None),
    "get_job_schedule": ("GET", "schedule", "", None),
    "update_job_schedule": ("PATCH", "schedule", "", {"metadata": []}),
    "replace_job_schedule": (
        "PUT",
        "schedule",
        "",
        {"schedule": {"doNotRunUntil": "2099-01-01T00:00:00Z"}, "jobSpecification": {"poolInfo": {"poolId": "none"}}},
    ),
    "disable_job_schedule": ("POST", "schedule", "/disable", None),
    "enable_job_schedule": ("POST", "schedule", "/enable", None),
    "terminate_job_schedule": ("POST", "schedule", "/terminate", None),
    "delete_task": ("DELETE", "task", "", None),
    "get_task": ("GET", "task", "", None),
    "replace_task": ("PUT", "task", "", {"constraints": {}}),
    "terminate_task": ("POST", "task", "/terminate", None),
    "reactivate_task": ("POST", "task", "/reactivate", None),
}
READING = ("GET", "HEAD")


@pytest.fixture(scope="module")
def paths(wire: Wire) -> dict[str, str]:
    """One entity of each kind, that nothing changes."""
    pool, job, schedule = (wire.name(kind) for kind in ("pool", "job", "schedule"))
    wire.client.create_pool(wire.pool_options(pool, 0))
    wire.client.create_job(m.BatchJobCreateOptions(id=job, pool_info=m.BatchPoolInfo(pool_id=pool)))
    wire.add(job, "/bin/true", id="waits")
    later: Any = {"doNotRunUntil": "2099-01-01T00:00:00Z"}
    body: Any = {"id": schedule, "schedule": later, "jobSpecification": {"poolInfo": {"poolId": pool}}}
    wire.client.create_job_schedule(body)
    return {
        "pool": f"/pools/{pool}",
        "job": f"/jobs/{job}",
        "task": f"/jobs/{job}/tasks/waits",
        "schedule": f"/jobschedules/{schedule}",
    }


Send = Callable[..., tuple[int, dict[str, str], Any]]


@pytest.fixture(scope="module")
def send(wire: Wire) -> Send:
    """Sends a request signed by hand with conditional headers."""

    def ask(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        data = b"" if body is None else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        length = str(len(data)) if data else "" if method in READING else "0"
        kind = "application/json; odata=minimalmetadata" if data else ""
        date = formatdate(usegmt=True)
        conditions = [given.get(name, "") for name in _CONDITIONS]
        lines = [method, "", "", length, "", kind, "", *conditions, "", f"ocp-date:{date}"]
        text = "\n".join([*lines, f"/{wire.service.account}{path}", "api-version:2025-06-01"])
        digest = hmac.new(base64.b64decode(wire.service.key), text.encode(), hashlib.sha256).digest()
        given |= {"ocp-date": date, "Content-Length": length} if length else {"ocp-date": date}
        given |= {"Content-Type": kind} if kind else {}
        given["Authorization"] = f"SharedKey {wire.service.account}:{base64.b64encode(digest).decode()}"
        connection = HTTPConnection(wire.service.url.removeprefix("http://"), timeout=20)
        try:
            connection.request(method, f"{path}?api-version=2025-06-01", data or None, given)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, json.loads(answer.read() or b"{}")
        finally:
            connection.close()

    return ask


_CONDITIONS = ("If-Modified-Since", "If-Match", "If-None-Match", "If-Unmodified-Since")
PAST, FUTURE = formatdate(0, usegmt=True), formatdate(time.time() + 86_400, usegmt=True)


@pytest.mark.parametrize("operation", TABLE)
def test_unmet_condition_stops_the_operation(send: Send, paths: dict[str, str], operation: str) -> None:
    method, kind, rest, body = TABLE[operation]
    _, headers, before = send("GET", paths[kind])
    etag = headers["etag"]
    unread = 304 if method in READING else 412
    for conditions, status in (
        ({"If_Match": "0x8D0"}, 412),
        ({"If_Match": '"0x8D0"'}, 412),
        ({"If_Match": '"0x8D0", W/"0x8D1"'}, 412),
        ({"If_None_Match": etag}, unread),
        ({"If_None_Match": f'"{etag}"'}, unread),
        ({"If_None_Match": "*"}, unread),
        ({"If_Modified_Since": FUTURE}, unread),
        ({"If_Unmodified_Since": PAST}, 412),
    ):
        found, answered, answer = send(method, paths[kind] + rest, body, **conditions)
        assert found == status, conditions
        if found == 412 and method != "HEAD":
            assert answer["code"] == "ConditionNotMet"
        if found == 304:
            assert answer == {}
            assert "content-type" not in answered
    assert send("GET", paths[kind])[2] == before


@pytest.mark.parametrize("kind", ["pool", "job", "task", "schedule"])
def test_met_condition_lets_the_operation_happen(send: Send, paths: dict[str, str], kind: str) -> None:
    changes: dict[str, tuple[str, Any]] = {
        "pool": ("PATCH", {"metadata": [{"name": "a", "value": "1"}]}),
        "job": ("PATCH", {"priority": 3}),
        "task": ("PUT", {"constraints": {"maxTaskRetryCount": 2}}),
        "schedule": ("PATCH", {"metadata": [{"name": "a", "value": "1"}]}),
    }
    method, body = changes[kind]
    for form in ("{}", '"{}"', 'W/"{}"', "*", '"other", "{}"'):
        etag = send("GET", paths[kind])[1]["etag"]
        status, headers, _ = send(method, paths[kind], body, If_Match=form.format(etag))
        assert status == 200
        assert headers["etag"] != etag
        for conditions in (
            {"If_None_Match": f'"{etag}"'},
            {"If_Modified_Since": PAST},
            {"If_Unmodified_Since": FUTURE},
        ):
            assert send("GET", paths[kind], **conditions)[0] == 200


def test_dates_of_conditions_have_whole_seconds(send: Send, paths: dict[str, str]) -> None:
    modified = send("GET", paths["job"])[1]["last-modified"]
    assert send("GET", paths["job"], If_Modified_Since=modified)[0] == 304
    assert send("GET", paths["job"], If_Unmodified_Since=modified)[0] == 200


def test_unreadable_date_is_refused(send: Send, paths: dict[str, str]) -> None:
    status, _, answer = send("GET", paths["job"], If_Modified_Since="yesterday")
    assert (status, answer["code"]) == (400, "InvalidHeaderValue")


def test_absent_entity_is_told_before_any_condition(send: Send) -> None:
    status, _, answer = send("GET", "/jobs/none", If_Match="0x8D0")
    assert (status, answer["code"]) == (404, "JobNotFound")
