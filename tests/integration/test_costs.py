"""What requests and messages cost at the table and the queue, counted, and compared with the table in docs/deploy.md.

Real handlers and a real worker run against ministack through a proxy that computes each call's units by DynamoDB's
rules: a write unit per KB, two in a transaction; a read unit per 4 KB, half of one without consistency. All items here
are smaller. Not counted are the reads of settings, which stay in memory for 30 s, and a worker's writes of how many
members a room has (one unit per shard at most every 10 s) and of checkpoints (after a second).
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from aiohttp import web

from gatecast import Broadcast, Publisher
from gatecast.presence import departed_broadcast, joined_broadcast
from gatecast.table import key, progress_pk, progress_sk
from local.ministack import Ministack
from local.resources import Queues, write_room_settings
from routes import dependencies, handlers
from routes.environment import OPEN_ACCESS
from tests.chaos.service_proxy import ServiceProxy
from tests.members import connection_ids, write_members
from tests.routes_events import LambdaContext, event, token_context
from tests.worker_fixtures import Launch
from tests.worker_process import eventually

DOCUMENT = Path(__file__).parents[2] / "docs" / "deploy.md"
NOW_MS: Final = int(time.time() * 1000)
ROOMS: Final = [f"room/{number}" for number in range(10)]


class Units(NamedTuple):
    """Write units, read units, and messages put on the queue."""

    writes: float = 0
    reads: float = 0
    messages: int = 0

    def plus(self, other: "Units") -> "Units":
        return Units(self.writes + other.writes, self.reads + other.reads, self.messages + other.messages)


def units_of(operation: str, body: Mapping[str, Any]) -> Units:
    """The units of one call, if each item is small."""
    tables: Mapping[str, Any] = body.get("RequestItems", {})
    match operation:
        case "PutItem" | "UpdateItem" | "DeleteItem":
            found = Units(writes=int(not (body.get("Key") or body["Item"])["pk"]["S"].startswith("broadcast#")))
        case "TransactWriteItems":
            found = Units(writes=2 * len(body["TransactItems"]))
        case "BatchWriteItem":
            found = Units(writes=sum(len(_counted(map(_key, each))) for each in tables.values()))
        case "BatchExecuteStatement":
            found = Units(writes=len(body["Statements"]))
        case "GetItem" | "Query":
            found = Units(reads=_reads(body))
        case "BatchGetItem":
            found = Units(reads=sum(_reads(each) * len(_counted(each["Keys"])) for each in tables.values()))
        case _:
            found = Units(messages=int(operation == "SendMessage"))
    return found


def _reads(body: Mapping[str, Any]) -> float:
    return 1 if body.get("ConsistentRead") else 0.5


def _key(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The key of a request of BatchWriteItem, or the item, which contains it."""
    (kind,) = request.values()
    found: Mapping[str, Any] = kind.get("Key") or kind["Item"]
    return found


def _counted(keys: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [key for key in keys if not key["pk"]["S"].startswith(("settings#", "count#"))]


class Meter(ServiceProxy):
    """A proxy to ministack that adds up the units of the calls through it."""

    total: Units

    @classmethod
    @asynccontextmanager
    async def metering(cls, target: str) -> AsyncIterator["Meter"]:
        async with cls.serving(target) as meter:
            meter.total = Units()
            yield meter

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        # before it takes effect: a test waits for an effect, and then reads the sum
        self.total = self.total.plus(units_of(request.headers["X-Amz-Target"].rpartition(".")[2], json.loads(body)))
        response = await super()._forward(request, body)
        assert isinstance(response.body, bytes)
        assert len(response.body) < 4_096, "more than one read unit"
        return response

    def read(self) -> Units:
        """The units since the last call of this."""
        found, self.total = self.total, Units()
        return found


def documented() -> dict[str, Units]:
    """The rows of the table, by their first column."""
    table = DOCUMENT.read_text().split("| request or event | write units | read units | queue messages |")[1]
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \| (\d+) \|$", table.split("\n\n")[0], re.MULTILINE)
    return {name: Units(float(writes), float(reads), int(messages)) for name, writes, reads, messages in rows}


@pytest.fixture
async def meter(ministack: Ministack) -> AsyncIterator[Meter]:
    async with Meter.metering(ministack.url) as metering:
        yield metering


def call(route: str, **fields: Any) -> None:
    """Call a route as Lambda does, in the same process as the last time."""
    handler: Callable[..., dict[str, Any]] = getattr(handlers, route.removeprefix("$"))
    access = token_context(NOW_MS // 1000 + 3_600, join="room/*", publish="room/*")
    text = json.dumps({"action": route, **fields}) if fields else None
    request = event(route, text, authorizer=access, requested_at_ms=NOW_MS + 1)
    request["requestContext"]["connectedAt"] = NOW_MS
    response = handler(request, LambdaContext())
    assert response["statusCode"] == 200, response
    assert '"error"' not in response.get("body", ""), response


REQUESTS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "`$connect` of a user": ("$connect", {}),
    "`join`": ("join", {"room": "room/plain"}),
    "`publish`": ("publish", {"room": "room/plain", "data": "x"}),
    "`count` that counts one shard": ("count", {"room": "room/plain"}),
    "`count` where that has been done": ("count", {"room": "room/plain"}),
    "`leave`": ("leave", {"room": "room/plain"}),
    "`join` of ten rooms": ("join", {"rooms": [{"room": room} for room in ROOMS]}),
    "`join` in a room with history": ("join", {"room": "room/h"}),
    "`join` with `since`, three messages missed": ("join", {"room": "room/h", "since": NOW_MS}),
    "`history`, the same three messages": ("history", {"room": "room/h", "since": NOW_MS}),
    "`join` in a room with presence": ("join", {"room": "room/p"}),
    "`members`": ("members", {"room": "room/p"}),
    "`leave` in a room with presence": ("leave", {"room": "room/p"}),
}


def write_history(dynamodb: Any, table: str) -> None:
    """Three messages after NOW_MS, as a worker writes them."""
    pk, expires_at = {"S": "stream#room/h"}, {"N": str(NOW_MS // 1000 + 3_600)}
    dynamodb.put_item(TableName=table, Item={"pk": pk, "sk": {"S": "head"}, "offset": {"N": str(NOW_MS + 3)}})
    for offset in range(NOW_MS + 1, NOW_MS + 4):
        entry = {"id": {"S": str(offset)}, "data": {"S": "x"}, "published_at_ms": {"N": str(NOW_MS)}}
        item = {"pk": pk, "sk": {"S": f"m#{offset:016d}"}, "expires_at": expires_at, **entry}
        dynamodb.put_item(TableName=table, Item=item)


async def test_requests_cost_what_the_document_says(
    meter: Meter, dynamodb: Any, table: str, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_room_settings(dynamodb, table, {"history_seconds": 3_600}, name="room/h")
    write_room_settings(dynamodb, table, {"presence": 100}, name="room/p")
    write_history(dynamodb, table)
    variables = {"GATECAST_TABLE": table, "GATECAST_QUEUE_URL": queues.url, "GATECAST_AUTHORIZER": OPEN_ACCESS}
    for name, value in {**variables, **meter.environment()}.items():
        monkeypatch.setenv(name, value)
    dependencies.clear_caches()
    found: dict[str, Units] = {}
    for name, (route, fields) in REQUESTS.items():
        if route == "count":
            dependencies.clear_caches()  # it was done in another process
        await asyncio.to_thread(call, route, **fields)
        found[name] = meter.read()
    dependencies.clear_caches()
    expected = documented()
    assert found == {name: expected.get(name) for name in found}


def events() -> Iterator[tuple[str, Broadcast]]:
    yield "a message to a room", Broadcast(id="plain", room="plain", data="x")
    yield "a message to a room with history", Broadcast(id="h", room="h", data="x")
    yield (
        "the announcement of a join",
        joined_broadcast("p", "ann", unique="1", published_at_ms=int(time.time() * 1000)),
    )
    yield "the announcement of a departure", departed_broadcast("p", "ann", unique="2", published_at_ms=NOW_MS)


async def test_messages_cost_what_the_document_says(
    meter: Meter, sqs: Any, dynamodb: Any, table: str, queues: Queues, launch: Launch
) -> None:
    write_room_settings(dynamodb, table, {"history_seconds": 3_600}, name="h")
    write_room_settings(dynamodb, table, {"presence": 100}, name="p")
    for room in ("plain", "h", "p"):
        write_members(dynamodb, table, room, connection_ids(10, room))
    worker = launch(**meter.environment())
    await worker.ready()
    publisher = Publisher(sqs, queues.url)
    found: dict[str, Units] = {}
    for name, broadcast in events():
        # after another one to the same room, so that what is read once is in memory
        for each in (Broadcast(id=f"before-{broadcast.id}", room=broadcast.room, data="x"), broadcast):
            meter.read()
            publisher.publish(each)
            pk = progress_pk(str(each.room), each.id)
            await eventually(partial(is_completed, dynamodb, table, pk))
        found[name] = meter.read()
    expected = documented()
    assert found == {name: expected.get(name) for name in found}


def is_completed(dynamodb: Any, table: str, pk: str) -> bool:
    item = dynamodb.get_item(TableName=table, Key=key(pk, progress_sk("")))
    return "completed_at" in item.get("Item", {})
