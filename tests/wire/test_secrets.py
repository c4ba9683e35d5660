"""What a client gives in confidence comes back in no answer, and is in no file of the service."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_batchwrap.local.wire import schema
from tests.support.raw import page, signed
from tests.support.wire import Wire

#: In each secret property of each body below.
SECRET = "S3CRET-of-a-test"
IMAGE = {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server", "version": "latest"}
REGISTRY = {"registryServer": "r.example", "username": "me", "password": SECRET}
TASK = {"commandLine": "/bin/true", "containerSettings": {"imageName": "i", "registry": REGISTRY}}
POOL: dict[str, Any] = {
    "vmSize": "standard_d2s_v3",
    "virtualMachineConfiguration": {
        "imageReference": IMAGE,
        "nodeAgentSKUId": "batch.node.ubuntu 24.04",
        "containerConfiguration": {"type": "dockerCompatible", "containerRegistries": [REGISTRY]},
        "extensions": [
            {
                "name": "e",
                "publisher": "p",
                "type": "t",
                "settings": {"shown": True},
                "protectedSettings": {"a": SECRET},
            }
        ],
    },
    "userAccounts": [
        {"name": "u", "password": SECRET, "linuxUserConfiguration": {"uid": 1, "gid": 1, "sshPrivateKey": SECRET}}
    ],
    "mountConfiguration": [
        {"azureBlobFileSystemConfiguration": blob, "azureFileShareConfiguration": share, "cifsMountConfiguration": cifs}
        for blob, share, cifs in [
            (
                {"accountName": "a", "containerName": "c", "relativeMountPath": "m", name: SECRET},
                {"accountName": "a", "azureFileUrl": "u", "accountKey": SECRET, "relativeMountPath": "n"},
                {"username": "u", "source": "s", "relativeMountPath": "o", "password": SECRET},
            )
            for name in ("accountKey", "sasKey")
        ]
    ],
    "startTask": TASK,
}
AUTO = {"autoPoolSpecification": {"poolLifetimeOption": "job", "pool": POOL}}
JOB = {
    "poolInfo": AUTO,
    "jobManagerTask": {"id": "m", **TASK},
    "jobPreparationTask": TASK,
    "jobReleaseTask": TASK,
}


def test_bodies_hold_all_secrets_that_there_are() -> None:
    held = json.dumps([POOL, JOB])
    assert {name for name in schema.SECRETS if f'"{name}"' in held} == schema.SECRETS


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("pools", POOL),
        ("jobs", JOB),
        ("jobschedules", {"schedule": {}, "jobSpecification": JOB}),
    ],
)
def test_secrets_come_back_in_no_answer_and_no_file(own: Callable[[], Wire], kind: str, body: dict[str, Any]) -> None:
    wire = own()
    name = wire.name("secret")
    status, answer = signed(wire.service, "POST", f"/{kind}", body={"id": name, **body})
    assert status == 201, answer
    parts = {"jobs": ["poolInfo"], "jobschedules": ["jobSpecification"]}.get(kind, [])
    changes: list[tuple[str, dict[str, Any]]] = [("PATCH", {part: body[part] for part in parts})]
    if kind == "pools":
        changes = [("PATCH", {"startTask": TASK})]
    for method, change in changes:
        # Of a job, only a disabled one may be given another pool: what is refused is told without secrets too.
        status, answer = signed(wire.service, method, f"/{kind}/{name}", body=change)
        assert SECRET not in json.dumps(answer)
        assert status in (200, 409), answer
    if kind == "jobs":
        assert signed(wire.service, "POST", f"/jobs/{name}/tasks", body={"id": "t", **TASK})[0] == 201
    pools = signed(wire.service, "GET", "/pools")[1]["value"]
    jobs = signed(wire.service, "GET", "/jobs")[1]["value"]
    paths = [f"/{kind}", f"/{kind}/{name}", "/pools", "/jobs", *(f"/pools/{pool['id']}" for pool in pools)]
    paths += [f"/pools/{pool['id']}/nodes" for pool in pools]
    paths += [path for job in jobs for path in (f"/jobs/{job['id']}", f"/jobs/{job['id']}/tasks")]
    for path in paths:
        status, answer = signed(wire.service, "GET", path)
        assert status == 200
        assert SECRET not in json.dumps(answer), path
    for path in ["/ui/", *(f"/ui{path}" for path in paths if path.count("/") == 2 and "schedules" not in path)]:
        assert SECRET not in page(wire.service, path)[1], path
    assert "registryServer" in json.dumps(signed(wire.service, "GET", f"/{kind}/{name}")[1])
    wire.service.stop()
    held = [path for path in wire.service.data.iterdir() if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert held == []


def test_what_an_earlier_version_has_kept_is_not_shown(own: Callable[[], Wire]) -> None:
    wire = own()
    for kind, body in (("jobs", {"poolInfo": {"poolId": "p"}}), ("pools", POOL)):
        assert signed(wire.service, "POST", f"/{kind}", body={"id": "old", **body})[0] == 201
    wire.service.stop()
    with sqlite3.connect(wire.service.data / "state.sqlite") as database:
        for uid, kept in database.execute("SELECT uid, body FROM entity").fetchall():
            held = json.dumps({**json.loads(kept), **POOL})
            database.execute("UPDATE entity SET body = ? WHERE uid = ?", (held.encode(), uid))
    database.close()
    wire = own()
    for path in ("/pools/old", "/jobs/old", "/pools", "/jobs"):
        status, answer = signed(wire.service, "GET", path)
        assert (status, SECRET in json.dumps(answer)) == (200, False)


def test_log_of_refused_bodies_holds_no_secret(own: Callable[[], Wire]) -> None:
    wire = own()
    wrong = {"id": "w", **POOL, "userAccounts": [{"name": SECRET * 2, "password": SECRET, "colour": SECRET}]}
    status, answer = signed(wire.service, "POST", "/pools", body=wrong)
    assert status == 400
    assert SECRET not in json.dumps(answer)
    assert SECRET not in Path(wire.service.data / "service.log").read_text()
