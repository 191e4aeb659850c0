"""A worker process as an operator sees it: its log, its metrics, its broadcasts in progress."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from gatecast import Broadcast, Publisher
from gatecast.broadcast import MIN_TIME_MS
from local.resources import Queues
from tests.connections_endpoint import ConnectionsEndpoint
from tests.members import connection_ids, write_members
from tests.worker_fixtures import Launch
from tests.worker_process import CHECKOUT, eventually

PAYLOAD = "canary-payload-7f3a"
TOKEN = "canary-token-91bc"


DEFECT = """
from worker.aws.table import Table

begin_page = Table.begin_page

def defective(self, room, shard, after=""):
    return room.no_such_attribute if room == "broken" else begin_page(self, room, shard, after)

Table.begin_page = defective
"""
"""A programming error, to provoke a traceback. Python runs it, as sitecustomize, before the worker's own program."""


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_the_log_names_broadcasts_and_holds_no_payload_token_or_credential(
    sqs: Any,
    dynamodb: Any,
    table: str,
    queues: Queues,
    endpoint: ConnectionsEndpoint,
    launch: Launch,
    aws: dict[str, str],
    log_format: str,
    tmp_path: Path,
) -> None:
    """In every kind of failure: poison, rejected and missed deliveries, a dead endpoint, damage, a traceback."""
    (tmp_path / "sitecustomize.py").write_text(DEFECT)
    everyone = connection_ids(40)
    rejected = set(everyone[:3])
    write_members(dynamodb, table, "lobby", everyone)
    worker = launch(
        GATECAST_LOG_FORMAT=log_format,
        GATECAST_LOG_LEVEL="debug",
        PYTHONPATH=f"{tmp_path}:{CHECKOUT}",
        AWS_SESSION_TOKEN=TOKEN,
    )
    await worker.ready()
    publisher = Publisher(sqs, queues.url)

    endpoint.respond = lambda connection_id, _nth: 403 if connection_id in rejected else 200
    publisher.publish(Broadcast(id="missed-1", room="lobby", data=PAYLOAD))
    sqs.send_message(QueueUrl=queues.url, MessageBody=json.dumps({"v": 1, "id": "p", "data": PAYLOAD}))
    sqs.send_message(QueueUrl=queues.url, MessageBody=f'{{"v": {PAYLOAD}')
    publisher.publish(Broadcast(id="late-1", room="lobby", data=PAYLOAD, expires_at_ms=MIN_TIME_MS))
    await eventually(lambda: "missed-1" in worker.log.read_text() and "late-1" in worker.log.read_text())
    key = {"pk": {"S": "settings#lobby"}, "sk": {"S": "room"}}
    dynamodb.put_item(TableName=table, Item={**key, "shards": {"S": PAYLOAD}})
    write_members(dynamodb, table, "broken", everyone)
    publisher.publish(Broadcast(id="broken-1", room="broken", data=PAYLOAD))
    await eventually(lambda: "broadcast.failed" in worker.log.read_text())
    assert "no_such_attribute" in worker.log.read_text(), "the traceback"
    endpoint.respond = lambda _id, _nth: 503
    endpoint.reference_status = 503
    publisher.publish(Broadcast(id="held-1", room="lobby", data=PAYLOAD))
    await eventually(lambda: "dependency.failing" in worker.log.read_text())
    worker.terminate()
    assert await worker.ended(seconds=40) == 0

    text = worker.log.read_text()
    assert not {secret for secret in (PAYLOAD, TOKEN, aws["AWS_SECRET_ACCESS_KEY"]) if secret in text}
    if log_format == "json":
        events = lines_of(worker.log)
        assert all(event["event"] and event["level"] and event["timestamp"] for event in events)
        about_broadcasts = [event for event in events if event["event"].startswith(("broadcast.", "lease."))]
        poison = [event for event in about_broadcasts if event["event"] == "broadcast.poison"]
        assert len(poison) == 2
        assert all(event.get("id") for event in about_broadcasts if event not in poison)
        completed = next(event for event in events if event["event"] == "broadcast.completed")
        assert completed["id"] == "missed-1"
        assert completed["delivered"] == len(everyone) - len(rejected)
        assert completed["rejected"] == len(rejected)
        assert completed["seconds"] >= 0


async def test_a_failing_dependency_is_logged_once_and_again_on_recovery(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    write_members(dynamodb, table, "lobby", connection_ids(60))
    endpoint.respond = lambda _id, _nth: 403
    endpoint.reference_status = 403
    worker = launch()
    await worker.ready()
    Publisher(sqs, queues.url).publish(Broadcast(id="held", room="lobby", data="x"))
    await eventually(lambda: worker.events("dependency.failing"))
    began = time.monotonic()
    await eventually(lambda: time.monotonic() - began > 4)
    assert len([each for each in worker.events("dependency.failing") if each["component"] == "connections"]) == 1
    assert await worker.metric('gatecast_dependency_failing{component="connections"}') == 1
    assert await worker.metric("gatecast_ready") == 0

    endpoint.respond = lambda _id, _nth: 200
    endpoint.reference_status = 410
    await eventually(lambda: [each for each in worker.events("dependency.ok") if each.get("failures")], seconds=60)

    assert await worker.metric('gatecast_dependency_failing{component="connections"}') == 0
    assert await worker.metric("gatecast_ready") == 1


async def test_broadcasts_in_progress_are_listed(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    write_members(dynamodb, table, "lobby", connection_ids(400))
    worker = launch(GATECAST_MAX_POSTS_PER_SECOND="50")
    await worker.ready()
    assert json.loads((await worker.get("/broadcasts"))[1]) == {"total": 0, "broadcasts": []}
    Publisher(sqs, queues.url).publish(Broadcast(id="long", room="lobby", data="x"))
    await eventually(lambda: len(endpoint.delivered) > 20)

    shown = json.loads((await worker.get("/broadcasts"))[1])

    assert shown["total"] == 1
    [broadcast] = shown["broadcasts"]
    assert broadcast["id"] == "long"
    assert broadcast["target"] == "room"
    assert broadcast["all_read"] is True
    assert broadcast["age_seconds"] >= broadcast["running_seconds"] > 0
    known = broadcast["delivered"] + broadcast["in_flight"] + broadcast["waiting"] + broadcast["read_ahead"]
    assert broadcast["delivered"] > 0
    assert known == 400
    assert await worker.metric("gatecast_broadcasts_in_progress") == 1
    assert await worker.metric("gatecast_oldest_broadcast_age_seconds") > 0
    assert await worker.metric("gatecast_post_rate_ceiling") == 50
    assert await worker.metric('gatecast_queue_messages{queue="main",state="visible"}') == 0


async def test_service_calls_are_counted(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    everyone = connection_ids(5)
    write_members(dynamodb, table, "lobby", everyone)
    endpoint.respond = lambda connection_id, _nth: 410 if connection_id == everyone[0] else 200
    worker = launch()
    await worker.ready()
    Publisher(sqs, queues.url).publish(Broadcast(id="one", room="lobby", data="x"))
    await eventually(lambda: worker.events("broadcast.completed"))

    async def calls(api: str, operation: str) -> float:
        return await worker.metric(
            f'gatecast_service_call_duration_seconds_count{{api="{api}",operation="{operation}"}}'
        )

    sqs_calls = ("ReceiveMessage", "DeleteMessageBatch", "GetQueueAttributes")
    table_calls = ("Query", "BatchExecuteStatement", "BatchGetItem", "BatchWriteItem")
    expected = [("sqs", operation) for operation in sqs_calls] + [("dynamodb", operation) for operation in table_calls]
    for api, operation in expected:

        async def counted(api: str = api, operation: str = operation) -> bool:
            return await calls(api, operation) >= 1

        await eventually(counted)
    assert await worker.metric('gatecast_service_call_errors_total{api="dynamodb",operation="Query"}') == 0

    async def reaped() -> bool:
        return await worker.metric("gatecast_memberships_reaped_total") == 1

    await eventually(reaped)
