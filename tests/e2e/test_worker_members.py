"""The worker as a process, with members in a table of the operator's own: how it starts, and what it leaves alone."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gatecast import Broadcast, Publisher
from gatecast import table as keys
from local.ministack import Ministack
from local.resources import Queues
from tests.chaos.service_proxy import ServiceProxy, ServiceResponse
from tests.connections_endpoint import ConnectionsEndpoint
from tests.foreign_tables import BY_CONNECTION, BY_ROOM
from tests.members import connection_ids, write_members
from tests.queues import dead_letters, queue_depth
from tests.worker_fixtures import Launch
from tests.worker_process import eventually

ROOM = "lobby"


@pytest.fixture
def members(dynamodb: Any, unique_name: str) -> str:
    """A table with an index by room."""
    name = f"{unique_name}-members"
    BY_CONNECTION.create(dynamodb, name)
    return name


@pytest.fixture
async def proxy(ministack: Ministack) -> AsyncIterator[ServiceProxy]:
    async with ServiceProxy.serving(ministack.url) as serving:
        yield serving


async def test_a_wrong_description_ends_the_worker_with_one_line(launch: Launch, members: str) -> None:
    described = json.loads(BY_CONNECTION.members(members))
    wrong = {
        json.dumps({**described, "table": "nowhere"}): "table is 'nowhere': expected a table that exists",
        json.dumps({**described, "index": "by_user"}): "index is 'by_user': expected an index of the table",
    }
    workers = {launch(GATECAST_MEMBERS=text): line for text, line in wrong.items()}
    for worker, line in workers.items():
        assert await worker.ended(seconds=30) == 2, worker.log_tail()
        [*_, last] = worker.log.read_text().splitlines()
        assert last.startswith(f"GATECAST_MEMBERS: {line}")
        assert "Traceback" not in worker.log.read_text()


async def test_a_worker_that_may_not_describe_the_table_relies_on_the_setting(
    sqs: Any,
    dynamodb: Any,
    queues: Queues,
    endpoint: ConnectionsEndpoint,
    launch: Launch,
    members: str,
    proxy: ServiceProxy,
) -> None:
    denied = ServiceResponse.error(400, "AccessDeniedException")
    proxy.fault = lambda operation: denied if operation == "DescribeTable" else None
    BY_CONNECTION.fill(dynamodb, members, ROOM, ids := connection_ids(1_500))
    BY_CONNECTION.fill(dynamodb, members, ROOM, ["gone="])
    endpoint.respond = lambda connection_id, _nth: 410 if connection_id == "gone=" else 200
    worker = launch(**proxy.environment(), GATECAST_MEMBERS=BY_CONNECTION.members(members))
    await worker.ready()
    assert [event["assumed_key"] for event in worker.events("members.unchecked")] == [["connectionId"]]

    Publisher(sqs, queues.url).publish(Broadcast(id="one", room=ROOM, data="x"))

    await eventually(lambda: set(endpoint.delivered) == set(ids))
    await eventually(lambda: BY_CONNECTION.ids(dynamodb, members) == set(ids))
    assert await worker.metric("gatecast_memberships_reaped_total") == 1


async def test_a_failing_table_is_waited_for_and_a_stop_meanwhile_is_no_failure(
    launch: Launch, members: str, proxy: ServiceProxy
) -> None:
    failing = ServiceResponse.error(500, "InternalServerError")
    proxy.fault = lambda operation: failing if operation == "DescribeTable" else None
    environment = {**proxy.environment(), "GATECAST_MEMBERS": BY_CONNECTION.members(members)}
    stopped, waiting = launch(**environment), launch(**environment)
    for worker in (stopped, waiting):
        await eventually(lambda worker=worker: worker.is_not_ready("InternalServerError"))
    stopped.terminate()
    assert await stopped.ended(seconds=30) == 0, stopped.log_tail()
    proxy.fault = lambda _: None
    await waiting.ready()
    assert waiting.events("members.source")


async def test_expired_members_are_left_out_and_nobody_is_disconnected(
    sqs: Any, dynamodb: Any, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch, members: str
) -> None:
    """Members in Gatecast's own table are none here."""
    BY_CONNECTION.fill(dynamodb, members, ROOM, ids := connection_ids(5))
    BY_CONNECTION.fill(
        dynamodb, members, ROOM, expired := connection_ids(5, "x"), ttl={"N": str(int(time.time()) - 60)}
    )
    worker = launch(GATECAST_MEMBERS=BY_CONNECTION.members(members))
    await worker.ready()
    Publisher(sqs, queues.url).publish(Broadcast(id="one", room=ROOM, data="x"))
    await eventually(lambda: worker.events("broadcast.completed"))
    assert endpoint.delivered == dict.fromkeys(ids, 1)
    assert not endpoint.closed
    assert BY_CONNECTION.ids(dynamodb, members) == {*ids, *expired}


async def test_shards_without_a_place_for_them_are_reported_and_count_as_one(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch, members: str
) -> None:
    write_members(dynamodb, table, ROOM, connection_ids(2, "own"), shards=4)
    BY_CONNECTION.fill(dynamodb, members, ROOM, ids := connection_ids(5))
    worker = launch(GATECAST_MEMBERS=BY_CONNECTION.members(members))
    await worker.ready()
    Publisher(sqs, queues.url).publish(Broadcast(id="one", room=ROOM, data="x"))
    await eventually(lambda: worker.events("broadcast.completed"))
    assert endpoint.delivered == dict.fromkeys(ids, 1)
    [damaged] = worker.events("item.damaged")
    assert damaged["reason"].startswith("shards and join_shards: not with GATECAST_MEMBERS")


async def test_a_room_with_shards_is_split_and_what_its_members_miss_is_a_dead_letter(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch, unique_name: str
) -> None:
    name = f"{unique_name}-members"
    BY_ROOM.create(dynamodb, name)
    members = {shard: connection_ids(20, f"s{shard}") for shard in range(3)}
    for shard, ids in members.items():
        BY_ROOM.fill(dynamodb, name, f"{ROOM}#{shard}", ids)
    settings = {**keys.key(keys.settings_pk(ROOM), keys.SETTINGS_SK), "shards": {"N": "3"}, "join_shards": {"N": "3"}}
    dynamodb.put_item(TableName=table, Item={**settings, "history_seconds": {"N": "3600"}})
    missed = members[1][3]
    endpoint.respond = lambda connection_id, _nth: 413 if connection_id == missed else 200
    worker = launch(GATECAST_MEMBERS=BY_ROOM.members(name, pk_value="room#{room}#{shard}"))
    await worker.ready()

    Publisher(sqs, queues.url).publish(Broadcast(id="one", room=ROOM, data="x"))

    await eventually(lambda: queue_depth(sqs, queues.url) == 0 and queue_depth(sqs, queues.dead_letter_url) == 1)
    assert set(endpoint.delivered) == {each for ids in members.values() for each in ids} - {missed}
    assert set(endpoint.delivered.values()) == {1}
    [letter] = dead_letters(sqs, queues.dead_letter_url)
    assert json.loads(letter.body)["connections"] == [missed]
    head = await asyncio.to_thread(dynamodb.get_item, TableName=table, Key=keys.key(keys.stream_pk(ROOM), keys.HEAD_SK))
    assert head["Item"]["offset"]["N"], "the room's history is in Gatecast's table"
