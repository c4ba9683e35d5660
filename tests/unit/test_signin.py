"""Where identities sign in, and for what."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_batchwrap.hooks.signin import PUBLIC, cloud_of, default_credential

CHINA = ("login.chinacloudapi.cn", "https://batch.chinacloudapi.cn//.default")
GOVERNMENT = ("login.microsoftonline.us", "https://batch.core.usgovcloudapi.net//.default")


@pytest.mark.parametrize(
    ("url", "extra", "expected"),
    [
        ("https://me.westeurope.batch.azure.com", {}, (None, PUBLIC.batch_scope)),
        ("https://127.0.0.1:1234", {}, (None, PUBLIC.batch_scope)),
        ("https://me.chinaeast.batch.chinacloudapi.cn", {}, CHINA),
        ("https://ME.chinaeast.batch.ChinaCloudApi.cn/", {}, CHINA),
        ("me.chinaeast.batch.chinacloudapi.cn", {}, CHINA),
        ("https://me.blob.core.chinacloudapi.cn", {}, CHINA),
        ("https://me.usgovvirginia.batch.usgovcloudapi.net", {}, GOVERNMENT),
        ("https://me.blob.core.usgovcloudapi.net", {}, GOVERNMENT),
        ("https://chinacloudapi.cn.example.com", {}, (None, PUBLIC.batch_scope)),
        ("https://me.chinaeast.batch.chinacloudapi.cn", {"authority_host": "login.own"}, ("login.own", CHINA[1])),
        ("https://batch.own", {"authority_host": "l.own", "token_scope": "s://own"}, ("l.own", "s://own")),
    ],
)
def test_address_tells_the_cloud(url: str, extra: dict[str, str], expected: tuple[str | None, str]) -> None:
    cloud = cloud_of(url, extra)
    assert (cloud.authority, cloud.batch_scope) == expected


def test_scope_of_the_public_cloud_is_the_sdks() -> None:
    from azure.batch import BatchClient

    client = BatchClient("https://me.batch.azure.com", default_credential(PUBLIC, {}))
    assert client._config.credential_scopes == [PUBLIC.batch_scope]


def authority_of(credential: Any) -> str:
    """Return where a service principal of the environment signs in."""
    (principal,) = [each for each in credential.credentials if type(each).__name__ == "EnvironmentCredential"]
    made = principal._credential
    return str(getattr(made, "_authority", None) or made._client._authority)


@pytest.fixture
def principal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service principal in the environment."""
    for name in ("CLIENT_ID", "TENANT_ID", "CLIENT_SECRET"):
        monkeypatch.setenv(f"AZURE_{name}", "11111111-1111-1111-1111-111111111111")
    monkeypatch.delenv("AZURE_AUTHORITY_HOST", raising=False)


@pytest.mark.usefixtures("principal")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_credential_signs_in_at_its_cloud(asynchronous: bool) -> None:
    china = cloud_of("https://me.batch.chinacloudapi.cn", {})
    assert authority_of(default_credential(china, {}, asynchronous=asynchronous)) == f"https://{CHINA[0]}"
    public = default_credential(PUBLIC, {}, asynchronous=asynchronous)
    assert authority_of(public) == "https://login.microsoftonline.com"


@pytest.mark.usefixtures("airflow_home", "principal")
def test_clients_sign_in_at_the_cloud_of_their_address(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_batchwrap import BatchWrapHook

    batch = {"conn_type": "azure_batch", "extra": {"account_url": "https://me.east.batch.usgovcloudapi.net"}}
    monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps(batch))
    wasb = {"conn_type": "wasb", "host": "https://me.blob.core.usgovcloudapi.net"}
    monkeypatch.setenv("AIRFLOW_CONN_WASB_DEFAULT", json.dumps(wasb))
    hook: Any = BatchWrapHook()
    assert hook.batch._config.credential_scopes == [GOVERNMENT[1]]
    assert authority_of(hook.batch._config.credential._current()) == f"https://{GOVERNMENT[0]}"
    assert authority_of(hook.blobs.credential._current()) == f"https://{GOVERNMENT[0]}"
    secret = {**wasb, "login": "client", "password": "secret", "extra": {"tenant_id": "11111111-1111-1111-1111-1111"}}
    monkeypatch.setenv("AIRFLOW_CONN_WASB_DEFAULT", json.dumps(secret))
    made: Any = BatchWrapHook().blobs.credential
    assert made._current()._authority == f"https://{GOVERNMENT[0]}"
