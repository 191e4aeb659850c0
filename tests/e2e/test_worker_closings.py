"""The worker as a process: it closes connections whose token has expired, and announces who has departed."""

import asyncio
import json
import time
from typing import Any

from gatecast import Broadcast, Publisher
from gatecast import table as keys
from gatecast.frames import V2
from gatecast.presence import DEPARTURE_DELAY_SECONDS
from local.resources import Queues
from tests.connections_endpoint import ConnectionsEndpoint
from tests.members import connection_ids, items_left, write_members
from tests.queues import queue_depth
from tests.worker_fixtures import Launch
from tests.worker_process import eventually

FAREWELL = {"type": "closed", "code": "token_expired", "retry": True}


def set_presence(dynamodb: Any, table: str, room: str, limit: int) -> None:
    settings = {**keys.key(keys.settings_pk(room), keys.SETTINGS_SK), "presence": {"N": str(limit)}}
    dynamodb.put_item(TableName=table, Item=settings)


def presence_items(dynamodb: Any, table: str, room: str) -> list[str]:
    """The sort keys of the room's presence items."""
    found = dynamodb.query(
        TableName=table,
        ConsistentRead=True,
        KeyConditionExpression="pk = :pk",
        ExpressionAttributeValues={":pk": {"S": keys.presence_pk(room)}},
    )
    return [item["sk"]["S"] for item in found["Items"]]


async def test_connections_whose_token_has_expired_are_closed_and_removed(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    live, old, new, ended = (connection_ids(20, prefix) for prefix in "lone")
    borrowed = connection_ids(20, "b")
    write_members(dynamodb, table, "lobby", live)
    write_members(dynamodb, table, "lobby", old, expires_in_seconds=-60, tokens_expire=True)
    write_members(dynamodb, table, "lobby", new, expires_in_seconds=-60, tokens_expire=True, frames=V2)
    write_members(dynamodb, table, "lobby", ended, expires_in_seconds=-60, tokens_expire=True)
    write_members(dynamodb, table, "lobby", borrowed, expires_in_seconds=-60)
    endpoint.close_status = lambda connection_id: 410 if connection_id in ended else 204
    worker = launch()
    await worker.ready()

    Publisher(sqs, queues.url).publish(Broadcast(id="one", room="lobby", data="x"))

    await eventually(lambda: items_left(dynamodb, table, "lobby", [*old, *new, *ended]) == 0)
    assert set(endpoint.closed) == {*old, *new, *ended}
    assert set(endpoint.closed.values()) == {1}
    assert set(endpoint.delivered) == {*live, *new}
    assert {body for body in endpoint.bodies if body != "x"} == {json.dumps(FAREWELL, separators=(",", ":"))}
    assert items_left(dynamodb, table, "lobby", live) == 40
    assert items_left(dynamodb, table, "lobby", borrowed) >= 20  # the table itself may remove what has expired
    assert await worker.metric('gatecast_expired_connections_total{outcome="closed"}') == 40
    assert await worker.metric('gatecast_expired_connections_total{outcome="gone"}') == 20
    assert await worker.metric('gatecast_expired_connections_total{outcome="failed"}') == 0
    assert worker.log.read_text().count("expired_connections.closed") < 5, "one line per burst, not per connection"


async def test_while_the_endpoint_fails_expired_connections_wait(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    live, expired = connection_ids(30, "l"), connection_ids(10, "x")
    write_members(dynamodb, table, "lobby", live)
    write_members(dynamodb, table, "lobby", expired, expires_in_seconds=-60, tokens_expire=True)
    endpoint.respond = lambda _id, _nth: 503
    endpoint.reference_status = 503
    endpoint.close_status = lambda _id: 503
    worker = launch()
    await worker.ready()
    Publisher(sqs, queues.url).publish(Broadcast(id="one", room="lobby", data="x"))
    await eventually(lambda: worker.is_not_ready("503"))
    assert items_left(dynamodb, table, "lobby", live) == 60

    endpoint.respond = lambda _id, _nth: 200
    endpoint.close_status = lambda _id: 204
    await eventually(lambda: set(endpoint.delivered) == set(live), seconds=60)

    async def closed() -> bool:
        Publisher(sqs, queues.url).publish(Broadcast(id=f"at {time.time()}".replace(" ", "-"), room="lobby", data="x"))
        await asyncio.sleep(2)
        return set(endpoint.closed) == set(expired)

    while not await closed():
        assert not set(endpoint.closed) & set(live)
    await eventually(lambda: items_left(dynamodb, table, "lobby", expired) == 0)


async def test_members_of_a_room_with_presence_learn_who_has_departed(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    """The departure is published to the queue with a delay, so that a reload of a page is none."""
    observers, plain = connection_ids(3, "o"), connection_ids(2, "p")
    set_presence(dynamodb, table, "lobby", 100)
    write_members(dynamodb, table, "lobby", observers, frames=V2)
    write_members(dynamodb, table, "lobby", plain)
    gone = {"ann": connection_ids(2, "a"), "bob": connection_ids(1, "b")}
    for user, ids in gone.items():
        write_members(dynamodb, table, "lobby", ids, user=user)
    ended = {*gone["ann"], *gone["bob"]}
    endpoint.respond = lambda connection_id, _nth: 410 if connection_id in ended else 200
    worker = launch()
    await worker.ready()

    Publisher(sqs, queues.url).publish(Broadcast(id="one", room="lobby", data="x"))
    await eventually(lambda: not presence_items(dynamodb, table, "lobby"))
    write_members(dynamodb, table, "lobby", connection_ids(1, "n"), user="ann")  # she has reloaded the page

    def announced() -> list[Any]:
        frames = [json.loads(body) for body in endpoint.bodies if body.startswith("{")]
        return [frame for frame in frames if frame["type"] == "presence"]

    await eventually(lambda: bool(announced()), seconds=DEPARTURE_DELAY_SECONDS + 30)
    await eventually(lambda: queue_depth(sqs, queues.url) == 0)
    [frame] = announced()
    assert {key: value for key, value in frame.items() if key != "at_ms"} == {
        "type": "presence",
        "room": "lobby",
        "joined": [],
        "departed": ["bob"],
    }
    assert {each: endpoint.delivered[each] for each in (*observers, *plain)} == {
        **dict.fromkeys(observers, 2),
        **dict.fromkeys(plain, 1),
    }
    count = dynamodb.get_item(TableName=table, Key=keys.key(keys.count_pk("lobby"), "0"))["Item"]
    assert count["members"]["N"] in ("6", "8"), "after or before the gone ones were removed"


async def test_on_a_fifo_queue_a_departure_is_announced_at_once(
    sqs: Any, dynamodb: Any, table: str, fifo_queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    set_presence(dynamodb, table, "lobby", 100)
    write_members(dynamodb, table, "lobby", connection_ids(1, "o"), frames=V2)
    write_members(dynamodb, table, "lobby", connection_ids(1, "a"), user="ann")
    ended = set(connection_ids(1, "a"))
    endpoint.respond = lambda connection_id, _nth: 410 if connection_id in ended else 200
    worker = launch(GATECAST_QUEUE_URL=fifo_queues.url, GATECAST_DEAD_LETTER_QUEUE_URL=fifo_queues.dead_letter_url)
    await worker.ready()

    Publisher(sqs, fifo_queues.url).publish(Broadcast(id="one", room="lobby", data="x"))

    await eventually(lambda: any('"departed":["ann"]' in body for body in endpoint.bodies))
    assert not presence_items(dynamodb, table, "lobby")
