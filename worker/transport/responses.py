"""Read HTTP/1.1 responses to requests that are sent one at a time on a connection.

Almost every response of `@connections` arrives whole, is small and has no body: a fast path recognises these with a few
byte comparisons. Everything else (split anywhere, chunked, with a body, interim, closing, until end of file, garbage)
goes through `_Parser`, a state machine that accepts any bytes and either finishes, needs more or raises
MalformedResponse. Limits prevent a peer from filling the memory. RFC 9112 defines what is malformed.
"""

import re
from typing import Final, NamedTuple

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 256
MAX_BODY_BYTES: Final = 64 * 1024 * 1024

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n\0]*)?")
# No two adjacent parts can match the same byte, so matching any input takes one pass, without backtracking. Spaces
# around a header's value are left to `strip`: in a pattern they would be such parts.
_HEADER: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\r\n\0]*)")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n\0]*)?")
_CONTENT_LENGTH: Final = re.compile(rb"[0-9]{1,12}")
_SHORTEST_HEAD: Final = len(b"HTTP/1.1 200\r\n\r\n")
_OK: Final = b"HTTP/1.1 200"
_NO_BODY: Final = b"\r\nContent-Length: 0\r\n"
_END: Final = b"\r\n\r\n"


class MalformedResponse(Exception):
    """The peer's bytes are not an HTTP/1.1 response that this client supports; the connection must be closed."""


class Response(NamedTuple):
    """A complete response. `reusable`: whether the connection may carry another request."""

    status: int
    headers: dict[bytes, bytes]
    """Names in lower case; values of one name joined by commas."""
    body: bytes
    reusable: bool


PLAIN_200: Final = Response(200, {}, b"", reusable=True)
"""The response to almost all posts, as callers see it: without its headers."""


class ResponseReader:
    """Reads the responses of one connection, one after the other.

    At most `kept_body_bytes` of each body are kept; the rest is read and discarded.
    """

    __slots__ = ("_kept_body_bytes", "_no_body_at", "_parser", "_plain_length")

    def __init__(self, kept_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._kept_body_bytes = kept_body_bytes
        self._parser: _Parser | None = None
        self._plain_length = 0
        self._no_body_at = 0

    @property
    def begun(self) -> bool:
        """Whether a response has begun to arrive and is not complete."""
        return self._parser is not None

    def is_plain_200(self, buffer: bytearray, length: int) -> bool:
        """Whether the first `length` bytes of `buffer` are one whole PLAIN_200. If not, `feed` them."""
        if self._parser is not None:
            return False
        no_body_at = self._no_body_at
        return (
            length == self._plain_length
            and buffer.startswith(_NO_BODY, no_body_at)
            and buffer.startswith(_OK)
            and buffer.find(_END, no_body_at, length) == length - len(_END)
        ) or self._learn_plain_200(bytes(buffer[:length]))

    def _learn_plain_200(self, head: bytes) -> bool:
        """Check a whole head in full, and remember its length and layout if it is a PLAIN_200.

        Normally called once per response length: responses of one server that are equally long have the same headers
        in the same order. If that assumption fails, little is lost: a missed `Connection: close` is detected when the
        connection's end of file is read.
        """
        no_body_at = head.find(_NO_BODY)
        if not head.startswith(_OK) or no_body_at < 0 or head.find(_END) != len(head) - len(_END):
            return False
        folded = head.lower()
        if folded.count(b"\r\ncontent-length:") > 1 or b"\r\nconnection: close" in folded or b"\r\ntransfer-" in folded:
            return False
        self._plain_length = len(head)
        self._no_body_at = no_body_at
        return True

    def feed(self, data: bytes) -> Response | None:
        """Add received bytes, b"" at end of file; return the response once it is complete.

        Raises MalformedResponse; then, as after a response that is not `reusable`, the connection must be closed.
        """
        if self._parser is None:
            self._parser = _Parser(self._kept_body_bytes)
        response = self._parser.feed(data)
        if response is not None:
            self._parser = None
        return response


class _Parser:
    """Parses one response. `_stage` is the method for the current state; each stage consumes from `_buffer`."""

    __slots__ = (
        "_body", "_buffer", "_headers", "_kept_body_bytes", "_received", "_remaining", "_reusable", "_stage", "_status"
    )  # fmt: skip

    def __init__(self, kept_body_bytes: int) -> None:
        self._kept_body_bytes = kept_body_bytes
        self._buffer = bytearray()
        self._body = bytearray()
        self._received = 0
        self._stage = self._read_head
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._remaining = 0
        self._reusable = True

    def feed(self, data: bytes) -> Response | None:
        if not data:
            return self._end_of_file()
        self._buffer += data
        while (done := self._stage()) is not None:
            if done:
                if self._buffer:
                    raise MalformedResponse("more bytes than the response has")
                return Response(self._status, self._headers, bytes(self._body), self._reusable)
        return None

    def _end_of_file(self) -> Response:
        if self._stage == self._read_until_end_of_file:
            return Response(self._status, self._headers, bytes(self._body), reusable=False)
        raise MalformedResponse("the connection ended before its response")

    # Each stage returns None (needs more bytes), False (continue with the stage that is set now) or True (complete).

    def _read_head(self) -> bool | None:
        end = self._buffer.find(_END)
        if end > MAX_HEAD_BYTES or (end < 0 and len(self._buffer) > MAX_HEAD_BYTES):
            raise MalformedResponse("its head is too large")
        if end < 0:
            if not b"HTTP/1.".startswith(self._buffer[:7]):
                raise MalformedResponse("it does not begin with HTTP/1.")
            return None
        lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + len(_END)]
        status = _STATUS_LINE.fullmatch(lines[0])
        if status is None:
            raise MalformedResponse("its status line is invalid")
        self._status = int(status[2])
        self._headers = _headers(lines[1:])
        if self._status < 200:  # noqa: PLR2004 - interim responses, except for 101
            if self._status == 101:  # noqa: PLR2004
                raise MalformedResponse("it switches protocols")
            return False
        connection = {token.strip() for token in self._headers.get(b"connection", b"").lower().split(b",")}
        self._reusable = b"close" not in connection and (status[1] == b"1" or b"keep-alive" in connection)
        return self._choose_body()

    def _choose_body(self) -> bool:
        coding = self._headers.get(b"transfer-encoding")
        length = self._headers.get(b"content-length")
        if self._status in (204, 304):
            return True
        if coding is not None:
            if coding.lower() != b"chunked" or length is not None:
                raise MalformedResponse("its transfer coding is not supported")
            self._stage = self._read_chunk_size
        elif length is not None:
            lengths = {value.strip() for value in length.split(b",")}
            value = lengths.pop()
            if lengths or not _CONTENT_LENGTH.fullmatch(value):
                raise MalformedResponse("its content length is not one number")
            self._remaining = self._within_limit(int(value))
            self._stage = self._read_body
        else:
            self._stage = self._read_until_end_of_file
        return False

    def _within_limit(self, more: int) -> int:
        if self._received + more > MAX_BODY_BYTES:
            raise MalformedResponse("its body is too large")
        return more

    def _take(self) -> bool:
        """Move available bytes, up to `_remaining`, to the body. Returns whether none remain."""
        taken = self._buffer[: self._remaining]
        del self._buffer[: len(taken)]
        self._keep(taken)
        self._remaining -= len(taken)
        return self._remaining == 0

    def _keep(self, data: bytearray) -> None:
        """Append data to the body, up to `kept_body_bytes` in all."""
        self._received += len(data)
        space = self._kept_body_bytes - len(self._body)
        self._body += data if len(data) <= space else data[:space]

    def _read_body(self) -> bool | None:
        return True if self._take() else None

    def _read_until_end_of_file(self) -> None:
        self._keep(self._buffer[: self._within_limit(len(self._buffer))])
        self._buffer.clear()

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end > MAX_HEAD_BYTES or (end < 0 and len(self._buffer) > MAX_HEAD_BYTES):
            raise MalformedResponse("a line of its chunked body is too long")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _read_chunk_size(self) -> bool | None:
        line = self._line()
        if line is None:
            return None
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            raise MalformedResponse("a chunk's size is not a number")
        self._remaining = self._within_limit(int(size[1], 16))
        self._stage = self._read_chunk if self._remaining else self._read_trailer
        return False

    def _read_chunk(self) -> bool | None:
        if not self._take():
            return None
        self._stage = self._read_chunk_end
        return False

    def _read_chunk_end(self) -> bool | None:
        if len(self._buffer) < 2:  # noqa: PLR2004 - the line end
            return None
        if not self._buffer.startswith(b"\r\n"):
            raise MalformedResponse("a chunk is longer than its size")
        del self._buffer[:2]
        self._stage = self._read_chunk_size
        return False

    def _read_trailer(self) -> bool | None:
        line = self._line()
        if line is None:
            return None
        if line:
            _headers([line])
            return False
        return True


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    if len(lines) > MAX_HEADERS:
        raise MalformedResponse("it has too many headers")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise MalformedResponse("a header line is invalid")
        name, value = header[1].lower(), header[2].strip(b" \t")
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers
