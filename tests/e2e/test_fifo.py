"""A FIFO queue with default settings: deduplication per queue, and no head-of-line blocking between groups."""

from typing import Any

from gatecast import Broadcast, Publisher
from gatecast import table as keys
from local.resources import Queues
from tests.connections_endpoint import ConnectionsEndpoint
from tests.members import connection_ids, write_members
from tests.worker_fixtures import Launch
from tests.worker_process import eventually


def on_fifo(queues: Queues) -> dict[str, str]:
    return {"GATECAST_QUEUE_URL": queues.url, "GATECAST_DEAD_LETTER_QUEUE_URL": queues.dead_letter_url}


async def test_the_same_id_to_two_rooms_reaches_all_members_of_both(
    sqs: Any, dynamodb: Any, table: str, fifo_queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    rooms = {room: connection_ids(40, room) for room in ("one", "two", "small")}
    for room, ids in rooms.items():
        write_members(dynamodb, table, room, ids, shards=1 if room == "small" else 4)
    attributes = sqs.get_queue_attributes(QueueUrl=fifo_queues.url, AttributeNames=["All"])["Attributes"]
    assert attributes.get("DeduplicationScope", "queue") == "queue"
    worker = launch(**on_fifo(fifo_queues))
    await worker.ready()

    publisher = Publisher(sqs, fifo_queues.url)
    for room in rooms:
        publisher.publish(Broadcast(id="same", room=room, data="x"))
    publisher.publish(Broadcast(id="same", connections=("c=",), data="x"))

    everyone = {each for ids in rooms.values() for each in ids} | {"c="}
    await eventually(lambda: set(endpoint.delivered) == everyone)
    assert set(endpoint.delivered.values()) == {1}


async def test_a_stalled_room_named_like_a_shard_does_not_block_the_sharded_room(
    sqs: Any, dynamodb: Any, table: str, fifo_queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    lobby, stalled = connection_ids(20), connection_ids(1, "stalled")
    write_members(dynamodb, table, "lobby", lobby, shards=2)
    for name in ("lobby#0", "lobby#1"):
        write_members(dynamodb, table, name, stalled)
    endpoint.respond = lambda connection_id, _nth: 429 if connection_id in stalled else 200
    worker = launch(**on_fifo(fifo_queues))
    await worker.ready()
    publisher = Publisher(sqs, fifo_queues.url)
    for name in ("lobby#0", "lobby#1"):
        publisher.publish(Broadcast(id="stalls", room=name, data="x"))
    await eventually(lambda: endpoint.posts[stalled[0]] >= 2)

    publisher.publish(Broadcast(id="one", room="lobby", data="x"))

    await eventually(lambda: set(endpoint.delivered) == set(lobby), seconds=15)


async def test_missed_deliveries_of_the_same_id_to_two_rooms_are_all_dead_lettered(
    sqs: Any, dynamodb: Any, table: str, fifo_queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    rejected = {room: connection_ids(2, room) for room in ("one", "two")}
    for room, ids in rejected.items():
        write_members(dynamodb, table, room, ids, shards=2)
    endpoint.respond = lambda _connection_id, _nth: 413
    worker = launch(**on_fifo(fifo_queues))
    await worker.ready()

    for room in rejected:
        Publisher(sqs, fifo_queues.url).publish(Broadcast(id="same", room=room, data="x"))

    await eventually(lambda: len(worker.events("broadcast.completed")) == 4)
    found = sqs.get_queue_attributes(
        QueueUrl=fifo_queues.dead_letter_url, AttributeNames=["ApproximateNumberOfMessages"]
    )
    shards = {(room, keys.shard_of(each, 2)) for room, ids in rejected.items() for each in ids}
    assert int(found["Attributes"]["ApproximateNumberOfMessages"]) == len(shards)
