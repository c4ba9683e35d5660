"""What goes to Blob for the nodes: addressed by its content, each DAG's in containers of its own.

Content that is there already is used again. So that the sweep of what is unused (:mod:`.unused`) never takes it from
under a run, each blob says in its metadata how long it is needed, and a run that would need it longer says so before it
goes on. Both are conditional on the ETag that was seen: of a run and a sweep that meet, one notices the other. A run
that finds a blob gone uploads it anew; a sweep that finds it changed leaves it alone.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import IO

from airflow_batchwrap import metrics
from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.hooks.blobs import BlobCalls, hash_stream, side_by_side
from airflow_batchwrap.naming import ContainerRole, Maker
from airflow_batchwrap.version import __version__
from airflow_batchwrap.workspace import BlobRef, InputFile

NEEDED_UNTIL = "needed_until"  # metadata of a blob: a time in ISO 8601, UTC
# Longer than what a run asks for, so that of many runs a day one writes it.
_SPARE = timedelta(days=1)


def needed_until(metadata: Mapping[str, str] | None) -> datetime | None:
    """Read until when a blob is needed; None where nobody has said so."""
    try:
        return datetime.fromisoformat((metadata or {}).get(NEEDED_UNTIL, ""))
    except ValueError:
        return None


class UploadCalls(BlobCalls):
    """The part of BatchWrapHook that brings to Blob what nodes download."""

    def own_container(self, maker: Maker, role: ContainerRole) -> str:
        """Return one of a DAG's own containers; create it where it is not there."""
        name = maker.container_for(role)
        # Of this hook, which lives as long as one try: a second look would cost a request for each call.
        ensured: set[str] = self.__dict__.setdefault("_ensured", set())
        if name not in ensured:
            self.ensure_container(name, maker.container_marks(__version__, role))
            ensured.add(name)
        return name

    def upload_bytes(self, container: str, blob: str, data: bytes, needed: timedelta = timedelta(0)) -> BlobRef:
        """Upload content under a name that holds its sha256, unless it is there.

        :param needed: how long from now nodes may download it; the sweep leaves it alone for as long.
        """
        ref = BlobRef(container, blob, len(data), hashlib.sha256(data).hexdigest())
        if not self._is_there(ref, needed):
            self._upload(ref, data, upload_marks(ref, needed))
        return ref

    def upload_file(
        self, container: str, folder: str, path: Path, name: str, needed: timedelta = timedelta(0)
    ) -> InputFile:
        """Upload one input file to ``<folder>/<sha256>/<name>``, unless it is there.

        :param name: as the step opens it.
        :param needed: as :meth:`upload_bytes`.
        :raises ConfigError: the file cannot be read, or changed while it was read.
        """
        try:
            with path.open("rb") as source:
                sha256, size = hash_stream(source)
                ref = BlobRef(container, f"{folder}/{sha256}/{name}", size, sha256)
                if not self._is_there(ref, needed):
                    source.seek(0)
                    self._upload(ref, source, upload_marks(ref, needed))
                    source.seek(0)
                    if hash_stream(source) != (sha256, size):
                        self._discard(ref)
                        raise ConfigError(f"Input file {str(path)!r} changed while it was uploaded. Run it again.")
        except OSError as error:
            raise ConfigError(
                f"Input file {str(path)!r} cannot be read: {error.strerror}. Check `inputs` and its rights."
            ) from None
        return InputFile(name, ref)

    def upload_inputs(
        self, maker: Maker, files: Sequence[tuple[str, Path]], needed: timedelta
    ) -> tuple[InputFile, ...]:
        """Upload a DAG's input files side by side, each once; return them in the order given.

        :param files: name for the step, and local path.
        :param needed: as :meth:`upload_bytes`.
        """
        if not files:
            return ()
        container = self.own_container(maker, "inputs")
        return tuple(
            side_by_side(partial(self.upload_file, container, "files", path, name, needed) for name, path in files)
        )

    def upload_secret(self, maker: Maker, job_id: str, data: bytes, needed: timedelta) -> BlobRef:
        """Upload what one Batch task, or one manifest, alone may read, under a name that nobody can guess.

        It lies in a container of its own kind, for which no address of the whole container is ever signed. The
        teardown deletes it with the job: :meth:`delete_secrets`.
        """
        container = self.own_container(maker, "secrets")
        ref = BlobRef(container, f"{job_id}/{secrets.token_hex(16)}", len(data), hashlib.sha256(data).hexdigest())
        # A hash of what may be a short password would give it away to whoever tries out all of them.
        self._upload(ref, data, _needed(needed))
        return ref

    def delete_secrets(self, maker: Maker, job_id: str) -> int:
        """Delete what was uploaded for a job's Batch tasks alone; return how much that was."""
        container = maker.container_for("secrets")
        return self.delete_blobs(container, sorted(self.list_blobs(container, f"{job_id}/")))

    def keep(self, refs: Sequence[BlobRef], needed: timedelta) -> None:
        """See to it that blobs which an earlier task uploaded stay as long as another one needs them.

        :param needed: as :meth:`upload_bytes`.
        :raises ConfigError: one of them is gone.
        """
        found = side_by_side(partial(self._is_there, ref, needed) for ref in refs)
        gone = [ref for ref, is_there in zip(refs, found, strict=True) if not is_there]
        if gone:
            raise ConfigError(
                f"{len(gone)} of {len(refs)} files that the set-up uploaded are gone or changed, such as blob "
                f"{gone[0].blob!r} of container {gone[0].container!r}. Clear the set-up task, which uploads them again."
            )

    # --- one blob

    def _is_there(self, ref: BlobRef, needed: timedelta) -> bool:
        """Return whether a blob of this name has the whole content; if so, it stays for as long as it is needed."""
        from azure.core import MatchConditions
        from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

        client, wanted = self.blobs.get_blob_client(ref.container, ref.blob), datetime.now(UTC) + needed
        with self.blob_call(f"look for blob {ref.blob!r}"):
            while True:
                try:
                    properties = client.get_blob_properties()
                    metadata = properties.metadata or {}
                    if properties.size != ref.size or metadata.get("sha256") != ref.sha256:
                        return False
                    until = needed_until(metadata)
                    if until is None or until < wanted:
                        client.set_blob_metadata(
                            {**metadata, **_needed(needed)},
                            etag=properties.etag,
                            match_condition=MatchConditions.IfNotModified,
                        )
                    return True
                except ResourceNotFoundError:
                    return False
                except ResourceModifiedError:
                    continue  # another run has written it just now, perhaps for a shorter time

    def _upload(self, ref: BlobRef, data: bytes | IO[bytes], metadata: Mapping[str, str] | None = None) -> None:
        """Upload content over what was there.

        :param metadata: of the blob; its sha256 alone by default.
        """
        marks = {"sha256": ref.sha256} if metadata is None else dict(metadata)
        with self.blob_call(f"upload blob {ref.blob!r} to container {ref.container!r}"):
            self.blobs.get_blob_client(ref.container, ref.blob).upload_blob(
                data, length=ref.size, overwrite=True, metadata=marks, max_concurrency=2
            )
        metrics.count(metrics.UPLOADED, ref.size)

    def _discard(self, ref: BlobRef) -> None:
        with self.blob_call(f"delete blob {ref.blob!r}"):
            self.blobs.get_blob_client(ref.container, ref.blob).delete_blob()


def _needed(length: timedelta) -> dict[str, str]:
    return {NEEDED_UNTIL: (datetime.now(UTC) + length + _SPARE).isoformat(timespec="seconds")}


def upload_marks(ref: BlobRef, needed: timedelta) -> dict[str, str]:
    return {"sha256": ref.sha256, **_needed(needed)}
