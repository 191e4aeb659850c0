"""Worker processes that append to one room's history and are killed meanwhile, with SQS and DynamoDB from ministack."""

from typing import Any

import pytest

from gatecast import Broadcast, Publisher
from gatecast import table as keys
from gatecast.frames import V2
from local.resources import Queues, write_room_settings
from tests.connections_endpoint import ConnectionsEndpoint
from tests.members import connection_ids, write_members
from tests.queues import dead_letters, queue_depth
from tests.worker_fixtures import Launch
from tests.worker_process import eventually


def history(dynamodb: Any, table: str, room: str) -> dict[int, str]:
    """The ids of the room's messages by offset, read consistently."""
    pages = dynamodb.get_paginator("query").paginate(
        TableName=table,
        KeyConditionExpression="pk = :pk AND begins_with(sk, :prefix)",
        ExpressionAttributeValues={":pk": {"S": keys.stream_pk(room)}, ":prefix": {"S": keys.ENTRY_PREFIX}},
        ConsistentRead=True,
    )
    items = [item for page in pages for item in page["Items"]]
    return {int(item["sk"]["S"].removeprefix(keys.ENTRY_PREFIX)): item["id"]["S"] for item in items}


def offsets_are_dense(found: dict[int, str]) -> bool:
    return sorted(found) == list(range(min(found), min(found) + len(found)))


@pytest.mark.parametrize("shards", [1, 3])
async def test_through_kills_every_message_has_one_offset_and_none_is_left_out(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch, shards: int
) -> None:
    members = connection_ids(10)
    write_members(dynamodb, table, "lobby", members, shards=shards, frames=V2)
    write_room_settings(dynamodb, table, {"history_seconds": 3600}, name="lobby")
    names = [f"b{number:03}" for number in range(150)]
    workers = [launch() for _ in range(3)]
    for worker in workers:
        await worker.ready()
    publisher = Publisher(sqs, queues.url)
    for number, name in enumerate(names):
        publisher.publish(Broadcast(id=name, room="lobby", data=name))
        if number in (50, 100):
            await eventually(lambda wanted=number // 2: len(history(dynamodb, table, "lobby")) > wanted)
            workers.pop().kill()

    await eventually(lambda: queue_depth(sqs, queues.url) == 0, seconds=60)
    found = history(dynamodb, table, "lobby")
    assert sorted(found.values()) == names
    assert offsets_are_dense(found)
    await eventually(lambda: set(endpoint.delivered) == set(members))
    assert min(endpoint.delivered.values()) >= len(names)
    assert not dead_letters(sqs, queues.dead_letter_url)
    assert await workers[0].metric('gatecast_history_messages_total{outcome="appended"}') > 0
    assert await workers[0].metric('gatecast_history_messages_total{outcome="rejected"}') == 0


async def test_on_a_fifo_queue_the_order_of_the_queue_is_that_of_the_offsets(
    sqs: Any, dynamodb: Any, table: str, fifo_queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    write_members(dynamodb, table, "lobby", connection_ids(3), frames=V2)
    write_room_settings(dynamodb, table, {"history_seconds": 3600}, name="lobby")
    names = [f"b{number:03}" for number in range(40)]
    publisher = Publisher(sqs, fifo_queues.url)
    for name in names:
        publisher.publish(Broadcast(id=name, room="lobby", data=name))
    on_fifo = {"GATECAST_QUEUE_URL": fifo_queues.url, "GATECAST_DEAD_LETTER_QUEUE_URL": fifo_queues.dead_letter_url}
    workers = [launch(**on_fifo) for _ in range(2)]
    await eventually(lambda: len(history(dynamodb, table, "lobby")) > 10, seconds=30)
    workers[0].kill()

    await eventually(lambda: queue_depth(sqs, fifo_queues.url) == 0, seconds=60)
    found = history(dynamodb, table, "lobby")
    assert [name for _, name in sorted(found.items())] == names
    assert offsets_are_dense(found)
    assert min(endpoint.delivered.values()) >= len(names)
