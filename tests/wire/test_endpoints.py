"""Inbound endpoints: each node has an address of its own, and what listens there is reached at the frontend port."""

from __future__ import annotations

import os
import resource
import socket
import struct
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from azure.batch import models as m

if TYPE_CHECKING:
    from tests.support.wire import Services, Wire

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


def nat(name: str, protocol: str, backend: int, start: int) -> m.BatchInboundNatPool:
    """A range of 61 ports that leads to one port of each node."""
    return m.BatchInboundNatPool(
        name=name,
        protocol=protocol,
        backend_port=backend,
        frontend_port_range_start=start,
        frontend_port_range_end=start + 60,
    )


def test_strangers_who_knock_leave_the_service_its_files(services: Services, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        wire = services(tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    open_files = Path(f"/proc/{wire.service.pid}/fd")
    configuration = m.BatchPoolEndpointConfiguration(
        inbound_nat_pools=[nat("web", "tcp", 18_082, 23_000), nat("dns", "udp", 18_083, 23_100)]
    )
    pool = wire.pool(1, network_configuration=m.NetworkConfiguration(endpoint_configuration=configuration))
    job = wire.job(pool)
    assert wire.run(job, "/bin/true").execution_info.exit_code == 0  # type: ignore[union-attr]
    quiet = len(os.listdir(open_files))  # noqa: PTH208
    (node,) = wire.nodes(pool, 1, "idle")
    assert node.endpoint_configuration is not None
    web, dns = node.endpoint_configuration.inbound_endpoints
    with ExitStack() as ends:
        # What listens there says nothing and ends nothing.
        ends.enter_context(socket.create_server((str(web.public_ip_address), 18_082), backlog=300))
        callers = [
            ends.enter_context(socket.create_connection((str(web.public_ip_address), web.frontend_port), 5))
            for _ in range(150)
        ]
        for _ in range(150):
            caller = ends.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            caller.sendto(b"hello", (str(dns.public_ip_address), dns.frontend_port))
        assert wire.run(job, "/bin/true").execution_info.exit_code == 0  # type: ignore[union-attr]
        # Broken off, not ended: the side that says nothing is let go as well.
        for caller in callers:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            caller.close()
        wire.until(lambda: len(os.listdir(open_files)) < quiet + 60)  # noqa: PTH208


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_doors_do_not_lead_in_a_circle(wire: Wire, protocol: str) -> None:
    there, back = (24_000, 24_100) if protocol == "tcp" else (25_000, 25_100)
    configuration = m.BatchPoolEndpointConfiguration(
        inbound_nat_pools=[nat("there", protocol, back, there), nat("back", protocol, there, back)]
    )
    pool = wire.pool(1, network_configuration=m.NetworkConfiguration(endpoint_configuration=configuration))
    (node,) = wire.nodes(pool, 1, "idle")
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(type=kind) as one, socket.socket(type=kind) as other:
        # What runs on the node has these ports for itself.
        one.bind((str(node.ip_address), there))
        other.bind((str(node.ip_address), back))
    assert "is not opened" in (wire.service.data / "service.log").read_text()
