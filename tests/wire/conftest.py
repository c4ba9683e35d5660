"""The local Batch service, Azure's own client for it, and a web server that misbehaves on request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
from azure.batch import BatchClient
from azure.batch import models as m
from azure.core.credentials import AzureNamedKeyCredential

from airflow_batchwrap.local import runner
from airflow_batchwrap.local.runner import LocalService

T = TypeVar("T")


def until(look: Callable[[], T], timeout: float = 60.0) -> T:
    """Look until there is something to see.

    :param look: gives something truthy once it is there.
    :param timeout: how long to look, in seconds.
    :return: what it gave.
    """
    deadline = time.monotonic() + timeout
    while True:
        if found := look():
            return found
        assert time.monotonic() < deadline, f"not within {timeout:g} s"
        time.sleep(0.01)


@dataclass
class Wire:
    """A service, a client of it, and the few steps most tests begin with."""

    service: LocalService
    client: BatchClient
    _number: int = 0

    def name(self, stem: str) -> str:
        """An id that no other test uses."""
        self._number += 1
        return f"{stem}-{self._number}"

    def root(self, node: str | None) -> Path:
        """A node's directory on this machine."""
        return self.service.data / "nodes" / str(node).split("_")[1][:12]

    def until(self, look: Callable[[], T], timeout: float = 20.0) -> T:
        """Look until there is something to see."""
        return until(look, timeout)

    def pool_options(self, name: str, nodes: int = 1, slots: int = 1, **more: Any) -> m.BatchPoolCreateOptions:
        """What is needed to create a pool."""
        image = m.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server", version="latest")
        machine = m.VirtualMachineConfiguration(image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04")
        more.setdefault("target_dedicated_nodes", nodes)
        return m.BatchPoolCreateOptions(
            id=name,
            vm_size="Standard_D2s_v3",
            virtual_machine_configuration=machine,
            task_slots_per_node=slots,
            **more,
        )

    def pool(self, nodes: int = 1, slots: int = 1, **more: Any) -> str:
        """A pool with its nodes idle."""
        name = self.name("pool")
        self.client.create_pool(self.pool_options(name, nodes, slots, **more))
        self.nodes(name, nodes, "idle")
        return name

    def nodes(self, pool: str, count: int, *states: str) -> list[m.BatchNode]:
        """The nodes of a pool, once there are so many and all are in one of these states."""

        def look() -> list[m.BatchNode] | None:
            nodes = list(self.client.list_nodes(pool))
            steady = self.client.get_pool(pool).allocation_state == "steady"
            fine = steady and len(nodes) == count and all(node.state in states for node in nodes)
            return nodes if fine else None

        if count:
            return self.until(look) or []
        self.until(lambda: not list(self.client.list_nodes(pool)))
        return []

    def job(self, pool: str, **more: Any) -> str:
        """A job on a pool."""
        name = self.name("job")
        self.client.create_job(m.BatchJobCreateOptions(id=name, pool_info=m.BatchPoolInfo(pool_id=pool), **more))
        return name

    def add(self, job: str, command: str, **more: Any) -> str:
        """A task of a job."""
        name = more.pop("id", None) or self.name("task")
        self.client.create_task(job, m.BatchTaskCreateOptions(id=name, command_line=command, **more))
        return str(name)

    def state(self, job: str, task: str, state: str) -> m.BatchTask:
        """A task, once it is in a state."""

        def look() -> m.BatchTask | None:
            found = self.client.get_task(job, task)
            return found if found.state == state else None

        found = self.until(look)
        assert found is not None
        return found

    def run(self, job: str, command: str, **more: Any) -> m.BatchTask:
        """A task that has completed."""
        return self.state(job, self.add(job, command, **more), "completed")

    def text(self, job: str, task: str, path: str = "stdout.txt") -> str:
        """The text of a task's file."""
        return b"".join(self.client.download_task_file(job, task, path)).decode()

    def terminate(self, job: str, reason: str = "enough") -> None:
        """End a job, and wait until it has ended."""
        options: Any = {"terminateReason": reason}
        self.client.begin_terminate_job(job, options, polling_interval=0).wait()

    def job_state(self, job: str, state: str) -> m.BatchJob:
        """A job, once it is in a state."""

        def look() -> m.BatchJob | None:
            found = self.client.get_job(job)
            return found if found.state == state else None

        found = self.until(look)
        assert found is not None
        return found


def connect(service: LocalService, key: str | None = None) -> BatchClient:
    """Azure's client for a service, without its retries: an error is to be seen at once."""
    credential = AzureNamedKeyCredential(service.account, key or service.key)
    return BatchClient(service.url, credential, retry_total=0)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A local Batch service on a free port, for the whole session."""
    data: Path = tmp_path_factory.mktemp("batch")
    running = runner.start(data / "data")
    yield running
    running.stop()
    assert "Traceback" not in (running.data / "service.log").read_text()


@pytest.fixture(scope="session")
def wire(service: LocalService) -> Iterator[Wire]:
    """The session's service with Azure's client."""
    with connect(service) as client:
        yield Wire(service, client)


@pytest.fixture(scope="session")
def pool(wire: Wire) -> str:
    """A pool of two nodes with four slots each, for tests that do nothing to a pool."""
    return wire.pool(2, 4)


@pytest.fixture
def job(wire: Wire, pool: str) -> str:
    """A job on the session's pool."""
    return wire.job(pool)


@pytest.fixture(scope="session")
def services() -> Iterator[Callable[..., Wire]]:
    """Starts services (again) on data directories; what still runs at the end is stopped."""
    clients: list[BatchClient] = []
    directories: set[Path] = set()

    def begin(data: Path, *arguments: str) -> Wire:
        running = runner.launch(data, list(arguments))
        directories.add(data)
        clients.append(connect(running))
        return Wire(running, clients[-1], _number=1000 * len(clients))

    yield begin
    for client in clients:
        client.close()
    for data in directories:
        if (running := runner.attach(data)) is not None:
            running.stop()


@pytest.fixture
def own(services: Callable[..., Wire], tmp_path: Path) -> Iterator[Callable[[], Wire]]:
    """Starts (again) a service of the test's own, always on the same data directory."""
    yield lambda: services(tmp_path / "own")
    if (running := runner.attach(tmp_path / "own")) is not None:
        running.stop()


@dataclass
class Web:
    """A web server that keeps what is put, and misbehaves where its paths say so.

    ``/busy-N/...`` answers 503 N times first, ``/denied/...`` 403, ``/cut/...`` breaks off in the middle, ``/slow/...``
    answers after a while, and a container's list is whatever `listing` holds.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    listing: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    going_on: threading.Event = field(default_factory=threading.Event)


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            """Say nothing."""

        def _answer(self, status: int, body: bytes = b"", announced: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if announced is None else announced))
            self.end_headers()
            self.wfile.write(body)

        def _refused(self, path: str) -> bool:
            kind = path.split("/")[1]
            before = web.asked.count(path)
            web.asked.append(path)
            if kind.startswith("busy-") and before < int(kind[5:]):
                self._answer(503)
            elif kind == "denied":
                self._answer(403)
            else:
                return False
            return True

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            if self._refused(path):
                return
            query = parse_qs(parts.query)
            if query.get("comp") == ["list"]:
                prefix = query.get("prefix", [""])[0]
                blobs = "".join(
                    f"<Blob><Name>{escape(name)}</Name></Blob>" for name in web.listing if name.startswith(prefix)
                )
                self._answer(200, f"<EnumerationResults><Blobs>{blobs}</Blobs></EnumerationResults>".encode())
            elif path.startswith("/cut/"):
                self._answer(200, b"half", announced=8)
                self.close_connection = True
            elif path.startswith("/slow/"):
                web.going_on.wait(10)
                self._answer(200, b"slow")
            elif path in web.files:
                self._answer(200, web.files[path])
            else:
                self._answer(404)

        def do_PUT(self) -> None:
            path = unquote(urlsplit(self.path).path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self._refused(path):
                return
            web.files[path] = body
            web.headers[path] = {name.lower(): value for name, value in self.headers.items()}
            self._answer(201)

    return Handler


@pytest.fixture
def web() -> Iterator[Web]:
    """A web server on a free port."""
    state = Web("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    state.going_on.set()
    server.shutdown()
    thread.join()
    server.server_close()
