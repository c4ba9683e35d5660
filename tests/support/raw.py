"""Requests as bytes, signed by hand, so that any part of them can be wrong."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any
from urllib.parse import urlencode, urlsplit

from airflow_batchwrap.local.runner import LocalService

VERSION = "2025-06-01"


def connect(service: LocalService) -> socket.socket:
    """A bare connection."""
    parts = urlsplit(service.url)
    connection = socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=20)
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=service.authority)
        return context.wrap_socket(connection, server_hostname=parts.hostname)
    return connection


def head(
    service: LocalService,
    method: str,
    path: str,
    body: bytes = b"",
    query: Mapping[str, str] | None = None,
    **headers: str,
) -> bytes:
    """The head of a signed request.

    :param query: query parameters beside the api-version.
    :param headers: more headers, with underscores for hyphens; ``length`` is what is signed and sent as the length,
        ``ocp_date`` as the date.
    """
    date = headers.pop("ocp_date", formatdate(usegmt=True))
    kind = "application/json; odata=minimalmetadata" if body else ""
    length = headers.pop("length", str(len(body)) if body or method not in ("GET", "HEAD") else "")
    encoding = headers.get("Content_Encoding", "")
    asked = {"api-version": VERSION, **(query or {})}
    since, until = headers.get("if_modified_since", ""), headers.get("if_unmodified_since", "")
    lines = [
        method,
        encoding,
        "",
        length,
        "",
        kind,
        "",
        since,
        "",
        "",
        until,
        headers.get("Range", ""),
        f"ocp-date:{date}",
    ]
    lines += [f"/{service.account}{path}", *(f"{name}:{asked[name]}" for name in sorted(asked) if asked[name])]
    digest = hmac.new(base64.b64decode(service.key), "\n".join(lines).encode(), hashlib.sha256).digest()
    sent = {
        "Host": service.url.partition("://")[2],
        "ocp-date": date,
        "Authorization": f"SharedKey {service.account}:{base64.b64encode(digest).decode()}",
    }
    sent |= {"Content-Length": length} if length else {}
    sent |= {"Content-Type": kind} if kind else {}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    text = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"{method} {path}?{urlencode(asked)} HTTP/1.1\r\n{text}\r\n".encode()


def status_of(connection: socket.socket) -> int:
    """The status of an answer, which is read to its end: the connection can be used again."""
    with contextlib.closing(http.client.HTTPResponse(connection)) as answer:
        answer.begin()
        answer.read()
        return answer.status


def ask(service: LocalService, request: bytes) -> tuple[int, bytes]:
    """Send bytes as they are, and read the answer; 0 where the connection was closed without one."""
    with connect(service) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
        with contextlib.closing(
            http.client.HTTPResponse(connection, method=request[:4].decode("latin-1").strip())
        ) as answer:
            try:
                answer.begin()
                return answer.status, answer.read()
            except (http.client.HTTPException, ConnectionError):
                return 0, b""


def signed(
    service: LocalService, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None
) -> tuple[int, dict[str, Any]]:
    """Send a signed request, and read its JSON.

    :param query: query parameters beside the api-version.
    :param body: what is sent as JSON.
    """
    raw = b"" if body is None else json.dumps(body).encode()
    status, answer = ask(service, head(service, method, path, raw, query) + raw)
    return status, json.loads(answer or b"{}")


def page(service: LocalService, path: str) -> tuple[int, str]:
    """A page, with the cookie that its token gives."""
    token = (service.data / "page-token").read_text().strip()
    host = service.url.partition("://")[2]
    with connect(service) as connection:
        connection.sendall(f"GET /ui/?token={token} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        answer = connection.recv(64 * 1024).decode()
    cookie = next(line for line in answer.split("\r\n") if line.lower().startswith("set-cookie"))
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie.partition(': ')[2].partition(';')[0]}\r\n\r\n"
    status, body = ask(service, request.encode())
    return status, body.decode()
