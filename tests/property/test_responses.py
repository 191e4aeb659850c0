"""The response parser accepts any bytes, split anywhere: it completes, needs more, or raises MalformedResponse."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.transport.responses import MAX_HEADERS, PLAIN_200, MalformedResponse, Response, ResponseReader

PLAIN_200_BYTES = (
    b"HTTP/1.1 200 OK\r\nDate: Tue, 24 Nov 2026 06:00:00 GMT\r\nContent-Type: application/json\r\n"
    b"Content-Length: 0\r\nConnection: keep-alive\r\nx-amzn-RequestId: 1a2b\r\n\r\n"
)
TOKENS = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).filter(
    lambda name: name not in ("content-length", "transfer-encoding", "connection")
)
BODIES = st.binary(max_size=200)


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, Response]:
    """The bytes of a response as a server may send it, and the parsed response."""
    status = draw(st.sampled_from([200, 201, 400, 403, 404, 410, 413, 429, 500, 503]))
    headers = draw(st.dictionaries(TOKENS, st.text("abc 0123=;/", max_size=20).map(str.strip), max_size=4))
    body = draw(BODIES)
    close = draw(st.booleans())
    lines = [f"{name}: {value}" for name, value in headers.items()]
    if close:
        lines.append("CONNECTION: Close")
    if draw(st.booleans()):
        lines.append(f"cOntent-length:{len(body)}")
        encoded = body
    else:
        lines.append("Transfer-Encoding: chunked")
        cuts = sorted(draw(st.sets(st.integers(1, max(1, len(body) - 1)), max_size=4)))
        pieces = [body[i:j] for i, j in zip([0, *cuts], [*cuts, len(body)], strict=True) if body[i:j]]
        encoded = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        encoded += b"0\r\n" + draw(st.sampled_from([b"", b"Trailer: x\r\n"])) + b"\r\n"
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n"]))
    head = "\r\n".join([f"HTTP/1.1 {status} Whatever", *lines]).encode()
    return interim + head + b"\r\n\r\n" + encoded, Response(status, {}, body, reusable=not close)


def read(reader: ResponseReader, data: bytes) -> Response | None:
    """Feeds data like the pool does; the buffer holds older bytes behind the new ones."""
    buffer = bytearray(data + b"\r\nContent-Length: 0\r\n\r\n")
    return PLAIN_200 if reader.is_plain_200(buffer, len(data)) else reader.feed(data)


def pieces_of(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        yield data[start:end]


@given(st.lists(responses(), min_size=1, max_size=3), st.lists(st.integers(0, 10_000), max_size=8))
def test_the_response_does_not_depend_on_where_it_is_split(sent: list[tuple[bytes, Response]], cuts: list[int]) -> None:
    reader = ResponseReader()
    for data, expected in sent:
        *early, last = pieces_of(data, cuts)
        for piece in early:
            assert read(reader, piece) is None
        response = read(reader, last)
        assert response is not None
        assert (response.status, response.body, response.reusable) == (
            expected.status,
            expected.body,
            expected.reusable,
        )


@given(responses(), st.lists(st.integers(0, 10_000), max_size=8), st.integers(0, 250))
def test_a_body_is_kept_up_to_the_limit(sent: tuple[bytes, Response], cuts: list[int], kept: int) -> None:
    data, expected = sent
    reader = ResponseReader(kept)
    for piece in pieces_of(data, cuts):
        response = read(reader, piece)
    assert response is not None
    assert (response.status, response.body, response.reusable) == (
        expected.status,
        expected.body[:kept],
        expected.reusable,
    )
    assert not reader.begun


@given(responses(), st.integers(1, 10_000))
def test_a_response_has_begun_with_its_first_byte(sent: tuple[bytes, Response], cut: int) -> None:
    reader = ResponseReader()
    assert not reader.begun
    read(reader, sent[0][: min(cut, len(sent[0]) - 1)])
    assert reader.begun


@pytest.mark.parametrize(
    "value", [b"a" + b" " * 60_000 + b"a", b" a" * 30_000, b"\t" * 60_000 + b"\0", b"a" + b" " * 60_000 + b"\n"]
)
def test_reading_a_header_takes_a_single_pass(value: bytes) -> None:
    """With quadratic backtracking over spaces, thirty such heads would take minutes."""
    head = b"HTTP/1.1 410 Gone\r\nX-Padding:  " + value + b" \t\r\nContent-Length: 0\r\n\r\n"
    for _ in range(30):
        if value.endswith(b"a"):
            response = read(ResponseReader(), head)
            assert response is not None
            assert response.headers[b"x-padding"] == value.strip()
        else:
            with pytest.raises(MalformedResponse):
                read(ResponseReader(), head)


@pytest.mark.parametrize(("headers", "well_formed"), [(MAX_HEADERS - 1, True), (MAX_HEADERS, False), (16_000, False)])
def test_headers_with_the_same_name_are_joined_up_to_a_limit(headers: int, well_formed: bool) -> None:
    head = b"HTTP/1.1 410 Gone\r\n" + b"a:\r\n" * headers + b"Content-Length: 0\r\n\r\n"
    if well_formed:
        response = read(ResponseReader(), head)
        assert response is not None
        assert response.headers[b"a"] == b", ".join([b""] * headers)
    else:
        with pytest.raises(MalformedResponse, match="headers"):
            read(ResponseReader(), head)


@pytest.mark.parametrize("cut", range(1, len(PLAIN_200_BYTES)))
def test_a_plain_200_in_two_pieces(cut: int) -> None:
    reader = ResponseReader()
    assert read(reader, PLAIN_200_BYTES[:cut]) is None
    response = read(reader, PLAIN_200_BYTES[cut:])
    assert response is not None
    assert (response.status, response.body, response.reusable) == (200, b"", True)


@pytest.mark.parametrize("part", [b"HTTP/1.1 200", b"\r\nContent-Length: 0\r\n", b"\r\n\r\n"])
def test_a_response_with_another_status_or_framing_is_no_plain_200(part: bytes) -> None:
    reader = ResponseReader()
    assert reader.is_plain_200(bytearray(PLAIN_200_BYTES), len(PLAIN_200_BYTES))
    start = PLAIN_200_BYTES.index(part)
    for at in range(start, start + len(part)):
        changed = bytearray(PLAIN_200_BYTES)
        changed[at] ^= 1
        assert not reader.is_plain_200(changed, len(changed))
    assert reader.is_plain_200(bytearray(PLAIN_200_BYTES), len(PLAIN_200_BYTES))


def test_a_body_may_follow_a_head_that_is_as_long_as_a_plain_200() -> None:
    reader = ResponseReader()
    assert read(reader, PLAIN_200_BYTES) is PLAIN_200
    assert read(reader, PLAIN_200_BYTES.replace(b"Length: 0", b"Length: 2")) is None
    response = read(reader, b"{}")
    assert response is not None
    assert response.body == b"{}"
    moved = PLAIN_200_BYTES.replace(b"Content-Length: 0\r\n", b"").replace(b"Date", b"Content-Length: 0\r\nDate")
    assert read(reader, moved) is PLAIN_200
    assert read(reader, PLAIN_200_BYTES) is PLAIN_200


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=6))
def test_garbage_raises_nothing_but_malformed_response(pieces: list[bytes]) -> None:
    feed_all(pieces)


@given(st.integers(0, len(PLAIN_200_BYTES) - 1), st.binary(max_size=6), st.lists(st.integers(0, 1000), max_size=3))
def test_mutated_responses_raise_nothing_but_malformed_response(at: int, inserted: bytes, cuts: list[int]) -> None:
    feed_all(list(pieces_of(PLAIN_200_BYTES[:at] + inserted + PLAIN_200_BYTES[at + len(inserted) :], cuts)))


def feed_all(pieces: list[bytes]) -> None:
    reader = ResponseReader()
    try:
        for piece in [*pieces, b""]:
            response = read(reader, piece)
            assert response is None or 100 <= response.status <= 999
    except MalformedResponse:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
        b"SSH-2.0-x\r\n",
    ],
)  # fmt: skip
def test_malformed_responses(data: bytes) -> None:
    with pytest.raises(MalformedResponse):
        read(ResponseReader(), data)


def test_a_response_without_length_ends_with_the_connection() -> None:
    reader = ResponseReader()
    assert read(reader, b"HTTP/1.1 410 Gone\r\n\r\nbo") is None
    assert read(reader, b"dy") is None
    assert read(reader, b"") == Response(410, {}, b"body", reusable=False)


def test_http_1_0_is_kept_alive_only_with_a_keep_alive_header() -> None:
    assert not reusable(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert reusable(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\n\r\n")


def reusable(data: bytes) -> bool:
    response = read(ResponseReader(), data)
    assert response is not None
    return response.reusable


def test_no_content_has_no_body() -> None:
    response = read(ResponseReader(), b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n")
    assert response is not None
    assert response.body == b""
