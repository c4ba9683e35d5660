"""Snakemake with `--az-batch`, unmodified: its pool, its job, its tasks in containers, and its files by way of Blob."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from azure.storage.blob import AccountSasPermissions, BlobServiceClient, ResourceTypes, generate_account_sas

from airflow_batchwrap.local import runner
from airflow_batchwrap.local.tls import TlsFiles
from airflow_batchwrap.stack import azurite
from tests.support import engine as engines
from tests.support import installed
from tests.support.wire import connect

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

#: Snakemake takes blobs from a host of Azure's name alone (is_valid_azure_storage_account_url in its remote/AzBlob.py).
BLOBS = f"{azurite.ACCOUNT}.blob.core.windows.net"
#: 7.28.3 is the last one with --az-batch; its packages have no upper limits, and newer ones break it.
SNAKEMAKE = ["snakemake[azure]==7.28.3", "pulp<2.8", "azure-batch==14.2.0", "setuptools<80"]
SNAKEFILE = """
rule all:
    input: "total.txt"

rule square:
    output: "square-{number}.txt"
    shell: "echo $(({wildcards.number} * {wildcards.number})) > {output}"

rule total:
    input: expand("square-{number}.txt", number=[2, 3, 4])
    output: "total.txt"
    shell: "awk '{{sum += $1}} END {{print sum}}' {input} > {output}"
"""


@pytest.fixture
def named(tmp_path: Path) -> list[str]:
    """What runs a command where the name of Azure's blobs means this machine: words to put before it.

    A mount namespace with another /etc/hosts: nothing else of this machine sees it.
    """
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {BLOBS}\n")
    apart = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    words = [*apart, "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)]
    try:
        done = subprocess.run([*words, "true"], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare on the PATH, to give the blob service Azure's name")
    if done.returncode:
        pytest.skip(f"no mount namespace, to give the blob service Azure's name: {done.stderr.strip()}")
    return words


def test_snakemake_runs_a_workflow(named: list[str], tmp_path: Path) -> None:
    python = installed.python("snakemake", SNAKEMAKE, "3.11")
    data, work = tmp_path / "data", tmp_path / "work"
    engine = tmp_path / "engine"
    for folder in (work, engine):
        folder.mkdir()
    path = f"{engines.make(engine)}{os.pathsep}{os.environ['PATH']}"
    # The account is what Snakemake makes of the address's first name.
    start = ["start", "--data", str(data), "--tls", "--account", "localhost", "--name", BLOBS]
    command = [*named, sys.executable, "-m", "airflow_batchwrap.local", *start]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PATH": path})
    service = runner.attach(data)
    assert service is not None
    assert service.authority is not None
    blobs = azurite.start(tmp_path / "blobs", tls=TlsFiles(data / "tls.pem", data / "tls.pem", service.authority))
    storage = BlobServiceClient(blobs.url, blobs.key, connection_verify=str(service.authority))
    try:
        storage.create_container("results")
        (work / "Snakefile").write_text(SNAKEFILE)
        own = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        port = urlsplit(blobs.url).port
        given = {
            "AZ_BLOB_ACCOUNT_URL": f"https://{BLOBS}:{port}",
            "AZ_BLOB_CREDENTIAL": signature(blobs),
            "PATH": own,
            "REQUESTS_CA_BUNDLE": str(service.authority),
        }
        env = installed.environment(service, tmp_path, AZ_BATCH_ACCOUNT_KEY=service.key, **given)
        address = f"https://localhost:{urlsplit(service.url).port}"
        options = ["--jobs", "3", "--az-batch", "--az-batch-account-url", address, "--container-image", "image"]
        options += ["--default-remote-provider", "AzBlob", "--default-remote-prefix", "results", "--verbose"]
        command = [*named, str(python), "-W", "ignore", "-m", "snakemake", *options, "--envvars", *given]
        done = subprocess.run(command, check=False, cwd=work, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-15000:]
        with storage:
            found = storage.get_blob_client("results", "total.txt").download_blob().readall()
        assert found.split() == [b"29"]
        with connect(service) as batch:
            assert list(batch.list_jobs()) == []
            assert list(batch.list_pools()) == []
        asked = [json.loads(line) for line in (engine / "asked").read_text().splitlines()]
        assert sum(one[0] == "create" for one in asked) == 4
    finally:
        service.stop()
        blobs.stop()
    assert "Traceback" not in (data / "service.log").read_text()


def signature(blobs: azurite.AzuriteService) -> str:
    """A signature for the whole account, its parts in the order that Snakemake asks for."""
    now = datetime.now(UTC)
    made = generate_account_sas(
        blobs.account,
        blobs.key,
        resource_types=ResourceTypes(service=True, container=True, object=True),
        permission=AccountSasPermissions(read=True, write=True, delete=True, list=True, add=True, create=True),
        start=now - timedelta(hours=1),
        expiry=now + timedelta(hours=12),
        protocol="https",
    )
    parts = {part.partition("=")[0]: part for part in made.split("&")}
    return "?" + "&".join(parts[name] for name in ("sv", "ss", "srt", "sp", "se", "st", "spr", "sig"))
