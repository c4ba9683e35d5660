"""What a task brings along and what it leaves: resource files down, output files up."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_batchwrap.local.node import patterns
from airflow_batchwrap.local.node.blob import BlobClient, TransferError, bare, child
from airflow_batchwrap.local.node.layout import OutsideError, inside

#: The mode of a resource file that names none (Learn: ResourceFile.fileMode).
DEFAULT_MODE = "0770"
#: Files of one task that are transferred at the same time.
AT_ONCE = 8


class TaskFailed(Exception):
    """A task that did not succeed, for a reason with a code.

    :param code: one of the documented task failure codes.
    :param message: a sentence.
    :param category: ``usererror`` or ``servererror``.
    :param details: named values; never a SAS.
    """

    def __init__(self, code: str, message: str, *, category: str = "usererror", **details: str) -> None:
        self.failure: dict[str, Any] = {"category": category, "code": code, "message": message}
        if details:
            self.failure["details"] = [{"name": name, "value": value} for name, value in details.items()]
        super().__init__(f"{code}: {message}")


async def fetch(blobs: BlobClient, files: list[dict[str, Any]], working: Path, account: Path) -> None:
    """Bring a task's resource files into its working directory.

    :param blobs: what transfers.
    :param files: the resource files as the client gave them.
    :param working: the working directory.
    :param account: the file with the address of the auto storage account.
    :raises TaskFailed: one of them could not be had; the others may be there.
    """
    wanted: list[tuple[str, str, str]] = []
    for file in files:
        mode = file.get("fileMode", DEFAULT_MODE)
        if "httpUrl" in file:
            wanted.append((file["httpUrl"], file["filePath"], mode))
            continue
        container, below = file.get("storageContainerUrl") or _auto_storage(file, account), file.get("filePath", "")
        try:
            names = await blobs.list(container, file.get("blobPrefix", ""))
        except TransferError as error:
            raise _not_listed(error) from None
        prefix = below.rstrip("/") + "/" if below else ""
        wanted += [(child(container, name), prefix + name, mode) for name in names]
    gate = asyncio.Semaphore(AT_ONCE)
    async with asyncio.TaskGroup() as group:
        for url, relative, mode in wanted:
            group.create_task(_fetch_one(blobs, gate, url, relative, int(mode, 8), working))


def _auto_storage(file: dict[str, Any], account: Path) -> str:
    name = file["autoStorageContainerName"]
    try:
        return child(account.read_text().strip(), name)
    except OSError:
        raise TaskFailed(
            "ResourceContainerNotFound",
            f"The local Batch service has no auto storage account: write the address of a blob service, with a SAS, to "
            f"{account}.",
            AutoStorageContainerName=name,
        ) from None


async def _fetch_one(
    blobs: BlobClient, gate: asyncio.Semaphore, url: str, relative: str, mode: int, working: Path
) -> None:
    async with gate:
        try:
            target = inside(working, relative)
            target.parent.mkdir(parents=True, exist_ok=True)
            await blobs.download(url, target)
            target.chmod(mode)
        except OutsideError as error:
            raise TaskFailed("ResourceFileCreateFailed", str(error), FilePath=relative) from None
        except TransferError as error:
            raise _not_downloaded(error, relative) from None
        except OSError as error:
            code = "DiskFull" if error.errno == errno.ENOSPC else "ResourceFileWriteFailed"
            reason = error.strerror or type(error).__name__
            raise TaskFailed(code, f"The resource file could not be written: {reason}.", FilePath=relative) from None


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
        category="servererror",
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
        category="servererror",
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
    gate = asyncio.Semaphore(AT_ONCE)
    jobs: list[asyncio.Task[str]] = []
    failed: TaskFailed | None = None
    for file in files:
        if file["uploadOptions"]["uploadCondition"] not in met:
            continue
        container = file["destination"]["container"]
        pattern = patterns.expand(file["filePattern"], environment)
        headers = {item["name"]: item.get("value", "") for item in container.get("uploadHeaders", ())}
        below = container.get("path", "")
        try:
            for path, name in patterns.match(pattern, working, root):
                if patterns.is_wild(pattern):
                    blob = f"{below.rstrip('/')}/{name}" if below else name
                else:
                    blob = below or name
                url = child(container["containerUrl"], blob)
                jobs.append(asyncio.create_task(_put_one(blobs, gate, path, url, headers)))
        except OutsideError as error:
            failed = TaskFailed("FileUploadMiscError", str(error), FilePattern=pattern)
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, TaskFailed):
            failed = failed or outcome
        elif isinstance(outcome, BaseException):
            raise outcome
    # Learn: OutputFile. Every upload leaves these two logs in the task's directory.
    done = [outcome for outcome in outcomes if isinstance(outcome, str)]
    errors = [str(outcome) for outcome in [*outcomes, failed] if isinstance(outcome, TaskFailed)]
    (working.parent / "fileuploadout.txt").write_text("".join(f"{line}\n" for line in done))
    (working.parent / "fileuploaderr.txt").write_text("".join(f"{line}\n" for line in dict.fromkeys(errors)))
    if failed:
        raise failed


async def _put_one(blobs: BlobClient, gate: asyncio.Semaphore, path: Path, url: str, headers: dict[str, str]) -> str:
    async with gate:
        try:
            await blobs.upload(path, url, headers)
        except OSError as error:
            reason = error.strerror or str(error)
            raise TaskFailed(
                "FileUploadMiscError", f"The output file could not be read: {reason}.", FilePath=path.name
            ) from None
        except TransferError as error:
            details = {"Destination": bare(url), "FilePath": path.name}
            if error.status in (401, 403):
                raise TaskFailed(
                    "FileUploadAccessDenied", "Access to the container of an output file was denied.", **details
                ) from None
            if error.status == 404:
                raise TaskFailed(
                    "FileUploadContainerNotFound", "The container of an output file does not exist.", **details
                ) from None
            raise TaskFailed(
                "FileUploadTimedOut" if error.status == 408 else "FileUploadMiscError",
                f"An output file could not be uploaded: {error.reason}.",
                category="servererror",
                **details,
            ) from None
        return f"uploaded {path.name} to {bare(url)}"
