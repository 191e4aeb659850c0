"""`Rooms` on a real table: beside the shipped routes, in races, and in the handlers that docs/migrating.md shows."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import websockets

from gatecast import Publisher, Rooms, decode
from gatecast import table as keys
from gatecast.emulator.authorizer import Authorizer
from gatecast.emulator.integration import Route
from gatecast.emulator.server import Gateway
from gatecast.rooms import Code, RequestRejected
from local.resources import Queues
from routes import dependencies, handlers
from routes.environment import OPEN_ACCESS
from tests.routes_events import LambdaContext, event
from tests.worker_fixtures import Launch
from tests.worker_process import eventually

DOCUMENT = Path(__file__).parents[2] / "docs" / "migrating.md"
ID = "L0SM9cOFvHcCIhw="
Handler = Callable[[dict[str, Any], Any], dict[str, Any]]
Items = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(autouse=True)
def shipped(monkeypatch: pytest.MonkeyPatch, table: str, queues: Queues) -> Iterator[None]:
    """The shipped routes, on the same table."""
    variables = {
        "GATECAST_TABLE": table,
        "GATECAST_QUEUE_URL": queues.url,
        "GATECAST_AUTHORIZER": OPEN_ACCESS,
        "GATECAST_JOINS_PER_SECOND": "0",
        "GATECAST_ROOMS_PER_CONNECTION": "5",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    dependencies.clear_caches()
    yield
    dependencies.clear_caches()


@pytest.fixture
def rooms(dynamodb: Any, sqs: Any, table: str, queues: Queues) -> Rooms:
    return Rooms(dynamodb, table, publisher=Publisher(sqs, queues.url), max_rooms=5)


def route(handler: Handler, room: str = "", connection_id: str = ID) -> dict[str, Any]:
    """The response of a shipped route to a message from alice."""
    name = {"connect": "$connect", "disconnect": "$disconnect"}.get(handler.__name__, "$default")
    body = json.dumps({"action": handler.__name__, "room": room})
    request = event(
        name,
        body,
        connection_id=connection_id,
        authorizer={"user": "alice", "frames": "2"},
        headers={"Sec-WebSocket-Protocol": "gatecast.v2"},
        requested_at_ms=(now_ms := int(time.time() * 1000)),
    )
    request["requestContext"]["connectedAt"] = now_ms
    response = handler(request, LambdaContext())
    assert response["statusCode"] == 200
    found: dict[str, Any] = json.loads(response.get("body", "{}"))
    return found


def items(dynamodb: Any, table: str) -> Items:
    """All items other than settings and limits, without their times."""
    found = dynamodb.scan(TableName=table, ConsistentRead=True)["Items"]
    by_key = {(item["pk"]["S"], item["sk"]["S"]): item for item in found}
    return {
        key: {name: value for name, value in item.items() if not name.endswith(("_ms", "_at"))}
        for key, item in by_key.items()
        if not key[0].startswith(("settings#", "count#", "limit#"))
    }


def setting(dynamodb: Any, table: str, room: str, **attributes: Any) -> None:
    dynamodb.put_item(TableName=table, Item={**keys.key(keys.settings_pk(room), keys.SETTINGS_SK), **attributes})


def counted(dynamodb: Any, table: str) -> int:
    key = keys.key(keys.connection_pk(ID), keys.CONNECTION_SK)
    item = dynamodb.get_item(TableName=table, Key=key, ConsistentRead=True)["Item"]
    return int(item.get("rooms", {"N": "0"})["N"])


def joined(dynamodb: Any, table: str) -> set[str]:
    found = {sk.removeprefix("room#") for pk, sk in items(dynamodb, table) if pk == keys.connection_pk(ID)}
    return found - {"connection", "@all", "@user/alice"}


# Beside the shipped routes


def test_it_writes_what_the_shipped_routes_write(dynamodb: Any, table: str, rooms: Rooms) -> None:
    setting(dynamodb, table, "p/*", presence={"N": "100"}, shards={"N": "7"}, join_shards={"N": "7"})
    route(handlers.connect)
    for room in ("lobby", "p/1"):
        assert route(handlers.join, room)["type"] == "ok"
    by_routes = items(dynamodb, table)
    route(handlers.disconnect)
    assert items(dynamodb, table) == {}

    rooms.connect(ID, user="alice", frames=2)
    for room in ("lobby", "p/1"):
        rooms.join(ID, room)
    assert items(dynamodb, table) == by_routes
    assert len(by_routes) == 1 + 2 * 3 + 3

    assert rooms.members("p/1").users == [("alice", 1)]
    assert [(each.connection_id, each.user) for each in rooms.connections("p/1")] == [(ID, "alice")]
    rooms.disconnect(ID)
    assert items(dynamodb, table) == {}


def test_each_continues_what_the_other_has_begun(dynamodb: Any, table: str, rooms: Rooms) -> None:
    route(handlers.connect)
    rooms.join(ID, "a")
    assert rooms.is_member(ID, "a")
    assert route(handlers.join, "b")["type"] == "ok"
    assert route(handlers.count, "a")["members"] == 1, "a route's check of the membership"
    rooms.leave(ID, "b")
    assert route(handlers.leave, "a")["type"] == "ok"
    assert (joined(dynamodb, table), counted(dynamodb, table)) == (set(), 0)
    rooms.join(ID, "a")
    rooms.disconnect(ID)
    assert route(handlers.join, "a")["code"] == "not_connected"
    with pytest.raises(RequestRejected) as rejection:
        rooms.join(ID, "a")
    assert rejection.value.code is Code.NOT_CONNECTED
    assert items(dynamodb, table) == {}


def test_both_keep_one_count_of_the_rooms_whatever_the_races(dynamodb: Any, table: str, rooms: Rooms) -> None:
    rooms.connect(ID, user="alice")

    def join(number: int) -> str:
        room = f"r{number % 8}"
        return retried(partial(rooms.join, ID, room) if number % 2 else partial(by_route, handlers.join, room))

    with ThreadPoolExecutor(8) as threads:
        codes = set(threads.map(join, range(24)))
        assert codes == {"ok", "too_many_rooms"}
        found = joined(dynamodb, table)
        assert len(found) == counted(dynamodb, table) == 5
        leaves = [partial(call, room) for room in found for call in (partial(rooms.leave, ID), leave_by_route)]
        assert set(threads.map(retried, leaves)) == {"ok"}
    assert (joined(dynamodb, table), counted(dynamodb, table)) == (set(), 0)


def by_route(handler: Handler, room: str) -> None:
    """Raises RequestRejected if the route rejects it."""
    response = route(handler, room)
    if response["type"] != "ok":
        raise RequestRejected(Code(response["code"]), response["message"])


leave_by_route = partial(by_route, handlers.leave)


def retried(call: Callable[[], object]) -> str:
    """The call's code, or ok. Retries it while the table is contended, as clients do."""
    while True:
        try:
            call()
        except RequestRejected as rejection:
            if rejection.code is not Code.UNAVAILABLE:
                return rejection.code
        else:
            return "ok"


def test_after_a_disconnect_nothing_remains_whatever_the_races(dynamodb: Any, table: str, rooms: Rooms) -> None:
    setting(dynamodb, table, "p/*", presence={"N": "100"})
    errors: list[Exception] = []

    def run(step: Callable[[], object], start: threading.Barrier) -> None:
        start.wait()
        try:
            step()
        except Exception as error:  # noqa: BLE001 - reported by the main thread
            if not isinstance(error, RequestRejected) or error.code is not Code.NOT_CONNECTED:
                errors.append(error)

    for number in range(6):
        rooms.connect(ID, user="alice")
        steps: list[Callable[[], object]] = [
            partial(rooms.disconnect, ID) if number % 2 else partial(route, handlers.disconnect),
            partial(rooms.join_many, ID, ["p/1", "p/2", "lobby"]),
            partial(rooms.leave, ID, "p/1"),
            partial(route, handlers.join, "p/2"),
            partial(route, handlers.leave, "lobby"),
        ]
        start = threading.Barrier(len(steps))
        threads = [threading.Thread(target=run, args=(step, start)) for step in steps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert items(dynamodb, table) == {}


def test_connections_of_a_large_room_are_read_page_by_page(dynamodb: Any, table: str, rooms: Rooms) -> None:
    setting(dynamodb, table, "large", shards={"N": "2"})
    later, padding = int(time.time()) + 600, "u" * 1_000
    expected = {f"c{number:04}=" for number in range(1_500)}
    requests = [
        {"PutRequest": {"Item": {**item, "padding": {"S": padding}}}}
        for number, each in enumerate(sorted(expected))
        for item in [keys.membership_item("large", number // 1_400, each, joined_at_ms=2 * 10**12, expires_at=later)]
    ]
    for start in range(0, len(requests), keys.MAX_BATCH_WRITE):
        dynamodb.batch_write_item(RequestItems={table: requests[start : start + keys.MAX_BATCH_WRITE]})
    found = [each.connection_id for each in rooms.connections("large")]
    assert len(found) == len(expected)
    assert set(found) == expected


# Kicks


def test_a_kicked_user_cannot_connect_until_the_end(
    dynamodb: Any, table: str, rooms: Rooms, sqs: Any, queues: Queues
) -> None:
    kicked = rooms.kick(user="alice", code="banned", for_seconds=3_600)
    (message,) = sqs.receive_message(QueueUrl=queues.url, MaxNumberOfMessages=10, WaitTimeSeconds=1)["Messages"]
    assert decode(message["Body"]).id == kicked.id
    with pytest.raises(RequestRejected) as rejection:
        rooms.connect(ID, user="alice")
    assert rejection.value.code is Code.TOKEN_EXPIRED
    rooms.connect("another=", user="bob")
    rooms.kick(user="alice", code="banned", for_seconds=60)
    item = dynamodb.get_item(TableName=table, Key=keys.key("user#alice", "not_before"))["Item"]
    assert int(item["not_before"]["N"]) > time.time() + 3_000, "the later end remains"
    dynamodb.delete_item(TableName=table, Key=keys.key("user#alice", "not_before"))
    rooms.connect(ID, user="alice")


# The documented handlers


def authorize(event: dict[str, Any], _context: Any) -> dict[str, Any]:
    """An authorizer of a program's own: the user is in the query."""
    allowed = {"Action": "execute-api:Invoke", "Effect": "Allow", "Resource": event["methodArn"]}
    return {
        "principalId": event["queryStringParameters"]["user"],
        "policyDocument": {"Version": "2012-10-17", "Statement": [allowed]},
        "context": {},
    }


def documented() -> dict[str, Any]:
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    [text] = [block for block in blocks if "rooms.connect(" in block]
    names: dict[str, Any] = {}
    exec(compile(text, str(DOCUMENT), "exec"), names)  # noqa: S102
    return names


async def test_the_documented_handlers_serve_clients_whom_a_worker_reaches(
    dynamodb: Any, sqs: Any, table: str, queues: Queues, launch: Launch
) -> None:
    names = documented()
    routes = {
        "$connect": Route(names["connect"]),
        "$disconnect": Route(names["disconnect"]),
        "join": Route(names["join"], response=True),
    }
    async with Gateway(routes, authorizer=Authorizer(authorize)) as gateway:
        worker = launch(GATECAST_CONNECTIONS_ENDPOINT=gateway.endpoint)
        await worker.ready()
        async with (
            websockets.connect(f"{gateway.url}?user=ann") as ann,
            websockets.connect(f"{gateway.url}?user=bob") as bob,
        ):
            for room, expected in [
                ("lobby", {"type": "ok", "room": "lobby"}),
                ("@user/bob", {"type": "error", "code": "forbidden_room"}),
                (7, {"type": "error", "code": "bad_request"}),
            ]:
                await ann.send(json.dumps({"action": "join", "room": room}))
                response = json.loads(await asyncio.wait_for(ann.recv(), 30))
                assert {name: response[name] for name in expected} == expected
            publisher = Publisher(sqs, queues.url)
            await asyncio.to_thread(publisher.publish, room="lobby", data="to the lobby")
            assert await asyncio.wait_for(ann.recv(), 30) == "to the lobby"
            await asyncio.to_thread(publisher.publish, user="bob", data="to bob")
            assert await asyncio.wait_for(bob.recv(), 30) == "to bob"
            await asyncio.to_thread(names["rooms"].kick, user="bob", code="banned", for_seconds=600)
            await asyncio.wait_for(bob.wait_closed(), 30)
            with pytest.raises(websockets.InvalidStatus) as rejected:
                await websockets.connect(f"{gateway.url}?user=bob")
            assert rejected.value.response.status_code == 403
        await eventually(
            lambda: not {pk for pk, _ in items(dynamodb, table) if pk.startswith(("room#", "connection#"))}
        )
