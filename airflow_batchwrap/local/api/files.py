"""Operations on files, of tasks and of nodes: the same, but for where their paths begin."""

from __future__ import annotations

import asyncio
import mimetypes
import os
import re
import stat
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow_batchwrap.local.api import views
from airflow_batchwrap.local.api.call import Call, Reply, moment
from airflow_batchwrap.local.model.entities import Node
from airflow_batchwrap.local.node import removal
from airflow_batchwrap.local.node.layout import OutsideError, inside, job_directory, leads_inside
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CHUNK = 256 * 1024
#: Node states in which nobody answers for a node's files.
_AWAY = ("deallocated", "deallocating", "preempted", "unusable")


def _task_root(call: Call) -> tuple[Path, str]:
    task = call.task()
    if task.node_id is None:
        raise BatchError("TaskFilesUnavailable")
    node = call.world.node(task.pool_id, task.node_id)
    if node is None:
        raise BatchError("NodeNotFound", "The node the task ran on is gone.", values={"NodeId": task.node_id})
    _reachable(node)
    root = job_directory(call.world.root(node), task.job.id) / task.id
    if task.state == "completed" and not (os.access(root.parent, os.X_OK) and root.is_dir()):
        raise BatchError("TaskFilesCleanedup")
    return root, views.url_of(call.base, task)


def _node_root(call: Call) -> tuple[Path, str]:
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


def _named(call: Call, root: Path) -> Path:
    name = call.path["filePath"].strip("/")
    try:
        path = inside(root, name)
    except (OutsideError, ValueError, OSError):
        raise BatchError("FileNotFound", values={"FilePath": _shown(name)}) from None
    if not os.path.lexists(path) or path == root:
        raise BatchError("FileNotFound", values={"FilePath": _shown(name)})
    return path


def _headers(path: Path, status: os.stat_result, url: str, name: str) -> dict[str, str]:
    directory = stat.S_ISDIR(status.st_mode)
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return {
        "Content-Type": "text/plain" if path.suffix == ".txt" else kind,
        "ETag": times.etag(status.st_mtime, status.st_size),
        "Last-Modified": times.http_date(status.st_mtime),
        "ocp-creation-time": times.http_date(status.st_ctime),
        "ocp-batch-file-isdirectory": str(directory),
        "ocp-batch-file-mode": f"0o{status.st_mode:o}",
        "ocp-batch-file-url": quote(os.fsencode(f"{url}/files/{name}"), safe=""),
    }


def _stat(call: Call, root: Path) -> tuple[Path, os.stat_result]:
    path = _named(call, root)
    try:
        return path, path.stat()
    except OSError:
        raise BatchError("FileNotFound") from None


def _conditions(call: Call, status: os.stat_result) -> None:
    changed = int(status.st_mtime)
    since, until = moment(call.headers.get("if-modified-since")), moment(call.headers.get("if-unmodified-since"))
    if since is not None and changed <= since:
        raise BatchError("ConditionNotMet", status=304)
    if until is not None and changed > until:
        raise BatchError("ConditionNotMet")


async def _properties(call: Call, root: Path, url: str) -> Reply:
    path, status = _stat(call, root)
    _conditions(call, status)
    headers = _headers(path, status, url, call.path["filePath"])
    return Reply(None, headers | {"Content-Length": str(0 if stat.S_ISDIR(status.st_mode) else status.st_size)})


async def _download(call: Call, root: Path, url: str) -> Reply:
    path, status = _stat(call, root)
    _conditions(call, status)
    if not stat.S_ISREG(status.st_mode):
        raise BatchError("FileNotFound", "A directory has no content.")
    if not os.access(path, os.R_OK):
        raise BatchError("FileNotFound", "The file cannot be read: the right to read it was taken away from its owner.")
    first, last = 0, status.st_size - 1
    if header := call.headers.get("ocp-range") or call.headers.get("range"):
        match = _RANGE.fullmatch(header.strip())
        if match is None:
            raise BatchError("InvalidHeaderValue", "The range must have the form bytes=first-last.")
        first = int(match[1])
        last = min(last, int(match[2])) if match[2] else last
        if first > last:
            raise BatchError("InvalidRange")
    headers = _headers(path, status, url, call.path["filePath"]) | {"Content-Length": str(last - first + 1)}
    if header:
        headers["Content-Range"] = f"bytes {first}-{last}/{status.st_size}"
    return Reply(None, headers, stream=_content(path, first, last - first + 1))


async def _content(path: Path, first: int, size: int) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        file.seek(first)
        while size:
            chunk = await asyncio.to_thread(file.read, min(size, _CHUNK)) if size > _CHUNK else file.read(size)
            if not chunk:
                return
            size -= len(chunk)
            yield chunk


@dataclass(frozen=True)
class _File:
    uid: int
    name: str
    path: Path


def _walk(root: Path, recursive: bool) -> Iterator[tuple[str, Path]]:
    # With no recursion: a task may nest directories without end. What lies in one that is locked, or whose path is too
    # long for the system, is not listed.
    waiting: list[tuple[str, Path]] = []
    entries = _entries(root)
    if entries is None:
        raise BatchError("FileNotFound", "The directory is gone.")
    while True:
        waiting += [(entry.path[len(str(root)) + 1 :], Path(entry.path)) for entry in reversed(entries or [])]
        if not waiting:
            return
        name, path = waiting.pop()
        entries = None
        try:
            mode = path.lstat().st_mode
        except OSError:
            continue
        # A symbolic link is listed where it leads to something inside, and never walked into.
        if stat.S_ISLNK(mode) and not leads_inside(path, root):
            continue
        yield name, path
        if recursive and stat.S_ISDIR(mode):
            entries = _entries(path)


def _entries(directory: Path) -> list[os.DirEntry[str]] | None:
    try:
        with os.scandir(directory) as listing:
            return sorted(listing, key=lambda entry: entry.name)
    except OSError:
        return None


async def _list(call: Call, root: Path, url: str) -> Reply:
    recursive = call.query.get("recursive", "false").lower() == "true"
    found = [_File(uid, name, path) for uid, (name, path) in enumerate(_walk(root, recursive), 1)]

    def view(file: _File, _: frozenset[str] | None) -> dict[str, Any]:
        try:
            status = file.path.stat()
        except OSError:
            status = file.path.lstat()
        directory = stat.S_ISDIR(status.st_mode)
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

    return await call.listing("files", lambda after: found[after:], view)


async def _delete(call: Call, root: Path) -> Reply:
    path = _named(call, root)
    if path.is_dir() and not path.is_symlink():
        if call.query.get("recursive", "false").lower() == "true":
            await call.world.remove(path)
        else:
            try:
                path.rmdir()
            except OSError:
                raise BatchError("InvalidQueryParameterValue", "The directory is not empty: say recursive.") from None
    else:
        removal.unlock(path.parent)
        path.unlink(missing_ok=True)
    return Reply()


async def download_task_file(call: Call) -> Reply:
    """Send a task's file, or a range of it."""
    return await _download(call, *_task_root(call))


async def get_task_file_properties(call: Call) -> Reply:
    """Say what a task's file is."""
    return await _properties(call, *_task_root(call))


async def list_task_files(call: Call) -> Reply:
    """List a task's files."""
    return await _list(call, *_task_root(call))


async def delete_task_file(call: Call) -> Reply:
    """Delete a task's file."""
    return await _delete(call, _task_root(call)[0])


async def download_node_file(call: Call) -> Reply:
    """Send a node's file, or a range of it."""
    return await _download(call, *_node_root(call))


async def get_node_file_properties(call: Call) -> Reply:
    """Say what a node's file is."""
    return await _properties(call, *_node_root(call))


async def list_node_files(call: Call) -> Reply:
    """List a node's files."""
    return await _list(call, *_node_root(call))


async def delete_node_file(call: Call) -> Reply:
    """Delete a node's file."""
    return await _delete(call, _node_root(call)[0])
