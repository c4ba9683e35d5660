"""Who may use the service: its key, its data directory, and the addresses that it listens on."""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner, Result

from airflow_batchwrap.local import runner
from airflow_batchwrap.local.commands import app
from airflow_batchwrap.local.home import DEV_KEY, Home, HomeError
from airflow_batchwrap.local.runner import LocalService, LocalServiceError
from tests.support.wire import connect

#: All addresses of this machine.
EVERYWHERE = "0.0.0.0"  # noqa: S104 - to be refused, or reached by each of them
#: The published key with another last letter: base64 decodes it to the same bytes.
TWIN = DEV_KEY.removesuffix("Q==") + "R=="


def key(size: int) -> str:
    """A random key of so many bytes."""
    return base64.b64encode(secrets.token_bytes(size)).decode()


def serve(data: Path, *arguments: str) -> Result:
    """Run `serve`, in this process, where it is to be refused."""
    return CliRunner().invoke(app, ["serve", "--data", str(data), *arguments])


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data directory; what runs on it afterwards is stopped."""
    yield tmp_path / "data"
    if (left := runner.attach(tmp_path / "data")) is not None:
        left.stop()


def get(service: LocalService, host: str, address: str = "127.0.0.1") -> int:
    """Ask for the front page by a Host header; return the status."""
    port = int(service.url.rpartition(":")[2])
    if service.url.startswith("https"):
        context = ssl.create_default_context(cafile=service.authority)
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(address, port, timeout=20, context=context)
    else:
        connection = http.client.HTTPConnection(address, port, timeout=20)
    try:
        connection.request("GET", "/", headers={"Host": host} if host else {})
        return connection.getresponse().status
    finally:
        connection.close()


def own_address() -> str:
    """An address of this machine that is not of loopback."""
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family == socket.AF_INET and not each.address.startswith("127."):
                return each.address
    pytest.skip("this machine has no IPv4 address beside that of loopback")


# --- keys


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "The key is empty"),
        (" \n", "The key is empty"),
        ("no base64!", "The key is not in base64"),
        ("schlüssel", "The key is not in base64"),
        (key(31), "The key has 31 bytes once decoded, and needs 32 at least"),
    ],
    # A key is another one in each process that runs these tests, and what names a test must not be.
    ids=["empty", "blank", "no-base64", "no-ascii", "short"],
)
@pytest.mark.parametrize("command", ["serve", "start"])
def test_key_that_is_none_is_refused_with_words(data: Path, command: str, given: str, said: str) -> None:
    answer = CliRunner().invoke(app, [command, "--data", str(data), "--key", given])
    assert answer.exit_code == 1
    assert said in answer.stderr
    assert "give 64 random bytes in base64" in answer.stderr
    assert not given.strip() or given not in answer.stderr
    assert not (data / "key").exists()


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe", "is not in base64"),
        (base64.b64encode(b"short"), "has 5 bytes once decoded"),
        (DEV_KEY.encode(), "is the published one"),
        (TWIN.encode(), "is the published one"),
    ],
)
def test_key_file_that_holds_none_is_refused_with_words(data: Path, kept: bytes, said: str) -> None:
    data.mkdir()
    (data / "key").write_bytes(kept)
    with pytest.raises(LocalServiceError, match=said) as caught:
        runner.start(data)
    assert "remove the file for a random key" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.as_user
def test_shortest_key_is_taken(data: Path) -> None:
    Home.make(data).key(key(32))
    service = runner.start(data)
    with connect(service) as client:
        assert list(client.list_pools()) == []


@pytest.mark.parametrize("option", [["--dev-key"], ["--key", TWIN]])
def test_published_key_is_used_and_never_kept(data: Path, option: list[str]) -> None:
    started = CliRunner().invoke(app, ["start", "--data", str(data), *option])
    assert started.exit_code == 0, started.output
    service = runner.attach(data)
    assert service is not None
    with connect(service, DEV_KEY) as client:
        assert list(client.list_pools()) == []
    with connect(service) as client:
        assert list(client.list_pools()) == []
    service.stop()
    for path in data.iterdir():
        assert not path.is_file() or DEV_KEY.encode()[:-3] not in path.read_bytes(), path
    again = runner.start(data)
    assert base64.b64decode(again.key) != base64.b64decode(DEV_KEY)


@pytest.mark.parametrize("option", [["--dev-key"], ["--key", DEV_KEY], ["--key", TWIN]])
@pytest.mark.parametrize("command", ["serve", "start"])
def test_published_key_opens_no_address_that_others_reach(data: Path, command: str, option: list[str]) -> None:
    answer = CliRunner().invoke(app, [command, "--data", str(data), "--host", EVERYWHERE, "--plain-http", *option])
    assert answer.exit_code == 1
    assert "published key is not used on 0.0.0.0" in answer.stderr


def test_identity_that_cannot_be_read_is_told(data: Path) -> None:
    Home.make(data)
    for kept in ("", "{}", '{"tenant": "t", "client": "c", "object": "o", "secret": "", "key": "00"}'):
        (data / "identity.json").write_text(kept)
        with pytest.raises(LocalServiceError, match=r"identity\.json holds no managed identity") as caught:
            runner.start(data)
        assert "Traceback" not in str(caught.value)


# --- the data directory


@pytest.mark.as_user
def test_data_directory_that_is_open_is_closed(data: Path, tmp_path: Path) -> None:
    data.mkdir()
    data.chmod(0o755)
    before = os.umask(0)
    try:
        service = runner.launch(data, ["--access-log", str(tmp_path / "access.log")])
    finally:
        os.umask(before)
    with connect(service) as client:
        list(client.list_pools())
    assert data.stat().st_mode & 0o777 == 0o700
    written = [tmp_path / "access.log", *(path for path in data.iterdir())]
    assert {"key", "state.sqlite", "service.log", "service.json", "nodes"} <= {path.name for path in written}
    assert [path for path in written if path.stat().st_mode & 0o077] == []


@pytest.mark.as_user
def test_directory_that_all_users_share_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    for path in (shared, Path("/")):
        with pytest.raises(HomeError, match="is shared by all users: name a data directory of its own"):
            Home.make(path)
    assert shared.stat().st_mode & 0o7777 == 0o1777


@pytest.mark.as_user
def test_directory_of_somebody_else_is_refused() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may close every directory: an ordinary user runs this test once more")
    with pytest.raises(HomeError, match=r"is open to other users \(mode 0755\) and cannot be closed"):
        Home.make(Path("/usr"))


# --- addresses


@pytest.mark.parametrize("command", ["serve", "start"])
@pytest.mark.parametrize("host", [EVERYWHERE, "::", "192.0.2.1", "batch.example"])
def test_address_that_others_reach_needs_tls_or_a_flag(data: Path, command: str, host: str) -> None:
    answer = CliRunner().invoke(app, [command, "--data", str(data), "--host", host])
    assert answer.exit_code == 1
    assert "--tls" in answer.stderr
    assert "--plain-http" in answer.stderr
    assert not data.exists()


@pytest.mark.parametrize("option", ["--plain-http", "--tls"])
def test_service_on_all_addresses_is_reached_by_each(data: Path, option: str) -> None:
    address = own_address()
    service = runner.launch(data, ["--host", EVERYWHERE, "--name", "batch.example", option])
    port = service.url.rpartition(":")[2]
    assert service.url.partition("://")[2] == f"127.0.0.1:{port}"
    assert get(service, "", address) == 200
    assert get(service, f"batch.example:{port}") == 200
    assert get(service, f"localhost:{port}") == 200
    for foreign in ("evil.example", f"evil.example:{port}", f"0.0.0.0:{port}", f"{address}:1", address):
        assert get(service, foreign) == 400
    note = json.loads((data / "service.json").read_text())
    assert note["url"] == service.url


def test_name_that_is_none_is_refused(data: Path) -> None:
    answer = serve(data, "--name", "http://batch.example")
    assert answer.exit_code == 1
    assert "no host name and no address" in answer.stderr


@pytest.mark.parametrize(("port", "option"), [(80, []), (443, ["--tls"])])
def test_usual_port_is_left_out_of_the_host(data: Path, port: int, option: list[str]) -> None:
    # An address of its own: whatever else has the port on this machine has it on another one.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.80", port))
        except PermissionError:
            pytest.skip(f"this user may not take port {port}")
        except OSError as error:
            pytest.skip(f"127.0.0.80 is no address of this machine ({error.strerror})")
    service = runner.launch(data, ["--host", "127.0.0.80", "--port", str(port), *option])
    for host in ("127.0.0.80", f"127.0.0.80:{port}", "localhost"):
        assert get(service, host, "127.0.0.80") == 200
    assert get(service, "127.0.0.80:81", "127.0.0.80") == 400
    assert get(service, "evil.example", "127.0.0.80") == 400
