"""What the real service was recorded to say: headers, texts, normal forms, and what it refuses."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError
from azure.core.rest import HttpRequest, HttpResponse

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.wire import Services, Wire


def send(wire: Wire, method: str, path: str, body: Any = None, api: str = "2025-06-01", **headers: str) -> HttpResponse:
    """Send a request as it stands."""
    url = f"{path}{'&' if '?' in path else '?'}api-version={api}"
    kind = {"Content-Type": "application/json; odata=minimalmetadata"} if body is not None else {}
    request = HttpRequest(method, url, headers={**kind, **headers}, json=body)
    try:
        return wire.client.send_request(request)
    except HttpResponseError as error:
        # Azure's client raises what is no success.
        answer: Any = error.response
        return answer  # type: ignore[no-any-return]


def values(answer: HttpResponse) -> dict[str, str]:
    """The values beside an error's message."""
    return {one["key"]: one["value"] for one in answer.json().get("values", [])}


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("/pools/none", "PoolNotFound", "The specified pool does not exist."),
        ("/jobs/none", "JobNotFound", "The specified job does not exist."),
        ("/jobschedules/none", "JobScheduleNotFound", "The specified job schedule does not exist."),
    ],
)
def test_what_is_not_there(wire: Wire, path: str, code: str, text: str) -> None:
    answer = send(wire, "GET", path)
    assert (answer.status_code, answer.json()["code"]) == (404, code)
    assert answer.json()["message"]["value"].splitlines()[0] == text
    assert "values" not in answer.json()


def test_what_is_there_already(wire: Wire, job: str, pool: str) -> None:
    task = wire.add(job, "/bin/true")
    image = {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server"}
    machine = {"imageReference": image, "nodeAgentSKUId": "batch.node.ubuntu 24.04"}
    for path, body, what in (
        ("/pools", {"id": pool, "vmSize": "standard_d2s_v3", "virtualMachineConfiguration": machine}, "pool"),
        ("/jobs", {"id": job, "poolInfo": {"poolId": pool}}, "job"),
        (f"/jobs/{job}/tasks", {"id": task, "commandLine": "/bin/true"}, "task"),
    ):
        answer = send(wire, "POST", path, body)
        assert answer.status_code == 409
        assert answer.json()["message"]["value"].startswith(f"The specified {what} already exists.\n")
        assert "values" not in answer.json()


def test_headers_of_changes(wire: Wire) -> None:
    pool = wire.name("pool")
    base = wire.service.url
    created = wire.name("job")
    made = send(wire, "POST", "/jobs", {"id": created, "poolInfo": {"poolId": pool}})
    assert made.headers["DataServiceId"] == made.headers["Location"] == f"{base}/jobs/job-1"
    task = wire.add(created, "/bin/true")
    for method, path, body in (
        ("PATCH", f"/jobs/{created}", {"priority": 3}),
        ("POST", f"/jobs/{created}/disable", {"disableTasks": "requeue"}),
        ("PUT", f"/jobs/{created}/tasks/{task}", {}),
        ("POST", f"/jobs/{created}/tasks/{task}/terminate", None),
    ):
        changed = send(wire, method, path, body)
        assert changed.headers["DataServiceId"] == f"{base}{path}", path
        assert len(changed.headers["ETag"]) == len("0x") + 15
    again = send(wire, "POST", f"/jobs/{created}/tasks/{task}/reactivate")
    assert ("DataServiceId" in again.headers, "ETag" in again.headers) == (False, True)
    gone = send(wire, "DELETE", f"/jobs/{created}")
    assert gone.status_code == 202
    assert not {"etag", "last-modified", "dataserviceid"} & {name.lower() for name in gone.headers}


def test_headers_of_nodes(wire: Wire, pool: str) -> None:
    node = next(iter(wire.client.list_nodes(pool)))
    path = f"/pools/{pool}/nodes/{node.id}"
    shown = send(wire, "GET", path)
    assert "ETag" not in shown.headers
    assert shown.json()["affinityId"] == f"TVM:{node.id}"
    assert shown.json()["virtualMachineInfo"]["imageReference"]["exactVersion"] == "latest"
    user = send(wire, "POST", f"{path}/users", {"name": "ann", "password": "x"})
    assert user.headers["DataServiceId"] == f"{wire.service.url}{path}/users/ann"
    assert "ETag" not in user.headers
    assert send(wire, "PUT", f"{path}/users/ann", {"password": "y"}).headers["DataServiceId"].endswith("/users/ann")
    assert send(wire, "DELETE", f"{path}/users/ann").status_code == 200


def test_invalid_property_says_which(wire: Wire) -> None:
    answer = send(wire, "POST", "/jobs", {"id": "a b", "poolInfo": {"poolId": "p"}})
    sentence = "The value provided for one of the properties in the request body is invalid."
    assert answer.json()["message"]["value"].splitlines()[0] == sentence
    assert values(answer) | {"Reason": ""} == {"PropertyName": "id", "PropertyValue": "a b", "Reason": ""}
    assert "1 to 64" in values(answer)["Reason"]


def test_unknown_application(wire: Wire) -> None:
    body = {"applicationPackageReferences": [{"applicationId": "does-not-exist"}]}
    answer = send(wire, "PATCH", f"/pools/{wire.pool(0)}", body)
    assert (answer.status_code, answer.json()["code"]) == (409, "InvalidApplicationPackageReferences")
    assert values(answer) == {"does-not-exist": "The specified application package does not exist."}


def test_normal_forms(wire: Wire) -> None:
    job = wire.name("job")
    body = {"id": job, "poolInfo": {"poolId": "p"}, "constraints": {"maxWallClockTime": "PT90M00S"}}
    assert send(wire, "POST", "/jobs", body).status_code == 201
    assert send(wire, "GET", f"/jobs/{job}").json()["constraints"]["maxWallClockTime"] == "PT1H30M"
    upload = {
        "filePattern": "*",
        "destination": {"container": {"containerUrl": "http://127.0.0.1:1/c"}},
        "uploadOptions": {"uploadCondition": "tasksuccess"},
    }
    task = {"id": "a", "commandLine": "/bin/true", "outputFiles": [upload]}
    assert send(wire, "POST", f"/jobs/{job}/tasks", task).status_code == 201
    shown = send(wire, "GET", f"/jobs/{job}/tasks/a").json()
    assert shown["outputFiles"][0]["uploadOptions"]["uploadCondition"] == "TaskSuccess"
    send(wire, "DELETE", f"/jobs/{job}")


def test_lists_are_by_id(wire: Wire) -> None:
    job = wire.job("none")
    names = ["b", "A2", "a10", "C", "B-1"]
    bodies = [{"id": name, "commandLine": "/bin/true"} for name in [*names, "a2", "x" * 65]]
    added = send(wire, "POST", f"/jobs/{job}/addtaskcollection", {"value": bodies}).json()["value"]
    assert [one["status"] for one in added] == ["Success"] * 5 + ["ClientError"] * 2
    pages: Any = wire.client.list_tasks(job, max_results=2).by_page()
    assert [[task.id for task in page] for page in pages] == [["a10", "A2"], ["b", "B-1"], ["C"]]


def test_task_that_was_ended_before_it_ran(wire: Wire) -> None:
    job = wire.job("none")
    task = wire.add(job, "/bin/true")
    wire.client.terminate_task(job, task)
    shown = send(wire, "GET", f"/jobs/{job}/tasks/{task}").json()
    assert shown["nodeInfo"] == {}
    failure = shown["executionInfo"]["failureInfo"]
    assert (failure["category"], failure["message"]) == ("UserError", "Task Was Ended by User Request")


def test_filter_by_what_the_list_does_not_have(wire: Wire, job: str) -> None:
    answer = send(wire, "GET", f"/jobs/{job}/tasks?$filter=displayName%20eq%20'a'")
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidQueryParameterValue")
    assert "displayName" in values(answer)["Reason"]
    assert "executionInfo/exitCode" in values(answer)["Reason"]


def test_usage_metrics_are_retired(wire: Wire) -> None:
    for api in ("2024-02-01.19.0", "2025-06-01"):
        answer = send(wire, "GET", "/poolusagemetrics", api=api)
        assert (answer.status_code, answer.json()["code"]) == (400, "PoolUsageMetricAPIRetired")
    assert send(wire, "GET", "/poolusagemetrics", api="2023-11-01.18.0").json()["value"] == []


def test_ranges_and_files(wire: Wire, job: str) -> None:
    task = wire.run(job, "/bin/echo hello")
    path = f"/jobs/{job}/tasks/{task.id}/files/stdout.txt"
    part = send(wire, "GET", path, **{"ocp-range": "bytes=1-2"})
    assert (part.status_code, part.text(), part.headers["Content-Length"]) == (200, "el", "2")
    assert not {"content-range", "etag"} & {name.lower() for name in part.headers}
    assert send(wire, "GET", path, **{"ocp-range": "bytes=6-9"}).status_code == 416
    head = send(wire, "HEAD", path)
    assert (head.headers["Content-Type"], "ocp-creation-time" in head.headers) == ("text/plain", True)
    older = send(wire, "HEAD", path, api="2020-09-01.12.0")
    assert (older.headers["ocp-batch-file-mode"], "ocp-creation-time" in older.headers) == ("0o100644", False)
    listed = {one["name"]: one for one in send(wire, "GET", path.rpartition("/")[0]).json()["value"]}
    assert listed.keys() == {"stdout.txt", "stderr.txt", "wd"}
    assert listed["stdout.txt"]["properties"]["contentType"] == "text/plain"
    past = send(wire, "GET", path.rpartition("/")[0], api="2020-09-01.12.0").json()["value"]
    assert [one["name"] for one in past] == ["certs", "stderr.txt", "stdout.txt", "wd"]
    assert past[1]["properties"]["fileMode"] == "0o100644"


def test_multi_instance_task_may_say_one_slot(wire: Wire) -> None:
    job = wire.job("none")
    settings = m.MultiInstanceSettings(number_of_instances=2, coordination_command_line="/bin/true")
    task = wire.add(job, "/bin/true", multi_instance_settings=settings, required_slots=1)
    assert wire.client.get_task(job, task).required_slots == 1
    with pytest.raises(HttpResponseError, match="a multi-instance task has 1"):
        wire.add(job, "/bin/true", multi_instance_settings=settings, required_slots=2)


def test_extensions_of_nodes(wire: Wire) -> None:
    pool = wire.name("pool")
    options = wire.pool_options(pool)
    assert options.virtual_machine_configuration is not None
    options.virtual_machine_configuration.extensions = [
        m.VMExtension(name="Watch", publisher="p", type="t", settings={"a": "b"}, protected_settings={"key": "secret"})
    ]
    wire.client.create_pool(options)
    (node,) = wire.nodes(pool, 1, "idle")
    (one,) = wire.client.list_node_extensions(pool, str(node.id))
    assert (one.provisioning_state, one.vm_extension.settings) == ("Succeeded", {"a": "b"})  # type: ignore[union-attr]
    found = wire.client.get_node_extension(pool, str(node.id), "watch")
    assert found.vm_extension is not None
    assert (found.vm_extension.name, found.vm_extension.protected_settings) == ("Watch", None)
    with pytest.raises(HttpResponseError, match="ResourceNotFound"):
        wire.client.get_node_extension(pool, str(node.id), "other")


@pytest.mark.parametrize(
    "change",
    [
        {"displayName": "a"},
        {"vmSize": "standard_d4s_v3"},
        {"enableInterNodeCommunication": True},
        {"taskSlotsPerNode": 2},
        {"taskSchedulingPolicy": {"nodeFillType": "pack"}},
        {"networkConfiguration": {}},
        {"userAccounts": [{"name": "a", "password": "b"}]},
        {"mountConfiguration": []},
        {"upgradePolicy": {"mode": "manual"}},
    ],
)
def test_change_of_a_pool_with_nodes(wire: Wire, pool: str, change: dict[str, Any]) -> None:
    answer = send(wire, "PATCH", f"/pools/{pool}", change)
    assert (answer.status_code, answer.json()["code"]) == (409, "OperationInvalidForCurrentState")
    assert next(iter(change)) in values(answer)["Reason"]
    assert send(wire, "PATCH", f"/pools/{pool}", {"metadata": []}).status_code == 200


def test_change_of_an_empty_pool(wire: Wire) -> None:
    pool = wire.pool(0)
    change = {"taskSchedulingPolicy": {"nodeFillType": "pack"}, "displayName": "a", "vmSize": "STANDARD_D4s_v3"}
    assert send(wire, "PATCH", f"/pools/{pool}", change).status_code == 200
    shown = send(wire, "GET", f"/pools/{pool}").json()
    assert shown["taskSchedulingPolicy"] == {"nodeFillType": "Pack", "jobDefaultOrder": "none"}
    assert (shown["displayName"], shown["vmSize"]) == ("a", "standard_d4s_v3")


def test_resize_that_is_over_may_be_stopped(wire: Wire) -> None:
    pool = wire.pool(1)
    answer = send(wire, "POST", f"/pools/{pool}/stopresize")
    assert answer.status_code == 202
    assert answer.headers["DataServiceId"] == f"{wire.service.url}/pools/{pool}/stopresize"
    shown = send(wire, "GET", f"/pools/{pool}").json()
    assert (shown["allocationState"], shown["targetDedicatedNodes"], "resizeErrors" in shown) == ("steady", 1, False)


def test_resize_names_its_timeout_or_has_the_usual_one(wire: Wire) -> None:
    pool = wire.pool(0)
    for named, shown in (("PT20M00S", "PT20M"), (None, "PT15M")):
        body = {"targetDedicatedNodes": 0} | ({"resizeTimeout": named} if named else {})
        assert send(wire, "POST", f"/pools/{pool}/resize", body).status_code == 202
        wire.nodes(pool, 0)
        assert send(wire, "GET", f"/pools/{pool}").json()["resizeTimeout"] == shown
        wire.until(lambda: send(wire, "GET", f"/pools/{pool}").json()["allocationState"] == "steady")


def test_stopped_resize_keeps_its_targets(services: Services, tmp_path: Path) -> None:
    wire = services(tmp_path / "small", "--capacity", "1")
    pool = wire.name("pool")
    wire.client.create_pool(wire.pool_options(pool, 3))
    wire.until(lambda: wire.client.get_pool(pool).current_dedicated_nodes == 1)
    wire.client.begin_stop_pool_resize(pool, polling_interval=0).wait()
    shown = send(wire, "GET", f"/pools/{pool}").json()
    assert (shown["targetDedicatedNodes"], shown["currentDedicatedNodes"]) == (3, 1)
    text = "Desired number of dedicated nodes could not be allocated due to a stop resize operation"
    assert shown["resizeErrors"] == [{"code": "ResizeStopped", "message": text}]


def test_timeout_bounds_removals(services: Services, tmp_path: Path) -> None:
    wire = services(tmp_path / "fast", "--time-scale", "300")
    pool = wire.pool(1)
    job = wire.job(pool)
    (node,) = wire.client.list_nodes(pool)
    held = tmp_path / "held"
    held.touch()
    task = wire.add(job, f"/bin/sh -c 'while test -e {held}; do sleep 0.05; done'")
    wire.state(job, task, "running")
    # Five minutes are a second here: the task is not waited for any longer, and its node stays.
    options = m.BatchNodeRemoveOptions(
        node_ids=[str(node.id)], node_deallocation_option="taskcompletion", resize_timeout=datetime.timedelta(minutes=5)
    )
    wire.client.begin_remove_nodes(pool, options, polling_interval=0).wait()
    shown = send(wire, "GET", f"/pools/{pool}").json()
    assert (shown["allocationState"], shown["resizeErrors"][0]["code"]) == ("steady", "AllocationTimedout")
    assert [one.id for one in wire.client.list_nodes(pool)] == [node.id]
    held.unlink()
    assert wire.state(job, task, "completed").execution_info.requeue_count == 0  # type: ignore[union-attr]
    assert wire.run(job, "/bin/true").node_info.node_id == node.id  # type: ignore[union-attr]


def test_empty_job_ends_by_itself_a_little_later(wire: Wire) -> None:
    job = wire.job("none", all_tasks_complete_mode="terminatejob")
    assert wire.client.get_job(job).state == "active"
    ended = wire.job_state(job, "completed")
    assert ended.execution_info is not None
    assert ended.execution_info.termination_reason == "AllTasksComplete"
