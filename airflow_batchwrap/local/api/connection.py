"""A client's connection: bounded in the size of what it sends, in the time that takes, and in number."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

#: The largest request line and headers, in bytes.
HEAD_LIMIT = 64 * 1024
_LARGE = f"The request line and the headers are larger than {HEAD_LIMIT} bytes."
#: The largest request with all that frames its body (chunks and their extensions), in bytes: twice what of a body
#: that is too large is read and dropped.
REQUEST_LIMIT = 32 * 1024 * 1024
#: How many requests may be sent ahead of their answers. Azure's clients wait for each.
AHEAD = 16
#: How long a client has to close its side of a connection over TLS, in seconds.
_GOODBYE = 0.1
#: Where a request's scope holds what cuts its connection, and what is called once its sender has shown a key or token.
CUT, KNOWN = "batchwrap.cut", "batchwrap.known"


#: As many connections as no farm has, where this process may open many more files.
MANY = 4096


def most_of(files: int) -> int:
    """How many connections leave enough of the files that a process may open to the rest of it.

    :param files: how many it may open; negative for any number.
    :return: half of them, and `MANY` at most.
    """
    return MANY if files < 0 else min(MANY, files // 2)


class Refused(Exception):
    """What a client sends is no request that is to be answered: it gets a 400, and the connection is closed."""


class Connection(HttpToolsProtocol):
    """A connection that is closed when a request does not arrive in time, or never ends, or its answer is not read.

    One that is idle between requests is left to uvicorn, which closes it after a while. Where there are too many, those
    go first of which no request was signed.
    """

    #: How long a request may take to arrive, head and body, in seconds; and how long a client may read nothing.
    request_time: ClassVar[float] = 30.0
    #: How many connections there may be; see `most_of`.
    most: ClassVar[int] = MANY

    _clock: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _between = True
    _in_head = True
    _head = _taken = _size = 0
    _known = False
    _answering: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wind()
        if len(self.connections) > self.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop()
        self.resume_writing()
        self._give_up()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        if self._between:
            # Line ends before a request mean nothing (RFC 9112, section 2.2). On a connection that waits for one, they
            # begin its time, which more of them do not begin anew.
            data = data.lstrip(b"\r\n")
            if not data:
                if self._clock is None and self._idle:
                    self._wind()
                return
        self._size += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head += len(data)
            if self._head > HEAD_LIMIT:
                self.send_400_response(_LARGE)
        elif self._size > REQUEST_LIMIT:
            self._cut()

    def on_message_begin(self) -> None:
        """See a request begin."""
        if len(self.pipeline) >= AHEAD:
            raise Refused
        super().on_message_begin()
        scope = cast(dict[str, Any], self.scope)
        scope[CUT], scope[KNOWN] = self._cut, self._welcome
        self._between, self._in_head = False, True
        self._head = self._taken = self._size = 0
        if self._clock is None:
            self._wind()

    def on_url(self, url: bytes) -> None:
        """Take (a part of) the path and the query."""
        self._take(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Of trailers, which follow a body, Batch has none."""
        if not self._in_head:
            raise Refused
        self._take(len(name) + len(value) + len(b": \r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See the end of a request's head, which names one host and a path of it (RFC 9112, section 3.2)."""
        self._in_head = False
        if sum(name == b"host" for name, _ in self.headers) > 1 or not self.url.startswith(b"/"):
            raise Refused
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """See the end of a request."""
        self._stop()
        self._between, self._head = True, 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """See that a client does not read as fast as it is sent to."""
        super().pause_writing()
        if self._reading is None:
            self._reading = asyncio.get_running_loop().call_later(self.request_time, self._cut)

    def resume_writing(self) -> None:
        """See that it reads on."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def send_400_response(self, msg: str) -> None:
        """Refuse a request; of one that was `Refused` for its size, the parser says only that it is none."""
        super().send_400_response(_LARGE if self._taken > HEAD_LIMIT else msg)

    def shutdown(self) -> None:
        """Close what is idle, as the service stops.

        With TLS a connection is closed when the client has said so as well, which a pool of connections never does.
        """
        super().shutdown()
        if self.transport.is_closing() and self.transport.get_extra_info("sslcontext") is not None:
            asyncio.get_running_loop().call_later(_GOODBYE, self.transport.abort)

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _take(self, size: int) -> None:
        """Count what a head holds, exactly: what arrives with the head's end is not all of the head."""
        self._taken += size
        if self._taken > HEAD_LIMIT:
            raise Refused

    def _welcome(self) -> None:
        self._known = True

    def _make_room(self) -> None:
        """Cut the connection of which the least is known; this one, where all others are at work."""
        others = (each for each in self.connections if isinstance(each, Connection) and each is not self)
        waiting = [each for each in others if each._idle]
        unknown = next((each for each in waiting if not each._known), None)
        (unknown or self)._cut()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _give_up(self) -> None:
        """Let all requests know that nobody waits for them: uvicorn tells the one that came last, and no other."""
        for cycle in (self._answering, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _cut(self) -> None:
        self._give_up()
        self.transport.abort()

    def _wind(self) -> None:
        self._clock = asyncio.get_running_loop().call_later(self.request_time, self._cut)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
