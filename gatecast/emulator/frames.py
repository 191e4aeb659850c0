"""API Gateway's limits on WebSocket frames, which aiohttp's reader does not expose: their size and type.

`FrameScanner` reads a client's bytes before aiohttp's reader, from frame header to frame header. Pure: bytes in, bytes
out. A frame's length on the wire is its true size, because the emulator negotiates no compression. After the first
violation, data frames are dropped and control frames still pass, so that the closing handshake can be completed:
closing a socket with unread data would reset it and lose the close code.
"""

from typing import Final, NamedTuple

TOO_BIG: Final = 1009
UNACCEPTABLE: Final = 1003

_CONTINUATION, _TEXT, _BINARY = 0x0, 0x1, 0x2
_CONTROL: Final = 0x8
_MASK_BYTES: Final = 4
_LENGTH_IN_2_BYTES: Final = 126
_LENGTH_IN_8_BYTES: Final = 127


class CloseFrame(NamedTuple):
    """The close code and reason with which a connection is closed."""

    code: int
    reason: str


class FrameScanner:
    """Passes on the frames that the limits allow. `violation` is set by the first one that they do not allow."""

    def __init__(self, *, frame_bytes: int, message_bytes: int) -> None:
        self._frame_bytes = frame_bytes
        self._message_bytes = message_bytes
        self._header = b""
        self._payload_left = 0
        self._passing = True
        self._message_length = 0
        self.violation: CloseFrame | None = None

    def scan(self, data: bytes) -> bytes:
        """The data for the reader. An incomplete frame header is buffered until it is complete."""
        data = self._header + data
        passed: list[bytes] = []
        position = 0
        while position < len(data):
            start = position
            if not self._payload_left:
                header = _Header.at(data, position)
                if header is None:
                    break
                self._passing = self._allows(header)
                self._payload_left = header.payload_bytes
                position += header.size
            step = min(self._payload_left, len(data) - position)
            self._payload_left -= step
            position += step
            if self._passing:
                passed.append(data[start:position])
        self._header = data[position:]
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def _allows(self, header: "_Header") -> bool:
        if header.opcode >= _CONTROL:
            return True
        if header.opcode == _CONTINUATION:
            self._message_length += header.payload_bytes
        else:
            self._message_length = header.payload_bytes
        if self.violation is None:
            self.violation = self._violation(header)
        return self.violation is None

    def _violation(self, header: "_Header") -> CloseFrame | None:
        if header.opcode == _BINARY:
            return CloseFrame(UNACCEPTABLE, "Binary frames are not supported")
        if header.payload_bytes > self._frame_bytes:
            return CloseFrame(TOO_BIG, f"Frame longer than {self._frame_bytes} bytes")
        if self._message_length > self._message_bytes:
            return CloseFrame(TOO_BIG, f"Message longer than {self._message_bytes} bytes")
        return None


class _Header(NamedTuple):
    """`size` includes the mask, which is not read."""

    opcode: int
    payload_bytes: int
    size: int

    @classmethod
    def at(cls, data: bytes, position: int) -> "_Header | None":
        """The header at `position`, or None if the data ends within it."""
        if len(data) < position + 2:
            return None
        opcode, length = data[position] & 0x0F, data[position + 1] & 0x7F
        size = 2
        if length >= _LENGTH_IN_2_BYTES:
            size += 8 if length == _LENGTH_IN_8_BYTES else 2
            length = int.from_bytes(data[position + 2 : position + size])
        size += _MASK_BYTES if data[position + 1] & 0x80 else 0
        return cls(opcode, length, size) if len(data) >= position + size else None
