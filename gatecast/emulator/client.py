"""One connected client: its connection info, send buffer, and idle and lifetime limits.

Nothing is sent after the connection began to close, and never more than the send buffer can hold: `send` returns False
instead of waiting, so a client that does not read delays no other client. A client can be made to look like one:
`hold` keeps its messages in the buffer, until `release`.
"""

import asyncio
import contextlib
from typing import Final

from aiohttp import WSMsgType

from gatecast.emulator.aiohttp_adapters import ClientSocket
from gatecast.emulator.clock import Clock
from gatecast.emulator.events import ConnectionInfo, close_reason
from gatecast.emulator.frames import CloseFrame
from gatecast.emulator.limits import Limits

GOING_AWAY: Final = CloseFrame(1001, close_reason(1001))
CLOSED_BY_CALL: Final = CloseFrame(1000, close_reason(1000))

_FRAME_HEADER_BYTES: Final = 10
_CONTROL_FRAME_HEADROOM: Final = 1_048_576


class Client:
    """A client whose upgrade was accepted. Traffic in either direction sets `last_active_ms`.

    `dropped` and `closing` tell how its end has begun, if it has.
    """

    def __init__(
        self,
        info: ConnectionInfo,
        socket: ClientSocket,
        transport: asyncio.Transport,
        *,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self.info = info
        self.socket = socket
        self.transport = transport
        self.last_active_ms = clock.now_ms()
        self.dropped = False
        self.closing = False
        self._held: list[bytes] | None = None
        self._clock = clock
        self._limits = limits
        self._active_at = clock.monotonic()
        self._lifetime_ends_at = self._active_at + limits.lifetime_seconds
        self._timer = clock.call_later(min(limits.idle_seconds, limits.lifetime_seconds), self._check_time)
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
        self._active_at = self._clock.monotonic()
        self.last_active_ms = self._clock.now_ms()

    def fits(self, length: int) -> bool:
        """Whether the send buffer can take a message of `length` bytes. An empty buffer takes a message of any size."""
        buffered = self.transport.get_write_buffer_size()
        if self._held:
            buffered += sum(len(data) + _FRAME_HEADER_BYTES for data in self._held)
        return not buffered or buffered + length + _FRAME_HEADER_BYTES <= self._limits.send_buffer_bytes

    async def send(self, data: bytes) -> bool:
        """Sends a text message. False if the send buffer is full. Raises ConnectionError if the client is gone."""
        if not self.fits(len(data)):
            return False
        if self._held is None:
            await self.socket.send_frame(data, WSMsgType.TEXT)
        elif self.gone:
            raise ConnectionResetError
        else:
            self._held.append(data)
        self.touch()
        return True

    def hold(self) -> None:
        """From now on the client does not read: messages stay in its send buffer. Posts get a 429 once it is full."""
        self._held = self._held or []

    async def release(self) -> None:
        """The client reads again, beginning with what was held. Raises ConnectionError if it is gone."""
        while self._held:
            await self.socket.send_frame(self._held.pop(0), WSMsgType.TEXT)
        self._held = None

    async def pong(self, payload: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            if self.fits(len(payload)):
                await self.socket.send_frame(payload, WSMsgType.PONG)

    def close(self, reason: CloseFrame) -> None:
        self.closing = True
        self.socket.interrupt(reason)

    def drop(self) -> None:
        """Aborts the connection, like a network failure: no closing handshake, and no `$disconnect`."""
        self.dropped = True
        self.transport.abort()

    def stop_timer(self) -> None:
        self._timer.cancel()

    def _check_time(self) -> None:
        """Closes the connection at its idle or lifetime limit, or reschedules the client's only timer."""
        now = self._clock.monotonic()
        ends_at = min(self._lifetime_ends_at, self._active_at + self._limits.idle_seconds)
        if now >= ends_at:
            self.close(GOING_AWAY)
        else:
            self._timer = self._clock.call_later(ends_at - now, self._check_time)
