"""Azurite as the stack runs it, spoken to with Azure's own client."""

from __future__ import annotations

import concurrent.futures
import datetime
import http.server
import ssl
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from azure.core.exceptions import HttpResponseError, ServiceRequestError
from azure.storage.blob import BlobServiceClient
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.local import tls
from airflow_batchwrap.local.home import Home
from airflow_batchwrap.stack import azurite as runner
from airflow_batchwrap.stack.azurite import AzuriteService


def test_blob_comes_back_as_it_was_sent(azurite: AzuriteService) -> None:
    with BlobServiceClient.from_connection_string(azurite.connection_string) as client:
        container = client.create_container("comes-back")
        container.upload_blob("a/b.txt", b"1 2 3")
        assert container.download_blob("a/b.txt").readall() == b"1 2 3"


def test_blobs_outlive_a_restart(tmp_path: Path) -> None:
    first = runner.start(tmp_path / "data")
    try:
        with BlobServiceClient.from_connection_string(first.connection_string) as client:
            client.create_container("kept").upload_blob("x", b"x")
    finally:
        first.stop()
    assert not psutil.pid_exists(first.pid)
    second = runner.start(tmp_path / "data")
    try:
        with BlobServiceClient.from_connection_string(second.connection_string) as client:
            assert client.get_blob_client("kept", "x").download_blob().readall() == b"x"
    finally:
        second.stop()


def test_taken_port_is_named(azurite: AzuriteService, tmp_path: Path) -> None:
    port = int(azurite.url.split(":")[2].split("/")[0])
    with pytest.raises(ConfigError, match=f"port {port}: it is taken"):
        runner.start(tmp_path / "data", port=port)


def test_temporary_data_go_with_the_service() -> None:
    service = runner.start(None)
    folder = service.log.parent
    assert folder.is_dir()
    service.stop()
    service.stop()
    assert not folder.exists()


def test_over_tls_it_is_trusted_by_its_authority(tmp_path: Path) -> None:
    files = tls.make(Home.make(tmp_path / "authority"))
    service = runner.start(tmp_path / "data", tls=files)
    try:
        assert service.url.startswith("https://127.0.0.1:")
        trusting: dict[str, Any] = {"connection_verify": str(files.authority)}
        with BlobServiceClient.from_connection_string(service.connection_string, **trusting) as client:
            assert client.create_container("secure").exists()
        with (
            BlobServiceClient.from_connection_string(service.connection_string, retry_total=0) as client,
            pytest.raises(ServiceRequestError, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            client.get_account_information()
    finally:
        service.stop()


def test_key_stays_out_of_the_representation(azurite: AzuriteService) -> None:
    assert azurite.key
    assert azurite.key not in repr(azurite)


#: Azurite's README, "Default Storage Account".
PUBLISHED = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def test_key_is_random_and_kept_for_its_owner(tmp_path: Path) -> None:
    service = runner.start(tmp_path / "data")
    try:
        assert service.key != PUBLISHED
        with (
            BlobServiceClient(
                service.url, {"account_name": service.account, "account_key": PUBLISHED}, retry_total=0
            ) as stranger,
            pytest.raises(HttpResponseError, match="AuthorizationFailure"),
        ):
            stranger.create_container("theirs")
        with BlobServiceClient.from_connection_string(service.connection_string) as client:
            client.create_container("kept")
    finally:
        service.stop()
    file = tmp_path / "data.key"
    assert file.read_text().strip() == service.key
    assert (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE((tmp_path / "data").stat().st_mode)) == (0o600, 0o700)
    again = runner.start(tmp_path / "data")
    try:
        assert again.key == service.key
        with BlobServiceClient.from_connection_string(again.connection_string) as client:
            assert [container.name for container in client.list_containers()] == ["kept"]
    finally:
        again.stop()


@pytest.mark.parametrize("key", ["", "short", "bm90IGVub3VnaA==", "!" * 88])
def test_key_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "data.key").write_text(key)
    with pytest.raises(ConfigError, match=r"data\.key cannot be used.*Remove the file"):
        runner.start(tmp_path / "data")


def test_half_done_installation_is_redone_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = runner.install()
    monkeypatch.setenv("BATCHWRAP_CACHE", str(tmp_path))
    target = tmp_path / installed.name
    (target / "node_modules").mkdir(parents=True)
    (tmp_path / f"{installed.name}.tmp-left").mkdir()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: runner.install(), range(2)))
    assert both == [target, target]
    assert (target / "node_modules/azurite/dist/src/blob/main.js").is_file()
    assert {path.name for path in tmp_path.iterdir()} <= {target.name, f"{target.name}.lock"}


@pytest.fixture
def distrusted_registry(tmp_path: Path) -> Iterator[str]:
    """An HTTPS server whose certificate nobody vouches for, as behind a proxy that re-signs."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "registry.pem"
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(plain + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    # The handshake belongs to the request's own thread: in the server's, one that fails would end the server.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_a_certificate_that_npm_does_not_know_is_told_with_its_remedy(
    distrusted_registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHWRAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", distrusted_registry)
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_noproxy", "localhost")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(ConfigError, match="NODE_EXTRA_CA_CERTS=") as told:
        runner.install()
    assert "SELF_SIGNED_CERT" in str(told.value)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
