"""An Airflow home: its settings, its secrets and its migrated database, made without starting Airflow."""

from __future__ import annotations

import base64
import configparser
import importlib.metadata
import json
import os
import secrets
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Protocol, TextIO

from filelock import FileLock

from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.stack.paths import cache_dir

USER = "admin"
LOOPBACK = "127.0.0.1"
_PASSWORDS = "simple_auth_manager_passwords.json.generated"
_MIGRATION_TIMEOUT = 300.0
# Seconds that a process of Airflow waits for another one's write. After Python's own 5 s a scheduler on a busy machine
# ends with "database is locked": https://docs.python.org/3/library/sqlite3.html#sqlite3.connect (timeout). Not much
# longer: the API server can wait for a lock that it holds itself.
LOCK_SECONDS = 12

Settings = dict[str, dict[str, str]]


class Account(Protocol):
    """How a local service is reached: Azurite and the local Batch service both do."""

    @property
    def url(self) -> str: ...
    @property
    def account(self) -> str: ...
    @property
    def key(self) -> str: ...


def connections(blob: Account, batch: Account, *, keys: bool = True) -> dict[str, str]:
    """Describe the two local services as Airflow connections, the only thing that a real account would change.

    :param blob: Azurite.
    :param keys: whether they hold the accounts' keys; else an identity signs in.
    :return: environment variables. They hold keys, if asked to.
    """
    wasb = {"conn_type": "wasb", "host": blob.url, "login": blob.account}
    azure_batch = {"conn_type": "azure_batch", "login": batch.account, "extra": {"account_url": batch.url}}
    if keys:
        wasb["password"], azure_batch["password"] = blob.key, batch.key
    return {
        "AIRFLOW_CONN_WASB_DEFAULT": json.dumps(wasb),
        "AIRFLOW_CONN_AZURE_BATCH_DEFAULT": json.dumps(azure_batch),
    }


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give the environment of a process that belongs to one Airflow home.

    A person's own Airflow settings would win over the home's, so they are left out; their connections and variables
    (``AIRFLOW_CONN_*``, ``AIRFLOW_VAR_*``) stay.
    """
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AIRFLOW__") and name not in {"AIRFLOW_HOME", "AIRFLOW_CONFIG"}
    }
    return {**own, "AIRFLOW_HOME": str(home), **(extra or {})}


def settings(dags: Path, port: int, results: Path, host: str = LOOPBACK) -> Settings:
    """List the settings of a small Airflow on loopback.

    :param dags: the folder of DAG files.
    :param port: the port of its API server.
    :param results: where ``BatchWorkflow`` puts the files it fetches.
    :param host: the address that its API server listens on.
    :return: section -> option -> value. No secret is among them.
    """
    return {
        "core": {
            "dags_folder": str(dags),
            "load_examples": "False",
            "dags_are_paused_at_creation": "False",
            "parallelism": "4",
            "execution_api_server_url": f"http://127.0.0.1:{port}/execution/",
            "simple_auth_manager_users": f"{USER}:admin",
            # The default looks the full name up in the DNS, which takes seconds on some laptops.
            "hostname_callable": "socket.gethostname",
        },
        "api": {"host": host, "port": str(port), "base_url": f"http://127.0.0.1:{port}", "workers": "1"},
        # Half the time of a chain of short tasks is the scheduler's sleep of 1 s.
        "scheduler": {"scheduler_idle_sleep_time": "0.1", "enable_health_check": "False"},
        # With the quick scheduler, a supervisor that lingers for the default 5 s after its task ended can meet the
        # task's next start, which is then failed as "task instance's state attribute is queued".
        "workers": {"min_heartbeat_interval": "1"},
        # A new or changed step file shows within seconds.
        "dag_processor": {"refresh_interval": "10", "min_file_process_interval": "10", "print_stats_interval": "300"},
        # Azure's clients write a dozen lines for each request, which bury what a step has to say.
        "logging": {"namespace_levels": "azure=WARNING"},
        "usage_data_collection": {"enabled": "False"},
        "batchwrap": {"results_base": str(results)},
    }


def create(home: Path, options: Settings) -> str:
    """Make a home, or bring one that exists up to date; a home keeps its database, its secrets and its password.

    :param home: the folder, made for its owner only.
    :param options: section -> option -> value.
    :return: the password of the user ``admin``.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = configparser.ConfigParser(interpolation=None)
    config.read(home / "airflow.cfg")
    options = {**options, "database": {"sql_alchemy_conn": f"sqlite:///{home}/airflow.db?timeout={LOCK_SECONDS}"}}
    wanted = [(section, option, value) for section, values in options.items() for option, value in values.items()]
    missing = [each for each in _fresh_secrets() if not config.has_option(each[0], each[1])]
    for section, option, value in wanted + missing:
        if not config.has_section(section):
            config.add_section(section)
        # Airflow's own reader takes % as the start of an interpolation.
        config.set(section, option, value.replace("%", "%%"))
    with _private(home / "airflow.cfg") as file:
        config.write(file)
    migrate(home / "airflow.db")
    return password(home)


def _fresh_secrets() -> list[tuple[str, str, str]]:
    return [
        ("core", "fernet_key", base64.urlsafe_b64encode(os.urandom(32)).decode()),
        ("api", "secret_key", secrets.token_urlsafe(48)),
        ("api_auth", "jwt_secret", secrets.token_urlsafe(64)),
    ]


def password(home: Path) -> str:
    """Read the password of the user ``admin``, chosen at random when it is first asked for."""
    path = home / _PASSWORDS
    if path.exists():
        known = json.loads(path.read_text())
        if isinstance(known.get(USER), str):
            return str(known[USER])
    chosen = secrets.token_urlsafe(12)
    with _private(path) as file:
        json.dump({USER: chosen}, file)
    return chosen


def _private(path: Path) -> TextIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w")


def migrate(database: Path) -> None:
    """Put a migrated SQLite database in place, copied from one that is made once for each release of Airflow.

    :param database: the file; one that exists stays as it is.
    :raises ConfigError: Airflow could not make its tables.
    """
    if database.exists():
        return
    with closing(sqlite3.connect(_template())) as source, closing(sqlite3.connect(database)) as target:
        source.backup(target)
    database.chmod(0o600)


def _template() -> Path:
    version = importlib.metadata.version("apache-airflow-core")
    template = cache_dir() / f"airflow-{version}.db"
    if template.exists():
        return template
    template.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(template.with_suffix(".lock"), timeout=_MIGRATION_TIMEOUT):
        if not template.exists():
            with tempfile.TemporaryDirectory(prefix="batchwrap-airflow-", dir=template.parent) as folder:
                _make_tables(Path(folder))
                with closing(sqlite3.connect(Path(folder) / "airflow.db")) as made:
                    # All of it into the one file that is kept.
                    made.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    made.execute("PRAGMA journal_mode=DELETE")
                (Path(folder) / "airflow.db").rename(template)
    return template


def _make_tables(home: Path) -> None:
    env = environment(home, {"AIRFLOW__CORE__LOAD_EXAMPLES": "False"})
    code = "from airflow.utils import db; db.initdb()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_MIGRATION_TIMEOUT,
    )
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise ConfigError(f"Airflow could not make the tables of its database (exit code {done.returncode}):\n{end}")
