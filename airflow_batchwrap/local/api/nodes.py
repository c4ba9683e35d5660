"""Operations on nodes."""

from __future__ import annotations

import os
import uuid
from typing import Any
from urllib.parse import quote, urlsplit

from airflow_batchwrap.local.api import views
from airflow_batchwrap.local.api.call import Call, Reply, Row, numbered
from airflow_batchwrap.local.model.entities import Node
from airflow_batchwrap.local.model.rules.values import invalid
from airflow_batchwrap.local.model.states import Dealing, NodeWish
from airflow_batchwrap.local.node import agentlog, opening, threads
from airflow_batchwrap.local.node.blob import TransferError, child
from airflow_batchwrap.local.wire import schema, times
from airflow_batchwrap.local.wire.errors import BatchError

#: Learn: a node user's account expires after one day by default; in seconds.
USER_LIFE = 86_400.0
#: The first of the ports that remote login settings name (seen on real pools); nothing listens there.
FIRST_PORT = 50_000
#: Learn: users are added and removed only on nodes in these states.
_AT_WORK = ("idle", "running")


async def list_nodes(call: Call) -> Reply:
    """List a pool's nodes."""
    pool = call.pool()
    return await call.listing(
        "nodes", pool.nodes.beyond, lambda node, names: views.node(call.base, node, names, call.version)
    )


async def get_node(call: Call) -> Reply:
    """Show a node."""
    node = call.node()
    return await call.show(node, views.node(call.base, node, call.selected(), call.version))


async def _down(call: Call, model: str, option: str, wish: NodeWish) -> Reply:
    body = await call.body(model, optional=True)
    node = call.node()
    call.world.node_control.down(node, wish, Dealing(body.get(option, "requeue")))
    return await call.accept(node, views.url_of(call.base, node))


async def reboot_node(call: Call) -> Reply:
    """Reboot a node: its files stay, its start task runs again."""
    return await _down(call, "BatchNodeRebootOptions", "nodeRebootOption", NodeWish.REBOOT)


async def reimage_node(call: Call) -> Reply:
    """Reimage a node: its files go, its start task runs again."""
    return await _down(call, "BatchNodeReimageOptions", "nodeReimageOption", NodeWish.REIMAGE)


async def deallocate_node(call: Call) -> Reply:
    """Deallocate a node: its files go, and it waits to be started."""
    return await _down(call, "BatchNodeDeallocateOptions", "nodeDeallocateOption", NodeWish.DEALLOCATE)


async def start_node(call: Call) -> Reply:
    """Start a deallocated node."""
    node = call.node()
    call.world.node_control.start(node)
    return await call.accept(node, views.url_of(call.base, node))


async def disable_node_scheduling(call: Call) -> Reply:
    """Place no more tasks on a node."""
    body = await call.body("BatchNodeDisableSchedulingOptions", optional=True)
    node = call.node()
    call.world.node_control.disable(node, Dealing(body.get("nodeDisableSchedulingOption", "requeue")))
    return await call.accept(node, views.url_of(call.base, node))


async def enable_node_scheduling(call: Call) -> Reply:
    """Place tasks on a node again."""
    node = call.node()
    call.world.node_control.enable(node)
    return await call.accept(node, views.url_of(call.base, node))


def _at_work(call: Call) -> Node:
    node = call.node()
    if node.state == "unusable":
        raise BatchError("NodeStateUnusable")
    if node.state not in _AT_WORK:
        raise BatchError("OperationInvalidForCurrentState", values={"NodeState": node.state})
    return node


def _user(body: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a user: never the password, which nothing here would ask for."""
    expiry = body.get("expiryTime") or times.iso(times.now() + USER_LIFE)
    return {"isAdmin": body.get("isAdmin", False), "expiryTime": expiry, "sshPublicKey": body.get("sshPublicKey")}


def _named(node: Node, name: str) -> str:
    for known in node.users:
        if known.lower() == name.lower():
            return known
    raise BatchError("NodeUserNotFound")


async def create_node_user(call: Call) -> Reply:
    """Add a user to a node; nobody can log in, since the node is a directory."""
    body = await call.body("BatchNodeUserCreateOptions")
    node = _at_work(call)
    name = body["name"]
    if not name.strip():
        raise invalid("name", "it must not be empty.")
    if name.lower() in {known.lower() for known in node.users}:
        raise BatchError("NodeUserExists")
    node.users[name] = _user(body)
    call.world.store.touch(node)
    return await call.accept(node, f"{views.url_of(call.base, node)}/users/{quote(name, safe='')}")


async def replace_node_user(call: Call) -> Reply:
    """Replace a user's password, key and expiry."""
    body = await call.body("BatchNodeUserReplaceOptions")
    node = _at_work(call)
    name = _named(node, call.path["userName"])
    node.users[name] = {**_user(body), "isAdmin": node.users[name]["isAdmin"]}
    call.world.store.touch(node)
    return await call.accept(node, f"{views.url_of(call.base, node)}/users/{quote(name, safe='')}")


async def delete_node_user(call: Call) -> Reply:
    """Remove a user from a node."""
    node = _at_work(call)
    del node.users[_named(node, call.path["userName"])]
    call.world.store.touch(node)
    await call.world.store.commit()
    return Reply()


async def get_node_remote_login_settings(call: Call) -> Reply:
    """Say where one would log in; nothing listens there."""
    node = call.node()
    return Reply(
        {
            "odata.metadata": f"{call.base}/$metadata#Microsoft.Azure.Batch.Protocol.Entities.ComputeNodeRemoteLogin",
            "remoteLoginIPAddress": "127.0.0.1",
            "remoteLoginPort": FIRST_PORT + node.index,
        }
    )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


async def upload_node_logs(call: Call) -> Reply:
    """Upload a node's log to a container; the answer does not wait for the upload."""
    body = await call.body("UploadBatchServiceLogsOptions")
    node = call.node()
    if "identityReference" in body:
        raise invalid("identityReference", "no pool of this service has a managed identity.")
    if not _is_address(body["containerUrl"]):
        raise invalid("containerUrl", "it must be the http or https address of a container.")
    start, end = times.parse_iso(body["startTime"]), body.get("endTime")
    if end is not None and times.parse_iso(end) < start:
        raise invalid("endTime", "it must not be before startTime.")
    root = call.world.root(node)
    files = await agentlog.within(root, start, None if end is None else times.parse_iso(end))
    folder = f"{node.pool.id}/{node.id}/{uuid.uuid4()}"

    async def upload() -> None:
        for file in files:
            name = file.rpartition("/")[2]
            try:
                descriptor, status = await threads.opened(opening.reading, root, file)
                try:
                    url = child(body["containerUrl"], f"{folder}/{name}")
                    await call.world.blobs.upload(descriptor, status.st_size, url, {})
                finally:
                    os.close(descriptor)
            except (TransferError, OSError) as error:
                # Without the address's signature: TransferError has none.
                agentlog.write(root, f"the upload of {name} failed: {error}")

    call.world.spawn(upload())
    return Reply(
        {
            "odata.metadata": f"{call.base}/$metadata#{schema.TYPES}UploadBatchServiceLogsResult",
            "virtualDirectoryName": folder,
            "numberOfFilesUploaded": len(files),
        }
    )


async def list_node_extensions(call: Call) -> Reply:
    """List the extensions that a node's pool asks for."""
    rows = [Row(str(number), one) for number, one in enumerate(views.extensions(call.node()), 1)]
    return await call.listing("nodeextensions", numbered(rows), lambda row, names: views.only(row.value, names))


async def get_node_extension(call: Call) -> Reply:
    """Show an extension of a node."""
    name = call.path["extensionName"].lower()
    for one in views.extensions(call.node()):
        if one["vmExtension"]["name"].lower() == name:
            shown = views.only(one, call.selected())
            return Reply({"odata.metadata": f"{call.base}/$metadata#nodeextensions/@Element", **shown})
    raise BatchError("ResourceNotFound")
