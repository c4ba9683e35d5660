"""Lets clients in that speak TLS: whoever does not finish the handshake takes nobody else's place for long."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

#: How long a handshake may take, in seconds: a minute, asyncio's own time, is long for whoever waits outside.
PATIENCE = 10.0
#: Until there are files again for one more connection, in seconds.
_PAUSE = 0.05


class Doorman:
    """Accepts connections. Where too many handshakes are under way, the oldest is given up for the next.

    uvicorn would leave that to the event loop, which knows no bound: a few hundred clients that connect and say nothing
    take all files that the process may open.

    :param listener: the bound socket.
    :param context: what TLS is spoken with.
    :param make: makes what serves a connection, once its handshake is done.
    :param most: how many handshakes there may be at once.
    :param patience: how long one may take, in seconds.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        make: Callable[[], asyncio.Protocol],
        most: int,
        patience: float = PATIENCE,
    ) -> None:
        self._listener, self._context, self._make = listener, context, make
        self._most, self._patience = most, patience
        #: In the order that they came.
        self._greetings: dict[asyncio.Task[None], None] = {}
        self._work: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to let clients in."""
        self._listener.setblocking(False)
        self._work = asyncio.create_task(self._accept())

    def close(self) -> None:
        """Let nobody in any more."""
        for task in (*self._greetings, *([self._work] if self._work else [])):
            task.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError:
                # No file is left for it, or it has gone again.
                self._give_up_oldest()
                await asyncio.sleep(_PAUSE)
                continue
            greeting = loop.create_task(self._greet(connection))
            self._greetings[greeting] = None
            greeting.add_done_callback(lambda done: self._greetings.pop(done, None))
            if len(self._greetings) > self._most:
                self._give_up_oldest()

    def _give_up_oldest(self) -> None:
        for greeting in self._greetings:
            if not greeting.cancelling():
                greeting.cancel()
                return

    async def _greet(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Whoever fails is not told why, and no line is written for it.
        with contextlib.suppress(OSError):
            try:
                await asyncio.get_running_loop().connect_accepted_socket(
                    self._make, connection, ssl=self._context, ssl_handshake_timeout=self._patience
                )
            except BaseException:
                connection.close()
                raise
