"""The managed identity of the data directory: its ids, its role on the account, and its tokens."""

from __future__ import annotations

import json
import secrets
import uuid
from dataclasses import dataclass, field
from typing import Any

from airflow_batchwrap.local.faults import Faults
from airflow_batchwrap.local.home import Home, HomeError
from airflow_batchwrap.local.wire import tokens
from airflow_batchwrap.local.wire.errors import BatchError
from airflow_batchwrap.local.wire.routes import Operation

#: Where tokens are given, as App Service does (https://learn.microsoft.com/en-us/azure/app-service/
#: overview-managed-identity#rest-endpoint-reference).
PATH = "/msi/token"
#: The roles that there are, and what each may do: read pools, write pools, read jobs, write jobs. They are Azure's
#: built-in ones (https://learn.microsoft.com/en-us/azure/batch/batch-role-based-access-control).
ROLES = {
    "contributor": frozenset({"pools/read", "pools/write", "jobs/read", "jobs/write"}),
    "submitter": frozenset({"pools/read", "jobs/read", "jobs/write"}),
    "reader": frozenset({"pools/read", "jobs/read"}),
    "none": frozenset(),
}


@dataclass
class Identity:
    """Gives tokens to whoever knows the secret, and says what their bearer may do.

    :param client: its client id.
    :param subject: its object id.
    :param secret: what a request for a token has to carry (``X-IDENTITY-HEADER``).
    :param authority: what signs its tokens.
    :param role: one of `ROLES`.
    :param faults: what goes wrong on purpose.
    """

    client: str
    subject: str
    secret: str = field(repr=False)
    authority: tokens.Authority = field(repr=False)
    role: str = "contributor"
    faults: Faults = field(default_factory=Faults)
    #: The tokens that expire early on purpose, by their ids, and when.
    _early: dict[str, float] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, home: Home, role: str = "contributor", faults: Faults | None = None) -> Identity:
        """Read the identity of a data directory, made at random the first time.

        :param home: the data directory.
        :param role: one of `ROLES`.
        :param faults: what goes wrong on purpose.
        :return: it.
        :raises HomeError: what is kept of it cannot be read.
        """
        try:
            kept = json.loads(home.kept("identity.json", _fresh))
            authority = tokens.Authority(kept["tenant"], bytes.fromhex(kept["key"]))
            # An empty secret would be anybody's.
            whole = all(kept[name] for name in ("client", "object", "secret", "key"))
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise HomeError(
                f"{home.path / 'identity.json'} holds no managed identity that can be read: remove it for a new one."
            )
        return cls(kept["client"], kept["object"], kept["secret"], authority, role, faults or Faults())

    def token(self, resource: str, now: float) -> dict[str, str]:
        """Give a token, as App Service answers.

        :param resource: what it is for.
        :param now: seconds since the epoch.
        :return: the answer's body.
        """
        token, own = self.authority.issue(resource, self.client, self.subject, now)
        self._early = {key: moment for key, moment in self._early.items() if moment > now - tokens.LIFE}
        if self.faults.strikes("expire"):
            self._early[own] = now + self.faults.expire_after
        return {
            "access_token": token,
            "client_id": self.client,
            "expires_on": str(int(now + tokens.LIFE)),
            "resource": resource,
            "token_type": "Bearer",
        }

    def admit(self, token: str, now: float) -> None:
        """Check the token of a request to Batch.

        :param token: what followed ``Bearer``.
        :param now: seconds since the epoch.
        :raises BatchError: 401: Batch does not take it.
        """
        claims = self.authority.read(token, now)
        if now >= (early := self._early.get(claims["uti"], now + 1)):
            raise tokens.expired(early, now)
        if claims["oid"] != self.subject:
            raise BatchError("AuthorizationFailure")

    def allow(self, operation: Operation) -> None:
        """Check what the identity's role grants.

        :param operation: what is asked for.
        :raises BatchError: 403: more than its role grants.
        """
        kind = "jobs" if operation.path.startswith(("/jobs", "/jobschedules")) else "pools"
        verb = "read" if operation.method in ("GET", "HEAD") else "write"
        if f"{kind}/{verb}" not in ROLES[self.role]:
            raise BatchError("AuthorizationFailure")


def _fresh() -> str:
    made: dict[str, Any] = {name: str(uuid.uuid4()) for name in ("tenant", "client", "object")}
    return json.dumps({**made, "secret": secrets.token_hex(16), "key": secrets.token_hex(32)})
