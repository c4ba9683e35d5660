"""What no run has used for long in the DAGs' own containers: archives, inputs, sets, calls, and forgotten secrets.

A blob goes only if the time is over for which a run said that it is needed, if it was last written or used again
longer ago than asked, and if its ETag is still the one that was seen; see :mod:`.uploads` for the runs' side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from airflow_batchwrap.hooks.blobs import side_by_side
from airflow_batchwrap.hooks.sets import SETS, SetCalls
from airflow_batchwrap.hooks.uploads import needed_until
from airflow_batchwrap.naming import CONTAINER_DAG, CONTAINER_PREFIX, CONTAINER_ROLE, INSTANCE, SWEPT_ROLES, VERSION

if TYPE_CHECKING:
    from azure.storage.blob import BlobProperties


@dataclass(frozen=True)
class SeenBlob:
    """A blob as a listing showed it.

    :param size: bytes.
    """

    name: str
    etag: str
    size: int
    last_modified: datetime


class MarkedContainer(NamedTuple):
    """A container with this package's metadata.

    :param marks: its metadata, as they were before they became HTTP headers.
    :param changed: when the container itself, not what is in it, was changed last.
    """

    name: str
    marks: dict[str, str]
    changed: datetime


@dataclass(frozen=True)
class OwnContainer:
    """A container of this package, and what in it is unused.

    :param dag_id: whose it is.
    :param instance: of which Airflow the DAG is.
    :param role: "inputs" or "secrets".
    :param version: of the package that made it.
    :param count: how many blobs it has in all.
    """

    name: str
    dag_id: str
    instance: str
    role: str
    version: str
    count: int = 0
    unused: tuple[SeenBlob, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that are unused."""
        return sum(blob.size for blob in self.unused)


class UnusedCalls(SetCalls):
    """The part of BatchWrapHook that finds and deletes what is unused."""

    def own_containers(self) -> list[MarkedContainer]:
        """Return the containers of inputs and secrets that carry this package's metadata, of all DAGs and Airflows."""
        with self.blob_call("list containers"):
            listed = self.blobs.list_containers(name_starts_with=CONTAINER_PREFIX, include_metadata=True)
            found = [(item.name, dict(item.metadata or {}), item.last_modified) for item in listed]
        return [
            MarkedContainer(name, {key: unquote(value) for key, value in marks.items()}, changed)
            for name, marks, changed in found
            if marks.get(CONTAINER_ROLE) in SWEPT_ROLES
        ]

    def find_unused(self, name: str, marks: dict[str, str], unused_for: timedelta) -> OwnContainer:
        """Return what of a container has not been used for a time, and is needed by no run.

        :param marks: the container's metadata.
        :param unused_for: since it was last written, or last used again; secrets go as soon as nobody needs them.
        """
        from azure.core.exceptions import ResourceNotFoundError

        role, now = marks.get(CONTAINER_ROLE, ""), datetime.now(UTC)
        before = now if role == "secrets" else now - unused_for
        with self.blob_call(f"list container {name!r}"):
            try:
                found = list(self.blobs.get_container_client(name).list_blobs(include=["metadata"]))
            except ResourceNotFoundError:
                found = []
        unused = {blob.name for blob in found if _is_unused(blob, before, now)}
        # The files of a set are needed as long as its list is, whatever they say themselves.
        lists = {blob.name for blob in found if blob.name.startswith(SETS)}
        going = [
            SeenBlob(blob.name, blob.etag, blob.size, blob.last_modified)
            for blob in found
            if blob.name in unused and ((own := list_of(blob.name)) not in lists or own in unused)
        ]
        dag_id, instance = (unquote(marks.get(key, "")) for key in (CONTAINER_DAG, INSTANCE))
        return OwnContainer(name, dag_id, instance, role, marks.get(VERSION, ""), len(found), tuple(going))

    def delete_unused(self, container: OwnContainer) -> int:
        """Delete what was found; return how many blobs that were. What was used again meanwhile stays."""
        # Lists of sets first: once a list is gone, a run that needs the set copies all of its files anew.
        lists = [blob for blob in container.unused if list_of(blob.name) == blob.name]
        kept = {blob.name for blob in self._delete_as_seen(container.name, lists)}
        others = [blob for blob in container.unused if blob not in lists and list_of(blob.name) not in kept]
        left = self._delete_as_seen(container.name, others)
        return len(lists) - len(kept) + len(others) - len(left)

    def _delete_as_seen(self, container: str, blobs: Iterable[SeenBlob]) -> list[SeenBlob]:
        """Delete blobs that nobody has changed since they were seen; return those that somebody has."""
        from azure.core import MatchConditions
        from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

        client = self.blobs.get_container_client(container)

        def delete(blob: SeenBlob) -> SeenBlob | None:
            with self.blob_call(f"delete blob {blob.name!r} of container {container!r}"):
                try:
                    client.delete_blob(blob.name, etag=blob.etag, match_condition=MatchConditions.IfNotModified)
                except ResourceModifiedError:
                    return blob
                except ResourceNotFoundError:
                    return None
            return None

        return [blob for blob in side_by_side(partial(delete, blob) for blob in blobs) if blob is not None]


def list_of(name: str) -> str:
    """Return the name of the list of the set that a blob is in; its own where it is such a list, or in no set."""
    if not name.startswith(SETS):
        return name
    return f"{SETS}{name.removeprefix(SETS).split('/')[0].removesuffix('.json')}.json"


def _is_unused(blob: BlobProperties, before: datetime, now: datetime) -> bool:
    until = needed_until(blob.metadata)
    # What is copied takes the time along that its source was needed: in a set, its list alone counts.
    is_file_of_set = list_of(blob.name) != blob.name
    return bool(blob.last_modified < before and (is_file_of_set or until is None or until < now))
