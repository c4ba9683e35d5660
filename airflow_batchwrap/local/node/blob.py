"""Blobs over HTTP, by the addresses (with their signatures) that clients give: get, list, put."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit, urlunsplit
from xml.parsers import expat

import httpx

from airflow_batchwrap.local.faults import Faults
from airflow_batchwrap.local.node import threads
from airflow_batchwrap.local.node.incoming import Incoming
from airflow_batchwrap.local.node.lanes import Lanes

#: Tries of one transfer, and the pause before the second in seconds (doubled for each further one).
TRIES = 4
PAUSE = 0.2
#: A file up to this size goes up in one request, a larger one in blocks of this size.
BLOCK = 32 * 1024 * 1024
_CHUNK = 256 * 1024
#: What a server may answer, in bytes: with a page of a list (of at most 5,000 blobs with their metadata:
#: https://learn.microsoft.com/rest/api/storageservices/list-blobs), and to a file that was put; and how many pages a
#: list may have. More would fill the memory.
_PAGE, _ANSWER, _PAGES = 128 * 1024 * 1024, 1024 * 1024, 1000
T = TypeVar("T")


class TransferError(Exception):
    """A transfer that failed for good.

    :param status: the HTTP status of the last answer, 0 where there was none, 408 where none came in time.
    :param url: the address, whose query (a SAS) is dropped.
    """

    def __init__(self, status: int, url: str, reason: str) -> None:
        self.status = status
        self.url = bare(url)
        self.reason = reason
        super().__init__(f"{self.url}: {reason}")


def bare(url: str) -> str:
    """An address without its query and credentials, fit to be shown.

    :param url: the address.
    :return: scheme, host and path.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "An address that cannot be read"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def child(container_url: str, name: str, query: str = "") -> str:
    """The address of a blob in a container, or of the container with more query.

    :param container_url: the container's address with its SAS.
    :param name: the blob's name; empty for the container itself.
    :param query: query parameters to add.
    :return: the address.
    :raises TransferError: the container's address is none.
    """
    try:
        parts = urlsplit(container_url)
    except ValueError as error:
        raise TransferError(0, container_url, f"{error}") from None
    path = parts.path.rstrip("/") + ("/" + quote(name, safe="/~") if name else "")
    return urlunsplit((parts.scheme, parts.netloc, path, "&".join(filter(None, (query, parts.query))), ""))


@dataclass(frozen=True)
class Blob:
    """A blob of a container's list.

    :param name: its name.
    :param size: its size in bytes, where the list says so.
    :param is_folder: it stands for a directory: its metadata say ``hdi_isfolder``, as Hadoop, blobfuse and accounts
        with a hierarchical namespace mark them, or its name ends with a slash.
    """

    name: str
    size: int
    is_folder: bool


class BlobClient:
    """Transfers, with a few tries each; what a client did wrong (4xx) is not tried again.

    :param faults: what goes wrong on purpose.
    :param trusted: certificates of authorities to trust beside the well-known ones.
    """

    def __init__(self, faults: Faults | None = None, trusted: Sequence[Path] = ()) -> None:
        self._faults = faults or Faults()
        self.lanes = Lanes()
        context = httpx.create_ssl_context(trust_env=False)
        for path in trusted:
            context.load_verify_locations(path)
        # trust_env off: a node would not have this machine's proxies. No limit of connections and no time to wait for
        # one: the lanes see to it that nothing times out that was never sent.
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(60, connect=10, pool=None),
            trust_env=False,
            verify=context,
            follow_redirects=True,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            # What arrives is what is stored: nothing is unpacked on the way.
            headers={"Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def download(self, url: str, incoming: Incoming) -> None:
        """Bring a file; nothing is left of it if that fails.

        :param url: where it is.
        :param incoming: where it goes.
        :raises TransferError: it could not be had.
        :raises OSError: it could not be written.
        """
        if self._faults.strikes("download"):
            raise TransferError(503, url, "failed on purpose, as --faults asks")

        async def attempt() -> None:
            async with self._http.stream("GET", url) as answer:
                answer.raise_for_status()
                await threads.apart(incoming.restart)
                held = b""
                async for chunk in answer.aiter_raw(_CHUNK):
                    if held:
                        await threads.apart(incoming.write, held)
                    held = chunk
            # A small file is written at one go.
            await threads.apart(incoming.finish, held)

        try:
            await self._tried(url, attempt)
        finally:
            await threads.apart(incoming.discard)

    async def list(self, container_url: str, prefix: str) -> list[Blob]:
        """A container's blobs.

        :param container_url: the container's address with a SAS that may list.
        :param prefix: what the names begin with.
        :return: the blobs.
        :raises TransferError: the container could not be listed.
        """
        found: list[Blob] = []
        marker = ""
        seen: set[str] = set()
        while True:
            query = f"restype=container&comp=list&include=metadata&prefix={quote(prefix, safe='')}"
            url = child(container_url, "", query + (f"&marker={quote(marker, safe='')}" if marker else ""))

            async def attempt(url: str = url) -> bytes:
                async with self._http.stream("GET", url) as answer:
                    answer.raise_for_status()
                    return await _read(answer, _PAGE)

            blobs, marker = await threads.apart(_read_list, await self._tried(url, attempt))
            found += blobs
            if not marker:
                return found
            if marker in seen or len(seen) == _PAGES:
                raise TransferError(0, container_url, f"the list of blobs does not end within {_PAGES} pages")
            seen.add(marker)

    async def upload(self, descriptor: int, size: int, url: str, headers: dict[str, str]) -> None:
        """Put a file, as long as it is when this begins.

        :param descriptor: the open file.
        :param size: how much of it to put, in bytes.
        :param url: the blob's address with its SAS.
        :param headers: more headers (``x-ms-blob-content-type`` and such).
        :raises TransferError: it could not be put.
        :raises OSError: it could not be read.
        """
        if size <= BLOCK:
            await self._put(url, descriptor, 0, size, {"x-ms-blob-type": "BlockBlob", **headers})
            return
        names = []
        for offset in range(0, size, BLOCK):
            name = base64.b64encode(f"{offset:020d}".encode()).decode()
            names.append(name)
            block = _with_query(url, f"comp=block&blockid={quote(name, safe='')}")
            await self._put(block, descriptor, offset, min(BLOCK, size - offset), {})
        body = "<?xml version='1.0' encoding='utf-8'?><BlockList>{}</BlockList>".format(
            "".join(f"<Latest>{name}</Latest>" for name in names)
        )

        async def commit() -> None:
            async with self._http.stream(
                "PUT", _with_query(url, "comp=blocklist"), content=body.encode(), headers=headers
            ) as answer:
                answer.raise_for_status()
                await _read(answer, _ANSWER)

        await self._tried(url, commit)

    async def _put(self, url: str, descriptor: int, offset: int, size: int, headers: dict[str, str]) -> None:
        async def content() -> AsyncIterator[bytes]:
            here, end = offset, offset + size
            while here < end:
                chunk = await threads.apart(os.pread, descriptor, min(_CHUNK, end - here), here)
                if not chunk:
                    raise OSError("it became shorter while it was uploaded")
                here += len(chunk)
                yield chunk

        async def attempt() -> None:
            async with self._http.stream(
                "PUT", url, content=content(), headers={"Content-Length": str(size), **headers}
            ) as answer:
                answer.raise_for_status()
                await _read(answer, _ANSWER)

        await self._tried(url, attempt)

    async def _tried(self, url: str, attempt: Callable[[], Awaitable[T]]) -> T:
        pause = PAUSE
        for left in reversed(range(TRIES)):
            try:
                return await attempt()
            except httpx.HTTPStatusError as error:
                status, reason = error.response.status_code, f"the server answered {error.response.status_code}"
                if not left or (status < 500 and status not in (408, 429)):
                    raise TransferError(status, url, reason) from None
            except httpx.TimeoutException:
                if not left:
                    raise TransferError(408, url, "the server did not answer in time") from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if not left or isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
                    raise TransferError(0, url, f"the transfer failed ({type(error).__name__})") from None
            await asyncio.sleep(pause)
            pause *= 2
        raise AssertionError("unreachable")


async def _read(answer: httpx.Response, most: int) -> bytes:
    """The body of an answer, as it comes: unpacked, it might be any size."""
    parts: list[bytes] = []
    size = 0
    async for chunk in answer.aiter_raw():
        size += len(chunk)
        if size > most:
            raise TransferError(0, str(answer.url), f"the server's answer is larger than {most} bytes")
        parts.append(chunk)
    return b"".join(parts)


def _with_query(url: str, query: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "&".join(filter(None, (query, parts.query))), ""))


def _read_list(text: bytes) -> tuple[list[Blob], str]:
    blobs: list[Blob] = []
    # By the last two names on the way: metadata may bear any name.
    found: dict[tuple[str, str], str] = {}
    stack: list[str] = ["", ""]

    def opened(name: str, _: dict[str, str]) -> None:
        if name == "Blob":
            found.clear()
        stack.append(name)
        found[stack[-2], stack[-1]] = ""

    def closed(name: str) -> None:
        stack.pop()
        if name == "Blob":
            blob, size = found.get(("Blob", "Name"), ""), found.get(("Properties", "Content-Length"), "")
            folder = blob.endswith("/") or found.get(("Properties", "ResourceType")) == "directory"
            said = any(value == "true" for (above, key), value in found.items() if _marks(above, key))
            blobs.append(Blob(blob, int(size) if size.isdecimal() else -1, folder or said))

    def data(chunk: str) -> None:
        # What stands between elements belongs to none that matters.
        if (stack[-2], stack[-1]) in found:
            found[stack[-2], stack[-1]] += chunk

    def entity(*_: object) -> None:
        raise ValueError("a list of blobs declares no entities")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = opened, closed, data
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, ValueError) as error:
        raise TransferError(0, "", f"the list of blobs cannot be read: {error}") from None
    return blobs, found.get(("EnumerationResults", "NextMarker"), "")


def _marks(above: str, key: str) -> bool:
    return above == "Metadata" and key.lower() == "hdi_isfolder"
