"""A line for each request of the API, in a file: to count what clients ask for."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_batchwrap.local.wire import routes
from airflow_batchwrap.local.wire.errors import BatchError

#: In place of a status, where the connection was cut instead of an answer.
NO_ANSWER = "-"


class AccessLog:
    """Write down what is asked for and how it is answered, and nothing that a query or a body holds.

    A line has, separated by spaces: when the request came, the status, the operation (``-`` where it is none), verb and
    path as sent, and how long the answer took, in milliseconds.

    :param app: the API.
    :param file: where to.
    """

    def __init__(self, app: ASGIApp, file: TextIO) -> None:
        self._app = app
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the API answer one request."""
        came, began, status = datetime.now(UTC), time.perf_counter(), NO_ANSWER

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            path = scope["raw_path"].decode("latin-1").partition("?")[0]
            took = (time.perf_counter() - began) * 1e3
            line = f"{came:%Y-%m-%dT%H:%M:%S.%fZ} {status} {_operation(scope['method'], path)} {scope['method']} {path}"
            self._file.write(f"{line} {took:.1f}\n")


def _operation(method: str, path: str) -> str:
    try:
        return routes.find(method, path)[0].name
    except BatchError:
        return "-"
