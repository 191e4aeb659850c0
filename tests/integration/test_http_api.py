"""The HTTP API of the local stack: requests over a socket, signed or with a token, to table, queue and bucket."""

import asyncio
import io
import json
import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from yarl import URL

from gatecast import Broadcast, decode
from gatecast.entries import entry_item
from gatecast.frames import Message
from gatecast.kicks import is_revoked
from gatecast.table import HEAD_SK, NOT_BEFORE_SK, key, presence_item, stream_pk, user_pk
from local.aws_environment import REGION
from local.http_api import MAX_BODY_BYTES, HttpApi
from local.resources import Queues, write_room_settings
from routes import authorizer, dependencies
from routes.keys import SharedSecret
from tests.members import connection_ids, write_members
from tests.memory_payloads import reference_to
from tests.openapi import check_response, described
from tests.tokens import AUDIENCE, ISSUER, SECRET, SecretsManager, hs256

NOW_MS = int(time.time() * 1000)
JSON = {"Content-Type": "application/json"}


class Api:
    """A caller: requests are signed unless there is a token, or `signed` is False."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def request(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        token: str | None = None,
        signed: bool = True,
    ) -> tuple[int, Mapping[str, str], Any]:
        sent = dict(headers or {})
        if token:
            sent["Authorization"] = f"Bearer {token}"
        elif signed:
            asked = AWSRequest(method, f"{self.url}{target}", headers=sent, data=body)
            SigV4Auth(boto3.session.Session().get_credentials(), "execute-api", REGION).add_auth(asked)
            sent = dict(asked.headers.items())
        url = URL(f"{self.url}{target}", encoded=True)
        async with self._session.request(
            method, url, data=body, headers=sent, skip_auto_headers=["Content-Type"]
        ) as response:
            content = await response.read()
            path = target.partition("?")[0]
            if response.status not in {404, 405} and described(method, path):
                check_response(method, path, response.status, response.headers, content)
            return response.status, response.headers, json.loads(content)


@pytest.fixture
def deployed(
    aws: dict[str, str], table: str, queues: Queues, payload_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> Any:
    del aws
    variables = {
        "GATECAST_TABLE": table,
        "GATECAST_QUEUE_URL": queues.url,
        "GATECAST_PAYLOAD_BUCKET": payload_bucket,
        "POWERTOOLS_METRICS_DISABLED": "true",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    dependencies.clear_caches()
    yield monkeypatch
    dependencies.clear_caches()


@pytest.fixture
async def api(deployed: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    del deployed
    async with HttpApi() as server, aiohttp.ClientSession() as session:
        yield Api(server.url, session)


@pytest.fixture
async def for_clients(deployed: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """With the authorizer of tokens, whose secret is the one of `tests.tokens`."""
    deployed.setenv("GATECAST_TOKEN_ISSUER", ISSUER)
    deployed.setenv("GATECAST_TOKEN_AUDIENCE", AUDIENCE)
    deployed.setattr(authorizer, "_keys", lambda: SharedSecret(SecretsManager(SECRET), "arn:secret"))
    authorizer.clear_caches()
    async with HttpApi(authorizer.handler) as server, aiohttp.ClientSession() as session:
        yield Api(server.url, session)
    authorizer.clear_caches()


def received(sqs: Any, queues: Queues) -> list[Broadcast]:
    found = []
    while messages := sqs.receive_message(QueueUrl=queues.url, MaxNumberOfMessages=10).get("Messages"):
        found += [decode(each["Body"]) for each in messages]
    return found


# Each operation


async def test_a_message_is_published_to_a_room_and_its_repetition_is_the_same_one(
    api: Api, sqs: Any, queues: Queues
) -> None:
    headers = {**JSON, "Idempotency-Key": "price-4711"}
    for _ in range(2):
        status, _, body = await api.request("POST", "/rooms/chat/1/messages?from=shop", b'{"price": 12.50}', headers)
        assert (status, body) == (202, {"id": "price-4711"})
    first, second = received(sqs, queues)
    for each in (first, second):
        assert (each.id, each.room, each.from_, bytes(each.json or b"")) == (
            "price-4711", "chat/1", "shop", b'{"price": 12.50}',
        )  # fmt: skip


async def test_a_room_s_slash_may_be_encoded(api: Api, sqs: Any, queues: Queues) -> None:
    assert (await api.request("POST", "/rooms/chat%2F1%23/messages", b"1", JSON))[0] == 202
    assert [each.room for each in received(sqs, queues)] == ["chat/1#"]


async def test_a_message_is_published_to_a_user(api: Api, sqs: Any, queues: Queues) -> None:
    headers = {"Content-Type": "text/plain; charset=utf-8"}
    assert (await api.request("POST", "/users/ann/messages?expires_in=60", "grüße".encode(), headers))[0] == 202
    (broadcast,) = received(sqs, queues)
    assert (broadcast.room, broadcast.data) == ("@user/ann", "grüße")
    assert broadcast.expires_at_ms


async def test_a_large_payload_and_bytes_are_objects(
    api: Api, sqs: Any, s3: Any, queues: Queues, payload_bucket: str
) -> None:
    picture, text = bytes(range(256)), b"x" * 1_000_000
    assert (await api.request("POST", "/rooms/a/messages", picture, {"Content-Type": "image/png"}))[0] == 202
    assert (await api.request("POST", "/rooms/b/messages", text, {"Content-Type": "text/plain"}))[0] == 202
    references = {each.room: each.reference for each in received(sqs, queues)}
    for room, expected in (("a", picture), ("b", text)):
        reference = references[room]
        assert reference
        assert s3.get_object(Bucket=payload_bucket, Key=reference.key)["Body"].read() == expected


async def test_a_cloud_event_is_published(api: Api, sqs: Any, queues: Queues) -> None:
    event = b'{"specversion": "1.0", "id": "7", "source": "/shop", "type": "shipped", "data": {"n":  1}}'
    headers = {"Content-Type": "application/cloudevents+json"}
    assert (await api.request("POST", "/rooms/orders/messages", event, headers))[::2] == (202, {"id": "7"})
    (broadcast,) = received(sqs, queues)
    assert (broadcast.id, bytes(broadcast.json or b"")) == ("7", b'{"n":  1}')


async def test_a_hundred_broadcasts_are_published_except_for_the_invalid_ones(
    api: Api, sqs: Any, queues: Queues
) -> None:
    broadcasts = [{"room": f"room-{number}", "json": number, "id": str(number)} for number in range(100)]
    broadcasts[7]["room"] = "a b"
    body = json.dumps({"broadcasts": broadcasts}).encode()
    status, _, outcomes = await api.request("POST", "/broadcasts", body, JSON)
    assert status == 202
    assert [each["position"] for each in outcomes["failed"]] == [7]
    assert [each["id"] for each in outcomes["accepted"]] == [str(number) for number in range(100) if number != 7]
    assert {each.id for each in received(sqs, queues)} == {each["id"] for each in outcomes["accepted"]}


async def test_a_room_is_counted_and_its_users_are_listed(api: Api, dynamodb: Any, table: str) -> None:
    write_room_settings(dynamodb, table, {"presence": 100})
    write_members(dynamodb, table, "lobby", connection_ids(3))
    for user in ("ann", "bob"):
        times = {"joined_at_ms": NOW_MS, "expires_at": NOW_MS // 1000 + 3_600}
        dynamodb.put_item(TableName=table, Item=presence_item("lobby", user, "c=", **times))
    status, headers, room = await api.request("GET", "/rooms/lobby")
    assert (status, room["room"], room["members"]) == (200, "lobby", 3)
    assert headers["Cache-Control"] == "no-store"
    status, _, page = await api.request("GET", "/rooms/lobby/members?after=ann")
    assert (status, page["users"], page["after"]) == (200, [{"user": "bob", "connections": 1}], None)


async def test_a_room_s_history_is_read_with_its_large_payloads(
    api: Api, dynamodb: Any, table: str, s3: Any, payload_bucket: str
) -> None:
    write_room_settings(dynamodb, table, {"history_seconds": 3_600})
    s3.put_object(Bucket=payload_bucket, Key="a", Body=b"large")
    write_history(dynamodb, table, payload_bucket)
    status, _, page = await api.request("GET", "/rooms/chat/1/messages?since=10&limit=1")
    assert (status, page["offset"], page["recovered"], page["more"]) == (200, 11, True, True)
    assert page["messages"] == [{"id": "m-11", "offset": 11, "published_at_ms": NOW_MS, "data": "hello"}]
    status, _, page = await api.request("GET", "/rooms/chat/1/messages?since=11")
    assert (status, page["offset"], page["more"]) == (200, 12, False)
    url = page["messages"][0]["reference"]["url"]
    with await asyncio.to_thread(urllib.request.urlopen, url) as response:
        assert response.read() == b"large"


def write_history(dynamodb: Any, table: str, bucket: str) -> None:
    expires_at = NOW_MS // 1000 + 3_600
    text = Message(id="m-11", offset=11, published_at_ms=NOW_MS, data="hello")
    large = Message(id="m-12", offset=12, published_at_ms=NOW_MS)
    for item in (
        entry_item("chat/1", text, expires_at=expires_at),
        entry_item("chat/1", large, expires_at=expires_at, reference=reference_to("a", 5, bucket)),
        {**key(stream_pk("chat/1"), HEAD_SK), "offset": {"N": "12"}},
    ):
        dynamodb.put_item(TableName=table, Item=item)


async def test_a_user_is_disconnected_and_revoked(
    api: Api, sqs: Any, queues: Queues, dynamodb: Any, table: str
) -> None:
    body = b'{"code": "banned", "for_seconds": 3600}'
    headers = {**JSON, "Idempotency-Key": "kick-1"}
    status, _, kick = await api.request("POST", "/users/mallory/disconnect", body, headers)
    assert (status, kick) == (202, {"id": "kick-1"})
    (first,) = received(sqs, queues)  # the other one is delayed
    assert first.close
    assert (first.room, first.close.code, first.close.retry) == ("@user/mallory", "banned", False)
    item = dynamodb.get_item(TableName=table, Key=key(user_pk("mallory"), NOT_BEFORE_SK))["Item"]
    assert is_revoked(item, issued_at=time.time() + 60, now=time.time() + 60)


# Bad requests, on the wire


BAD: tuple[tuple[str, str, bytes, dict[str, str], int, str], ...] = (
    ("POST", "/rooms/a%20b/messages", b"1", JSON, 400, "bad_request"),
    ("POST", "/rooms/gr%C3%BC%C3%9Fe/messages", b"1", JSON, 400, "bad_request"),
    ("POST", "/rooms/a/messages", b"", JSON, 400, "bad_request"),
    ("POST", "/rooms/a/messages", b"{", JSON, 400, "bad_request"),
    ("POST", "/rooms/a/messages", b"1", {**JSON, "Idempotency-Key": "a b"}, 400, "bad_request"),
    ("POST", "/rooms/a/messages?since=1", b"1", JSON, 400, "bad_request"),
    ("POST", "/rooms/a/messages", b"1", {}, 415, "bad_request"),
    ("POST", "/rooms/a/messages", b"a=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "bad_request"),
    ("POST", "/broadcasts", b"[]", JSON, 400, "bad_request"),
    ("POST", "/broadcasts", b'{"broadcasts": [{"room": "a b", "json": 1}]}', JSON, 400, "bad_request"),
    ("POST", "/users/ann/disconnect", b"{}", JSON, 400, "bad_request"),
    ("GET", "/rooms/a/messages?since=x", b"", {}, 400, "bad_request"),
    ("GET", "/rooms/a/members", b"", {}, 400, "bad_request"),
    ("GET", "/nothing", b"", {}, 404, "unknown_action"),
    ("PUT", "/rooms/a/messages", b"1", JSON, 405, "unknown_action"),
)


async def test_a_bad_request_is_a_problem_and_publishes_nothing(api: Api, sqs: Any, queues: Queues) -> None:
    for method, target, body, headers, *expected in BAD:
        status, sent, problem = await api.request(method, target, body, headers)
        assert [status, problem["code"]] == expected, (method, target, body)
        assert problem["status"] == status
        assert sent["Content-Type"] == "application/problem+json"
    assert not received(sqs, queues)


async def test_a_body_that_api_gateway_would_not_accept_is_413(api: Api) -> None:
    large = io.BytesIO(b"x" * (MAX_BODY_BYTES + 1))
    async with aiohttp.ClientSession() as session, session.post(f"{api.url}/rooms/a/messages", data=large) as response:
        assert (response.status, await response.json()) == (413, {"message": "Request Entity Too Large"})


@pytest.mark.parametrize("service", ["AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL_DYNAMODB"])
async def test_a_dependency_that_does_not_respond_is_503(api: Api, deployed: pytest.MonkeyPatch, service: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        deployed.setenv(service, f"http://127.0.0.1:{closed.getsockname()[1]}")
    dependencies.clear_caches()
    method, target = ("POST", "/rooms/a/messages") if service.endswith("SQS") else ("GET", "/rooms/a")
    status, headers, problem = await api.request(method, target, b"1", JSON)
    assert (status, problem["code"], headers["Retry-After"]) == (503, "unavailable", "1")


# Who may call


async def test_what_is_unsigned_or_from_a_web_page_is_rejected(api: Api, sqs: Any, queues: Queues) -> None:
    pages = ({"Origin": "https://page.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "page.example"})
    unsigned: tuple[dict[str, str], ...] = (
        {},
        {"Authorization": "Bearer a.b.c"},
        {"Authorization": "AWS4-HMAC-SHA256 Credential=local"},
    )
    for headers in (*pages, *unsigned):
        for target in ("/rooms/a/messages", "/client/rooms/a/messages"):
            signed = headers in pages
            status, sent, _ = await api.request("POST", target, b"1", {**JSON, **headers}, signed=signed)
            assert status == 403, headers
            assert not [name for name in sent if name.lower().startswith("access-control-")]
    assert not received(sqs, queues)


async def test_a_signature_holds_for_one_body_and_one_path(api: Api) -> None:
    asked = AWSRequest("POST", f"{api.url}/rooms/a/messages", headers=JSON, data=b"1")
    SigV4Auth(boto3.session.Session().get_credentials(), "execute-api", REGION).add_auth(asked)
    headers = dict(asked.headers.items())
    assert (await api.request("POST", "/rooms/a/messages", b"2", headers, signed=False))[0] == 403
    assert (await api.request("POST", "/rooms/b/messages", b"1", headers, signed=False))[0] == 403
    assert (await api.request("POST", "/rooms/a/messages", b"1", headers, signed=False))[0] == 202


async def test_without_an_authorizer_there_is_nothing_for_clients(api: Api) -> None:
    assert (await api.request("GET", "/client/rooms/a", token=hs256()))[0] == 403
    assert (await api.request("GET", "/client/rooms/a"))[0] == 404


async def test_a_client_does_what_its_token_grants(
    for_clients: Api, sqs: Any, queues: Queues, dynamodb: Any, table: str
) -> None:
    api, token = for_clients, hs256()  # joins lobby and chat/*, publishes to chat/*
    headers = {**JSON, "Idempotency-Key": "1"}
    status, _, body = await api.request("POST", "/client/rooms/chat/1/messages", b'"hi"', headers, token=token)
    assert (status, body) == (202, {"id": "@alice/1"})
    (broadcast,) = received(sqs, queues)
    assert (broadcast.room, broadcast.from_, broadcast.id) == ("chat/1", "alice", "@alice/1")
    write_room_settings(dynamodb, table, {"history_seconds": 3_600, "presence": 100})
    dependencies.clear_caches()
    for target in ("", "/messages", "/members"):
        assert (await api.request("GET", f"/client/rooms/lobby{target}", token=token))[0] == 200
    for method, target in (("POST", "lobby/messages"), ("GET", "other"), ("GET", "@user/bob/messages")):
        status, _, problem = await api.request(method, f"/client/rooms/{target}", b"1", JSON, token=token)
        assert (status, problem["code"]) == (403, "forbidden_room")
    assert not received(sqs, queues)


async def test_an_invalid_token_reaches_no_function(for_clients: Api) -> None:
    invalid: dict[str, int] = {
        hs256(exp=1): 401,
        hs256(aud="other"): 401,
        hs256(sub="a b"): 403,
        hs256(gatecast=7): 403,
    }
    for token, expected in invalid.items():
        assert (await for_clients.request("GET", "/client/rooms/lobby", token=token))[0] == expected
    assert (await for_clients.request("GET", "/client/rooms/lobby", signed=False))[0] == 401


async def test_a_token_is_worth_nothing_on_a_backend_s_path(for_clients: Api, sqs: Any, queues: Queues) -> None:
    for target in ("/rooms/chat/1/messages", "//client/rooms/chat/1/messages", "/x/../client/rooms/chat/1/messages"):
        assert (await for_clients.request("POST", target, b"1", JSON, token=hs256()))[0] == 403
    for target in ("/client/broadcasts", "/client/users/alice/messages", "/client/users/alice/disconnect"):
        assert (await for_clients.request("POST", target, b"1", JSON, token=hs256()))[0] == 404
    assert not received(sqs, queues)


async def test_a_revoked_user_is_rejected_at_once(for_clients: Api) -> None:
    token = hs256()
    assert (await for_clients.request("GET", "/client/rooms/lobby", token=token))[0] == 200
    body = b'{"code": "banned", "for_seconds": 60}'
    assert (await for_clients.request("POST", "/users/alice/disconnect", body, JSON))[0] == 202
    assert (await for_clients.request("GET", "/client/rooms/lobby", token=token))[0] == 403


async def test_a_client_above_its_limit_learns_when_to_retry(
    for_clients: Api, deployed: pytest.MonkeyPatch, sqs: Any, queues: Queues
) -> None:
    deployed.setenv("GATECAST_PUBLISHES_PER_SECOND", "1")
    statuses = []
    for _ in range(21):  # more than two windows of ten seconds allow
        status, headers, body = await for_clients.request(
            "POST", "/client/rooms/chat/1/messages", b"1", JSON, token=hs256()
        )
        statuses.append(status)
        if status == 429:
            assert body["code"] == "rate_limited"
            assert 1 <= int(headers["Retry-After"]) <= 10
    assert set(statuses) == {202, 429}
    assert len(received(sqs, queues)) == statuses.count(202)
