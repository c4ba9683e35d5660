"""What a client writes it reads again: bodies made from schema.json, with every property a client may set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError
from azure.core.rest import HttpRequest

from airflow_batchwrap.local.wire import routes, schema

if TYPE_CHECKING:
    from tests.support.wire import Wire

VERSION = {"api-version": "2025-06-01"}
IMAGE = {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server", "version": "latest"}
MACHINE = {"imageReference": IMAGE, "nodeAgentSKUId": "batch.node.ubuntu 24.04"}

#: Values that mean something, where any string or number would not do; by the property, or by model and property.
MEANT: dict[str, Any] = {
    "fileMode": "0644",
    "httpUrl": "http://127.0.0.1:9/file",
    "filePath": "some/file",
    "containerUrl": "http://127.0.0.1:9/container",
    "filePattern": "**/*.txt",
    "taskSlotsPerNode": 2,
    "requiredSlots": 2,
    "priority": 5,
    "maxParallelTasks": 3,
    "maxTaskRetryCount": 2,
    "targetDedicatedNodes": 0,
    "targetLowPriorityNodes": 0,
    "resizeTimeout": "PT20M",
    "maxWallClockTime": "PT10M",
    "retentionTime": "P1D",
    "recurrenceInterval": "PT5M",
    "startWindow": "PT2M",
    "autoScaleEvaluationInterval": "PT10M",
    "doNotRunUntil": "2099-01-01T00:00:00Z",
    "doNotRunAfter": "2099-06-01T00:00:00Z",
    "poolId": "no-such-pool",
    "taskIds": ["a", "b"],
    "BatchTaskIdRange.start": 1,
    "BatchTaskIdRange.end": 5,
    "ExitCodeRangeMapping.start": 1,
    "ExitCodeRangeMapping.end": 5,
    "onTaskFailure": "performexitoptionsjobaction",
    "onAllTasksComplete": "noaction",
    "usesTaskDependencies": True,
    "virtualMachineConfiguration": MACHINE,
    "vmSize": "standard_d2s_v3",
}
#: What cannot stand beside the rest, or needs something outside; each has tests of its own.
LEFT_OUT = {
    "storageContainerUrl", "autoStorageContainerName", "blobPrefix", "identityReference", "containerSettings",
    "multiInstanceSettings", "applicationPackageReferences", "autoPoolSpecification", "enableAutoScale",
    "autoScaleFormula", "autoScaleEvaluationInterval", "mountConfiguration", "networkConfiguration", "upgradePolicy",
    "userName", "allowTaskPreemption", "jobManagerTask",
}  # fmt: skip


def make(model: str, stem: str = "v") -> dict[str, Any]:
    """A body with all of a model's properties that a client may set."""
    body: dict[str, Any] = {}
    for name, known in schema.MODELS[model].items():
        if known.read_only or name in LEFT_OUT:
            continue
        value = MEANT.get(f"{model}.{name}", MEANT.get(name))
        if value is None:
            value = _value(known, f"{stem}-{name}")
            value = [value] if known.many else value
        body[name] = value
    return body


def _value(known: schema.Property, text: str) -> Any:
    if known.kind == "@":
        return make(known.name, text)
    if known.kind == "=":
        return list(schema.ENUMS[known.name].values())[-1]
    simple = {"bool": True, "int": 7, "int64": 7, "float": 1.5, "dict": {"a": {"b": [1, "c"]}}, "duration": "PT1M"}
    return simple.get(known.kind, "2026-01-01T00:00:00Z" if known.kind == "datetime" else text[-40:])


def within(sent: Any, shown: Any) -> bool:
    """Whether all that was sent is shown; what was added by default may stand beside it."""
    if isinstance(sent, dict):
        told = {name: value for name, value in sent.items() if name not in schema.SECRETS}
        return isinstance(shown, dict) and all(
            name in shown and within(value, shown[name]) for name, value in told.items()
        )
    if isinstance(sent, list):
        return isinstance(shown, list) and len(sent) == len(shown) and all(map(within, sent, shown))
    return bool(sent == shown)


def ask(wire: Wire, method: str, path: str, body: Any = None, **query: str) -> Any:
    """Send a request through the client's pipeline, with no model of its own in between."""
    request = HttpRequest(method, wire.service.url + path, params={**VERSION, **query}, json=body)
    if body is not None:
        request.headers["Content-Type"] = "application/json; odata=minimalmetadata"
    answer = wire.client.send_request(request)
    answer.raise_for_status()
    return answer.json() if answer.content else None


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("BatchPoolCreateOptions", "/pools"),
        ("BatchJobCreateOptions", "/jobs"),
        ("BatchJobScheduleCreateOptions", "/jobschedules"),
    ],
)
def test_entity_is_shown_as_it_was_written(wire: Wire, model: str, path: str) -> None:
    name = wire.name("round")
    body = {**make(model), "id": name}
    ask(wire, "POST", path, body)
    shown = ask(wire, "GET", f"{path}/{name}")
    assert within(body, shown), (body, shown)
    (listed,) = ask(wire, "GET", path, **{"$filter": f"id eq '{name}'"})["value"]
    assert within(body, listed)
    # What is read can be read again, and each property alone.
    for part in body:
        assert ask(wire, "GET", f"{path}/{name}", **{"$select": part}).get(part) == shown[part], part


def test_task_is_shown_as_it_was_written(wire: Wire) -> None:
    job = wire.name("round")
    ask(wire, "POST", "/jobs", {**make("BatchJobCreateOptions"), "id": job})
    body = {**make("BatchTaskCreateOptions"), "id": "t"}
    ask(wire, "POST", f"/jobs/{job}/tasks", body)
    assert within(body, ask(wire, "GET", f"/jobs/{job}/tasks/t"))
    (listed,) = ask(wire, "GET", f"/jobs/{job}/tasks")["value"]
    assert within(body, listed)


@pytest.mark.parametrize("name", ["allowTaskPreemption", "networkConfiguration"])
def test_job_keeps_what_has_no_effect_here(wire: Wire, name: str) -> None:
    known = schema.MODELS["BatchJobCreateOptions"][name]
    value = True if known.kind == "bool" else make(known.name)
    job = wire.name("round")
    ask(wire, "POST", "/jobs", {"id": job, "poolInfo": {"poolId": "no-such-pool"}, name: value})
    assert within({name: value}, ask(wire, "GET", f"/jobs/{job}"))


def test_pool_keeps_what_has_no_effect_here(wire: Wire) -> None:
    pool = wire.name("round")
    upgrade = make("UpgradePolicy")
    body = {"id": pool, "vmSize": "any", "virtualMachineConfiguration": MACHINE, "upgradePolicy": upgrade}
    ask(wire, "POST", "/pools", body)
    assert within(body, ask(wire, "GET", f"/pools/{pool}"))


def test_integers_may_be_strings_wherever_they_stand(wire: Wire) -> None:
    def texts(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: texts(part) for name, part in value.items()}
        if isinstance(value, list):
            return [texts(part) for part in value]
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    name = wire.name("round")
    body = {**make("BatchJobCreateOptions"), "id": name}
    ask(wire, "POST", "/jobs", texts(body))
    assert within(body, ask(wire, "GET", f"/jobs/{name}"))


LISTS = sorted(name for name, operation in routes.OPERATIONS.items() if "maxresults" in operation.query)


@pytest.mark.parametrize("operation", sorted(routes.OPERATIONS))
def test_query_options_are_those_of_the_operation(wire: Wire, operation: str) -> None:
    known = routes.OPERATIONS[operation]
    path = known.path
    for part in path.split("/"):
        if part.startswith("{"):
            path = path.replace(part, "none")
    for option, value in (("$select", "id"), ("$expand", "stats"), ("$filter", "id eq 'x'"), ("maxresults", "5")):
        try:
            wire.client.send_request(
                HttpRequest(known.method, wire.service.url + path, params={**VERSION, option: value})
            )
            refused = False
        except HttpResponseError as error:
            # A HEAD's answer has no body, and with it no code; what does not exist is 404 there.
            code = f"({error.error.code})" if error.error else str(error)
            refused = "UnsupportedQueryParameter" in code or (known.method == "HEAD" and error.status_code == 400)
        assert refused == (option not in known.query), (operation, option)


def test_every_list_pages_by_absolute_links(wire: Wire) -> None:
    stem = wire.name("paged")
    for number in range(3):
        ask(wire, "POST", "/jobs", {"id": f"{stem}-{number}", "poolInfo": {"poolId": "no-such-pool"}})
        ask(wire, "POST", f"/jobs/{stem}-0/tasks", {"id": f"t{number}", "commandLine": "x"})
        later = {"doNotRunUntil": "2099-01-01T00:00:00Z"}
        specification = {"poolInfo": {"poolId": "no-such-pool"}}
        ask(
            wire,
            "POST",
            "/jobschedules",
            {"id": f"{stem}-s{number}", "schedule": later, "jobSpecification": specification},
        )
        (wire.service.data / "applications" / f"{stem}-{number}" / "1").mkdir(parents=True)
    wire.pool(0)
    pool = wire.pool(3)
    node = next(iter(wire.client.list_nodes(pool))).id
    paths = ["/jobs", f"/jobs/{stem}-0/tasks", "/jobschedules", "/applications", "/pools", "/nodecounts"]
    paths += [f"/pools/{pool}/nodes", f"/pools/{pool}/nodes/{node}/files", "/supportedimages"]
    with BatchClient(wire.service.url, AzureNamedKeyCredential(wire.service.account, wire.service.key)) as client:
        for path in paths:
            all_at_once = [_key(one) for one in ask(wire, "GET", path)["value"]]
            found, link = [], f"{wire.service.url}{path}?api-version=2025-06-01&maxresults=1"
            while link:
                page = client.send_request(HttpRequest("GET", link)).json()
                assert len(page["value"]) <= 1
                found += [_key(one) for one in page["value"]]
                link = page.get("odata.nextLink", "")
                assert not link or link.startswith(wire.service.url)
            assert found == all_at_once
            assert len(found) >= 2, path


def _key(shown: dict[str, Any]) -> Any:
    return shown.get("id") or shown.get("poolId") or shown.get("name") or str(shown)
