"""One connected client: its connection info, send buffer, and idle and lifetime limits.

Nothing is sent after the connection began to close, and never more than the send buffer can hold: `send` returns False
instead of waiting, so a client that does not read delays no other client.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from aiohttp import WSMsgType

from local.gateway.aiohttp_adapters import ClientSocket
from local.gateway.events import ConnectionInfo, close_reason
from local.gateway.frames import CloseFrame
from local.gateway.limits import Limits

GOING_AWAY: Final = CloseFrame(1001, close_reason(1001))
CLOSED_BY_CALL: Final = CloseFrame(1000, close_reason(1000))

_FRAME_HEADER_BYTES: Final = 10
_CONTROL_FRAME_HEADROOM: Final = 1_048_576


class Client:
    """A client whose upgrade was accepted. `drop` sets `dropped`; traffic in either direction sets `last_active_ms`."""

    def __init__(
        self,
        info: ConnectionInfo,
        socket: ClientSocket,
        transport: asyncio.Transport,
        *,
        limits: Limits,
        now_ms: Callable[[], int],
    ) -> None:
        self.info = info
        self.socket = socket
        self.transport = transport
        self.last_active_ms = now_ms()
        self.dropped = False
        self._now_ms = now_ms
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._lifetime_ends_at = self._loop.time() + limits.lifetime_seconds
        self._active_at = self._loop.time()
        self._timer = self._loop.call_later(min(limits.idle_seconds, limits.lifetime_seconds), self._check_time)
        # Above the limit that `send` enforces, so that sending never waits for the client.
        transport.set_write_buffer_limits(high=limits.send_buffer_bytes + _CONTROL_FRAME_HEADROOM)

    @property
    def id(self) -> str:
        return self.info.connection_id

    @property
    def gone(self) -> bool:
        return self.transport.is_closing() or self.socket.closed

    def touch(self) -> None:
        """Records activity, which restarts the idle timeout."""
        self._active_at = self._loop.time()
        self.last_active_ms = self._now_ms()

    def fits(self, length: int) -> bool:
        """Whether the send buffer can take a message of `length` bytes. An empty buffer takes a message of any size."""
        buffered = self.transport.get_write_buffer_size()
        return not buffered or buffered + length + _FRAME_HEADER_BYTES <= self._limits.send_buffer_bytes

    async def send(self, data: bytes) -> bool:
        """Sends a text message. False if the send buffer is full. Raises ConnectionError if the client is gone."""
        if not self.fits(len(data)):
            return False
        await self.socket.send_frame(data, WSMsgType.TEXT)
        self.touch()
        return True

    async def pong(self, payload: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            if self.fits(len(payload)):
                await self.socket.send_frame(payload, WSMsgType.PONG)

    def close(self, reason: CloseFrame) -> None:
        self.socket.interrupt(reason)

    def drop(self) -> None:
        """Aborts the connection, like a network failure: no closing handshake, and no `$disconnect`."""
        self.dropped = True
        self.transport.abort()

    def stop_timer(self) -> None:
        self._timer.cancel()

    def _check_time(self) -> None:
        """Closes the connection at its idle or lifetime limit, or reschedules the client's only timer."""
        now = self._loop.time()
        ends_at = min(self._lifetime_ends_at, self._active_at + self._limits.idle_seconds)
        if now >= ends_at:
            self.close(GOING_AWAY)
        else:
            self._timer = self._loop.call_at(ends_at, self._check_time)
