"""The normal forms of pools, and what the real service fills in, as it was recorded to show them."""

from __future__ import annotations

import itertools
import re
from typing import Any

from airflow_batchwrap.local.wire.errors import BatchError

#: Names of sizes: more than letters, as all of today's are, or one that older versions of the API know, or `any`, which
#: stands for this machine. All sizes run on it; the real service knows which there are.
_SIZE = re.compile(r"(?=.*[\d_])[\w-]+|small|medium|large|extralarge|any", re.ASCII | re.IGNORECASE)
#: What a custom image may be called, as the service's own answer to another name says.
_IMAGE = re.compile(
    r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.Compute/"
    r"(?:images/[^/]+|galleries/[^/]+/images/[^/]+(?:/versions/[^/]+)?)"
    r"|/(?:communityGalleries|sharedGalleries)/[^/]+/images/[^/]+(?:/versions/[^/]+)?",
    re.IGNORECASE,
)
_COMPUTE = "/subscriptions/{subscriptionId}/resourceGroups/{resourceGroupName}/providers/Microsoft.Compute"
_GALLERY = _COMPUTE + "/galleries/{galleryName}/images/{galleryImageName}"
_IMAGE_FORMS = f"{_COMPUTE}/images/{{imageName}}, {_GALLERY}/versions/{{galleryImageVersionName}}, or {_GALLERY}"
#: A subscription that is nobody's: its subnets are another's. This service has no subscription, and takes all others.
_NOBODY = "00000000-0000-0000-0000-000000000000"
#: Whose images Batch supports (https://learn.microsoft.com/azure/batch/batch-pool-vm-sizes#supported-vm-images, and the
#: recorded lists of supported images); any offer and version of theirs is taken.
PUBLISHERS = frozenset(
    {
        "almalinux",
        "batch",
        "canonical",
        "credativ",
        "debian",
        "microsoft-azure-batch",
        "microsoft-ads",
        "microsoft-dsvm",
        "microsoftcblmariner",
        "microsoftwindowsserver",
        "openlogic",
        "oracle",
        "redhat",
        "resf",
        "suse",
        "xilinx",
    }
)
_WINDOWS = "microsoftwindowsserver"

#: Learn: BatchInboundNatPool and BatchPoolEndpointConfiguration. How many a pool may have, how many ports each needs,
#: and the ports that Batch has for itself.
MOST_ENDPOINTS, LEAST_PORTS = 5, 40
RESERVED, FRONTEND_RESERVED = frozenset({29_876, 29_877}), (50_000, 55_000)
_ENDPOINT = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,75}\w)?", re.ASCII)

#: What a pool has unless it says otherwise, also inside a job's autoPoolSpecification.
_POOL: dict[str, Any] = {
    "taskSlotsPerNode": 1,
    "resizeTimeout": "PT15M",
    "enableAutoScale": False,
    "enableInterNodeCommunication": False,
}


def _invalid(name: str, value: Any, reason: str | None = None) -> BatchError:
    generic = "The value provided for one of the properties in the request body is invalid."
    return BatchError(
        "InvalidPropertyValue", reason or generic, values={"PropertyName": name, "PropertyValue": str(value)[:300]}
    )


def pool(body: dict[str, Any]) -> None:
    """Bring a pool (or the specification of one) to its normal form, and fill in its defaults.

    :param body: the pool, fit for its model.
    :raises BatchError: it names a size, an image or a subnet that cannot be.
    """
    for name, value in _POOL.items():
        body.setdefault(name, value)
    body["taskSchedulingPolicy"] = {"jobDefaultOrder": "none"} | body.get(
        "taskSchedulingPolicy", {"nodeFillType": "Spread"}
    )
    size = body["vmSize"].lower()
    if not _SIZE.fullmatch(size):
        raise _invalid("vmSize", body["vmSize"])
    body["vmSize"] = size
    machine = body.get("virtualMachineConfiguration")
    windows = machine is not None and "windows" in machine["nodeAgentSKUId"].lower()
    if machine is not None:
        _machine(machine, windows)
    if "networkConfiguration" in body:
        _network(body["networkConfiguration"])
    for account in body.get("userAccounts", ()):
        account.setdefault("elevationLevel", "nonadmin")
        if windows:
            account["windowsUserConfiguration"] = {"loginMode": "batch"} | account.get("windowsUserConfiguration", {})
    if "startTask" in body:
        task(body["startTask"])


def task(body: dict[str, Any]) -> None:
    """Fill in the defaults of a start task.

    :param body: the start task.
    """
    user(body)
    body.setdefault("maxTaskRetryCount", 0)
    body.setdefault("waitForSuccess", True)


def user(body: dict[str, Any]) -> None:
    """Fill in the identity that a task runs under.

    :param body: the task.
    """
    identity = body.setdefault("userIdentity", {"autoUser": {}})
    if "autoUser" in identity:
        identity["autoUser"] = {"scope": "pool", "elevationLevel": "nonadmin"} | identity["autoUser"]


def auto_pool(specification: dict[str, Any]) -> None:
    """Fill in the defaults of a job's autoPoolSpecification: there the real service shows them all.

    :param specification: the specification.
    :raises BatchError: its pool cannot be.
    """
    specification.setdefault("keepAlive", False)
    inner = specification["pool"]
    pool(inner)
    if not inner["enableAutoScale"]:
        inner.setdefault("targetDedicatedNodes", 0)
        inner.setdefault("targetLowPriorityNodes", 0)


def _machine(machine: dict[str, Any], windows: bool) -> None:
    image = machine["imageReference"]
    if "virtualMachineImageId" in image:
        custom = image["virtualMachineImageId"]
        if not _IMAGE.fullmatch(custom):
            raise _invalid(
                "virtualMachineImageId", custom, f"The specified resource id must be of the format {_IMAGE_FORMS}"
            )
        _owned("virtualMachineImageId", custom)
    else:
        publisher = image.get("publisher", "").lower()
        if publisher not in PUBLISHERS:
            raise _invalid("imageReference", publisher, "The specified imageReference is not supported.")
        if (publisher == _WINDOWS) != windows:
            raise _invalid(
                "nodeAgentSKUId",
                machine["nodeAgentSKUId"],
                "The specified nodeAgentSKUId is not valid for the specified imageReference.",
            )
        image.setdefault("version", "latest")
    for disk in machine.get("dataDisks", ()):
        disk.setdefault("caching", "none")
        disk["managedDisk"] = {"storageAccountType": "standard_lrs"} | disk.get("managedDisk", {})
    if "osDisk" in machine:
        machine["osDisk"].setdefault("ephemeralOSDiskSettings", {})
        machine["osDisk"].setdefault("caching", "None")


def _network(network: dict[str, Any]) -> None:
    ports = network.get("endpointConfiguration", {}).get("inboundNATPools", [])
    if len(ports) > MOST_ENDPOINTS:
        raise _invalid("inboundNATPools", len(ports), f"A pool can have {MOST_ENDPOINTS} inbound NAT pools at most.")
    for one in ports:
        _endpoint(one)
    for name in ("name", "backendPort"):
        if len({str(one[name]).lower() for one in ports}) < len(ports):
            raise _invalid(name, [one[name] for one in ports], f"{name} must be unique within the pool.")
    ordered = sorted(ports, key=lambda one: int(one["frontendPortRangeStart"]))
    for one, other in itertools.pairwise(ordered):
        if other["frontendPortRangeStart"] <= one["frontendPortRangeEnd"]:
            raise _invalid("frontendPortRangeStart", other["frontendPortRangeStart"], "The ranges must not overlap.")
    network.setdefault("dynamicVNetAssignmentScope", "none")
    network.setdefault("enableAcceleratedNetworking", False)
    if "subnetId" in network:
        _owned("subnetId", network["subnetId"])


def _endpoint(one: dict[str, Any]) -> None:
    if not _ENDPOINT.fullmatch(one["name"]):
        raise _invalid("name", one["name"], "It must be 1 to 77 letters, digits, underscores, periods and hyphens.")
    if not 1 <= one["backendPort"] <= 65_535 or one["backendPort"] in RESERVED:
        raise _invalid("backendPort", one["backendPort"], "It must be from 1 to 65535, and not 29876 or 29877.")
    first, last = one["frontendPortRangeStart"], one["frontendPortRangeEnd"]
    if not 1 <= first <= last <= 65_534 or (first <= FRONTEND_RESERVED[1] and last >= FRONTEND_RESERVED[0]):
        raise _invalid(
            "frontendPortRangeStart",
            f"{first}-{last}",
            "The range must lie within 1 to 65534, and outside of 50000 to 55000, which is reserved.",
        )
    if last - first + 1 < LEAST_PORTS:
        raise _invalid("frontendPortRangeEnd", last, f"The range must have at least {LEAST_PORTS} ports.")


def _owned(name: str, resource: str) -> None:
    if f"/subscriptions/{_NOBODY}/" in f"{resource}/".lower():
        raise _invalid(
            name,
            resource,
            f"The specified {name} is in a different subscription and cannot be used with the current Batch account",
        )
