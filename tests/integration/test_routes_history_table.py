"""Joining and reading rooms with history against DynamoDB: the results, and the calls that they cost."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from gatecast import table as keys
from gatecast.entries import entry_item
from gatecast.frames import Message
from local.resources import Queues
from routes import dependencies, handlers
from routes.environment import OPEN_ACCESS
from tests.routes_events import CONNECTION_ID, LambdaContext, event

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]
FIRST = 1_700_000_000_000


@pytest.fixture(autouse=True)
def deployed(monkeypatch: pytest.MonkeyPatch, dynamodb: Any, table: str, queues: Queues) -> Iterator[None]:
    monkeypatch.setenv("GATECAST_TABLE", table)
    monkeypatch.setenv("GATECAST_QUEUE_URL", queues.url)
    monkeypatch.setenv("GATECAST_AUTHORIZER", OPEN_ACCESS)
    monkeypatch.setenv("GATECAST_JOINS_PER_SECOND", "0")
    settings = keys.key(keys.settings_pk("h/*"), keys.SETTINGS_SK)
    dynamodb.put_item(TableName=table, Item={**settings, "history_seconds": {"N": "3600"}})
    dependencies.clear_caches()
    assert handlers.connect(event("$connect"), LambdaContext())["statusCode"] == 200
    yield
    dependencies.clear_caches()


@pytest.fixture
def calls() -> list[str]:
    """The operations of DynamoDB that the routes' client begins from now on."""
    found: list[str] = []
    dependencies._dynamodb().meta.events.register(
        "before-call.dynamodb", lambda model, **_: found.append(model.name), unique_id="calls"
    )
    return found


def cost(calls: list[str]) -> list[str]:
    found = list(calls)
    calls.clear()
    return found


def invoke(handler: Handler, **body: Any) -> dict[str, Any]:
    result = handler(event(body=json.dumps(body)), LambdaContext())
    message: dict[str, Any] = json.loads(result["body"])
    return message


def append(dynamodb: Any, table: str, room: str, first: int, count: int, **fields: Any) -> list[int]:
    """As a worker does: entries, and the head with the last one's offset."""
    offsets = list(range(first, first + count))
    payload = {"data": "hello", **fields}
    for offset in offsets:
        message = Message(id=f"id-{offset}", offset=offset, published_at_ms=FIRST, from_="alice", **payload)
        item = entry_item(room, message, expires_at=4_000_000_000)
        dynamodb.put_item(TableName=table, Item=item)
    head = keys.key(keys.stream_pk(room), keys.HEAD_SK)
    dynamodb.put_item(TableName=table, Item={**head, "offset": {"N": str(offsets[-1])}})
    return offsets


def offsets(response: dict[str, Any]) -> list[int]:
    return [message["offset"] for message in response["messages"]]


def test_a_room_s_first_join_writes_its_head_once(dynamodb: Any, table: str) -> None:
    first = invoke(handlers.join, room="h/a")
    assert (first["recovered"], first["messages"], first["more"]) == (True, [], False)
    head = dynamodb.get_item(TableName=table, Key=keys.key(keys.stream_pk("h/a"), keys.HEAD_SK))["Item"]
    assert head == {**keys.key(keys.stream_pk("h/a"), keys.HEAD_SK), "offset": {"N": str(first["offset"])}}
    assert invoke(handlers.join, room="h/a")["offset"] == first["offset"]
    several = invoke(handlers.join, rooms=[{"room": "h/a"}, {"room": "h/b"}, {"room": "plain"}])["rooms"]
    assert several[0]["offset"] == first["offset"]
    assert several[1]["offset"] > first["offset"]
    assert several[2] == {"room": "plain"}


def test_a_damaged_head_is_replaced(dynamodb: Any, table: str) -> None:
    head = keys.key(keys.stream_pk("h/a"), keys.HEAD_SK)
    for damaged in ({"offset": {"S": "seven"}}, {}):
        dynamodb.put_item(TableName=table, Item={**head, **damaged})
        assert invoke(handlers.join, room="h/a")["offset"] > FIRST


def test_a_client_resumes_and_reads_pages(dynamodb: Any, table: str) -> None:
    raw = msgspec.Raw(b'{"b": 1e400,"a":9007199254740993, "a":[ ]}')
    sent = append(dynamodb, table, "h/a", FIRST, 5)
    sent += append(dynamodb, table, "h/a", FIRST + 5, 1, data=UNSET, json=raw)
    response = invoke(handlers.join, room="h/a", since=FIRST)
    assert (offsets(response), response["offset"], response["recovered"]) == (sent[1:], sent[-1], True)
    assert offsets(invoke(handlers.join, room="h/a", last=2)) == sent[-2:]
    page = invoke(handlers.history, room="h/a", since=FIRST, limit=3)
    assert (offsets(page), page["more"]) == (sent[1:4], True)
    body = handlers.history(event(body=json.dumps({"room": "h/a", "since": sent[-2]})), LambdaContext())["body"]
    assert f'"json":{bytes(raw).decode()}' in body


def test_a_gap_is_found_with_and_without_memory(dynamodb: Any, table: str) -> None:
    sent = append(dynamodb, table, "h/a", FIRST, 6)
    dynamodb.delete_item(TableName=table, Key=keys.key(keys.stream_pk("h/a"), keys.entry_sk(sent[3])))
    for _ in range(2):
        response = invoke(handlers.join, room="h/a", since=FIRST)
        assert (response["recovered"], offsets(response)) == (False, sent[4:])
        assert invoke(handlers.join, room="h/a", since=sent[3])["recovered"] is True


def test_a_position_beyond_the_head_joins_nothing(dynamodb: Any, table: str) -> None:
    append(dynamodb, table, "h/a", FIRST, 1)
    rooms = [{"room": "h/a", "since": FIRST + 1}, {"room": "plain"}]
    found = invoke(handlers.join, rooms=rooms)["rooms"]
    assert [each.get("error", {}).get("code") for each in found] == ["bad_request", None]
    assert invoke(handlers.join, room="h/a", since=FIRST + 1)["code"] == "bad_request"
    joined = dynamodb.query(
        TableName=table,
        KeyConditionExpression="pk = :pk AND begins_with(sk, :room)",
        ExpressionAttributeValues={":pk": {"S": keys.connection_pk(CONNECTION_ID)}, ":room": {"S": "room#"}},
    )["Items"]
    assert [item["sk"]["S"] for item in joined] == ["room#@all", "room#plain"]


def test_what_requests_cost(dynamodb: Any, table: str, calls: list[str]) -> None:
    """Joins, leaves and reads cost one more call, the counter of the limit, which is another client's."""
    invoke(handlers.join, room="plain")
    assert cost(calls) == ["BatchGetItem", "TransactWriteItems"]
    invoke(handlers.join, room="plain")
    assert cost(calls) == ["TransactWriteItems"], "a room without history pays nothing for it"
    since, *missed = append(dynamodb, table, "h/a", FIRST, 50)
    assert invoke(handlers.join, room="h/a")["offset"] == missed[-1]
    assert cost(calls) == ["BatchGetItem", "TransactWriteItems", "GetItem"]
    assert offsets(invoke(handlers.join, room="h/a", since=since)) == missed
    assert cost(calls) == ["TransactWriteItems", "GetItem", "Query"], "the head was remembered"
    assert offsets(invoke(handlers.join, room="h/a", since=since)) == missed
    assert cost(calls) == ["TransactWriteItems", "GetItem"], "the entries were remembered"
    assert offsets(invoke(handlers.history, room="h/a", since=since)) == missed
    assert cost(calls) == ["GetItem", "GetItem"], "the membership and the head"
    dependencies.clear_caches()


def test_what_a_join_of_25_rooms_costs(dynamodb: Any, table: str, calls: list[str]) -> None:
    rooms = [f"h/{number}" for number in range(25)]
    for room in rooms:
        append(dynamodb, table, room, FIRST, 3)
    request = [{"room": room, "since": FIRST} for room in rooms]
    found = invoke(handlers.join, rooms=request)["rooms"]
    assert all(len(each["messages"]) == 2 for each in found)
    first = cost(calls)
    assert sorted(set(first)) == ["BatchGetItem", "Query", "TransactWriteItems"]
    assert first.count("Query") == 25
    assert first.count("BatchGetItem") == 3, "settings, and heads before and after the memberships"
    assert all(len(each["messages"]) == 2 for each in invoke(handlers.join, rooms=request)["rooms"])
    again = cost(calls)
    assert again.count("BatchGetItem") == 1
    assert "Query" not in again
