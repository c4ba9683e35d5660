"""What a task brings along and what it leaves: resource files down, output files up."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_batchwrap.local.node import incoming, layout, opening, patterns, threads
from airflow_batchwrap.local.node.blob import Blob, BlobClient, TransferError, bare, child
from airflow_batchwrap.local.node.incoming import Incoming, PlaceError

log = logging.getLogger(__name__)

#: The mode of a resource file that names none (Learn: ResourceFile.fileMode).
DEFAULT_MODE = "0770"


class TaskFailed(Exception):
    """A task that did not succeed, for a reason with a code.

    :param code: one of the documented task failure codes.
    :param message: a sentence.
    :param category: ``UserError`` or ``ServerError``, as Batch writes them (seen in recorded answers).
    :param details: named values; never a SAS.
    """

    def __init__(self, code: str, message: str, *, category: str = "UserError", **details: str) -> None:
        self.failure: dict[str, Any] = {"category": category, "code": code, "message": message}
        if details:
            self.failure["details"] = [{"name": name, "value": value} for name, value in details.items()]
        super().__init__(f"{code}: {message}")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A resource file; without an address it is a directory."""

    url: str
    relative: str
    mode: str


async def fetch(blobs: BlobClient, files: list[dict[str, Any]], working: Path, root: Path, account: Path) -> None:
    """Bring a task's resource files into its working directory.

    :param blobs: what transfers.
    :param files: the resource files as the client gave them.
    :param working: the working directory.
    :param root: the node's root.
    :param account: the file with the address of the auto storage account.
    :raises TaskFailed: one of them could not be had; the others may be there.
    """
    wanted: list[_Wanted] = []
    for file in files:
        mode = file.get("fileMode", DEFAULT_MODE)
        if "httpUrl" in file:
            wanted.append(_Wanted(file["httpUrl"], file["filePath"], mode))
            continue
        given = file.get("storageContainerUrl")
        container: str = given if given else await threads.apart(_auto_storage, file, account)
        try:
            found = await blobs.list(container, file.get("blobPrefix", ""))
        except TransferError as error:
            raise _not_listed(error) from None
        wanted += await threads.apart(_of_container, container, found, file.get("filePath", ""), mode)

    async def one(file: _Wanted) -> None:
        await _fetch_one(blobs, file, working, root)

    try:
        await blobs.lanes.each(wanted, one)
    except BaseExceptionGroup as group:
        # The first file that failed speaks for all: the others were cancelled.
        failed, rest = group.split(TaskFailed)
        if failed is None or rest is not None:
            raise
        raise _first(failed) from None


def _first(group: BaseExceptionGroup[TaskFailed]) -> TaskFailed:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _of_container(container: str, blobs: Sequence[Blob], below: str, mode: str) -> list[_Wanted]:
    """What a container's blobs are on a node: files, and directories where blobs only stand for those."""
    prefix = below.rstrip("/") + "/" if below else ""
    above = {
        name[:end] for name in (blob.name for blob in blobs) for end, letter in enumerate(name) if letter == "/" and end
    }
    wanted = []
    for blob in blobs:
        # A mark without metadata, as some tools leave it: empty, and with blobs below it.
        folder = blob.is_folder or (blob.size == 0 and blob.name in above)
        url = "" if folder else child(container, blob.name)
        wanted.append(_Wanted(url, prefix + blob.name, mode))
    return wanted


def _auto_storage(file: dict[str, Any], account: Path) -> str:
    name = file["autoStorageContainerName"]
    try:
        descriptor, _ = opening.plain(account)
        with os.fdopen(descriptor) as opened:
            return child(opened.read().strip(), name)
    except (OSError, ValueError, TransferError):
        raise TaskFailed(
            "ResourceContainerNotFound",
            f"The local Batch service has no auto storage account: write the address of a blob service, with a SAS, to "
            f"{account}.",
            AutoStorageContainerName=name,
        ) from None


async def _fetch_one(blobs: BlobClient, file: _Wanted, working: Path, root: Path) -> None:
    relative = file.relative
    try:
        if file.url:
            await blobs.download(file.url, Incoming(working, root, relative, int(file.mode, 8)))
        else:
            await threads.apart(_make_directory, working, root, relative)
    except PlaceError as error:
        raise TaskFailed("ResourceFileCreateFailed", str(error), FilePath=relative) from None
    except TransferError as error:
        raise _not_downloaded(error, relative) from None
    except OSError as error:
        code = "DiskFull" if error.errno == errno.ENOSPC else "ResourceFileWriteFailed"
        reason = error.strerror or type(error).__name__
        raise TaskFailed(code, f"The resource file could not be written: {reason}.", FilePath=relative) from None


def _make_directory(working: Path, root: Path, relative: str) -> None:
    os.close(incoming.directory(working, root, incoming.parts_of(relative)))


def _not_listed(error: TransferError) -> TaskFailed:
    if error.status in (401, 403):
        return TaskFailed(
            "ResourceContainerAccessDenied",
            "Access to the container of the resource files was denied.",
            StorageContainerUrl=error.url,
        )
    if error.status == 404:
        return TaskFailed(
            "ResourceContainerNotFound",
            "The container of the resource files does not exist.",
            StorageContainerUrl=error.url,
        )
    return TaskFailed(
        "BlobDownloadTimedOut" if error.status == 408 else "BlobDownloadMiscError",
        f"The container of the resource files could not be listed: {error.reason}.",
        category="ServerError",
        StorageContainerUrl=error.url,
    )


def _not_downloaded(error: TransferError, relative: str) -> TaskFailed:
    details = {"BlobSource": error.url, "FilePath": relative}
    if error.status in (401, 403):
        return TaskFailed("BlobAccessDenied", "Access to one of the specified Azure blobs was denied.", **details)
    if error.status == 404:
        return TaskFailed("BlobNotFound", "One of the specified Azure blobs was not found.", **details)
    return TaskFailed(
        "BlobDownloadTimedOut" if error.status == 408 else "BlobDownloadMiscError",
        f"A resource file could not be downloaded: {error.reason}.",
        category="ServerError",
        **details,
    )


async def put(
    blobs: BlobClient,
    files: list[dict[str, Any]],
    *,
    succeeded: bool,
    environment: Mapping[str, str],
    working: Path,
    root: Path,
) -> None:
    """Upload a task's output files, those whose condition is met. A pattern that matches nothing is no error.

    :param blobs: what transfers.
    :param files: the output files as the client gave them.
    :param succeeded: whether the command succeeded.
    :param environment: the task's environment, for the variables in patterns.
    :param working: the task's working directory.
    :param root: the node's root, which bounds what can be uploaded.
    :raises TaskFailed: one of them could not be uploaded; all were tried.
    """
    met = {"taskcompletion", "tasksuccess" if succeeded else "taskfailure"}
    uploads = Uploads(blobs, environment, working, root)
    for file in files:
        if file["uploadOptions"]["uploadCondition"].lower() in met:
            await uploads.add(file)
    await threads.apart(uploads.write_logs)
    if uploads.failure:
        raise uploads.failure


class Uploads:
    """The uploads of a task.

    :param blobs: what transfers.
    :param environment: the task's environment, for the variables in patterns.
    :param working: the task's working directory.
    :param root: the node's root, which bounds what can be uploaded.
    """

    def __init__(self, blobs: BlobClient, environment: Mapping[str, str], working: Path, root: Path) -> None:
        self._blobs, self._environment = blobs, environment
        self._working, self._root = working, root
        self._done: list[str] = []
        #: What went wrong first, and all that did, each once.
        self.failure: TaskFailed | None = None
        self._errors: dict[str, None] = {}

    async def add(self, file: dict[str, Any]) -> None:
        """Upload what one output file means; what goes wrong is kept in `failure`.

        :param file: the output file as the client gave it.
        """
        container = file["destination"]["container"]
        pattern = patterns.expand(file["filePattern"], self._environment)
        wild = patterns.is_wild(pattern)
        headers = {item["name"]: item.get("value", "") for item in container.get("uploadHeaders", ())}
        below = container.get("path", "")

        async def one(match: patterns.Match) -> None:
            name = (f"{below.rstrip('/')}/{match.name}" if below else match.name) if wild else below or match.name
            try:
                self._done.append(await self._put(match, name, container["containerUrl"], headers))
            except TaskFailed as failed:
                self._note(failed)
            except Exception as error:
                log.exception("An upload failed for a reason of the service's own.")
                self._note(_unexpected(error, match.name))

        try:
            found = threads.in_turns(patterns.match(pattern, self._working, self._root))
            async with contextlib.aclosing(found) as batches:
                async for batch in batches:
                    await self._blobs.lanes.each(batch, one)
        except patterns.OutsideError as error:
            self._note(TaskFailed("FileUploadMiscError", str(error), FilePattern=pattern))
        except Exception as error:
            log.exception("The output files of a task could not be looked for.")
            self._note(_unexpected(error, pattern))

    def _note(self, failed: TaskFailed) -> None:
        self.failure = self.failure or failed
        self._errors[str(failed)] = None

    async def _put(self, match: patterns.Match, name: str, container: str, headers: dict[str, str]) -> str:
        shown = _shown(match.name)
        try:
            name.encode()
        except UnicodeEncodeError:
            raise TaskFailed(
                "FileUploadMiscError",
                "The name of an output file is no UTF-8, and a blob can have no such name: rename the file.",
                FilePath=shown,
            ) from None
        url = container
        try:
            url = child(container, name)
            descriptor, status = await threads.opened(opening.reading, self._root, match.path)
            try:
                await self._blobs.upload(descriptor, status.st_size, url, headers)
            finally:
                os.close(descriptor)
        except OSError as error:
            reason = error.strerror or str(error)
            raise TaskFailed(
                "FileUploadMiscError", f"The output file could not be read: {reason}.", FilePath=shown
            ) from None
        except TransferError as error:
            raise _not_uploaded(error, url, shown) from None
        return f"uploaded {shown} to {bare(url)}"

    def write_logs(self) -> None:
        """Leave the two logs of an upload in the task's directory (Learn: OutputFile), if it is still there."""
        try:
            directory = layout.open_task(self._working.parent, self._root)
        except OSError:
            return
        try:
            for name, lines in (("fileuploadout.txt", self._done), ("fileuploaderr.txt", [*self._errors])):
                with contextlib.suppress(OSError), os.fdopen(opening.writing(directory, name), "wb") as file:
                    file.writelines(f"{line}\n".encode(errors="replace") for line in lines)
        finally:
            os.close(directory)


def _shown(name: str) -> str:
    """A file's name as JSON can carry it."""
    return os.fsencode(name).decode(errors="replace")


def _unexpected(error: Exception, what: str) -> TaskFailed:
    return TaskFailed(
        "FileUploadMiscError",
        f"The local Batch service could not upload an output file: {type(error).__name__}.",
        category="ServerError",
        FilePath=_shown(what),
    )


def _not_uploaded(error: TransferError, url: str, shown: str) -> TaskFailed:
    details = {"Destination": bare(url), "FilePath": shown}
    if error.status in (401, 403):
        return TaskFailed("FileUploadAccessDenied", "Access to the container of an output file was denied.", **details)
    if error.status == 404:
        return TaskFailed("FileUploadContainerNotFound", "The container of an output file does not exist.", **details)
    return TaskFailed(
        "FileUploadTimedOut" if error.status == 408 else "FileUploadMiscError",
        f"An output file could not be uploaded: {error.reason}.",
        category="ServerError",
        **details,
    )
