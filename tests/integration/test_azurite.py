"""Azurite as the stack runs it, spoken to with Azure's own client."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path

import psutil
import pytest
from azure.storage.blob import BlobServiceClient

from airflow_batchwrap.exceptions import ConfigError
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


def test_key_stays_out_of_the_representation(azurite: AzuriteService) -> None:
    assert azurite.key
    assert azurite.key not in repr(azurite)


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
