"""One run of a command on a node, from its directories to its output files: the same for every kind of task."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_batchwrap.local.model.states import Ending
from airflow_batchwrap.local.node import container, environment, instance, layout, opening, process, threads, transfer
from airflow_batchwrap.local.node.blob import BlobClient
from airflow_batchwrap.local.node.transfer import TaskFailed

log = logging.getLogger(__name__)

#: Longer wall clocks than this are no limit, in seconds (about ten years).
NO_LIMIT = 10 * 365 * 86_400.0
#: With these nobody waits for files any more.
_URGENT = (Ending.DISCARD, Ending.REQUEUE, Ending.LOST)
#: From so many characters on, a command line is split apart from the loop: with quotes in it, 100,000 take 30 ms.
_LONG_LINE = 16 * 1024


@dataclass(frozen=True)
class Work:
    """What is to be run.

    :param command: the command line.
    :param directory: the task's directory.
    :param root: the node's root.
    :param variables: all of the command's environment.
    :param resource_files: what is brought first.
    :param output_files: what is uploaded after.
    :param wall_clock: how long it may take, downloads included, in seconds.
    :param keep: leave what an earlier run left in the directory.
    :param bring: brings what else it needs, before the resource files; may raise `TaskFailed`.
    :param beside: the resource files go beside the working directory, not into it.
    :param how: as of `process.Helper.start`.
    :param container: the container the command runs in; None for none.
    """

    command: str
    directory: Path
    root: Path
    variables: dict[str, str]
    resource_files: list[dict[str, Any]] = field(default_factory=list)
    output_files: list[dict[str, Any]] = field(default_factory=list)
    wall_clock: float = NO_LIMIT
    keep: bool = False
    bring: Callable[[], Awaitable[None]] | None = None
    beside: bool = False
    how: str = ""
    container: container.Container | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    :param exit_code: the command's exit code; None where it never ran.
    :param failure: Batch's failureInfo; None where it succeeded.
    :param container: Batch's containerInfo; None where it had no container.
    """

    exit_code: int | None
    failure: dict[str, Any] | None
    container: dict[str, str] | None = None

    @property
    def result(self) -> str:
        """``success`` or ``failure``."""
        return "failure" if self.failure else "success"

    @property
    def retriable(self) -> bool:
        """Whether Batch's own retries apply: to a command that ran and exited non-zero, to nothing else."""
        return self.failure is not None and self.failure["code"] == "FailureExitCode"


class Run:
    """A run that can be ended from outside.

    :param work: what is to be run.
    :param blobs: what transfers.
    :param started: called with the process once the command runs.
    """

    def __init__(
        self, work: Work, blobs: BlobClient, started: Callable[[process.Child], None] = lambda _: None
    ) -> None:
        self.work = work
        #: Why it was ended from outside; None where it was not.
        self.reason: Ending | None = None
        self.stopped = asyncio.Event()
        self.over = asyncio.Event()
        self._blobs = blobs
        self._started = started
        self._child: process.Child | None = None
        self._instance: instance.Instance | None = None
        self._transfer: asyncio.Task[None] | None = None
        self._exit_code: int | None = None

    @property
    def container(self) -> dict[str, str] | None:
        """Batch's containerInfo as it is now; None where there is no container, or not yet."""
        return self._instance.info if self._instance else None

    def stop(self, reason: Ending) -> None:
        """End the run: the command with its whole tree, or the transfer that is under way.

        :param reason: why; only the first one counts, except that those win over the others that leave the task nothing
            to end with.
        """
        if self.reason is None or (reason in _URGENT and (self.reason, reason) != (Ending.REQUEUE, Ending.LOST)):
            self.reason = reason
        self.stopped.set()
        if self._child is not None:
            self._child.kill(self.work.directory)
        if self._transfer is not None and (self._child is None or reason in _URGENT):
            self._transfer.cancel()

    async def execute(self) -> Outcome:
        """Run it.

        :return: how it ended. A run that was ended for ``requeue`` or ``discard`` has no meaningful outcome.
        """
        work = self.work
        timer = None
        if work.wall_clock < NO_LIMIT:
            timer = asyncio.get_running_loop().call_later(work.wall_clock, self.stop, Ending.WALL_CLOCK)
        try:
            return await self._execute(work, timer)
        except Exception:
            log.exception("A run failed for a reason of the service's own.")
            fault = TaskFailed("Unknown", "The local Batch service failed.", category="ServerError")
            # A command that has ended has ended, whatever went wrong after that.
            return Outcome(self._exit_code, fault.failure)
        finally:
            if timer:
                timer.cancel()
            self.over.set()

    async def _execute(self, work: Work, timer: asyncio.TimerHandle | None) -> Outcome:
        failure: dict[str, Any] | None = None
        try:
            if work.bring is not None:
                await self._while_transferring(work.bring())
            # What brings no files along leaves its directories to the helper process, which starts its command.
            make = not (work.resource_files or work.keep)
            if not make:
                await self._while_transferring(self._fetch(work))
            if self.reason is None:
                self._exit_code = await self._command(work, make)
            failure = self._failure(self._exit_code)
        except TaskFailed as error:
            failure = self._failure(None) if self.reason else error.failure
        except OSError as error:
            code = "DiskFull" if error.errno == errno.ENOSPC else "CommandLaunchFailed"
            failure = TaskFailed(code, f"The task's directory could not be made: {error.strerror}.").failure
        if timer:
            timer.cancel()
        if work.output_files and self.reason not in _URGENT:
            try:
                await self._while_transferring(self._put(work, succeeded=failure is None))
            except TaskFailed as error:
                failure = failure or error.failure
            except Exception:
                log.exception("The uploads of a task failed for a reason of the service's own.")
                fault = "The local Batch service could not upload the output files."
                failure = failure or TaskFailed("FileUploadMiscError", fault, category="ServerError").failure
        return Outcome(self._exit_code, failure, self.container)

    async def _fetch(self, work: Work) -> None:
        working = await layout.make_task(work.directory, work.root, keep=work.keep)
        target = work.directory if work.beside else working
        await transfer.fetch(self._blobs, work.resource_files, target, work.root, layout.auto_storage(work.root))

    async def _put(self, work: Work, *, succeeded: bool) -> None:
        await transfer.put(
            self._blobs,
            work.output_files,
            succeeded=succeeded,
            environment=work.variables,
            working=work.directory / "wd",
            root=work.root,
        )

    async def _while_transferring(self, transferring: Any) -> None:
        self._transfer = asyncio.ensure_future(transferring)
        try:
            await self._transfer
        except asyncio.CancelledError:
            if self.reason is None or not self._transfer.cancelled():
                self._transfer.cancel()
                raise
        finally:
            self._transfer = None

    async def _command(self, work: Work, make: bool) -> int | None:
        if work.container is None:
            return await self._watched(work, make)
        self._instance = made = instance.Instance(work.container)
        try:
            exit_code = await self._watched(work, make)
            return exit_code if exit_code is None or self.reason else await made.ended(exit_code)
        finally:
            await made.remove()

    async def _watched(self, work: Work, make: bool) -> int | None:
        try:
            self._child = await self._start(work, make)
            if self._instance is not None:
                self._instance.started()
            self._started(self._child)
            if self.reason is not None:
                self._child.kill(work.directory)
            return await self._child.wait()
        except process.HelperLost:
            # As when a node is lost: what is not known to have ended is run again.
            self.stop(Ending.LOST)
            return None

    async def _start(self, work: Work, make: bool) -> process.Child:
        try:
            arguments, variables = await self._command_line(work)
            try:
                return await process.HELPER.start(arguments, variables, work.directory, make, work.how)
            except process.DirectoryFailed as error:
                if error.errno not in (errno.EEXIST, errno.EACCES, errno.ENOTDIR, errno.ELOOP):
                    raise
                # Left by an earlier run on this node, or locked or replaced by another task.
                await layout.make_task(work.directory, work.root)
                return await process.HELPER.start(arguments, variables, work.directory, False, work.how)
        except process.ProgramNotFound:
            raise TaskFailed(
                "CommandProgramNotFound", "The specified command program is not found", CommandProgram=arguments[0]
            ) from None
        except (process.LaunchFailed, ValueError) as error:
            if make:
                await layout.make_task(work.directory, work.root)
            await threads.apart(_leave_no_output, work)
            raise TaskFailed("CommandLaunchFailed", f"The command could not be started: {error}.") from None

    async def _command_line(self, work: Work) -> tuple[list[str], dict[str, str]]:
        made = self._instance
        if made is None:
            return await _split(work.command), work.variables
        inside = await _split(work.command) if work.command.strip() else []
        # An image may take its time to come, and nobody waits for that once the run is to end.
        creating = asyncio.ensure_future(made.create(inside, work.variables))
        stopped = asyncio.ensure_future(self.stopped.wait())
        await asyncio.wait([creating, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if creating.done():
            return creating.result()
        creating.cancel()
        raise TaskFailed("TaskEnded", "The task was ended while its container was made.")

    def ended_failure(self) -> dict[str, Any] | None:
        """The failureInfo of a run that was ended before its command ran.

        :return: the failure; None where nobody ended it.
        """
        return self._failure(None)

    def _failure(self, exit_code: int | None) -> dict[str, Any] | None:
        if self.reason is Ending.WALL_CLOCK:
            return TaskFailed("TaskEnded", "The task was ended: its maximum wall clock time was exceeded.").failure
        if self.reason is not None:
            return TaskFailed("TaskEnded", "Task Was Ended by User Request").failure
        if exit_code:
            message = "The task exited with an exit code representing a failure"
            return TaskFailed(
                "FailureExitCode", message, Message=message, AdditionalErrorCode="FailureExitCode"
            ).failure
        return None


def _leave_no_output(work: Work) -> None:
    """Leave empty outputs of a command that never ran, as Azure does."""
    directory = layout.open_task(work.directory, work.root)
    try:
        for name in ("stdout.txt", "stderr.txt"):
            os.close(opening.writing(directory, name, append=True))
    finally:
        os.close(directory)


async def _split(command: str) -> list[str]:
    return environment.split(command) if len(command) < _LONG_LINE else await threads.apart(environment.split, command)
