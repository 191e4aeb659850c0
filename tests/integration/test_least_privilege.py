"""Each role allows the AWS calls that its code makes, and no others.

Real handlers and real processes run against ministack through a proxy that records each action and its resource. The
main flows make every call that the code contains, so the recorded calls and the permissions in the templates must be
equal.
"""

import asyncio
import fnmatch
import json
import re
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import boto3
import pytest
from aiohttp import web

from gatecast import Broadcast, Publisher, Rooms
from gatecast.cli.__main__ import invoke
from gatecast.entries import entry_item
from gatecast.frames import Message
from gatecast.presence import departed_broadcast
from gatecast.table import HEAD_SK, connection_item, joined_room_item, key, presence_item, stream_pk
from local.ministack import SERVICES, Ministack
from local.processes import Process
from local.resources import Queues, write_room_settings
from routes import authorizer, dependencies, handlers
from routes.environment import OPEN_ACCESS
from routes.rejections import MAX_REJECTED
from tests.chaos.service_proxy import ServiceProxy
from tests.connections_endpoint import ConnectionsEndpoint
from tests.foreign_tables import BY_CONNECTION
from tests.members import connection_ids, write_members
from tests.memory_payloads import reference_to
from tests.routes_events import CONNECTED_AT_MS, LambdaContext, event, token_context
from tests.templates import Template
from tests.tokens import AUDIENCE, ISSUER, SECRET, hs256
from tests.worker_process import WorkerProcess, eventually

CHECKOUT = Path(__file__).parents[2]
Use = tuple[str, str]
"""An IAM action and the ARN of the resource."""
Key = tuple[str, str]
"""An IAM action, and the partition key of an item that a call used."""
STAGE_ARN = "arn:aws:execute-api:us-east-1:000000000000:abcdef1234/live"

# The IAM action of an operation where the names differ. Source: Service Authorization Reference of SQS and DynamoDB.
_BATCHES_OF: Final = {
    "SendMessageBatch": "SendMessage",
    "DeleteMessageBatch": "DeleteMessage",
    "ChangeMessageVisibilityBatch": "ChangeMessageVisibility",
}
_IN_TRANSACTIONS: Final = {
    "Put": "PutItem",
    "Update": "UpdateItem",
    "Delete": "DeleteItem",
    "ConditionCheck": "ConditionCheckItem",
}
_STATEMENTS: Final = {"INSERT": "Insert", "UPDATE": "Update", "DELETE": "Delete", "SELECT": "Select"}


def required_of_s3(method: str, path: str) -> Use:
    """The permission that a request for an object requires, with a signature of its own or in its URL."""
    action = {"GET": "GetObject", "PUT": "PutObject"}[method]
    return f"s3:{action}", f"arn:aws:s3:::{path.split('/')[1]}/*"


def required(operation: str, body: Mapping[str, Any]) -> Iterator[Use]:
    """The permissions that a call of SQS, DynamoDB or Secrets Manager requires."""
    match body:
        case {"QueueUrl": str(url)}:
            yield f"sqs:{_BATCHES_OF.get(operation, operation)}", _queue_arn(url)
        case {"SecretId": arn}:
            yield f"secretsmanager:{operation}", arn
        case {"TransactItems": items}:
            for kind, action in ((kind, action) for item in items for kind, action in item.items()):
                yield f"dynamodb:{_IN_TRANSACTIONS[kind]}", _table_arn(action["TableName"])
        case {"Statements": statements}:
            for text in (each["Statement"] for each in statements):
                found = re.search(r'^(\w+)[^"]* "([^"]+)"', text)
                assert found
                yield f"dynamodb:PartiQL{_STATEMENTS[found[1]]}", _table_arn(found[2])
        case {"RequestItems": tables}:
            yield from ((f"dynamodb:{operation}", _table_arn(table)) for table in tables)
        case {"TableName": table, "IndexName": index}:
            yield f"dynamodb:{operation}", f"{_table_arn(table)}/index/{index}"
        case _:
            yield f"dynamodb:{operation}", _table_arn(body["TableName"])


def used_keys(operation: str, body: Mapping[str, Any]) -> Iterator[Key]:
    """The partition keys of a DynamoDB call, by action, as IAM compares them with dynamodb:LeadingKeys."""
    match body:
        case {"TransactItems": items}:
            for kind, action in ((kind, action) for item in items for kind, action in item.items()):
                yield f"dynamodb:{_IN_TRANSACTIONS[kind]}", (action.get("Key") or action["Item"])["pk"]["S"]
        case {"Statements": _} | {"Statement": _}:
            return  # no condition on keys
        case {"RequestItems": tables}:
            for request in tables.values():
                items = request["Keys"] if isinstance(request, dict) else [_written(each) for each in request]
                yield from ((f"dynamodb:{operation}", item["pk"]["S"]) for item in items)
        case {"TableName": _}:
            found = body.get("Key") or body.get("Item") or {"pk": body.get("ExpressionAttributeValues", {}).get(":pk")}
            if found.get("pk"):  # not in a table of the operator's own
                yield f"dynamodb:{operation}", found["pk"]["S"]


def _written(request: Mapping[str, Any]) -> Mapping[str, Any]:
    (kind,) = request.values()
    keys: Mapping[str, Any] = kind.get("Key") or kind["Item"]
    return keys


def check_keys(recorded: set[Key], template: Template, owner: str) -> None:
    """Every recorded key is one that the role allows for its action, and every pattern of the role was needed."""
    patterns: dict[str, set[str]] = {}
    for statement in _statements(template, owner):
        condition = statement.get("Condition", {})
        allowed_keys = condition.get("ForAllValues:StringLike", {}).get("dynamodb:LeadingKeys", ())
        for action in _each(statement["Action"]):
            patterns.setdefault(action, set()).update(allowed_keys)
    unused = {(action, pattern) for action, allowed in patterns.items() for pattern in allowed}
    for action, used in recorded:
        matching = {pattern for pattern in patterns[action] if fnmatch.fnmatchcase(used, pattern)}
        assert matching, f"{action} of {used}: the role allows {patterns[action]}"
        unused -= {(action, pattern) for pattern in matching}
    assert not unused


def _queue_arn(url: str) -> str:
    return f"arn:aws:sqs:us-east-1:000000000000:{url.rpartition('/')[2]}"


def _table_arn(name: str) -> str:
    return f"arn:aws:dynamodb:us-east-1:000000000000:table/{name}"


class Recorder(ServiceProxy):
    """A proxy to ministack. `recorded` has the permissions that the calls through it required."""

    recorded: set[Use]
    keys: set[Key]

    @classmethod
    @asynccontextmanager
    async def recording(cls, target: str) -> AsyncIterator["Recorder"]:
        async with cls.serving(target) as recorder:
            recorder.recorded = set()
            recorder.keys = set()
            yield recorder

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        if "X-Amz-Target" not in request.headers:
            self.recorded.add(required_of_s3(request.method, request.path))
            return await super()._forward(request, body)
        operation, arguments = request.headers["X-Amz-Target"].rpartition(".")[2], json.loads(body)
        self.recorded.update(required(operation, arguments))
        self.keys.update(used_keys(operation, arguments))
        return await super()._forward(request, body)


@pytest.fixture(scope="module")
def ministack() -> Iterator[Ministack]:
    with Ministack.start(services=(*SERVICES, "secretsmanager")) as running:
        yield running


@pytest.fixture
async def recorder(ministack: Ministack) -> AsyncIterator[Recorder]:
    async with Recorder.recording(ministack.url) as recording:
        yield recording


@pytest.fixture
def receipts_url(sqs: Any, unique_name: str) -> str:
    return str(sqs.create_queue(QueueName=f"{unique_name}-receipts")["QueueUrl"])


@pytest.fixture
def parameters(table: str, queues: Queues, receipts_url: str, payload_bucket: str) -> dict[str, str]:
    """The templates' parameters for these resources."""
    return {
        "PayloadBucket": payload_bucket,
        "TableArn": _table_arn(table),
        "QueueArn": _queue_arn(queues.url),
        "DeadLetterQueueArn": _queue_arn(queues.dead_letter_url),
        "ReceiptsQueueArn": _queue_arn(receipts_url),
        "StageArn": STAGE_ARN,
    }


def allowed(template: Template, owner: str) -> set[Use]:
    """The permissions of the role or managed policy named `owner`, from its own and attached policies.

    Not counted: the managed policy for Lambda's logs, and the permissions of the collector beside the worker.
    """
    return {
        (action, resource)
        for statement in _statements(template, owner)
        for action in _each(statement["Action"])
        for resource in _each(statement["Resource"])
    }


def _statements(template: Template, owner: str) -> list[dict[str, Any]]:
    own = template.properties(owner)
    documents = [own["PolicyDocument"]] if "PolicyDocument" in own else []
    documents += [policy["PolicyDocument"] for policy in own.get("Policies", [])]
    attached = template.of_type("AWS::IAM::Policy").values()
    documents += [policy["PolicyDocument"] for policy in attached if f"${{{owner}}}" in policy["Roles"]]
    statements = [statement for document in documents for statement in document["Statement"]]
    return [statement for statement in statements if not statement["Sid"].startswith("Collector")]


def _each(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


# The routes


def call(route: str, text: str | None = None) -> dict[str, Any]:
    """Call a route as Lambda does, as if in a new process. The connection began when the module was loaded."""
    dependencies.clear_caches()
    handler: Callable[..., dict[str, Any]] = getattr(handlers, route.removeprefix("$"))
    access = token_context(NOW_MS // 1000 + 3_600, join=ROOMS, publish=ROOMS)
    event_ = event(route, text, authorizer=access, requested_at_ms=NOW_MS + 1)
    event_["requestContext"]["connectedAt"] = NOW_MS
    return handler(event_, LambdaContext())


def request(action: str, **fields: Any) -> tuple[str, str]:
    """A message: its route, and its text."""
    return action, json.dumps({"action": action, **fields})


NOW_MS: Final = int(time.time() * 1000)
ROOMS: Final = "lobby second other"
CONNECT: Final = ("$connect", None)
JOIN: Final = request("join", room="lobby")
PUBLISH: Final = request("publish", room="lobby", data="x")
SINCE: Final = NOW_MS - 60_000
"""A position before the head of each room's history."""

BEFORE: dict[str, list[tuple[str, str | None]]] = {
    "$connect": [],
    "$disconnect": [CONNECT, JOIN],
    "$default": [],
    "join": [CONNECT],
    "leave": [CONNECT, JOIN],
    "publish": [CONNECT, JOIN],
    "history": [CONNECT, JOIN],
    "members": [CONNECT, JOIN],
    "count": [CONNECT, JOIN],
    "ping": [],
}
CALLS: dict[str, list[tuple[str, str | None]]] = {
    "$connect": [CONNECT],
    "$disconnect": [("$disconnect", None)],
    "$default": [("$default", "no message")],
    # one room and several have different calls; a resume needs messages
    "join": [JOIN, request("join", rooms=[{"room": "lobby", "since": SINCE}, {"room": "second", "last": 5}])],
    "leave": [request("leave", room="lobby")],
    "publish": [PUBLISH],
    "history": [request("history", room="lobby", since=SINCE)],
    "members": [request("members", room="lobby")],
    "count": [request("count", room="lobby")],
    "ping": [request("ping", ref="a")],
}


@pytest.mark.parametrize("route", BEFORE)
async def test_a_route(
    route: str,
    recorder: Recorder,
    parameters: dict[str, str],
    dynamodb: Any,
    table: str,
    queues: Queues,
    payload_bucket: str,
    s3: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_room_settings(dynamodb, table, {"history_seconds": 3_600, "presence": 100})
    variables = {
        "GATECAST_PAYLOAD_BUCKET": payload_bucket,
        "GATECAST_TABLE": table,
        "GATECAST_QUEUE_URL": queues.url,
        "GATECAST_AUTHORIZER": OPEN_ACCESS,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for earlier, text in BEFORE[route]:
        assert _succeeded(await asyncio.to_thread(call, earlier, text))
    if route == "history":  # as if the head had been deleted: it gets a new one
        dynamodb.delete_item(TableName=table, Key=key(stream_pk("lobby"), HEAD_SK))
    for name, value in recorder.environment().items():
        monkeypatch.setenv(name, value)

    async with ConnectionsEndpoint.serving() as endpoint:
        monkeypatch.setenv("GATECAST_CONNECTIONS_ENDPOINT", endpoint.url)
        for each, text in CALLS[route]:
            response = await asyncio.to_thread(call, each, text)
            assert _succeeded(response) or route == "$default", response
        if route in {"join", "history"}:
            s3.put_object(Bucket=payload_bucket, Key="a", Body=b"large")
            assert await asyncio.to_thread(read_payload, dynamodb, table, payload_bucket, route) == b"large"
        await asyncio.to_thread(flood, route)
        if route == "join":  # a failed condition: is the connection gone, or is the limit on rooms reached?
            monkeypatch.setenv("GATECAST_ROOMS_PER_CONNECTION", "1")
            assert "too_many_rooms" in (await asyncio.to_thread(call, *request("join", room="other")))["body"]

    # an API's id is not known before it exists: the template's placeholder
    stage = "arn:aws:execute-api:us-east-1:000000000000:${Api}/live"
    managed = {("execute-api:ManageConnections", f"{stage}/{method}/@connections/*") for method in endpoint.methods}
    template = Template("api", {**parameters, "Authorizer": OPEN_ACCESS, "PingFunction": "yes"})
    role = f"{route.removeprefix('$').capitalize()}Role"
    assert recorder.recorded | managed == allowed(template, role)
    check_keys(recorder.keys, template, role)


def read_payload(dynamodb: Any, table: str, bucket: str, route: str) -> bytes:
    """What a client gets from the URL that this route returns for the latest message of the room."""
    head = dynamodb.get_item(TableName=table, Key=key(stream_pk("lobby"), HEAD_SK))["Item"]
    offset = int(head["offset"]["N"])
    message = Message(id="large", offset=offset, published_at_ms=NOW_MS)
    item = entry_item("lobby", message, expires_at=NOW_MS // 1000 + 3_600, reference=reference_to("a", 5, bucket))
    dynamodb.put_item(TableName=table, Item=item)
    body = json.loads(call(*request(route, room="lobby", since=offset - 1))["body"])
    with urllib.request.urlopen(body["messages"][0]["reference"]["url"], timeout=10) as response:  # noqa: S310
        content: bytes = response.read()
    return content


def flood(route: str) -> None:
    """Messages that are rejected, until the connection is closed. Other routes receive none."""
    if route.removeprefix("$") in {"connect", "disconnect"}:
        return
    handler: Callable[..., dict[str, Any]] = getattr(handlers, route.removeprefix("$"))
    for _ in range(MAX_REJECTED):
        handler(event(route, '{"ref": []}', requested_at_ms=CONNECTED_AT_MS), LambdaContext())


def _succeeded(response: Mapping[str, Any]) -> bool:
    return response["statusCode"] == 200 and '"error"' not in response.get("body", "")


async def test_the_authorizer(
    ministack: Ministack,
    recorder: Recorder,
    aws: dict[str, str],
    table: str,
    unique_name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secrets = boto3.session.Session(region_name=aws["AWS_REGION"]).client("secretsmanager", endpoint_url=ministack.url)
    arn = secrets.create_secret(Name=unique_name, SecretString=SECRET)["ARN"]
    secrets.close()
    for name, value in recorder.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", recorder.environment()["AWS_ENDPOINT_URL_SQS"])
    monkeypatch.setenv("GATECAST_TABLE", table)
    monkeypatch.setenv("GATECAST_TOKEN_ISSUER", ISSUER)
    monkeypatch.setenv("GATECAST_TOKEN_AUDIENCE", AUDIENCE)
    monkeypatch.setenv("GATECAST_TOKEN_SECRET_ARN", arn)
    authorizer.clear_caches()
    request = {**event("$connect"), "methodArn": "arn:x", "queryStringParameters": {"token": hs256()}}

    response = await asyncio.to_thread(authorizer.handler, request, LambdaContext())

    authorizer.clear_caches()
    assert response["policyDocument"]["Statement"][0]["Effect"] == "Allow"
    tokens = {"TokenIssuer": ISSUER, "TokenAudience": AUDIENCE, "TokenSecretArn": arn, "TableArn": _table_arn(table)}
    template = Template("api", tokens)
    assert recorder.recorded == allowed(template, "AuthorizeRole")
    recorder.keys -= {used for used in recorder.keys if not used[0].startswith("dynamodb:")}
    check_keys(recorder.keys, template, "AuthorizeRole")


# A program's own handlers: docs/migrating.md

REVOCATION: Final = ("dynamodb:GetItem", "user#*")
OWN_HANDLERS: dict[str, tuple[Callable[[Rooms], object], set[Key]]] = {
    "connect": (lambda rooms: rooms.connect("own=", user="ann"), {REVOCATION}),
    "join": (lambda rooms: rooms.join("own=", "lobby"), set()),
    "leave": (lambda rooms: rooms.leave("own=", "lobby"), set()),
    "members": (lambda rooms: rooms.members("lobby"), set()),
    "publish": (lambda rooms: rooms.is_member("own=", "lobby"), set()),
    "disconnect": (lambda rooms: rooms.disconnect("own="), set()),
    "connections": (
        lambda rooms: list(rooms.connections("lobby")),
        {("dynamodb:BatchGetItem", "settings#*"), ("dynamodb:Query", "room#*")},
    ),
    "kick": (
        lambda rooms: rooms.kick(user="ann", code="banned", for_seconds=60),
        {("dynamodb:PutItem", "user#*"), ("sqs:SendMessage", "*")},
    ),
}


@pytest.mark.parametrize("name", OWN_HANDLERS)
async def test_rooms(
    name: str, recorder: Recorder, dynamodb: Any, sqs: Any, table: str, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No method needs more than the role of the shipped function, and what the document adds to it."""
    write_room_settings(dynamodb, table, {"presence": 100})
    before = Rooms(dynamodb, table, publisher=Publisher(sqs, queues.url))
    before.connect("own=", user="ann")
    if name != "join":
        before.join("own=", "lobby")
    for variable, value in recorder.environment().items():
        monkeypatch.setenv(variable, value)
    method, allowed_keys = OWN_HANDLERS[name]

    def call_recorded() -> None:
        publisher = Publisher(boto3.client("sqs"), queues.url)
        method(Rooms(boto3.client("dynamodb"), table, publisher=publisher))

    await asyncio.to_thread(call_recorded)

    template = Template("api", {"Authorizer": OPEN_ACCESS, "PingFunction": "yes"})
    role = f"{name.capitalize()}Role"
    statements = _statements(template, role) if role in template.resources else []
    shipped = {
        (action, pattern)
        for each in statements
        for action in _each(each["Action"])
        for pattern in each.get("Condition", {}).get("ForAllValues:StringLike", {}).get("dynamodb:LeadingKeys", ("*",))
    }
    used = recorder.keys | {(action, "") for action, _ in recorder.recorded if action.startswith("sqs:")}
    for action, used_key in used:
        patterns = {pattern for allowed_action, pattern in shipped | allowed_keys if allowed_action == action}
        assert any(fnmatch.fnmatchcase(used_key, pattern) for pattern in patterns), f"{action} of {used_key}"
    assert used


# The worker and the tools


async def test_the_worker(
    recorder: Recorder,
    parameters: dict[str, str],
    sqs: Any,
    dynamodb: Any,
    table: str,
    queues: Queues,
    receipts_url: str,
    s3: Any,
    payload_bucket: str,
    aws: dict[str, str],
    tmp_path: Path,
) -> None:
    """Split rooms, gone, rejecting and slow clients, poison, lease extensions, and a stop during a broadcast.

    And a room with history and presence, with a member who is gone and one whose token has expired.
    """
    stuck = "stuck="
    gone, rejecting, healthy = connection_ids(3, "gone"), connection_ids(3, "rejecting"), connection_ids(30)
    many = connection_ids(3_000, "many")  # half a minute of posts
    write_members(dynamodb, table, "split", [*gone, *rejecting, *healthy], shards=3)
    write_members(dynamodb, table, "large", many, memberships_only=True)
    departed, expired = write_remembering_room(dynamodb, table, "chat")
    publisher = Publisher(sqs, queues.url)
    async with ConnectionsEndpoint.serving() as endpoint:
        statuses = dict.fromkeys([*gone, departed, "unknown="], 410) | dict.fromkeys(rejecting, 413) | {stuck: 429}
        endpoint.respond = lambda connection_id, _nth: statuses.get(connection_id, 200)
        variables = {
            **aws,
            **recorder.environment(),
            "GATECAST_QUEUE_URL": queues.url,
            "GATECAST_DEAD_LETTER_QUEUE_URL": queues.dead_letter_url,
            "GATECAST_RECEIPTS_QUEUE_URL": receipts_url,
            "GATECAST_TABLE": table,
            "GATECAST_PAYLOAD_BUCKET": payload_bucket,
            "GATECAST_CONNECTIONS_ENDPOINT": endpoint.url,
            "GATECAST_VISIBILITY_SECONDS": "5",
            "GATECAST_MAX_POSTS_PER_SECOND": "100",
        }
        with WorkerProcess.launch(variables, tmp_path / "worker.log") as worker:
            await worker.ready()
            counted = {("sqs:GetQueueAttributes", parameters[queue]) for queue in ("QueueArn", "DeadLetterQueueArn")}
            await eventually(lambda: counted <= recorder.recorded)
            sqs.send_message(QueueUrl=queues.url, MessageBody="not a broadcast")
            publisher.publish(Broadcast(id="split", room="split", data="x", receipt=True))
            publisher.publish(Broadcast(id="one", connections=(healthy[0], "unknown="), data="x"))
            s3.put_object(Bucket=payload_bucket, Key="a", Body=b"large")
            large = reference_to("a", 5, payload_bucket)
            publisher.publish(Broadcast(id="object", connections=(healthy[0],), reference=large))
            publisher.publish(Broadcast(id="large", room="large", data="x"))
            publisher.publish(Broadcast(id="chat", room="chat", data="x"))
            publisher.publish(departed_broadcast("chat", "ann", unique="1", published_at_ms=NOW_MS))
            publisher.publish(remainder_for(stuck))
            await eventually(lambda: _metric_is(worker, 'gatecast_lease_extensions_total{outcome="extended"}', 1))
            await eventually(lambda: _metric_is(worker, "gatecast_memberships_reaped_total", 5))
            await eventually(lambda: _metric_is(worker, 'gatecast_slow_clients_total{outcome="closed"}', 1))
            await eventually(lambda: _metric_is(worker, 'gatecast_broadcasts_total{outcome="completed"}', 8))
            await eventually(lambda: any(key.startswith("count#") for _, key in recorder.keys))
            await eventually(lambda: _metric_is(worker, "gatecast_receipts_total", 1))
            worker.terminate()
            assert await worker.ended(seconds=30) == 0, worker.log_tail()
        assert set(healthy) <= set(endpoint.delivered)
        assert 0 < len(set(many) & set(endpoint.delivered)) < len(many), "the worker was stopped during the broadcast"
        assert set(endpoint.closed) == {stuck, expired}

    managed = {("execute-api:ManageConnections", f"{STAGE_ARN}/{method}/@connections/*") for method in endpoint.methods}
    template = Template("worker", parameters)
    assert recorder.recorded | managed == allowed(template, "TaskRole")
    check_keys(recorder.keys, template, "TaskRole")


@pytest.mark.parametrize("tells_queue", [False, True])
async def test_the_worker_with_members_in_a_table_of_the_operators_own(
    recorder: Recorder,
    parameters: dict[str, str],
    sqs: Any,
    dynamodb: Any,
    table: str,
    queues: Queues,
    unique_name: str,
    aws: dict[str, str],
    tmp_path: Path,
    *,
    tells_queue: bool,
) -> None:
    members, ids = f"{unique_name}-members", connection_ids(3)
    BY_CONNECTION.create(dynamodb, members)
    BY_CONNECTION.fill(dynamodb, members, "lobby", [*ids, "gone="])
    gone_url = sqs.create_queue(QueueName=f"{unique_name}-gone")["QueueUrl"]
    setting = BY_CONNECTION.members(members, **({"on_gone": gone_url} if tells_queue else {}))
    async with ConnectionsEndpoint.serving() as endpoint:
        endpoint.respond = lambda connection_id, _nth: 200 if connection_id in ids else 410
        variables = {
            **aws,
            **recorder.environment(),
            "GATECAST_QUEUE_URL": queues.url,
            "GATECAST_TABLE": table,
            "GATECAST_MEMBERS": setting,
            "GATECAST_CONNECTIONS_ENDPOINT": endpoint.url,
        }
        with WorkerProcess.launch(variables, tmp_path / "worker.log") as worker:
            await worker.ready()
            Publisher(sqs, queues.url).publish(Broadcast(id="one", room="lobby", data="x"))
            if tells_queue:
                await eventually(lambda: sqs.receive_message(QueueUrl=gone_url).get("Messages"))
            else:
                await eventually(lambda: BY_CONNECTION.ids(dynamodb, members) == set(ids))

    arns = {"Members": setting, "MembersTableArn": _table_arn(members), "MembersIndex": "byRoom"}
    if tells_queue:
        arns["MembersQueueArn"] = _queue_arn(gone_url)
    statements = _statements(Template("worker", {**parameters, **arns}), "TaskRole")
    others = {arns["MembersTableArn"], f"{arns['MembersTableArn']}/index/byRoom", _queue_arn(gone_url)}
    assert {use for use in recorder.recorded if use[1] in others} == {
        (statement["Action"], statement["Resource"])
        for statement in statements
        if statement["Sid"].startswith("Members")
    }


def write_remembering_room(dynamodb: Any, table: str, room: str) -> tuple[str, str]:
    """A room with history and presence, with two members: one who is gone, and one whose token has expired."""
    departed, expired = connection_ids(2, room)
    write_room_settings(dynamodb, table, {"history_seconds": 3_600, "presence": 100}, name=room)
    write_members(dynamodb, table, room, [departed])
    write_members(dynamodb, table, room, [expired], expires_in_seconds=-60)
    times = {"joined_at_ms": NOW_MS, "expires_at": NOW_MS // 1000 + 3_600}
    joined = joined_room_item(departed, room, 0, expires_at=times["expires_at"], present_user="ann")
    old = {**connection_item(expired, connected_at_ms=NOW_MS), "expires_at": {"N": str(NOW_MS // 1000 - 60)}}
    for item in (presence_item(room, "ann", departed, **times), joined, old):
        dynamodb.put_item(TableName=table, Item=item)
    return departed, expired


def remainder_for(connection_id: str) -> Broadcast:
    """For a client that, in another worker, has not read for a minute: two more rejected posts give it up."""
    tried = (8, int((time.time() - 60) * 1000), 20.0)
    return Broadcast(id="slow", connections=(connection_id,), data="x", part="r-slow", tried=tried)


async def _metric_is(worker: WorkerProcess, sample: str, at_least: float) -> bool:
    return await worker.metric(sample) >= at_least


def data_template(queues: Queues, bucket: str = "", table: str = "") -> Template:
    arns = {"Broadcasts.Arn": _queue_arn(queues.url), "DeadLetters.Arn": _queue_arn(queues.dead_letter_url)}
    more = {"Payloads.Arn": f"arn:aws:s3:::{bucket}", "Table.Arn": _table_arn(table)}
    return Template("data", attributes={**arns, **more})


async def test_redrive(recorder: Recorder, sqs: Any, queues: Queues, aws: dict[str, str], tmp_path: Path) -> None:
    reason = {"reason": {"DataType": "String", "StringValue": "undelivered"}}
    letter = '{"v":1,"id":"b","connections":["c="],"data":"x","part":"u-1"}'
    for body in (letter, "not a broadcast, so it is released"):
        sqs.send_message(QueueUrl=queues.dead_letter_url, MessageBody=body, MessageAttributes=reason)
    variables = {
        **aws,
        **recorder.environment(),
        "GATECAST_QUEUE_URL": queues.url,
        "GATECAST_DEAD_LETTER_QUEUE_URL": queues.dead_letter_url,
    }
    command = [sys.executable, "-m", "gatecast.cli", "dead-letters", "redrive"]
    with Process.start(command, environment=variables, log=tmp_path / "log", directory=CHECKOUT) as redrive:
        assert await asyncio.to_thread(redrive.wait, 60) == 0, redrive.log_tail()
    assert "1 resent" in redrive.log_tail()
    assert recorder.recorded == allowed(data_template(queues), "RedrivePolicy")


async def test_an_operator(
    recorder: Recorder, queues: Queues, table: str, aws: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands that change nothing on the dead-letter queue."""
    variables = {**aws, **recorder.environment(), "GATECAST_QUEUE_URL": queues.url, "GATECAST_TABLE": table}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for command in ("room lobby", "rooms set lobby presence=5 --yes", "kick ann --for 1h", "publish lobby hello"):
        assert await asyncio.to_thread(invoke, command.split()) == 0
    template = data_template(queues, table=table)
    assert recorder.recorded == allowed(template, "OperatorPolicy")
    check_keys(recorder.keys, template, "OperatorPolicy")


async def test_a_publisher(recorder: Recorder, queues: Queues, aws: dict[str, str], payload_bucket: str) -> None:
    url = recorder.environment()["AWS_ENDPOINT_URL_SQS"]
    session = boto3.session.Session(region_name=aws["AWS_REGION"])
    sqs, s3 = (session.client(service, endpoint_url=url) for service in ("sqs", "s3"))
    publisher = Publisher(sqs, queues.url, s3=s3, bucket=payload_bucket, reference_above=1)
    await asyncio.to_thread(publisher.publish, room="lobby", data="longer than one byte")
    sqs.close()
    s3.close()
    assert recorder.recorded == allowed(data_template(queues, payload_bucket), "PublisherPolicy")
