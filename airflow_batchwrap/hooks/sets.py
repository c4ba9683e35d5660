"""Many blobs for a node: each by an address of its own, or all of them by one, where they are too many for Batch."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from airflow_batchwrap.exceptions import TryAgain
from airflow_batchwrap.hooks.blobs import side_by_side
from airflow_batchwrap.hooks.uploads import UploadCalls, upload_marks
from airflow_batchwrap.naming import Maker
from airflow_batchwrap.waiting import pause_after
from airflow_batchwrap.workspace import BlobRef, InputFile

if TYPE_CHECKING:
    from azure.batch.models import ResourceFile

SETS = "sets/"  # below it one folder for each set, and beside the folder the set's list, named alike
# Batch takes 32,768 characters of JSON for all resource files of a task: https://learn.microsoft.com/azure/batch/resource-files
# (https://github.com/Azure/BatchExplorer/issues/30 shows its answer beyond). An address with its SAS has about 500, and
# more where a name is long or not ASCII; some are kept for an archive, a call and secrets.
_MOST_URLS = 40
_MOST_CHARACTERS = 28_000
_COPY_TIMEOUT = 600.0  # seconds


class SetCalls(UploadCalls):
    """The part of BatchWrapHook that brings many blobs to a node."""

    def bring(
        self, maker: Maker, files: Sequence[InputFile], folder: str, mode: str, lifetime: timedelta
    ) -> tuple[list[ResourceFile], str]:
        """Return the resource files that put blobs into a folder on a node.

        Up to 40 have an address each, which may read that one blob. More are gathered into a set, and the address may
        read and list the DAG's own container.

        :param maker: whose container a set goes to.
        :param files: names below the folder, and blobs.
        :param folder: relative to the working directory.
        :param mode: of the files, as ``0755``.
        :param lifetime: of the addresses, and of a set at least.
        :return: the resource files, and what comes between the folder and each name: empty, or ``sets/<sha256>/``.
        """
        from airflow_batchwrap.hooks import models

        if len(files) <= _MOST_URLS:
            each = [
                models.resource_file(self.sas_url(item.ref, lifetime), f"{folder}/{item.name}", mode) for item in files
            ]
            if len(json.dumps([file.as_dict() for file in each])) <= _MOST_CHARACTERS:
                return each, ""
        container = self.own_container(maker, "inputs")
        prefix = self.gather_set(container, files, lifetime)
        return [models.resource_folder(self.container_sas_url(container, lifetime), prefix, folder, mode)], prefix

    def gather_set(self, container: str, files: Sequence[InputFile], needed: timedelta) -> str:
        """Copy blobs, inside the storage account, below one prefix that stands for the whole set.

        The set's list beside it says how long the set is needed, as a blob of its own would; where there is none, all
        are copied anew, since what is there may be about to be swept.

        :param container: where the set is to be; the blobs may be in others of the same storage account.
        :param files: names below the prefix, and blobs.
        :param needed: as :meth:`upload_bytes`.
        :return: the prefix, ``sets/<sha256 of the list>/``.
        """
        listing = json.dumps([[item.name, item.ref.sha256] for item in files]).encode()
        sha256 = hashlib.sha256(listing).hexdigest()
        prefix, marker = f"{SETS}{sha256}/", BlobRef(container, f"{SETS}{sha256}.json", len(listing), sha256)
        known = self._is_there(marker, needed)
        there = self._whole_blobs(container, prefix) if known else {}
        missing = [item for item in files if there.get(prefix + item.name) != item.ref.size]
        side_by_side(partial(self._copy, item, container, prefix + item.name) for item in missing)
        if not known:
            self._upload(marker, listing, upload_marks(marker, needed))
        return prefix

    def _whole_blobs(self, container: str, prefix: str) -> dict[str, int]:
        """Return the sizes of blobs by name, without those still being copied: they have name and size already."""
        with self.blob_call(f"list container {container!r}"):
            found = self.blobs.get_container_client(container).list_blobs(name_starts_with=prefix, include=["copy"])
            return {blob.name: blob.size for blob in found if blob.copy.status in (None, "success")}

    def _copy(self, item: InputFile, container: str, blob: str) -> None:
        with self.blob_call(f"copy {item.name!r} inside the storage account, to container {container!r}"):
            target = self.blobs.get_blob_client(container, blob)
            state = str(target.start_copy_from_url(self.sas_url(item.ref, timedelta(hours=1)))["copy_status"])
            began = time.monotonic()
            # Within one storage account a copy is over at once, but that is no promise.
            while state == "pending" and time.monotonic() - began < _COPY_TIMEOUT:
                time.sleep(pause_after(time.monotonic() - began, 5))
                state = str(target.get_blob_properties().copy.status)
            if state != "success":
                raise TryAgain(
                    f"Storage did not copy {item.name!r} to container {container!r}: its state is {state!r}. Try again."
                )
