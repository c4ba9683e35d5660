"""The container engine of this machine: its command line, asked by child processes that the loop waits for.

    engine = await ENGINES.find()
    answer = await engine.ask("inspect", name)
    if answer.code: ...

Nothing here takes a thread, and each question can be given up: its process is killed then. The first engine that
answers is the service's own for as long as that lives: one that is silent later is not swapped for another, which would
know nothing of the containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_batchwrap.local.node.transfer import TaskFailed

#: The engines that are tried, in this order: their command lines are alike in what is used here.
NAMES = ("docker", "podman")
#: How long an engine may take to answer, to create a container, and to fetch an image, in seconds.
ANSWER, CREATE, PULL = 20.0, 120.0, 3600.0
#: How much is read of what an engine says, in bytes: the last of it.
_SAID = 64 * 1024


@dataclass(frozen=True)
class Answer:
    """What an engine answered.

    :param code: the exit code; -1 where there was none in time.
    :param out: its standard output.
    :param error: why it failed, in its own words, the last 500 characters of them.
    """

    code: int
    out: str
    error: str

    @property
    def silent(self) -> bool:
        """Whether there was no answer in time."""
        return self.code < 0


class Engine:
    """A container engine.

    :param path: its program.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._pulls: dict[str, _Pull] = {}

    @property
    def name(self) -> str:
        """``docker`` or ``podman``."""
        return Path(self.path).name

    async def ask(self, *arguments: str, within: float = ANSWER, environment: dict[str, str] | None = None) -> Answer:
        """Run a command of the engine, in the service's own environment.

        :param arguments: the command.
        :param within: how long it may take, in seconds.
        :param environment: variables beside those of the service.
        :return: its answer. Where nobody waits for it any more, it is killed.
        """
        try:
            child = await asyncio.create_subprocess_exec(
                self.path,
                *arguments,
                env={**os.environ, **(environment or {})},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            return Answer(127, "", str(error.strerror))
        try:
            async with asyncio.timeout(within):
                out, error_text = await asyncio.gather(_last(child.stdout), _last(child.stderr))
                code = await child.wait()
        except TimeoutError:
            return Answer(-1, "", f"no answer within {within:g} s")
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)
        said = error_text.strip() or out.strip()
        return Answer(code, out, (said[-500:] or f"exit code {code}") if code else "")

    async def answers(self) -> Answer:
        """Ask whether the engine is there at all."""
        return await self.ask("version")

    async def fetch(self, image: str) -> None:
        """Fetch an image that is not here yet, once for all who ask for it at the same time.

        :param image: its name. Where nobody asks any more, the fetching is ended.
        :raises TaskFailed: it cannot be had.
        """
        if not (await self.ask("image", "inspect", "--format", "{{.Id}}", "--", image)).code:
            return
        pull = self._pulls.get(image)
        if pull is None:
            pull = self._pulls[image] = _Pull(asyncio.ensure_future(self.ask("pull", "--", image, within=PULL)))
        pull.waiting += 1
        try:
            answer = await asyncio.shield(pull.asked)
        finally:
            pull.waiting -= 1
            if not pull.waiting:
                pull.asked.cancel()
                if self._pulls.get(image) is pull:
                    del self._pulls[image]
        if answer.code:
            await self.must_answer()
            raise TaskFailed(
                "ContainerInvalidImage",
                f"The image {image!r} cannot be had: {answer.error}",
                ImageName=image,
                Message=answer.error,
            )

    async def must_answer(self) -> None:
        """Tell what failed for the engine's sake from what failed for the task's.

        :raises TaskFailed: the engine does not answer; the task may be tried again.
        """
        answer = await self.answers()
        if answer.code:
            raise silent(self.name, answer.error)

    async def state(self, container: str) -> dict[str, Any] | None:
        """The state of a container.

        :param container: its id.
        :return: the engine's ``State``; None where it has no such container, or does not answer.
        """
        answer = await self.ask("inspect", "--type", "container", "--format", "{{json .State}}", container)
        try:
            found = None if answer.code else json.loads(answer.out)
        except ValueError:
            found = None
        return found if isinstance(found, dict) else None


@dataclass
class _Pull:
    """An image on its way, and for how many."""

    asked: asyncio.Future[Answer]
    waiting: int = 0


class Engines:
    """Which engine this service uses."""

    def __init__(self) -> None:
        self._known: dict[str, Engine] = {}
        self._chosen: Engine | None = None

    async def find(self) -> Engine:
        """Find the service's engine: the first one that answers, and no other after that.

        :return: the engine.
        :raises TaskFailed: there is none, or it is silent.
        """
        if self._chosen is not None:
            return self._chosen
        reasons = []
        for name in NAMES:
            engine = self.at(name)
            if engine is None:
                reasons.append(f"{name} is not on the PATH")
                continue
            answer = await engine.answers()
            if answer.silent:
                raise silent(name, answer.error)
            if not answer.code:
                self._chosen = self._chosen or engine
                return self._chosen
            reasons.append(f"{name} does not answer ({answer.error.splitlines()[-1]})")
        raise TaskFailed(
            "ContainerPoolNotSupported",
            f"The task needs a container engine on this machine, and there is none: {'; '.join(reasons)}. "
            "Install and start Docker or Podman, or remove the task's containerSettings.",
        )

    def at(self, name: str) -> Engine | None:
        """An engine by its name.

        :param name: its name.
        :return: the engine; None where it is not on the PATH.
        """
        path = shutil.which(name)
        if path is None:
            return None
        return self._known.setdefault(path, Engine(path))


#: The engine of this process, which is one service.
ENGINES = Engines()


def silent(name: str, error: str) -> TaskFailed:
    """The failure of a task whose engine does not answer."""
    return TaskFailed(
        "ContainerMiscError",
        f"The container engine {name} does not answer: {error}. See whether it runs; the task may be tried again.",
        category="ServerError",
        Message=error,
    )


async def _last(stream: asyncio.StreamReader | None) -> str:
    """Read all of a stream, and keep the last of it."""
    kept = b""
    while stream is not None and (chunk := await stream.read(_SAID)):
        kept = (kept + chunk)[-_SAID:]
    return kept.decode(errors="replace")
