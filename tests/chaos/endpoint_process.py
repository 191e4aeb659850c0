"""A fake `@connections` endpoint in its own process, fast enough to outrun a worker: `… endpoint_process.py PORT`.

It speaks HTTP/1.1 with keep-alive and Content-Length bodies, as the worker does; it checks no signatures and has no
WebSocket clients. Tests set its behaviour and read its counts under `/_control/` on the same port (see
`tests.chaos.endpoint`).
"""

import asyncio
import contextlib
import socket
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Final, cast
from urllib.parse import unquote_to_bytes

import msgspec
import uvloop

from gatecast.emulator.faults import CannedResponse, Delay, Fault, Reset, Stall
from local.processes import LOOPBACK, allow_many_files
from tests.chaos.endpoint_model import Behaviour, EndpointModel

_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_OK: Final = _HEAD % 0
_CLOSED: Final = b"HTTP/1.1 204 No Content\r\n\r\n"
_INFORMATION: Final = (
    b'{"connectedAt":"2026-01-01T00:00:00.000Z","identity":{"sourceIp":"127.0.0.1","userAgent":"chaos"},'
    b'"lastActiveAt":"2026-01-01T00:00:00.000Z"}'
)
_EXISTS: Final = _HEAD % len(_INFORMATION) + _INFORMATION
_HALF_A_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Ty"
_HALF_A_BODY: Final = b'HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n{"message": '
_LINGER_RESET: Final = struct.pack("ii", 1, 0)


class Connection(asyncio.Protocol):
    """One TCP connection: a request, its response, the next request."""

    def __init__(self, model: EndpointModel) -> None:
        self._counting = model
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has the interface but not the base class

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            end += 4
            length = _content_length(head)
            if len(self._buffer) < end + length:
                return
            body, self._buffer = self._buffer[end : end + length], self._buffer[end + length :]
            method, path, _ = head.split(b" ", 2)
            if path.startswith(b"/_control/"):
                self._write(_control(self._counting, method, path, body))
            else:
                self._call(method, unquote_to_bytes(path.rpartition(b"/")[2]).decode(), body)

    def _call(self, method: bytes, connection_id: str, data: bytes) -> None:
        model = self._counting
        match method:
            case b"POST":
                fault, usual = model.post(connection_id, data), _OK
            case b"DELETE":
                fault, usual = model.delete(connection_id), _CLOSED
            case _:
                fault, usual = model.get(connection_id), _EXISTS
        if fault is None and not model.latency_seconds:
            self._write(usual)
            return
        model.in_flight += 1
        model.max_in_flight = max(model.max_in_flight, model.in_flight)
        seconds, finish = self._reaction(fault, usual)
        asyncio.get_running_loop().call_later(model.latency_seconds + seconds, self._finish, finish)

    def _finish(self, finish: Callable[[], None]) -> None:
        self._counting.in_flight -= 1
        finish()

    def _reaction(self, fault: Fault | None, usual: bytes) -> tuple[float, Callable[[], None]]:
        """Seconds until the response, beyond the latency, and how to send it. `usual` is the response without fault."""
        match fault:
            case Delay(seconds=seconds):
                return seconds, partial(self._write, usual)
            case CannedResponse():
                return 0.0, partial(self._write, _encoded(fault))
            case Stall(seconds=seconds):
                return seconds, self._reset
            case Reset(cut="headers"):
                return 0.0, partial(self._write_and_close, _HALF_A_HEAD)
            case Reset(cut="body"):
                return 0.0, partial(self._write_and_close, _HALF_A_BODY)
            case Reset():
                return 0.0, self._reset
            case _:
                return 0.0, partial(self._write, usual)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _write_and_close(self, data: bytes) -> None:
        self._write(data)
        if self._transport is not None:
            self._transport.close()

    def _reset(self) -> None:
        if self._transport is not None:
            with contextlib.suppress(OSError):
                sock = self._transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self._transport.abort()


def _content_length(head: bytes) -> int:
    lowered = head.lower()
    start = lowered.find(b"\r\ncontent-length:")
    if start < 0:
        return 0
    end = lowered.find(b"\r\n", start + 2)
    return int(lowered[start + 17 : end if end >= 0 else None])


def _encoded(response: CannedResponse) -> bytes:
    body = response.body.encode()
    lines = [
        f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}",
        f"Content-Type: {response.content_type}",
    ]
    if response.error_type:
        lines.append(f"x-amzn-ErrorType: {response.error_type}")
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def _control(model: EndpointModel, method: bytes, path: bytes, body: bytes) -> bytes:
    match method, path:
        case b"PUT", b"/_control/behaviour":
            model.configure(msgspec.json.decode(body, type=Behaviour))
            result: object = None
        case b"POST", b"/_control/counts":
            result = model.counts(body)
        case b"GET", b"/_control/slices":
            result = model.slices
        case b"POST", b"/_control/counts_by_data":
            result = model.counts_by_data(body)
        case b"GET", b"/_control/clients":
            result = model.clients()
        case _:
            result = model.summary()
    encoded = msgspec.json.encode(result)
    return _HEAD % len(encoded) + encoded


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    model = EndpointModel(time.monotonic)  # shared by all processes of the machine, so that tests can compare
    server = await loop.create_server(lambda: Connection(model), LOOPBACK, port, backlog=1_024)
    await server.serve_forever()


if __name__ == "__main__":
    allow_many_files()
    uvloop.run(_serve(int(sys.argv[1])))
