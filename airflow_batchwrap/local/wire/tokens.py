"""Tokens as Entra ID gives them: what is in one, and what Batch answers where something about it is wrong.

Each is signed by a key of the data directory. Azure's own are signed with RSA; clients do not look into them.
"""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.local.wire.errors import BatchError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

#: What a token for Batch may name as its audience. SDKs ask for the scope ``https://batch.core.windows.net//.default``,
#: of which Entra makes the first (https://github.com/Azure/azure-sdk-for-net/issues/8026); some keep both slashes.
AUDIENCES = ("https://batch.core.windows.net/", "https://batch.core.windows.net//")
#: How long a token is good for, in seconds. A managed identity's live for 24 h
#: (https://learn.microsoft.com/en-us/entra/identity/managed-identities-azure-resources/managed-identities-faq).
LIFE = 24 * 3600
_ISSUER = "https://sts.windows.net/{}/"
_FAILED = "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly."


@dataclass(frozen=True)
class Authority:
    """Gives tokens and reads them.

    :param tenant: the tenant's id.
    :param key: the signing key, 32 bytes.
    """

    tenant: str
    key: bytes

    @cached_property
    def _signer(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.key)

    def issue(self, resource: str, client: str, subject: str, now: float, life: float = LIFE) -> tuple[str, str]:
        """Give a token.

        :param resource: for what, such as ``https://batch.core.windows.net/``.
        :param client: the identity's client id.
        :param subject: the identity's object id.
        :param now: seconds since the epoch.
        :param life: how long it is good for, in seconds.
        :return: the token, and its own id (claim ``uti``).
        """
        own, issuer = secrets.token_urlsafe(16), _ISSUER.format(self.tenant)
        claims = {
            "aud": resource,
            "iss": issuer,
            "iat": int(now),
            # As Entra does: a clock may be a little behind.
            "nbf": int(now) - 300,
            "exp": int(now + life),
            "appid": client,
            "idp": issuer,
            "idtyp": "app",
            "oid": subject,
            "sub": subject,
            "tid": self.tenant,
            "uti": own,
            "ver": "1.0",
        }
        signed = f"{_coded({'typ': 'JWT', 'alg': 'EdDSA'})}.{_coded(claims)}"
        return f"{signed}.{_base64(self._signer.sign(signed.encode()))}", own

    def read(self, token: str, now: float) -> dict[str, Any]:
        """Read a token that came with a request to Batch.

        :param token: what followed ``Bearer``.
        :param now: seconds since the epoch.
        :return: its claims.
        :raises BatchError: 401: it is not of this authority, or not for Batch, or not good any more or yet.
        """
        claims = self._signed_claims(token)
        if claims["iss"] != _ISSUER.format(self.tenant):
            raise refused(
                f"The access token is from the wrong issuer '{claims['iss']}'. It must match the tenant "
                f"'{_ISSUER.format(self.tenant)}' associated with this subscription."
            )
        if claims["aud"] not in AUDIENCES:
            raise refused(
                f"The access token has been obtained from wrong audience or resource '{claims['aud']}'. It should "
                f"exactly match (including forward slash) with one of the allowed audiences '{AUDIENCES[0]}'"
            )
        if now >= claims["exp"]:
            raise expired(claims["exp"], now)
        if now < claims["nbf"]:
            raise refused("The access token is not valid yet.")
        return claims

    def _signed_claims(self, token: str) -> dict[str, Any]:
        from cryptography.exceptions import InvalidSignature

        signed, _, signature = token.rpartition(".")
        try:
            self._signer.public_key().verify(_bytes(signature), signed.encode())
            claims = json.loads(_bytes(signed.partition(".")[2]))
            return {"aud": "", "iss": "", "exp": 0, "nbf": 0, "oid": "", "uti": "", **claims}
        except (ValueError, InvalidSignature):
            raise refused("The access token is invalid.") from None


def refused(detail: str) -> BatchError:
    """Return Batch's answer to a token that it does not take: 401 with the detail beside the message.

    :param detail: what is wrong with it.
    """
    return BatchError("AuthenticationFailed", _FAILED, values={"AuthenticationErrorDetail": detail}, status=401)


def expired(end: float, now: float) -> BatchError:
    """Return Batch's answer to a token that has expired.

    :param end: when, in seconds since the epoch.
    :param now: seconds since the epoch.
    """
    told = [f"{datetime.fromtimestamp(moment, UTC):%m/%d/%Y %I:%M:%S %p}" for moment in (end, now)]
    return refused(f"The access token expiry UTC time '{told[0]}' is earlier than current UTC time '{told[1]}'.")


def _coded(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
