"""The clients that BatchWrapHook makes of a connection are those of the provider's hooks, and no slower to have."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

KEY = "c2VjcmV0LWtleS1vZi1hLXRlc3Q="
BATCH = {"conn_type": "azure_batch", "login": "me", "password": KEY, "extra": {"account_url": "http://127.0.0.1:1"}}
BLOB = {"conn_type": "wasb", "login": "me", "password": KEY}
CLIENTS = """
import sys
from airflow_batchwrap.hooks.batch import BatchWrapHook
hook = BatchWrapHook()
hook.batch, hook.blobs
print([name for name in ("azure.identity", "azure.storage.blob.aio", "azure.batch.aio") if name in sys.modules])
"""


@pytest.mark.usefixtures("airflow_home")
@pytest.mark.parametrize(
    "host",
    [
        "https://me.blob.core.windows.net",
        "https://me.blob.core.windows.net/",
        "http://127.0.0.1:10000/me",
        "me.blob.core.windows.net",  # no scheme: left to WasbHook
        "me",
    ],
)
@pytest.mark.parametrize("extra", [{}, {"resource_id": "/subscriptions/x"}, {"connection_timeout": 7}])
def test_blob_client_is_that_of_wasb_hook(monkeypatch: pytest.MonkeyPatch, host: str, extra: dict[str, object]) -> None:
    from airflow.providers.microsoft.azure.hooks.wasb import WasbHook

    from airflow_batchwrap import BatchWrapHook

    monkeypatch.setenv("AIRFLOW_CONN_WASB_DEFAULT", json.dumps({**BLOB, "host": host, "extra": extra}))
    ours, theirs = BatchWrapHook().blobs, WasbHook().get_conn()
    assert (ours.url, ours.account_name) == (theirs.url, theirs.account_name)
    assert ours.credential.account_key == theirs.credential.account_key == KEY


def test_account_keys_need_no_sign_in_of_identities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps(BATCH))
    monkeypatch.setenv("AIRFLOW_CONN_WASB_DEFAULT", json.dumps({**BLOB, "host": "http://127.0.0.1:1/me"}))
    done = subprocess.run([sys.executable, "-c", CLIENTS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.usefixtures("airflow_home")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"extra": {}}, ["it has no account_url in its extra"]),
        ({"extra": {}, "login": ""}, ["it has no account_url in its extra", "(an account's key) and no login"]),
        ({"extra": {}, "conn_type": "http"}, ["it is of type 'http'", "it has no account_url in its extra"]),
        ({"extra": {"account_url": "me.westus.batch.azure.com"}}, ["account_url = 'me.westus.batch.azure.com' is not"]),
    ],
)
def test_all_that_is_wrong_with_a_batch_connection_is_told(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], said: list[str]
) -> None:
    from airflow_batchwrap import BatchWrapHook
    from airflow_batchwrap.exceptions import ConfigError

    monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps({**BATCH, **changes}))
    with pytest.raises(ConfigError) as caught:
        _ = BatchWrapHook().batch
    for words in [*said, "it needs extra account_url, login and password", "AIRFLOW_CONN_AZURE_BATCH_DEFAULT"]:
        assert words in str(caught.value)
    assert KEY not in str(caught.value)
