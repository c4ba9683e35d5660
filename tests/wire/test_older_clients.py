"""Clients of older api-versions: their core pool, job, task and file calls, and properties that are no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from tests.support.wire import Wire

OLDER = (
    "2019-08-01.10.0", "2020-03-01.11.0", "2020-09-01.12.0", "2021-06-01.14.0", "2022-01-01.15.0", "2022-06-01.15.0",
    "2022-10-01.16.0", "2023-05-01.17.0", "2023-11-01.18.0", "2024-02-01.19.0", "2024-07-01.20.0",
)  # fmt: skip
#: Versions of azure-batch: the one that Microsoft's quickstart pins
#: (https://learn.microsoft.com/azure/batch/quick-run-python), and the last one of its kind.
CLIENTS = ("11.0.0", "14.2.0")
#: What they need beyond what is installed here anyway.
PACKAGES = (
    "msrestazure==0.6.4.post1", "msrest==0.7.1", "azure-common==1.1.28", "adal==1.2.7",
    "isodate==0.7.2", "requests-oauthlib==2.0.0", "oauthlib==3.3.1",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"

SCRIPT = """
import datetime, json, sys
from azure.batch import BatchServiceClient, models as m
from azure.batch.batch_auth import SharedKeyCredentials
from azure.batch.models import BatchErrorException
from tests.support.polling import until

url, account, key, name = json.loads(sys.stdin.read())
client = BatchServiceClient(SharedKeyCredentials(account, key), url)
found = {}

def soon(look):
    until(look, timeout=30)

image = m.ImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server", version="latest")
machine = m.VirtualMachineConfiguration(image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04")
client.pool.add(m.PoolAddParameter(
    id=name, vm_size="standard_d2s_v3", virtual_machine_configuration=machine, target_dedicated_nodes=1,
    target_node_communication_mode="simplified", resource_tags={"a": "b"}, certificate_references=[],
    metadata=[m.MetadataItem(name="a", value="1")],
    start_task=m.StartTask(command_line="/bin/true", wait_for_success=True),
))
soon(lambda: [node.state for node in client.compute_node.list(name)] == ["idle"])
pool = client.pool.get(name)
found["pool"] = [pool.id, pool.state.value, pool.allocation_state.value, pool.current_dedicated_nodes]
found["exists"] = client.pool.exists(name)
client.pool.patch(name, m.PoolPatchParameter(metadata=[m.MetadataItem(name="b", value="2")]))
found["metadata"] = [item.name for item in client.pool.get(name).metadata]
client.job.add(m.JobAddParameter(id=name, pool_info=m.PoolInformation(pool_id=name), priority=3))
client.task.add(name, m.TaskAddParameter(
    id="one", command_line="/bin/echo one", authentication_token_settings=m.AuthenticationTokenSettings(access=["job"]),
    constraints=m.TaskConstraints(max_wall_clock_time=datetime.timedelta(minutes=5)),
))
added = client.task.add_collection(name, [m.TaskAddParameter(id=str(n), command_line="/bin/false") for n in range(150)])
found["added"] = [len(added.value), {one.status.value for one in added.value} == {"success"}]
soon(lambda: client.job.get_task_counts(name).task_counts.completed == 151)
task = client.task.get(name, "one")
found["task"] = [task.state.value, task.execution_info.exit_code, task.execution_info.result.value]
found["failed"] = client.task.get(name, "7").execution_info.failure_info.code
options = m.TaskListOptions(filter="executionInfo/exitCode eq 0", select="id,state", max_results=7)
found["filtered"] = [one.id for one in client.task.list(name, options)]
found["paged"] = len(list(client.task.list(name, m.TaskListOptions(max_results=50))))
found["file"] = b"".join(client.file.get_from_task(name, "one", "stdout.txt")).decode()
found["files"] = sorted(file.name for file in client.file.list_from_task(name, "one", recursive=True))
properties = client.file.get_properties_from_task(name, "one", "stdout.txt", raw=True)
found["length"] = properties.headers["Content-Length"]
try:
    client.task.get(name, "none")
except BatchErrorException as error:
    found["error"] = [error.error.code, error.response.status_code]
etag = client.job.get(name).e_tag
client.job.patch(name, m.JobPatchParameter(priority=4), m.JobPatchOptions(if_match=etag))
try:
    client.job.patch(name, m.JobPatchParameter(priority=5), m.JobPatchOptions(if_match=etag))
except BatchErrorException as error:
    found["stale"] = [error.error.code, error.response.status_code]
client.task.reactivate(name, "7")
client.task.delete(name, "one")
client.job.terminate(name, terminate_reason="enough")
soon(lambda: client.job.get(name).state.value == "completed")
found["reason"] = client.job.get(name).execution_info.terminate_reason
client.pool.resize(name, m.PoolResizeParameter(target_dedicated_nodes=0))
soon(lambda: not list(client.compute_node.list(name)))
client.job.delete(name)
client.pool.delete(name)
soon(lambda: name not in [pool.id for pool in client.pool.list()])
print(json.dumps(found))
"""


@pytest.fixture(scope="session", params=CLIENTS)
def old_client(request: pytest.FixtureRequest) -> Path:
    """An old azure-batch in a folder of its own, installed the first time."""
    folder = CACHE / f"azure-batch-{request.param}"
    CACHE.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            names = [f"azure-batch=={request.param}", *PACKAGES]
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *names]
            done = subprocess.run(install, check=False, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"azure-batch {request.param} cannot be installed: {done.stderr.strip()[-300:]}")
            (folder / "done").touch()
    return folder


def test_old_azure_batch(wire: Wire, old_client: Path) -> None:
    name = wire.name("older")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        check=False,
        capture_output=True,
        text=True,
        input=json.dumps([wire.service.url, wire.service.account, wire.service.key, name]),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(old_client), str(ROOT)])},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "pool": [name, "active", "steady", 1],
        "exists": True,
        "metadata": ["b"],
        "added": [150, True],
        "task": ["completed", 0, "success"],
        "failed": "FailureExitCode",
        "filtered": ["one"],
        "paged": 151,
        "file": "one\n",
        "files": ["certs", "stderr.txt", "stdout.txt", "wd"],
        "length": 4,
        "error": ["TaskNotFound", 404],
        "stale": ["ConditionNotMet", 412],
        "reason": "enough",
    }


@pytest.mark.parametrize("version", OLDER)
def test_unknown_properties_of_older_versions_are_ignored(wire: Wire, signed: Callable[..., Any], version: str) -> None:
    name = wire.name("older")
    body = {"id": name, "poolInfo": {"poolId": "none", "colour": "red"}, "priority": "7", "authenticationTokens": [{}]}
    status, answer = signed("POST", "/jobs", body, version)
    assert (status, answer) == (201, {})
    status, answer = signed("GET", f"/jobs/{name}", None, version)
    assert (status, answer["priority"], answer["poolInfo"]) == (200, 7, {"poolId": "none"})
    task = {"id": "2", "commandLine": "/bin/true", "requiredSlots": "1", "colour": "red"}
    status, answer = signed("POST", f"/jobs/{name}/addtaskcollection", {"value": [task], "odata.type": "x"}, version)
    assert (status, answer["value"][0]["status"]) == (200, "Success")


def test_python_name_in_an_older_version_is_refused(wire: Wire, signed: Callable[..., Any]) -> None:
    # So the real service answered at 2024-02-01.19.0: no property of any version has an underscore.
    body = {"applicationPackageReferences": [{"application_id": "a"}]}
    status, answer = signed("PATCH", f"/pools/{wire.pool(0)}", body, "2024-02-01.19.0")
    assert (status, answer["code"]) == (400, "InvalidRequestBody")
    assert answer["message"]["value"].startswith("The specified Request Body is not syntactically valid.\n")
    (reason,) = answer["values"]
    assert reason["key"] == "Reason"
    assert reason["value"] == (
        "The property 'application_id' does not exist on type "
        "'Microsoft.Azure.Batch.Protocol.Entities.ApplicationPackageReference'. "
        "Make sure to only use property names that are defined by the type."
    )


def test_unknown_properties_of_this_version_are_refused(wire: Wire, signed: Callable[..., Any]) -> None:
    body = {"id": wire.name("older"), "poolInfo": {"poolId": "none", "colour": "red"}}
    status, answer = signed("POST", "/jobs", body, "2025-06-01")
    assert (status, answer["code"]) == (400, "InvalidRequestBody")
    assert (
        "'colour' does not exist on type 'Microsoft.Azure.Batch.Protocol.Entities.PoolInfo'"
        in answer["values"][0]["value"]
    )


@pytest.mark.parametrize("version", ["2019-06-01.9.0", "2022-10-01", "2026-01-01", "x", "2025-06-01.21.0"])
def test_other_versions_are_refused(signed: Callable[..., Any], version: str) -> None:
    status, answer = signed("GET", "/jobs", None, version)
    assert (status, answer["code"]) == (400, "UnsupportedRequestVersion")


def test_properties_are_those_of_the_version(wire: Wire, signed: Callable[..., Any]) -> None:
    old, middle, new = "2019-08-01.10.0", "2024-02-01.19.0", "2025-06-01"
    name = wire.name("older")
    image = {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server"}
    body = {
        "id": name,
        "vmSize": "Standard_D2s_v3",
        "virtualMachineConfiguration": {
            "imageReference": image,
            "nodeAgentSKUId": "batch.node.ubuntu 24.04",
            "dataDisks": [{"lun": 0, "diskSizeGB": 5, "storageAccountType": "premium_lrs"}],
        },
        "maxTasksPerNode": 2,
        "targetNodeCommunicationMode": "classic",
        "targetDedicatedNodes": 1,
    }
    assert signed("POST", "/pools", body, old)[0] == 201
    wire.until(lambda: signed("GET", f"/pools/{name}/nodes", None, new)[1]["value"][0]["state"] == "idle")
    pools = {version: signed("GET", f"/pools/{name}", None, version)[1] for version in (old, middle, new)}
    disks = {version: pool["virtualMachineConfiguration"]["dataDisks"][0] for version, pool in pools.items()}
    assert (pools[old]["maxTasksPerNode"], "taskSlotsPerNode" in pools[old]) == (2, False)
    assert (pools[new]["taskSlotsPerNode"], "maxTasksPerNode" in pools[new]) == (2, False)
    assert [pools[version].get("certificateReferences") for version in pools] == [None, [], None]
    assert [pools[version].get("targetNodeCommunicationMode") for version in pools] == ["classic", "classic", None]
    assert ["jobDefaultOrder" in pools[version]["taskSchedulingPolicy"] for version in pools] == [False, False, True]
    assert (disks[old]["storageAccountType"], "managedDisk" in disks[old]) == ("premium_lrs", False)
    assert disks[new]["managedDisk"] == {"storageAccountType": "premium_lrs"}
    nodes = {version: signed("GET", f"/pools/{name}/nodes", None, version)[1]["value"][0] for version in pools}
    assert ["virtualMachineInfo" in nodes[version] for version in pools] == [False, True, True]
    assert [nodes[version].get("certificateReferences") for version in pools] == [[], [], None]
    (endpoint,) = nodes[middle]["endpointConfiguration"]["inboundEndpoints"]
    assert (endpoint["name"], endpoint["frontendPort"], endpoint["backendPort"]) == ("SSHRule.0", 50000, 22)
    assert "endpointConfiguration" not in nodes[new]
    job = wire.job(name)
    assert signed("GET", f"/jobs/{job}/taskcounts", None, old)[1] | {"odata.metadata": ""} == {
        "odata.metadata": "", "active": 0, "running": 0, "completed": 0, "succeeded": 0, "failed": 0,
    }  # fmt: skip
    counts = signed("GET", "/nodecounts", None, middle)[1]["value"][0]["dedicated"]
    assert ("upgradingOS" in counts, "deallocated" in counts) == (True, False)


def test_older_properties_of_tasks_come_back_where_they_are_known(wire: Wire, signed: Callable[..., Any]) -> None:
    job = wire.job("none")
    task = {"id": "a", "commandLine": "/bin/true", "authenticationTokenSettings": {"access": ["job"]}}
    assert signed("POST", f"/jobs/{job}/tasks", task, "2024-02-01.19.0")[0] == 201
    old, new = (
        signed("GET", f"/jobs/{job}/tasks/a", None, version)[1] for version in ("2022-01-01.15.0", "2025-06-01")
    )
    assert old["authenticationTokenSettings"] == {"access": ["job"]}
    assert "authenticationTokenSettings" not in new


def test_cloud_service_pools_are_refused(wire: Wire, signed: Callable[..., Any]) -> None:
    body = {"id": wire.name("older"), "vmSize": "small", "cloudServiceConfiguration": {"osFamily": "4"}}
    status, answer = signed("POST", "/pools", body, "2023-11-01.18.0")
    assert (status, answer["code"]) == (400, "CloudServiceConfigurationRetired")


@pytest.fixture
def signed(wire: Wire) -> Callable[..., Any]:
    """Sends a request signed by hand with any api-version."""
    from base64 import b64decode, b64encode
    from email.utils import formatdate
    from hashlib import sha256
    from hmac import new
    from http.client import HTTPConnection

    def send(method: str, path: str, body: Any, version: str) -> tuple[int, Any]:
        service, date = wire.service, formatdate(usegmt=True)
        data = b"" if body is None else json.dumps(body).encode()
        length, kind = (str(len(data)), "application/json; odata=minimalmetadata; charset=utf-8") if data else ("", "")
        lines = [method, "", "", length, "", kind, "", "", "", "", "", "", f"ocp-date:{date}"]
        text = "\n".join([*lines, f"/{service.account}{path}", f"api-version:{version}"])
        signature = b64encode(new(b64decode(service.key), text.encode(), sha256).digest()).decode()
        headers = {"ocp-date": date, "Authorization": f"SharedKey {service.account}:{signature}"}
        headers |= {"Content-Type": kind} if kind else {}
        connection = HTTPConnection(service.url.removeprefix("http://"), timeout=20)
        try:
            connection.request(method, f"{path}?api-version={version}", data or None, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        finally:
            connection.close()

    return send
