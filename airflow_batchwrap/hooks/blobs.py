"""Blob storage: containers, SAS of the least privilege, results read and downloaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import IO, TYPE_CHECKING, Any, TypeVar

from airflow_batchwrap import metrics
from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.workspace import BlobRef, ValueReference

if TYPE_CHECKING:
    from azure.storage.blob import BlobServiceClient, UserDelegationKey

_THREADS = 8
_CHUNK = 4 * 1024 * 1024  # bytes
# A user delegation key lives at most 7 days (Azure Storage, "Create a user delegation SAS").
_DELEGATION_DAYS = 7
_CLOCK_SKEW = timedelta(minutes=15)  # Azure Storage's advice for the start of a SAS
# By how much an address may outlive an identity's signature before anybody needs to know. The default lifetime is the
# longest life of a job and a day, which is to spare; the key is up to an hour old, and its start a little earlier.
_SPARE = timedelta(days=1, hours=2)
_FORBIDDEN = 403

T = TypeVar("T")


class BlobCalls:
    """The part of BatchWrapHook that deals with Blob."""

    _delegated: tuple[UserDelegationKey, datetime, datetime] | None = None
    _told_of_short_life = False

    if TYPE_CHECKING:
        wasb_conn_id: str

        @property
        def log(self) -> Any: ...

        @property
        def blobs(self) -> BlobServiceClient: ...

        def blob_call(self, doing: str) -> AbstractContextManager[None]: ...

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
        """Tell whether a container is there, as far as the connection may see: by its properties, or by its list."""
        from azure.core.exceptions import HttpResponseError

        client = self.blobs.get_container_client(container)
        for look in (client.get_container_properties, lambda: next(client.list_blobs(results_per_page=1), None)):
            with suppress(HttpResponseError):
                look()
                return True
        return False

    # --- SAS

    def sas_url(self, ref: BlobRef, lifetime: timedelta) -> str:
        """Return an address that may read this one blob, and nothing else."""
        from azure.storage.blob import BlobSasPermissions, generate_blob_sas

        client = self.blobs.get_blob_client(ref.container, ref.blob)
        signer = self._signer(lifetime)
        if signer is None:
            return self._with_own_sas(str(client.url))
        with self.blob_call(f"sign an address for blob {ref.blob!r}"):
            token = generate_blob_sas(
                account_name=str(self.blobs.account_name),
                container_name=ref.container,
                blob_name=ref.blob,
                permission=BlobSasPermissions(read=True),
                **signer,
            )
        return f"{client.url}?{token}"

    def container_sas_url(self, container: str, lifetime: timedelta, *, write: bool = False) -> str:
        """Return an address that may read and list one container or, with ``write``, create and write blobs in it."""
        from azure.storage.blob import ContainerSasPermissions, generate_container_sas

        client = self.blobs.get_container_client(container)
        signer = self._signer(lifetime)
        if signer is None:
            return self._with_own_sas(str(client.url))
        granted = (
            ContainerSasPermissions(create=True, write=True) if write else ContainerSasPermissions(True, list=True)
        )
        with self.blob_call(f"sign an address for container {container!r}"):
            token = generate_container_sas(
                account_name=str(self.blobs.account_name), container_name=container, permission=granted, **signer
            )
        return f"{client.url}?{token}"

    def _signer(self, lifetime: timedelta) -> dict[str, Any] | None:
        """Return what signs a SAS and bounds its life; None where the connection itself is a SAS, which cannot sign.

        :raises ConfigError: the connection can sign nothing.
        """
        now = datetime.now(UTC)
        bounds: dict[str, Any] = {"start": now - _CLOCK_SKEW, "expiry": now + lifetime}
        if not self.blobs.url.startswith("https:"):
            bounds["protocol"] = "https,http"
        else:
            bounds["protocol"] = "https"
        credential = self.blobs.credential
        if key := getattr(credential, "account_key", None):
            return {"account_key": key, **bounds}
        if hasattr(credential, "get_token"):
            key, expiry = self._delegation_key()
            if now + lifetime - expiry > _SPARE and not self._told_of_short_life:
                self._told_of_short_life = True
                self.log.warning(
                    "Connection %r is an identity, whose addresses last %s days at most, and %s were asked for: what "
                    "begins or ends later than that loses its inputs or results. Lower job_wall_clock and sas_extra, "
                    "or use an account key.",
                    self.wasb_conn_id,
                    _DELEGATION_DAYS,
                    lifetime,
                )
            return {"user_delegation_key": key, **bounds, "expiry": min(now + lifetime, expiry)}
        if "sig=" in self.blobs.url or hasattr(credential, "signature"):
            return None
        raise ConfigError(
            f"Connection {self.wasb_conn_id!r} cannot sign addresses for the nodes. Give it an account key, an "
            "identity with the role Storage Blob Delegator, or a SAS."
        )

    def _with_own_sas(self, url: str) -> str:
        """Return an address with the connection's own SAS, which is all that such a connection can grant."""
        signature = getattr(self.blobs.credential, "signature", "")
        return f"{url}?{signature.lstrip('?')}" if signature and "sig=" not in url else url

    def _delegation_key(self) -> tuple[UserDelegationKey, datetime]:
        """Return what an identity signs with, and until when; asked for once an hour, and not for each address."""
        now = datetime.now(UTC)
        if self._delegated is None or now - self._delegated[2] > timedelta(hours=1):
            expiry = now + timedelta(days=_DELEGATION_DAYS) - _CLOCK_SKEW
            with self.blob_call("get a user delegation key"):
                key = self.blobs.get_user_delegation_key(now - _CLOCK_SKEW, expiry)
            self._delegated = key, expiry, now
        return self._delegated[:2]

    # --- results

    def read_blob(self, container: str, blob: str) -> bytes | None:
        """Return a small blob whole; None where there is none."""
        from azure.core.exceptions import ResourceNotFoundError

        with self.blob_call(f"read blob {blob!r} of container {container!r}"):
            try:
                return _counted(self.blobs.get_blob_client(container, blob).download_blob().readall())
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
