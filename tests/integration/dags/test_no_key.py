"""Whole runs with no account key anywhere: an identity signs in over TLS, and nodes get user delegation SAS."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.polling import until
from tests.support.trusting import trust

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.batch import BatchWrapHook
    from airflow_batchwrap.local.runner import LocalService
    from airflow_batchwrap.stack.azurite import AzuriteService

STEPS = {
    "1_read.py": """
        def do_action(engine, name):
            text = open(name).read()
            open("copy.txt", "w").write(text)
            engine.add_file_to_upload("copy.txt")
            return ["x" * 60_000, len(text)]
    """,
    "2_count.py": """
        def do_action(engine, value):
            return value[1]
    """,
}
ARGUMENTS = 'args="in.txt", results="{}", pool_config={{"target_dedicated_nodes": 1}}'


@pytest.fixture(scope="module")
def secure_azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, AzuriteService]]:
    """Azurite over TLS, which takes the tokens of identities; and the data directory whose authority it shows."""
    from airflow_batchwrap.local import tls
    from airflow_batchwrap.local.home import Home
    from airflow_batchwrap.stack import azurite

    folder: Path = tmp_path_factory.mktemp("no-key")
    files = tls.make(Home.make(folder / "batch"))
    service = azurite.start(folder / "azurite", log=folder / "azurite.log", tls=files)
    yield folder / "batch", service
    service.stop()


StartBatch = Callable[..., "LocalService"]


@pytest.fixture
def start_batch(
    secure_azurite: tuple[Path, AzuriteService], airflow_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StartBatch]:
    """Start the local Batch service over TLS and point Airflow's connections, which hold no key, at both."""
    from airflow_batchwrap.local import runner

    data, azurite = secure_azurite
    begun: list[LocalService] = []

    def start(*arguments: str) -> LocalService:
        begun.append(runner.launch(data, ["--tls", "--access-log", str(data / "access.log"), *arguments]))
        trust(monkeypatch, begun[-1])
        batch = {"conn_type": "azure_batch", "extra": {"account_url": begun[-1].url}}
        monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps(batch))
        monkeypatch.setenv("AIRFLOW_CONN_WASB_DEFAULT", json.dumps({"conn_type": "wasb", "host": azurite.url}))
        return begun[-1]

    yield start
    for service in begun:
        service.stop()
        assert "Traceback" not in (service.data / "service.log").read_text()


@pytest.fixture
def faults() -> str:
    """What goes wrong on purpose: nothing."""
    return ""


@pytest.fixture
def connections(start_batch: StartBatch, faults: str) -> LocalService:
    """Airflow's connections, in place of those with keys."""
    return start_batch("--faults", faults)


def answer(method: str, url: str, authority: Path | None) -> int:
    """Return the status of a request that carries nothing but what its address does."""
    request = urllib.request.Request(url, b"x" if method == "PUT" else None, {"x-ms-blob-type": "BlockBlob"})
    request.method = method
    try:
        with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=authority)) as got:
            return int(got.status)
    except urllib.error.HTTPError as error:
        return error.code


def lines(log: Path, *words: str) -> list[str]:
    """Return the lines of the access log that hold all of these words."""
    return [line for line in log.read_text().splitlines() if all(f" {word} " in line for word in words)]


def count(log: Path, expected: int, *words: str) -> int:
    """Count such lines, once there are as many as are expected: one is written just after its answer was sent."""
    until(lambda: len(lines(log, *words)) >= expected, f"{expected} lines with {words} in the access log")
    return len(lines(log, *words))


def test_addresses_are_signed_by_a_delegation_key(hook: BatchWrapHook, connections: LocalService) -> None:
    hook.ensure_container("delegated")
    ref = hook.upload_bytes("delegated", "deep/ü x.txt", b"content")
    read = hook.sas_url(ref, timedelta(hours=1))
    granted = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(read).query))
    assert (granted["sp"], granted["sr"], granted["spr"], granted["sks"]) == ("r", "b", "https", "b")
    assert granted["skoid"]
    authority = connections.authority
    assert answer("GET", read, authority) == 200
    assert answer("PUT", read, authority) == 403
    assert answer("GET", read.replace("sp=r", "sp=rw"), authority) == 403
    write = hook.container_sas_url("delegated", timedelta(hours=1), write=True)
    into = urllib.parse.urlsplit(write)._replace(path=urllib.parse.urlsplit(write).path + "/mine.txt").geturl()
    assert answer("PUT", into, authority) == 201
    assert answer("GET", into, authority) == 403


def test_addresses_last_as_long_as_an_identity_can_sign_and_that_is_told_once(
    hook: BatchWrapHook, capfd: pytest.CaptureFixture[str]
) -> None:
    from airflow_batchwrap.config import WorkflowConfig

    def left(lifetime: timedelta) -> timedelta:
        granted = dict(
            urllib.parse.parse_qsl(urllib.parse.urlsplit(hook.container_sas_url("container", lifetime)).query)
        )
        return datetime.fromisoformat(granted["se"]) - datetime.now(UTC)

    default = WorkflowConfig.from_dict({})
    assert timedelta(days=6) < left(default.job_wall_clock + default.sas_extra) < timedelta(days=7)
    assert "an identity, whose addresses" not in "".join(capfd.readouterr())
    for _ in range(2):
        assert timedelta(days=6) < left(timedelta(days=30)) < timedelta(days=7)
    told = "".join(capfd.readouterr())
    assert told.count("an identity, whose addresses last 7 days at most, and 30 days") == 1


def test_one_delegation_key_signs_all_addresses(hook: BatchWrapHook) -> None:
    hook.container_sas_url("container", timedelta(hours=1))
    key = hook._delegated
    hook.container_sas_url("container", timedelta(hours=2))
    assert hook._delegated is key


def test_sign_in_that_nobody_answers_is_tried_again(connections: LocalService, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_batchwrap.exceptions import Throttled
    from airflow_batchwrap.hooks.batch import BatchWrapHook

    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}/msi/token")
        with pytest.raises(Throttled) as told:
            BatchWrapHook().view_pool("none")
    assert "'azure_batch_default' could not sign in" in str(told.value)
    assert "ManagedIdentityCredential" in str(told.value)
    assert connections.identity()["IDENTITY_HEADER"] not in str(told.value)


def test_what_the_service_refuses_is_final(start_batch: StartBatch) -> None:
    from airflow_batchwrap.exceptions import AccessDenied
    from airflow_batchwrap.hooks.batch import BatchWrapHook

    start_batch("--role", "none")
    with pytest.raises(AccessDenied, match=r"AuthorizationFailure.*roles of the identity"):
        BatchWrapHook().view_pool("none")


def test_second_refusal_of_a_fresh_token_is_final(start_batch: StartBatch) -> None:
    from airflow_batchwrap.exceptions import AccessDenied
    from airflow_batchwrap.hooks.batch import BatchWrapHook

    service = start_batch("--faults", "expire=1,expire-after=0")
    log = service.data / "access.log"
    log.write_text("")
    with pytest.raises(AccessDenied, match="is earlier than current UTC time"):
        BatchWrapHook().view_pool("none")
    assert count(log, 2, "401", "get_pool") == 2
    assert count(log, 2, "200", "/msi/token") == 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_token_that_ends_under_a_client_is_asked_for_anew(start_batch: StartBatch, asynchronous: bool) -> None:
    from airflow_batchwrap.hooks.batch import BatchWrapHook

    service = start_batch("--faults", "expire=1,expire-after=3")
    log, hook = service.data / "access.log", BatchWrapHook()
    log.write_text("")
    deadline = time.monotonic() + 60

    def is_over() -> bool:
        """Tell whether a token was refused; every look has succeeded until then."""
        assert time.monotonic() < deadline
        return bool(lines(log, "401", "get_pool"))

    async def look() -> None:
        async with hook.async_batch(retries=False) as client:
            while not is_over():
                await hook.aview_pool(client, "none")

    if asynchronous:
        asyncio.run(look())
    while not is_over():
        hook.view_pool("none")
    assert count(log, 1, "401", "get_pool") == 1
    assert count(log, 2, "200", "/msi/token") == 2


def test_container_that_is_there_will_do_where_none_may_be_created(
    hook: BatchWrapHook, secure_azurite: tuple[Path, AzuriteService], monkeypatch: pytest.MonkeyPatch
) -> None:
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    from airflow_batchwrap.exceptions import AccessDenied
    from airflow_batchwrap.hooks.batch import BatchWrapHook

    azurite = secure_azurite[1]
    hook.ensure_container("given")
    for permission in (ContainerSasPermissions(read=True, list=True), ContainerSasPermissions(write=True)):
        end = datetime.now(UTC) + timedelta(hours=1)
        sas = generate_container_sas(
            azurite.account, "given", account_key=azurite.key, permission=permission, expiry=end
        )
        conn = {"conn_type": "wasb", "host": azurite.url, "extra": {"sas_token": sas}}
        monkeypatch.setenv("AIRFLOW_CONN_WASB_DEFAULT", json.dumps(conn))
        narrow = BatchWrapHook()
        if permission.list:
            narrow.ensure_container("given")
        else:
            with pytest.raises(AccessDenied, match="create container 'given'"):
                narrow.ensure_container("given")
    with pytest.raises(AccessDenied, match="create container 'other'"):
        narrow.ensure_container("other")


def test_whole_run_with_an_identity_alone(
    run_workflow: Callable[..., Any],
    secure_azurite: tuple[Path, AzuriteService],
    connections: LocalService,
    tmp_path: Path,
) -> None:
    run = run_workflow(STEPS, ARGUMENTS.format(tmp_path / "out"), inputs={"in.txt": "the input"})
    assert run.state == "success", run.log
    assert run.xcoms["w.2_count"] == len("the input")
    (file,) = run.xcoms["w.fetch_results"]
    assert file["size"] == len("the input")
    # With default settings an identity loses nothing, and nobody is warned.
    assert "an identity, whose addresses" not in run.log
    for secret in (
        secure_azurite[1].key,
        connections.key,
        connections.identity()["IDENTITY_HEADER"],
        "sig=",
        "Bearer ",
    ):
        assert secret not in run.log
        assert secret not in json.dumps(run.xcoms)


@pytest.mark.parametrize("faults", ["seed=3,sign-in=0.4,expire=1,expire-after=5"])
def test_run_outlives_sign_ins_that_fail_and_tokens_that_expire(
    run_workflow: Callable[..., Any], connections: LocalService, faults: str, tmp_path: Path
) -> None:
    log, gate = connections.data / "access.log", tmp_path / "gate"
    log.write_text("")

    def open_gate() -> None:
        """Let the step go on once a token that it waits with was refused."""
        try:
            until(lambda: lines(log, "401", "get_task"), "a token that was refused", timeout=120)
        finally:
            gate.touch()

    watching = threading.Thread(target=open_gate)
    watching.start()
    step = f"""
        import os, time

        def do_action(engine, name):
            while not os.path.exists({str(gate)!r}):
                time.sleep(0.1)
            return open(name).read()
    """
    run = run_workflow({"1_wait.py": step}, ARGUMENTS.format(tmp_path / "out"), inputs={"in.txt": "the input"})
    watching.join()
    assert run.state == "success", run.log
    assert run.xcoms["w.1_wait"] == "the input"
    assert lines(log, "401", "get_task")
    failed = [line for line in lines(log, "GET", "/msi/token") if " 200 " not in line]
    assert {line.split()[1] for line in failed} == {"500", "-"}
