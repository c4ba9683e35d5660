"""Tasks in containers: what the container engine is asked for, and what is said where there is none.

The engine here is a stand-in that keeps to the few commands the service uses and runs the command on this machine; the
last test asks the real one, where there is one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

from airflow_batchwrap.local import runner
from tests.support.wire import Wire, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.as_user

ENGINE = """
import json, os, signal, subprocess, sys
from pathlib import Path
state, (verb, *rest) = Path(__file__).parent / "containers", sys.argv[1:]
state.mkdir(exist_ok=True)
with (state.parent / "asked").open("a") as log:
    log.write(json.dumps([verb, *rest]) + "\\n")
if verb == "version":
    print("stand-in")
elif verb == "create":
    found, env = {}, {}
    while rest[0].startswith("--"):
        option, value = rest.pop(0), rest.pop(0)
        if option == "--env":
            name, _, given = value.partition("=")
            env[name] = given or os.environ[name]
        found.setdefault(option, []).append(value)
    image, *command = rest
    if image == "slow":
        import time
        time.sleep(30)
    if image == "missing":
        sys.exit("pull access denied for missing")
    name = found["--name"][0]
    text = json.dumps({"options": found, "env": env, "command": command or ["/bin/echo", "of the image"]})
    (state / name).write_text(text)
elif verb == "start":
    made = json.loads((state / rest[-1]).read_text())
    env = {"PATH": "/in/the/container:/usr/bin:/bin", **made["env"]}
    working = made["options"].get("--workdir", ["/"])[0]
    child = subprocess.Popen(made["command"], cwd=working, env=env, start_new_session=True)
    (state / f"{rest[-1]}.pid").write_text(str(child.pid))
    sys.exit(child.wait())
elif verb == "rm":
    pid = state / f"{rest[-1]}.pid"
    if pid.exists():
        try:
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass
        pid.unlink()
    (state / rest[-1]).unlink(missing_ok=True)
"""


def start(data: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> Wire:
    """A service that finds its programs on a path of its own."""
    monkeypatch.setenv("PATH", path)
    service = runner.start(data)
    monkeypatch.undo()
    return Wire(service, connect(service))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the stand-in engine."""
    directory = tmp_path_factory.mktemp("engine")
    (directory / "engine.py").write_text(ENGINE)
    # No path of an interpreter after #!: it ends at a space, and after 127 characters.
    command = shlex.join([sys.executable, str(directory / "engine.py")])
    (directory / "docker").write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    (directory / "docker").chmod(0o755)
    return directory


@pytest.fixture(scope="module")
def place(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Wire, str]]:
    """A service with the stand-in engine, and a pool for containers."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        path = f"{engine}{os.pathsep}{os.environ['PATH']}"
        wire = start(tmp_path_factory.mktemp("contained") / "data", path, monkeypatch)
    yield wire, pool_of(wire)
    wire.client.close()
    wire.service.stop()


def pool_of(wire: Wire) -> str:
    """A pool whose tasks may run in containers."""
    name = wire.name("pool")
    options = wire.pool_options(name)
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


def test_command_runs_in_a_container_with_the_nodes_directories(place: tuple[Wire, str], engine: Path) -> None:
    wire, pool = place
    job = wire.job(pool)
    task = wire.run(
        job,
        "/bin/sh -c 'pwd; echo $PATH; echo \"$KEY\"; echo made > file; exit 3'",
        container_settings=image("registry/image:1", container_run_options="--memory 64m --label 'a b'"),
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
    wire.until(lambda: not list((engine / "containers").iterdir()))
    assert task.container_settings is not None
    assert task.container_settings.image_name == "registry/image:1"


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
    wire.until(lambda: list((engine / "containers").glob("*.pid")))
    wire.client.terminate_task(job, task)
    assert failure(wire.state(job, task, "completed")).code == "TaskEnded"
    assert not list((engine / "containers").iterdir())


def test_task_is_ended_while_its_image_comes(place: tuple[Wire, str], engine: Path) -> None:
    wire, pool = place
    job = wire.job(pool)
    task = wire.add(job, "/bin/true", container_settings=image("slow"))
    wire.until(lambda: (engine / "asked").exists() and '"slow"' in (engine / "asked").read_text())
    wire.client.terminate_task(job, task)
    assert failure(wire.state(job, task, "completed")).code == "TaskEnded"


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


def _real() -> str | None:
    """The id of an image of a real engine that answers; None where there is none."""
    path = shutil.which("docker")
    if path is None:
        return None
    done = subprocess.run([path, "images", "--quiet"], capture_output=True, text=True, check=False)
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else None


def test_real_engine(wire: Wire) -> None:
    found = _real()
    if found is None:
        pytest.skip("no Docker engine answers here, or it has no image")
    task = wire.run(wire.job(pool_of(wire)), "/bin/sh -c 'echo inside'", container_settings=image(found))
    assert task.execution_info is not None
    assert task.execution_info.failure_info is None or failure(task).code in {
        "FailureExitCode",
        "ContainerInvalidImage",
    }
