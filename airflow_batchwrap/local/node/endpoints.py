"""The inbound endpoints of nodes: which a pool gives its nodes, and the doors that lead to them.

Each node has an address of its own on the loopback interface. A node's endpoint is reached at that address and the
frontend port that the node's number picks from the range; it leads to the backend port at the same address. So two
nodes of one pool may listen on one backend port, where their tasks listen at their own address (`ADDRESS`) and not at
all addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from airflow_batchwrap.local.node.relay import Relay
from airflow_batchwrap.local.node.room import Room, most

log = logging.getLogger(__name__)

#: The variable that tells a command its node's address, where its pool has endpoints. Azure has none of its kind:
#: there, listen at 0.0.0.0.
ADDRESS = "LOCAL_BATCH_NODE_ADDRESS"
_CHUNK = 64 * 1024


def of_pool(body: dict[str, Any], index: int, address: str) -> list[dict[str, Any]]:
    """The inbound endpoints that a pool gives one of its nodes.

    :param body: the pool.
    :param index: the node's number in its pool, from 0.
    :param address: the node's address.
    :return: the endpoints as a node shows them; the address stands for the name too, which nothing here would resolve.
    """
    asked = body.get("networkConfiguration", {}).get("endpointConfiguration", {}).get("inboundNATPools", ())
    return [
        {
            "name": f"{one['name']}.{index}",
            "protocol": one["protocol"],
            "publicIPAddress": address,
            "publicFQDN": address,
            "frontendPort": one["frontendPortRangeStart"] + index,
            "backendPort": one["backendPort"],
        }
        for one in asked
        if one["frontendPortRangeStart"] + index <= one["frontendPortRangeEnd"]
    ]


class _Door(Protocol):
    def close(self) -> None: ...


class Doors:
    """Lets connections and datagrams to the frontend ports of nodes through to their backend ports."""

    def __init__(self) -> None:
        self._servers: dict[str, list[_Door]] = {}
        self._room = Room(most())

    async def open(self, node: str, endpoints: list[dict[str, Any]]) -> None:
        """Open a node's doors; those that are open stay so.

        :param node: the node's id.
        :param endpoints: what `of_pool` gives. No port needs a door that leads to itself.
        """
        if node in self._servers or not endpoints:
            return
        servers = self._servers[node] = []
        backends = {(one["protocol"], one["backendPort"]) for one in endpoints}
        for one in endpoints:
            address, port = one["publicIPAddress"], one["frontendPort"]
            if port == one["backendPort"]:
                continue
            if (one["protocol"], port) in backends:
                # A door behind a door: nothing of the node's own could listen there, and two may lead in a circle.
                log.warning(
                    "The inbound endpoint %s of node %s is not opened: its frontend port %d is another one's backend "
                    "port. Choose ranges of frontend ports that hold no backend port of the pool.",
                    one["name"],
                    node,
                    port,
                )
                continue
            try:
                server = await _OPEN[one["protocol"]](address, port, one["backendPort"], self._room)
            except OSError as error:
                log.warning("The inbound endpoint %s of node %s cannot be opened: %s.", one["name"], node, error)
                continue
            if self._servers.get(node) is not servers:
                # The node went meanwhile.
                server.close()
                return
            servers.append(server)

    def close(self, node: str) -> None:
        """Close a node's doors; connections that were made go on until one side ends them.

        :param node: the node's id; one without doors is no error.
        """
        for server in self._servers.pop(node, ()):
            server.close()

    def close_all(self) -> None:
        """Close all doors."""
        for node in list(self._servers):
            self.close(node)


async def _open_tcp(address: str, port: int, backend: int, room: Room) -> _Door:
    return await asyncio.start_server(_through(address, backend, room), address, port)


async def _open_udp(address: str, port: int, backend: int, room: Room) -> _Door:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: Relay(address, backend, room), local_addr=(address, port)
    )
    return transport


_OPEN: dict[str, Callable[[str, int, int, Room], Awaitable[_Door]]] = {"tcp": _open_tcp, "udp": _open_udp}


def _through(address: str, port: int, room: Room) -> Any:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not room.take():
            writer.transport.abort()
            return
        try:
            await _lead(reader, writer, address, port)
        finally:
            room.give_back()

    return connected


async def _lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str, port: int) -> None:
    """Lead a connection on, until both sides have ended it or one has broken it off."""
    try:
        inner_reader, inner_writer = await asyncio.open_connection(address, port)
    except OSError:
        # As on Azure while nothing listens: the connection ends.
        writer.close()
        return
    ends, whole = (writer, inner_writer), False
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(reader, inner_writer))
            group.create_task(_copy(inner_reader, writer))
        whole = True
    except* OSError:
        # The other side is told in the same way: it might wait for ever.
        pass
    finally:
        for end in ends:
            if whole:
                end.close()
            else:
                end.transport.abort()
        for end in ends:
            with contextlib.suppress(OSError):
                await end.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK):
        writer.write(chunk)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
