"""One connected client: what is known of it, what waits to be sent to it, how long it may stay.

Nothing is sent after the client has been asked to leave or has gone, and never more than the send buffer holds: `send`
says no instead of waiting, so one client that does not read holds up nobody.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from aiohttp import WSMsgType

from local.gateway.events import Origin, close_reason
from local.gateway.frames import Offence
from local.gateway.limits import Limits
from local.gateway.wire import ClientSocket

GOING_AWAY: Final = Offence(1001, close_reason(1001))
CLOSED_BY_CALL: Final = Offence(1000, close_reason(1000))

_FRAME_HEADER_BYTES: Final = 10
_ROOM_FOR_CONTROL_FRAMES: Final = 1_048_576


class Client:
    """A client from its accepted upgrade on. `vanished` is set by `vanish`, `last_active_ms` by traffic both ways."""

    def __init__(
        self,
        origin: Origin,
        socket: ClientSocket,
        transport: asyncio.Transport,
        *,
        limits: Limits,
        now_ms: Callable[[], int],
    ) -> None:
        self.origin = origin
        self.socket = socket
        self.transport = transport
        self.last_active_ms = now_ms()
        self.vanished = False
        self._now_ms = now_ms
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._leaves_at = self._loop.time() + limits.lifetime_seconds
        self._active_at = self._loop.time()
        self._timer = self._loop.call_later(min(limits.idle_seconds, limits.lifetime_seconds), self._check_time)
        # Above the bound that `send` keeps to, so that sending never waits for the client.
        transport.set_write_buffer_limits(high=limits.send_buffer_bytes + _ROOM_FOR_CONTROL_FRAMES)

    @property
    def id(self) -> str:
        return self.origin.connection_id

    @property
    def gone(self) -> bool:
        return self.transport.is_closing() or self.socket.closed

    def touch(self) -> None:
        """Notes traffic: the idle time starts again."""
        self._active_at = self._loop.time()
        self.last_active_ms = self._now_ms()

    def has_room(self, length: int) -> bool:
        """Whether a message of so many bytes may wait for this client. An empty buffer takes any single one."""
        waiting = self.transport.get_write_buffer_size()
        return not waiting or waiting + length + _FRAME_HEADER_BYTES <= self._limits.send_buffer_bytes

    async def send(self, data: bytes) -> bool:
        """Sends a text message, or says False if the send buffer is full. Raises ConnectionError if it is gone."""
        if not self.has_room(len(data)):
            return False
        await self.socket.send_frame(data, WSMsgType.TEXT)
        self.touch()
        return True

    async def pong(self, payload: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            if self.has_room(len(payload)):
                await self.socket.send_frame(payload, WSMsgType.PONG)

    def ask_to_leave(self, reason: Offence) -> None:
        self.socket.interrupt(reason)

    def vanish(self) -> None:
        """Cuts the connection off, as a network does: no closing handshake, and no `$disconnect`."""
        self.vanished = True
        self.transport.abort()

    def stop_timer(self) -> None:
        self._timer.cancel()

    def _check_time(self) -> None:
        """One timer a client: it looks at the time when it could be over, and otherwise sleeps on."""
        now = self._loop.time()
        over_at = min(self._leaves_at, self._active_at + self._limits.idle_seconds)
        if now >= over_at:
            self.ask_to_leave(GOING_AWAY)
        else:
            self._timer = self._loop.call_at(over_at, self._check_time)
