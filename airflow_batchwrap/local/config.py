"""How the service was started."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from airflow_batchwrap.local.faults import Faults
from airflow_batchwrap.local.identity import Identity
from airflow_batchwrap.local.pace import INSTANT, Pace
from airflow_batchwrap.local.quotas import Quotas
from airflow_batchwrap.local.store import PATIENCE


@dataclass(frozen=True)
class Config:
    """How the service was started.

    :param data: the data directory, with no symbolic link in its path.
    :param account: the account's name.
    :param key: the account's key, decoded.
    :param url: the service's address, such as ``http://127.0.0.1:1234``.
    :param hosts: the values of the Host header that name this service, in lower case.
    :param pace: how long things take.
    :param capacity: how many nodes there are to be had, over all pools; None for as many as are wanted. More wait for
        others to go, until their pool's resize timeout.
    :param quotas: how many jobs, pools and cores the account may have.
    :param faults: what goes wrong on purpose.
    :param identity: whose tokens are taken; None for nobody's.
    :param patience: how long the state may be not writable before the service ends, in seconds.
    :param trusted: certificates of authorities that nodes trust, beside the well-known ones, when they transfer files.
    """

    data: Path
    account: str
    key: bytes = field(repr=False)
    url: str = ""
    hosts: frozenset[str] = frozenset()
    pace: Pace = INSTANT
    capacity: int | None = None
    quotas: Quotas = field(default_factory=Quotas)
    faults: Faults = field(default_factory=Faults)
    identity: Identity | None = None
    trusted: tuple[Path, ...] = ()
    patience: float = PATIENCE

    @cached_property
    def nodes(self) -> Path:
        """The directory of all nodes."""
        return self.data / "nodes"

    @cached_property
    def aside(self) -> Path:
        """The directory of what could not be removed yet."""
        return self.data / "removed"
