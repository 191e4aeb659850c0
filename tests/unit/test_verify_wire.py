"""Signatures and responses of `deploy.verify`, compared with botocore's and with bytes on the wire."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from deploy.verify.wire import SILENCE, Connection, Keys, Management, NoResponse, Response, sign, target

KEYS = Keys("AKIDEXAMPLE", "secret")
URL = "https://abc.execute-api.eu-west-1.amazonaws.com/main"


@pytest.mark.parametrize("token", [None, "session/token="])
@pytest.mark.parametrize("connection_id", ["L0SM9cOFvHcCIhw=", "not an id", "a~b_c-d.e"])
def test_a_signature_is_botocores(token: str | None, connection_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 11, 27, 12, 30, 15, tzinfo=UTC)
    keys = KEYS._replace(session_token=token)
    url = Management(URL, keys=lambda: keys, region="eu-west-1", now=lambda: now).url(connection_id)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: now)
    request = AWSRequest(method="POST", url=url, data=b"payload")
    SigV4Auth(Credentials(*keys), "execute-api", "eu-west-1").add_auth(request)
    signed = sign("POST", url, b"payload", keys=keys, region="eu-west-1", signed_at=now)
    assert signed["authorization"] == request.headers["Authorization"]
    assert signed["x-amz-date"] == request.headers["X-Amz-Date"]
    assert signed.get("x-amz-security-token") == token


def test_a_target_is_path_and_query() -> None:
    assert target("wss://host/main?a=b") == "/main?a=b"
    assert target("https://host") == "/"


class Written:
    """A StreamWriter that keeps what it is given."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    async def drain(self) -> None: ...


async def exchange(received: bytes, *, ends: bool = False, within_seconds: float = 5) -> tuple[Response, bytes]:
    reader, writer = asyncio.StreamReader(), Written()
    reader.feed_data(received)
    if ends:
        reader.feed_eof()
    anything: Any = writer
    response = await Connection(reader, anything).exchange(
        "POST", "/x", {"host": "h"}, b"ab", within_seconds=within_seconds
    )
    return response, writer.data


async def test_a_request_is_written_with_its_length() -> None:
    _, sent = await exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert sent == b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\nab"


@pytest.mark.parametrize(
    ("received", "status", "body"),
    [
        (b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\nx-amzn-ErrorType: GoneException\r\n\r\n", 410, b""),
        (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 3\r\n\r\nabcd", 403, b"abc"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x01x", 101, b""),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\nT: t\r\n\r\n",
            200,
            b"abcd",
        ),
    ],
)
async def test_a_response_is_read_to_its_end_and_no_further(received: bytes, status: int, body: bytes) -> None:
    response, _ = await exchange(received)
    assert (response.status, response.body) == (status, body)


async def test_header_names_keep_their_order_and_case() -> None:
    response, _ = await exchange(b"HTTP/1.1 200 OK\r\nB: 1\r\na:  2 \r\nContent-Length: 0\r\n\r\n")
    assert response.headers == (("B", "1"), ("a", "2"), ("Content-Length", "0"))
    assert response.header("A") == "2"
    assert not response.header("c")


@pytest.mark.parametrize(
    ("received", "ends", "reason"),
    [
        (b"", True, "FIN"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", True, "FIN"),
        (b"", False, SILENCE),
        (b"garbage\r\n\r\n", False, "IndexError"),
        (b"HTTP/1.1 abc\r\n\r\n", False, "ValueError"),
    ],
)
async def test_a_missing_response_has_its_reason(received: bytes, ends: bool, reason: str) -> None:
    with pytest.raises(NoResponse, match=reason):
        await exchange(received, ends=ends, within_seconds=0.01)


async def test_the_end_of_an_idle_connection_has_a_name() -> None:
    async def end(reader: asyncio.StreamReader) -> str | None:
        anything: Any = Written()
        return await Connection(reader, anything).end(0.01)

    closed, reset, talking = asyncio.StreamReader(), asyncio.StreamReader(), asyncio.StreamReader()
    closed.feed_eof()
    reset.set_exception(ConnectionResetError())
    talking.feed_data(b"HTTP/1.1 408")
    assert await end(closed) == "FIN"
    assert await end(reset) == "RST"
    assert (await end(talking) or "").startswith("data")
    assert await end(asyncio.StreamReader()) is None
