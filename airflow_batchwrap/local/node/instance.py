"""One container of a task: created, started by the helper process, looked at, and removed for certain.

    instance = Instance(container)
    try:
        arguments, environment = await instance.create(command, variables)   # the image comes first
        ...                                                                  # start it by the helper process
        exit_code = await instance.ended(exit_code)
    finally:
        await instance.remove()

A container is known by the id that the engine gave it, and by two labels. What cannot be removed at once is remembered
and tried again; what an earlier service left is found by its label.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from airflow_batchwrap.local.node import container as spec
from airflow_batchwrap.local.node import opening, process, threads
from airflow_batchwrap.local.node.container import Container
from airflow_batchwrap.local.node.engine import CREATE, ENGINES, NAMES, Answer, Engine, silent
from airflow_batchwrap.local.node.transfer import TaskFailed

log = logging.getLogger(__name__)

#: How long the end of a task waits for its container to be removed, and when that is tried again, in seconds.
_PATIENCE, _AGAIN = 5.0, (1.0, 5.0, 15.0, 60.0)
#: What removes the containers of a service that was killed; one may have been in the making. The next service ends it.
_AT_KILL = """
for again in 1 2 3 4 5; do
    left=$("$0" ps --all --quiet --filter "$1") && test -n "$left" && "$0" rm --force --volumes $left
    sleep 1
done
"""
#: The states of a container that never ran.
_NOT_YET = frozenset({"created", "initialized", "configured"})
#: What engines and their runtimes say of a program that the image does not have, and of one that cannot be executed.
_NO_PROGRAM = re.compile(r"executable file .*not found|no such file or directory|command .*not found", re.IGNORECASE)
_NO_START = re.compile(r"permission denied|exec format error", re.IGNORECASE)


class Instance:
    """One container, from its creation to its end.

    :param container: what it is to be.
    """

    def __init__(self, container: Container) -> None:
        self._container = container
        self._engine: Engine | None = None
        self._id = ""
        self._creating: asyncio.Future[Answer] | None = None
        #: What clients see of it: Azure's containerInfo; None where it was never created.
        self.info: dict[str, str] | None = None

    async def create(self, command: Sequence[str], variables: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """Fetch its image and create it.

        :param command: the command in it; nothing for the image's own.
        :param variables: the command's environment.
        :return: the command line that starts it and shows its output, and the environment of that.
        :raises TaskFailed: there is no engine, the pool is not for containers, or it cannot be created.
        :raises ValueError: a variable cannot be one.
        """
        container = self._container
        if not container.supported:
            raise TaskFailed(
                "ContainerPoolNotSupported",
                "The task has containerSettings, and its pool has no containerConfiguration: give the pool one.",
            )
        options = spec.options_of(container)
        engine = self._engine = await ENGINES.find()
        process.HELPER.at_kill(["/bin/sh", "-c", _AT_KILL, engine.path, f"label={spec.LABEL}={container.nodes}"])
        await threads.apart(_note, container.nodes, engine.name)
        await engine.fetch(container.image)
        await _remove_labelled(engine, spec.TASK_LABEL, container.task)
        await threads.apart(_make, container.mounts)
        # Once it is asked for, it is waited for: what the engine has begun to create is to be found and removed.
        self._creating = asyncio.ensure_future(_create(engine, container, options, command, variables))
        answer = await asyncio.shield(self._creating)
        self._took(answer)
        if not self._id:
            await engine.must_answer()
            raise TaskFailed(
                "ContainerInvalidSettings",
                "At least one value of the task's container settings is invalid: " + answer.error,
                Message=answer.error,
            )
        self.info = {"containerId": self._id, "state": "created"}
        return [engine.path, "start", "--attach", self._id], dict(os.environ)

    def started(self) -> None:
        """Note that what starts its command was started."""
        if self.info is not None:
            self.info = {**self.info, "state": "running"}

    def _took(self, answer: Answer) -> None:
        last = answer.out.split()[-1:] if not answer.code else []
        self._id = last[0] if last and re.fullmatch(r"[0-9a-f]{12,64}", last[0]) else ""

    async def ended(self, exit_code: int) -> int:
        """See how the command ended: the engine's own exit code says the same of what never began.

        :param exit_code: that of the command line that started it.
        :return: the exit code.
        :raises TaskFailed: the command never ran, or nobody knows.
        """
        engine = self._engine
        if engine is None:
            return exit_code
        state = await engine.state(self._id)
        if state is None:
            # Also where the client had it removed at its end.
            await engine.must_answer()
            return exit_code
        status, error = str(state.get("Status", "")), str(state.get("Error") or "")
        self.info = {"containerId": self._id, "state": status, **({"error": error} if error else {})}
        if status == "running":
            # Its command line let go of it: the engine was restarted, or is about to say that it ended.
            answer = await engine.ask("wait", self._id)
            if answer.code:
                raise silent(engine.name, "it let go of the container")
            return int(answer.out.split()[-1])
        if not exit_code or status not in _NOT_YET:
            return exit_code
        error = error or await threads.apart(_tail, self._container)
        self.info["error"] = error
        raise _never_ran(error)

    async def remove(self) -> None:
        """Remove it, running or not. What takes longer goes on without anybody who waits for it."""
        if self._engine is None:
            return
        removing = asyncio.ensure_future(self._remove(self._engine))
        _REMOVING.add(removing)
        removing.add_done_callback(_REMOVING.discard)
        await asyncio.wait([removing], timeout=_PATIENCE)

    async def _remove(self, engine: Engine) -> None:
        if self._creating is not None:
            with contextlib.suppress(Exception):
                self._took(await asyncio.shield(self._creating))
        pauses = iter(_AGAIN)
        pause = 0.0
        while not await self._removed(engine):
            if not pause:
                log.warning("A container of %s is not removed yet: it is tried again.", self._container.directory)
            pause = next(pauses, pause)
            await asyncio.sleep(pause)

    async def _removed(self, engine: Engine) -> bool:
        if self._id:
            # One that is gone is no error with --force, for either engine.
            await engine.ask("rm", "--force", "--volumes", self._id)
        if not await _remove_labelled(engine, spec.TASK_LABEL, self._container.task):
            return False
        if os.getuid() and self._id and self._container.mounts and spec.as_other_user(self._container):
            await _give_back(engine, self._container)
        return True


#: Removals that are under way, so that they are not forgotten.
_REMOVING: set[asyncio.Future[None]] = set()


async def _create(
    engine: Engine, container: Container, options: list[str], command: Sequence[str], variables: Mapping[str, str]
) -> Answer:
    lines, others = spec.as_lines(spec.inside(container, variables))
    file = await threads.apart(spec.write_lines, lines)
    try:
        arguments = ["create", "--pull=never", *spec.arguments_of(container, engine.name), "--env-file", file]
        arguments += [each for name in others for each in ("--env", name)]
        # The client's options win, but for the labels.
        arguments += [*options, *spec.labels_of(container), "--", container.image, *command]
        return await engine.ask(*arguments, within=CREATE, environment=others)
    finally:
        await threads.apart(spec.remove_lines, file)


def _make(mounts: Sequence[tuple[str, bool]]) -> None:
    for path, _ in mounts:
        Path(path).mkdir(parents=True, exist_ok=True)


def _never_ran(error: str) -> TaskFailed:
    if _NO_PROGRAM.search(error):
        return TaskFailed("CommandProgramNotFound", "The specified command program is not found", Message=error)
    if _NO_START.search(error):
        return TaskFailed("CommandLaunchFailed", f"The command could not be started: {error}", Message=error)
    message = "At least one value of the task's container settings is invalid: " + error
    return TaskFailed("ContainerInvalidSettings", message, Message=error)


def _tail(container: Container) -> str:
    """The last of what the engine's command line has said where its output was to be."""
    with contextlib.suppress(OSError):
        relative = container.directory.relative_to(container.root) / "stderr.txt"
        descriptor, status = opening.reading(container.root, str(relative))
        with os.fdopen(descriptor, "rb") as file:
            file.seek(max(0, status.st_size - 500))
            return file.read().decode(errors="replace").strip()
    return "the engine could not start it"


def _programs() -> list[str]:
    return [path for path in ("/usr", "/bin", "/lib", "/lib64") if Path(path).exists()]


async def _give_back(engine: Engine, container: Container) -> None:
    """Give the files that a container wrote as another user to the service's own, which is to remove them.

    By the programs of this machine, mounted into another container of the same image: an image need not have any.
    """
    programs = await threads.apart(_programs)
    paths = [path for path, only in container.mounts if not only]
    mounts = [*(f"{path}:{path}:ro" for path in programs), *(f"{path}:{path}" for path in paths)]
    arguments = ["run", "--rm", "--pull=never", "--network", "none", "--user", "0:0"]
    arguments += ["--label", f"{spec.LABEL}={container.nodes}", "--entrypoint", "/usr/bin/find"]
    arguments += [each for mount in mounts for each in ("--volume", mount)]
    user = spec.user_of(engine.name)
    change = ["-exec", "/usr/bin/chown", "--no-dereference", user, "{}", "+"]
    answer = await engine.ask(
        *arguments, "--", container.image, *paths, "-xdev", "!", "-user", user.partition(":")[0], *change, within=CREATE
    )
    if answer.code:
        log.warning("Files of another user stay below %s: %s", container.directory, answer.error)


async def _remove_labelled(engine: Engine, label: str, value: str) -> bool:
    """Remove the containers with a label.

    :return: whether there are none any more.
    """
    for _ in range(2):
        answer = await engine.ask("ps", "--all", "--quiet", "--filter", f"label={label}={value}")
        if answer.code:
            return False
        if not (found := answer.out.split()):
            return True
        await engine.ask("rm", "--force", "--volumes", *found)
    return False


def _notes(nodes: Path) -> Path:
    return nodes.parent / "containers"


def _note(nodes: Path, engine: str) -> None:
    """Keep which engine has containers of a service, so that a later one asks it."""
    (_notes(nodes) / engine).parent.mkdir(exist_ok=True)
    (_notes(nodes) / engine).touch()


async def remove_all(nodes: Path) -> None:
    """Remove the containers that an earlier service left. A silent engine is asked again, for as long as it takes.

    :param nodes: the directory of all nodes.
    """
    sweeps = [asyncio.ensure_future(_sweep(nodes, name)) for name in NAMES if (_notes(nodes) / name).exists()]
    _REMOVING.update(sweeps)
    for sweep in sweeps:
        sweep.add_done_callback(_REMOVING.discard)
    if sweeps:
        await asyncio.wait(sweeps, timeout=_PATIENCE)


async def _sweep(nodes: Path, name: str) -> None:
    pauses = iter(_AGAIN)
    pause = 0.0
    while (engine := ENGINES.at(name)) is not None:
        if await _remove_labelled(engine, spec.LABEL, str(nodes)):
            return
        if not pause:
            log.warning(
                "%s, which may have containers of an earlier service, does not answer: it is asked again.", name
            )
        pause = next(pauses, pause)
        await asyncio.sleep(pause)
