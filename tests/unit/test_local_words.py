"""The local service's words: durations, tags, lists by id, filters, defaults, older versions and signatures."""

from __future__ import annotations

import random
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import pytest

from airflow_batchwrap.local.model.registry import Registry
from airflow_batchwrap.local.model.rules import defaults
from airflow_batchwrap.local.wire import auth, odata, schema, times, versions
from airflow_batchwrap.local.wire.errors import BatchError
from airflow_batchwrap.local.wire.filters import FILTERS
from airflow_batchwrap.local.wire.routes import OPERATIONS

NOW = 1_800_000_000.0
KEY = bytes(range(64))


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("PT20M00S", "PT20M"),
        ("PT01H00M00S", "PT1H"),
        ("P3Y6M4DT12H30M5S", "P1279DT12H30M5S"),
        (times.FOREVER, times.FOREVER),
        ("PT24H", "P1D"),
        ("P1W", "P7D"),
        ("PT90S", "PT1M30S"),
        ("PT1.50S", "PT1.5S"),
        ("PT0.05S", "PT0.05S"),
        ("P0D", "P0D"),
        ("PT0S", "PT0S"),
    ],
)
def test_durations_have_the_shortest_form(sent: str, shown: str) -> None:
    assert times.shortest(sent) == shown
    assert times.parse_duration(shown) == pytest.approx(times.parse_duration(sent))


def test_longest_duration_is_taken_and_no_longer_one() -> None:
    assert times.parse_duration(times.FOREVER) > 9e11
    for longer in ("P10675199DT2H48M5.4775808S", "P10675199DT2H48M6S", "P10675200D"):
        with pytest.raises(ValueError, match=r"longer than P10675199DT2H48M5\.4775807S"):
            times.parse_duration(longer)


def test_tags_have_fifteen_digits() -> None:
    for moment in (NOW, 0.0, NOW * 2):
        tag = times.etag(moment, 7)
        assert tag.startswith("0x")
        assert len(tag) == 17
        int(tag, 16)
    assert times.etag(NOW, 1) != times.etag(NOW, 2) != times.etag(NOW + 1e-6, 2)


def test_early_times_have_four_digits_of_the_year() -> None:
    first = times.parse_iso("0001-02-03T04:05:06Z")
    assert times.iso(first) == "0001-02-03T04:05:06.000000Z"
    assert times.iso7(first) == "0001-02-03T04:05:06.0000000Z"


@dataclass(frozen=True)
class Thing:
    """Something with an id and a number."""

    uid: int
    id: str


def test_registry_lists_by_id_with_case_ignored() -> None:
    dice = random.Random(5)
    registry: Registry[Thing] = Registry()
    there: dict[str, Thing] = {}
    for number in range(600):
        name = f"{dice.choice('aAbB_-')}{dice.randrange(300)}"
        if dice.random() < 0.4 and there:
            gone = there.pop(dice.choice(sorted(there)))
            registry.remove(gone)
        elif name.lower() not in there:
            there[name.lower()] = Thing(number, name)
            registry.add(there[name.lower()])
        if number % 50 == 0:
            # Read in pages, each after the last one's end, as clients do.
            seen: list[str] = []
            while page := [thing.id for thing in registry.beyond(seen[-1] if seen else "")][:7]:
                seen += page
            assert [name.lower() for name in seen] == sorted(there)


def test_list_that_is_changed_while_it_is_read_repeats_and_skips_nothing_that_stays() -> None:
    registry: Registry[Thing] = Registry()
    there = {f"t{number:04}": Thing(number, f"t{number:04}") for number in range(0, 2000, 2)}
    for thing in there.values():
        registry.add(thing)
    dice, seen = random.Random(7), list[str]()
    for number, thing in enumerate(registry.beyond(""), 2000):
        seen.append(thing.id)
        # Some come before what was read last, and some after it; of those still to come some go.
        new = Thing(number, f"t{dice.randrange(2000):04}x{number}")
        registry.add(new)
        assert next(registry.beyond("")) is not None  # another reader
        if dice.random() < 0.3:
            gone = dice.choice(sorted(there))
            registry.remove(there.pop(gone))
        if len(seen) == 5000:
            break
    assert seen == sorted(set(seen))
    assert there.keys() <= set(seen)


def test_filters_are_for_lists_that_there_are() -> None:
    assert FILTERS.keys() == {name for name, operation in OPERATIONS.items() if "$filter" in operation.query}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list_tasks", "startswith(id, 'a') and state ne 'completed' and executionInfo/exitCode gt 0"),
        ("list_tasks", "lastModifiedTime ge 2026-01-01T00:00:00Z"),
        ("list_jobs", "executionInfo/poolId eq 'p' or state eq 'active'"),
        ("list_pools", "vmSize eq 'standard_d2s_v3' and enableAutoScale eq true and allocationState eq 'steady'"),
        ("list_nodes", "startTaskInfo/result eq 'failure'"),
        ("list_pool_node_counts", "poolId eq 'p'"),
        ("list_task_files", "startswith(name, 'wd/')"),
        ("list_job_schedules", "schedule/doNotRunAfter lt 2026-01-01T00:00:00Z"),
    ],
)
def test_filter_that_a_list_takes(name: str, text: str) -> None:
    assert odata.Filter(text, FILTERS[name]).properties


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list_tasks", "displayName eq 'a'"),
        ("list_tasks", "executionInfo/retryCount gt 0"),
        ("list_tasks", "state gt 'active'"),
        ("list_tasks", "startswith(state, 'a')"),
        ("list_jobs", "priority eq 3"),
        ("list_pools", "targetDedicatedNodes eq 3"),
        ("list_nodes", "id eq 'a'"),
        ("list_pool_node_counts", "poolId ne 'a'"),
        ("list_task_files", "name eq 'a'"),
    ],
)
def test_filter_that_a_list_does_not_take(name: str, text: str) -> None:
    with pytest.raises(BatchError) as caught:
        odata.Filter(text, FILTERS[name])
    assert (caught.value.code, caught.value.status) == ("InvalidQueryParameterValue", 400)
    assert caught.value.values["QueryParameterName"] == "$filter"
    assert sorted(FILTERS[name])[0] in caught.value.values["Reason"]


def pool(**more: Any) -> dict[str, Any]:
    """A pool as a client sends it."""
    image = {"publisher": "Canonical", "offer": "ubuntu-24_04-lts", "sku": "server"}
    machine = {"imageReference": image, "nodeAgentSKUId": "batch.node.ubuntu 24.04"}
    return {"vmSize": "Standard_D2s_V3", "virtualMachineConfiguration": machine} | more


def windows(**more: Any) -> dict[str, Any]:
    """A pool of Windows nodes."""
    image = {"publisher": "MicrosoftWindowsServer", "offer": "WindowsServer", "sku": "2022-datacenter"}
    machine = {"imageReference": image, "nodeAgentSKUId": "batch.node.windows amd64"}
    return {"vmSize": "standard_d2_v2", "virtualMachineConfiguration": machine} | more


def nat(name: str = "web", backend: int = 8080, start: int = 10_000, end: int = 10_099) -> dict[str, Any]:
    """A network with one range of ports."""
    one = {
        "name": name,
        "protocol": "tcp",
        "backendPort": backend,
        "frontendPortRangeStart": start,
        "frontendPortRangeEnd": end,
    }
    return {"endpointConfiguration": {"inboundNATPools": [one]}}


def test_defaults_of_a_pool() -> None:
    body = pool(
        startTask={"commandLine": "/bin/true", "userIdentity": {"autoUser": {"elevationLevel": "admin"}}},
        userAccounts=[{"name": "a"}],
        networkConfiguration={},
    )
    machine = body["virtualMachineConfiguration"]
    machine |= {"dataDisks": [{"lun": 0, "diskSizeGB": 5}], "osDisk": {"diskSizeGB": 30}}
    defaults.pool(body)
    assert body["vmSize"] == "standard_d2s_v3"
    assert body["taskSchedulingPolicy"] == {"nodeFillType": "Spread", "jobDefaultOrder": "none"}
    assert (body["resizeTimeout"], body["taskSlotsPerNode"], body["enableAutoScale"]) == ("PT15M", 1, False)
    assert machine["imageReference"]["version"] == "latest"
    assert machine["dataDisks"][0]["caching"] == "none"
    assert machine["dataDisks"][0]["managedDisk"] == {"storageAccountType": "standard_lrs"}
    assert machine["osDisk"] == {"diskSizeGB": 30, "ephemeralOSDiskSettings": {}, "caching": "None"}
    assert body["networkConfiguration"] == {"dynamicVNetAssignmentScope": "none", "enableAcceleratedNetworking": False}
    assert body["userAccounts"] == [{"name": "a", "elevationLevel": "nonadmin"}]
    assert body["startTask"]["userIdentity"] == {"autoUser": {"scope": "pool", "elevationLevel": "admin"}}
    assert (body["startTask"]["maxTaskRetryCount"], body["startTask"]["waitForSuccess"]) == (0, True)
    assert "targetDedicatedNodes" not in body


def test_defaults_of_a_windows_pool_and_of_an_auto_pool() -> None:
    specification: dict[str, Any] = {"pool": windows(userAccounts=[{"name": "a"}])}
    defaults.auto_pool(specification)
    assert specification["keepAlive"] is False
    inner = specification["pool"]
    assert (inner["targetDedicatedNodes"], inner["targetLowPriorityNodes"]) == (0, 0)
    assert inner["userAccounts"][0]["windowsUserConfiguration"] == {"loginMode": "batch"}


_NOBODY = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/g/providers"
_CUSTOM = "/subscriptions/11111111-0000-0000-0000-000000000000/resourceGroups/g/providers/Microsoft.Compute"


def custom(image: str) -> dict[str, Any]:
    """A pool of a custom image."""
    machine = {"imageReference": {"virtualMachineImageId": image}, "nodeAgentSKUId": "batch.node.ubuntu 24.04"}
    return pool(virtualMachineConfiguration=machine)


@pytest.mark.parametrize(
    ("body", "name", "reason"),
    [
        (pool(vmSize="thisisinvalid"), "vmSize", "one of the properties"),
        (
            custom(f"{_NOBODY}/Microsoft.Compute/gallery/G/images/I"),
            "virtualMachineImageId",
            "must be of the format /sub",
        ),
        (custom(f"{_NOBODY}/Microsoft.Compute/images/I"), "virtualMachineImageId", "in a different subscription"),
        (pool(networkConfiguration={"subnetId": f"{_NOBODY}/x"}), "subnetId", "in a different subscription"),
        (pool(networkConfiguration=nat(backend=29876)), "backendPort", "29876"),
        (pool(networkConfiguration=nat(start=49_990, end=50_100)), "frontendPortRangeStart", "reserved"),
        (pool(networkConfiguration=nat(end=10_020)), "frontendPortRangeEnd", "40 ports"),
        (pool(networkConfiguration=nat(name="-a")), "name", "77"),
    ],
)
def test_pool_that_is_refused(body: dict[str, Any], name: str, reason: str) -> None:
    with pytest.raises(BatchError) as caught:
        defaults.pool(body)
    assert (caught.value.code, caught.value.values["PropertyName"]) == ("InvalidPropertyValue", name)
    assert reason in caught.value.values["Reason"]


def test_image_that_is_refused() -> None:
    unsupported, other = pool(), pool()
    unsupported["virtualMachineConfiguration"]["imageReference"]["publisher"] = "someone"
    other["virtualMachineConfiguration"]["nodeAgentSKUId"] = "batch.node.windows amd64"
    for body in (unsupported, other):
        with pytest.raises(BatchError, match="InvalidPropertyValue"):
            defaults.pool(body)
    for image in ("images/I", "galleries/G/images/I", "galleries/G/images/I/versions/1.0.0"):
        defaults.pool(custom(f"{_CUSTOM}/{image}"))


def test_endpoints_do_not_overlap() -> None:
    network = nat()
    ports = network["endpointConfiguration"]["inboundNATPools"]
    for wrong in ({"name": "WEB"}, {"backendPort": 8080}, {"frontendPortRangeStart": 10_050}):
        second = {**ports[0], "name": "b", "backendPort": 1, "frontendPortRangeStart": 11_000} | wrong
        second["frontendPortRangeEnd"] = second["frontendPortRangeStart"] + 100
        with pytest.raises(BatchError, match="InvalidPropertyValue"):
            defaults.pool(pool(networkConfiguration={"endpointConfiguration": {"inboundNATPools": [ports[0], second]}}))


def test_newest_version_shows_nothing_of_older_ones() -> None:
    inner = {"vmSize": "a", "certificateReferences": [], "startTask": {"commandLine": "b"}}
    manager = {"id": "m", "authenticationTokenSettings": {}}
    job = {"id": "j", "poolInfo": {"autoPoolSpecification": {"pool": inner}}, "jobManagerTask": manager}
    shown = versions.shown(schema.API_VERSION, "jobs", job)
    assert shown["poolInfo"]["autoPoolSpecification"]["pool"] == {"vmSize": "a", "startTask": {"commandLine": "b"}}
    assert shown["jobManagerTask"] == {"id": "m"}
    assert "certificateReferences" in inner
    plain = {"id": "j", "poolInfo": {"poolId": "p"}}
    assert versions.shown(schema.API_VERSION, "jobs", plain) is plain


def signed(query: str, *, lower: bool) -> dict[str, str]:
    """The headers of a signed request."""
    headers = {"ocp-date": formatdate(NOW, usegmt=True)}
    text = auth.string_to_sign("GET", "/jobs", query, headers, "me", lower=lower)
    return headers | {"authorization": f"SharedKey me:{auth.sign(text, KEY)}"}


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("query", ["api-version=2025-06-01&timeOut=30", "maxResults=3&Api-Version=x", "$filter=a"])
def test_signature_with_names_as_sent_and_in_lower_case(query: str, lower: bool) -> None:
    auth.verify("GET", "/jobs", query, signed(query, lower=lower), account="me", key=KEY, now=NOW)


def test_signature_of_another_query_is_refused() -> None:
    headers = signed("timeOut=30", lower=True)
    with pytest.raises(BatchError, match="AuthenticationFailed"):
        auth.verify("GET", "/jobs", "timeOut=31", headers, account="me", key=KEY, now=NOW)


def test_request_without_a_signature() -> None:
    with pytest.raises(BatchError) as caught:
        auth.verify("GET", "/jobs", "", {}, account="me", key=KEY, now=NOW)
    assert (caught.value.status, caught.value.code) == (400, "MissingRequiredHeader")
    assert caught.value.values == {"HeaderName": "Authorization"}
