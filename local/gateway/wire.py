"""How aiohttp is made to behave like API Gateway on the wire: frame limits, and closing from anywhere.

`GuardedProtocol` puts a FrameScanner in front of aiohttp's WebSocket reader, through the one public method by which the
reader is installed. `ClientSocket` is a WebSocket whose reading loop alone closes it: whoever wants it closed, an
offence, a timer, an administrator, interrupts the loop.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from aiohttp import WSMessage, WSMsgType, web
from aiohttp.http_websocket import WebSocketReader

from local.gateway.frames import FrameScanner, Offence


class Guard:
    """Stands where aiohttp expects its reader, and shows the reader only what the scanner lets through."""

    def __init__(self, reader: WebSocketReader, scanner: FrameScanner) -> None:
        self._reader = reader
        self._scanner = scanner
        self._report: Callable[[Offence], None] | None = None

    def report_to(self, report: Callable[[Offence], None]) -> None:
        """Calls `report` once for the first offence, at once if it was before this call."""
        self._report = report
        self._report_offence()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        passed = self._scanner.scan(data)
        fed = self._reader.feed_data(passed) if passed else (False, b"")
        self._report_offence()
        return fed

    def feed_eof(self) -> None:
        self._reader.feed_eof()

    def _report_offence(self) -> None:
        if self._scanner.offence and self._report:
            report, self._report = self._report, None
            report(self._scanner.offence)


class GuardedProtocol(web.RequestHandler):
    """One TCP connection of a client. `guard` is set once it is a WebSocket."""

    __slots__ = ("_scanner", "guard")

    def __init__(self, *args: Any, scanner: FrameScanner, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._scanner = scanner
        self.guard: Guard | None = None

    def set_parser(self, parser: WebSocketReader, data_received_cb: Callable[[], None] | None = None) -> None:
        self.guard = Guard(parser, self._scanner)
        super().set_parser(cast("WebSocketReader", self.guard), data_received_cb)


class GuardedServer(web.Server):
    """aiohttp's low-level server, with a GuardedProtocol for every TCP connection."""

    def __init__(self, handler: Any, *, new_scanner: Callable[[], FrameScanner], **kwargs: Any) -> None:
        super().__init__(handler, **kwargs)
        self._new_scanner = new_scanner

    def __call__(self) -> GuardedProtocol:
        return GuardedProtocol(self, loop=self._loop, scanner=self._new_scanner(), **self._kwargs)


class ClientSocket(web.WebSocketResponse):
    """A WebSocket whose `receive` can be interrupted with an Offence, the reason to close it.

    Pings and closing are left to the reading loop: pings count as activity, and the loop needs the client's close code.
    Compression is not offered, so that frames on the wire are as long as what they carry.
    """

    def __init__(self, *, protocol: str | None, close_seconds: float) -> None:
        super().__init__(
            protocols=(protocol,) if protocol else (),
            compress=False,
            max_msg_size=0,  # the scanner's business
            autoping=False,
            autoclose=False,
            timeout=close_seconds,
        )
        self._close_seconds = close_seconds
        if protocol:
            self.headers["Sec-WebSocket-Protocol"] = protocol

    async def prepare(self, request: web.BaseRequest) -> Any:
        writer = await super().prepare(request)
        guard = cast("GuardedProtocol", request.protocol).guard
        if guard:
            guard.report_to(self.interrupt)
        return writer

    def interrupt(self, reason: Offence) -> None:
        """Makes `receive` return, after what has arrived already, an ERROR message with the reason as its data."""
        if self._reader is not None and not self._reader.is_eof():
            self._reader.feed_data(WSMessage(WSMsgType.ERROR, reason, None), 0)

    async def close_within(self, code: int, reason: str, transport: asyncio.Transport) -> None:
        """The closing handshake, if the client takes part in it in time; the end of the connection in any case."""
        try:
            async with asyncio.timeout(self._close_seconds):
                await self.close(code=code, message=reason.encode())
        except (TimeoutError, ConnectionError):
            transport.abort()
