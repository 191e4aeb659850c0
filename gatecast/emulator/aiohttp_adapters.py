"""Adapts aiohttp to API Gateway's behaviour on the wire: frame limits, and closing a connection from any task.

`FrameGuardProtocol` puts a FrameScanner in front of aiohttp's WebSocket reader, through the public method that installs
the reader. A `ClientSocket` is closed only by its reading loop: a protocol violation, a timer or a DELETE call
interrupts that loop.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from aiohttp import WSMessage, WSMsgType, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_websocket import WebSocketReader

from gatecast.emulator.frames import CloseFrame, FrameScanner


def _quotes_no_client(record: logging.LogRecord) -> bool:
    """Whether aiohttp's record quotes nothing of a request: a malformed one, or subprotocols that are not supported.

    There may be a token in it.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError) and "protocols" not in str(record.msg)


for _name in ("aiohttp.server", "aiohttp.websocket"):
    logging.getLogger(_name).addFilter(_quotes_no_client)


class FrameGuard:
    """Wraps aiohttp's reader and passes on only the data that the scanner accepts."""

    def __init__(self, reader: WebSocketReader, scanner: FrameScanner) -> None:
        self._reader = reader
        self._scanner = scanner
        self._report: Callable[[CloseFrame], None] | None = None

    def report_to(self, report: Callable[[CloseFrame], None]) -> None:
        """Calls `report` once, for the first violation; immediately if there has been one already."""
        self._report = report
        self._report_violation()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        passed = self._scanner.scan(data)
        fed = self._reader.feed_data(passed) if passed else (False, b"")
        self._report_violation()
        return fed

    def feed_eof(self) -> None:
        self._reader.feed_eof()

    def _report_violation(self) -> None:
        if self._scanner.violation and self._report:
            report, self._report = self._report, None
            report(self._scanner.violation)


class FrameGuardProtocol(web.RequestHandler):
    """One TCP connection of a client. `frame_guard` is set once it is a WebSocket."""

    __slots__ = ("_scanner", "frame_guard")

    def __init__(self, *args: Any, scanner: FrameScanner, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._scanner = scanner
        self.frame_guard: FrameGuard | None = None

    def set_parser(self, parser: WebSocketReader, data_received_cb: Callable[[], None] | None = None) -> None:
        self.frame_guard = FrameGuard(parser, self._scanner)
        super().set_parser(cast("WebSocketReader", self.frame_guard), data_received_cb)


class FrameGuardServer(web.Server):
    """aiohttp's low-level server, with a FrameGuardProtocol for every TCP connection."""

    def __init__(self, handler: Any, *, new_scanner: Callable[[], FrameScanner], **kwargs: Any) -> None:
        super().__init__(handler, **kwargs)
        self._new_scanner = new_scanner

    def __call__(self) -> FrameGuardProtocol:
        return FrameGuardProtocol(self, loop=self._loop, scanner=self._new_scanner(), **self._kwargs)


class ClientSocket(web.WebSocketResponse):
    """A WebSocket whose `receive` can be interrupted with the CloseFrame to send.

    The reading loop handles pings and closing: pings count as activity, and the loop needs the client's close code.
    Compression is not offered, so that a frame's length on the wire is that of its payload.
    """

    def __init__(self, *, protocol: str | None, close_seconds: float) -> None:
        super().__init__(
            protocols=(protocol,) if protocol else (),
            compress=False,
            max_msg_size=0,  # the scanner enforces the limits
            autoping=False,
            autoclose=False,
            timeout=close_seconds,
        )
        self._close_seconds = close_seconds
        if protocol:
            self.headers["Sec-WebSocket-Protocol"] = protocol

    async def prepare(self, request: web.BaseRequest) -> Any:
        writer = await super().prepare(request)
        frame_guard = cast("FrameGuardProtocol", request.protocol).frame_guard
        if frame_guard:
            frame_guard.report_to(self.interrupt)
        return writer

    def interrupt(self, reason: CloseFrame) -> None:
        """Makes `receive` return an ERROR message with the reason as its data, after all data that has arrived."""
        if self._reader is not None and not self._reader.is_eof():
            self._reader.feed_data(WSMessage(WSMsgType.ERROR, reason, None), 0)

    async def close_within(self, code: int, reason: str, transport: asyncio.Transport) -> None:
        """Performs the closing handshake; aborts the connection if the client does not complete it in time."""
        try:
            async with asyncio.timeout(self._close_seconds):
                await self.close(code=code, message=reason.encode())
        except (TimeoutError, ConnectionError):
            transport.abort()
