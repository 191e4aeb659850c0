"""A NAT gateway on loopback: it forwards TCP connections, and drops idle ones without notice.

The test advances the time. Data on a dropped connection gets a reset, or, if the gateway is `silent`, no reply at all,
not even an acknowledgement: a socket filter makes the kernel drop every packet of that connection.
"""

import asyncio
import ctypes
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

from tests.worker_process import eventually

_SO_ATTACH_FILTER = 26
_DROP_EVERYTHING = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0 bytes


def drop_incoming(sock: socket.socket) -> None:
    """From now on no packet reaches this socket, and none is acknowledged."""
    program = struct.pack("@HP", 1, ctypes.addressof(_DROP_EVERYTHING))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def can_drop_packets() -> bool:
    """Whether this kernel supports dropping all packets of one connection."""
    if sys.platform != "linux":
        return False
    with socket.socket() as sock:
        try:
            drop_incoming(sock)
        except OSError:
            return False
    return True


class _Connection:
    def __init__(self, writer: asyncio.StreamWriter, now: float) -> None:
        self.writer = writer
        self.active_at = now
        self.dropped = False
        self.used_after_drop = False

    @property
    def socket(self) -> socket.socket:
        found: socket.socket = self.writer.get_extra_info("socket")
        return found


class Nat:
    """Use `in_front_of`."""

    def __init__(self, port: int, idle_timeout_seconds: float, *, silent: bool) -> None:
        self.port = 0
        self.idle_timeout_seconds = idle_timeout_seconds
        self.accepted = 0
        self.used_after_drop = 0
        """Connections that were used after their mapping was dropped; a silent gateway cannot count them."""
        self._behind = port
        self._silent = silent
        self._now = 0.0
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def pass_time(self, seconds: float) -> None:
        self._now += seconds
        for connection in self._connections:
            if not connection.dropped and self._now - connection.active_at >= self.idle_timeout_seconds:
                connection.dropped = True
                if self._silent:
                    drop_incoming(connection.socket)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        connection = _Connection(writer, self._now)
        self._connections.add(connection)
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", self._behind)
        back = asyncio.create_task(self._forward(behind_reader, writer, connection))
        self._tasks.add(back)
        back.add_done_callback(self._tasks.discard)
        try:
            await self._forward(reader, behind, connection)
            if connection.used_after_drop:
                self.used_after_drop += 1
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
        finally:
            self._connections.discard(connection)
            back.cancel()
            for each in (writer, behind):
                each.close()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: _Connection
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if connection.dropped:
                    connection.used_after_drop = True
                    return
                connection.active_at = self._now
                writer.write(data)
                await writer.drain()

    @classmethod
    @asynccontextmanager
    async def in_front_of(cls, port: int, idle_timeout_seconds: float, *, silent: bool = False) -> AsyncIterator[Self]:
        nat = cls(port, idle_timeout_seconds, silent=silent)
        server = await asyncio.start_server(nat._accept, "127.0.0.1", 0)
        nat.port = server.sockets[0].getsockname()[1]
        try:
            yield nat
        finally:
            server.close()
            for connection in list(nat._connections):
                connection.writer.transport.abort()
            await eventually(lambda: not nat._connections)
