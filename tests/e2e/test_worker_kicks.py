"""The worker as a process: it closes the connections of users who are kicked."""

import asyncio
import json
from typing import Any

from gatecast import Publisher, decode
from gatecast.broadcast import Close
from gatecast.dead_letter_queue import Redrive
from gatecast.frames import V2
from gatecast.kicks import kick_broadcast
from local.resources import Queues
from tests.connections_endpoint import FORBIDDEN, ConnectionsEndpoint
from tests.members import connection_ids, items_left, write_members
from tests.queues import dead_letters, queue_depth
from tests.worker_fixtures import Launch
from tests.worker_process import eventually

FRAME = json.dumps({"type": "closed", "code": "banned", "retry": False}, separators=(",", ":"))


async def test_the_connections_of_a_user_receive_the_reason_and_are_closed_and_removed(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    [alone], [old], [new], [ended], [other] = (connection_ids(1, prefix) for prefix in "aoneb")
    write_members(dynamodb, table, "@user/ann", [alone])
    write_members(dynamodb, table, "@user/bob", [old, ended])
    write_members(dynamodb, table, "@user/bob", [new], frames=V2)
    write_members(dynamodb, table, "lobby", [new, other])
    endpoint.close_status = lambda connection_id: 410 if connection_id == ended else 204
    worker = launch()
    await worker.ready()
    publisher = Publisher(sqs, queues.url)

    publisher.publish(kick_broadcast(user="ann", code="banned", retry=False))

    # nothing has been posted yet: that the connection was closed is proof enough that it has ended
    await eventually(lambda: items_left(dynamodb, table, "@user/ann", [alone]) == 0)
    assert not endpoint.posts

    publisher.publish(kick_broadcast(user="bob", code="banned", retry=False))

    await eventually(lambda: items_left(dynamodb, table, "@user/bob", [old, new, ended]) == 0)
    await eventually(lambda: queue_depth(sqs, queues.url) == 0)
    assert endpoint.closed == {alone: 1, old: 1, new: 1, ended: 1}
    assert endpoint.delivered == {new: 1}
    assert endpoint.bodies == {FRAME}
    assert items_left(dynamodb, table, "lobby", [new]) == 0, "from all of its rooms"
    assert items_left(dynamodb, table, "lobby", [other]) == 2
    assert await worker.metric('gatecast_deliveries_total{outcome="delivered"}') == 3
    assert await worker.metric('gatecast_deliveries_total{outcome="gone"}') == 1
    assert await worker.metric('gatecast_posts_total{status="200"}') == 1
    assert await worker.metric('gatecast_posts_total{status="204"}') == 0
    assert await worker.metric("gatecast_memberships_reaped_total") == 5
    assert await worker.metric('gatecast_broadcasts_total{outcome="completed"}') == 2
    assert await worker.metric("gatecast_broadcast_duration_seconds_count") == 0


async def test_a_kick_whose_worker_is_killed_misses_nobody(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    old, new = connection_ids(1_000, "o"), connection_ids(1_000, "n")
    write_members(dynamodb, table, "lobby", old, memberships_only=True)
    write_members(dynamodb, table, "lobby", new, memberships_only=True, frames=V2)
    endpoint.close_status = lambda connection_id: 410 if connection_id in endpoint.closed else 204
    endpoint.respond = lambda connection_id, _nth: 410 if connection_id in endpoint.closed else 200
    first = launch()
    await first.ready()
    Publisher(sqs, queues.url).publish(kick_broadcast(room="lobby", code="banned", retry=False))
    await eventually(lambda: len(endpoint.closed) > 700)

    first.kill()

    assert len(endpoint.closed) < 2_000
    second = launch()
    await second.ready()
    await eventually(lambda: len(endpoint.closed) == 2_000, seconds=60)
    await eventually(lambda: queue_depth(sqs, queues.url) == 0)
    assert set(endpoint.closed) == {*old, *new}
    assert set(endpoint.delivered) == set(new), "each received the reason"
    assert endpoint.bodies == {FRAME}
    assert not dead_letters(sqs, queues.dead_letter_url)


async def test_what_could_not_be_closed_is_closed_by_a_redrive(
    sqs: Any,
    dynamodb: Any,
    table: str,
    queues: Queues,
    endpoint: ConnectionsEndpoint,
    launch: Launch,
) -> None:
    members, failing = connection_ids(50), connection_ids(2, "f")
    write_members(dynamodb, table, "lobby", members)
    write_members(dynamodb, table, "lobby", failing, frames=V2)
    endpoint.close_status = lambda connection_id: FORBIDDEN if connection_id in failing else 204
    worker = launch()
    await worker.ready()
    Publisher(sqs, queues.url).publish(kick_broadcast(room="lobby", code="banned", retry=False))
    await eventually(lambda: queue_depth(sqs, queues.dead_letter_url) == 1)
    [letter] = dead_letters(sqs, queues.dead_letter_url)
    missed = decode(letter.body)
    assert letter.reason == "rejected"
    assert set(missed.connections or ()) == set(failing)
    assert missed.close == Close(code="banned", retry=False)
    assert set(endpoint.closed) == set(members)

    endpoint.close_status = lambda _: 204
    redrive = Redrive(sqs, source=queues.dead_letter_url, target=queues.url)
    assert (await asyncio.to_thread(redrive.run)).sent == {"rejected": 1}

    await eventually(lambda: set(endpoint.closed) == {*members, *failing})
    await eventually(lambda: items_left(dynamodb, table, "lobby", failing) == 0)
    await eventually(lambda: queue_depth(sqs, queues.dead_letter_url) == 0)
