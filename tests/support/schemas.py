"""Requests made by Schemathesis from the OpenAPI description of Azure Batch, signed, about things that are there.

with Things(wire) as things:
    attack = Attack(things, description)
    for operation in attack.operations:
        attack.run(operation, GenerationMode.POSITIVE, examples=100, seed=1)
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import random
import re
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

import schemathesis
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from tests.support.raw import VERSION
from tests.support.wire import Wire

#: What an operation takes away or makes unfit for those that follow, by its name.
_SPOILS = {
    "delete_pool": "poolId",
    "remove_nodes": "poolId",
    "resize_pool": "poolId",
    "enable_pool_auto_scale": "poolId",
    "update_pool": "poolId",
    "replace_pool_properties": "poolId",
    "deallocate_node": "poolId",
    "reboot_node": "poolId",
    "reimage_node": "poolId",
    "disable_node_scheduling": "poolId",
    "delete_job": "jobId",
    "disable_job": "jobId",
    "terminate_job": "jobId",
    "update_job": "jobId",
    "replace_job": "jobId",
    "delete_task": "jobId",
    "delete_task_file": "jobId",
    "delete_job_schedule": "jobScheduleId",
    "terminate_job_schedule": "jobScheduleId",
    "delete_node_user": "poolId",
}
_IMAGE = {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server", "version": "latest"}
#: What makes sense where any string or number fits the description, and is refused at once.
_SENSE: dict[str, Any] = {
    "virtualMachineConfiguration": {"imageReference": _IMAGE, "nodeAgentSKUId": "batch.node.ubuntu 24.04"},
    "vmSize": "standard_d2s_v3",
    "taskSlotsPerNode": 2,
    "requiredSlots": 1,
    "priority": 5,
    "targetDedicatedNodes": 0,
    "targetLowPriorityNodes": 0,
    "commandLine": "/bin/true",
    "maxTaskRetryCount": 0,
    "autoScaleFormula": "$TargetDedicatedNodes = 0;",
    "resizeTimeout": "PT10M",
    "autoScaleEvaluationInterval": "PT10M",
    "startWindow": "PT2M",
    "recurrenceInterval": "PT10M",
    "httpUrl": "http://127.0.0.1:9/a",
    "filePath": "a",
    "containerUrl": "http://127.0.0.1:9/a",
}
#: Azure answers so of itself (https://learn.microsoft.com/rest/api/batchservice/batch-status-and-error-codes).
_MEANT = {"TooManyEnableAutoScaleRequests"}
_QUERY = ["state eq 'active'", "id,state", "stats", "startswith(id, 'a')", "(", "creationTime gt 2026-01-01T00:00:00Z"]


@dataclass
class Things:
    """A pool with a node, a job with a task that has run, and a schedule; made anew where they were taken away."""

    wire: Wire
    ids: dict[str, str] = field(default_factory=dict)

    def need(self) -> dict[str, str]:
        """Return the ids by the names of the path's parameters, after making what is missing."""
        wire = self.wire
        if "poolId" not in self.ids:
            self.ids["poolId"] = pool = wire.pool(1)
            self.ids["nodeId"] = next(iter(wire.client.list_nodes(pool))).id
            self.ids["userName"] = "user"
            wire.client.create_node_user(pool, self.ids["nodeId"], m.BatchNodeUserCreateOptions(name="user"))
            # Not left behind: as many jobs as there are pools here would be more than an account may have.
            self.spoil("jobId")
        if "jobId" not in self.ids:
            self.ids["jobId"] = wire.job(self.ids["poolId"])
            self.ids["taskId"] = wire.run(self.ids["jobId"], "/bin/echo text").id
        if "jobScheduleId" not in self.ids:
            self.ids["jobScheduleId"] = name = wire.name("schedule")
            specification = m.BatchJobSpecification(pool_info=m.BatchPoolInfo(pool_id="nowhere"))
            options = m.BatchJobScheduleCreateOptions(
                id=name, schedule=m.BatchJobScheduleConfiguration(), job_specification=specification
            )
            wire.client.create_job_schedule(options)
        return {**self.ids, "filePath": "stdout.txt", "applicationId": "app", "extensionName": "extension"}

    def spoil(self, name: str) -> None:
        """Give up what an operation has taken away."""
        old = self.ids.pop(name, None)
        remove = {
            "poolId": lambda old: self.wire.client.begin_delete_pool(old, polling_interval=0),
            "jobId": lambda old: self.wire.client.begin_delete_job(old, polling_interval=0),
            "jobScheduleId": lambda old: self.wire.client.begin_delete_job_schedule(old, polling_interval=0),
        }
        try:
            if old is not None:
                remove[name](old)
        except HttpResponseError:
            # It is on its way out.
            pass


class Attack:
    """Sends requests, and keeps what was answered with a fault of the service.

    :param things: what the requests are about.
    :param description: the OpenAPI document.
    """

    def __init__(self, things: Things, description: dict[str, Any]) -> None:
        for model in description["components"]["schemas"].values():
            # Else most of a body is properties that do not exist, and it is refused at the first of them.
            if model.get("type") == "object":
                model.setdefault("additionalProperties", False)
        schema = schemathesis.openapi.from_dict(description)
        found = list(schema.get_all_operations())
        self.operations = [each.ok() for each in found if isinstance(each, Ok)]
        assert len(self.operations) == len(found), found
        self.things, self.sent, self.answered = things, 0, dict[int, int]()
        self.faults: list[str] = []
        self._connection: http.client.HTTPConnection | None = None

    def run(self, operation: Any, mode: GenerationMode, *, examples: int, seed_: int) -> None:
        """Send requests of one operation.

        :param mode: whether they are to fit the description.
        :param examples: how many.
        :param seed_: where the random numbers begin.
        """
        name = operation.definition.raw["operationId"]

        @seed(seed_)
        @settings(
            max_examples=examples, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode), dice=st.randoms(use_true_random=False))
        def requests(case: Any, dice: random.Random) -> None:
            self._send(name, case, dice)

        requests()

    def _send(self, name: str, case: Any, dice: random.Random) -> None:
        known = self.things.need()
        filled = {
            key: quote(known[key], safe="") if dice.random() < 0.85 else str(value) or "x"
            for key, value in (case.path_parameters or {}).items()
        }
        path = re.sub(r"{(\w+)}", lambda found: filled.get(found[1], "x"), case.path)
        query = _query(case.query, dice)
        body = _body(case.body, dice, known)
        status, answer = self._exchange(case.method, path, query, _headers(case.headers), body)
        self.sent += 1
        self.answered[status] = self.answered.get(status, 0) + 1
        if (status >= 500 or not status) and not any(code in answer for code in _MEANT):
            self.faults.append(f"{status} {name} {case.method} {path}?{query} {body[:2000]!r} {answer[:500]}")
        if 200 <= status < 300:
            if name in _SPOILS:
                self.things.spoil(_SPOILS[name])
            elif name in ("create_pool", "create_job", "create_job_schedule") and body:
                # Nothing is left of it that would hold nodes or run on.
                made = json.loads(body)["id"]
                self._exchange("DELETE", f"{path}/{quote(made, safe='')}", f"api-version={VERSION}", {}, b"")

    def _exchange(self, method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> tuple[int, str]:
        service = self.things.wire.service
        sent = {**headers, "ocp-date": formatdate(usegmt=True)}
        length = str(len(body)) if body or method not in ("GET", "HEAD") else ""
        sent |= {"content-length": length} if length else {}
        sent |= {"content-type": "application/json; odata=minimalmetadata"} if body else {}
        names = "content-encoding content-language content-length content-md5 content-type date if-modified-since "
        names += "if-match if-none-match if-unmodified-since range"
        lines = [method, *(sent.get(each, "") for each in names.split())]
        lines += [f"{each}:{sent[each]}" for each in sorted(sent) if each.startswith("ocp-") and sent[each]]
        asked = parse_qs(query)
        lines += [f"/{service.account}{path}", *(f"{each}:{asked[each][0]}" for each in sorted(asked))]
        text = "\n".join(lines).encode("utf-8", "surrogatepass")
        digest = hmac.new(base64.b64decode(service.key), text, hashlib.sha256).digest()
        sent["authorization"] = f"SharedKey {service.account}:{base64.b64encode(digest).decode()}"
        if self._connection is None:
            self._connection = http.client.HTTPConnection(service.url.partition("://")[2], timeout=30)
        try:
            self._connection.request(method, f"{path}?{query}", body or None, sent)
            answer = self._connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        except (http.client.HTTPException, OSError) as error:
            self._connection.close()
            self._connection = None
            return 0, repr(error)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


def _query(given_: Any, dice: random.Random) -> str:
    query = {key: value if isinstance(value, str) else json.dumps(value) for key, value in dict(given_ or {}).items()}
    if dice.random() < 0.97:
        query["api-version"] = VERSION
    for name in ("$filter", "$select", "$expand"):
        if name in query and dice.random() < 0.5:
            query[name] = dice.choice(_QUERY)
    if dice.random() < 0.8:
        # What does not exist is refused at once: the other parameters are to be read as well.
        query = {key: value for key, value in query.items() if re.fullmatch(r"[$A-Za-z-]+", key)}
    return urlencode(query, errors="surrogatepass")


def _headers(given_: Any) -> dict[str, str]:
    plain = {str(key).lower(): str(value) for key, value in dict(given_ or {}).items()}
    return {
        key: value.strip()
        for key, value in plain.items()
        if re.fullmatch(r"(if|ocp)-[a-z-]+", key) and re.fullmatch(r"[\x20-\x7e\xa1-\xff]+", value)
    }


def _body(value: Any, dice: random.Random, known: dict[str, str]) -> bytes:
    if type(value).__name__ == "NotSet":
        return b""
    if isinstance(value, bytes):
        return value
    if dice.random() < 0.7:
        value = _sensible(value, dice, known)
    return json.dumps(value, default=str).encode("utf-8", "surrogatepass")


def _sensible(value: Any, dice: random.Random, known: dict[str, str]) -> Any:
    """A body with some of its properties as a client would give them, so that more than its shape is looked at."""
    if isinstance(value, list):
        return [_sensible(each, dice, known) for each in value]
    if not isinstance(value, dict):
        return value
    made = {key: _sensible(each, dice, known) for key, each in value.items()}
    for key in made:
        if dice.random() < 0.8:
            if key == "id":
                made[key] = f"made-{dice.getrandbits(40):x}"
            elif key in known:
                made[key] = known[key]
            elif key in _SENSE:
                made[key] = _SENSE[key]
    return made
