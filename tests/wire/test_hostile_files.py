"""A task that means harm, or is merely unlucky, with its files: it costs nobody else anything, and nothing hangs.

Each task here does something to files that the service opens, lists, uploads or removes. All of them run on one service
whose loop is watched: at the end no turn of it may have taken longer than 50 ms.
"""

from __future__ import annotations

import datetime
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

from tests.support import stalls
from tests.support.raw import page
from tests.support.stalls import Watched

if TYPE_CHECKING:
    from tests.support.web import Web
    from tests.support.wire import Services, Wire

#: What a task can put in the place of a file.
EVIL = {
    "pipe": "mkfifo {place}",
    "link out": "ln -s {outside} {place}",
    "second name": "ln {outside} {place}",
    "device": "ln -s /dev/full {place}",
    "directory": "mkdir -p {place}/full",
    "loop": "ln -s loop {place}",
}


@pytest.fixture(scope="module")
def watched(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A service whose loop is watched."""
    data: Path = tmp_path_factory.mktemp("hostile") / "data"
    with stalls.watched(services, data) as running:
        yield running
        running.no_stall()
    assert "Traceback" not in (data / "service.log").read_text()


@pytest.fixture(scope="module")
def wire(watched: Watched) -> Wire:
    """The watched service."""
    return watched.wire


@pytest.fixture(scope="module")
def pool(wire: Wire) -> str:
    """A pool of one node, so that tasks are neighbours."""
    return wire.pool(1, 4)


@pytest.fixture
def job(wire: Wire, pool: str) -> str:
    """A job on it."""
    return wire.job(pool)


@pytest.fixture
def outside(wire: Wire) -> Path:
    """A file that is no node's; on the same file system, so that it can be given a second name."""
    file = wire.service.data / f"{wire.name('outside')}.txt"
    file.write_text("untouched")
    return file


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """Makes a command line of a script."""

    def command(text: str) -> str:
        file = tmp_path / "script.py"
        file.write_text(text)
        return f'"{sys.executable}" "{file}"'

    return command


def put(kind: str, place: str, outside: Path) -> str:
    """A piece of shell that puts something else in the place of a file."""
    return f"rm -rf {place}; " + EVIL[kind].format(place=place, outside=f'"{outside}"')


def output(web: Web, pattern: str, path: str | None = None) -> m.OutputFile:
    """An output file that goes to the web server."""
    return m.OutputFile(
        file_pattern=pattern,
        destination=m.OutputFileDestination(
            container=m.OutputFileBlobContainerDestination(container_url=f"{web.url}/box?sig=s", path=path)
        ),
        upload_options=m.OutputFileUploadConfiguration(upload_condition="taskcompletion"),
    )


def info_of(task: m.BatchTask) -> m.BatchTaskExecutionInfo:
    """How a task went."""
    assert task.execution_info is not None
    return task.execution_info


def printed(wire: Wire, job: str, task: str) -> bool:
    """Whether a running task has printed anything."""
    try:
        return bool(wire.client.get_task_file_properties(job, task, "stdout.txt").content_length)
    except HttpResponseError:
        return False


def size_of(wire: Wire, job: str, task: str, path: str) -> int | None:
    """How much a download brings; None where there is no such file."""
    try:
        return len(b"".join(wire.client.download_task_file(job, task, path)))
    except HttpResponseError as error:
        if not gone(error):
            raise
        return None


def gone(error: HttpResponseError) -> bool:
    """Whether a file is not there; the client leaves the body of a failed download unread."""
    answer: Any = error.response
    answer.read()
    return error.status_code == 404


def works(wire: Wire, job: str) -> None:
    """Assert that the node still runs tasks and shows their output."""
    task = wire.run(job, "/bin/echo well")
    assert info_of(task).exit_code == 0
    assert wire.text(job, task.id) == "well\n"


@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("name", ["fileuploadout.txt", "fileuploaderr.txt"])
def test_upload_log_that_is_something_else(wire: Wire, job: str, web: Web, outside: Path, kind: str, name: str) -> None:
    command = f"/bin/sh -c 'echo done > x; {put(kind, f'../{name}', outside)}; exit 3'"
    task = wire.run(job, command, output_files=[output(web, "x")])
    assert (info_of(task).exit_code, web.files) == (3, {"/box/x": b"done\n"})
    assert outside.read_text() == "untouched"
    assert ("uploaded x" in wire.text(job, task.id, "fileuploadout.txt")) is True
    works(wire, job)


@pytest.mark.parametrize("kind", EVIL)
def test_start_task_that_leaves_something_else_for_its_retry(wire: Wire, outside: Path, kind: str) -> None:
    evil = "; ".join(put(kind, f"../{name}", outside) for name in ("stdout.txt", "stderr.txt"))
    command = f"/bin/sh -c '[ -e again ] && echo second && exit 0; touch again; {evil}; exit 1'"
    start = m.BatchStartTask(command_line=command, max_task_retry_count=1, wait_for_success=True)
    pool = wire.pool(1, start_task=start)
    (node,) = wire.nodes(pool, 1, "idle")
    assert b"".join(wire.client.download_node_file(pool, node.id, "startup/stdout.txt")) == b"second\n"
    assert outside.read_text() == "untouched"
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


@pytest.mark.parametrize("kind", EVIL)
def test_agents_log_that_is_something_else(wire: Wire, web: Web, outside: Path, kind: str) -> None:
    pool = wire.pool(1)
    (node,) = wire.nodes(pool, 1, "idle")
    job = wire.job(pool)
    wire.run(job, f"/bin/sh -c '{put(kind, '$AZ_BATCH_NODE_ROOT_DIR/volatile/agent.log', outside)}'")
    requeue = m.BatchNodeDisableSchedulingOptions(node_disable_scheduling_option="requeue")
    wire.client.disable_node_scheduling(pool, node.id, requeue)
    wire.client.enable_node_scheduling(pool, node.id)
    works(wire, job)
    log = wire.root(node.id) / "volatile" / "agent.log"
    wire.until(lambda: log.is_file() and not log.is_symlink() and "scheduling" in log.read_text())
    assert outside.read_text() == "untouched"
    hour_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    options = m.UploadBatchServiceLogsOptions(container_url=f"{web.url}/logs", start_time=hour_ago)
    assert wire.client.upload_node_logs(pool, node.id, options).number_of_files_uploaded == 1
    wire.until(lambda: web.files)
    assert b"scheduling" in next(iter(web.files.values()))
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


@pytest.mark.parametrize("kind", EVIL)
def test_reading_something_else(wire: Wire, job: str, web: Web, outside: Path, kind: str) -> None:
    evil = "; ".join(put(kind, place, outside) for place in ("../stdout.txt", "evil"))
    task = wire.run(job, f"/bin/sh -c '{evil}'", output_files=[output(web, "*"), output(web, "../stdout.txt")])
    assert info_of(task).result == "success"
    inside = kind == "second name"
    for path in ("stdout.txt", "wd/evil"):
        if not inside:
            with pytest.raises(HttpResponseError) as caught:
                wire.client.download_task_file(job, task.id, path)
            assert gone(caught.value)
    # A second name of a file is a file of the task's: no look can tell it from another.
    assert bool(web.files) is inside
    list(wire.client.list_task_files(job, task.id, recursive=True))
    works(wire, job)
    wire.client.delete_task(job, task.id)
    assert outside.read_text() == "untouched"


@pytest.mark.as_user
@pytest.mark.parametrize("what", ["task", "job", "workitems"])
@pytest.mark.parametrize("resource", [False, True])
def test_link_in_place_of_a_neighbours_directory(
    wire: Wire, job: str, web: Web, tmp_path: Path, what: str, resource: bool
) -> None:
    web.files["/x"] = b"brought"
    away = tmp_path / "away"
    (away / "victim").mkdir(parents=True)
    (away / "victim" / "kept").write_text("untouched")
    root = "$AZ_BATCH_NODE_ROOT_DIR"
    place = {
        "task": f"{root}/workitems/{job}/job-1/victim",
        "job": f"{root}/workitems/{job}",
        "workitems": f"{root}/workitems",
    }
    wire.run(job, f"/bin/sh -c 'rm -rf {place[what]}; ln -s {away} {place[what]}'", id="evil")
    files = [m.ResourceFile(http_url=f"{web.url}/x", file_path="x")] if resource else []
    task = wire.run(
        job, "/bin/sh -c 'echo here > y; ls'", id="victim", resource_files=files, output_files=[output(web, "y")]
    )
    assert info_of(task).exit_code == 0
    assert wire.text(job, "victim") == ("x\ny\n" if resource else "y\n")
    assert web.files["/box/y"] == b"here\n"
    wire.client.delete_task(job, "victim")
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    assert sorted(path.name for path in away.rglob("*")) == ["kept", "victim"]


@pytest.mark.as_user
def test_directory_that_was_moved_out_and_linked(wire: Wire, tmp_path: Path) -> None:
    """The place of the job's next task is made anew, though the link leads to the very directory of the last one."""
    job = wire.job(wire.pool(1))
    away = tmp_path / "away"
    place = f"$AZ_BATCH_NODE_ROOT_DIR/workitems/{job}"
    wire.run(job, "/bin/true", id="first")
    wire.run(job, f"/bin/sh -c 'mv {place} {away}; ln -s {away} {place}'", id="evil")
    works(wire, job)
    assert sorted(path.name for path in (away / "job-1").iterdir()) == ["evil", "first"]


def attempt(download: Callable[[], bytes]) -> int | str:
    """How much a download brings; whether it was cut."""
    try:
        return len(download())
    except (httpx.RemoteProtocolError, httpx.ReadError, HttpResponseError):
        return "cut"


#: A file that is large and empty by turns.
BREATHING = """
with open("x", "wb") as file:
    file.truncate(50_000_000)
    print("ready", flush=True)
    while True:
        file.truncate(0)
        file.truncate(50_000_000)
"""


def test_file_that_becomes_shorter_while_it_is_sent(wire: Wire, job: str, script: Callable[[str], str]) -> None:
    """The connection is cut, which no client takes for the whole file, and the log has no word of it."""
    task = wire.add(job, script(BREATHING))
    wire.state(job, task, "running")
    wire.until(lambda: printed(wire, job, task))
    with httpx.Client(base_url=wire.service.url, follow_redirects=True, timeout=20) as page:
        token = (wire.service.data / "page-token").read_text().strip()
        assert page.get(f"/ui/?token={token}").is_success
        seen = {attempt(lambda: page.get(f"/ui/jobs/{job}/tasks/{task}/files/wd/x").content) for _ in range(10)}
    client = wire.client
    seen |= {attempt(lambda: b"".join(client.download_task_file(job, task, "wd/x"))) for _ in range(10)}
    assert "cut" in seen
    assert seen <= {"cut", 0, 50_000_000}
    wire.client.terminate_task(job, task)


@pytest.mark.parametrize("moment", [99_999_999_999_999, -99_999_999_999_999, 2**62])
def test_file_of_a_year_that_has_no_name(services: Services, moment: int) -> None:
    # Few disks hold such times: memory does.
    memory = Path("/dev/shm")  # noqa: S108 - its files are removed
    if not memory.is_dir():
        pytest.skip(f"{memory}, a file system that holds any time, is missing")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        wire = services(Path(folder) / "data")
        job = wire.job(wire.pool())
        python = f"import os; open('old', 'w').close(); os.utime('old', ({moment}, {moment}))"
        task = wire.run(job, f'python3 -c "{python}"').id
        (old,) = (file for file in wire.client.list_task_files(job, str(task), recursive=True) if file.name == "wd/old")
        assert old.properties is not None
        assert old.properties.last_modified.year == (1 if moment < 0 else 9999)
        assert wire.text(job, str(task), "wd/old") == ""
        assert page(wire.service, f"/ui/jobs/{job}/tasks/{task}")[0] == 200
        wire.service.stop()
        assert "Traceback" not in (wire.service.data / "service.log").read_text()


def test_name_that_is_no_text_keeps_the_exit_code(wire: Wire, job: str, web: Web) -> None:
    command = """/bin/sh -c 'echo 1 > fine; printf x > "$(printf "odd\\377")"; exit 5'"""
    task = wire.run(job, command, output_files=[output(web, "*")])
    info = info_of(task)
    assert (info.exit_code, web.files) == (5, {"/box/fine": b"1\n"})
    assert info.failure_info is not None
    # The command's own failure came first.
    assert info.failure_info.code == "FailureExitCode"
    task = wire.run(job, command.replace("exit 5", "exit 0"), output_files=[output(web, "*")])
    assert info_of(task).exit_code == 0
    failure = info_of(task).failure_info
    assert failure is not None
    assert failure.code == "FileUploadMiscError"
    assert failure.category == "UserError"
    assert "UTF-8" in str(failure.message)
    assert "UTF-8" in wire.text(job, task.id, "fileuploaderr.txt")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("[z-a]*", set()),
        ("[!z-a]*", {"a", "top.txt"}),
        ("$NOTHING", set()),
        ("a*/a", set()),
        ("**/**/*.txt", {"top.txt", "one/two/deep.txt"}),
        ("**/**/**/**/**/deep.txt", {"one/two/deep.txt"}),
        ("**/" * 300 + "*.txt", {"top.txt", "one/two/deep.txt"}),
        ("*?" * 100 + "z", set()),
        ("*a" * 120 + "*z", set()),
        ("x" * 3000, set()),
        ("**/" + "[" * 2000, set()),
    ],
)
def test_odd_patterns(wire: Wire, job: str, web: Web, pattern: str, names: set[str]) -> None:
    """A pattern means what it says, however odd, each file goes up once, and none takes long."""
    long = "a" * 250
    command = f"/bin/sh -c 'mkdir -p one/two; touch a top.txt one/two/deep.txt one/{long} one/{long}b'"
    task = wire.run(job, command, output_files=[output(web, pattern)])
    assert info_of(task).result == "success", info_of(task).as_dict()
    assert {path.removeprefix("/box/") for path in web.files} == names
    assert len(web.asked) == len(names)


@pytest.mark.parametrize("what", ["$AZ_BATCH_TASK_DIR", "$AZ_BATCH_TASK_WORKING_DIR", "$AZ_BATCH_TASK_DIR/.."])
def test_task_that_removes_its_own_directory(wire: Wire, job: str, web: Web, what: str) -> None:
    files = [output(web, "**/*"), output(web, "../stdout.txt"), output(web, "gone/x")]
    task = wire.run(job, f"/bin/sh -c 'rm -rf {what}; exit 7'", output_files=files)
    info = info_of(task)
    assert info.exit_code == 7
    assert info.failure_info is not None
    assert info.failure_info.code == "FailureExitCode"
    works(wire, job)
    wire.client.delete_task(job, task.id)


@pytest.mark.parametrize("what", ["$AZ_BATCH_NODE_ROOT_DIR", "$(dirname $AZ_BATCH_NODE_ROOT_DIR)"])
def test_task_that_removes_its_whole_node_or_all_nodes(wire: Wire, job: str, web: Web, what: str) -> None:
    pool = wire.pool(1)
    own = wire.job(pool)
    task = wire.run(own, f"/bin/sh -c 'rm -rf {what}; exit 4'", output_files=[output(web, "*")])
    assert info_of(task).exit_code == 4
    works(wire, own)
    works(wire, job)
    files = [m.ResourceFile(http_url=f"{web.url}/x", file_path="x")]
    web.files["/x"] = b"brought"
    assert wire.text(own, wire.run(own, "/bin/cat x", resource_files=files).id) == "brought"
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_very_many_output_files(watched: Watched, wire: Wire, job: str, web: Web) -> None:
    command = "/bin/sh -c 'mkdir a b; for i in $(seq 200); do echo $i > a/$i; ln a/$i b/$i; done'"
    task = wire.run(job, command, output_files=[output(web, "**/*", "out")])
    assert info_of(task).result == "success"
    assert {path: body for path, body in web.files.items() if "/a/" in path} == {
        f"/box/out/a/{number}": f"{number}\n".encode() for number in range(1, 201)
    }
    assert len(web.asked) == 400
    assert wire.text(job, task.id, "fileuploadout.txt").count("uploaded") == 400
    watched.no_stall()


def test_pipes_in_the_data_directory(wire: Wire, job: str, web: Web) -> None:
    """What the service reads there beside its state is no sandbox's wall, and hangs nobody either."""
    data = "$AZ_BATCH_NODE_ROOT_DIR/../.."
    evil = f"mkdir -p {data}/applications/evil; mkfifo {data}/auto-storage"
    evil += "".join(f"; mkfifo {data}/applications/evil/{name}" for name in ("application.json", "1.zip", "2"))
    wire.run(job, f"/bin/sh -c '{evil}'")
    assert [application.id for application in wire.client.list_applications()] == ["evil"]
    for version in (None, "1", "2"):
        package = m.BatchApplicationPackageReference(application_id="evil", version=version)
        failure = info_of(wire.run(job, "/bin/true", application_package_references=[package])).failure_info
        assert failure is not None
        assert failure.code == "ApplicationPackageError"
    files = [m.ResourceFile(auto_storage_container_name="any")]
    failure = info_of(wire.run(job, "/bin/true", resource_files=files)).failure_info
    assert failure is not None
    assert failure.code == "ResourceContainerNotFound"
    works(wire, job)


#: Directories one in the other, deeper than Python recurses and longer than a path may be, and many files.
CROWD = """
import os
for folder in range(4):
    os.mkdir(f"f{folder}")
    for number in range(1000):
        open(f"f{folder}/{number:04}", "w").close()
top = os.open(".", os.O_RDONLY)
for _ in range(1500):
    os.mkdir("deep")
    os.chdir("deep")
open("deep.txt", "w").close()
"""


def test_deep_and_crowded_directories(
    watched: Watched, wire: Wire, job: str, web: Web, script: Callable[[str], str]
) -> None:
    task = wire.run(job, script(CROWD), output_files=[output(web, "**/deep.txt"), output(web, "f1/000*")])
    # The deep one is found as well; whether its long address is taken is the web server's word.
    assert {path for path in web.files if "/000" in path} == {f"/box/{number:04}" for number in range(10)}
    some = wire.client.list_task_files(job, task.id, recursive=True, filter="startswith(name, 'wd/f3/')")
    assert len(list(some)) == 1000
    names = [str(file.name) for file in wire.client.list_task_files(job, task.id, recursive=True)]
    assert sum(name.endswith("/deep.txt") for name in names) == 1
    assert sum("wd/f" in name for name in names) == 4004
    assert task.node_info is not None
    directory = wire.root(task.node_info.node_id) / "workitems" / job / "job-1" / task.id
    page = httpx.get(f"{wire.service.url}/", timeout=20)
    assert page.status_code < 500
    wire.client.delete_task_file(job, task.id, "wd/deep", recursive=True)
    assert not (directory / "wd" / "deep").exists()
    wire.client.delete_task(job, task.id)
    wire.until(lambda: not directory.exists())
    watched.no_stall()


def test_directories_that_are_exchanged_all_the_time(
    wire: Wire, job: str, tmp_path: Path, script: Callable[[str], str]
) -> None:
    """A task swaps a directory for a link out, again and again, while others list, read and remove it."""
    away = tmp_path / "away"
    away.mkdir()
    secret = away / "secret"
    secret.write_text("untouched")
    swap = f"""
import os
os.mkdir("real")
open("real/secret", "w").close()
os.symlink({os.fspath(away)!r}, "link")
print("ready", flush=True)
while not os.path.exists("stop"):
    for first, second in (("real", "aside"), ("link", "real"), ("real", "link"), ("aside", "real")):
        try:
            os.rename(first, second)
        except OSError:
            os.makedirs("aside", exist_ok=True)
"""
    task = wire.add(job, script(swap))
    wire.state(job, task, "running")
    wire.until(lambda: printed(wire, job, task))
    seen: set[int | None] = set()
    for _ in range(60):
        for file in wire.client.list_task_files(job, task, recursive=True):
            if str(file.name).endswith("/secret") and file.properties is not None:
                seen.add(file.properties.content_length)
        seen.add(size_of(wire, job, task, "wd/real/secret"))
    wire.client.terminate_task(job, task)
    wire.client.delete_task(job, task)
    assert seen <= {0, None}
    assert secret.read_text() == "untouched"
