"""Integrations outside the emulator's process: functions behind an Invoke API, and HTTP endpoints."""

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import boto3
import pytest
import websockets
from aiohttp import web
from multidict import CIMultiDict
from websockets.typing import Subprotocol

from gatecast.emulator.authorizer import Authorizer
from gatecast.emulator.integration import Route, Unavailable
from gatecast.emulator.remote import HttpProxy, LambdaFunction
from gatecast.emulator.server import Gateway
from gatecast.emulator.sigv4 import Credentials, Verifier, parse_authorization, sign
from local.aws_environment import CREDENTIALS, REGION
from local.ministack import Ministack
from tests.gateway_doubles import send_request

Handler = Callable[[web.Request], Any]
UNREACHABLE = "http://127.0.0.1:1"


@asynccontextmanager
async def http_server(handler: Handler) -> AsyncIterator[str]:
    """A server with one handler for everything, and its address."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        found = handler(request)  # type: ignore[arg-type] # it reads what both have
        response: web.StreamResponse = await found if asyncio.iscoroutine(found) else found
        return response

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class InvokeApi:
    """Records invocations, and responds with `status`, `headers` and `body`."""

    def __init__(self, body: Any = None, *, status: int = 200, **headers: str) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self._text = body if isinstance(body, str) else json.dumps(body)
        self._status = status
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        self.requests.append((request.method, request.path, dict(request.headers), await request.read()))
        return web.Response(text=self._text, status=self._status, headers=self._headers)


def route(url: str, *, response: bool = True) -> Route:
    return Route(LambdaFunction.at(url, "send it"), response)


async def test_a_function_gets_the_event_in_a_signed_invocation() -> None:
    api = InvokeApi({"statusCode": 200, "body": '{"n": 1}'})
    secret = Credentials("me", "secret")
    async with (
        http_server(api) as url,
        Gateway({"send": route(url)}, credentials=[secret], region="eu-west-1") as gateway,
        websockets.connect(gateway.url) as client,
    ):
        assert await send_request(client, action="send", text="hello") == {"n": 1}
    ((method, path, headers, body),) = api.requests
    assert (method, path) == ("POST", "/2015-03-31/functions/send it/invocations")
    assert headers["X-Amz-Invocation-Type"] == "RequestResponse"
    event = json.loads(body)
    assert event["requestContext"]["routeKey"] == "send"
    assert json.loads(event["body"]) == {"action": "send", "text": "hello"}
    authorization = parse_authorization(headers["Authorization"])
    assert (authorization.service, authorization.region, authorization.access_key_id) == ("lambda", "eu-west-1", "me")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "api",
    [
        InvokeApi({"errorMessage": "no", "errorType": "Error"}, X_Amz_Function_Error="Unhandled"),
        InvokeApi({"errorMessage": "no", "errorType": "Error", "stackTrace": []}),  # the runtime interface emulator
        InvokeApi("not JSON"),
        InvokeApi({}, status=404),
        InvokeApi("text"),
    ],
)
async def test_a_function_that_fails_is_an_internal_server_error(api: InvokeApi) -> None:
    async with (
        http_server(api) as url,
        Gateway({"send": route(url)}) as gateway,
        websockets.connect(gateway.url) as client,
    ):
        assert (await send_request(client, action="send"))["message"] == "Internal server error"
        assert gateway.counters.route_errors == {"send": 1}


@pytest.mark.parametrize(
    "integration", [LambdaFunction.at(UNREACHABLE, "send"), HttpProxy(UNREACHABLE), Unavailable("it is in Cobol")]
)
async def test_what_cannot_be_reached_is_an_internal_server_error(
    integration: Any, caplog: pytest.LogCaptureFixture
) -> None:
    routes = {"send": Route(integration, response=True)}
    async with Gateway(routes) as gateway, websockets.connect(gateway.url) as client:
        assert (await send_request(client, action="send"))["message"] == "Internal server error"
    assert UNREACHABLE in caplog.text or "Cobol" in caplog.text


@pytest.mark.parametrize("kind", ["lambda", "http"])
async def test_one_that_does_not_respond_in_29_seconds_is_an_error(kind: str) -> None:
    arrived, never = asyncio.Event(), asyncio.Event()

    async def hang(_: web.BaseRequest) -> web.Response:
        arrived.set()
        await never.wait()
        return web.Response()

    async with http_server(hang) as url:
        integration = LambdaFunction.at(url, "send") if kind == "lambda" else HttpProxy(url)
        async with (
            Gateway({"send": Route(integration, response=True)}) as gateway,
            websockets.connect(gateway.url) as client,
        ):
            await client.send('{"action": "send"}')
            await arrived.wait()
            gateway.clock.advance(29)
            assert json.loads(await client.recv())["message"] == "Endpoint request timed out"
        never.set()


@pytest.mark.parametrize(
    ("api", "status"),
    [
        (InvokeApi({"principalId": "ann", "policyDocument": {"Statement": []}}), 403),
        (InvokeApi({"errorMessage": "Unauthorized", "errorType": "Error"}, X_Amz_Function_Error="Unhandled"), 401),
        (InvokeApi({"errorMessage": "other", "errorType": "Error"}, X_Amz_Function_Error="Unhandled"), 500),
    ],
)
async def test_an_authorizer_may_be_behind_an_invoke_api(api: InvokeApi, status: int) -> None:
    async with http_server(api) as url, Gateway({}, authorizer=Authorizer(LambdaFunction.at(url, "auth"))) as gateway:
        with pytest.raises(websockets.InvalidStatus) as rejected:
            await websockets.connect(gateway.url)
    assert rejected.value.response.status_code == status


class Endpoint:
    """An HTTP endpoint that records requests and responds with their body."""

    def __init__(self, status: int = 200) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self._status = status

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        self.requests.append((request.method, request.path_qs, dict(request.headers), body))
        return web.Response(body=body, status=self._status, headers={"Sec-WebSocket-Protocol": "chat"})


async def test_an_http_endpoint_gets_the_message_and_the_mapped_parameters() -> None:
    endpoint = Endpoint()
    parameters = {
        "integration.request.header.ConnectionId": "context.connectionId",
        "integration.request.header.Missing": "route.request.body.missing",
        "integration.request.querystring.room": "route.request.body.to.room",
        "integration.request.querystring.kind": "'a b'",
    }
    async with http_server(endpoint) as url:
        routes = {"send": Route(HttpProxy(f"{url}/send?x=1", "PUT", parameters), response=True)}
        async with Gateway(routes) as gateway, websockets.connect(gateway.url) as client:
            (connection_id,) = gateway.connections
            message = {"action": "send", "to": {"room": "lobby"}}
            assert await send_request(client, **message) == message
    ((method, path, headers, body),) = endpoint.requests
    assert (method, path) == ("PUT", "/send?x=1&room=lobby&kind=a+b")
    assert headers["ConnectionId"] == connection_id
    assert "Missing" not in headers
    assert json.loads(body) == message


@pytest.mark.parametrize("status", [200, 403])
async def test_an_http_endpoint_decides_on_connect(status: int) -> None:
    endpoint = Endpoint(status)
    parameters = {"integration.request.header.Token": "route.request.querystring.token"}
    async with (
        http_server(endpoint) as url,
        Gateway({"$connect": Route(HttpProxy(url, parameters=parameters))}) as gateway,
    ):
        connecting = websockets.connect(f"{gateway.url}?token=secret", subprotocols=[Subprotocol("chat")])
        if status == 200:
            async with connecting as client:
                assert client.subprotocol == "chat"
        else:
            with pytest.raises(websockets.InvalidStatus) as rejected:
                await connecting
            assert rejected.value.response.status_code == status
    ((method, _, headers, body),) = endpoint.requests
    assert (method, headers["Token"], body) == ("POST", "secret", b"")


async def test_redirects_are_not_followed() -> None:
    def redirect(_: web.BaseRequest) -> web.Response:
        return web.Response(status=302, headers={"Location": UNREACHABLE}, text="moved")

    async with http_server(redirect) as url:
        routes = {"send": Route(HttpProxy(url), response=True)}
        async with Gateway(routes) as gateway, websockets.connect(gateway.url) as client:
            await client.send('{"action": "send"}')
            assert await client.recv() == "moved"


def test_the_verifier_accepts_what_was_signed_here() -> None:
    """Both directions are in one module, so that neither can drift from the other; botocore's tests hold the second."""
    keys = Credentials("me", "secret", "token")
    verifier = Verifier({"me": keys}, region="eu-west-1", clock=lambda: 1_700_000_000.0)
    headers = sign(
        "POST", "/a%20b", b"{}", host="x", service="execute-api", region="eu-west-1", credentials=keys,
        now=1_700_000_000.0,
    )  # fmt: skip
    assert verifier.verify("POST", "/a%20b", CIMultiDict(headers), b"{}") is None
    assert verifier.verify("POST", "/a%20b", CIMultiDict(headers), b"{ }") is not None


@pytest.fixture(scope="module")
def ministack_with_lambda() -> Iterator[Ministack]:
    with Ministack.start(services=("iam", "lambda")) as running:
        yield running


async def test_a_function_of_another_emulator_of_aws_runs(ministack_with_lambda: Ministack) -> None:
    """ministack rejects what is not signed with this run's secret."""
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        text = "import json\ndef handler(event, context):\n    return {'statusCode': 200, 'body': json.dumps(event)}\n"
        archive.writestr("app.py", text)

    def deploy() -> None:
        functions = boto3.session.Session().client(
            "lambda",
            endpoint_url=ministack_with_lambda.url,
            region_name=REGION,
            aws_access_key_id=CREDENTIALS.access_key_id,
            aws_secret_access_key=CREDENTIALS.secret_access_key,
        )
        functions.create_function(
            FunctionName="send",
            Runtime="python3.13",
            Handler="app.handler",
            Role="arn:aws:iam::000000000000:role/x",
            Code={"ZipFile": code.getvalue()},
        )
        functions.close()

    await asyncio.to_thread(deploy)
    routes = {"send": Route(LambdaFunction.at(ministack_with_lambda.url, "send"), response=True)}
    async with Gateway(routes) as gateway, websockets.connect(gateway.url) as client:
        event = await send_request(client, action="send")
        assert event["requestContext"]["routeKey"] == "send"
        assert event["requestContext"]["connectionId"] in gateway.connections
