"""The predecessor's ``credentials.json``, and the Airflow connections that replace it."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import re
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

from pydantic import SecretStr, ValidationError, field_validator

from airflow_batchwrap.config.base import ConfigModel, describe, explain
from airflow_batchwrap.config.files import caller_folder, read_json_object, resolve_path
from airflow_batchwrap.exceptions import ConfigError

log = logging.getLogger(__name__)

# Read, and of no use here: an older version sent results through a message bus.
IGNORED = frozenset({"servicebus_connection_string"})
_OTHERS_MAY_READ = 0o077


class Credentials(ConfigModel):
    """The accounts of an older set-up; the upper-case names of its file and lower-case ones are the same keys.

    :param storage_account_url: Blob's address, where it is not ``https://<name>.blob.core.windows.net``.
    :param storage_connection_string: instead of a storage account's name and key.
    """

    batch_account_name: str
    batch_account_key: SecretStr
    batch_account_url: str
    storage_account_name: str | None = None
    storage_account_key: SecretStr | None = None
    storage_account_url: str | None = None
    storage_connection_string: SecretStr | None = None

    @field_validator("batch_account_name", "storage_account_name")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        # Azure: 3 to 24 lower-case letters and digits; Azurite's account has a longer name than a real one may have.
        # https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules
        if value is not None and not re.fullmatch(r"[a-z0-9]{3,32}", value):
            raise ValueError("use the account's name, which is lower-case letters and digits alone")
        return value

    @field_validator("batch_account_key", "storage_account_key")
    @classmethod
    def _whole(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                if not base64.b64decode(value.get_secret_value().strip(), validate=True):
                    raise ValueError
            except (binascii.Error, ValueError):
                raise ValueError("it is not a whole account key (base64): copy it again from the portal") from None
            return SecretStr(value.get_secret_value().strip())
        return value

    @field_validator("batch_account_url", "storage_account_url")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        url = value if "://" in value else f"https://{value}"
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and parts.port != 0
        except ValueError:
            usable = False
        if not usable or re.search(r"[<>\s@]", url):
            raise ValueError("use the address that the portal shows, such as https://name.region.batch.azure.com")
        return url.rstrip("/")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str] = "credentials.json") -> Self:
        """Read a credentials file; the log warns of one that others may read.

        :param path: a relative one is looked for beside the file of the caller, then in the working directory.
        :raises ConfigError: with all that is wrong in it, and no secret.
        """
        file = resolve_path(path, caller_folder())
        data = read_json_object(file)
        _warn_if_readable(file)
        return cls.from_dict(data, source=str(file))

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, source: str = "credentials") -> Self:
        """Build credentials from the content of a file.

        :raises ConfigError: with all that is wrong in it, and no secret.
        """
        values: dict[str, Any] = {}
        problems = []
        for name, value in data.items():
            key = name.lower().lstrip("_") if name == name.upper() else name
            if key in values and values[key] != value:
                problems.append(f"{name} and its lower-case name have different values: keep one.")
            elif key not in IGNORED:
                values[key] = value
        try:
            found = cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(describe(source, problems + explain(error, known=list(cls.model_fields)))) from None
        pair = (found.storage_account_name, found.storage_account_key)
        if found.storage_connection_string is None and None in pair:
            problems.append("storage_account_name and storage_account_key, or storage_connection_string, are missing.")
        if found.storage_connection_string is not None and any(pair):
            problems.append("storage_connection_string and storage_account_name are two ways to say one: keep one.")
        if problems:
            raise ConfigError(describe(source, problems))
        return found

    def batch_connection_json(self) -> str:
        """Return the ``azure_batch`` connection as Airflow reads it from a variable; the key is in it."""
        return json.dumps(self._batch())

    def batch_connection_uri(self) -> str:
        """Return the ``azure_batch`` connection as a URI; the key is in it."""
        return _uri(self._batch())

    def wasb_connection_json(self) -> str:
        """Return the ``wasb`` connection as Airflow reads it from a variable; the key is in it."""
        return json.dumps(self._wasb())

    def wasb_connection_uri(self) -> str:
        """Return the ``wasb`` connection as a URI; the key is in it."""
        return _uri(self._wasb())

    def _batch(self) -> dict[str, Any]:
        return {
            "conn_type": "azure_batch",
            "login": self.batch_account_name,
            "password": self.batch_account_key.get_secret_value(),
            "extra": {"account_url": self.batch_account_url},
        }

    def _wasb(self) -> dict[str, Any]:
        if self.storage_connection_string is not None:
            return {
                "conn_type": "wasb",
                "extra": {"connection_string": self.storage_connection_string.get_secret_value()},
            }
        key = self.storage_account_key
        return {
            "conn_type": "wasb",
            "login": self.storage_account_name,
            "password": key.get_secret_value() if key else None,
            "host": self.storage_account_url or f"https://{self.storage_account_name}.blob.core.windows.net",
        }


def connection_env(credentials: Credentials) -> dict[str, str]:
    """Return the environment variables that give Airflow its two connections; the keys are in the values."""
    return {
        "AIRFLOW_CONN_AZURE_BATCH_DEFAULT": credentials.batch_connection_json(),
        "AIRFLOW_CONN_WASB_DEFAULT": credentials.wasb_connection_json(),
    }


def _uri(connection: dict[str, Any]) -> str:
    # Airflow's form: a dash for each underscore of the type, and an address in the place of the host, quoted whole.
    login, password = (quote(connection.get(part) or "", safe="") for part in ("login", "password"))
    who = f"{login}:{password}@" if login else ""
    extra = connection.get("extra")
    query = f"?{urlencode(extra)}" if extra else ""
    return f"{connection['conn_type'].replace('_', '-')}://{who}{quote(connection.get('host') or '', safe='')}/{query}"


def _warn_if_readable(file: Path) -> None:
    mode = file.stat().st_mode & 0o777
    if os.name == "posix" and mode & _OTHERS_MAY_READ:
        log.warning("%s holds account keys and others may read it (mode %04o): run chmod 600 on it.", file, mode)
