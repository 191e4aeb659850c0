"""What docs/migrating.md says about tables of one's own: its settings fit the tables of the projects that it names.

Each table has the keys and attributes of that project. A worker with the document's setting delivers to it.
"""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
import websockets
import yaml

from gatecast import Broadcast, decode
from gatecast.emulator.integration import Route
from gatecast.emulator.server import Gateway
from local.resources import Queues
from tests.connections_endpoint import ConnectionsEndpoint
from tests.foreign_tables import ForeignSchema
from tests.members import connection_ids
from tests.worker_fixtures import Launch
from tests.worker_process import eventually

DOCUMENT = Path(__file__).parents[2] / "docs" / "migrating.md"
CHANNEL = "my-app-collab/chat/room-123"


def blocks(language: str, heading: str) -> list[str]:
    """The code blocks of this language in the section with this heading."""
    section = re.split(rf"^#+ {re.escape(heading)}$", DOCUMENT.read_text(), flags=re.MULTILINE)[1]
    section = re.split(r"^#{2,3} ", section, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def setting(heading: str) -> dict[str, Any]:
    [text] = blocks("json", heading)
    found: dict[str, Any] = json.loads(text)
    return found


def schema(heading: str, keys: Mapping[str, str], item: Mapping[str, Any], **others: Any) -> tuple[ForeignSchema, str]:
    """The project's table with the document's setting, and the table's name in it."""
    fields = setting(heading)
    name = fields.pop("table")
    return ForeignSchema(keys=keys, setting=fields, item=item, **others), name


def create(dynamodb: Any, found: ForeignSchema, name: str) -> None:
    """Create the table under the name in the document, which an earlier test may have used."""
    if name in dynamodb.list_tables()["TableNames"]:
        dynamodb.delete_table(TableName=name)
    found.create(dynamodb, name)


def publish(sqs: Any, queues: Queues, room: str, data: str) -> None:
    """One message, as any program sends it."""
    body = json.dumps({"v": 1, "id": data, "room": room, "data": data})
    sqs.send_message(QueueUrl=queues.url, MessageBody=body, MessageGroupId=room)


async def deliver(
    sqs: Any, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch, members: str, room: str, ids: Sequence[str]
) -> None:
    """Deliver one message to these members of the room. All other connections are gone."""
    endpoint.respond = lambda connection_id, _nth: 200 if connection_id in ids else 410
    worker = launch(GATECAST_MEMBERS=members)
    await worker.ready()
    publish(sqs, queues, room, "hello")
    await eventually(lambda: worker.events("broadcast.completed"))
    assert endpoint.delivered == dict.fromkeys(ids, 1)
    [source] = worker.events("members.source")
    assert (source["level"] == "warning") is ("index" in json.loads(members))


async def test_simple_websockets_chat_app_with_the_index_that_is_added(
    sqs: Any, dynamodb: Any, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    heading = "aws-samples/simple-websockets-chat-app"
    found, name = schema(
        heading,
        {"connectionId": "S"},
        {"connectionId": {"S": "{id}"}, "room": {"S": "{room}"}, "joinedAt": {"N": "{ms}"}},
    )
    assert name == "simplechat_connections"
    create(dynamodb, found, name)
    connected_before = connection_ids(2, "old")
    for each in connected_before:
        dynamodb.put_item(TableName=name, Item={"connectionId": {"S": each}})
    [added] = blocks("yaml", heading)
    template = yaml.safe_load(dedent(added))
    [index] = template["GlobalSecondaryIndexes"]
    index.pop("ProvisionedThroughput")  # ministack's tables here have none
    dynamodb.update_table(
        TableName=name,
        AttributeDefinitions=template["AttributeDefinitions"],
        GlobalSecondaryIndexUpdates=[{"Create": index}],
    )
    found.fill(dynamodb, name, "lobby", ids := connection_ids(30))
    found.fill(dynamodb, name, "lobby", connection_ids(5, "gone"))

    await deliver(sqs, queues, endpoint, launch, json.dumps(setting(heading)), "lobby", ids)

    await eventually(lambda: found.ids(dynamodb, name) == {*ids, *connected_before})
    assert "SendMessageCommand" in blocks("js", heading)[1]


async def test_aws_blocks_with_the_index_that_it_has(
    sqs: Any, dynamodb: Any, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    heading = "aws-blocks, bb-realtime"
    found, name = schema(
        heading,
        {"connectionId": "S", "channel": "S"},
        {"connectionId": {"S": "{id}"}, "channel": {"S": "{room}"}, "expiresAt": {"N": "{later}"}},
        index={"channel": "S", "connectionId": "S"},
    )
    create(dynamodb, found, name)
    found.fill(dynamodb, name, CHANNEL, ids := connection_ids(30))
    found.fill(dynamodb, name, CHANNEL, connection_ids(5, "gone"))
    found.fill(dynamodb, name, CHANNEL, connection_ids(5, "expired"), expiresAt={"N": "1700000000"})
    found.fill(dynamodb, name, "my-app-collab/chat/other", connection_ids(5, "other"))
    found.fill(dynamodb, name, "__connection__", ids)

    await deliver(sqs, queues, endpoint, launch, json.dumps(setting(heading)), CHANNEL, ids)

    assert not set(connection_ids(5, "gone")) - found.ids(dynamodb, name), "only a second, later 410 is a proof"


async def test_serverless_websockets_with_its_table_and_a_queue_for_gone_connections(
    sqs: Any, dynamodb: Any, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch, unique_name: str
) -> None:
    heading = "stayallive/serverless-websockets"
    found, name = schema(
        heading,
        {"PK": "S", "SK": "S"},
        {
            "PK": {"S": "CHANNEL#{room}"},
            "SK": {"S": "CONNECTION#{id}"},
            "GSI1PK": {"S": "CONNECTION#{id}"},
            "GSI1SK": {"S": "CHANNEL#{room}"},
            "type": {"S": "Connection"},
            "channel": {"S": "{room}"},
            "user-id": {"S": "user-{number}"},
            "connect-time": {"N": "{s}"},
            "connection-id": {"S": "{id}"},
        },
    )
    create(dynamodb, found, name)
    room = "presence-lobby"
    found.fill(dynamodb, name, room, ids := connection_ids(30))
    found.fill(dynamodb, name, room, gone := connection_ids(12, "gone"))
    user = {
        "PK": {"S": f"CHANNEL#{room}"},
        "SK": {"S": "USER#user-1"},
        "type": {"S": "User"},
        "user-id": {"S": "user-1"},
    }
    connection = {"PK": {"S": "CONNECTIONS"}, "SK": {"S": f"CONNECTION#{ids[0]}"}, "type": {"S": "Connection"}}
    for item in (user, connection):
        dynamodb.put_item(TableName=name, Item=item)
    gone_url = sqs.create_queue(QueueName=f"{unique_name}-gone")["QueueUrl"]

    members = json.dumps({**setting(heading), "on_gone": gone_url})
    await deliver(sqs, queues, endpoint, launch, members, room, ids)

    received: list[Any] = []

    def all_received() -> bool:
        messages = sqs.receive_message(QueueUrl=gone_url, MaxNumberOfMessages=10).get("Messages", ())
        received.extend(json.loads(message["Body"]) for message in messages)
        return len(received) >= len(gone)

    await eventually(all_received)
    assert sorted(received, key=lambda body: str(body["connection_id"])) == [
        {"connection_id": each, "room": room, "shard": 0, "user": f"user-{number}"} for number, each in enumerate(gone)
    ]
    assert found.ids(dynamodb, name) == {*ids, *gone}, "the worker deletes nothing"


# Side by side


async def test_both_ways_work_on_one_table_at_the_same_time(
    dynamodb: Any, queues: Queues, launch: Launch, unique_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, name = setting("1. Describe your table"), f"{unique_name}-connections"
    fields |= {"table": name}
    found = ForeignSchema(
        keys={"connection_id": "S"},
        index={"room": "S"},
        setting=fields,
        item={"connection_id": {"S": "{id}"}, "room": {"S": "{room}"}, "joined_at": {"N": "{ms}"}},
    )
    found.create(dynamodb, name)
    variables = {"CONNECTIONS_TABLE": name, "GATECAST_QUEUE_URL": queues.url, "MOVED_ROOMS": "moved another"}
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    functions = ModuleType("functions")

    def send(event: Any, context: Any) -> Any:
        if not vars(functions).get("send"):
            [text] = blocks("python", "3. Send one message, room by room")
            exec(compile(text, DOCUMENT, "exec"), vars(functions))  # noqa: S102
        return functions.send(event, context)

    async with Gateway({"send": Route(send)}) as gateway, websockets.connect(gateway.url) as client:
        monkeypatch.setenv("CALLBACK_URL", gateway.endpoint)
        worker = launch(GATECAST_MEMBERS=json.dumps(fields), GATECAST_CONNECTIONS_ENDPOINT=gateway.endpoint)
        await worker.ready()
        [connection_id] = gateway.connections
        found.fill(dynamodb, name, "moved", ["gone-too=", "gone="])
        for room in ("moved", "still-a-loop"):
            found.fill(dynamodb, name, room, [connection_id])
            await client.send(json.dumps({"action": "send", "room": room, "data": f"hello {room}"}))
            assert await asyncio.wait_for(client.recv(), 30) == f"hello {room}"
        await eventually(lambda: found.ids(dynamodb, name) == {connection_id})
    assert len(worker.events("broadcast.completed")) == 1


def test_the_message_of_the_example_is_a_broadcast() -> None:
    sent: list[dict[str, str]] = []
    names: dict[str, Any] = {"json": json, "os": ModuleType("os")}
    names["os"].environ = {"GATECAST_QUEUE_URL": "url"}
    [text] = blocks("python", "3. Send one message, room by room")
    [function] = re.findall(r"^def publish\(.*?(?=^def )", text, re.MULTILINE | re.DOTALL)
    exec(compile(function, DOCUMENT, "exec"), names)  # noqa: S102
    names["queue"] = type("Queue", (), {"send_message": lambda _, **arguments: sent.append(arguments)})()
    names["publish"]("r1", "lobby", "hello")
    [message] = sent
    assert decode(message["MessageBody"]) == Broadcast(id="r1", room="lobby", data="hello")
    assert (message["QueueUrl"], message["MessageGroupId"]) == ("url", "lobby")
