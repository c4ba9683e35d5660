"""Resource files: from Azurite with SAS, and from a web server that misbehaves."""

from __future__ import annotations

import contextlib
import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

if TYPE_CHECKING:
    from airflow_batchwrap.stack.azurite import AzuriteService
    from tests.support.web import Web
    from tests.support.wire import Services, Wire


@pytest.fixture(scope="module")
def container(azurite: AzuriteService) -> str:
    """A container with a few blobs, as a URL that may be read and listed."""
    from azure.storage.blob import BlobServiceClient

    with BlobServiceClient.from_connection_string(azurite.connection_string) as client:
        made = client.create_container("wire-inputs")
        for name in ("data/a.txt", "data/deep/b.txt", "data/ä +%.txt", "other/c.txt"):
            made.upload_blob(name, f"content of {name}".encode())
    sas = generate_container_sas(
        azurite.account,
        "wire-inputs",
        account_key=azurite.key,
        permission=ContainerSasPermissions(read=True, list=True),
        expiry=datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1),
    )
    return f"{azurite.url}/wire-inputs?{sas}"


def blob(container: str, name: str) -> str:
    """The URL of a blob in a container."""
    base, _, sas = container.partition("?")
    return f"{base}/{name}?{sas}"


def failure_of(task: m.BatchTask) -> m.BatchTaskFailureInfo:
    """Why a task failed."""
    assert task.execution_info is not None
    assert task.execution_info.exit_code is None
    failure = task.execution_info.failure_info
    assert failure is not None
    return failure


def test_file_by_url(wire: Wire, job: str, container: str) -> None:
    files = [
        m.ResourceFile(http_url=blob(container, "data/a.txt"), file_path="in/here.txt"),
        m.ResourceFile(http_url=blob(container, "other/c.txt"), file_path="c", file_mode="0640"),
    ]
    task = wire.run(job, "/bin/sh -c 'cat in/here.txt; stat -c %a in/here.txt c'", resource_files=files)
    assert wire.text(job, task.id) == "content of data/a.txt770\n640\n"


def test_container_keeps_whole_names_below_the_path(wire: Wire, job: str, container: str) -> None:
    files = [m.ResourceFile(storage_container_url=container, blob_prefix="data/", file_path="in", file_mode="0600")]
    task = wire.run(job, "/bin/sh -c 'find . -type f | sort; cat in/data/deep/b.txt'", resource_files=files)
    lines = wire.text(job, task.id).splitlines()
    assert set(lines[:3]) == {"./in/data/a.txt", "./in/data/deep/b.txt", "./in/data/ä +%.txt"}
    assert lines[3] == "content of data/deep/b.txt"


def test_prefix_may_be_part_of_a_name_and_path_may_be_absent(wire: Wire, job: str, container: str) -> None:
    files = [m.ResourceFile(storage_container_url=container, blob_prefix="oth")]
    task = wire.run(job, "/usr/bin/find . -type f", resource_files=files)
    assert wire.text(job, task.id) == "./other/c.txt\n"


def test_program_can_be_a_resource_file(wire: Wire, job: str, web: Web) -> None:
    web.files["/tool"] = b"#!/bin/sh\necho ran $1\n"
    files = [m.ResourceFile(http_url=f"{web.url}/tool", file_path="tool", file_mode="0755")]
    assert wire.text(job, wire.run(job, "./tool well", resource_files=files).id) == "ran well\n"


@pytest.mark.parametrize(
    ("path", "code", "asked"),
    [("/gone", "BlobNotFound", 1), ("/denied/x", "BlobAccessDenied", 1)],
)
def test_refused_download_is_not_tried_again(wire: Wire, job: str, web: Web, path: str, code: str, asked: int) -> None:
    files = [m.ResourceFile(http_url=f"{web.url}{path}?sig=secret", file_path="x")]
    limit = m.BatchTaskConstraints(max_task_retry_count=3)
    task = wire.run(job, "/bin/true", resource_files=files, constraints=limit)
    failure = failure_of(task)
    assert (failure.code, failure.category) == (code, "UserError")
    assert "secret" not in str(failure.as_dict())
    assert f"{web.url}{path}" in str(failure.as_dict())
    assert web.asked.count(path) == asked


def test_container_without_permission_to_list(wire: Wire, job: str, container: str) -> None:
    bare = container.partition("?")[0]
    task = wire.run(job, "/bin/true", resource_files=[m.ResourceFile(storage_container_url=bare)])
    assert failure_of(task).code in ("ResourceContainerAccessDenied", "ResourceContainerNotFound")


def test_busy_server_is_asked_again(wire: Wire, job: str, web: Web) -> None:
    web.files["/busy-2/x"] = b"patience"
    files = [m.ResourceFile(http_url=f"{web.url}/busy-2/x", file_path="x")]
    task = wire.run(job, "/bin/cat x", resource_files=files)
    assert wire.text(job, task.id) == "patience"
    assert web.asked.count("/busy-2/x") == 3


def test_download_that_breaks_off_leaves_nothing(wire: Wire, job: str, web: Web) -> None:
    files = [m.ResourceFile(http_url=f"{web.url}/cut/x", file_path="x")]
    task = wire.run(job, "/bin/true", resource_files=files)
    assert (failure_of(task).code, failure_of(task).category) == ("BlobDownloadMiscError", "ServerError")
    assert not [file for file in wire.client.list_task_files(job, task.id, recursive=True) if "wd/" in str(file.name)]


def test_unreachable_server(wire: Wire, job: str) -> None:
    files = [m.ResourceFile(http_url="http://127.0.0.1:9/x?sig=secret", file_path="x")]
    failure = failure_of(wire.run(job, "/bin/true", resource_files=files))
    assert failure.code == "BlobDownloadMiscError"
    assert "secret" not in str(failure.as_dict())


@pytest.mark.parametrize("kind", ["endless", "flood", "packed"])
def test_list_that_would_fill_the_memory(wire: Wire, job: str, web: Web, kind: str) -> None:
    web.listing = ["a"]
    files = [m.ResourceFile(storage_container_url=f"{web.url}/{kind}/container")]
    failure = failure_of(wire.run(job, "/bin/true", resource_files=files))
    assert failure.code == "BlobDownloadMiscError"
    # A list that is packed, though nobody has asked for that, is not unpacked: it might be of any size.
    reasons = {"endless": "does not end", "flood": "larger than", "packed": "cannot be read"}
    assert reasons[kind] in str(failure.as_dict())


@pytest.mark.parametrize("kind", ["httpUrl", "storageContainerUrl"])
def test_address_that_is_none_is_the_clients_fault(wire: Wire, job: str, kind: str) -> None:
    files = [m.ResourceFile({kind: "http://[::1/x?sig=secret", "filePath": "x"})]
    failure = failure_of(wire.run(job, "/bin/true", resource_files=files))
    # Not Unknown, which our policy tries again.
    assert failure.code == "BlobDownloadMiscError"
    assert "secret" not in str(failure.as_dict())


@pytest.mark.parametrize("name", ["../../escaped", "a/../../../escaped", "/tmp/escaped-from-batch"])  # noqa: S108 - meant
def test_blob_name_cannot_lead_out(wire: Wire, job: str, web: Web, name: str) -> None:
    web.listing = [name]
    web.files[f"/box/{name}"] = b"evil"
    files = [m.ResourceFile(storage_container_url=f"{web.url}/box")]
    task = wire.run(job, "/bin/true", resource_files=files)
    assert failure_of(task).code == "ResourceFileCreateFailed"
    assert not list(wire.service.data.rglob("escaped*"))
    assert not Path("/tmp/escaped-from-batch").exists()  # noqa: S108 - meant


def test_download_does_not_go_through_a_link(wire: Wire, web: Web, tmp_path: Path) -> None:
    # A start task keeps its directory: a link it left must not lead its next download astray.
    web.files["/x"] = b"evil"
    files = [m.ResourceFile(http_url=f"{web.url}/x", file_path="out/x")]
    start = m.BatchStartTask(
        command_line=f"/bin/sh -c 'rm -r out && ln -s {tmp_path} out && exit 1'",
        resource_files=files,
        max_task_retry_count=1,
    )
    name = wire.name("pool")
    wire.client.create_pool(wire.pool_options(name, start_task=start))
    node = wire.nodes(name, 1, "starttaskfailed")[0]
    assert node.start_task_info is not None
    assert node.start_task_info.failure_info is not None
    assert node.start_task_info.failure_info.code == "ResourceFileCreateFailed"
    assert list(tmp_path.iterdir()) == []
    wire.client.begin_delete_pool(name, polling_interval=0).wait()


def test_running_starts_with_the_downloads_and_they_can_be_ended(wire: Wire, job: str, web: Web) -> None:
    files = [m.ResourceFile(http_url=f"{web.url}/slow/x", file_path="x")]
    task = wire.add(job, "/bin/true", resource_files=files)
    wire.state(job, task, "running")
    wire.until(lambda: web.asked)
    wire.client.terminate_task(job, task)
    assert failure_of(wire.state(job, task, "completed")).code == "TaskEnded"
    limit = m.BatchTaskConstraints(max_wall_clock_time=datetime.timedelta(seconds=0.2))
    task = wire.add(job, "/bin/true", resource_files=files, constraints=limit)
    assert failure_of(wire.state(job, task, "completed")).code == "TaskEnded"


@pytest.mark.parametrize(
    ("file", "status"),
    [
        ({"filePath": "x"}, 400),
        ({"httpUrl": "http://h/x"}, 400),
        ({"httpUrl": "http://h/x", "storageContainerUrl": "http://h/c", "filePath": "x"}, 400),
        ({"httpUrl": "http://h/x", "filePath": "../x"}, 400),
        ({"httpUrl": "http://h/x", "filePath": "/x"}, 400),
        ({"httpUrl": "http://h/x", "filePath": "x", "fileMode": "rwx"}, 400),
        ({"httpUrl": "http://h/x", "filePath": "x", "blobPrefix": "p"}, 400),
        ({"autoStorageContainerName": "no/name"}, 400),
        ({"httpUrl": "http://h/x", "filePath": "x", "identityReference": {"resourceId": "/i"}}, 400),
    ],
)
def test_resource_files_that_cannot_be(wire: Wire, job: str, file: dict[str, Any], status: int) -> None:
    with pytest.raises(HttpResponseError) as caught:
        wire.add(job, "/bin/true", resource_files=[m.ResourceFile(file)])
    assert caught.value.status_code == status


def test_container_of_the_auto_storage_account(wire: Wire, job: str, container: str) -> None:
    address, _, query = container.partition("?")
    account, _, name = address.rpartition("/")
    files = [m.ResourceFile(auto_storage_container_name=name, blob_prefix="oth", file_path="in")]
    task = wire.run(job, "/bin/true", resource_files=files)
    assert failure_of(task).code == "ResourceContainerNotFound"
    assert "auto-storage" in str(failure_of(task).message)
    file = wire.service.data / "auto-storage"
    file.write_text(f"{account}?{query}\n")
    try:
        task = wire.run(job, "/usr/bin/find . -type f", resource_files=files)
    finally:
        file.unlink()
    assert wire.text(job, task.id) == "./in/other/c.txt\n"


#: Names as they come: as long as a file system takes them, of letters of three bytes, alike in their first 200 letters.
NAMES = ["n" * 255, "名" * 85, "x" * 200 + "-first", "x" * 200 + "-second", ".part", "a b'\"\\\n?#%25"]


def test_names_of_all_lengths(wire: Wire, job: str, web: Web) -> None:
    web.files |= {f"/box/{number}": str(number).encode() for number in range(len(NAMES))}
    files = [m.ResourceFile(http_url=f"{web.url}/box/{number}", file_path=name) for number, name in enumerate(NAMES)]
    task = wire.run(job, "/bin/sh -c 'cat x*'", resource_files=files)
    assert wire.text(job, task.id) == "23"
    assert task.node_info is not None
    working = wire.root(task.node_info.node_id) / "workitems" / job / "job-1" / task.id / "wd"
    assert {path.name: path.read_text() for path in working.iterdir()} == {
        name: str(number) for number, name in enumerate(NAMES)
    }


@pytest.mark.parametrize("name", ["n" * 256, "名" * 86, "fine/" + "é" * 128 + "/x"])
def test_name_that_no_file_system_takes(wire: Wire, job: str, web: Web, name: str) -> None:
    web.files["/x"] = b"x"
    task = wire.run(job, "/bin/true", resource_files=[m.ResourceFile(http_url=f"{web.url}/x", file_path=name)])
    failure = failure_of(task)
    assert failure.code == "ResourceFileCreateFailed"
    assert "255" in str(failure.message)


def test_marks_of_directories_are_directories(wire: Wire, job: str, web: Web) -> None:
    web.listing = ["a/", "a/one.txt", "b", "b/c", "b/c/two.txt", "marked", "empty.txt"]
    web.marks = {"marked"}
    web.files |= {"/box/a/one.txt": b"1", "/box/b/c/two.txt": b"2", "/box/empty.txt": b""}
    files = [m.ResourceFile(storage_container_url=f"{web.url}/box")]
    task = wire.run(job, "/bin/sh -c 'find . -type d | sort; find . -type f | sort'", resource_files=files)
    shown = wire.text(job, task.id).split()
    assert shown == [".", "./a", "./b", "./b/c", "./marked", "./a/one.txt", "./b/c/two.txt", "./empty.txt"]


def test_blob_in_the_place_of_a_directory_is_a_clear_failure(wire: Wire, job: str, web: Web) -> None:
    web.listing = ["b", "b/two.txt"]
    web.files |= {"/box/b": b"full", "/box/b/two.txt": b"2"}
    task = wire.run(job, "/bin/true", resource_files=[m.ResourceFile(storage_container_url=f"{web.url}/box")])
    assert failure_of(task).code == "ResourceFileCreateFailed"


def test_slow_downloads_keep_nobody_elses_from_being_sent(wire: Wire, web: Web) -> None:
    """As many slow ones as once took all the connections that there were."""
    web.files["/x"] = b"quick"
    job = wire.job(wire.pool(1, 16))
    slow = [m.ResourceFile(http_url=f"{web.url}/slow/{number}", file_path=f"{number}") for number in range(36)]
    tasks = [wire.add(job, "/bin/sh -c 'cat * | wc -c'", resource_files=slow) for _ in range(6)]
    wire.until(lambda: len(web.asked) >= 6 * 8)
    quick = [m.ResourceFile(http_url=f"{web.url}/x", file_path="x")]
    assert wire.text(job, wire.run(job, "/bin/cat x", resource_files=quick).id) == "quick"
    assert not web.going_on.is_set()
    web.going_on.set()
    for task in tasks:
        wire.state(job, task, "completed")
        assert wire.text(job, task) == f"{36 * len('slow')}\n"


def test_files_of_a_task_that_is_ended_are_let_go(wire: Wire, web: Web) -> None:
    job = wire.job(wire.pool(1, 16))
    files = [m.ResourceFile(http_url=f"{web.url}/slow/{number}", file_path=f"{number}") for number in range(8)]
    open_files = Path(f"/proc/{wire.service.pid}/fd")
    if not open_files.exists():
        pytest.skip("this system has no /proc: nobody can say which files a process has open")
    for _ in range(3):
        tasks = [wire.add(job, "/bin/true", resource_files=files) for _ in range(8)]
        wire.until(lambda: len(web.asked) >= 64)
        for task in tasks:
            wire.client.terminate_task(job, task)
        for task in tasks:
            wire.state(job, task, "completed")
        web.asked.clear()

    def left() -> list[str]:
        found = []
        for file in open_files.iterdir():
            with contextlib.suppress(OSError):
                found.append(os.readlink(file))  # noqa: PTH115 - what it says is no path where the file is gone
        return [name for name in found if name.endswith(".part") or "/wd" in name]

    wire.until(lambda: not left())


def test_nodes_do_not_use_this_machines_proxies(
    services: Services, tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as environment:
        # Nothing listens there. The test's own client is not to use it either.
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            environment.setenv(name, "http://127.0.0.1:9")
        environment.setenv("NO_PROXY", "")
        wire = services(tmp_path / "data")
    web.files["/a"] = b"came"
    files = [m.ResourceFile(http_url=f"{web.url}/a", file_path="a")]
    job = wire.job(wire.pool())
    assert wire.text(job, wire.run(job, "/bin/cat a", resource_files=files).id) == "came"
