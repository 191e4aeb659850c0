"""The handlers against DynamoDB and SQS: the items and messages that each route writes."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gatecast import Broadcast, decode
from gatecast.frames import V1, V2
from gatecast.table import room_pk, shard_of
from local.resources import Queues
from routes import dependencies, handlers
from routes.environment import OPEN_ACCESS
from routes.limits import Limits
from routes.requests import Caller
from routes.responses import RequestRejected
from tests.routes_events import (
    CONNECTED_AT_MS,
    CONNECTION_ID,
    EXPIRES_AT,
    REQUESTED_AT_MS,
    LambdaContext,
    event,
    token_context,
)
from worker.aws.table import Table
from worker.pipeline.pages import begin_page

Item = dict[str, Any]
Handler = Callable[[dict[str, Any], Any], dict[str, Any]]


@pytest.fixture(autouse=True)
def deployed(monkeypatch: pytest.MonkeyPatch, table: str, queues: Queues) -> Iterator[None]:
    monkeypatch.setenv("GATECAST_TABLE", table)
    monkeypatch.setenv("GATECAST_QUEUE_URL", queues.url)
    monkeypatch.setenv("GATECAST_AUTHORIZER", OPEN_ACCESS)
    monkeypatch.setenv("GATECAST_JOINS_PER_SECOND", "0")
    dependencies.clear_caches()
    yield
    dependencies.clear_caches()


def opened(**kwargs: Any) -> None:
    assert handlers.connect(event("$connect", **kwargs), LambdaContext())["statusCode"] == 200


def invoke(handler: Handler, connection_id: str = CONNECTION_ID, **body: Any) -> dict[str, Any]:
    result = handler(event(body=json.dumps(body), connection_id=connection_id), LambdaContext())
    message: dict[str, Any] = json.loads(result["body"])
    return message


def items(dynamodb: Any, table: str) -> dict[tuple[str, str], Item]:
    found = dynamodb.scan(TableName=table, ConsistentRead=True)["Items"]
    return {(item.pop("pk")["S"], item.pop("sk")["S"]): item for item in found}


def test_connect_writes_the_items_of_the_contract(dynamodb: Any, table: str) -> None:
    opened(authorizer={"user": "alice"})
    times = {"expires_at": {"N": str(EXPIRES_AT)}}
    membership = {"joined_at_ms": {"N": str(REQUESTED_AT_MS)}, "user": {"S": "alice"}, **times}
    connection = {"connected_at_ms": {"N": str(CONNECTED_AT_MS)}, "user": {"S": "alice"}, **times}
    assert items(dynamodb, table) == {
        (f"connection#{CONNECTION_ID}", "connection"): connection,
        (f"connection#{CONNECTION_ID}", "room#@all"): {"shard": {"N": "0"}, **times},
        (f"connection#{CONNECTION_ID}", "room#@user/alice"): {"shard": {"N": "0"}, **times},
        ("room#@all#0", CONNECTION_ID): membership,
        ("room#@user/alice#0", CONNECTION_ID): membership,
    }


async def test_a_dialect_that_joins_name_is_that_of_live_messages_and_of_remainders(
    table: str, dynamodb_service: Any
) -> None:
    """Remainders, dead letters and what is sent again are broadcasts to `connections`."""
    stored = Table(dynamodb_service, table, wall_clock=lambda: REQUESTED_AT_MS / 1000)

    async def dialects(**target: Any) -> list[int]:
        page = await begin_page(stored, Broadcast(id="1", data="x", **target))
        return [member.frames for member in page.members]

    opened()
    invoke(handlers.join, room="plain")
    invoke(handlers.join, room="plain", frames=2)
    assert await dialects(room="plain") == await dialects(connections=(CONNECTION_ID,)) == [V1], "nothing was joined"
    invoke(handlers.join, rooms=[{"room": "plain"}, {"room": "lobby"}], frames=2)
    assert await dialects(room="lobby") == await dialects(connections=(CONNECTION_ID,)) == [V2]
    opened(connection_id="other")
    for _ in range(2):
        assert invoke(handlers.join, "other", room="news", frames=2)["type"] == "ok"
        assert await dialects(room="news") == await dialects(connections=("other",)) == [V2]
    assert await dialects(room="@all") == [V1, V1]


def test_disconnecting_leaves_nothing_however_many_rooms(dynamodb: Any, table: str) -> None:
    opened(authorizer={"user": "alice"})
    opened(connection_id="other")
    others = items(dynamodb, table).keys() - {key for key in items(dynamodb, table) if CONNECTION_ID in "".join(key)}
    for number in range(30):
        assert invoke(handlers.join, room=f"room-{number}")["type"] == "ok"
    assert handlers.disconnect(event("$disconnect"), LambdaContext())["statusCode"] == 200
    assert items(dynamodb, table).keys() == others
    assert handlers.disconnect(event("$disconnect"), LambdaContext())["statusCode"] == 200


def test_joining_without_a_connection_changes_nothing(dynamodb: Any, table: str) -> None:
    assert invoke(handlers.join, room="lobby")["code"] == "not_connected"
    assert items(dynamodb, table) == {}


def test_all_items_of_a_connection_expire_with_its_token(dynamodb: Any, table: str) -> None:
    expires_at = REQUESTED_AT_MS // 1000 + 60
    token = token_context(expires_at, join="lobby", publish="lobby")
    opened(authorizer=token)
    body = '{"room":"lobby","data":"hi"}'
    for handler in (handlers.join, handlers.publish):
        result = handler(event(body=body, authorizer=token), LambdaContext())
        assert json.loads(result["body"])["type"] == "ok"
    written = {key: item["expires_at"]["N"] for key, item in items(dynamodb, table).items() if "limit#" not in key[0]}
    assert len(written) == 7
    assert set(written.values()) == {str(expires_at)}


def test_concurrent_counting_grants_the_limit_exactly_once(dynamodb: Any, table: str) -> None:
    caller = Caller.from_event(event(authorizer=token_context()))

    def passes(limits: Limits) -> bool:
        try:
            limits.count("publish", caller)
        except RequestRejected:
            return False
        return True

    everywhere = [Limits(dynamodb, table, {"publish": 2}) for _ in range(60)]
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(passes, everywhere)) == 20
    start = REQUESTED_AT_MS // 10_000 * 10
    assert items(dynamodb, table) == {
        ("limit#user#alice", f"publish#{start}"): {"used": {"N": "20"}, "expires_at": {"N": str(start + 70)}}
    }


def test_handlers_enforce_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATECAST_JOINS_PER_SECOND", "1")
    dependencies.clear_caches()
    opened()
    codes = [invoke(handlers.join, room=f"room-{number}").get("code") for number in range(12)]
    assert codes == [None] * 10 + ["rate_limited"] * 2


def test_joining_with_an_expired_connection_changes_nothing(dynamodb: Any, table: str) -> None:
    opened()
    before = items(dynamodb, table)
    late = event(body='{"room":"lobby"}', requested_at_ms=EXPIRES_AT * 1000)
    assert json.loads(handlers.join(late, LambdaContext())["body"])["code"] == "not_connected"
    assert items(dynamodb, table) == before


def test_a_member_stays_on_its_shard_while_the_room_grows(dynamodb: Any, table: str) -> None:
    opened()
    assert invoke(handlers.join, room="lobby")["type"] == "ok"
    before = items(dynamodb, table)
    settings = {"pk": {"S": "settings#lobby"}, "sk": {"S": "room"}, "shards": {"N": "7"}, "join_shards": {"N": "7"}}
    dynamodb.put_item(TableName=table, Item=settings)
    dependencies.clear_caches()
    shard = shard_of(CONNECTION_ID, 7)
    assert shard != 0
    assert invoke(handlers.join, room="lobby")["type"] == "ok"
    after = items(dynamodb, table)
    del after["settings#lobby", "room"]
    assert after == before

    assert invoke(handlers.leave, room="lobby")["type"] == "ok"
    assert invoke(handlers.join, room="lobby")["type"] == "ok"
    assert (room_pk("lobby", shard), CONNECTION_ID) in items(dynamodb, table)
    assert invoke(handlers.leave, room="lobby")["type"] == "ok"
    assert not [key for key in items(dynamodb, table) if "lobby" in key[0] and "settings" not in key[0]]


def test_leaving_is_ok_for_non_members(dynamodb: Any, table: str) -> None:
    opened()
    before = items(dynamodb, table)
    assert invoke(handlers.leave, room="lobby") == {"type": "ok", "action": "leave", "room": "lobby"}
    assert items(dynamodb, table) == before


def test_only_members_publish(sqs: Any, queues: Queues) -> None:
    opened()
    opened(connection_id="other")
    invoke(handlers.join, room="lobby")
    assert invoke(handlers.publish, "other", room="lobby", data="hi")["code"] == "not_a_member"
    published = invoke(handlers.publish, room="lobby", data="hello", id="1", echo=False)
    assert published == {"type": "ok", "action": "publish", "room": "lobby", "id": f"{CONNECTION_ID}/1"}
    received = sqs.receive_message(
        QueueUrl=queues.url, MaxNumberOfMessages=10, WaitTimeSeconds=1, AttributeNames=["MessageGroupId"]
    )
    (message,) = received["Messages"]
    assert message["Attributes"]["MessageGroupId"] == "lobby"
    broadcast = decode(message["Body"])
    assert (broadcast.room, broadcast.data, broadcast.id) == ("lobby", "hello", f"{CONNECTION_ID}/1")
    assert broadcast.except_ == (CONNECTION_ID,)
    assert broadcast.published_at_ms == REQUESTED_AT_MS


def test_publishing_to_a_fifo_queue(sqs: Any, fifo_queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATECAST_QUEUE_URL", fifo_queues.url)
    opened()
    invoke(handlers.join, room="lobby")
    for _ in range(2):
        assert invoke(handlers.publish, room="lobby", data="hello", id="1")["type"] == "ok"
    received = sqs.receive_message(QueueUrl=fifo_queues.url, MaxNumberOfMessages=10, WaitTimeSeconds=1)
    assert len(received["Messages"]) == 1


def test_a_table_that_does_not_exist_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATECAST_TABLE", "nowhere")
    dependencies.clear_caches()
    assert invoke(handlers.join, room="lobby")["code"] == "unavailable"
    assert handlers.connect(event("$connect"), LambdaContext())["statusCode"] == 503


def test_unresponsive_service_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:9")
    dependencies.clear_caches()
    assert invoke(handlers.join, room="lobby")["code"] == "unavailable"
