"""Reading HTTP/1.1 answers to requests that are sent one at a time on a connection.

Almost every answer of `@connections` arrives whole, is small and has no body: a fast path knows those by a few byte
comparisons. Everything else (split anywhere, chunked, with a body, interim, closing, until end of file, garbage) goes
through `_Parser`, a state machine that takes any bytes and either finishes, asks for more or raises MalformedAnswer.
Limits keep a peer from filling memory. RFC 9112 is the source of what counts as malformed.
"""

import re
from typing import Final, NamedTuple

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 256
MAX_BODY_BYTES: Final = 64 * 1024 * 1024

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n\0]*)?")
# Nowhere can two neighbours match the same byte: whatever a peer sends, matching takes one pass. Spaces around a
# header's value are left to `strip`, for in a pattern they would be such neighbours.
_HEADER: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\r\n\0]*)")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n\0]*)?")
_CONTENT_LENGTH: Final = re.compile(rb"[0-9]{1,12}")
_SHORTEST_HEAD: Final = len(b"HTTP/1.1 200\r\n\r\n")
_OK: Final = b"HTTP/1.1 200"
_NO_BODY: Final = b"\r\nContent-Length: 0\r\n"
_END: Final = b"\r\n\r\n"


class MalformedResponse(Exception):  # noqa: N818 - it says what the peer sent
    """The peer does not speak HTTP/1.1 as this client understands it; its connection is of no more use."""


class Answer(NamedTuple):
    """A complete answer. `reusable` says whether the connection may carry another request."""

    status: int
    headers: dict[bytes, bytes]
    """Names in lower case; values of one name joined by commas."""
    body: bytes
    reusable: bool


PLAIN_200: Final = Answer(200, {}, b"", reusable=True)
"""What is answered almost always."""


class ResponseReader:
    """Reads the answers of one connection, one after the other.

    Of each body at most `kept_body_bytes` are kept; the rest is read and forgotten.
    """

    __slots__ = ("_kept_body_bytes", "_no_body_at", "_ordinary_length", "_parser")

    def __init__(self, kept_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._kept_body_bytes = kept_body_bytes
        self._parser: _Parser | None = None
        self._ordinary_length = 0
        self._no_body_at = 0

    @property
    def begun(self) -> bool:
        """Whether a response has begun to arrive and is not complete."""
        return self._parser is not None

    def is_plain_200(self, buffer: bytearray, length: int) -> bool:
        """Are the first `length` bytes of `buffer` one whole answer that is equal to ORDINARY? If not, `feed` them."""
        if self._parser is not None:
            return False
        no_body_at = self._no_body_at
        return (
            length == self._ordinary_length
            and buffer.startswith(_NO_BODY, no_body_at)
            and buffer.startswith(_OK)
            and buffer.find(_END, no_body_at, length) == length - len(_END)
        ) or self._becomes_ordinary(bytes(buffer[:length]))

    def _becomes_ordinary(self, head: bytes) -> bool:
        """Asked once a length, as a rule: answers of one server that are as long have the same headers in one order.

        Where that is wrong, little is: a connection that closes unannounced is noticed when its end of file is read.
        """
        no_body_at = head.find(_NO_BODY)
        if not head.startswith(_OK) or no_body_at < 0 or head.find(_END) != len(head) - len(_END):
            return False
        folded = head.lower()
        if folded.count(b"\r\ncontent-length:") > 1 or b"\r\nconnection: close" in folded or b"\r\ntransfer-" in folded:
            return False
        self._ordinary_length = len(head)
        self._no_body_at = no_body_at
        return True

    def feed(self, data: bytes) -> Answer | None:
        """The answer, when it is complete; `data` is b"" at end of file.

        Raises MalformedAnswer; then, as after an answer that is not `reusable`, the connection must be closed.
        """
        if self._parser is None:
            self._parser = _Parser(self._kept_body_bytes)
        answer = self._parser.feed(data)
        if answer is not None:
            self._parser = None
        return answer


class _Parser:
    """One answer. `_stage` is the method that reads on; each consumes from `_buffer` and says if it got through."""

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

    def feed(self, data: bytes) -> Answer | None:
        if not data:
            return self._end_of_file()
        self._buffer += data
        while (done := self._stage()) is not None:
            if done:
                if self._buffer:
                    raise MalformedResponse("more bytes than the answer has")
                return Answer(self._status, self._headers, bytes(self._body), self._reusable)
        return None

    def _end_of_file(self) -> Answer:
        if self._stage == self._read_until_end_of_file:
            return Answer(self._status, self._headers, bytes(self._body), reusable=False)
        raise MalformedResponse("the connection ended before its answer")

    # Every stage answers None (needs more bytes), False (go on with the stage that is now set) or True (complete).

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
            raise MalformedResponse("its status line is not one")
        self._status = int(status[2])
        self._headers = _headers(lines[1:])
        if self._status < 200:  # noqa: PLR2004 - interim answers, but for the one that changes the protocol
            if self._status == 101:  # noqa: PLR2004
                raise MalformedResponse("it changes the protocol")
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
                raise MalformedResponse("its transfer coding cannot be read")
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
        """Move what is there of the `_remaining` bytes to the body; true when that is all of them."""
        taken = self._buffer[: self._remaining]
        del self._buffer[: len(taken)]
        self._keep(taken)
        self._remaining -= len(taken)
        return self._remaining == 0

    def _keep(self, data: bytearray) -> None:
        """Add to the body as much as may still be kept."""
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
            raise MalformedResponse("a chunk is longer than it says")
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
            raise MalformedResponse("a header line is not one")
        name, value = header[1].lower(), header[2].strip(b" \t")
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers
