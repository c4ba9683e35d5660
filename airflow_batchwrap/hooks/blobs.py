"""Blob storage: containers, and results read, downloaded and deleted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import IO, TYPE_CHECKING, Any, TypeVar

from airflow_batchwrap import metrics
from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.hooks.sas import SasCalls
from airflow_batchwrap.workspace import ValueReference

if TYPE_CHECKING:
    pass

_THREADS = 8
_CHUNK = 4 * 1024 * 1024  # bytes
_FORBIDDEN = 403

T = TypeVar("T")


class BlobCalls(SasCalls):
    """The part of BatchWrapHook that deals with Blob."""

    # --- containers

    def ensure_container(self, name: str, metadata: Mapping[str, str] | None = None) -> None:
        """Create a container unless it is there. One that is there will do where none may be created.

        :param metadata: of a container that is created.
        """
        from azure.core.exceptions import HttpResponseError, ResourceExistsError

        from airflow_batchwrap.hooks.errors import code_of

        with self.blob_call(f"create container {name!r}"):
            try:
                self.blobs.create_container(name, metadata=dict(metadata) if metadata else None)
            except ResourceExistsError as error:
                if code_of(error) != "ContainerAlreadyExists":
                    raise
            except HttpResponseError as error:
                if error.status_code != _FORBIDDEN or not self._can_see(name):
                    raise

    def _can_see(self, container: str) -> bool:
        """Return whether a container is there, as far as the connection may see: by its properties, or by its list."""
        from azure.core.exceptions import HttpResponseError

        client = self.blobs.get_container_client(container)
        for look in (client.get_container_properties, lambda: next(client.list_blobs(results_per_page=1), None)):
            with suppress(HttpResponseError):
                look()
                return True
        return False

    # --- results

    def read_blob(self, container: str, blob: str, *, most: int | None = None) -> bytes | None:
        """Return a small blob whole; None where there is none.

        :param most: bytes; None reads whatever is there.
        :raises ConfigError: it is larger.
        """
        from azure.core.exceptions import ResourceNotFoundError

        with self.blob_call(f"read blob {blob!r} of container {container!r}"):
            try:
                download = self.blobs.get_blob_client(container, blob).download_blob()
                if most is not None and download.size > most:
                    raise ConfigError(
                        f"Blob {blob!r} of container {container!r} has {download.size} bytes; {most} at most are read."
                    )
                return _counted(download.readall())
            except ResourceNotFoundError:
                return None

    def value_of(self, xcom: Any) -> Any:
        """Return what a step returned, for code that runs in Airflow: of a large value its XCom holds a reference only.

        :param xcom: what a step's task, or a list of such, has for output; anything else is returned as it is.
        :raises ConfigError: the value is no longer there, or is another.
        """
        if isinstance(xcom, list):
            return [self.value_of(item) for item in xcom]
        reference = ValueReference.from_xcom(xcom)
        if reference is None:
            return xcom
        ref = reference.ref
        data = self.read_blob(ref.container, ref.blob)
        if data is None or hashlib.sha256(data).hexdigest() != ref.sha256:
            problem = "is gone" if data is None else "is not the one that the step returned"
            raise ConfigError(
                f"The value in blob {ref.blob!r} of container {ref.container!r} {problem}. Run the step again."
            )
        return json.loads(data)

    def blob_size(self, container: str, blob: str) -> int | None:
        """Return a blob's size in bytes; None where there is none."""
        from azure.core.exceptions import ResourceNotFoundError

        with self.blob_call(f"read blob {blob!r} of container {container!r}"):
            try:
                return int(self.blobs.get_blob_client(container, blob).get_blob_properties().size)
            except ResourceNotFoundError:
                return None

    def read_blob_from(self, container: str, blob: str, offset: int) -> bytes:
        """Return what a blob holds from an offset, in bytes, to its end."""
        with self.blob_call(f"read blob {blob!r} of container {container!r}"):
            return _counted(self.blobs.get_blob_client(container, blob).download_blob(offset=offset).readall())

    def tail_blob(self, container: str, blob: str, limit: int = 16384) -> str | None:
        """Return the end of a blob as text; None where there is none.

        :param limit: bytes.
        """
        from azure.core.exceptions import ResourceNotFoundError

        client = self.blobs.get_blob_client(container, blob)
        with self.blob_call(f"read blob {blob!r} of container {container!r}"):
            try:
                size = client.get_blob_properties().size
                if not size:
                    return ""
                start = max(0, size - limit)
                data = client.download_blob(offset=start, length=size - start).readall()
                return _counted(data).decode("utf-8", "replace")
            except ResourceNotFoundError:
                return None

    def list_blobs(self, container: str, prefix: str) -> dict[str, int]:
        """Return the sizes, in bytes, of the blobs below a prefix, by name."""
        from azure.core.exceptions import ResourceNotFoundError

        with self.blob_call(f"list container {container!r}"):
            try:
                found = self.blobs.get_container_client(container).list_blobs(name_starts_with=prefix)
                return {item.name: item.size for item in found}
            except ResourceNotFoundError:
                return {}

    def has_blobs(self, container: str, prefix: str) -> bool:
        """Return whether there is a blob below a prefix."""
        with self.blob_call(f"list container {container!r}"):
            found = self.blobs.get_container_client(container).list_blobs(name_starts_with=prefix, results_per_page=1)
            return next(iter(found), None) is not None

    def delete_blobs_before(self, container: str, prefix: str, moment: datetime) -> int:
        """Delete the blobs below a prefix that were last written before a moment; return how many."""
        client = self.blobs.get_container_client(container)
        with self.blob_call(f"list container {container!r}"):
            old = [item.name for item in client.list_blobs(name_starts_with=prefix) if item.last_modified < moment]
        return self.delete_blobs(container, old)

    def delete_blobs(self, container: str, names: Sequence[str]) -> int:
        """Delete blobs side by side; one that is gone already is fine. Return how many were named."""
        from azure.core.exceptions import ResourceNotFoundError

        client = self.blobs.get_container_client(container)

        def delete(name: str) -> None:
            with self.blob_call(f"delete blob {name!r} of container {container!r}"), suppress(ResourceNotFoundError):
                client.delete_blob(name)

        side_by_side(partial(delete, name) for name in names)
        return len(names)

    def stream_blob(self, container: str, blob: str) -> Iterator[bytes]:
        """Yield a blob's content in order, in pieces of a few MB."""
        with self.blob_call(f"download blob {blob!r} of container {container!r}"):
            for chunk in self.blobs.get_blob_client(container, blob).download_blob(max_concurrency=2).chunks():
                yield _counted(chunk)


def _counted(data: bytes) -> bytes:
    metrics.count(metrics.DOWNLOADED, len(data))
    return data


def side_by_side(calls: Iterable[Callable[[], T]]) -> list[T]:
    """Run calls in threads and return their results in order; the first failure cancels those that have not begun."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="batchwrap") as threads:
        jobs = [threads.submit(call) for call in calls]
        try:
            return [job.result() for job in jobs]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def hash_stream(source: IO[bytes]) -> tuple[str, int]:
    """Return the sha256 and the size in bytes of what is left in a stream."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size
