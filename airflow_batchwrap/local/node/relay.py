"""Datagrams that come to one port go on to another, and the answers back to whoever asked."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast

from airflow_batchwrap.local.node.room import Room

#: For how long a caller's way back is kept after the last datagram, in seconds: what routers commonly do, and no less
#: than the two minutes that RFC 4787 (REQ-5, https://www.rfc-editor.org/rfc/rfc4787) asks of them.
IDLE = 120.0
#: How many callers have a way back at once, and how many datagrams wait until it is there. What is more is lost, as
#: datagrams may be.
CALLERS, WAITING = 256, 16


class Relay(asyncio.DatagramProtocol):
    """The port that callers see.

    loop.create_datagram_endpoint(lambda: Relay("127.7.0.1", 53, Room(64)), local_addr=("127.7.0.1", 20_053))

    :param address: where datagrams go on to.
    :param port: the port there.
    :param room: how many ways back there may be, with all that others hold.
    """

    def __init__(self, address: str, port: int, room: Room) -> None:
        self._target, self._room = (address, port), room
        self._transport: asyncio.DatagramTransport | None = None
        #: In the order of their last datagrams, the oldest first.
        self._ways: dict[Any, _Way] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the port over."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Close every way back: the port is closed."""
        for way in list(self._ways.values()):
            way.close()
        self._ways = {}

    def datagram_received(self, data: bytes, caller: Any) -> None:
        """Pass a caller's datagram on."""
        way = self._ways.pop(caller, None)
        if way is None:
            if self._ways and (len(self._ways) >= CALLERS or self._room.full):
                self._ways.pop(next(iter(self._ways))).close()
            if not self._room.take():
                return
            way = _Way(self, caller, self._room)
            way.begin(self._target)
        self._ways[caller] = way
        way.send(data)

    def answer(self, data: bytes, caller: Any) -> None:
        """Pass an answer back.

        :param data: the answer.
        :param caller: who asked.
        """
        if self._transport is not None:
            self._transport.sendto(data, caller)

    def forget(self, caller: Any) -> None:
        """Let a caller go.

        :param caller: the caller.
        """
        self._ways.pop(caller, None)


class _Way(asyncio.DatagramProtocol):
    """One caller's way there and back: a port of its own, so that the answers are known as the caller's."""

    def __init__(self, relay: Relay, caller: Any, room: Room) -> None:
        self._relay, self._caller, self._room = relay, caller, room
        self._open_still = True
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: deque[bytes] = deque(maxlen=WAITING)
        self._end: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None

    def begin(self, target: tuple[str, int]) -> None:
        self._opening = asyncio.get_running_loop().create_task(self._open(target))

    async def _open(self, target: tuple[str, int]) -> None:
        try:
            await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, remote_addr=target)
        except OSError:
            # No port is free: what waited is lost.
            self._leave()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)
        while self._waiting:
            self._transport.sendto(self._waiting.popleft())

    def datagram_received(self, data: bytes, _: Any) -> None:
        self._stay()
        self._relay.answer(data, self._caller)

    def error_received(self, error: Exception) -> None:
        """Nothing listens there: the datagram is lost, as on Azure."""

    def send(self, data: bytes) -> None:
        self._stay()
        if self._transport is None:
            self._waiting.append(data)
        else:
            self._transport.sendto(data)

    def _stay(self) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = asyncio.get_running_loop().call_later(IDLE, self._leave)

    def _leave(self) -> None:
        self._relay.forget(self._caller)
        self.close()

    def close(self) -> None:
        if self._open_still:
            self._open_still = False
            self._room.give_back()
        if self._end is not None:
            self._end.cancel()
        if self._opening is not None:
            self._opening.cancel()
        if self._transport is not None:
            self._transport.close()
