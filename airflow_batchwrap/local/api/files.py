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
from urllib.parse import quote, unquote_to_bytes

from airflow_batchwrap.local.api import views
from airflow_batchwrap.local.api.call import Call, Reply, moment, place_of
from airflow_batchwrap.local.model.entities import Node
from airflow_batchwrap.local.node import opening, threads
from airflow_batchwrap.local.node.layout import job_directory
from airflow_batchwrap.local.node.walking import walk
from airflow_batchwrap.local.wire import schema, times
from airflow_batchwrap.local.wire.errors import BatchError

_RANGE = re.compile(r"bytes=(\d{1,4000})-(\d{0,4000})")
_CHUNK = 256 * 1024
#: The directory for certificates in that of a task, seen from there or from the node's root.
_CERTIFICATES = re.compile(r"(?:(?:workitems/[^/]+/[^/]+/[^/]+|startup)/)?certs")
#: Where a walk is, seen from the place that a page begins after: not yet there, or behind it. On the way to it, it is
#: the number of names that lead there.
_BEFORE, _BEYOND = -1, -2
#: How many characters a path has at most that says where a page begins: the head of a request has to hold it.
_LONGEST_PLACE = 8_000
#: Node states in which nobody answers for a node's files.
_AWAY = ("deallocated", "deallocating", "preempted", "unusable")


@dataclass(frozen=True)
class _Root:
    """Where paths begin, and its address."""

    path: Path
    url: str
    #: Files show their mode, and no creation time. So those of Linux did, as recorded up to 2020-09-01.12.0; those of
    #: Windows never, and at 2025-06-01 none of those recorded, although the documentation still has the mode.
    moded: bool
    #: A task's directory shows `certs`: not at 2025-06-01, as recorded, since certificates are no more.
    certificates: bool


def _rooted(call: Call, path: Path, url: str, node: Node) -> _Root:
    agent, older = node.pool.body["virtualMachineConfiguration"]["nodeAgentSKUId"], call.version != schema.API_VERSION
    return _Root(path, url, older and "windows" not in agent.lower(), older)


async def _task_root(call: Call) -> _Root:
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
    return _rooted(call, root, views.url_of(call.base, task), node)


def _is_directory(root: Path) -> bool:
    try:
        return stat.S_ISDIR(opening.status(root, "").st_mode)
    except OSError:
        return False


async def _node_root(call: Call) -> _Root:
    node = call.node()
    _reachable(node)
    return _rooted(call, call.world.root(node), views.url_of(call.base, node), node)


def _reachable(node: Node) -> None:
    if node.state == "creating":
        raise BatchError("NodeBeingCreated")
    if node.state in _AWAY:
        raise BatchError("NodeStateUnusable", f"The node is {node.state}.", values={"NodeState": node.state})


def _shown(name: str) -> str:
    """A file's name as JSON can carry it: bytes that are no UTF-8 are shown replaced, and kept in the file's URL."""
    return os.fsencode(name).decode(errors="replace")


def _kind(name: str) -> str:
    guessed = mimetypes.guess_type(name.rpartition("/")[2])[0]
    return "text/plain" if name.endswith(".txt") else guessed or "application/octet-stream"


def _headers(root: _Root, name: str, status: os.stat_result) -> dict[str, str]:
    headers = {
        "Content-Type": _kind(name),
        "Last-Modified": times.http_date(status.st_mtime),
        "ocp-batch-file-isdirectory": str(stat.S_ISDIR(status.st_mode)),
        "ocp-batch-file-url": quote(os.fsencode(f"{root.url}/files/{name}"), safe=""),
    }
    if root.moded:
        return headers | {"ocp-batch-file-mode": f"0o{status.st_mode:o}"}
    return headers | {"ocp-creation-time": times.http_date(status.st_ctime)}


def _name(call: Call) -> str:
    name = call.path["filePath"].strip("/")
    if not name:
        raise BatchError("FileNotFound")
    return name


def _missing(name: str) -> BatchError:
    return BatchError("FileNotFound", f"There is no file {_shown(name)!r}.")


def _conditions(call: Call, status: os.stat_result) -> None:
    changed = int(status.st_mtime)
    since, until = moment(call.headers.get("if-modified-since")), moment(call.headers.get("if-unmodified-since"))
    if since is not None and changed <= since:
        raise BatchError("ConditionNotMet", status=304)
    if until is not None and changed > until:
        raise BatchError("ConditionNotMet")


async def _properties(call: Call, root: _Root) -> Reply:
    name = _name(call)
    try:
        status = await threads.apart(opening.status, root.path, name)
    except (OSError, ValueError):
        raise _missing(name) from None
    _conditions(call, status)
    headers = _headers(root, call.path["filePath"], status)
    return Reply(None, headers | {"Content-Length": str(0 if stat.S_ISDIR(status.st_mode) else status.st_size)})


async def _download(call: Call, root: _Root) -> Reply:
    name = _name(call)
    try:
        descriptor, status = await threads.opened(opening.reading, root.path, name)
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
    headers = _headers(root, call.path["filePath"], status) | {"Content-Length": str(last - first + 1)}
    return Reply(None, headers, stream=_content(file, first, last - first + 1))


async def _content(file: FileIO, first: int, size: int) -> AsyncIterator[bytes]:
    with file:
        while size:
            chunk = await threads.apart(os.pread, file.fileno(), min(size, _CHUNK), first)
            if not chunk:
                raise opening.Shorter
            first += len(chunk)
            size -= len(chunk)
            yield chunk


@dataclass(frozen=True, slots=True)
class _File:
    number: int
    name: str
    status: os.stat_result

    @property
    def place(self) -> str:
        """Its path, so that files which go or come meanwhile shift nothing; its number where that is too long."""
        path = f"/{quote(os.fsencode(self.name))}"
        return path if len(path) <= _LONGEST_PLACE else str(self.number)


def _walk(root: _Root, recursive: bool, after: str) -> Generator[_File | None, None, None]:
    """The files after the one of a place, by their names; what cannot be shown has a number too."""
    way = os.fsdecode(unquote_to_bytes(after[1:])).split("/") if after.startswith("/") else []
    uid, last = 0, 0 if way else place_of(after)

    def look(name: str, _: bool, on_way: int) -> tuple[bool, int | None]:
        nonlocal uid
        uid += 1
        if on_way < 0:
            wanted, inner = on_way == _BEYOND and uid > last, on_way
        elif name == way[on_way]:
            wanted, inner = False, on_way + 1 if on_way + 1 < len(way) else _BEYOND
        else:
            wanted, inner = name > way[on_way], _BEYOND if name > way[on_way] else _BEFORE
        return wanted, inner if recursive else None

    for entry in walk(root.path, 0 if way else _BEYOND, look):
        hidden = entry is None or (not root.certificates and _CERTIFICATES.fullmatch(entry.name) is not None)
        status = None if entry is None or hidden else entry.status()
        yield _File(uid, entry.name, status) if entry is not None and status is not None else None


def _view(root: _Root, file: _File) -> dict[str, Any]:
    status, directory = file.status, stat.S_ISDIR(file.status.st_mode)
    shown = {
        "name": _shown(file.name),
        "url": f"{root.url}/files/{quote(os.fsencode(file.name))}",
        "isDirectory": directory,
    }
    if not directory:
        shown["properties"] = {
            "lastModified": times.iso(status.st_mtime),
            "contentLength": str(status.st_size),
            "contentType": _kind(file.name),
            **({"fileMode": f"0o{status.st_mode:o}"} if root.moded else {"creationTime": times.iso(status.st_ctime)}),
        }
    return shown


async def _list(call: Call, root: _Root) -> Reply:
    recursive = call.query.get("recursive", "false").lower() == "true"
    try:
        return await call.listing(
            "files", lambda after: _walk(root, recursive, after), lambda file, _: _view(root, file), apart=True
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
    return await _download(call, await _task_root(call))


async def get_task_file_properties(call: Call) -> Reply:
    """Say what a task's file is."""
    return await _properties(call, await _task_root(call))


async def list_task_files(call: Call) -> Reply:
    """List a task's files."""
    return await _list(call, await _task_root(call))


async def delete_task_file(call: Call) -> Reply:
    """Delete a task's file."""
    return await _delete(call, (await _task_root(call)).path)


async def download_node_file(call: Call) -> Reply:
    """Send a node's file, or a range of it."""
    return await _download(call, await _node_root(call))


async def get_node_file_properties(call: Call) -> Reply:
    """Say what a node's file is."""
    return await _properties(call, await _node_root(call))


async def list_node_files(call: Call) -> Reply:
    """List a node's files."""
    return await _list(call, await _node_root(call))


async def delete_node_file(call: Call) -> Reply:
    """Delete a node's file."""
    return await _delete(call, (await _node_root(call)).path)
