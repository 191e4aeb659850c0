"""`@connections`, called by a real SDK client, and with raw requests that no SDK sends."""

import asyncio
import json
import random
import threading
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
import websockets
from botocore.exceptions import ClientError

from gatecast.emulator.events import new_id
from gatecast.emulator.integration import Route
from gatecast.emulator.limits import Limits
from gatecast.emulator.management import Post
from gatecast.emulator.server import Gateway
from gatecast.emulator.sigv4 import Credentials
from local.aws_environment import CREDENTIALS
from tests.gateway_doubles import Recorder, call, close_code, connected, management_client, until


async def client_error(method: Any, **kwargs: Any) -> ClientError:
    with pytest.raises(ClientError) as error:
        await call(method, **kwargs)
    return error.value


async def test_post_reaches_the_client() -> None:
    posts: list[Post] = []
    async with (
        Gateway(Recorder().routes(), on_post=posts.append) as gateway,
        connected(gateway) as (client, connection_id),
    ):
        with management_client(gateway) as sdk:
            response = await call(sdk.post_to_connection, ConnectionId=connection_id, Data="grüße".encode())
        assert await client.recv() == "grüße"
        assert response["ResponseMetadata"]["HTTPStatusCode"] == 200
        assert response["ResponseMetadata"]["HTTPHeaders"]["x-amzn-requestid"]
        assert response["ResponseMetadata"]["HTTPHeaders"]["content-length"] == "0"
        assert posts == [Post(connection_id, "grüße".encode())]
        assert gateway.counters.posts == {200: 1}


async def test_get_describes_the_connection() -> None:
    async with Gateway(Recorder().routes("echo")) as gateway:
        before = datetime.now(UTC)
        async with connected(gateway, user_agent_header="agent/1") as (client, connection_id):
            with management_client(gateway) as sdk:
                first = await call(sdk.get_connection, ConnectionId=connection_id)
                await client.send('{"action":"echo"}')
                await client.recv()
                second = await call(sdk.get_connection, ConnectionId=connection_id)
    assert first["Identity"] == {"SourceIp": "127.0.0.1", "UserAgent": "agent/1"}
    assert abs((first["ConnectedAt"] - before).total_seconds()) < 60
    assert second["ConnectedAt"] == first["ConnectedAt"]
    assert second["LastActiveAt"] >= first["LastActiveAt"]


async def test_delete_closes_the_connection_and_calls_disconnect() -> None:
    recorder = Recorder()
    async with Gateway(recorder.routes()) as gateway, connected(gateway) as (client, connection_id):
        with management_client(gateway) as sdk:
            response = await call(sdk.delete_connection, ConnectionId=connection_id)
            gone = await client_error(sdk.post_to_connection, ConnectionId=connection_id, Data=b"x")
        assert response["ResponseMetadata"]["HTTPStatusCode"] == 204
        assert isinstance(gone, sdk.exceptions.GoneException)
        assert await close_code(client) == 1000
        (event,) = await recorder.wait_for("$disconnect")
        assert event["requestContext"]["disconnectReason"] == "Connection Closed Normally"


async def closes(gateway: Gateway, client: websockets.ClientConnection, connection_id: str) -> str:
    await client.close()
    await until(lambda: not gateway.connections)
    return connection_id


async def is_dropped(gateway: Gateway, _: websockets.ClientConnection, connection_id: str) -> str:
    gateway.drop(connection_id)
    return connection_id


async def never_existed(_gateway: Gateway, _client: websockets.ClientConnection, _connection_id: str) -> str:
    return new_id(random.Random(1))


@pytest.mark.parametrize("goes", [closes, is_dropped, never_existed])
async def test_gone_connections_raise_gone_exception(goes: Any) -> None:
    async with Gateway(Recorder().routes()) as gateway, connected(gateway) as (client, connection_id):
        gone = await goes(gateway, client, connection_id)
        with management_client(gateway) as sdk:
            for method, kwargs in (
                (sdk.post_to_connection, {"Data": b"x"}),
                (sdk.get_connection, {}),
                (sdk.delete_connection, {}),
            ):
                error = await client_error(method, ConnectionId=gone, **kwargs)
                assert isinstance(error, sdk.exceptions.GoneException)
                assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 410
        assert (gateway.counters.posts, gateway.counters.gets, gateway.counters.deletes) == ({410: 1},) * 3


async def test_a_connection_is_gone_until_its_connect_has_returned() -> None:
    entered, free = asyncio.Event(), threading.Event()
    loop, seen = asyncio.get_running_loop(), Recorder()

    def connect(event: Any, context: Any) -> Any:
        response = seen(event, context)
        loop.call_soon_threadsafe(entered.set)
        free.wait()
        return response

    async with Gateway({"$connect": Route(connect)}) as gateway:
        with management_client(gateway) as sdk:

            async def early() -> ClientError:
                await entered.wait()
                connection_id = seen.events[0]["requestContext"]["connectionId"]
                try:
                    return await client_error(sdk.post_to_connection, ConnectionId=connection_id, Data=b"x")
                finally:
                    free.set()

            posting = asyncio.create_task(early())
            async with connected(gateway) as (client, connection_id):
                assert isinstance(await posting, sdk.exceptions.GoneException)
                await call(sdk.post_to_connection, ConnectionId=connection_id, Data=b"now")
                assert await client.recv() == "now"


async def test_a_body_of_128_kb_is_the_longest() -> None:
    async with Gateway(Recorder().routes()) as gateway, connected(gateway, max_size=None) as (client, connection_id):
        with management_client(gateway) as sdk:
            for size in (131_073, 3_000_000):
                error = await client_error(sdk.post_to_connection, ConnectionId=connection_id, Data=b"x" * size)
                assert isinstance(error, sdk.exceptions.PayloadTooLargeException)
            await call(sdk.post_to_connection, ConnectionId=connection_id, Data=b"x" * 131_072)
        assert len(await client.recv()) == 131_072


async def test_a_throttled_call_raises_limit_exceeded() -> None:
    limits = Limits(requests_per_second=0.001, request_burst=2)
    async with Gateway(Recorder().routes(), limits=limits) as gateway, connected(gateway) as (_, connection_id):
        with management_client(gateway) as sdk:
            await call(sdk.post_to_connection, ConnectionId=connection_id, Data=b"x")
            await call(sdk.get_connection, ConnectionId=connection_id)
            error = await client_error(sdk.post_to_connection, ConnectionId=connection_id, Data=b"x")
        assert isinstance(error, sdk.exceptions.LimitExceededException)
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 429
        assert gateway.counters.throttled == {"account": 1}


@pytest.mark.parametrize(
    ("kwargs", "code"),
    [
        ({"secret": "wrong"}, "InvalidSignatureException"),
        ({"key_id": "nobody"}, "UnrecognizedClientException"),
        ({"region": "eu-west-1"}, "InvalidSignatureException"),
        ({"aws_session_token": "unknown"}, "UnrecognizedClientException"),
    ],
)
async def test_a_bad_signature_is_forbidden(kwargs: Any, code: str) -> None:
    async with Gateway(Recorder().routes()) as gateway, connected(gateway) as (_, connection_id):
        with management_client(gateway, **kwargs) as sdk:
            error = await client_error(sdk.post_to_connection, ConnectionId=connection_id, Data=b"x")
        assert error.response["Error"]["Code"] == code
        assert error.response["Error"]["Message"]
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        assert gateway.counters.throttled == {}


async def test_temporary_credentials_and_their_rotation() -> None:
    temporary = Credentials("ASIA", "secret", "token")
    async with Gateway(Recorder().routes(), credentials=[temporary]) as gateway, connected(gateway) as (_, id_):
        with management_client(gateway, key_id="ASIA", secret="secret", aws_session_token="token") as sdk:
            await call(sdk.post_to_connection, ConnectionId=id_, Data=b"x")
            gateway.credentials.clear()
            error = await client_error(sdk.post_to_connection, ConnectionId=id_, Data=b"x")
        assert error.response["Error"]["Code"] == "UnrecognizedClientException"


async def test_an_unsigned_call_is_forbidden() -> None:
    async with (
        Gateway(Recorder().routes()) as gateway,
        connected(gateway) as (_, connection_id),
        aiohttp.ClientSession() as http,
        http.post(f"{gateway.endpoint}/@connections/{connection_id}", data=b"x") as response,
    ):
        assert response.status == 403
        assert response.headers["x-amzn-ErrorType"] == "MissingAuthenticationTokenException"
        assert response.headers["x-amzn-RequestId"]
        assert await response.json() == {"message": "Missing Authentication Token"}


@pytest.mark.parametrize("path", ["", "/other/@connections/x%3D", "/local/connections/x%3D", "/@connections/x%3D"])
async def test_unknown_path_is_forbidden(path: str) -> None:
    async with (
        Gateway(Recorder().routes()) as gateway,
        aiohttp.ClientSession() as http,
        http.post(f"http://127.0.0.1:{gateway.port}{path}") as response,
    ):
        assert response.status == 403
        assert response.headers["x-amzn-ErrorType"] == "ForbiddenException"
        assert json.loads(await response.read()) == {"message": "Forbidden"}


@pytest.mark.parametrize("connection_id", ["white space", "quote'", "x" * 200])
async def test_malformed_connection_id_is_a_bad_request(connection_id: str) -> None:
    async with Gateway(Recorder().routes()) as gateway:
        with management_client(gateway) as sdk:
            error = await client_error(sdk.post_to_connection, ConnectionId=connection_id, Data=b"x")
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert error.response["Error"]["Code"] == "BadRequestException"


async def test_data_that_is_not_utf_8_is_a_bad_request() -> None:
    async with Gateway(Recorder().routes()) as gateway, connected(gateway) as (_, connection_id):
        with management_client(gateway) as sdk:
            error = await client_error(sdk.post_to_connection, ConnectionId=connection_id, Data=b"\xff\xfe")
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400


async def test_posts_at_the_same_time_all_arrive_and_are_counted() -> None:
    limits = Limits(latency_seconds=(0.01, 0.02))
    async with Gateway(Recorder().routes(), limits=limits) as gateway, connected(gateway) as (client, connection_id):
        with management_client(gateway) as sdk:
            await asyncio.gather(
                *(call(sdk.post_to_connection, ConnectionId=connection_id, Data=str(n).encode()) for n in range(40))
            )
        assert sorted([int(await client.recv()) for _ in range(40)]) == list(range(40))
        assert gateway.counters.posts == {200: 40}
        assert gateway.counters.calls_in_flight == 0
        assert gateway.counters.calls_in_flight_peak > 1


async def test_credentials_of_the_stack_are_the_gateways_own() -> None:
    async with Gateway(Recorder().routes()) as gateway:
        assert gateway.credentials == {CREDENTIALS.access_key_id: CREDENTIALS}
