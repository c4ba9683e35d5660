"""What a task's container is to be: the options of an engine's ``create``, and the variables of its command."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_batchwrap.local.node import environment
from airflow_batchwrap.local.node.transfer import TaskFailed

#: What labels containers: whose they are, and of which task.
LABEL, TASK_LABEL = "airflow-batchwrap", "airflow-batchwrap.task"
#: Engines read variables from a file line by line, and lines of 64 KiB at most (Go's bufio.Scanner).
_LINE = 60_000
_BREAK = re.compile(r"[\r\n]")
#: Variables that mean something to an engine's own command line, or to the libraries that it is made of.
_STEERING = re.compile(
    r"DOCKER|CONTAINER|PODMAN|BUILD|COMPOSE|XDG_|STORAGE_|REGISTRY|LD_|GO|SSL_|TMP|HOME$|PATH$|USER$|LANG|LC_|DBUS_"
    r"|NOTIFY_|LISTEN_|.*_PROXY$",
    re.IGNORECASE,
)


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
    def task(self) -> str:
        """What labels it, the same for every run of a task on a node."""
        return hashlib.sha256(str(self.directory).encode()).hexdigest()[:24]

    @property
    def nodes(self) -> Path:
        """The directory of all nodes."""
        return self.root.parent


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


def options_of(container: Container) -> list[str]:
    """The client's options.

    :param container: the container.
    :return: the options.
    :raises TaskFailed: they cannot be read.
    """
    try:
        return shlex.split(container.options)
    except ValueError as error:
        raise TaskFailed("ContainerInvalidSettings", f"containerRunOptions cannot be read: {error}.") from None


def as_other_user(container: Container) -> bool:
    """Whether what it writes may be another user's than the service's."""
    return any(re.match(r"--user|-u|--privileged", option) for option in options_of(container))


def arguments_of(container: Container, engine: str) -> list[str]:
    """What the service asks an engine to create.

    :param container: the container.
    :param engine: ``docker`` or ``podman``.
    :return: the options, without the client's.
    """
    arguments = [*labels_of(container), "--user", user_of(engine)]
    if engine == "podman":
        # Else the proxies of the service's own environment are the container's.
        arguments.append("--http-proxy=false")
    if container.working:
        arguments += ["--workdir", f"{container.directory}/wd"]
    for path, read_only in container.mounts:
        arguments += ["--volume", f"{path}:{path}{':ro' if read_only else ''}"]
    return arguments


def labels_of(container: Container) -> list[str]:
    """The options that label a container."""
    return ["--label", f"{LABEL}={container.nodes}", "--label", f"{TASK_LABEL}={container.task}"]


def user_of(engine: str) -> str:
    """As whom a container writes, so that the service can remove what it leaves: as the service's own user.

    :param engine: ``docker`` or ``podman``.
    :return: user and group.
    """
    # In a podman of an ordinary user's that user is root, and nobody else is known.
    return "0:0" if engine == "podman" else f"{os.getuid()}:{os.getgid()}"


def inside(container: Container, variables: Mapping[str, str]) -> dict[str, str]:
    """The variables in a container: all but those of this machine that nobody has asked for."""
    own = dict(environment.base())
    if not container.working:
        own["HOME"] = str(container.directory / "wd")
    return {name: value for name, value in variables.items() if own.get(name) != value}


def as_lines(variables: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Variables as lines of a file, and those that cannot be lines.

    Those are handed on by the environment of the engine's command line, and may therefore mean nothing to it: a value
    on the command line itself would be seen by every user of the machine.

    :param variables: the variables.
    :return: lines, and what is left.
    :raises ValueError: one cannot be a variable.
    :raises TaskFailed: one cannot be handed on.
    """
    lines, others = [], {}
    for name, value in variables.items():
        if "\0" in name + value or not name:
            raise ValueError(f"the environment variable {name!r} is none")
        if not _BREAK.search(value) and len(value.encode()) < _LINE and name[0] != "#":
            lines.append(f"{name}={value}")
        elif _STEERING.match(name):
            raise TaskFailed(
                "ContainerInvalidSettings",
                f"The environment variable {name} has several lines or over 60,000 bytes, and means something to the "
                "container engine itself: give it a shorter value, or another name.",
            )
        else:
            others[name] = value
    return lines, others


def write_lines(lines: list[str]) -> str:
    """Write variables to a file for an engine.

    :param lines: the lines.
    :return: its path.
    """
    # Readable by its owner alone.
    descriptor, path = tempfile.mkstemp(prefix=f"{LABEL}-")
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)
    return path


def remove_lines(path: str) -> None:
    """Remove that file."""
    Path(path).unlink(missing_ok=True)
