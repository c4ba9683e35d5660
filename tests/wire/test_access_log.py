"""The access log: one line for each request, and nothing secret."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from azure.batch import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import ResourceNotFoundError, ServiceResponseError

from airflow_batchwrap.local import runner
from airflow_batchwrap.local.runner import LocalServiceError


def test_each_request_is_one_line_without_its_query(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    service = runner.launch(tmp_path / "data", ["--access-log", str(log)])
    began = datetime.now(UTC)
    try:
        credential = AzureNamedKeyCredential(service.account, service.key)
        with BatchClient(service.url, credential) as client:
            assert list(client.list_pools(filter="state eq 'active'")) == []
            with pytest.raises(ResourceNotFoundError):
                client.get_task_file_properties("a job", "t", "wd/é.txt")
        httpx.get(f"{service.url}/pools/p?sig=secret", trust_env=False)
        httpx.get(f"{service.url}/nothing/of/this/name", trust_env=False)
        httpx.get(f"{service.url}/ui/", trust_env=False)  # the page is none of the API
    finally:
        service.stop()
    lines = [line.split(" ") for line in log.read_text().splitlines()]
    assert [line[1:5] for line in lines] == [
        ["200", "list_pools", "GET", "/pools"],
        ["404", "get_task_file_properties", "HEAD", "/jobs/a%20job/tasks/t/files/wd%2F%C3%A9.txt"],
        ["400", "get_pool", "GET", "/pools/p"],
        ["400", "-", "GET", "/nothing/of/this/name"],
    ]
    for line in lines:
        assert timedelta(0) <= datetime.fromisoformat(line[0]) - began < timedelta(minutes=1)
        assert re.fullmatch(r"\d+\.\d", line[5])
    assert service.key not in log.read_text()


def test_a_connection_that_is_cut_is_a_line_as_well(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    service = runner.launch(tmp_path / "data", ["--access-log", str(log), "--faults", "drop=1"])
    try:
        credential = AzureNamedKeyCredential(service.account, service.key)
        with BatchClient(service.url, credential, retry_total=0) as client, pytest.raises(ServiceResponseError):
            list(client.list_pools())
    finally:
        service.stop()
    ((_, status, operation, *_),) = [line.split(" ") for line in log.read_text().splitlines()]
    assert (status, operation) == ("-", "list_pools")


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(LocalServiceError, match=r"access log .* cannot be written"):
        runner.launch(tmp_path / "data", ["--access-log", str(tmp_path / "no/such/folder.log")])
