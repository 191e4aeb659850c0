"""The WebSocket side of the gateway, with real clients."""

import asyncio
import json
import threading
from typing import Any

import pytest
import websockets
from aws_lambda_powertools import Logger

from gatecast.emulator.authorizer import Authorizer
from gatecast.emulator.faults import Faults, LostDisconnect, Rule
from gatecast.emulator.integration import Mock, Route
from gatecast.emulator.limits import Limits
from gatecast.emulator.server import Gateway
from tests.gateway_doubles import Recorder, close_code, connected, send_request, until


async def test_message_is_routed_by_its_action_and_gets_the_response() -> None:
    recorder = Recorder()
    async with Gateway(recorder.routes("join", "$default")) as gateway, connected(gateway) as (client, connection_id):
        assert await send_request(client, action="join", room="lobby") == {"action": "join", "room": "lobby"}
        await client.send("not JSON")
        assert await client.recv() == "not JSON"
    (joined,) = recorder.events_for("join")
    assert json.loads(joined["body"]) == {"action": "join", "room": "lobby"}
    assert joined["requestContext"]["connectionId"] == connection_id
    assert [event["body"] for event in recorder.events_for("$default")] == ["not JSON"]
    assert recorder.events_for("join")[0]["requestContext"]["messageId"]


async def test_only_routes_with_a_route_response_send_responses() -> None:
    recorder = Recorder()
    routes = {**recorder.routes("loud"), **recorder.routes("quiet", response=False)}
    async with Gateway(routes) as gateway, connected(gateway) as (client, _):
        await client.send('{"action":"quiet"}')
        await recorder.wait_for("quiet")
        assert await send_request(client, action="loud") == {"action": "loud"}


async def test_without_a_default_route_an_unknown_action_is_forbidden() -> None:
    async with Gateway(Recorder().routes("join")) as gateway, connected(gateway) as (client, connection_id):
        for action in ("other", "$connect", "$disconnect"):
            response = await send_request(client, action=action)
            assert (response["message"], response["connectionId"]) == ("Forbidden", connection_id)
            assert response["requestId"]


@pytest.mark.parametrize("responses", [None, {"no": "status"}])
async def test_a_handler_that_fails_is_an_internal_server_error(responses: Any) -> None:
    recorder = Recorder()

    def failing(_event: Any, _context: Any) -> Any:
        if responses is None:
            raise RuntimeError("on purpose")
        return responses

    routes = {**recorder.routes("echo"), "fails": Route(failing)}
    async with Gateway(routes) as gateway, connected(gateway) as (client, connection_id):
        response = await send_request(client, action="fails")
        assert (response["message"], response["connectionId"]) == ("Internal server error", connection_id)
        assert await send_request(client, action="echo") == {"action": "echo"}
        assert gateway.counters.route_errors == {"fails": 1}


async def test_a_handler_that_takes_too_long_is_a_timeout() -> None:
    free = threading.Event()
    recorder = Recorder()

    def slow(_event: Any, _context: Any) -> Any:
        free.wait()

    limits = Limits(integration_timeout_seconds=0.05)
    routes = {**recorder.routes(), "slow": Route(slow)}
    async with Gateway(routes, limits=limits) as gateway, connected(gateway) as (client, _):
        assert (await send_request(client, action="slow"))["message"] == "Endpoint request timed out"
        free.set()


async def test_handlers_get_what_powertools_needs() -> None:
    logger = Logger(service="test", level="CRITICAL")
    seen: list[Any] = []

    @logger.inject_lambda_context
    def handler(_event: Any, context: Any) -> Any:
        seen.append(context)
        return {"statusCode": 200, "body": "ok"}

    async with Gateway({"go": Route(handler, response=True)}) as gateway, connected(gateway) as (client, _):
        await client.send('{"action":"go"}')
        assert await client.recv() == "ok"
    (context,) = seen
    assert context.function_name == "handler"
    assert context.invoked_function_arn.endswith(":function:handler")
    assert 0 < context.get_remaining_time_in_millis() <= 29_000


@pytest.mark.parametrize("status", [400, 401, 403, 500, 503])
async def test_connect_status_decides_the_upgrade(status: int) -> None:
    recorder = Recorder()
    recorder.responses["$connect"] = {"statusCode": status}
    async with Gateway(recorder.routes()) as gateway:
        with pytest.raises(websockets.InvalidStatus) as client_error:
            await websockets.connect(gateway.url)
        assert client_error.value.response.status_code == status
        assert not gateway.connections
        assert gateway.counters.connects == {status: 1}
    assert recorder.events_for("$disconnect") == []


async def test_connect_handler_that_raises_rejects_the_client() -> None:
    def failing(_event: Any, _context: Any) -> Any:
        raise RuntimeError("on purpose")

    async with Gateway({"$connect": Route(failing)}) as gateway:
        with pytest.raises(websockets.InvalidStatus) as client_error:
            await websockets.connect(gateway.url)
        assert client_error.value.response.status_code == 500


async def test_the_subprotocol_is_the_one_that_connect_chose() -> None:
    recorder = Recorder()
    recorder.responses["$connect"] = {"statusCode": 200, "headers": {"sec-websocket-protocol": "second"}}
    async with (
        Gateway(recorder.routes()) as gateway,
        connected(gateway, subprotocols=["first", "second"]) as (client, _),
    ):
        assert client.subprotocol == "second"
    assert recorder.events_for("$connect")[0]["headers"]["Sec-WebSocket-Protocol"] == "first, second"


async def test_the_connect_event_has_what_the_client_sent() -> None:
    recorder = Recorder()
    async with Gateway(recorder.routes()) as gateway:
        url = f"{gateway.url}?token=a%20b&x=1&x=2"
        async with websockets.connect(url, additional_headers={"X-Mine": "yes"}, user_agent_header="agent/1"):
            (connection_id,) = gateway.connections
    (event,) = recorder.events_for("$connect")
    assert event["queryStringParameters"] == {"token": "a b", "x": "2"}
    assert event["multiValueQueryStringParameters"]["x"] == ["1", "2"]
    assert event["headers"]["X-Mine"] == "yes"
    context = event["requestContext"]
    assert context["connectionId"] == connection_id
    assert context["connectionId"].endswith("=")
    assert context["identity"] == {"sourceIp": "127.0.0.1", "userAgent": "agent/1"}
    assert context["domainName"] == f"127.0.0.1:{gateway.port}"


@pytest.mark.parametrize("path", ["", "/", "/other", "/local/more"])
async def test_clients_of_another_stage_are_forbidden(path: str) -> None:
    async with Gateway(Recorder().routes()) as gateway:
        with pytest.raises(websockets.InvalidStatus) as client_error:
            await websockets.connect(f"ws://127.0.0.1:{gateway.port}{path}")
        assert client_error.value.response.status_code == 403


async def test_disconnect_is_called_once_with_the_clients_reason() -> None:
    recorder = Recorder()
    async with Gateway(recorder.routes()) as gateway:
        async with connected(gateway) as (client, connection_id):
            await client.close(4001, "bye")
        (event,) = await recorder.wait_for("$disconnect")
    context = event["requestContext"]
    assert (context["connectionId"], context["eventType"]) == (connection_id, "DISCONNECT")
    assert (context["disconnectStatusCode"], context["disconnectReason"]) == (4001, "bye")
    assert len(recorder.events_for("$disconnect")) == 1


async def test_a_client_that_drops_its_connection_is_disconnected_abnormally() -> None:
    recorder = Recorder()
    async with Gateway(recorder.routes()) as gateway, connected(gateway) as (client, _):
        client.transport.abort()
        (event,) = await recorder.wait_for("$disconnect")
        assert event["requestContext"]["disconnectStatusCode"] == 1006
        assert not gateway.connections


async def test_dropped_client_is_gone_without_disconnect() -> None:
    recorder = Recorder()
    async with Gateway(recorder.routes()) as gateway, connected(gateway) as (client, connection_id):
        gateway.drop(connection_id)
        assert not gateway.connections
        assert await close_code(client) == 1006
        await until(lambda: gateway.counters.connections_open == 0)
        with pytest.raises(KeyError):
            gateway.drop(connection_id)
    assert recorder.events_for("$disconnect") == []


async def test_a_fault_can_lose_disconnects() -> None:
    recorder = Recorder()
    faults = Faults([Rule(fault=LostDisconnect())])
    async with Gateway(recorder.routes(), faults=faults) as gateway:
        async with connected(gateway):
            pass
        await until(lambda: gateway.counters.disconnects_lost == 1)
    assert recorder.events_for("$disconnect") == []


async def test_client_that_closes_during_connect_is_disconnected() -> None:
    recorder, entered, free = Recorder(), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def connect(event: Any, context: Any) -> Any:
        loop.call_soon_threadsafe(entered.set)
        free.wait()
        return recorder(event, context)

    async with Gateway({**recorder.routes(), "$connect": Route(connect)}) as gateway:
        connecting = asyncio.create_task(websockets.connect(gateway.url).__aenter__())
        await entered.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await asyncio.sleep(0)
        free.set()
        (event,) = await recorder.wait_for("$disconnect")
        assert (
            event["requestContext"]["connectionId"]
            == recorder.events_for("$connect")[0]["requestContext"]["connectionId"]
        )
        assert not gateway.connections


async def test_pings_get_pongs() -> None:
    async with Gateway(Recorder().routes()) as gateway, connected(gateway) as (client, _):
        await (await client.ping(b"payload"))


async def test_an_authorizer_decides_first_and_its_context_reaches_every_route() -> None:
    recorder = Recorder()

    def authorize(event: Any, _context: Any) -> Any:
        user = event["queryStringParameters"].get("user")
        effect = "Deny" if user == "eve" else "Allow"
        document = {"Statement": [{"Effect": effect, "Action": "execute-api:Invoke", "Resource": event["methodArn"]}]}
        return {"principalId": user, "policyDocument": document, "context": {"level": 3}}

    authorizer = Authorizer(authorize, ("route.request.querystring.user",))
    async with Gateway(recorder.routes("echo"), authorizer=authorizer) as gateway:
        for url, status in ((gateway.url, 401), (f"{gateway.url}?user=eve", 403)):
            with pytest.raises(websockets.InvalidStatus) as client_error:
                await websockets.connect(url)
            assert client_error.value.response.status_code == status
        assert recorder.events == []
        async with websockets.connect(f"{gateway.url}?user=ann") as client:
            await send_request(client, action="echo")
        await recorder.wait_for("$disconnect")
    for event in recorder.events:
        assert event["requestContext"]["authorizer"]["principalId"] == "ann"
        assert event["requestContext"]["authorizer"]["level"] == "3"


async def test_messages_of_one_client_are_handled_concurrently_up_to_the_limit() -> None:
    all_in, free, running = threading.Semaphore(0), threading.Event(), []

    def handler(event: Any, _context: Any) -> Any:
        running.append(event)
        all_in.release()
        free.wait()
        return {"statusCode": 200}

    limits = Limits(max_concurrent_messages=3)
    async with Gateway({"$default": Route(handler)}, limits=limits) as gateway, connected(gateway) as (client, _):
        for _ in range(10):
            await client.send("x")
        for _ in range(3):
            await asyncio.to_thread(all_in.acquire)
        assert len(running) == 3
        free.set()
        await until(lambda: len(running) == 10)


async def test_stop_aborts_every_connection_without_invoking_routes() -> None:
    recorder = Recorder()
    async with Gateway(recorder.routes()) as gateway:
        clients = [await websockets.connect(gateway.url) for _ in range(5)]
    assert [await close_code(client) for client in clients] == [1006] * 5
    assert recorder.events_for("$disconnect") == []


async def test_a_mock_responds_without_a_handler_and_is_no_invocation() -> None:
    pong = Mock({"type": "pong"}, repeats=("ref",))
    routes = {"$connect": Route(Mock({})), "ping": Route(pong, response=True), "silent": Route(pong)}
    async with Gateway(routes) as gateway, connected(gateway) as (client, _):
        for fields in ({}, {"ref": "a"}, {"ref": 7}, {"other": 1}):
            expected = {"type": "pong", **{name: value for name, value in fields.items() if name == "ref"}}
            await client.send('{"action": "silent", "ref": "never sent"}')
            assert await send_request(client, action="ping", **fields) == expected
        assert gateway.counters.mocks == {"$connect": 1, "ping": 4, "silent": 4}
        assert gateway.counters.routes == {}
        assert gateway.counters.snapshot()["mocks"] == {"$connect": 1, "ping": 4, "silent": 4}
