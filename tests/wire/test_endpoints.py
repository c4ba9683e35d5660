"""Inbound endpoints: each node has an address of its own, and what listens there is reached at the frontend port."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from azure.batch import models as m

if TYPE_CHECKING:
    from tests.support.wire import Wire

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 on its loopback interface"
)

#: Listens at its node's own address, answers each caller with the node's id, and ends when it is told so.
SERVER = """
import os, socket
with socket.create_server((os.environ["LOCAL_BATCH_NODE_ADDRESS"], 18_080)) as server:
    while True:
        caller, _ = server.accept()
        with caller:
            said = caller.makefile().readline()
            caller.sendall((os.environ["AZ_BATCH_NODE_ID"] + " " + said).encode())
        if said == "end\\n":
            break
"""


def network(start: int) -> m.NetworkConfiguration:
    """A network that leads a range of ports to one port of each node."""
    web = m.BatchInboundNatPool(
        name="web",
        protocol="tcp",
        backend_port=18_080,
        frontend_port_range_start=start,
        frontend_port_range_end=start + 60,
    )
    return m.NetworkConfiguration(endpoint_configuration=m.BatchPoolEndpointConfiguration(inbound_nat_pools=[web]))


def endpoint(node: m.BatchNode) -> m.InboundEndpoint:
    """A node's only endpoint."""
    assert node.endpoint_configuration is not None
    (one,) = node.endpoint_configuration.inbound_endpoints
    return one


def ask(one: m.InboundEndpoint, word: str) -> str:
    """What answers at an endpoint; empty where nothing does."""
    with suppress(OSError), socket.create_connection((str(one.public_ip_address), one.frontend_port), 5) as caller:
        caller.sendall(f"{word}\n".encode())
        return caller.makefile().read()
    return ""


def test_tasks_of_two_nodes_listen_on_one_port(wire: Wire) -> None:
    pool = wire.pool(2, network_configuration=network(21_000))
    job = wire.job(pool)
    nodes = wire.nodes(pool, 2, "idle")
    ends = {str(node.id): endpoint(node) for node in nodes}
    assert sorted(one.name for one in ends.values()) == ["web.0", "web.1"]
    assert {one.frontend_port for one in ends.values()} == {21_000, 21_001}
    assert {one.public_ip_address for one in ends.values()} == {node.ip_address for node in nodes}
    assert len({node.ip_address for node in nodes}) == 2
    assert not any(ask(one, "hello") for one in ends.values())
    settings = [m.EnvironmentSetting(name="SERVER", value=SERVER)]
    command = """/bin/sh -c 'exec python3 -c "$SERVER"'"""
    tasks = [wire.add(job, command, environment_settings=settings) for _ in ends]
    for name, one in ends.items():
        assert wire.until(lambda one=one: ask(one, "hello")) == f"{name} hello\n"  # type: ignore[misc]
        assert ask(one, "end") == f"{name} end\n"
    for task in tasks:
        assert wire.state(job, task, "completed").execution_info.exit_code == 0  # type: ignore[union-attr]
    # A node that leaves takes its door with it.
    wire.client.begin_resize_pool(pool, m.BatchPoolResizeOptions(target_dedicated_nodes=0), polling_interval=0).wait()
    wire.nodes(pool, 0)
    for one in ends.values():
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((str(one.public_ip_address), one.frontend_port), 5)


#: The same with datagrams.
ECHO = """
import os, socket
with socket.socket(type=socket.SOCK_DGRAM) as server:
    server.bind((os.environ["LOCAL_BATCH_NODE_ADDRESS"], 18_081))
    said = b""
    while said != b"end":
        said, caller = server.recvfrom(1000)
        server.sendto(os.environ["AZ_BATCH_NODE_ID"].encode() + b" " + said, caller)
"""


def test_datagrams_reach_a_node_and_their_answers_whoever_asked(wire: Wire) -> None:
    udp = m.BatchInboundNatPool(
        name="dns",
        protocol="udp",
        backend_port=18_081,
        frontend_port_range_start=22_000,
        frontend_port_range_end=22_060,
    )
    configuration = m.BatchPoolEndpointConfiguration(inbound_nat_pools=[udp])
    pool = wire.pool(2, network_configuration=m.NetworkConfiguration(endpoint_configuration=configuration))
    job, nodes = wire.job(pool), wire.nodes(pool, 2, "idle")
    settings = [m.EnvironmentSetting(name="SERVER", value=ECHO)]
    tasks = [wire.add(job, """/bin/sh -c 'exec python3 -c "$SERVER"'""", environment_settings=settings) for _ in nodes]
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as other:
        for node in nodes:
            end = endpoint(node)
            place = (str(end.public_ip_address), end.frontend_port)

            def asked(caller: socket.socket, word: str, place: tuple[str, int] = place) -> str:
                # A datagram is lost while nothing listens.
                caller.settimeout(0.5)
                with suppress(TimeoutError):
                    caller.sendto(word.encode(), place)
                    # An earlier answer may have come late.
                    while not (said := caller.recv(1000).decode()).endswith(word):
                        pass
                    return said
                return ""

            assert wire.until(lambda asked=asked: asked(one, "first")) == f"{node.id} first"  # type: ignore[misc]
            assert [asked(other, "b"), asked(one, "a")] == [f"{node.id} b", f"{node.id} a"]
            assert asked(other, "end") == f"{node.id} end"
    for task in tasks:
        assert wire.state(job, task, "completed").execution_info.exit_code == 0  # type: ignore[union-attr]


def test_a_pool_without_endpoints_shows_none(wire: Wire, pool: str) -> None:
    assert [node.endpoint_configuration for node in wire.client.list_nodes(pool)] == [None, None]
