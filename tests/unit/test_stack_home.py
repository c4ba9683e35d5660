"""An Airflow home: made once, kept, and private."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from airflow_batchwrap.stack import home


@dataclass(frozen=True)
class Account:
    url: str
    account: str
    key: str


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "airflow"
    home.create(folder, home.settings(tmp_path / "dags 100%", 20001, tmp_path / "results"))
    return folder


def test_airflow_reads_what_was_set(made: Path, tmp_path: Path) -> None:
    code = "from airflow.configuration import conf; print(conf.get('core', 'dags_folder'), conf.getint('api', 'port'))"
    told = subprocess.run(
        [sys.executable, "-c", code], env=home.environment(made), capture_output=True, text=True, check=True
    )
    assert told.stdout.split("\n")[-2] == f"{tmp_path}/dags 100% 20001"


def test_database_is_migrated(made: Path) -> None:
    with closing(sqlite3.connect(made / "airflow.db")) as database:
        tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
    assert {"dag_run", "task_instance", "xcom", "alembic_version"} <= tables


def test_a_write_of_another_process_is_waited_for(made: Path, tmp_path: Path) -> None:
    """A busy machine takes longer than the 5 s of Python for a write; the scheduler would end with an error."""
    code = (
        "from sqlalchemy import text; from airflow import settings\n"
        "print(settings.engine.url.database, settings.engine.connect().execute(text('PRAGMA busy_timeout')).scalar())\n"
        "print(settings.async_engine.url.database, settings.async_engine.url.query['timeout'])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=home.environment(made),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.splitlines()[-2:] == [f"{made}/airflow.db 12000", f"{made}/airflow.db 12"]


@pytest.mark.as_user
def test_secrets_are_private_and_stay_when_the_home_is_used_again(made: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_text() for path in made.iterdir() if path.suffix in {".cfg", ".generated"}}
    password = home.create(made, home.settings(tmp_path / "dags 100%", 20001, tmp_path / "results"))
    after = {path.name: path.read_text() for path in made.iterdir() if path.suffix in {".cfg", ".generated"}}
    assert after == before
    assert len(before) == 2
    assert json.loads(before["simple_auth_manager_passwords.json.generated"]) == {"admin": password}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.iterdir() if path.is_file()} == {0o600}
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_two_homes_share_no_secret(tmp_path: Path) -> None:
    options = home.settings(tmp_path, 20001, tmp_path)
    passwords = {home.create(tmp_path / name, options) for name in ("a", "b")}
    assert len(passwords) == 2
    assert (tmp_path / "a/airflow.cfg").read_text() != (tmp_path / "b/airflow.cfg").read_text()


def test_own_airflow_settings_of_a_person_do_not_reach_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW_CONFIG", "/elsewhere/airflow.cfg")
    monkeypatch.setenv("AIRFLOW_VAR_MINE", "kept")
    env = home.environment(tmp_path, {"EXTRA": "1"})
    assert {"AIRFLOW__CORE__EXECUTOR", "AIRFLOW_CONFIG"}.isdisjoint(env)
    assert (env["AIRFLOW_HOME"], env["AIRFLOW_VAR_MINE"], env["EXTRA"]) == (str(tmp_path), "kept", "1")
    assert env["PATH"] == os.environ["PATH"]


def test_connections_name_the_local_services() -> None:
    blob = Account("http://127.0.0.1:1/devstoreaccount1", "devstoreaccount1", "a2V5")
    batch = Account("http://127.0.0.1:2", "batchwraplocal", "c2VjcmV0")
    env = home.connections(blob, batch)
    assert json.loads(env["AIRFLOW_CONN_WASB_DEFAULT"])["host"] == blob.url
    azure_batch = json.loads(env["AIRFLOW_CONN_AZURE_BATCH_DEFAULT"])
    assert (azure_batch["login"], azure_batch["password"]) == (batch.account, batch.key)
    assert azure_batch["extra"] == {"account_url": batch.url}
