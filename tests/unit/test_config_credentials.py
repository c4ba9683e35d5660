"""credentials.json becomes Airflow's two connections, and its keys are shown nowhere else."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from airflow_batchwrap.config import Credentials, connection_env
from airflow_batchwrap.exceptions import ConfigError

KEY = "U0VDUkVUK0tFWS8vPz8/"  # base64 with a slash and a plus, which a URI must quote
SEED = {
    "BATCH_ACCOUNT_NAME": "mybatch",
    "BATCH_ACCOUNT_KEY": KEY,
    "BATCH_ACCOUNT_URL": "https://mybatch.eastus.batch.azure.com",
    "STORAGE_ACCOUNT_NAME": "mystorage",
    "STORAGE_ACCOUNT_KEY": KEY,
}


def error(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        Credentials.from_dict(data, source="credentials.json")
    assert KEY not in str(caught.value)
    return str(caught.value)


def test_the_predecessors_file_gives_connections_that_airflows_hooks_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.microsoft.azure.hooks.batch import AzureBatchHook
    from airflow.providers.microsoft.azure.hooks.wasb import WasbHook

    for name, value in connection_env(Credentials.from_dict(SEED)).items():
        monkeypatch.setenv(name, value)
    batch = AzureBatchHook().get_conn()
    assert str(batch._config.endpoint) == SEED["BATCH_ACCOUNT_URL"]
    credential: Any = batch._config.credential
    assert (credential.named_key.name, credential.named_key.key) == ("mybatch", KEY)
    blob = WasbHook().get_conn()
    assert blob.url.rstrip("/") == "https://mystorage.blob.core.windows.net"
    assert (blob.credential.account_name, blob.credential.account_key) == ("mystorage", KEY)


@pytest.mark.parametrize("form", ["json", "uri"])
def test_both_forms_are_what_airflow_reads(form: str) -> None:
    from airflow.sdk import Connection

    found = Credentials.from_dict({**SEED, "storage_account_url": "http://127.0.0.1:10000/mystorage"})
    texts = {"batch": getattr(found, f"batch_connection_{form}")(), "wasb": getattr(found, f"wasb_connection_{form}")()}
    read = {
        kind: Connection.from_json(text, conn_id=kind) if form == "json" else Connection.from_uri(text, conn_id=kind)
        for kind, text in texts.items()
    }
    batch, wasb = read["batch"], read["wasb"]
    assert (batch.conn_type, batch.login, batch.password) == ("azure_batch", "mybatch", KEY)
    assert batch.extra_dejson == {"account_url": SEED["BATCH_ACCOUNT_URL"]}
    assert (wasb.conn_type, wasb.login, wasb.password) == ("wasb", "mystorage", KEY)
    assert wasb.host == "http://127.0.0.1:10000/mystorage"


def test_a_connection_string_stands_for_the_storage_account() -> None:
    text = f"DefaultEndpointsProtocol=https;AccountName=mystorage;AccountKey={KEY};EndpointSuffix=core.windows.net"
    later = {key: value for key, value in SEED.items() if key.startswith("BATCH")}
    found = Credentials.from_dict(
        {**later, "STORAGE_CONNECTION_STRING": text, "SERVICEBUS_CONNECTION_STRING": "Endpoint=sb://x"}
    )
    assert json.loads(connection_env(found)["AIRFLOW_CONN_WASB_DEFAULT"]) == {
        "conn_type": "wasb",
        "extra": {"connection_string": text},
    }
    assert KEY not in repr(found)
    assert "two ways to say one" in error({**SEED, "STORAGE_CONNECTION_STRING": text})


def test_lower_case_names_are_the_same_keys() -> None:
    assert Credentials.from_dict({key.lower(): value for key, value in SEED.items()}) == Credentials.from_dict(SEED)
    assert "different values" in error({**SEED, "batch_account_name": "other"})


def test_no_key_is_shown() -> None:
    found = Credentials.from_dict(SEED)
    assert KEY not in f"{found!r} {found} {found.model_dump()} {found.model_dump_json()}"


def test_the_template_of_the_predecessor_is_told_for_what_it_is() -> None:
    message = error(
        {
            "BATCH_ACCOUNT_NAME": "batch account name",
            "BATCH_ACCOUNT_KEY": "batch key here",
            "BATCH_ACCOUNT_URL": "https://<account name>.<eastus>.batch.azure.com",
            "STORAGE_ACCOUNT_NAME": "name here",
            "STORAGE_ACCOUNT_KEY": "key here",
        }
    )
    assert "5 problems" in message
    assert "batch key here" not in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"BATCH_ACCOUNT_KEY": KEY[:-1]}, "batch_account_key: it is not a whole account key"),
        ({"BATCH_ACCOUNT_KEY": ""}, "batch_account_key"),
        ({"BATCH_ACCOUNT_KEY": [KEY]}, "batch_account_key"),
        ({"STORAGE_ACCOUNT_KEY": None}, "storage_account_name and storage_account_key"),
        ({"BATCH_ACCOUNT_URL": "ftp://x"}, "batch_account_url"),
        ({"BATCH_ACCOUNT_URL": "http://x:port"}, "batch_account_url"),
        ({"BATCH_ACOUNT_URL": "x"}, "did you mean batch_account_url"),
    ],
)
def test_what_is_wrong_is_told_without_the_keys(change: dict[str, Any], words: str) -> None:
    assert words in error({**SEED, **change})


def test_a_missing_key_is_told() -> None:
    assert "batch_account_key is missing" in error({key: SEED[key] for key in SEED if key != "BATCH_ACCOUNT_KEY"})


def test_an_address_needs_no_scheme() -> None:
    found = Credentials.from_dict({**SEED, "BATCH_ACCOUNT_URL": "mybatch.eastus.batch.azure.com/"})
    assert found.batch_account_url == "https://mybatch.eastus.batch.azure.com"


@pytest.mark.as_user
@pytest.mark.parametrize(("mode", "told"), [(0o644, True), (0o640, True), (0o600, False)])
def test_a_file_that_others_may_read_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, told: bool
) -> None:
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps(SEED))
    file.chmod(mode)
    with caplog.at_level(logging.WARNING, logger="airflow_batchwrap.config.credentials"):
        assert Credentials.from_json(file).batch_account_name == "mybatch"
    assert ("chmod 600" in caplog.text) is told
    assert KEY not in caplog.text
