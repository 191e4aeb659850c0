"""Malformed table items stop no broadcast: the other members receive it, and the damage is logged and counted."""

from typing import Any

from gatecast import Broadcast, Publisher, decode
from gatecast import table as keys
from local.resources import Queues
from tests.connections_endpoint import ConnectionsEndpoint
from tests.members import connection_ids, write_members
from tests.worker_fixtures import Launch
from tests.worker_process import eventually

LONG = "x" * 500


async def test_a_broadcast_to_a_room_with_damaged_items_completes(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    healthy, rejected, gone = connection_ids(20), connection_ids(2, "rejected"), connection_ids(1, "gone")
    write_members(dynamodb, table, "lobby", [*healthy, *rejected, *gone])

    def put(connection_id: str, **attributes: Any) -> None:
        dynamodb.put_item(TableName=table, Item={**keys.key(keys.room_pk("lobby", 0), connection_id), **attributes})

    put("odd-1=", expires_at={"S": "soon"}, joined_at_ms={"N": "1"})
    put("odd-2=", joined_at_ms={"L": []})
    put(LONG, joined_at_ms={"N": "1"})
    settings = keys.key(keys.settings_pk("lobby"), keys.SETTINGS_SK)
    dynamodb.put_item(TableName=table, Item={**settings, "shards": {"S": "many"}})
    joined = keys.key(keys.connection_pk(gone[0]), keys.joined_room_sk("other"))
    dynamodb.put_item(TableName=table, Item={**joined, "shard": {"S": "x"}})
    endpoint.respond = lambda connection_id, _nth: (
        410 if connection_id in gone else 413 if connection_id in {*rejected, LONG} else 200
    )
    worker = launch()
    await worker.ready()

    Publisher(sqs, queues.url).publish(Broadcast(id="one", room="lobby", data="x"))

    await eventually(lambda: worker.events("broadcast.completed"))
    assert set(endpoint.delivered) == {*healthy, "odd-1=", "odd-2="}
    [missed] = worker.events("broadcast.missed")
    assert missed["rejected"] == [LONG]
    [letter] = sqs.receive_message(QueueUrl=queues.dead_letter_url, MaxNumberOfMessages=10)["Messages"]
    assert sorted(decode(letter["Body"]).connections or ()) == rejected
    await eventually(lambda: not items_of(dynamodb, table, gone[0]))
    for item, count in {"settings": 1, "membership": 3, "joined_room": 1, "connection": 0}.items():
        assert await worker.metric(f'gatecast_damaged_items_total{{item="{item}"}}') == count
    assert {event["item"] for event in worker.events("item.damaged")} == {"settings", "membership", "joined_room"}


def items_of(dynamodb: Any, table: str, connection_id: str) -> list[Any]:
    found = dynamodb.query(
        TableName=table,
        KeyConditionExpression="pk = :pk",
        ExpressionAttributeValues={":pk": {"S": keys.connection_pk(connection_id)}},
        ConsistentRead=True,
    )
    items: list[Any] = found["Items"]
    return items
