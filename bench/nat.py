"""A NAT gateway in front of a peer: it forwards connections, and forgets those that have been idle.

    python -m bench.nat PORT FORGETS_AFTER_SECONDS reset|silent

What arrives on a forgotten connection is answered with a reset, as the NAT gateways of AWS do it, or, `silent`, with
nothing at all: the kernel drops every packet of that connection, as a filter on its socket tells it to.
"""

import asyncio
import ctypes
import socket
import struct
import sys
from contextlib import suppress

_SO_ATTACH_FILTER = 26
_DROP_EVERYTHING = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0 bytes
_RESET = struct.pack("ii", 1, 0)


class _Connection:
    def __init__(self, writer: asyncio.StreamWriter, forgets_after: float, *, silent: bool) -> None:
        self._writer = writer
        self._forgets_after = forgets_after
        self._silent = silent
        self._forgotten = False
        self._timer = self._later()

    def _later(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._forgets_after, self._forget)

    def _forget(self) -> None:
        self._forgotten = True
        if self._silent and not self._writer.is_closing():
            program = struct.pack("@HP", 1, ctypes.addressof(_DROP_EVERYTHING))
            self._socket().setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def _socket(self) -> socket.socket:
        found: socket.socket = self._writer.get_extra_info("socket")
        return found

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if self._forgotten:
                    self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    self._writer.transport.abort()
                    return
                self._timer.cancel()
                self._timer = self._later()
                writer.write(data)
        writer.close()


async def main(port: int, forgets_after: float, *, silent: bool) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", port)
        connection = _Connection(writer, forgets_after, silent=silent)
        await asyncio.gather(connection.forward(reader, behind), connection.forward(behind_reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=1024)
    print(f"listening: {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), silent=sys.argv[3] == "silent"))
