"""Links lead to a page that exists, and carry nothing that opens it."""

from __future__ import annotations

import pytest

from airflow_batchwrap.links import addresses

LOCAL = "http://127.0.0.1:34567"
AZURE = "https://mybatch.westeurope.batch.azure.com"
ACCOUNT = "/subscriptions/0000-11/resourceGroups/my group/providers/Microsoft.Batch/batchAccounts/mybatch"
STORAGE = "/subscriptions/0000-11/resourceGroups/rg/providers/Microsoft.Storage/storageAccounts/mystorage"
LIST = "https://portal.azure.com/#view/HubsExtension/BrowseResource/resourceType/Microsoft.Batch%2FbatchAccounts"


@pytest.mark.parametrize("url", [LOCAL, "http://localhost:1", "http://[::1]:1", "http://127.1.2.3"])
def test_the_local_service_shows_pool_job_and_task(url: str) -> None:
    assert addresses.pool_address(url, "", "p") == f"{url}/ui/pools/p"
    assert addresses.job_address(url, ACCOUNT, "j") == f"{url}/ui/jobs/j"
    assert addresses.task_address(f"{url}/", "", "j", "t-e1a1") == f"{url}/ui/jobs/j/tasks/t-e1a1"


def test_odd_ids_stay_in_their_place() -> None:
    assert addresses.task_address(LOCAL, "", "../j", "t?token=x#y") == f"{LOCAL}/ui/jobs/..%2Fj/tasks/t%3Ftoken%3Dx%23y"


def test_the_portal_shows_the_account() -> None:
    page = f"https://portal.azure.com/#resource{ACCOUNT.replace(' ', '%20')}/overview"
    assert addresses.pool_address(AZURE, ACCOUNT, "p") == page
    assert addresses.job_address(AZURE, ACCOUNT, "j") == page
    assert addresses.task_address(AZURE, ACCOUNT, "j", "t") == page


@pytest.mark.parametrize(
    "resource_id",
    ["", "mybatch", STORAGE, f"{ACCOUNT}/keys", f"{ACCOUNT}?x=1", f"{ACCOUNT}#x", "javascript:alert(1)"],
)
def test_without_the_resource_id_of_a_batch_account_the_portal_lists_them(resource_id: str) -> None:
    assert addresses.task_address(AZURE, resource_id, "j", "t") == LIST


@pytest.mark.parametrize(
    ("url", "portal"),
    [
        ("https://b.usgovvirginia.batch.usgovcloudapi.net", "https://portal.azure.us/"),
        ("https://b.chinaeast2.batch.chinacloudapi.cn", "https://portal.azure.cn/"),
        ("https://batch.example.org", "https://portal.azure.com/"),
        ("", "https://portal.azure.com/"),
    ],
)
def test_each_cloud_has_its_portal(url: str, portal: str) -> None:
    assert addresses.pool_address(url, ACCOUNT, "p").startswith(portal)


def test_a_container_is_shown_by_the_portal_and_not_by_azurite() -> None:
    blob = "https://mystorage.blob.core.windows.net/?sv=2024&sig=secret"
    found = addresses.container_address(blob, STORAGE, "batchwrap-dag-1a2b")
    assert found == (
        "https://portal.azure.com/#view/Microsoft_Azure_Storage/ContainerMenuBlade/~/overview/storageAccountId/"
        "%2Fsubscriptions%2F0000-11%2FresourceGroups%2Frg%2Fproviders%2FMicrosoft.Storage%2FstorageAccounts%2Fmystorage"
        "/path/batchwrap-dag-1a2b"
    )
    listing = addresses.container_address(blob, "", "c")
    assert listing == LIST.replace("Microsoft.Batch%2FbatchAccounts", "Microsoft.Storage%2FstorageAccounts")
    assert addresses.container_address("http://127.0.0.1:10000/devstoreaccount1", STORAGE, "c") == ""
