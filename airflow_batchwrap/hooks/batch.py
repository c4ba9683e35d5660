"""BatchWrapHook: every Batch and Blob call of this package, blocking and async.

Its clients sign in as those of AzureBatchHook and WasbHook do: account key, service principal, managed identity, SAS.
Those hooks import Azure's SDKs at module level; here the imports stay inside methods, because this module may be
imported while a DAG file is parsed.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.sdk import BaseHook

from airflow_batchwrap.exceptions import ConfigError, Throttled
from airflow_batchwrap.hooks.bulk import BulkCalls
from airflow_batchwrap.hooks.errors import translated
from airflow_batchwrap.hooks.pools import PoolCalls
from airflow_batchwrap.hooks.tasks import TaskCalls
from airflow_batchwrap.hooks.unused import UnusedCalls

if TYPE_CHECKING:
    from airflow.sdk import Connection
    from azure.batch import BatchClient
    from azure.batch.aio import BatchClient as AsyncBatchClient
    from azure.storage.blob import BlobServiceClient

# What reading a connection raises when Airflow's own API does not answer; by name, as httpx is no dependency of ours.
_AIRFLOW_IS_AWAY = {"AirflowRuntimeError", "ConnectError", "ConnectTimeout", "ReadError", "ReadTimeout"}

# What else than an identity a wasb connection may hold in its extra, as WasbHook reads it.
_WASB_SECRETS = ("sas_token", "shared_access_key", "account_key")

# What a connection to a Batch account holds, as messages say it.
_BATCH_FIELDS = "extra account_url, login and password"

_QUIETED = {
    "azure.identity": logging.ERROR,
    "azure.core.pipeline.policies.http_logging_policy": logging.WARNING,
    "azure.batch._utils.model_base": logging.ERROR,
}


class BatchWrapHook(PoolCalls, TaskCalls, BulkCalls, UnusedCalls, BaseHook):
    """Talk to one Batch account and one storage account.

    :param azure_batch_conn_id: Airflow connection of type ``azure_batch``.
    :param wasb_conn_id: Airflow connection of type ``wasb``.
    """

    conn_name_attr = "azure_batch_conn_id"
    default_conn_name = "azure_batch_default"
    conn_type = "azure_batch"
    hook_name = "Azure Batch with Blob"

    def __init__(self, azure_batch_conn_id: str = "azure_batch_default", wasb_conn_id: str = "wasb_default") -> None:
        super().__init__()
        # As WasbHook does: Azure's clients would fill the task's log with every request's headers, and with a traceback
        # for every file that is not there yet (its error has no body that could be read).
        for name, level in _QUIETED.items():
            if logging.getLogger(name).level == logging.NOTSET:
                logging.getLogger(name).setLevel(level)
        self.azure_batch_conn_id = azure_batch_conn_id
        self.wasb_conn_id = wasb_conn_id

    def get_conn(self) -> BatchClient:
        """Return the blocking Batch client."""
        return self.batch

    @cached_property
    def batch(self) -> BatchClient:
        """The blocking Batch client.

        :raises ConfigError: the connection is missing or incomplete.
        """
        from azure.batch import BatchClient

        with self._connecting(self.azure_batch_conn_id, "azure_batch", _BATCH_FIELDS):
            # AzureBatchHook's own client counts no requests.
            conn = self.get_connection(self.azure_batch_conn_id)
            return BatchClient(**self._account(conn))

    @cached_property
    def blobs(self) -> BlobServiceClient:
        """The blocking Blob client.

        :raises ConfigError: the connection is missing or incomplete.
        """
        with self._connecting(self.wasb_conn_id, "wasb", "host (the account's Blob address), login and password"):
            conn = self.get_connection(self.wasb_conn_id)
            if self._has_plain_key(conn):
                from azure.storage.blob import BlobServiceClient

                return BlobServiceClient(account_url=str(conn.host), credential=conn.password)
            if self._is_identity(conn):
                return self._blobs_of_identity(conn)
            from airflow.providers.microsoft.azure.hooks.wasb import WasbHook

            return WasbHook(self.wasb_conn_id).get_conn()

    @staticmethod
    def _has_plain_key(conn: Connection) -> bool:
        """Return whether a connection is an address and an account key alone, of which WasbHook makes the same client.

        Without it, and the sign-in of identities that it imports, each task on a worker is 0.2 s faster.
        """
        address = urlsplit(conn.host or "")
        whole = address.scheme in ("http", "https") and "." in address.netloc
        return whole and bool(conn.login and conn.password) and set(conn.extra_dejson) <= {"resource_id"}

    @staticmethod
    def _is_identity(conn: Connection) -> bool:
        """Return whether WasbHook would sign in with an identity: there is no key, no SAS and no connection string."""
        extra = _short_names(conn)
        if extra.get("connection_string"):
            return False
        return bool(extra.get("tenant_id")) or not (conn.password or any(extra.get(name) for name in _WASB_SECRETS))

    @staticmethod
    def _blobs_of_identity(conn: Connection) -> BlobServiceClient:
        """Return the client that WasbHook would make, but signed in at the authority of the account's cloud."""
        from airflow.providers.microsoft.azure.utils import parse_blob_account_url
        from azure.storage.blob import BlobServiceClient

        from airflow_batchwrap.hooks import signin

        extra = _short_names(conn)
        url = parse_blob_account_url(conn.host, conn.login)
        cloud = signin.cloud_of(url, extra)
        if extra.get("tenant_id"):
            make = partial(signin.client_secret_credential, cloud, extra, conn.login or "", conn.password or "")
        else:
            make = partial(signin.default_credential, cloud, extra)
        credential: Any = signin.Renewable(make)
        options = {name: value for name, value in extra.items() if name not in signin.EXTRA}
        return BlobServiceClient(account_url=url, credential=credential, **options)

    @asynccontextmanager
    async def async_batch(self, *, retries: bool = True) -> AsyncIterator[AsyncBatchClient]:
        """Open an async Batch client on the same connection, closed with the block.

        :param retries: let the client itself try again where the service is busy; False for who spaces requests out.
        :raises ConfigError: the connection is missing or incomplete.
        """
        from azure.batch.aio import BatchClient

        with self._connecting(self.azure_batch_conn_id, "azure_batch", _BATCH_FIELDS):
            conn = await self.aget_connection(self.azure_batch_conn_id)
            account = self._account(conn, asynchronous=True)
            options: dict[str, Any] = {} if retries else {"retry_total": 0}
            client = BatchClient(**account, **options)
        try:
            yield client
        finally:
            await client.close()
            if hasattr(account["credential"], "close"):
                await account["credential"].close()

    def _account(self, conn: Connection, *, asynchronous: bool = False) -> dict[str, Any]:
        """Return what a Batch client is made of, by a connection as AzureBatchHook reads it.

        :param asynchronous: whether it is for an async client.
        :raises ConfigError: with all that is missing or wrong in the connection.
        """
        from azure.core.credentials import AzureNamedKeyCredential

        from airflow_batchwrap.hooks.counting import RequestCounter

        extra = conn.extra_dejson
        url: Any = extra.get("account_url") or extra.get("extra__azure_batch__account_url")
        if problems := _problems(conn, url):
            raise ConfigError(
                f"Connection {self.azure_batch_conn_id!r} cannot be used: {'; '.join(problems)}. Its type is "
                f"'azure_batch'; it needs {_BATCH_FIELDS}, or no password for a managed identity. Set it in Airflow's "
                f"Admin > Connections or in the environment variable AIRFLOW_CONN_{self.azure_batch_conn_id.upper()}."
            )
        if conn.login and conn.password:
            key = AzureNamedKeyCredential(conn.login, conn.password)
            return {"endpoint": url, "credential": key, "per_retry_policies": [RequestCounter()]}
        from airflow_batchwrap.hooks import signin

        cloud = signin.cloud_of(url, extra)
        make = partial(signin.default_credential, cloud, extra, asynchronous=asynchronous)
        credential = signin.AsyncRenewable(make) if asynchronous else signin.Renewable(make)
        renew = (signin.AsyncRenewOnce if asynchronous else signin.RenewOnce)(credential)  # type: ignore[arg-type]
        return {
            "endpoint": url,
            "credential": credential,
            "credential_scopes": [cloud.batch_scope],
            "per_retry_policies": [renew, RequestCounter()],
        }

    def batch_call(self, doing: str) -> AbstractContextManager[None]:
        """Translate what the Batch client raises inside.

        :param doing: completes "Could not ...".
        """
        return translated(doing, "the Batch account", self.azure_batch_conn_id)

    def blob_call(self, doing: str) -> AbstractContextManager[None]:
        """Translate what the Blob client raises inside; as :meth:`batch_call`."""
        return translated(doing, "the storage account", self.wasb_conn_id)

    def test_connection(self) -> tuple[bool, str]:
        """Look at both accounts, as Airflow's connection form asks."""
        try:
            with self.batch_call("list pools"):
                next(iter(self.batch.list_pools(max_results=1)), None)
            with self.blob_call("list containers"):
                next(iter(self.blobs.list_containers(results_per_page=1)), None)
        except Exception as error:  # the form shows any reason
            return False, str(error)
        return True, "The Batch account and the storage account answer."

    def _connecting(self, conn_id: str, conn_type: str, fields: str) -> AbstractContextManager[None]:
        return _Connecting(conn_id, conn_type, fields)


def _problems(conn: Connection, url: object) -> list[str]:
    """Return all that is wrong with a connection to a Batch account; never its password."""
    found = [] if url or conn.conn_type == "azure_batch" else [f"it is of type {conn.conn_type!r}"]
    if not url:
        found.append("it has no account_url in its extra")
    elif not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        found.append(f"account_url = {url!r} is not the address of an account")
    if conn.password and not conn.login:
        found.append("it has a password (an account's key) and no login (the account's name)")
    return found


def _short_names(conn: Connection) -> dict[str, Any]:
    """Return a wasb connection's extra without the prefix that older Airflows gave its names."""
    return {name.removeprefix("extra__wasb__"): value for name, value in conn.extra_dejson.items()}


class _Connecting(AbstractContextManager[None]):
    """Turn what a missing or incomplete connection raises into one ConfigError that says what to fill in."""

    def __init__(self, conn_id: str, conn_type: str, fields: str) -> None:
        self.conn_id, self.conn_type, self.fields = conn_id, conn_type, fields

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, ConfigError) or not isinstance(error, Exception):
            return
        if type(error).__name__ in _AIRFLOW_IS_AWAY:
            raise Throttled(
                f"Airflow does not say what connection {self.conn_id!r} is ({type(error).__name__}). Try again later."
            ) from None
        # The kind alone: the text of a client's ValueError can hold the key it choked on.
        reason = str(error) if "isn't defined" in str(error) else type(error).__name__
        raise ConfigError(
            f"Connection {self.conn_id!r} cannot be used ({reason}). It is of type {self.conn_type!r} and needs "
            f"{self.fields}, or a managed identity; set it in Airflow's Admin > Connections or in the environment "
            f"variable AIRFLOW_CONN_{self.conn_id.upper()}."
        ) from None
