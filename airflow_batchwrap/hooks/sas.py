"""Addresses that open to a node what it needs, and nothing else, for a while (SAS)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.workspace import BlobRef

if TYPE_CHECKING:
    from azure.storage.blob import BlobServiceClient, UserDelegationKey

# A user delegation key lives at most 7 days:
# https://learn.microsoft.com/javascript/api/@azure/storage-blob/blobgetuserdelegationkeyparameters
_DELEGATION_DAYS = 7
# Azure Storage's advice for the start of a SAS: https://learn.microsoft.com/azure/storage/common/storage-sas-overview
_CLOCK_SKEW = timedelta(minutes=15)
# By how much an address may outlive an identity's signature before anybody needs to know. The default lifetime is the
# longest life of a job and a day, which is to spare; the key is up to an hour old, and its start a little earlier.
_SPARE = timedelta(days=1, hours=2)


class SasCalls:
    """The part of BatchWrapHook that signs addresses."""

    _delegated: tuple[UserDelegationKey, datetime, datetime] | None = None
    _warned_of_short_life = False

    if TYPE_CHECKING:
        wasb_conn_id: str

        @property
        def log(self) -> Any: ...

        @property
        def blobs(self) -> BlobServiceClient: ...

        def blob_call(self, doing: str) -> AbstractContextManager[None]: ...

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
            if now + lifetime - expiry > _SPARE and not self._warned_of_short_life:
                self._warned_of_short_life = True
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
