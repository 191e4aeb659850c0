"""One connection: requests with their responses, frames for the client, and keeping alive.

A session ends once, for one reason, and is not used again. What always holds: each request that was sent ends with its
response, or with an error when the session ends; no request waits longer than `response_seconds`.
"""

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from gatecast.client import wire
from gatecast.client.errors import Disconnected, RequestFailed
from gatecast.client.options import LIFETIME_SECONDS, Options
from gatecast.client.signal import Gate, Signal
from gatecast.client.transport import SupportsTransport, TransportClosed, is_long

_log: Final = logging.getLogger("gatecast.client")
_TOO_BIG: Final = 1009
"""The close code for a message that is larger than the server accepts."""

Handler = Callable[[wire.Messages | wire.PresenceFrame], None]


class Session:
    """A connection. `handle` is called with each frame that concerns rooms, and must not block.

    While `gate` is shut and no request waits, the socket is not read. When the session ends, `on_end` is called, and
    `signal` is notified when its state changes.
    """

    def __init__(
        self,
        transport: SupportsTransport,
        options: Options,
        *,
        signal: Signal,
        gate: Gate,
        handle: Handler,
        on_end: Callable[["Session"], None],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._transport = transport
        self._options = options
        self._signal = signal
        self._handle = handle
        self._gate = gate
        self._on_end = on_end
        self._chance = chance
        self._refs = itertools.count(1)
        self._waiting: dict[int, tuple[asyncio.Future[wire.Ok], str]] = {}
        self._loop = asyncio.get_running_loop()
        self._last_sent_at = self.opened_at = self._loop.time()
        self._over = asyncio.Event()
        self.ended: str | None = None
        """Why the session has ended; None while it is open."""
        self.final: str | None = None
        """The code with which the server has ended the client, if it has."""
        self.settled = False
        """Whether the client's rooms have been joined on this connection."""
        self.connection_id: str | None = None
        self.renew_at = self.opened_at + options.renewal_delay(LIFETIME_SECONDS, chance())
        """When the next connection is to be opened, on the loop's clock."""
        self.cut_at = self.opened_at + LIFETIME_SECONDS
        """When this one will be cut, as far as is known."""

    async def run(self) -> None:
        """Reads and keeps alive until the session ends. It has ended when this returns, for whatever reason."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._read()), group.create_task(self._keep_alive())]
                await self._over.wait()
                for task in tasks:
                    task.cancel()
        finally:
            self.end("closed by the client")
            await self._transport.close()

    def has_ended(self) -> bool:
        return self.ended is not None

    def end(self, reason: str, *, close_code: int | None = None) -> None:
        """Ends the session; only the first reason counts."""
        if self.ended is not None:
            return
        self.ended = reason
        self._over.set()
        for future, text in self._waiting.values():
            if future.done():
                continue
            if close_code == _TOO_BIG and is_long(text):
                future.set_exception(RequestFailed("too_large", "the server closed the connection for its size"))
            else:
                future.set_exception(Disconnected(reason))
        self._on_end(self)
        self._signal.notify()

    async def request(self, fields: Mapping[str, Any]) -> wire.Ok:
        """Sends a request and returns its response. Raises RequestFailed, or Disconnected without a response."""
        ref = next(self._refs)
        text = wire.encode(fields, ref)
        if self.ended is not None:
            raise Disconnected(self.ended)
        future: asyncio.Future[wire.Ok] = self._loop.create_future()
        self._waiting[ref] = (future, text)
        self._gate.notify()  # from now on the socket is read
        try:
            async with asyncio.timeout(self._options.response_seconds):
                await self._send(text)
                return await future
        except TimeoutError:
            self.end("no response in time")
            raise Disconnected("no response in time") from None
        finally:
            del self._waiting[ref]
            if future.done() and not future.cancelled():
                future.exception()  # was retrieved, also where sending failed first

    async def _send(self, text: str) -> None:
        self._last_sent_at = self._loop.time()
        try:
            await self._transport.send(text)
        except TransportClosed as error:
            # the reason, and which request was too large, is known where the close code is read
            self.end(str(error), close_code=error.code)

    async def _read(self) -> None:
        while True:
            await self._gate.until(lambda: self._gate.is_open or bool(self._waiting))
            try:
                text = await self._transport.receive()
            except TransportClosed as error:
                self.end(str(error), close_code=error.code)
                return
            try:
                frame = wire.parse(text)
            except wire.NotAFrame as error:
                _log.warning("frame.ignored reason=%s", error)
                continue
            if frame is not None:
                self._receive(frame)

    def _receive(self, frame: wire.Frame) -> None:
        match frame:
            case wire.Messages() | wire.PresenceFrame():
                self._handle(frame)
            case wire.Ok():
                self._resolve(frame.ref, frame)
            case wire.Error():
                self._resolve(frame.ref, frame.to_exception())
            case wire.Pong():
                self._resolve(frame.ref if frame.ref is not None else self._first_ping(), wire.Ok())
            case wire.GatewayError():
                self._resolve(None, RequestFailed("unavailable", frame.message))
            case wire.Reconnect():
                self._renew_within(frame.within_ms / 1000)
            case wire.ClosedFrame():
                self.final = None if frame.retry else frame.code
                self.end(frame.code)

    def _resolve(self, ref: wire.Ref, result: wire.Ok | RequestFailed) -> None:
        """Without a `ref` the response can belong only to a request that waits alone."""
        if ref is None and len(self._waiting) == 1:
            [ref] = self._waiting
        waiting = self._waiting.get(ref) if isinstance(ref, int) else None
        if waiting is None or waiting[0].done():
            return
        if isinstance(result, wire.Ok):
            self.connection_id = result.connection or self.connection_id
            waiting[0].set_result(result)
        else:
            waiting[0].set_exception(result)

    def _first_ping(self) -> int | None:
        return next((ref for ref, (_, text) in self._waiting.items() if text.startswith('{"action":"ping"')), None)

    def _renew_within(self, seconds: float) -> None:
        """At a random time in the first half, because many clients are asked at once."""
        now = self._loop.time()
        self.renew_at = min(self.renew_at, now + seconds / 2 * self._chance())
        self.cut_at = min(self.cut_at, now + seconds)
        self._signal.notify()

    def expires(self, seconds: float, *, renewable: bool) -> None:
        """The server has said for how long the connection may live. `renewable`: whether another token is available."""
        now = self._loop.time()
        if now + seconds >= self.cut_at:
            return
        self.cut_at = now + seconds
        if renewable:
            self.renew_at = min(self.renew_at, now + self._options.renewal_delay(seconds, self._chance()))
        self._signal.notify()

    async def _keep_alive(self) -> None:
        while True:
            due_at = self._last_sent_at + self._options.ping_delay(self._chance())
            await asyncio.sleep(due_at - self._loop.time())
            if self._loop.time() - self._last_sent_at < self._options.ping_seconds * 0.8:
                continue
            try:
                await self.request({"action": "ping"})
            except RequestFailed:
                pass  # a response, too
            except Disconnected:
                return
