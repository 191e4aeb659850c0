"""A NAT gateway in front of a peer: it forwards connections, and drops the mapping of idle ones.

    python -m bench.nat PORT TIMEOUT_SECONDS reset|silent

Data on a dropped connection is rejected with a reset, as by AWS's NAT gateways, or, if `silent`, ignored: a socket
filter makes the kernel drop every packet of that connection.
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
    def __init__(self, writer: asyncio.StreamWriter, idle_timeout_seconds: float, *, silent: bool) -> None:
        self._writer = writer
        self._idle_timeout_seconds = idle_timeout_seconds
        self._silent = silent
        self._dropped = False
        self._timer = self._start_timer()

    def _start_timer(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._idle_timeout_seconds, self._drop)

    def _drop(self) -> None:
        self._dropped = True
        if self._silent and not self._writer.is_closing():
            program = struct.pack("@HP", 1, ctypes.addressof(_DROP_EVERYTHING))
            self._socket().setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def _socket(self) -> socket.socket:
        found: socket.socket = self._writer.get_extra_info("socket")
        return found

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if self._dropped:
                    self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    self._writer.transport.abort()
                    return
                self._timer.cancel()
                self._timer = self._start_timer()
                writer.write(data)
        writer.close()


async def main(port: int, idle_timeout_seconds: float, *, silent: bool) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", port)
        connection = _Connection(writer, idle_timeout_seconds, silent=silent)
        await asyncio.gather(connection.forward(reader, behind), connection.forward(behind_reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=1024)
    print(f"listening: {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), silent=sys.argv[3] == "silent"))
