"""The emulator at its edges: malformed requests, long URLs, idle clients that ping, custom domains, and its logs."""

import asyncio
import contextlib
import io
import json
import logging
import urllib.request
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
import websockets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from gatecast.emulator.authorizer import Authorizer
from gatecast.emulator.defaults import CREDENTIALS, REGION
from gatecast.emulator.integration import Route
from gatecast.emulator.limits import Limits
from gatecast.emulator.pages import Page
from gatecast.emulator.server import Gateway
from gatecast.emulator.sigv4 import Credentials, Verifier, check_date, parse_authorization

TOKEN = "header.payload-that-nobody-may-log.signature"


async def raw(gateway: Gateway, request: bytes) -> int:
    """The status of the response to these bytes; 0 if the connection ends without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(request)
    line = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    return int(line.split()[1]) if line else 0


def post(path: bytes, authorization: bytes, date: bytes = b"20260101T000000Z") -> bytes:
    return (
        b"POST " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: " + authorization
        + b"\r\nX-Amz-Date: " + date + b"\r\nContent-Length: 2\r\n\r\nhi"
    )  # fmt: skip


def signature(scope: bytes = b"local/20260101/us-east-1/execute-api/aws4_request", signed: bytes = b"00") -> bytes:
    return b"AWS4-HMAC-SHA256 Credential=" + scope + b", SignedHeaders=host, Signature=" + signed


@pytest.mark.parametrize(
    "request_",
    [
        post(b"/local/@connections/x", signature(signed="sïgnature".encode())),
        post(b"/local/@connections/x", signature(signed=b"\xff\xfe")),
        post(b"/local/@connections/x", signature(b"local/\xff\xff/us-east-1/execute-api/aws4_request")),
        post(b"/local/@connections/x", signature(b"\xf0\x9f\x98\x80/a/b/c/d")),
        post(b"/local/@connections/x", signature(), "\uff12\uff10\uff12\uff160101T000000Z".encode()),
        post(b"/local/@connections/x", signature(), b"\xff"),
        post(b"/local/@connections/x", b"\xff\xfe"),
        post(b"/local/@connections/%ff%fe", signature()),
        post(b"/local/@connections/%", signature()),
        post(b"/local/@connections/%zz%00", signature()),
        post(b"/local/@connections/x?%ff=\xc3\xa9", signature()),
        post(b"/%ff", signature()),
        post(b"/local/@connections/", signature()),
        post(b"*", signature()),
        post(b"//", signature()),
    ],
)
async def test_a_malformed_request_is_rejected_and_never_an_error_of_ours(request_: bytes) -> None:
    now = 1_767_225_600.0  # the date of the requests, so that the signature itself is compared
    async with Gateway({}) as gateway:
        gateway._management._verifier._clock = lambda: now
        assert 400 <= await raw(gateway, request_) < 500
        assert await raw(gateway, post(b"/local/@connections/x", signature())) == 403, "it still serves"


HEADER_TEXT = st.text(st.characters(codec="latin-1") | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF))


@given(HEADER_TEXT, HEADER_TEXT, HEADER_TEXT)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_signature_is_compared_or_rejected(scope: str, signed: str, date: str) -> None:
    verifier = Verifier({"local": Credentials("local", "secret")}, region=REGION, clock=lambda: 1_767_225_600.0)
    valid = "local/20260101/us-east-1/execute-api/aws4_request"
    for credential in (scope, valid):
        header = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host;{signed}, Signature={signed}"
        parse_authorization(header)
        for timestamp in (date, "20260101T000000Z"):
            check_date("20260101", timestamp, 0.0)
            headers = CIMultiDict({"Authorization": header, "X-Amz-Date": timestamp, "Host": date})
            assert verifier.verify("POST", f"/local/@connections/{signed}", headers, b"") is not None


PIECES = [
    *rb"% %ff %zz %00 %0d%0a %2F %3D %u1234 / // .. ? & = # ; , : + [ ] @connections x".split(),
    *(b"\xff", b"\xc3\xa9", b"\xed\xa0\x80", b"\x00", b"\x7f", b" ", b"\r", b"\n", b"\t"),
]
MIXED = st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join)
HEADERS = st.sampled_from(
    b"Authorization X-Amz-Date X-Amz-Security-Token Host Origin User-Agent Cookie Sec-WebSocket-Protocol "
    b"Sec-WebSocket-Key Sec-WebSocket-Version Content-Length Transfer-Encoding Expect".split()
)
UPGRADE = (
    b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
TARGETS = st.sampled_from(
    [
        (b"POST /local/@connections/", b" HTTP/1.1\r\nHost: 127.0.0.1\r\n"),
        (b"GET /local?", UPGRADE),
        (b"POST /local?", UPGRADE),
        (b"GET /", UPGRADE),
    ]
)


@given(st.lists(st.tuples(TARGETS, MIXED, HEADERS, MIXED), min_size=1, max_size=10))
@settings(max_examples=50, deadline=None)
async def test_no_request_is_an_error_of_ours(requests: list[tuple[tuple[bytes, bytes], bytes, bytes, bytes]]) -> None:
    async with Gateway({}) as gateway:
        for (before, after), target, name, value in requests:
            status = await raw(gateway, before + target + after + name + b": " + value + b"\r\n\r\n")
            assert 400 <= status < 500 or (status == 101 and before.startswith(b"GET"))


async def test_the_authorizer_and_the_route_get_the_header_authorization() -> None:
    """On `$connect` it may be anything, such as a bearer token: only `@connections` expects a signature."""
    received: list[str] = []

    def authorize(event: dict[str, Any], _context: object) -> dict[str, object]:
        received.append(event["headers"]["Authorization"])
        statement = {"Action": "execute-api:Invoke", "Effect": "Allow", "Resource": event["methodArn"]}
        return {"principalId": "me", "policyDocument": {"Version": "2012-10-17", "Statement": [statement]}}

    def connect(event: dict[str, Any], _context: object) -> dict[str, int]:
        received.append(event["headers"]["Authorization"])
        return {"statusCode": 200}

    identity = ("route.request.header.authorization",)
    async with Gateway({"$connect": Route(connect)}, authorizer=Authorizer(authorize, identity)) as gateway:
        async with websockets.connect(gateway.url, additional_headers={"Authorization": f"Bearer {TOKEN}"}):
            pass
        with pytest.raises(websockets.InvalidStatus) as rejected:
            await websockets.connect(gateway.url)
    assert rejected.value.response.status_code == 401
    assert received == [f"Bearer {TOKEN}"] * 2


async def test_a_url_of_more_than_4096_characters_is_rejected() -> None:
    async with Gateway({}) as gateway:
        room = 4_096 - len(f"wss{gateway.url.removeprefix('ws')}?token=")
        async with websockets.connect(f"{gateway.url}?token={'x' * room}"):
            pass
        with pytest.raises(websockets.InvalidStatus) as rejected:
            await websockets.connect(f"{gateway.url}?token={'x' * (room + 1)}")
        assert rejected.value.response.status_code == 414
        assert gateway.counters.connects[414] == 1


async def test_pings_keep_no_idle_client_connected() -> None:
    async with Gateway({}, limits=Limits(idle_seconds=0.3)) as gateway:
        client = await websockets.connect(gateway.url, ping_interval=None)
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await asyncio.wait_for(await client.ping(), 5)
                await asyncio.sleep(0.02)
        await client.wait_closed()
        assert client.close_code == 1001


@pytest.mark.parametrize(("base_path", "path"), [("chat", "/chat"), ("", "")])
async def test_a_custom_domain_has_no_stage(base_path: str, path: str) -> None:
    stages: list[str] = []

    def connect(event: dict[str, object], _context: object) -> dict[str, int]:
        context = event["requestContext"]
        assert isinstance(context, dict)
        stages.append(context["stage"])
        return {"statusCode": 200}

    pages = {"/": Page("text/plain", b"a page")}
    async with Gateway({"$connect": Route(connect)}, base_path=base_path, pages=pages) as gateway:
        assert gateway.url == f"ws://127.0.0.1:{gateway.port}{path}"
        assert gateway.endpoint == f"http://127.0.0.1:{gateway.port}{path}"
        async with websockets.connect(f"{gateway.url}/") as client:
            (connection_id,) = gateway.connections
            sdk = boto3.session.Session(
                region_name=REGION,
                aws_access_key_id=CREDENTIALS.access_key_id,
                aws_secret_access_key=CREDENTIALS.secret_access_key,
            ).client("apigatewaymanagementapi", endpoint_url=gateway.endpoint)
            await asyncio.to_thread(sdk.post_to_connection, ConnectionId=connection_id, Data=b"hello")
            assert await asyncio.wait_for(client.recv(), 5) == "hello"
            sdk.close()
        assert stages == ["local"]

        def page() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/", timeout=5) as response:
                return str(response.read().decode())

        assert await asyncio.to_thread(page) == "a page"


@pytest.fixture
def everything_logged() -> Iterator[io.StringIO]:
    """All records of all loggers, down to debug."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


async def test_no_library_logs_a_token_in_a_subprotocol(everything_logged: io.StringIO) -> None:
    def authorize(event: dict[str, object], _context: object) -> dict[str, object]:
        assert TOKEN in json.dumps(event)
        statement = {"Action": "execute-api:Invoke", "Effect": "Allow", "Resource": event["methodArn"]}
        return {"principalId": "me", "policyDocument": {"Version": "2012-10-17", "Statement": [statement]}}

    async with Gateway({}, authorizer=Authorizer(authorize)) as gateway:
        request = (
            f"GET /local HTTP/1.1\r\nHost: 127.0.0.1:{gateway.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"Sec-WebSocket-Protocol: unknown.v1, {TOKEN}\r\n\r\n"
        )
        assert await raw(gateway, request.encode()) == 101
        assert await raw(gateway, request.replace("GET", "POST", 1).encode()) >= 400
        malformed = [
            f"GET /local?token={TOKEN}\x80 HTTP/1.1\r\n\r\n".encode("latin-1"),
            f"GET /local HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\0\r\n\r\n".encode(),
            f"GET /local HTTP/1.1\r\nSec-WebSocket-Protocol : {TOKEN}\r\n\r\n".encode(),
            f"{TOKEN}\r\n\r\n".encode(),
        ]
        assert [await raw(gateway, each) for each in malformed] == [400] * len(malformed)
    assert "payload-that-nobody-may-log" not in everything_logged.getvalue()
