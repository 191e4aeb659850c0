"""Connecting with tokens, end to end: real clients, the gateway, the authorizer, the routes, and keys over https."""

import asyncio
import json
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import trustme
import websockets

from gatecast import __version__
from local.aws_environment import CREDENTIALS
from local.backend import Backend, prepare_backend
from local.ministack import SERVICES, Ministack
from local.route_table import AUTHORIZER
from local.stack import Stack
from routes import authorizer
from tests.gateway_doubles import send_request, until
from tests.tokens import AUDIENCE, ISSUER, PREVIOUS_SECRET, SECRET, hs256, rs256, rsa_jwk

REQUIRED = {
    "GATECAST_AUTHORIZER": "required",
    "GATECAST_TOKEN_ISSUER": ISSUER,
    "GATECAST_TOKEN_AUDIENCE": AUDIENCE,
}


class Issuer:
    """Serves a JWKS over https on 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        self.requests = 0
        self.user_agents: set[str | None] = set()
        self.keys = [rsa_jwk("rsa")]
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests += 1
                issuer.user_agents.add(self.headers["User-Agent"])
                if self.path != "/jwks.json":
                    self.send_response(302)
                    self.send_header("Location", "/jwks.json")
                    self.end_headers()
                    return
                body = json.dumps({"keys": issuer.keys}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(directory / "authority.pem"))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        self.authority = str(directory / "authority.pem")
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_port}/jwks.json"


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    issuer = Issuer(tmp_path)
    thread = threading.Thread(target=issuer.server.serve_forever)
    thread.start()
    yield issuer
    issuer.server.shutdown()
    issuer.server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def ministack() -> Iterator[Ministack]:
    with Ministack.start(services=(*SERVICES, "secretsmanager")) as running:
        yield running


@pytest.fixture
def backend(ministack: Ministack, unique_name: str) -> Backend:
    return prepare_backend(ministack, table=unique_name, queue=unique_name)


@asynccontextmanager
async def guarded(
    backend: Backend, variables: Mapping[str, str] | None = None, *, workers: int = 0
) -> AsyncIterator[Stack]:
    settings = {**REQUIRED, **(variables or {})}
    authorizer.clear_caches()
    async with Stack.running(on=backend, workers=workers, authorizer=AUTHORIZER, route_settings=settings) as stack:
        yield stack
    authorizer.clear_caches()


def by_jwks(issuer: Issuer) -> dict[str, str]:
    return {"GATECAST_TOKEN_JWKS_URL": issuer.url, "SSL_CERT_FILE": issuer.authority}


def connect(stack: Stack, token: str, *more: str) -> Any:
    protocols: list[Any] = ["gatecast.v1", token, *more]
    return websockets.connect(stack.gateway.url, subprotocols=protocols)


async def status(connecting: Any) -> int:
    with pytest.raises(websockets.InvalidStatus) as rejection:
        await connecting
    return int(rejection.value.response.status_code)


async def test_a_client_with_a_token_gets_what_the_token_grants(backend: Backend, issuer: Issuer) -> None:
    async with guarded(backend, by_jwks(issuer)) as stack, connect(stack, rs256()) as client:
        assert client.subprotocol == "gatecast.v1"
        assert client.response.headers.get_all("Sec-WebSocket-Protocol") == ["gatecast.v1"]
        for room in ("lobby", "chat/1"):
            assert (await send_request(client, action="join", room=room))["type"] == "ok"
        for room in ("other", "chat/", "@all", "@user/bob"):
            assert (await send_request(client, action="join", room=room))["code"] == "forbidden_room"
        published = await send_request(client, action="publish", room="chat/1", data="hi", id="1")
        assert published == {"type": "ok", "action": "publish", "room": "chat/1", "id": "@alice/1"}
        assert (await send_request(client, action="publish", room="lobby", data="hi"))["code"] == "forbidden_room"
        assert issuer.requests == 1
        assert issuer.user_agents == {f"gatecast/{__version__}"}


@pytest.mark.parametrize(("offered", "frames"), [(["gatecast.v2", "gatecast.v1"], "2"), (["gatecast.v1"], None)])
async def test_the_dialect_is_chosen_by_subprotocol_and_written_to_the_table(
    offered: list[Any], frames: str | None, backend: Backend, issuer: Issuer
) -> None:
    protocols: list[Any] = [*offered, rs256()]
    async with (
        guarded(backend, by_jwks(issuer)) as stack,
        websockets.connect(stack.gateway.url, subprotocols=protocols) as client,
    ):
        assert client.subprotocol == offered[0]
        assert (await send_request(client, action="join", room="chat/1"))["type"] == "ok"
        with backend.client("dynamodb") as dynamodb:
            items = dynamodb.scan(TableName=backend.table)["Items"]
        (connection_id,) = stack.gateway.connections
        members = [item for item in items if item["sk"]["S"] in {connection_id, "connection"}]
        assert len(members) == 4, "of @all, the user's room and the joined one, and the connection itself"
        assert {item.get("frames", {}).get("N") for item in members} == {frames}


async def test_bearer_token_is_accepted(backend: Backend, issuer: Issuer) -> None:
    headers = {"Authorization": f"Bearer {rs256()}"}
    async with (
        guarded(backend, by_jwks(issuer)) as stack,
        websockets.connect(stack.gateway.url, additional_headers=headers) as client,
    ):
        assert (await send_request(client, action="join", room="lobby"))["type"] == "ok"
        both = websockets.connect(f"{stack.gateway.url}?token={rs256()}", additional_headers=headers)
        assert await status(both) == 401


async def test_token_in_the_query_is_accepted(backend: Backend, issuer: Issuer) -> None:
    async with (
        guarded(backend, by_jwks(issuer)) as stack,
        websockets.connect(f"{stack.gateway.url}?token={rs256()}") as client,
    ):
        assert client.subprotocol is None
        assert (await send_request(client, action="join", room="lobby"))["type"] == "ok"


async def test_invalid_tokens_are_rejected(backend: Backend, issuer: Issuer) -> None:
    async with guarded(backend, by_jwks(issuer)) as stack:
        unauthorized = [
            websockets.connect(stack.gateway.url),
            websockets.connect(f"{stack.gateway.url}?token="),
            websockets.connect(f"{stack.gateway.url}?token={rs256()}&token={rs256()}"),
            websockets.connect(f"{stack.gateway.url}?token={rs256(exp=1)}"),
            connect(stack, rs256("unknown")),
            connect(stack, rs256(), rs256()),
            connect(stack, hs256()),
        ]
        assert [await status(each) for each in unauthorized] == [401] * len(unauthorized)
        forbidden = [connect(stack, rs256(sub="alice smith")), connect(stack, rs256(gatecast={"join": ["@all"]}))]
        assert [await status(each) for each in forbidden] == [403, 403]
        assert stack.gateway.counters.routes == {}
        with backend.client("dynamodb") as dynamodb:
            items = dynamodb.scan(TableName=backend.table)["Items"]
        assert [item["pk"]["S"] for item in items] == ["settings#@all"], "nothing except what the deployment wrote"


@pytest.mark.parametrize("wrong", ["address", "authority", "redirect"])
async def test_without_keys_connecting_is_a_500(backend: Backend, issuer: Issuer, wrong: str) -> None:
    variables = by_jwks(issuer)
    if wrong == "authority":
        variables["SSL_CERT_FILE"] = "/dev/null"
    else:
        variables["GATECAST_TOKEN_JWKS_URL"] = {
            "address": "https://127.0.0.1:9/jwks.json",
            "redirect": issuer.url.replace("/jwks.json", "/moved"),
        }[wrong]
    async with guarded(backend, variables) as stack:
        assert await status(connect(stack, rs256())) == 500
    assert issuer.requests == (1 if wrong == "redirect" else 0)


async def test_invalid_configuration_fails_closed(backend: Backend) -> None:
    async with guarded(backend) as stack:
        assert await status(connect(stack, rs256())) == 500


async def test_without_the_required_authorizer_connecting_fails(backend: Backend) -> None:
    async with Stack.running(on=backend, workers=0, route_settings=REQUIRED) as stack:
        assert await status(connect(stack, rs256())) == 503
        assert await status(websockets.connect(stack.gateway.url)) == 503


async def test_client_with_expired_token_neither_sends_nor_receives(backend: Backend, issuer: Issuer) -> None:
    async with guarded(backend, by_jwks(issuer), workers=1) as stack:
        grants = {"join": ["lobby"], "publish": ["lobby"]}
        exp = int(time.time()) - 5  # with the leeway that is five seconds from now
        async with (
            connect(stack, rs256(exp=exp, gatecast=grants)) as short,
            connect(stack, rs256(sub="bob", gatecast=grants)) as other,
        ):
            for client in (short, other):
                assert (await send_request(client, action="join", room="lobby"))["type"] == "ok"
            assert (await send_request(other, action="publish", room="lobby", data='"first"', echo=False))[
                "type"
            ] == "ok"
            assert await short.recv() == '"first"'

            while (response := await send_request(short, action="join", room="lobby"))["type"] == "ok":  # noqa: ASYNC110 - time is waited for
                await asyncio.sleep(0.1)
            assert response["code"] == "token_expired"
            rejection = await send_request(short, action="publish", room="lobby", data="x")
            assert rejection["code"] == "token_expired"
            await other.send(json.dumps({"action": "publish", "room": "lobby", "data": '"second"'}))
            assert '"second"' in {await other.recv(), await other.recv()}
            await until(lambda: stack.workers[0].metric("gatecast_broadcasts_total", outcome="completed") == 2)
            assert stack.workers[0].metric("gatecast_deliveries_total") == 2
            assert (await send_request(short, action="leave", room="lobby"))["type"] == "ok"


async def test_a_secret_can_be_rotated(backend: Backend, ministack: Ministack, unique_name: str) -> None:
    secrets = boto3.session.Session(region_name="us-east-1").client(
        "secretsmanager",
        endpoint_url=ministack.url,
        aws_access_key_id=CREDENTIALS.access_key_id,
        aws_secret_access_key=CREDENTIALS.secret_access_key,
    )
    arn = secrets.create_secret(Name=unique_name, SecretString=PREVIOUS_SECRET)["ARN"]
    variables = {"GATECAST_TOKEN_SECRET_ARN": arn, "AWS_ENDPOINT_URL_SECRETS_MANAGER": ministack.url}

    async def admitted(stack: Stack, token: str) -> bool:
        try:
            async with connect(stack, token):
                return True
        except websockets.InvalidStatus as rejection:
            assert rejection.response.status_code == 401  # noqa: PT017 - any other status is wrong
            return False

    async with guarded(backend, variables) as stack:
        assert [await admitted(stack, hs256(secret)) for secret in (PREVIOUS_SECRET, SECRET)] == [True, False]
        secrets.put_secret_value(SecretId=arn, SecretString=SECRET)
        authorizer.clear_caches()  # as in an environment that starts after the rotation
        assert [await admitted(stack, hs256(secret)) for secret in (PREVIOUS_SECRET, SECRET)] == [True, True]
        assert not await admitted(stack, hs256("x" * 32))
    secrets.close()
