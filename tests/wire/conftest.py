"""The local Batch service with Azure's own client for it, and a web server that misbehaves on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from azure.batch import BatchClient

from airflow_batchwrap.local import runner
from airflow_batchwrap.local.runner import LocalService
from tests.support import web as webs
from tests.support.web import Web
from tests.support.wire import Services, Wire, connect


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
def services() -> Iterator[Services]:
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
def own(services: Services, tmp_path: Path) -> Iterator[Callable[[], Wire]]:
    """Starts (again) a service of the test's own, always on the same data directory."""
    yield lambda: services(tmp_path / "own")
    if (running := runner.attach(tmp_path / "own")) is not None:
        running.stop()


@pytest.fixture
def web() -> Iterator[Web]:
    """A web server on a free port."""
    with webs.serve() as running:
        yield running
