"""Operations on files, of tasks and of nodes: the same, but for where their paths begin."""

from __future__ import annotations

import mimetypes
import os
import re
import stat
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow_batchwrap.local.api import views
from airflow_batchwrap.local.api.call import Call, Reply, moment
from airflow_batchwrap.local.model.entities import Node
from airflow_batchwrap.local.node import opening, threads
from airflow_batchwrap.local.node.layout import job_directory
from airflow_batchwrap.local.node.walking import walk
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CHUNK = 256 * 1024
#: Node states in which nobody answers for a node's files.
_AWAY = ("deallocated", "deallocating", "preempted", "unusable")


async def _task_root(call: Call) -> tuple[Path, str]:
    task = call.task()
    if task.node_id is None:
        raise BatchError("TaskFilesUnavailable")
    node = call.world.node(task.pool_id, task.node_id)
    if node is None:
        raise BatchError("NodeNotFound", "The node the task ran on is gone.", values={"NodeId": task.node_id})
    _reachable(node)
    root = job_directory(call.world.root(node), task.job.id) / task.id
    if task.state == "completed" and not await threads.apart(_is_directory, root):
        raise BatchError("TaskFilesCleanedup")
    return root, views.url_of(call.base, task)


def _is_directory(root: Path) -> bool:
    try:
        return stat.S_ISDIR(opening.status(root, "").st_mode)
    except OSError:
        return False


async def _node_root(call: Call) -> tuple[Path, str]:
    node = call.node()
    _reachable(node)
    return call.world.root(node), views.url_of(call.base, node)


def _reachable(node: Node) -> None:
    if node.state == "creating":
        raise BatchError("NodeBeingCreated")
    if node.state in _AWAY:
        raise BatchError("NodeStateUnusable", f"The node is {node.state}.", values={"NodeState": node.state})


def _shown(name: str) -> str:
    """A file's name as JSON can carry it: bytes that are no UTF-8 are shown replaced, and kept in the file's URL."""
    return os.fsencode(name).decode(errors="replace")


def _headers(name: str, status: os.stat_result, url: str) -> dict[str, str]:
    directory = stat.S_ISDIR(status.st_mode)
    kind = mimetypes.guess_type(name.rpartition("/")[2])[0] or "application/octet-stream"
    return {
        "Content-Type": "text/plain" if name.endswith(".txt") else kind,
        "ETag": times.etag(status.st_mtime, status.st_size),
        "Last-Modified": times.http_date(status.st_mtime),
        "ocp-creation-time": times.http_date(status.st_ctime),
        "ocp-batch-file-isdirectory": str(directory),
        "ocp-batch-file-mode": f"0o{status.st_mode:o}",
        "ocp-batch-file-url": quote(os.fsencode(f"{url}/files/{name}"), safe=""),
    }


def _name(call: Call) -> str:
    name = call.path["filePath"].strip("/")
    if not name:
        raise BatchError("FileNotFound", values={"FilePath": ""})
    return name


def _missing(name: str) -> BatchError:
    return BatchError("FileNotFound", values={"FilePath": _shown(name)})


def _conditions(call: Call, status: os.stat_result) -> None:
    changed = int(status.st_mtime)
    since, until = moment(call.headers.get("if-modified-since")), moment(call.headers.get("if-unmodified-since"))
    if since is not None and changed <= since:
        raise BatchError("ConditionNotMet", status=304)
    if until is not None and changed > until:
        raise BatchError("ConditionNotMet")


async def _properties(call: Call, root: Path, url: str) -> Reply:
    name = _name(call)
    try:
        status = await threads.apart(opening.status, root, name)
    except (OSError, ValueError):
        raise _missing(name) from None
    _conditions(call, status)
    headers = _headers(call.path["filePath"], status, url)
    return Reply(None, headers | {"Content-Length": str(0 if stat.S_ISDIR(status.st_mode) else status.st_size)})


async def _download(call: Call, root: Path, url: str) -> Reply:
    name = _name(call)
    try:
        descriptor, status = await threads.opened(opening.reading, root, name)
    except PermissionError:
        raise BatchError(
            "FileNotFound", "The file cannot be read: the right to read it was taken away from its owner."
        ) from None
    except IsADirectoryError:
        raise BatchError("FileNotFound", "A directory has no content.") from None
    except (OSError, ValueError):
        raise _missing(name) from None
    # As an object, which closes itself where the answer is never sent.
    file = os.fdopen(descriptor, "rb", buffering=0)
    try:
        _conditions(call, status)
        first, last = 0, status.st_size - 1
        if header := call.headers.get("ocp-range") or call.headers.get("range"):
            match = _RANGE.fullmatch(header.strip())
            if match is None:
                raise BatchError("InvalidHeaderValue", "The range must have the form bytes=first-last.")
            first = int(match[1])
            last = min(last, int(match[2])) if match[2] else last
            if first > last:
                raise BatchError("InvalidRange")
    except BaseException:
        file.close()
        raise
    headers = _headers(call.path["filePath"], status, url) | {"Content-Length": str(last - first + 1)}
    if header:
        headers["Content-Range"] = f"bytes {first}-{last}/{status.st_size}"
    return Reply(None, headers, stream=_content(file, first, last - first + 1))


async def _content(file: FileIO, first: int, size: int) -> AsyncIterator[bytes]:
    with file:
        while size and (chunk := await threads.apart(os.pread, file.fileno(), min(size, _CHUNK), first)):
            first += len(chunk)
            size -= len(chunk)
            yield chunk


@dataclass(frozen=True, slots=True)
class _File:
    uid: int
    name: str
    status: os.stat_result


def _walk(root: Path, recursive: bool, after: int) -> Generator[_File | None, None, None]:
    """The files after the one of a number; what cannot be shown has a number too."""
    uid = 0

    def look(_: str, directory: bool, deeper: bool) -> tuple[bool, bool | None]:
        nonlocal uid
        uid += 1
        return uid > after, True if deeper and directory else None

    for entry in walk(root, recursive, look):
        status = entry.status() if entry is not None else None
        yield _File(uid, entry.name, status) if entry is not None and status is not None else None


def _view(url: str, file: _File) -> dict[str, Any]:
    status, directory = file.status, stat.S_ISDIR(file.status.st_mode)
    shown = {
        "name": _shown(file.name),
        "url": f"{url}/files/{quote(os.fsencode(file.name))}",
        "isDirectory": directory,
    }
    if not directory:
        shown["properties"] = {
            "creationTime": times.iso(status.st_ctime),
            "lastModified": times.iso(status.st_mtime),
            "contentLength": str(status.st_size),
            "contentType": "application/octet-stream",
            "fileMode": f"0o{status.st_mode:o}",
        }
    return shown


async def _list(call: Call, root: Path, url: str) -> Reply:
    recursive = call.query.get("recursive", "false").lower() == "true"
    try:
        return await call.listing(
            "files", lambda after: _walk(root, recursive, after), lambda file, _: _view(url, file), apart=True
        )
    except OSError:
        raise BatchError("FileNotFound", "The directory is gone.") from None


async def _delete(call: Call, root: Path) -> Reply:
    name = _name(call)
    try:
        directory = await threads.apart(_delete_one, root, name)
    except (OSError, ValueError):
        raise _missing(name) from None
    if directory is not None:
        if call.query.get("recursive", "false").lower() != "true":
            raise BatchError("InvalidQueryParameterValue", "The directory is not empty: say recursive.")
        await call.world.remove(directory)
    return Reply()


def _delete_one(root: Path, name: str) -> Path | None:
    """Delete a file, a link (not what it leads to) or an empty directory; another directory is returned."""
    above, _, last = name.rpartition("/")
    if last in ("", ".", ".."):
        raise FileNotFoundError(name)
    # A link that leads out is not there for a client.
    opening.within(root, name)
    way = opening.within(root, above)
    here = opening.descend(root, way, unlocking=True)
    try:
        opening.unlock(here)
        if not stat.S_ISDIR(os.stat(last, dir_fd=here, follow_symlinks=False).st_mode):
            os.unlink(last, dir_fd=here)
            return None
        try:
            os.rmdir(last, dir_fd=here)
        except OSError:
            return root.joinpath(*way, last)
        return None
    finally:
        os.close(here)


async def download_task_file(call: Call) -> Reply:
    """Send a task's file, or a range of it."""
    return await _download(call, *await _task_root(call))


async def get_task_file_properties(call: Call) -> Reply:
    """Say what a task's file is."""
    return await _properties(call, *await _task_root(call))


async def list_task_files(call: Call) -> Reply:
    """List a task's files."""
    return await _list(call, *await _task_root(call))


async def delete_task_file(call: Call) -> Reply:
    """Delete a task's file."""
    return await _delete(call, (await _task_root(call))[0])


async def download_node_file(call: Call) -> Reply:
    """Send a node's file, or a range of it."""
    return await _download(call, *await _node_root(call))


async def get_node_file_properties(call: Call) -> Reply:
    """Say what a node's file is."""
    return await _properties(call, *await _node_root(call))


async def list_node_files(call: Call) -> Reply:
    """List a node's files."""
    return await _list(call, *await _node_root(call))


async def delete_node_file(call: Call) -> Reply:
    """Delete a node's file."""
    return await _delete(call, (await _node_root(call))[0])
