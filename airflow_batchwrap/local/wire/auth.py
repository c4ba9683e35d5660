"""SharedKey signatures: the text that is signed, and its check."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qs

from airflow_batchwrap.local.wire.errors import BatchError

#: How far a request's date may be from the service's, in seconds (Learn: "Authenticate requests to the Batch service").
WINDOW = 15 * 60

_SIGNED_HEADERS = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)


def string_to_sign(
    method: str, path: str, query: str, headers: Mapping[str, str], account: str, *, lower: bool = False
) -> str:
    """The text a client signs.

    :param method: the HTTP verb, upper case.
    :param path: the URL's path as sent, still percent-encoded.
    :param query: the URL's query as sent.
    :param headers: the request's headers, names in lower case.
    :param account: the account's name.
    :param lower: with the names of the query in lower case, as the documentation has it, and not as they are sent, as
        Azure's SDKs do it (https://learn.microsoft.com/rest/api/batchservice/authenticate-requests-to-the-azure-batch-service).
    :return: the text.
    """
    lines = [method]
    lines += [headers.get(name, "") for name in _SIGNED_HEADERS]
    lines += [f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith("ocp-") and headers[name]]
    lines.append(f"/{account}{path}")
    # Empty values are dropped by parse_qs, and only the first of repeated ones counts: both as the clients do it.
    parameters = parse_qs(query)
    if lower:
        parameters = {name.lower(): values for name, values in reversed(parameters.items())}
    lines += [f"{name}:{parameters[name][0]}" for name in sorted(parameters)]
    return "\n".join(lines)


def sign(text: str, key: bytes) -> str:
    """Sign a text.

    :param text: what `string_to_sign` gives.
    :param key: the account's key, decoded.
    :return: the signature in base64.
    """
    return base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()


def verify(
    method: str, path: str, query: str, headers: Mapping[str, str], *, account: str, key: bytes, now: float
) -> None:
    """Check a request's signature, in constant time, and its date.

    :param method: the HTTP verb, upper case.
    :param path: the URL's path as sent.
    :param query: the URL's query as sent.
    :param headers: the request's headers, names in lower case.
    :param account: the account's name.
    :param key: the account's key, decoded.
    :param now: seconds since the epoch.
    :raises BatchError: the request is not signed at all, or not with this key, or its date is more than 15 minutes off.
    """
    if "authorization" not in headers:
        raise BatchError("MissingRequiredHeader", values={"HeaderName": "Authorization"})
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    name, _, signature = credentials.partition(":")
    if scheme != "SharedKey" or not signature:
        raise BatchError("AuthenticationFailed", "The request carries no SharedKey signature.")
    # A request without a body may name no length at all: some clients sign that as "0", others as nothing.
    readings = [headers]
    if method not in ("GET", "HEAD") and not headers.get("content-length"):
        readings.append({**headers, "content-length": "0"})
    given = f"{name}:{signature}".encode()
    # No recording tells which form of the query's names the real service takes: here it is both.
    forms = (False,) if query == query.lower() else (False, True)
    fits = [
        hmac.compare_digest(
            f"{account}:{sign(string_to_sign(method, path, query, reading, account, lower=lower), key)}".encode(), given
        )
        for reading in readings
        for lower in forms
    ]
    if not any(fits):
        raise BatchError("AuthenticationFailed")
    try:
        sent = parsedate_to_datetime(headers.get("ocp-date") or headers.get("date", "")).timestamp()
    except (OverflowError, TypeError, ValueError):
        raise BatchError("AuthenticationFailed", "The request carries no ocp-date or date that can be read.") from None
    if abs(now - sent) > WINDOW:
        raise BatchError("AuthenticationFailed", "The request's date is more than 15 minutes off the service's clock.")
