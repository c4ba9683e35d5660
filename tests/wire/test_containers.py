"""Tasks in containers: what the container engine is asked for, and what is said where there is none.

The engine is a stand-in that keeps to the few commands the service uses and runs the command on this machine; the last
tests ask real ones, where there are any.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

from airflow_batchwrap.local import runner
from tests.support import engine as engines
from tests.support.engine import STEERING
from tests.support.wire import Wire, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.as_user


def start(data: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> Wire:
    """A service that finds its programs on a path of its own."""
    monkeypatch.setenv("PATH", path)
    service = runner.start(data)
    monkeypatch.undo()
    return Wire(service, connect(service))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the stand-in engine."""
    return engines.make(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def place(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Wire, str]]:
    """A service with the stand-in engine, and a pool for containers."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        path = f"{engine}{os.pathsep}{os.environ['PATH']}"
        wire = start(tmp_path_factory.mktemp("contained") / "data", path, monkeypatch)
    yield wire, pool_of(wire)
    wire.client.close()
    wire.service.stop()


def pool_of(wire: Wire, slots: int = 4) -> str:
    """A pool whose tasks may run in containers."""
    name = wire.name("pool")
    options = wire.pool_options(name, slots=slots)
    assert options.virtual_machine_configuration is not None
    registry = m.ContainerRegistryReference(registry_server="r.example", username="u", password="secret")
    options.virtual_machine_configuration.container_configuration = m.BatchContainerConfiguration(
        type="dockerCompatible", container_image_names=["image"], container_registries=[registry]
    )
    wire.client.create_pool(options)
    wire.nodes(name, 1, "idle")
    return name


def image(name: str = "image", **more: Any) -> m.BatchTaskContainerSettings:
    """The settings of a task in a container."""
    return m.BatchTaskContainerSettings(image_name=name, **more)


def failure(task: m.BatchTask) -> m.BatchTaskFailureInfo:
    """Why a task failed."""
    assert task.execution_info is not None
    assert task.execution_info.failure_info is not None
    return task.execution_info.failure_info


def container_info(task: m.BatchTask) -> m.BatchTaskContainerExecutionInfo | None:
    """What a task says of its container."""
    return task.execution_info.container_info if task.execution_info else None


def test_command_runs_in_a_container_with_the_nodes_directories(place: tuple[Wire, str], engine: Path) -> None:
    wire, pool = place
    job = wire.job(pool)
    task = wire.run(
        job,
        "/bin/sh -c 'pwd; echo $PATH; echo \"$KEY\"; echo made > file; exit 3'",
        container_settings=image("registry-image", container_run_options="--memory 64m --label 'a b'"),
        environment_settings=[m.EnvironmentSetting(name="KEY", value="two\nlines")],
    )
    assert task.execution_info is not None
    assert (task.execution_info.exit_code, failure(task).code) == (3, "FailureExitCode")
    lines = wire.text(job, task.id).splitlines()
    assert task.node_info is not None
    directory = wire.root(task.node_info.node_id) / str(task.node_info.task_root_directory)
    assert lines == [f"{directory}/wd", "/in/the/container:/usr/bin:/bin", "two", "lines"]
    assert wire.text(job, task.id, "wd/file") == "made\n"
    asked = (engine / "asked").read_text().splitlines()
    create = next(line for line in reversed(asked) if '"create"' in line)
    root = wire.root(task.node_info.node_id)
    for part in (f'"{root}:{root}"', f'"--user", "{os.getuid()}:{os.getgid()}"', '"--memory", "64m", "--label", "a b"'):
        assert part in create
    # A value is passed by the environment, not on a command line that others can see.
    assert "two" not in create
    assert not list((engine / "containers").iterdir())
    assert task.container_settings is not None
    assert task.container_settings.image_name == "registry-image"
    info = task.execution_info.container_info
    assert info is not None
    assert (len(str(info.container_id)), info.state, info.error) == (64, "exited", None)


def test_image_has_its_own_command_and_directory(place: tuple[Wire, str]) -> None:
    wire, pool = place
    job = wire.job(pool)
    task = wire.run(job, "", container_settings=image())
    assert wire.text(job, task.id) == "of the image\n"
    task = wire.run(job, "/bin/pwd", container_settings=image(working_directory="containerImageDefault"))
    assert wire.text(job, task.id) == "/\n"


def test_mounts_can_be_chosen(place: tuple[Wire, str], engine: Path) -> None:
    wire, pool = place
    job = wire.job(pool)
    entries = [
        m.ContainerHostBatchBindMountEntry(source="Shared", is_read_only=True),
        m.ContainerHostBatchBindMountEntry(source="Task", is_read_only=False),
    ]
    task = wire.run(job, "/bin/true", container_settings=image(container_host_batch_bind_mounts=entries))
    create = [line for line in (engine / "asked").read_text().splitlines() if '"create"' in line][-1]
    assert task.node_info is not None
    root = wire.root(task.node_info.node_id)
    assert f'"{root}/shared:{root}/shared:ro"' in create
    assert f'"{root}/{task.node_info.task_root_directory}:' in create
    assert f'"{root}:{root}"' not in create


def test_container_goes_with_its_task(place: tuple[Wire, str], engine: Path) -> None:
    wire, pool = place
    job = wire.job(pool)
    task = wire.add(job, "/bin/sleep 60", container_settings=image())
    made = wire.until(lambda: list((engine / "containers").glob("*.pid")))
    shown = wire.until(lambda: container_info(wire.client.get_task(job, task)))
    assert shown is not None
    assert (shown.container_id, shown.state) == (made[0].stem, "running")
    wire.client.terminate_task(job, task)
    assert failure(wire.state(job, task, "completed")).code == "TaskEnded"
    assert not list((engine / "containers").iterdir())


@pytest.mark.parametrize("ask", ["terminate", "delete", "requeue"])
def test_task_is_ended_while_its_image_comes(place: tuple[Wire, str], engine: Path, ask: str) -> None:
    wire, pool = place
    job = wire.job(pool)
    (engine / "pulling").unlink(missing_ok=True)
    task = wire.add(job, "/bin/true", container_settings=image(f"slow-{ask}"))
    pulling = int(wire.until(lambda: (engine / "pulling").exists() and (engine / "pulling").read_text()))
    # Meanwhile others run, in containers and without.
    wire.run(wire.job(pool), "/bin/true", container_settings=image())
    wire.run(wire.job(pool), "/bin/true")
    if ask == "terminate":
        wire.client.terminate_task(job, task)
        assert failure(wire.state(job, task, "completed")).code == "TaskEnded"
    elif ask == "delete":
        wire.client.delete_task(job, task)
    else:
        (engine / "images" / f"slow-{ask}").touch()
        disable = m.BatchJobDisableOptions(disable_tasks="requeue")
        wire.client.begin_disable_job(job, disable, polling_interval=0).wait()
        wire.client.begin_enable_job(job, polling_interval=0).wait()
        found = wire.state(job, task, "completed")
        assert found.execution_info is not None
        assert (found.execution_info.result, found.execution_info.exit_code) == ("success", 0)
    # The engine stopped fetching it.
    wire.until(lambda: not psutil.pid_exists(pulling))
    assert not list((engine / "containers").iterdir())


def test_many_slow_fetches_hold_up_nothing_else(place: tuple[Wire, str], engine: Path) -> None:
    wire = place[0]
    pool = pool_of(wire, slots=16)
    slow = wire.job(pool)
    (engine / "fetching").unlink(missing_ok=True)
    for number in range(12):
        wire.add(slow, "/bin/true", container_settings=image(f"slow-{number}"))
    wire.until(lambda: (engine / "fetching").exists() and len((engine / "fetching").read_text().split()) == 12)
    plain, began = wire.job(pool), time.monotonic()
    for _ in range(4):
        assert wire.run(plain, "/bin/sh -c 'echo text'").execution_info.exit_code == 0  # type: ignore[union-attr]
    # Each of the fetches takes 30 s.
    assert time.monotonic() - began < 15
    assert len(list(wire.client.list_tasks(slow, filter="state eq 'running'"))) == 12
    wire.terminate(slow)
    fetching = [int(pid) for pid in (engine / "fetching").read_text().split()]
    wire.until(lambda: not any(psutil.pid_exists(pid) for pid in fetching))


def test_task_is_ended_while_its_container_is_created(place: tuple[Wire, str], engine: Path) -> None:
    wire, pool = place
    job = wire.job(pool)
    (engine / "creating").unlink(missing_ok=True)
    task = wire.add(job, "/bin/sleep 60", container_settings=image("late"))
    wire.until((engine / "creating").exists)
    wire.client.terminate_task(job, task)
    assert failure(wire.state(job, task, "completed")).code == "TaskEnded"
    assert not list((engine / "containers").iterdir())


def test_variables_of_a_task_do_not_steer_the_engine(place: tuple[Wire, str], engine: Path) -> None:
    wire, pool = place
    job = wire.job(pool)
    (engine / "asked").unlink(missing_ok=True)
    given = {name: f"/of the task/{name}" for name in (*STEERING, "PATH", "LANG", "HOME")}
    settings = [m.EnvironmentSetting(name=name, value=value) for name, value in given.items()]
    task = wire.run(job, "/usr/bin/env", container_settings=image(), environment_settings=settings)
    inside = dict(line.split("=", 1) for line in wire.text(job, task.id).splitlines())
    assert {name: inside.get(name) for name in given} == given
    lines = (engine / "asked").read_text()
    assert "of the task" not in lines
    assert len(lines.splitlines()) >= 5
    settings = [m.EnvironmentSetting(name="DOCKER_HOST", value="two\nlines")]
    task = wire.run(job, "/usr/bin/env", container_settings=image(), environment_settings=settings)
    assert failure(task).code == "ContainerInvalidSettings"
    assert "DOCKER_HOST has several lines" in str(failure(task).message)


def test_what_goes_wrong_is_told_apart(place: tuple[Wire, str], engine: Path) -> None:
    wire, pool = place
    job = wire.job(pool)
    task = wire.run(job, "/no/such/program", container_settings=image())
    assert task.execution_info is not None
    assert (failure(task).code, task.execution_info.exit_code) == ("CommandProgramNotFound", None)
    info = task.execution_info.container_info
    assert info is not None
    assert (info.state, "executable file not found" in str(info.error)) == ("created", True)
    task = wire.run(job, "/bin/true", container_settings=image(container_run_options="--wrong"))
    assert failure(task).code == "ContainerInvalidSettings"
    assert "unknown flag: --wrong" in str(failure(task).message)
    task = wire.run(job, "/bin/true", container_settings=image(container_run_options="--name mine"))
    assert task.execution_info is not None
    assert task.execution_info.result == "success"
    assert not list((engine / "containers").iterdir())


@pytest.mark.parametrize("how", ["for a while", pytest.param("for good", marks=pytest.mark.soak)])
def test_silent_engine_is_asked_again_until_nothing_is_left(place: tuple[Wire, str], engine: Path, how: str) -> None:
    wire, pool = place
    job = wire.job(pool)
    task = wire.add(job, "/bin/sleep 60", container_settings=image())
    wire.until(lambda: list((engine / "containers").glob("*.pid")))
    # What is asked then takes as long, or is never answered: that is given up after 20 s.
    (engine / "silent").write_text(how)
    try:
        wire.client.terminate_task(job, task)
        # The end of the task waits 5 s for it.
        assert failure(wire.state(job, task, "completed")).code == "TaskEnded"
        assert list((engine / "containers").iterdir())
    finally:
        (engine / "silent").unlink()
    wire.until(lambda: not list((engine / "containers").iterdir()), timeout=40)


def test_container_of_a_killed_service_goes(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{engine}{os.pathsep}{os.environ['PATH']}"
    wire = start(tmp_path / "data", path, monkeypatch)
    with wire.client:
        job = wire.job(pool_of(wire))
        wire.add(job, "/bin/sleep 600", container_settings=image())
        (running,) = wire.until(lambda: list((engine / "containers").glob("*.pid")))
        command = int(wire.until(running.read_text))
        os.kill(wire.service.pid, signal.SIGKILL)
        # What watched it removes it.
        wire.until(lambda: not psutil.pid_exists(command) or psutil.Process(command).status() == "zombie")
        wire.until(lambda: not list((engine / "containers").iterdir()))
    # A container that nobody removed is found by the next service.
    label = f"airflow-batchwrap={(tmp_path / 'data').resolve()}/nodes"
    left = engine / "containers" / ("0" * 64)
    left.write_text(json.dumps({"options": {"--label": [label]}}))
    wire = start(tmp_path / "data", path, monkeypatch)
    with wire.client:
        assert not left.exists()
        wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.service.stop()


def test_image_that_is_not_to_be_had_fails_the_task(place: tuple[Wire, str]) -> None:
    wire, pool = place
    task = wire.run(wire.job(pool), "/bin/true", container_settings=image("missing"))
    assert task.execution_info is not None
    assert task.execution_info.exit_code is None
    assert failure(task).code == "ContainerInvalidImage"
    assert "pull access denied" in str(failure(task).message)


def test_start_and_preparation_tasks_run_in_containers_too(place: tuple[Wire, str], engine: Path) -> None:
    wire, pool = place
    preparation = m.BatchJobPreparationTask(command_line="/bin/true", container_settings=image("prepared"))
    job = wire.job(pool, job_preparation_task=preparation)
    wire.run(job, "/bin/true")
    assert any('"prepared"' in line for line in (engine / "asked").read_text().splitlines())
    start_task = m.BatchStartTask(command_line="/bin/true", container_settings=image("started"))
    options = wire.pool_options(wire.name("pool"), start_task=start_task)
    assert options.virtual_machine_configuration is not None
    options.virtual_machine_configuration.container_configuration = m.BatchContainerConfiguration(
        type="dockerCompatible"
    )
    wire.client.create_pool(options)
    wire.nodes(options.id, 1, "idle")
    assert any('"started"' in line for line in (engine / "asked").read_text().splitlines())


def test_passwords_of_registries_are_not_shown(place: tuple[Wire, str]) -> None:
    wire, pool = place
    assert "secret" not in str(wire.client.get_pool(pool).as_dict())
    registry = m.ContainerRegistryReference(registry_server="r", username="u", password="secret")
    task = wire.run(wire.job(pool), "/bin/true", container_settings=image(registry=registry))
    assert "secret" not in str(task.as_dict())


def test_pool_has_to_be_for_containers(wire: Wire, job: str) -> None:
    task = wire.run(job, "/bin/true", container_settings=image())
    assert failure(task).code == "ContainerPoolNotSupported"
    assert "containerConfiguration" in str(failure(task).message)
    with pytest.raises(HttpResponseError) as caught:
        wire.add(job, "/bin/true", container_settings=image(" "))
    assert caught.value.status_code == 400


def test_machine_without_an_engine_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    wire = start(tmp_path / "data", str(tmp_path / "bin"), monkeypatch)
    with wire.client:
        task = wire.run(wire.job(pool_of(wire)), "/bin/true", container_settings=image())
        assert failure(task).code == "ContainerPoolNotSupported"
        for part in ("docker is not on the PATH", "podman is not on the PATH", "Install"):
            assert part in str(failure(task).message)
    wire.service.stop()


# --- a real engine


@pytest.fixture(scope="module", params=["docker", "podman"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """A real engine with an image of busybox, and a service that finds no other one."""
    name, path = request.param, shutil.which(request.param)
    if path is None:
        pytest.skip(f"{name} is not on the PATH")
    if (said := subprocess.run([path, "version"], capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"{name} does not answer: {said.stderr.strip()[-200:]}")
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("there is no busybox on the PATH to make an image of: Debian's is in busybox-static")
    folder = tmp_path_factory.mktemp(f"real-{name}")
    root, programs = folder / "root", folder / "bin"
    (root / "bin").mkdir(parents=True)
    (root / "srv").mkdir()
    shutil.copy(busybox, root / "bin/busybox")
    for applet in ("sh", "sleep", "echo", "env", "pwd", "true", "touch", "mkdir", "id"):
        (root / "bin" / applet).symlink_to("busybox")
    programs.mkdir()
    # What an ordinary user's podman calls comes along.
    helpers = ("newuidmap", "newgidmap", "slirp4netns", "pasta", "fuse-overlayfs")
    for each in ("sh", "python3", "env", *helpers):
        if found := shutil.which(each):
            (programs / each).symlink_to(found)
    (programs / name).symlink_to(path)
    tag = f"localhost/batchwrap-test-{os.getpid()}:1"
    archive = folder / "root.tar"
    with tarfile.open(archive, "w") as packed:
        packed.add(root, ".")
    changes = ["-c", "WORKDIR /srv", "-c", "ENV PATH=/bin:/of/the/image", "-c", 'CMD ["/bin/echo", "of the image"]']
    subprocess.run([path, "import", *changes, archive, tag], check=True, capture_output=True)
    # With the engine's own kind of network, as tasks have it: an ordinary user's podman needs /dev/net/tun for one.
    one = [path, "run", "--rm", tag, "/bin/true"]
    if (said := subprocess.run(one, capture_output=True, text=True, check=False)).returncode:
        subprocess.run([path, "rmi", "--force", tag], check=False, capture_output=True)
        pytest.skip(f"{name} is there and runs no container here: {said.stderr.strip()[-200:]}")
    with pytest.MonkeyPatch.context() as monkeypatch:
        # runc and conmon are where the engine finds them.
        paths = [str(programs), "/usr/sbin", "/sbin"]
        wire = start(folder / "data", os.pathsep.join(paths), monkeypatch)
    yield Real(path, tag, wire, pool_of(wire))
    wire.client.close()
    wire.service.stop()
    subprocess.run([path, "rmi", "--force", tag], check=False, capture_output=True)


@dataclass
class Real:
    """A real engine: its program, an image, and a service with a pool for containers."""

    path: str
    tag: str
    wire: Wire
    pool: str

    def run(self, command: str, *, image_name: str = "", environment: dict[str, str] | None = None, **more: Any) -> Any:
        """A task in a container of the image that has completed, with its job."""
        job = self.wire.job(self.pool)
        settings = [m.EnvironmentSetting(name=name, value=value) for name, value in (environment or {}).items()]
        task = self.wire.run(
            job, command, container_settings=image(image_name or self.tag, **more), environment_settings=settings
        )
        return job, task

    def left(self) -> list[str]:
        """The containers that the service has left."""
        label = f"label=airflow-batchwrap={self.wire.service.data}/nodes"
        command = [self.path, "ps", "--all", "--quiet", "--filter", label]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_real_engine_runs_a_command(real: Real) -> None:
    given = {"DOCKER_HOST": "unix:///nowhere", "TMPDIR": "/nowhere", "XDG_RUNTIME_DIR": "/x", "KEY": "two\nlines"}
    given |= {"LANG": "of-the-task", "EMPTY": "", "QUOTED": "' \" #$"}
    job, task = real.run("/bin/sh -c 'pwd; id -u; echo made > file; /bin/env; exit 3'", environment=given)
    assert (task.execution_info.exit_code, failure(task).code) == (3, "FailureExitCode")
    text = real.wire.text(job, task.id)
    directory = real.wire.root(task.node_info.node_id) / str(task.node_info.task_root_directory)
    # In a podman of an ordinary user's that user is root.
    user = 0 if real.path.endswith("podman") else os.getuid()
    assert text.startswith(f"{directory}/wd\n{user}\n")
    assert (directory / "wd/file").stat().st_uid == os.getuid()
    for name, value in given.items():
        assert f"{name}={value}\n" in text
    assert "PATH=/bin:/of/the/image\n" in text
    assert real.wire.text(job, task.id, "wd/file") == "made\n"
    info = task.execution_info.container_info
    assert (len(info.container_id), info.state) == (64, "exited")
    assert real.left() == []


def test_real_engine_tells_apart_what_goes_wrong(real: Real) -> None:
    _, task = real.run("/no/such/program")
    assert (failure(task).code, task.execution_info.exit_code) == ("CommandProgramNotFound", None)
    assert task.execution_info.container_info.error
    _, task = real.run("nosuchprogram")
    assert failure(task).code == "CommandProgramNotFound"
    _, task = real.run("/srv")
    assert failure(task).code == "CommandLaunchFailed"
    _, task = real.run("/bin/true", container_run_options="--no-such-option")
    assert failure(task).code == "ContainerInvalidSettings"
    _, task = real.run("/bin/true", container_run_options="--memory nonsense")
    assert failure(task).code == "ContainerInvalidSettings"
    _, task = real.run("/bin/true", image_name="localhost:9/no/such:1")
    assert failure(task).code == "ContainerInvalidImage"
    job, task = real.run("", working_directory="containerImageDefault", container_run_options="--name batchwrap-mine")
    assert (task.execution_info.result, real.wire.text(job, task.id)) == ("success", "of the image\n")
    assert real.left() == []


def test_real_engine_leaves_nothing_of_what_is_terminated(real: Real) -> None:
    wire, job = real.wire, real.wire.job(real.pool)
    # At any moment of its start, and while it runs.
    for number in range(8):
        task = wire.add(job, "/bin/sleep 600", container_settings=image(real.tag))
        wire.until(lambda: (engine_is_asked(wire) or real.left()) if number % 2 else real.left())  # noqa: B023
        wire.client.terminate_task(job, task)
        assert failure(wire.state(job, task, "completed")).code == "TaskEnded"
        wire.until(lambda: real.left() == [])


def engine_is_asked(wire: Wire) -> list[psutil.Process]:
    """The engine's command lines that the service waits for."""
    return [each for each in psutil.Process(wire.service.pid).children() if each.name() in ("docker", "podman")]


def test_real_engine_gives_back_what_another_user_wrote(real: Real) -> None:
    job, task = real.run("/bin/sh -c 'mkdir -p deep/er; touch deep/er/file'", container_run_options="--user 0:0")
    assert task.execution_info.result == "success"
    directory = real.wire.root(task.node_info.node_id) / str(task.node_info.task_root_directory)
    assert {each.stat().st_uid for each in (directory / "wd").rglob("*")} == {os.getuid()}
    real.wire.client.begin_delete_job(job, polling_interval=0).wait()
    real.wire.until(lambda: not directory.exists())
    assert not (real.wire.service.data / "removed").exists() or not any((real.wire.service.data / "removed").iterdir())


def test_real_engine_leaves_nothing_of_a_killed_service(real: Real) -> None:
    wire, job = real.wire, real.wire.job(real.pool)
    wire.add(job, "/bin/sleep 600", container_settings=image(real.tag))
    wire.until(real.left)
    os.kill(wire.service.pid, signal.SIGKILL)
    wire.until(lambda: not real.left())
