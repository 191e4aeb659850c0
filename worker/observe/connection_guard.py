"""Limits for the connections of a small HTTP server, so that no client can exhaust its descriptors or its memory.

Each connection carries one request, has a few seconds for all of it, and may send a few kilobytes. At most
MAX_CONNECTIONS are open. The next one replaces the oldest that has not sent its request: clients that hang occupy the
server for as long as no other client needs it.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

MAX_CONNECTIONS: Final = 64
MAX_REQUEST_BYTES: Final = 16 * 1024
LIFETIME_SECONDS: Final = 5.0
"""From the connection's start until its response has been sent."""
_HEAD_END: Final = b"\r\n\r\n"


class ConnectionGuard:
    """A protocol factory: the connections that it makes obey the limits, and pass everything on to `factory`'s."""

    def __init__(self, factory: Callable[[], asyncio.Protocol], *, lifetime_seconds: float = LIFETIME_SECONDS) -> None:
        self._factory = factory
        self._lifetime_seconds = lifetime_seconds
        self._open: dict[_Guarded, None] = {}
        """The oldest first."""

    def __call__(self) -> asyncio.Protocol:
        return _Guarded(self._factory(), self)

    def close(self) -> None:
        """Close all connections at once."""
        for connection in list(self._open):
            connection.abort()

    def opened(self, connection: "_Guarded") -> float:
        """Make space for this connection and add it. Returns how many seconds it may stay open."""
        if len(self._open) >= MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            next((each for each in self._open if not each.requested), oldest).abort()
        self._open[connection] = None
        return self._lifetime_seconds

    def closed(self, connection: "_Guarded") -> None:
        self._open.pop(connection, None)


class _Guarded(asyncio.Protocol):
    """One connection. `requested`: whether the head of its request has arrived."""

    def __init__(self, inner: asyncio.Protocol, guard: ConnectionGuard) -> None:
        self.requested = False
        self._inner = inner
        self._guard = guard
        self._received_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        seconds = self._guard.opened(self)
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._received_bytes += len(data)
        if self._received_bytes > MAX_REQUEST_BYTES:
            self.abort()
            return
        self.requested = self.requested or _HEAD_END in data
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.closed(self)
        self._timer.cancel()
        self._inner.connection_lost(exc)

    def abort(self) -> None:
        self._guard.closed(self)
        self._transport.abort()
