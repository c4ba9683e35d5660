"""Whole runs with no account key anywhere: an identity signs in over TLS, and nodes get user delegation SAS."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

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
        for name, value in begun[-1].identity().items():
            monkeypatch.setenv(name, value)
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
