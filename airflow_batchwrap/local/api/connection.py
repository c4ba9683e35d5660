"""A client's connection: bounded in the size of its heads and in the time a request may take to arrive."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: The largest request line and headers, in bytes.
HEAD_LIMIT = 64 * 1024
#: How long a client has to close its side of a connection over TLS, in seconds.
_GOODBYE = 0.1
#: Where a request's scope holds what cuts its connection.
CUT = "batchwrap.cut"


class Connection(HttpToolsProtocol):
    """A connection that is closed when a request does not arrive in time, or never ends its head.

    One that is idle between requests is left to uvicorn, which closes it after a while.
    """

    #: How long a request may take to arrive, head and body, in seconds.
    request_time: ClassVar[float] = 30.0

    _clock: asyncio.TimerHandle | None = None
    _between = True
    _in_head = True
    _head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wind()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        if self._between:
            # Line ends before a request mean nothing (RFC 9112, section 2.2). On a connection that waits for one, they
            # begin its time, which more of them do not begin anew.
            data = data.lstrip(b"\r\n")
            if not data:
                if self._clock is None and (self.cycle is None or self.cycle.response_complete):
                    self._wind()
                return
        super().data_received(data)
        if self._in_head:
            self._head += len(data)
            if self._head > HEAD_LIMIT and not self.transport.is_closing():
                self.send_400_response(f"The request line and the headers are larger than {HEAD_LIMIT} bytes.")

    def on_message_begin(self) -> None:
        """See a request begin."""
        super().on_message_begin()
        cast(dict[str, Any], self.scope)[CUT] = self.transport.abort
        self._between, self._in_head, self._head = False, True, 0
        if self._clock is None:
            self._wind()

    def on_headers_complete(self) -> None:
        """See the end of a request's head."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """See the end of a request."""
        self._stop()
        self._between, self._head = True, 0
        super().on_message_complete()

    def shutdown(self) -> None:
        """Close what is idle, as the service stops.

        With TLS a connection is closed when the client has said so as well, which a pool of connections never does.
        """
        super().shutdown()
        if self.transport.is_closing() and self.transport.get_extra_info("sslcontext") is not None:
            asyncio.get_running_loop().call_later(_GOODBYE, self.transport.abort)

    def _wind(self) -> None:
        self._clock = asyncio.get_running_loop().call_later(self.request_time, self.transport.abort)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
