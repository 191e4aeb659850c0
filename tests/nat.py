"""A NAT gateway on loopback: it forwards TCP connections, and forgets those that have been idle, telling nobody.

Time is the test's to pass. What arrives on a forgotten connection is answered with a reset, or, if it is `silent`, with
nothing at all, not even an acknowledgement: the kernel drops every packet of that connection, as a filter tells it to.
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


def drop_what_arrives(sock: socket.socket) -> None:
    """No packet reaches this socket any more, and none is acknowledged."""
    program = struct.pack("@HP", 1, ctypes.addressof(_DROP_EVERYTHING))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def silence_can_be_played() -> bool:
    """Whether this kernel can drop the packets of one connection, and can tell its owner that they are dropped."""
    if sys.platform != "linux":
        return False
    with socket.socket() as sock:
        try:
            drop_what_arrives(sock)
        except OSError:
            return False
    return True


class _Connection:
    def __init__(self, writer: asyncio.StreamWriter, now: float) -> None:
        self.writer = writer
        self.active_at = now
        self.forgotten = False
        self.used_in_vain = False

    @property
    def socket(self) -> socket.socket:
        found: socket.socket = self.writer.get_extra_info("socket")
        return found


class Nat:
    """Use `in_front_of`."""

    def __init__(self, port: int, forgets_after: float, *, silent: bool) -> None:
        self.port = 0
        self.forgets_after = forgets_after
        self.accepted = 0
        self.burned = 0
        """Connections that were used when they had been forgotten; those of a silent one cannot be counted."""
        self._behind = port
        self._silent = silent
        self._now = 0.0
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def pass_time(self, seconds: float) -> None:
        self._now += seconds
        for connection in self._connections:
            if not connection.forgotten and self._now - connection.active_at >= self.forgets_after:
                connection.forgotten = True
                if self._silent:
                    drop_what_arrives(connection.socket)

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
            if connection.used_in_vain:
                self.burned += 1
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
                if connection.forgotten:
                    connection.used_in_vain = True
                    return
                connection.active_at = self._now
                writer.write(data)
                await writer.drain()

    @classmethod
    @asynccontextmanager
    async def in_front_of(cls, port: int, forgets_after: float, *, silent: bool = False) -> AsyncIterator[Self]:
        nat = cls(port, forgets_after, silent=silent)
        server = await asyncio.start_server(nat._accept, "127.0.0.1", 0)
        nat.port = server.sockets[0].getsockname()[1]
        try:
            yield nat
        finally:
            server.close()
            for connection in list(nat._connections):
                connection.writer.transport.abort()
            await eventually(lambda: not nat._connections)
