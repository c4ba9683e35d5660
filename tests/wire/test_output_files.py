"""Output files: which are uploaded, under which names, on which conditions, and what a failed upload does."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.storage.blob import BlobServiceClient, ContainerSasPermissions, generate_container_sas

if TYPE_CHECKING:
    from airflow_batchwrap.stack.azurite import AzuriteService
    from tests.support.web import Web
    from tests.support.wire import Wire

_numbers = itertools.count()

#: Files a task makes for the patterns to match.
MAKE = (
    "mkdir -p out/deep .hidden; "
    "echo 1 > out/a.txt; echo 2 > out/b.log; echo 3 > out/deep/c.txt; echo 4 > out/.dot.txt; "
    "echo 5 > .hidden/e.txt; echo 6 > top.txt; echo 7 > '[x].txt'; ln -s /etc/passwd out/passwd.txt; ln -s /etc out/etc"
)


class Box:
    """A container that may be written and, as on Azure it should be, not read."""

    def __init__(self, azurite: AzuriteService, client: BlobServiceClient) -> None:
        name = f"wire-outputs-{next(_numbers)}"
        sas = generate_container_sas(
            azurite.account,
            name,
            account_key=azurite.key,
            permission=ContainerSasPermissions(create=True, write=True),
            expiry=datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1),
        )
        self.url = f"{azurite.url}/{name}?{sas}"
        self._container = client.create_container(name)

    def blobs(self) -> dict[str, bytes]:
        """What is in it."""
        names = list(self._container.list_blob_names())
        return {name: self._container.download_blob(name).readall() for name in names}


@pytest.fixture(scope="module")
def storage(azurite: AzuriteService) -> Iterator[BlobServiceClient]:
    """A client of Azurite."""
    with BlobServiceClient.from_connection_string(azurite.connection_string) as client:
        yield client


@pytest.fixture
def box(azurite: AzuriteService, storage: BlobServiceClient) -> Box:
    """An empty container."""
    return Box(azurite, storage)


def output(url: str, pattern: str, path: str | None = None, on: str = "taskcompletion", **more: Any) -> m.OutputFile:
    """An output file."""
    return m.OutputFile(
        file_pattern=pattern,
        destination=m.OutputFileDestination(
            container=m.OutputFileBlobContainerDestination(container_url=url, path=path, **more)
        ),
        upload_options=m.OutputFileUploadConfiguration(upload_condition=on),
    )


def info_of(task: m.BatchTask) -> m.BatchTaskExecutionInfo:
    """How a task went."""
    assert task.execution_info is not None
    return task.execution_info


@pytest.mark.parametrize(
    ("pattern", "path", "names"),
    [
        # Without wildcards the path is the blob's name, and the file's name where there is none.
        ("out/a.txt", "renamed", {"renamed"}),
        ("out/a.txt", None, {"a.txt"}),
        # With them it goes before the name, of which the directories before the first wildcard are no part.
        ("out/*.txt", "run", {"run/a.txt"}),
        ("out/*", "run/", {"run/a.txt", "run/b.log"}),
        ("*.txt", None, {"top.txt", "[x].txt"}),
        ("**/*.txt", "all", {"all/top.txt", "all/[x].txt", "all/out/a.txt", "all/out/deep/c.txt"}),
        ("out/**/*", None, {"a.txt", "b.log", "deep/c.txt"}),
        ("out/?.[a-l]*", None, {"b.log"}),
        ("out/[!a].*", None, {"b.log"}),
        ("out/.*.txt", None, {".dot.txt"}),
        (".hidden/*", None, {"e.txt"}),
        ("[[]x].txt", None, {"[x].txt"}),
        ("../std*.txt", "logs", {"logs/stdout.txt", "logs/stderr.txt"}),
        ("$AZ_BATCH_TASK_WORKING_DIR/out/*.log", None, {"b.log"}),
        ("${AZ_BATCH_TASK_DIR}/stdout.txt", "o", {"o"}),
        ("none*", None, set()),
        ("none/at/all", "x", set()),
        ("out/passwd.*", None, set()),
        ("out/etc/*", None, set()),
    ],
)
def test_patterns(wire: Wire, job: str, box: Box, pattern: str, path: str | None, names: set[str]) -> None:
    task = wire.run(job, f'/bin/sh -c "{MAKE}"', output_files=[output(box.url, pattern, path)])
    assert info_of(task).result == "success", info_of(task).as_dict()
    assert set(box.blobs()) == names


@pytest.mark.parametrize("pattern", ["/etc/passwd", "/etc/pass*", "../../../../../../../../../etc/passwd"])
def test_nothing_outside_the_node_is_uploaded(wire: Wire, job: str, box: Box, pattern: str) -> None:
    task = wire.run(job, "/bin/true", output_files=[output(box.url, pattern, "x")])
    failure = info_of(task).failure_info
    assert failure is not None
    assert failure.code == "FileUploadMiscError"
    assert box.blobs() == {}


@pytest.mark.parametrize(
    ("code", "names"), [(0, {"tasksuccess", "taskcompletion"}), (1, {"taskfailure", "taskcompletion"})]
)
def test_conditions(wire: Wire, job: str, box: Box, code: int, names: set[str]) -> None:
    files = [output(box.url, "../stdout.txt", on, on) for on in ("tasksuccess", "taskfailure", "taskcompletion")]
    task = wire.run(job, f"/bin/sh -c 'exit {code}'", output_files=files)
    assert info_of(task).exit_code == code
    assert set(box.blobs()) == names


def test_uploads_are_done_when_the_task_is_completed(wire: Wire, job: str, web: Web) -> None:
    web.files.clear()
    task = wire.run(job, "/bin/sh -c 'echo done > x'", output_files=[output(f"{web.url}/busy-1?sig=s", "x", "x")])
    # The server was asked twice: the task was not completed in between.
    assert web.asked == ["/busy-1/x", "/busy-1/x"]
    assert web.files == {"/busy-1/x": b"done\n"}
    assert info_of(task).result == "success"


def test_failed_upload_fails_a_task_that_exited_with_0(wire: Wire, job: str, web: Web) -> None:
    limit = m.BatchTaskConstraints(max_task_retry_count=3)
    files = [output(f"{web.url}/denied?sig=secret", "*", "p"), output(f"{web.url}/fine", "x", "x")]
    task = wire.run(job, "/bin/sh -c 'echo done > x'", output_files=files, constraints=limit)
    info = info_of(task)
    assert (task.state, info.exit_code, info.result, info.retry_count) == ("completed", 0, "failure", 0)
    assert info.failure_info is not None
    assert info.failure_info.code == "FileUploadAccessDenied"
    assert "secret" not in str(info.as_dict())
    # The others were uploaded all the same, and the logs of the upload are there.
    assert web.files["/fine/x"] == b"done\n"
    assert "FileUploadAccessDenied" in wire.text(job, task.id, "fileuploaderr.txt")
    assert "secret" not in wire.text(job, task.id, "fileuploaderr.txt")
    assert "fine/x" in wire.text(job, task.id, "fileuploadout.txt")


def test_answer_that_would_fill_the_memory(wire: Wire, job: str, web: Web) -> None:
    info = info_of(wire.run(job, "/bin/sh -c 'echo done > x'", output_files=[output(f"{web.url}/flood", "x", "x")]))
    assert (info.exit_code, info.result) == (0, "failure")
    assert info.failure_info is not None
    assert info.failure_info.code == "FileUploadMiscError"


def test_missing_container_is_told(wire: Wire, job: str, azurite: AzuriteService, box: Box) -> None:
    missing = generate_container_sas(
        azurite.account,
        "no-such-container",
        account_key=azurite.key,
        permission=ContainerSasPermissions(create=True, write=True),
        expiry=datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1),
    )
    files = [output(f"{azurite.url}/no-such-container?{missing}", "../stdout.txt", "x")]
    failure = info_of(wire.run(job, "/bin/true", output_files=files)).failure_info
    assert failure is not None
    assert failure.code == "FileUploadContainerNotFound"


def test_headers_go_with_the_upload(wire: Wire, job: str, web: Web) -> None:
    headers = [m.OutputFileUploadHeader(name="x-ms-blob-content-type", value="text/csv")]
    wire.run(job, "/bin/sh -c 'echo 1 > x'", output_files=[output(f"{web.url}/h", "x", "x", upload_headers=headers)])
    assert web.headers["/h/x"]["x-ms-blob-content-type"] == "text/csv"
    assert web.headers["/h/x"]["x-ms-blob-type"] == "BlockBlob"


def test_large_file_goes_up_in_blocks(wire: Wire, job: str, box: Box) -> None:
    size = 40 * 1024 * 1024
    command = f"""python3 -c 'open("big", "wb").write(b"0123456789abcdef" * {size // 16})'"""
    task = wire.run(job, command, output_files=[output(box.url, "big", "big")])
    assert info_of(task).result == "success"
    assert box.blobs()["big"] == b"0123456789abcdef" * (size // 16)


def test_output_of_a_task_that_was_ended_goes_up(wire: Wire, job: str, box: Box, tmp_path: Path) -> None:
    printed = tmp_path / "printed"
    command = f"/bin/sh -c 'echo so far; touch {printed}; sleep 60'"
    task = wire.add(job, command, output_files=[output(box.url, "../stdout.txt", "log")])
    wire.until(printed.exists)
    wire.client.terminate_task(job, task)
    ended = wire.state(job, task, "completed")
    failure = info_of(ended).failure_info
    assert failure is not None
    assert failure.code == "TaskEnded"
    assert box.blobs() == {"log": b"so far\n"}
