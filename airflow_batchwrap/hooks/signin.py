"""How identities sign in: at the authority of their cloud, and anew where the service refuses a token.

::

    cloud = cloud_of("https://me.westus.batch.azure.com", {})
    credential = Renewable(partial(default_credential, cloud, {}))
    BatchClient(url, credential, credential_scopes=[cloud.batch_scope], per_retry_policies=[RenewOnce(credential)])
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.policies import AsyncHTTPPolicy, HTTPPolicy

# What of a connection's extra says how to sign in; the rest is for the client.
EXTRA = frozenset(
    {
        "authority_host",
        "token_scope",
        "managed_identity_client_id",
        "workload_identity_tenant_id",
        "tenant_id",
        "client_secret_auth_config",
        "resource_id",
    }
)
_UNAUTHORIZED = 401


@dataclass(frozen=True)
class Cloud:
    """Where identities of a cloud sign in, and for what.

    :param authority: the host of its sign-in; None for azure-identity's own choice, which is ``AZURE_AUTHORITY_HOST``
        or that of the public cloud. Managed identities do not need it.
    :param batch_scope: what a token for Batch is asked for.
    """

    authority: str | None
    batch_scope: str


# The SDK's own scope of the public cloud has both slashes, of which the first belongs to the resource's name.
PUBLIC = Cloud(None, "https://batch.core.windows.net//.default")
# By the end of an account's host. The resources: "batch_resource_id" at
# https://github.com/Azure/azure-cli/blob/dev/src/azure-cli-core/azure/cli/core/cloud.py; the authorities:
# azure.identity.AzureAuthorityHosts. Storage has one resource in all clouds
# (https://learn.microsoft.com/en-us/azure/storage/blobs/authorize-access-azure-active-directory).
_CHINA = Cloud("login.chinacloudapi.cn", "https://batch.chinacloudapi.cn//.default")
_GOVERNMENT = Cloud("login.microsoftonline.us", "https://batch.core.usgovcloudapi.net//.default")
_BY_HOST = {".chinacloudapi.cn": _CHINA, ".usgovcloudapi.net": _GOVERNMENT}


def cloud_of(url: str, extra: Mapping[str, Any]) -> Cloud:
    """Return the cloud of an account.

    :param url: the account's address.
    :param extra: of the connection: ``authority_host`` and ``token_scope`` win over what the address says.
    """
    host = (urlsplit(url if "//" in url else f"//{url}").hostname or "").rstrip(".")
    found = next((cloud for end, cloud in _BY_HOST.items() if host.endswith(end)), PUBLIC)
    if authority := extra.get("authority_host"):
        found = replace(found, authority=str(authority))
    if scope := extra.get("token_scope"):
        found = replace(found, batch_scope=str(scope))
    return found


def default_credential(cloud: Cloud, extra: Mapping[str, Any], *, asynchronous: bool = False) -> Any:
    """Return azure-identity's default credential, set up as the provider's hooks do.

    :param extra: of the connection: ``managed_identity_client_id``, ``workload_identity_tenant_id``.
    :param asynchronous: whether it is for an async client.
    """
    from azure.identity import DefaultAzureCredential
    from azure.identity.aio import DefaultAzureCredential as AsyncDefaultAzureCredential

    options: dict[str, Any] = {"authority": cloud.authority} if cloud.authority else {}
    if client := extra.get("managed_identity_client_id"):
        options["managed_identity_client_id"] = client
    if tenant := extra.get("workload_identity_tenant_id"):
        options |= {"workload_identity_tenant_id": tenant, "additionally_allowed_tenants": [tenant]}
    return AsyncDefaultAzureCredential(**options) if asynchronous else DefaultAzureCredential(**options)


def client_secret_credential(cloud: Cloud, extra: Mapping[str, Any], client: str, secret: str) -> Any:
    """Return the credential of a service principal, as WasbHook makes it.

    :param extra: of the connection: ``tenant_id``, and ``client_secret_auth_config`` with more options.
    :param client: the principal's client id.
    """
    from azure.identity import ClientSecretCredential

    options = {"authority": cloud.authority} if cloud.authority else {}
    options |= extra.get("client_secret_auth_config") or {}
    return ClientSecretCredential(tenant_id=extra["tenant_id"], client_id=client, client_secret=secret, **options)


class Renewable:
    """A credential that can be made anew, since one that is kept shows the same token again and again."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None
        self._lock = threading.Lock()

    def _current(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def get_token(self, *scopes: str, **options: Any) -> Any:
        """Return a token, as azure-core asks for it."""
        return self._current().get_token(*scopes, **options)

    def get_token_info(self, *scopes: str, **options: Any) -> Any:
        """Return a token with more about it, as azure-core asks for it."""
        return self._current().get_token_info(*scopes, **options)

    def renew(self) -> None:
        """Forget all tokens."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.close()

    close = renew


class AsyncRenewable:
    """As :class:`Renewable`, for an async client."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None

    def _current(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made

    async def get_token(self, *scopes: str, **options: Any) -> Any:
        """Return a token, as azure-core asks for it."""
        return await self._current().get_token(*scopes, **options)

    async def get_token_info(self, *scopes: str, **options: Any) -> Any:
        """Return a token with more about it, as azure-core asks for it."""
        return await self._current().get_token_info(*scopes, **options)

    async def renew(self) -> None:
        """Forget all tokens."""
        made, self._made = self._made, None
        if made is not None:
            await made.close()

    close = renew


class RenewOnce(HTTPPolicy[Any, Any]):
    """Sign in anew where the service answers 401, and ask once more: a token may end before its time.

    A second 401 is the service's last word. Give it as the first of ``per_retry_policies``.

    :param credential: that of the same client.
    """

    def __init__(self, credential: Renewable) -> None:
        self._credential = credential

    def send(self, request: PipelineRequest[Any]) -> PipelineResponse[Any, Any]:
        """Send a request, twice if need be."""
        response = self.next.send(request)
        if response.http_response.status_code == _UNAUTHORIZED:
            response.http_response.close()
            self._credential.renew()
            response = self.next.send(request)
        return response


class AsyncRenewOnce(AsyncHTTPPolicy[Any, Any]):
    """As :class:`RenewOnce`, for an async client.

    :param credential: that of the same client.
    """

    def __init__(self, credential: AsyncRenewable) -> None:
        self._credential = credential

    async def send(self, request: PipelineRequest[Any]) -> PipelineResponse[Any, Any]:
        """Send a request, twice if need be."""
        response = await self.next.send(request)
        if response.http_response.status_code == _UNAUTHORIZED:
            await response.http_response.close()
            await self._credential.renew()
            response = await self.next.send(request)
        return response
