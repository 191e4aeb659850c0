"""Injected faults as an HTTP client sees them, and the control interface for other processes."""

import asyncio
from typing import Any, Literal
from urllib.parse import quote

import aiohttp
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from yarl import URL

from gatecast.emulator.faults import (
    INTERNAL_ERROR,
    NOT_JSON,
    THROTTLED,
    TRUNCATED_RESPONSE,
    CannedResponse,
    Delay,
    Faults,
    Reset,
    Rule,
    Stall,
)
from gatecast.emulator.limits import Limits
from gatecast.emulator.server import Gateway
from local.aws_environment import CREDENTIALS, REGION
from tests.gateway_doubles import Recorder, call, close_code, connected, management_client


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (THROTTLED, 429, "LimitExceededException"),
        (INTERNAL_ERROR, 500, "InternalServerErrorException"),
        (NOT_JSON, 502, "502"),
        (CannedResponse(status=503), 503, "503"),
        (CannedResponse(status=403, body="<nope>"), 403, "403"),
    ],
)
async def test_canned_responses(fault: CannedResponse, status: int, code: str) -> None:
    faults = Faults([Rule(fault=fault, max_count=1)])
    async with Gateway(Recorder().routes(), faults=faults) as gateway, connected(gateway) as (client, connection_id):
        with management_client(gateway) as sdk:
            with pytest.raises(ClientError) as error:
                await call(sdk.post_to_connection, ConnectionId=connection_id, Data=b"lost")
            await call(sdk.post_to_connection, ConnectionId=connection_id, Data=b"arrives")
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
        assert error.value.response["Error"]["Code"] == code
        assert await client.recv() == "arrives"
        assert gateway.counters.posts == {status: 1, 200: 1}
        assert gateway.counters.faults == {"CannedResponse": 1}


@pytest.mark.parametrize("fault", [Reset(), Reset(cut="body"), Stall(seconds=0.01)])
async def test_no_response_and_no_delivery(fault: Any) -> None:
    faults = Faults([Rule(fault=fault, max_count=1)])
    async with Gateway(Recorder().routes(), faults=faults) as gateway, connected(gateway) as (client, connection_id):
        with management_client(gateway) as sdk:
            with pytest.raises(aiohttp.ClientError):
                await post(gateway, connection_id, b"lost")
            await call(sdk.post_to_connection, ConnectionId=connection_id, Data=b"arrives")
        assert await client.recv() == "arrives"
        assert gateway.counters.posts == {0: 1, 200: 1}


@pytest.mark.parametrize(
    "fault",
    [
        TRUNCATED_RESPONSE,
        Reset(delivers=True),
        Stall(seconds=0.01, delivers=True),
        CannedResponse(status=500, delivers=True),
    ],
)
async def test_delivered_without_a_response(fault: Any) -> None:
    faults = Faults([Rule(fault=fault)])
    async with Gateway(Recorder().routes(), faults=faults) as gateway, connected(gateway) as (client, connection_id):
        with pytest.raises(aiohttp.ClientError):
            await post(gateway, connection_id, b"delivered")
        assert await client.recv() == "delivered"


async def post(gateway: Gateway, connection_id: str, data: bytes) -> None:
    """Raises aiohttp.ClientError, also for a body that is cut off, which recent versions of the SDK do not notice."""
    request = AWSRequest("POST", f"{gateway.endpoint}/@connections/{quote(connection_id, safe='')}", data=data)
    SigV4Auth(Credentials(*CREDENTIALS), "execute-api", REGION).add_auth(request)
    url = URL(request.url, encoded=True)
    async with (
        aiohttp.ClientSession(raise_for_status=True) as session,
        session.post(url, data=data, headers=dict(request.headers.items())) as response,
    ):
        await response.read()


@pytest.mark.parametrize(
    ("cut", "arrives"), [("headers", b"HTTP/1.1 200 Cut\r\nContent-Le"), ("body", b"Content-Length: 100\r\n\r\n{")]
)
async def test_response_can_be_truncated_in_headers_or_body(cut: Literal["headers", "body"], arrives: bytes) -> None:
    gateway = Gateway({}, faults=Faults([Rule(fault=Reset(cut=cut), methods=frozenset({"GET"}))]))
    async with gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(signed_get(gateway, "nobody%3D"))
        arrived = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert arrives in arrived


def signed_get(gateway: Gateway, connection_id: str) -> bytes:
    request = AWSRequest("GET", f"{gateway.endpoint}/@connections/{connection_id}")
    SigV4Auth(Credentials(*CREDENTIALS), "execute-api", REGION).add_auth(request)
    headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    host = f"127.0.0.1:{gateway.port}"
    return f"GET /local/@connections/{connection_id} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode()


async def test_delay_only_delays_the_response() -> None:
    faults = Faults([Rule(fault=Delay(0.01))])
    async with Gateway(Recorder().routes(), faults=faults) as gateway, connected(gateway) as (client, connection_id):
        with management_client(gateway) as sdk:
            await call(sdk.post_to_connection, ConnectionId=connection_id, Data=b"late")
        assert await client.recv() == "late"
        assert gateway.counters.faults == {"Delay": 1}


async def test_fault_affects_only_its_connections() -> None:
    async with (
        Gateway(Recorder().routes()) as gateway,
        connected(gateway) as (_, affected_id),
        connected(gateway) as (_, healthy_id),
    ):
        gateway.faults.replace([Rule(fault=THROTTLED, only=frozenset({affected_id}))])
        with management_client(gateway) as sdk:
            await call(sdk.post_to_connection, ConnectionId=healthy_id, Data=b"x")
            with pytest.raises(sdk.exceptions.LimitExceededException):
                await call(sdk.post_to_connection, ConnectionId=affected_id, Data=b"x")


async def test_control_interface() -> None:
    recorder = Recorder()
    async with Gateway(recorder.routes()) as gateway, aiohttp.ClientSession() as http:
        control = f"http://127.0.0.1:{gateway.port}/_emulator"
        async with connected(gateway) as (client, connection_id):
            async with http.get(f"{control}/connections") as response:
                assert list(await response.json()) == [connection_id]
            async with http.get(f"{control}/counters") as response:
                assert (await response.json())["connects"] == {"101": 1}
            rule = {"fault": {"kind": "CannedResponse", "status": 500}, "share": 1}
            async with http.put(f"{control}/faults", json=[rule]) as response:
                assert response.status == 204
            assert gateway.faults.next_fault("POST", connection_id) == CannedResponse(status=500)
            async with http.post(f"{control}/drop", json=[connection_id, "nobody="]) as response:
                assert await response.json() == {"dropped": 1}
            assert await close_code(client) == 1006
        for method, path, body in (
            ("PUT", "faults", b"[{}]"),
            ("PUT", "faults", b'[{"fault":{"kind":"Delay","seconds":1},"share":2}]'),
            ("POST", "drop", b"{"),
        ):
            as_json = {"Content-Type": "application/json"}
            async with http.request(method, f"{control}/{path}", data=body, headers=as_json) as response:
                assert response.status == 400
            for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
                page = {"Content-Type": content_type}
                async with http.request(method, f"{control}/{path}", data=b"[]", headers=page) as response:
                    assert response.status == 415, "a web page could send this without the browser asking first"
        async with http.get(f"{control}/nothing") as response:
            assert response.status == 404
    assert recorder.events_for("$disconnect") == []


async def test_same_seed_gives_the_same_connection_ids() -> None:
    async def ids(seed: int) -> list[str]:
        async with Gateway({}, seed=seed, limits=Limits()) as gateway, connected(gateway), connected(gateway):
            return list(gateway.connections)

    first, second, other = await asyncio.gather(ids(1), ids(1), ids(2))
    assert first == second != other
