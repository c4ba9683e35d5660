"""Commands in containers, by the command line of the container engine that this machine has."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_batchwrap.local.node.transfer import TaskFailed

#: The engines that are tried, in this order: their command lines are alike in what is used here.
ENGINES = ("docker", "podman")
#: How long an engine may take to answer, and to fetch an image and create a container, in seconds.
ANSWER, CREATE = 20.0, 900.0

#: What of the service's environment an engine's command line may need.
_OF_THE_ENGINE = (
    "HOME",
    "PATH",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "DOCKER_HOST",
    "DOCKER_CONFIG",
    "CONTAINER_HOST",
)
#: Variables that are the machine's own, not the container's.
_OF_THE_MACHINE = frozenset({"PATH", "LANG"})
_LABEL = "airflow-batchwrap"


@dataclass(frozen=True)
class Container:
    """The container of one command.

    :param image: its image.
    :param directory: the task's directory, by which the container is known.
    :param root: the node's root.
    :param working: work in the task's working directory, not in the image's.
    :param options: further options of the engine's ``create``, as the client gave them.
    :param mounts: directories of the node it sees, and whether they are read-only.
    :param supported: whether the pool is for containers.
    """

    image: str
    directory: Path
    root: Path
    working: bool = True
    options: str = ""
    mounts: tuple[tuple[str, bool], ...] = ()
    supported: bool = True

    @property
    def name(self) -> str:
        """The container's name, the same for every run of a task on a node."""
        return f"{_LABEL}-{hashlib.sha256(str(self.directory).encode()).hexdigest()[:24]}"


def of_task(
    settings: dict[str, Any] | None, directory: Path, root: Path, preparation: str | None, *, supported: bool
) -> Container | None:
    """The container a task asks for.

    :param settings: its containerSettings; None where it has none.
    :param directory: its directory.
    :param root: the node's root.
    :param preparation: the directory of its job's preparation task, if there is one.
    :param supported: whether the pool is for containers.
    :return: the container; None where it asks for none.
    """
    if settings is None:
        return None
    places = {
        "Shared": str(root / "shared"),
        "Startup": str(root / "startup"),
        "VfsMounts": str(root / "fsmounts"),
        "Applications": str(root / "applications"),
        "Task": str(directory),
        "JobPrep": preparation or str(directory),
    }
    entries = settings.get("containerHostBatchBindMounts")
    mounts = [(str(root), False)] if entries is None else []
    mounts += [
        (places[entry["source"]], entry.get("isReadOnly", False)) for entry in entries or () if "source" in entry
    ]
    return Container(
        settings["imageName"],
        directory,
        root,
        settings.get("workingDirectory") != "containerImageDefault",
        settings.get("containerRunOptions", ""),
        tuple(mounts),
        supported,
    )


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    own = {name: os.environ[name] for name in _OF_THE_ENGINE if name in os.environ}
    return {**{name: value for name, value in variables.items() if name not in _OF_THE_MACHINE}, **own}


def _ask(arguments: Sequence[str], environment: Mapping[str, str], timeout: float) -> tuple[int, str]:
    try:
        done = subprocess.run(
            arguments,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {timeout:g} s"
    except OSError as error:
        return 1, str(error.strerror)
    return done.returncode, (done.stderr or done.stdout).decode(errors="replace").strip()


def find_engine() -> str:
    """Find a container engine that answers.

    :return: its path.
    :raises TaskFailed: there is none.
    """
    reasons = []
    for engine in ENGINES:
        path = shutil.which(engine)
        if path is None:
            reasons.append(f"{engine} is not on the PATH")
            continue
        code, said = _ask([path, "version"], _environment({}), ANSWER)
        if code == 0:
            return path
        reasons.append(f"{engine} does not answer ({said.splitlines()[-1] if said else f'exit code {code}'})")
    raise TaskFailed(
        "ContainerPoolNotSupported",
        f"The task needs a container engine on this machine, and there is none: {'; '.join(reasons)}. "
        "Install and start Docker or Podman, or remove the task's containerSettings.",
    )


async def create(
    container: Container, command: Sequence[str], variables: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Create a task's container.

    :param container: the container.
    :param command: the command in it; nothing for the image's own.
    :param variables: the command's environment.
    :return: the command line that starts it and shows its output, and the environment of that.
    :raises TaskFailed: there is no engine, the pool is not for containers, or the container cannot be created.
    """
    if not container.supported:
        raise TaskFailed(
            "ContainerPoolNotSupported",
            "The task has containerSettings, and its pool has no containerConfiguration: give the pool one.",
        )
    return await asyncio.to_thread(_create, container, command, variables)


def _create(
    container: Container, command: Sequence[str], variables: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    engine = find_engine()
    environment = _environment(variables)
    _ask([engine, "rm", "--force", container.name], environment, ANSWER)
    arguments = [engine, "create", "--name", container.name, "--label", f"{_LABEL}={container.root.parent}"]
    # As the user of the service, so that what the container leaves in the node's directories can be removed.
    arguments += ["--user", f"{os.getuid()}:{os.getgid()}"]
    if container.working:
        arguments += ["--workdir", f"{container.directory}/wd"]
    for path, read_only in container.mounts:
        Path(path).mkdir(parents=True, exist_ok=True)
        arguments += ["--volume", f"{path}:{path}{':ro' if read_only else ''}"]
    # Names alone: the values come from the environment, where no list of processes shows them.
    inside = [name for name in variables if name not in _OF_THE_MACHINE and (name != "HOME" or container.working)]
    for name in inside:
        arguments += ["--env", name if name not in _OF_THE_ENGINE else f"{name}={variables[name]}"]
    try:
        arguments += shlex.split(container.options)
    except ValueError as error:
        raise TaskFailed("ContainerInvalidSettings", f"containerRunOptions cannot be read: {error}.") from None
    code, said = _ask([*arguments, container.image, *command], environment, CREATE)
    if code:
        reason = said[-500:] or f"exit code {code}"
        raise TaskFailed(
            "ContainerInvalidImage",
            f"The container of the image {container.image!r} could not be created: {reason}",
            ImageName=container.image,
        )
    return [engine, "start", "--attach", container.name], environment


async def remove(container: Container) -> None:
    """Remove a task's container, running or not; one that is gone is no error.

    :param container: the container.
    """

    def force() -> None:
        for engine in filter(None, map(shutil.which, ENGINES)):
            if not _ask([engine, "rm", "--force", container.name], _environment({}), ANSWER)[0]:
                return

    await asyncio.to_thread(force)


def remove_all(nodes: Path) -> None:
    """Remove the containers that an earlier service left.

    :param nodes: the directory of all nodes.
    """
    for engine in filter(None, map(shutil.which, ENGINES)):
        environment = _environment({})
        code, said = _ask(
            [engine, "ps", "--all", "--quiet", "--filter", f"label={_LABEL}={nodes}"], environment, ANSWER
        )
        if code == 0 and said:
            _ask([engine, "rm", "--force", *said.split()], environment, ANSWER)
