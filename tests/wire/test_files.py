"""Files of tasks and nodes: read by range while they grow, described, listed, deleted, and never outside a node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.core.rest import HttpRequest

if TYPE_CHECKING:
    from tests.support.wire import Wire

TRICKS = [
    "../../../../../../../../etc/passwd",
    "wd/../../../../../../../../../etc/passwd",
    "/etc/passwd",
    "wd/link",
    "wd/folder/passwd",
    "..",
    "%2e%2e/%2e%2e/etc/passwd",
    "wd/\0x",
]


def content(chunks: Any) -> bytes:
    """What a download gives."""
    return b"".join(chunks)


def status_of(caught: pytest.ExceptionInfo[HttpResponseError]) -> tuple[int | None, str]:
    """Status and code of an error; the client leaves the body of a failed download unread."""
    assert caught.value.response is not None
    answer: Any = caught.value.response
    answer.read()
    return caught.value.status_code, str(answer.json()["code"])


def directory_of(wire: Wire, job: str, task: str) -> Path:
    """A task's directory on this machine."""
    info = wire.client.get_task(job, task).node_info
    assert info is not None
    return wire.root(info.node_id) / str(info.task_root_directory)


def test_output_is_read_by_range_while_the_task_runs(wire: Wire, job: str) -> None:
    task = wire.add(job, "/bin/sh -c 'echo first; while [ ! -e go ]; do sleep 0.02; done; echo second'")
    wire.state(job, task, "running")
    client = wire.client
    # A task is running from the moment its directory is about to be made.
    wire.until((directory_of(wire, job, task) / "stdout.txt").exists)
    wire.until(lambda: client.get_task_file_properties(job, task, "stdout.txt").content_length == 6)
    with pytest.raises(HttpResponseError) as caught:
        client.download_task_file(job, task, "stdout.txt", ocp_range="bytes=6-")
    assert status_of(caught) == (416, "InvalidRange")
    (directory_of(wire, job, task) / "wd" / "go").touch()
    wire.state(job, task, "completed")
    assert content(client.download_task_file(job, task, "stdout.txt", ocp_range="bytes=6-100000")) == b"second\n"
    assert content(client.download_task_file(job, task, "stdout.txt", ocp_range="bytes=0-4")) == b"first"
    assert content(client.download_task_file(job, task, "stdout.txt")) == b"first\nsecond\n"


def test_large_file_comes_whole(wire: Wire, job: str) -> None:
    task = wire.run(job, """python3 -c 'import sys; sys.stdout.write("0123456789" * 200000)'""")
    assert content(wire.client.download_task_file(job, task.id, "stdout.txt")) == b"0123456789" * 200_000
    middle = content(wire.client.download_task_file(job, task.id, "stdout.txt", ocp_range="bytes=1000000-1999999"))
    assert middle == b"0123456789" * 100_000


def test_properties(wire: Wire, job: str) -> None:
    task = wire.run(job, "/bin/echo hello")
    found = wire.client.get_task_file_properties(job, task.id, "stdout.txt")
    assert (found.content_length, found.is_directory) == (6, False)
    assert unquote(str(found.url)) == f"{wire.service.url}/jobs/{job}/tasks/{task.id}/files/stdout.txt"
    assert found.last_modified is not None
    assert found.creation_time is not None
    folder = wire.client.get_task_file_properties(job, task.id, "wd")
    assert folder.is_directory is True


def test_name_that_is_no_text(wire: Wire, job: str) -> None:
    # A file system's names are bytes: what is no UTF-8 is listed replaced, and found by its URL.
    task = wire.run(job, """/bin/sh -c 'printf odd > "$(printf "a\\377 #?%%b")"'""")
    listed = {file.name: file for file in wire.client.list_task_files(job, task.id, recursive=True)}
    odd = listed["wd/a\ufffd #?%b"]
    assert odd.url is not None
    assert odd.url.endswith("/files/wd/a%FF%20%23%3F%25b")
    path = odd.url.removeprefix(wire.service.url)
    response = wire.client.send_request(HttpRequest("GET", f"{path}?api-version=2025-06-01"), stream=True)
    assert (response.status_code, response.read()) == (200, b"odd")
    with pytest.raises(ResourceNotFoundError):
        wire.client.get_task_file_properties(job, task.id, "wd/a\ufffd #?%b")


def test_listing(wire: Wire, job: str) -> None:
    # A link that leads to itself leads nowhere inside: it is passed over.
    task = wire.run(job, "/bin/sh -c 'mkdir -p a/b; echo 12345 > a/b/c; echo x > d; ln -s loop loop'")
    flat = {file.name: file for file in wire.client.list_task_files(job, task.id)}
    assert sorted(map(str, flat)) == ["stderr.txt", "stdout.txt", "wd"]
    assert flat["wd"].is_directory is True
    assert flat["wd"].properties is None
    deep = {file.name: file for file in wire.client.list_task_files(job, task.id, recursive=True)}
    assert {"wd/a", "wd/a/b", "wd/a/b/c", "wd/d"} <= set(deep)
    assert "wd/loop" not in deep
    properties = deep["wd/a/b/c"].properties
    assert properties is not None
    assert properties.content_length == 6
    some = wire.client.list_task_files(job, task.id, recursive=True, filter="startswith(name, 'wd/a/')", max_results=1)
    assert [file.name for file in some] == ["wd/a/b", "wd/a/b/c"]
    node = task.node_info
    assert node is not None
    prefix = f"workitems/{job}/job-1/{task.id}/"
    listed = wire.client.list_node_files(
        str(node.pool_id), str(node.node_id), recursive=True, filter=f"startswith(name, '{prefix}wd/d')"
    )
    assert [file.name for file in listed] == [f"{prefix}wd/d"]


def test_pages_of_files_skip_and_repeat_nothing_that_stays(wire: Wire, job: str) -> None:
    # One name is no text, one directory is deep, and some names sort between a directory and what it holds.
    make = (
        "mkdir -p d/e/f e; touch d-1 d.2 d/1 d/e/1 d/e/f/1 d/e/f/2 d/x e/1 e/2 $(printf 'n\\377')"
        "; for n in $(seq 60); do touch $n; done"
    )
    task = wire.run(job, f"""/bin/sh -c "{make}" """)
    assert task.node_info is not None
    working = wire.root(task.node_info.node_id) / f"workitems/{job}/job-1/{task.id}/wd"
    whole = [file.name for file in wire.client.list_task_files(job, str(task.id), recursive=True)]
    assert len(whole) == len(set(whole)) > 75
    seen: list[str] = []
    gone: set[str] = set()
    pages = wire.client.list_task_files(job, str(task.id), recursive=True, max_results=7).by_page()
    for number, page in enumerate(pages):
        names = [str(file.name) for file in page]
        assert 1 <= len(names) <= 7
        seen += names
        # What was shown last goes, what comes stands before it.
        files = [name for name in names if (working.parent / name).is_file() and name.startswith("wd/")]
        for name in files[-2:]:
            (working.parent / name).unlink()
            gone.add(name)
        (working / f"0{number}").touch()
    assert len(gone) > 10
    assert [name for name in seen if not name.startswith("wd/0")] == whole


def test_names_of_all_kinds(wire: Wire, job: str) -> None:
    name = "ä b+c%20&d.txt"
    task = wire.run(job, f"/bin/sh -c 'echo odd > \"{name}\"'")
    assert wire.text(job, task.id, f"wd/{name}") == "odd\n"


@pytest.mark.as_user
def test_deleting(wire: Wire, job: str) -> None:
    task = wire.run(job, "/bin/sh -c 'mkdir -p a/b; touch a/b/c d'")
    client = wire.client
    client.delete_task_file(job, task.id, "wd/d")
    with pytest.raises(HttpResponseError):
        client.delete_task_file(job, task.id, "wd/a")
    client.delete_task_file(job, task.id, "wd/a", recursive=True)
    assert [
        file.name for file in client.list_task_files(job, task.id, filter="startswith(name, 'wd/')", recursive=True)
    ] == []
    with pytest.raises(ResourceNotFoundError):
        client.delete_task_file(job, task.id, "wd/d")


def test_missing_file(wire: Wire, job: str) -> None:
    task = wire.run(job, "/bin/true")
    with pytest.raises(HttpResponseError) as caught:
        wire.client.download_task_file(job, task.id, "wd/none")
    assert status_of(caught) == (404, "FileNotFound")
    with pytest.raises(ResourceNotFoundError):
        wire.client.get_task_file_properties(job, task.id, "wd/none")


def test_files_go_with_their_node(wire: Wire) -> None:
    pool = wire.pool(1)
    job = wire.job(pool)
    task = wire.run(job, "/bin/true")
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()
    with pytest.raises(HttpResponseError) as caught:
        wire.client.download_task_file(job, task.id, "stdout.txt")
    assert status_of(caught) == (404, "NodeNotFound")


@pytest.mark.parametrize("name", TRICKS)
def test_nothing_outside_a_node_is_reached(wire: Wire, job: str, name: str) -> None:
    task = wire.run(job, "/bin/sh -c 'ln -s /etc/passwd link; ln -s /etc folder; ln -s .. up'")
    client = wire.client
    for call in (client.download_task_file, client.get_task_file_properties, client.delete_task_file):
        with pytest.raises(HttpResponseError) as caught:
            call(job, task.id, name)
        # Where the client's own library shortens the path, the signature does not fit it any more.
        assert caught.value.status_code == (403 if name == ".." else 404)
    info = task.node_info
    assert info is not None
    with pytest.raises(ResourceNotFoundError):
        client.get_node_file_properties(
            str(info.pool_id), str(info.node_id), f"{info.task_root_directory}/{name}/../.."
        )
    names = [str(file.name) for file in client.list_task_files(job, task.id, recursive=True)]
    assert not [found for found in names if "passwd" in found or found.endswith(("/link", "/folder"))]
    assert Path("/etc/passwd").exists()


def test_link_within_the_task_is_followed_and_deleted_alone(wire: Wire, job: str) -> None:
    task = wire.run(job, "/bin/sh -c 'echo kept > real; ln -s real link'")
    assert wire.text(job, task.id, "wd/link") == "kept\n"
    wire.client.delete_task_file(job, task.id, "wd/link")
    assert wire.text(job, task.id, "wd/real") == "kept\n"


@pytest.mark.parametrize("gone", ["removed", "never there"])
def test_files_of_a_task_without_a_directory_are_cleaned_up(wire: Wire, job: str, gone: str) -> None:
    package = [m.BatchApplicationPackageReference(application_id="none", version="1")]
    more = {"application_package_references": package} if gone == "never there" else {}
    task = wire.run(job, "/bin/sh -c 'rm -rf $AZ_BATCH_TASK_DIR'", **more)
    with pytest.raises(HttpResponseError) as caught:
        content(wire.client.download_task_file(job, task.id, "stdout.txt"))
    assert status_of(caught) == (409, "TaskFilesCleanedup")
