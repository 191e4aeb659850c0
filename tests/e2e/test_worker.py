"""The worker as a process: from the queue to the connections, with SQS and DynamoDB from ministack."""

import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from gatecast import Broadcast, Publisher
from gatecast.broadcast import MIN_TIME_MS
from local.resources import Queues
from tests.connections_endpoint import ConnectionsEndpoint
from tests.members import connection_ids, write_members
from tests.queues import dead_letters, queue_depth
from tests.worker_fixtures import Launch
from tests.worker_process import WorkerProcess, eventually

NOWHERE = {
    "GATECAST_QUEUE_URL": "http://127.0.0.1:1/q",
    "GATECAST_TABLE": "table",
    "GATECAST_CONNECTIONS_ENDPOINT": "http://127.0.0.1:1/live",
    "AWS_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
    "AWS_CONFIG_FILE": "/dev/null",
}
"""The variables that a worker needs to start, with addresses where nothing listens."""


def items_of(dynamodb: Any, table: str, ids: set[str]) -> list[dict[str, Any]]:
    """All items of these connections."""
    pages = dynamodb.get_paginator("scan").paginate(TableName=table)
    return [
        item
        for page in pages
        for item in page["Items"]
        if item["sk"]["S"] in ids or item["pk"]["S"].removeprefix("connection#") in ids
    ]


async def test_a_sharded_room_reaches_each_living_member_once(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    everyone = connection_ids(3_000)
    gone, left_out, connected = set(everyone[::20]), everyone[1], set(everyone) - set(everyone[::20]) - {everyone[1]}
    write_members(dynamodb, table, "lobby", everyone, shards=3)
    expired = connection_ids(50, "x")
    write_members(dynamodb, table, "lobby", expired, shards=3, expires_in_seconds=-60)
    endpoint.respond = lambda connection_id, _nth: 410 if connection_id in gone else 200
    worker = launch()
    await worker.ready()

    Publisher(sqs, queues.url).publish(
        Broadcast(
            id="one", room="lobby", data="héllo", except_=(left_out,), expires_at_ms=int(time.time() * 1000) + 600_000
        )
    )

    await eventually(lambda: len(endpoint.delivered) >= len(connected))
    await eventually(lambda: queue_depth(sqs, queues.url) == 0)
    assert set(endpoint.delivered) == connected
    assert set(endpoint.delivered.values()) == {1}
    assert endpoint.bodies == {"héllo"}
    assert not set(expired) & set(endpoint.posts)
    assert left_out not in endpoint.posts
    await eventually(lambda: not items_of(dynamodb, table, gone))
    assert len(items_of(dynamodb, table, {left_out})) == 3  # expired ones may have been removed by the table itself
    assert await worker.metric('gatecast_deliveries_total{outcome="delivered"}') == len(connected)
    assert await worker.metric('gatecast_deliveries_total{outcome="gone"}') == len(gone)
    assert await worker.metric('gatecast_broadcasts_total{outcome="split"}') == 1
    assert await worker.metric('gatecast_broadcasts_total{outcome="completed"}') == 3
    assert await worker.metric("gatecast_memberships_reaped_total") == len(gone)


async def test_after_sigterm_during_a_broadcast_another_worker_finishes_it(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    everyone = connection_ids(2_500)
    write_members(dynamodb, table, "lobby", everyone)
    endpoint.latency_seconds = 0.02
    first = launch(GATECAST_MAX_POSTS_PER_SECOND="1000", GATECAST_DRAIN_SECONDS="10")
    await first.ready()
    Publisher(sqs, queues.url).publish(Broadcast(id="two", room="lobby", data="x"))
    await eventually(lambda: len(endpoint.delivered) > 300)

    first.terminate()

    assert await first.ended(seconds=10) == 0, first.log_tail()
    reached = len(endpoint.delivered)
    assert reached < len(everyone)
    assert queue_depth(sqs, queues.url) == 1
    second = launch()
    await second.ready()
    await eventually(lambda: len(endpoint.delivered) == len(everyone))
    await eventually(lambda: queue_depth(sqs, queues.url) == 0)
    assert set(endpoint.delivered.values()) == {1}
    assert await second.metric('gatecast_deliveries_total{outcome="delivered"}') == len(everyone) - reached


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
async def test_sigterm_during_startup_ends_the_worker(launch: Launch) -> None:
    """The handler is installed first of all: in a container the worker is process 1, and would ignore the signal."""
    worker = launch()
    caught = 1 << (signal.SIGTERM - 1)

    def catches_sigterm() -> bool:
        status = Path(f"/proc/{worker.pid}/status").read_text()
        return bool(int(status.partition("SigCgt:")[2].split()[0], 16) & caught)

    await eventually(catches_sigterm)
    worker.terminate()
    assert await worker.ended(seconds=20) == 0, worker.log_tail()
    assert "worker.started" not in worker.log.read_text()


async def test_poison_is_dead_lettered_and_does_not_stop_the_worker(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    write_members(dynamodb, table, "lobby", connection_ids(3))
    poison = ["", "{", "[]", '{"v":3,"id":"x","room":"lobby","data":"x"}', '{"v":1,"id":"x","room":"lobby"}']
    for body in poison:
        sqs.send_message(QueueUrl=queues.url, MessageBody=body or " ")
    Publisher(sqs, queues.url).publish(Broadcast(id="good", room="lobby", data="x"))
    worker = launch()

    await eventually(lambda: len(endpoint.delivered) == 3)
    await eventually(lambda: queue_depth(sqs, queues.url) == 0)

    letters = dead_letters(sqs, queues.dead_letter_url)
    assert sorted(body for _, body in letters) == sorted(body or " " for body in poison)
    assert all(reason.startswith("poison: ") for reason, _ in letters)
    assert await worker.metric('gatecast_broadcasts_total{outcome="poison"}') == len(poison)


async def test_without_a_dead_letter_queue_poison_is_released(
    sqs: Any,
    dynamodb: Any,
    table: str,
    queues: Queues,
    endpoint: ConnectionsEndpoint,
    launch: Launch,
    aws: dict[str, str],
) -> None:
    write_members(dynamodb, table, "lobby", connection_ids(3))
    sqs.send_message(QueueUrl=queues.url, MessageBody="not a broadcast")
    Publisher(sqs, queues.url).publish(Broadcast(id="good", room="lobby", data="x"))
    environment = {
        **aws,
        "GATECAST_QUEUE_URL": queues.url,
        "GATECAST_TABLE": table,
        "GATECAST_CONNECTIONS_ENDPOINT": endpoint.url,
    }
    worker = WorkerProcess.launch(environment, Path(launch().log).with_name("other.log"))
    try:
        await eventually(lambda: len(endpoint.delivered) == 3)
        await eventually(lambda: queue_depth(sqs, queues.url) <= 1)
    finally:
        worker.kill()


async def test_missed_deliveries_are_dead_lettered_and_can_be_redriven(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    everyone = connection_ids(60)
    rejected = set(everyone[::10])
    write_members(dynamodb, table, "lobby", everyone)
    endpoint.respond = lambda connection_id, _nth: 403 if connection_id in rejected else 200
    worker = launch()
    await worker.ready()
    Publisher(sqs, queues.url).publish(Broadcast(id="missed", room="lobby", data="x"))

    await eventually(lambda: queue_depth(sqs, queues.dead_letter_url) == 1)
    await eventually(lambda: queue_depth(sqs, queues.url) == 0)
    [(reason, body)] = dead_letters(sqs, queues.dead_letter_url)
    assert reason == "rejected"
    assert set(json.loads(body)["connections"]) == rejected
    assert set(endpoint.delivered) == set(everyone) - rejected

    endpoint.respond = lambda _id, _nth: 200
    sqs.send_message(QueueUrl=queues.url, MessageBody=body)
    await eventually(lambda: set(endpoint.delivered) == set(everyone))
    assert set(endpoint.delivered.values()) == {1}


async def test_the_same_id_published_ten_times_is_one_broadcast(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    write_members(dynamodb, table, "lobby", connection_ids(20))
    worker = launch()
    await worker.ready()
    for _ in range(10):
        Publisher(sqs, queues.url).publish(Broadcast(id="same", room="lobby", data="x"))

    await eventually(lambda: queue_depth(sqs, queues.url) == 0)

    assert set(endpoint.delivered.values()) == {1}
    assert len(endpoint.delivered) == 20
    assert await worker.metric('gatecast_broadcasts_total{outcome="duplicate"}') == 9


async def test_while_all_posts_are_rejected_no_delivery_is_given_up(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    everyone = connection_ids(100)
    write_members(dynamodb, table, "lobby", everyone)
    endpoint.respond = lambda _id, _nth: 403
    endpoint.reference_status = 403
    worker = launch()
    await worker.ready()
    Publisher(sqs, queues.url).publish(Broadcast(id="held", room="lobby", data="x"))

    await eventually(lambda: worker.is_not_ready("403"))
    endpoint.respond = lambda _id, _nth: 200
    await eventually(lambda: set(endpoint.delivered) == set(everyone), seconds=60)
    await worker.ready()
    assert queue_depth(sqs, queues.dead_letter_url) == 0


async def test_a_410_for_a_young_membership_is_retried(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    young, old = connection_ids(1, "young"), connection_ids(5, "old")
    worker = launch()
    await worker.ready()
    write_members(dynamodb, table, "lobby", old)
    write_members(dynamodb, table, "lobby", young, joined_at_ms=int(time.time() * 1000))
    endpoint.respond = lambda connection_id, nth: 410 if connection_id in young and nth < 3 else 200

    Publisher(sqs, queues.url).publish(Broadcast(id="room", room="lobby", data="x"))
    await eventually(lambda: endpoint.delivered[young[0]] == 1)
    endpoint.posts.clear()
    Publisher(sqs, queues.url).publish(Broadcast(id="named", connections=tuple(young), data="x"))
    await eventually(lambda: endpoint.delivered[young[0]] == 2)

    assert len(items_of(dynamodb, table, set(young))) == 3


async def test_a_parked_broadcast_releases_its_place(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    worker = launch(GATECAST_MAX_BROADCASTS="1")
    await worker.ready()
    write_members(dynamodb, table, "hall", connection_ids(3, "hall"))
    young = connection_ids(1, "young")
    write_members(dynamodb, table, "lobby", [*connection_ids(3), *young], joined_at_ms=int(time.time() * 1000))
    endpoint.respond = lambda connection_id, _nth: 410 if connection_id in young else 200

    Publisher(sqs, queues.url).publish(Broadcast(id="one", room="lobby", data="x"))
    Publisher(sqs, queues.url).publish(Broadcast(id="two", room="hall", data="x"))

    await eventually(lambda: queue_depth(sqs, queues.url) == 0, seconds=60)
    assert len(endpoint.delivered) == 6
    assert set(endpoint.delivered.values()) == {1}
    assert await worker.metric('gatecast_broadcasts_total{outcome="completed"}') == 2
    assert await worker.metric('gatecast_deliveries_total{outcome="gone"}') == 1


async def test_expired_broadcasts_are_not_delivered(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    write_members(dynamodb, table, "lobby", connection_ids(3))
    worker = launch()
    Publisher(sqs, queues.url).publish(Broadcast(id="late", room="lobby", data="x", expires_at_ms=MIN_TIME_MS))

    await eventually(lambda: queue_depth(sqs, queues.url) == 0)
    await worker.ready()
    assert not endpoint.posts
    assert await worker.metric('gatecast_broadcasts_total{outcome="expired"}') == 1


async def test_posts_in_flight_are_bounded(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    write_members(dynamodb, table, "lobby", connection_ids(200))
    endpoint.latency_seconds = 0.05
    await launch(GATECAST_MAX_IN_FLIGHT="7").ready()
    Publisher(sqs, queues.url).publish(Broadcast(id="slow", room="lobby", data="x"))
    await eventually(lambda: len(endpoint.delivered) == 200)
    assert endpoint.max_in_flight <= 7


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GATECAST_QUEUE_URL", None),
        ("GATECAST_TABLE", None),
        ("GATECAST_CONNECTIONS_ENDPOINT", None),
        ("GATECAST_CONNECTIONS_ENDPOINT", "wss://example.com/live"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "http://ws.example.com/live"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "https://abc.execute-api.us-east-1.amazonaws.com/live"),
        ("GATECAST_QUEUE_URL", "https://sqs.us-east-1.amazonaws.com/123456789012/q"),
        ("GATECAST_DEAD_LETTER_QUEUE_URL", "https://vpce-1.sqs.us-east-1.vpce.amazonaws.com/123456789012/q"),
        ("AWS_ENDPOINT_URL_DYNAMODB", "https://dynamodb.us-east-1.amazonaws.com"),
        ("GATECAST_MAX_IN_FLIGHT", "0"),
        ("GATECAST_DRAIN_SECONDS", "116"),
        ("AWS_REGION", None),
        ("AWS_CA_BUNDLE", "/nowhere/ca.pem"),
        ("AWS_PROFILE", "nobody"),
        ("AWS_ENDPOINT_URL", "nonsense"),
        ("AWS_ENDPOINT_URL_SQS", "nonsense"),
        ("AWS_ENDPOINT_URL_SQS", "http://127.0.0.1:bad"),
        ("AWS_ENDPOINT_URL_DYNAMODB", "ftp://127.0.0.1"),
        ("AWS_ENDPOINT_URL_S3", "nonsense"),
        ("AWS_REGION", "not a region"),
        ("AWS_REGION", "eu-west-1\n"),
        ("AWS_REGION", "1"),
        ("GATECAST_HTTP_HOST", "256.256.256.256"),
        ("GATECAST_HTTP_HOST", "192.0.2.1"),
        ("GATECAST_HTTP_HOST", "fe80::1"),
    ],
)
async def test_an_invalid_variable_ends_the_worker_and_is_named(
    tmp_path: Path, variable: str, value: str | None
) -> None:
    environment = {name: given for name, given in NOWHERE.items() if name != variable}
    if value is not None:
        environment[variable] = value
    worker = WorkerProcess.launch(environment, tmp_path / "worker.log")
    assert await worker.ended(seconds=20) == 2
    [line] = worker.log.read_text().splitlines()
    assert line.startswith(f"{variable} ")


def moving_to(sqs: Any, url: str) -> dict[str, str]:
    """Attributes that make a queue move its messages to this one."""
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    return {"RedrivePolicy": json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "3"})}


async def test_a_dead_letter_queue_that_leads_back_ends_the_worker(sqs: Any, queues: Queues, launch: Launch) -> None:
    sqs.set_queue_attributes(QueueUrl=queues.dead_letter_url, Attributes=moving_to(sqs, queues.url))
    sqs.send_message(QueueUrl=queues.url, MessageBody="poison")
    worker = launch()
    assert await worker.ended(seconds=20) == 2
    line = worker.log.read_text().splitlines()[-1]
    assert "GATECAST_DEAD_LETTER_QUEUE_URL moves its messages back to GATECAST_QUEUE_URL" in line
    assert queue_depth(sqs, queues.url) == 1, "it received nothing"


async def test_the_queues_are_checked_before_anything_is_received(queues: Queues, launch: Launch) -> None:
    del queues
    worker = launch()
    await worker.ready()
    assert worker.events("worker.started")
    assert not worker.events("queue.unchecked")


async def test_an_invalid_region_is_reported_under_the_variable_that_was_set(tmp_path: Path) -> None:
    environment = {**NOWHERE, "AWS_REGION": "", "AWS_DEFAULT_REGION": "not a region"}
    worker = WorkerProcess.launch(environment, tmp_path / "worker.log")
    assert await worker.ended(seconds=20) == 2
    [line] = worker.log.read_text().splitlines()
    assert line.startswith("AWS_DEFAULT_REGION ")


async def test_a_port_in_use_ends_the_worker_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr("tests.worker_process.free_port", lambda: port)
        worker = WorkerProcess.launch(NOWHERE, tmp_path / "worker.log")
        assert await worker.ended(seconds=20) == 1
    assert [event["reason"] for event in worker.events("worker.failed")] == [
        f"GATECAST_HTTP_PORT is {port}, which is in use on 127.0.0.1"
    ]
    assert len(worker.log.read_text().splitlines()) == 1
