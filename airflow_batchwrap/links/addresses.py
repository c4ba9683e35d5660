"""Addresses of pages about Batch and Blob; made of names alone, so that no key and no token is in them."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import quote, urlsplit

# The portals of the clouds, by the end of an account's host:
# https://learn.microsoft.com/azure/azure-government/compare-azure-government-global-azure
# https://docs.azure.cn/en-us/ai-services/translator/sovereign-clouds
_PORTALS = {
    ".usgovcloudapi.net": "https://portal.azure.us",
    ".chinacloudapi.cn": "https://portal.azure.cn",
}
_PORTAL = "https://portal.azure.com"
_BATCH_ACCOUNTS = "Microsoft.Batch/batchAccounts"
_STORAGE_ACCOUNTS = "Microsoft.Storage/storageAccounts"


def is_loopback(url: str) -> bool:
    """Return whether an account's address is on this machine: then it is the local service, or Azurite."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def pool_address(account_url: str, resource_id: str, pool_id: str) -> str:
    """Return the page about a pool; of a real account the portal's page about the whole account.

    :param account_url: the Batch account's address.
    :param resource_id: its resource id, ``/subscriptions/.../batchAccounts/<name>``; empty where it is not known.
    """
    return _local(account_url, "pools", pool_id) or _account(account_url, resource_id)


def job_address(account_url: str, resource_id: str, job_id: str) -> str:
    """Return the page about a job; as :func:`pool_address`."""
    return _local(account_url, "jobs", job_id) or _account(account_url, resource_id)


def task_address(account_url: str, resource_id: str, job_id: str, batch_task_id: str) -> str:
    """Return the page about a Batch task; as :func:`pool_address`."""
    return _local(account_url, "jobs", job_id, "tasks", batch_task_id) or _account(account_url, resource_id)


def container_address(blob_url: str, resource_id: str, container: str) -> str:
    """Return the portal's page about a Blob container; without a resource id, its list of storage accounts.

    :return: empty for Azurite, which shows nothing to a browser without a SAS.
    """
    if is_loopback(blob_url):
        return ""
    portal = _portal(blob_url)
    if not _is_of(resource_id, _STORAGE_ACCOUNTS):
        return _listing(portal, _STORAGE_ACCOUNTS)
    view = "Microsoft_Azure_Storage/ContainerMenuBlade/~/overview/storageAccountId"
    return f"{portal}/#view/{view}/{quote(resource_id, safe='')}/path/{quote(container, safe='')}"


def _local(account_url: str, *place: str) -> str:
    """Return an address of the local service's page (docs/local-page.md); empty for a real account."""
    if not is_loopback(account_url):
        return ""
    parts = urlsplit(account_url)
    return f"{parts.scheme}://{parts.netloc}/ui/" + "/".join(quote(part, safe="") for part in place)


def _account(account_url: str, resource_id: str) -> str:
    # The portal has no lasting address for a job or a Batch task.
    portal = _portal(account_url)
    if not _is_of(resource_id, _BATCH_ACCOUNTS):
        return _listing(portal, _BATCH_ACCOUNTS)
    return f"{portal}/#resource{quote(resource_id)}/overview"


def _listing(portal: str, kind: str) -> str:
    return f"{portal}/#view/HubsExtension/BrowseResource/resourceType/{quote(kind, safe='')}"


def _portal(url: str) -> str:
    host = urlsplit(url).hostname or ""
    return next((portal for end, portal in _PORTALS.items() if host.endswith(end)), _PORTAL)


def _is_of(resource_id: str, kind: str) -> bool:
    """Return whether a text is the resource id of an account of some kind; resource ids are case-insensitive."""
    pattern = rf"/subscriptions/[^/?#]+/resourceGroups/[^/?#]+/providers/{re.escape(kind)}/[^/?#]+"
    return re.fullmatch(pattern, resource_id, re.IGNORECASE) is not None
