"""The service over TLS: its authority, its certificate, somebody else's certificate, and what nodes trust."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from azure.batch import BatchClient
from azure.batch import models as m
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import ServiceRequestError
from typer.testing import CliRunner

from airflow_batchwrap.local import runner, tls
from airflow_batchwrap.local.commands import app
from airflow_batchwrap.local.home import Home, HomeError
from airflow_batchwrap.local.runner import LocalService

if TYPE_CHECKING:
    from tests.support.wire import Wire

Launch = Callable[..., LocalService]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts services, by default on one data directory."""
    begun: list[LocalService] = []

    def begin(*arguments: str, data: str = "data") -> LocalService:
        begun.append(runner.launch(tmp_path / data, list(arguments)))
        return begun[-1]

    yield begin
    for service in reversed(begun):
        service.stop()
        log = (service.data / "service.log").read_text()
        assert "Traceback" not in log
        assert "ERROR" not in log


def client_of(service: LocalService, authority: Path | None) -> BatchClient:
    """Azure's client, which trusts one authority or the well-known ones."""
    credential = AzureNamedKeyCredential(service.account, service.key)
    return BatchClient(service.url, credential, retry_total=0, connection_verify=str(authority) if authority else True)


def pools(service: LocalService, authority: Path | None) -> list[str]:
    """The ids of a service's pools."""
    with client_of(service, authority) as client:
        return [pool.id for pool in client.list_pools()]


def test_client_that_trusts_the_authority_is_served_and_no_other(launch: Launch, tmp_path: Path) -> None:
    service = launch("--tls")
    assert service.url.startswith("https://127.0.0.1:")
    assert service.authority == service.data / "ca.pem"
    assert pools(service, service.authority) == []
    with pytest.raises(ServiceRequestError, match="CERTIFICATE_VERIFY_FAILED"):
        pools(service, None)
    other = tls.make(Home.make(tmp_path / "other")).authority
    with pytest.raises(ServiceRequestError, match="CERTIFICATE_VERIFY_FAILED"):
        pools(service, other)


def test_keys_are_private_and_the_authority_is_kept(launch: Launch) -> None:
    service = launch("--tls")
    assert service.authority is not None
    authority = service.authority.read_bytes()
    assert b"PRIVATE" not in authority
    for name in ("ca.key", "tls.pem", "identity.json"):
        assert (service.data / name).stat().st_mode & 0o777 == 0o600
    certificate = (service.data / "tls.pem").read_bytes()
    service.stop()
    again = launch("--tls")
    assert (service.authority.read_bytes(), (service.data / "tls.pem").read_bytes()) == (authority, certificate)
    assert pools(again, service.authority) == []


def test_certificate_is_made_anew_for_other_names(tmp_path: Path) -> None:
    home = Home.make(tmp_path / "data")
    first, before = tls.make(home), (tmp_path / "data/ca.pem").read_bytes()
    old = first.certificate.read_bytes()
    assert tls.make(home, "batch.example", "10.1.2.3").certificate.read_bytes() != old
    assert (tmp_path / "data/ca.pem").read_bytes() == before
    kept = first.certificate.read_bytes()
    tls.make(home, "batch.example")
    assert first.certificate.read_bytes() == kept


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_page_and_api_are_there_under_every_name(launch: Launch, name: str) -> None:
    service = launch("--tls")
    port = int(service.url.rpartition(":")[2])
    context = ssl.create_default_context(cafile=service.authority)
    connection = http.client.HTTPSConnection(name, port, timeout=20, context=context)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == 200
        assert b"local Azure Batch service" in answer.read()
    finally:
        connection.close()


def test_stop_does_not_wait_for_connections_that_are_idle(launch: Launch) -> None:
    service = launch("--tls")
    with client_of(service, service.authority) as client:
        list(client.list_pools())
        service.stop()
    # The fixture looks for what uvicorn writes where it has waited in vain.


def test_certificate_of_somebody_else(launch: Launch, tmp_path: Path) -> None:
    files = tls.make(Home.make(tmp_path / "other"))
    service = launch("--cert", str(files.certificate), "--cert-key", str(files.key))
    assert service.authority is None
    assert service.url.startswith("https://")
    assert pools(service, files.authority) == []


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one, other = (tls.make(Home.make(tmp_path / name)) for name in ("one", "other"))
    assert one.authority is not None
    with pytest.raises(HomeError, match="belong together"):
        tls.own(one.authority, other.key)
    with pytest.raises(HomeError, match="No such file"):
        tls.own(tmp_path / "none", other.key)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--cert", "c.pem"], "--cert-key together"),
        (["--tls", "--cert", "c.pem", "--cert-key", "k.pem"], "not both"),
        (["--trust", "none.pem"], "no certificate that can be read"),
        (["--role", "owner"], "There is no role 'owner'"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "start"])
def test_wrong_options_are_told(tmp_path: Path, command: str, arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(app, [command, "--data", str(tmp_path / "data"), *arguments])
    assert done.exit_code == 1
    assert told in done.output


def test_start_and_status_name_the_authority(tmp_path: Path) -> None:
    data = tmp_path / "data"
    try:
        begun = CliRunner().invoke(app, ["start", "--data", str(data), "--tls"])
        told = CliRunner().invoke(app, ["status", "--data", str(data)])
        assert f"Certificate authority: {data.resolve() / 'ca.pem'}" in begun.output
        assert begun.output == told.output
    finally:
        CliRunner().invoke(app, ["stop", "--data", str(data)])


@pytest.fixture
def secure_web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server over TLS with one file; its address and its authority."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            """Say nothing."""

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"safe")

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing of clients that do not trust this server."""

    files = tls.make(Home.make(tmp_path / "web"))
    assert files.authority is not None
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = tls.context(files).wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}", files.authority
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("trusted", ["--trust", "SSL_CERT_FILE", ""])
def test_nodes_trust_what_they_are_told_to(
    launch: Launch, wire: Wire, secure_web: tuple[str, Path], trusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, authority = secure_web
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    if trusted == "SSL_CERT_FILE":
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    service = launch(*(["--trust", str(authority)] if trusted == "--trust" else []))
    with client_of(service, None) as client:
        here = type(wire)(service, client)
        file = m.ResourceFile(http_url=f"{url}/a", file_path="a")
        info = here.run(here.job(here.pool()), "/bin/cat a", resource_files=[file]).execution_info
    assert info is not None
    if trusted:
        assert info.failure_info is None
    else:
        assert info.failure_info is not None
        assert info.failure_info.code == "BlobDownloadMiscError"


def test_private_authority_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing.pem"))
    for command in ("serve", "start"):
        done = CliRunner().invoke(app, [command, "--data", str(tmp_path / "data")])
        assert done.exit_code == 1
        assert f"SSL_CERT_FILE={tmp_path / 'nothing.pem'} holds no certificate" in done.output
