"""A connection joins a limited number of rooms, whatever the order, the races and the repetitions."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from local.resources import Queues
from routes import dependencies, handlers
from routes.environment import OPEN_ACCESS
from tests.routes_events import CONNECTED_AT_MS, CONNECTION_ID, LambdaContext, event

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]


@pytest.fixture(autouse=True)
def deployed(monkeypatch: pytest.MonkeyPatch, table: str, queues: Queues) -> Iterator[None]:
    variables = {
        "GATECAST_TABLE": table,
        "GATECAST_QUEUE_URL": queues.url,
        "GATECAST_AUTHORIZER": OPEN_ACCESS,
        "GATECAST_JOINS_PER_SECOND": "0",
        "GATECAST_ROOMS_PER_CONNECTION": "3",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    dependencies.clear_caches()
    yield
    dependencies.clear_caches()


def call(handler: Handler, room: str) -> str:
    result = handler(event(body=json.dumps({"action": handler.__name__, "room": room})), LambdaContext())
    message: dict[str, Any] = json.loads(result["body"])
    return str(message.get("code", "ok"))


def connect() -> None:
    assert handlers.connect(event("$connect", authorizer={"user": "alice"}), LambdaContext())["statusCode"] == 200


def joined(dynamodb: Any, table: str) -> set[str]:
    found = dynamodb.scan(TableName=table, ConsistentRead=True)["Items"]
    return {item["sk"]["S"].removeprefix("room#") for item in found if item["sk"]["S"].startswith("room#")}


def counted(dynamodb: Any, table: str) -> int:
    key = {"pk": {"S": f"connection#{CONNECTION_ID}"}, "sk": {"S": "connection"}}
    item = dynamodb.get_item(TableName=table, Key=key, ConsistentRead=True)["Item"]
    return int(item.get("rooms", {"N": "0"})["N"])


def test_rooms_of_the_system_do_not_count_and_leaving_makes_room(dynamodb: Any, table: str) -> None:
    connect()
    assert [call(handlers.join, room) for room in ("a", "b", "c", "d")] == ["ok", "ok", "ok", "too_many_rooms"]
    assert call(handlers.join, "a") == "ok", "joining again changes nothing"
    assert call(handlers.leave, "b") == "ok"
    assert call(handlers.leave, "b") == "ok", "leaving again changes nothing"
    assert counted(dynamodb, table) == 2
    assert [call(handlers.join, room) for room in ("d", "e")] == ["ok", "too_many_rooms"]
    assert joined(dynamodb, table) == {"@all", "@user/alice", "a", "c", "d"}


def test_parallel_joins_and_leaves_keep_the_count(dynamodb: Any, table: str) -> None:
    connect()
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda number: call(handlers.join, f"r{number % 8}"), range(16)))
        assert set(codes) <= {"ok", "too_many_rooms", "unavailable"}
        rooms = joined(dynamodb, table) - {"@all", "@user/alice"}
        assert len(rooms) <= 3
        assert counted(dynamodb, table) == len(rooms)
        leaving = [room for room in rooms for _ in range(3)]
        list(pool.map(lambda room: call(handlers.leave, room), leaving))
    left = joined(dynamodb, table) - {"@all", "@user/alice"}
    assert counted(dynamodb, table) == len(left)


def test_a_connection_that_is_gone_stays_gone(dynamodb: Any, table: str) -> None:
    connect()
    assert call(handlers.join, "a") == "ok"
    key = {"pk": {"S": f"connection#{CONNECTION_ID}"}, "sk": {"S": "connection"}}
    dynamodb.delete_item(TableName=table, Key=key)
    assert call(handlers.leave, "a") == "ok", "its membership is removed without its counter"
    assert call(handlers.join, "b") == "not_connected"
    assert "Item" not in dynamodb.get_item(TableName=table, Key=key, ConsistentRead=True)
    assert joined(dynamodb, table) == {"@all", "@user/alice"}


def test_rooms_that_a_program_joined_do_not_raise_the_limit(dynamodb: Any, table: str) -> None:
    """A program of the operator writes memberships, but counts nothing."""
    connect()
    expires_at = {"N": str(CONNECTED_AT_MS // 1000 + 7_200)}
    for room in ("x", "y"):
        for pk, sk in ((f"room#{room}#0", CONNECTION_ID), (f"connection#{CONNECTION_ID}", f"room#{room}")):
            item = {"pk": {"S": pk}, "sk": {"S": sk}, "shard": {"N": "0"}, "expires_at": expires_at}
            dynamodb.put_item(TableName=table, Item=item)
        assert call(handlers.leave, room) == "ok"
    assert joined(dynamodb, table) == {"@all", "@user/alice"}
    assert [call(handlers.join, room) for room in ("a", "b", "c", "d")] == ["ok", "ok", "ok", "too_many_rooms"]


def test_no_limit_by_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATECAST_ROOMS_PER_CONNECTION", "0")
    dependencies.clear_caches()
    connect()
    assert {call(handlers.join, f"r{number}") for number in range(5)} == {"ok"}
