"""Two workers that append to one room at the same time, on DynamoDB (ministack): dense offsets, one per broadcast."""

import asyncio
import random
import time
from typing import Any

import pytest

from gatecast import Broadcast
from gatecast import table as keys
from tests.pipeline_doubles import lease
from worker.aws.json_service import JsonService
from worker.aws.progress import Progress
from worker.aws.stream import Stream
from worker.decisions.claims import Claimant
from worker.decisions.history import Conflict, NotAppended
from worker.observe.damaged_items import DamagedItems
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.history import History
from worker.ports import Append, Claim, NoResponse

MESSAGES = 120
PUBLISHED_AT_MS = 1_800_000_000_000


class ForgetfulStream(Stream):
    """Loses some responses, and sends some transactions again under another token, as if DynamoDB had forgotten it."""

    losses = 0

    async def append(self, request: Append) -> Conflict | None:
        result = await super().append(request)
        if random.random() < self.losses / 10:
            raise NoResponse("lost")
        if random.random() < self.losses / 10:
            return await super().append(Append(request.room, request.head, request.entries, f"{request.token[:30]}-2"))
        return result


class Writer:
    """A worker's history, and the claims it makes."""

    def __init__(self, service: JsonService, table: str, losses: int) -> None:
        health = Health()
        self.metrics = Metrics(health)
        stream = ForgetfulStream(service, table)
        stream.losses = losses
        self.progress = Progress(service, table)
        self.history = History(
            stream,
            health=health,
            metrics=self.metrics,
            damaged=DamagedItems({}),
            clock=time.monotonic,
            wall_clock=time.time,
        )

    async def claim(self, number: int, receive_count: int = 1) -> Claim:
        claimant = Claimant(f"m{number}", receive_count, f"m{number}/{receive_count}", 0)
        claim = await self.progress.claim(broadcast(number), claimant)
        assert isinstance(claim, Claim)
        return claim

    async def append(self, number: int, claim: Claim) -> int | NotAppended:
        """Append a broadcast within half a second, unless it has an offset."""
        await asyncio.sleep(random.random() / 2)
        if claim.offset is not None:
            return claim.offset
        return await self.history.append(broadcast(number), claim, lease(), order=number, history_seconds=60)

    async def write(self, number: int, receive_count: int = 1) -> int | NotAppended:
        await asyncio.sleep(random.random() / 2)
        return await self.append(number, await self.claim(number, receive_count))


def broadcast(number: int) -> Broadcast:
    return Broadcast(id=f"b{number:03}", room="room", data="x", published_at_ms=PUBLISHED_AT_MS)


@pytest.fixture
def written(dynamodb: Any, table: str) -> Any:
    """A function that returns the ids of the room's messages by offset, read consistently."""

    def read() -> dict[int, str]:
        values = {":pk": {"S": keys.stream_pk("room")}, ":prefix": {"S": keys.ENTRY_PREFIX}}
        pages = dynamodb.get_paginator("query").paginate(
            TableName=table,
            KeyConditionExpression="pk = :pk AND begins_with(sk, :prefix)",
            ExpressionAttributeValues=values,
            ConsistentRead=True,
        )
        items = [item for page in pages for item in page["Items"]]
        return {int(item["sk"]["S"].removeprefix(keys.ENTRY_PREFIX)): item["id"]["S"] for item in items}

    return read


@pytest.mark.parametrize("losses", [0, 2])
async def test_two_writers_leave_dense_offsets_one_per_broadcast(
    dynamodb_service: JsonService, dynamodb: Any, table: str, written: Any, losses: int
) -> None:
    writers = [Writer(dynamodb_service, table, losses) for _ in range(2)]
    found = await asyncio.gather(*(writers[number % 2].write(number) for number in range(MESSAGES)))
    history = written()
    assert history == {offset: f"b{number:03}" for number, offset in enumerate(found)}
    assert sorted(history) == list(range(min(history), min(history) + MESSAGES))
    head = dynamodb.get_item(TableName=table, Key=keys.key("stream#room", "head"), ConsistentRead=True)["Item"]
    assert keys.offset_of_head(head) == max(history)
    assert sum(writer.metrics.history_messages["appended"] for writer in writers) == MESSAGES


async def test_broadcasts_that_are_taken_over_meanwhile_keep_the_offset_that_they_got(
    dynamodb_service: JsonService, table: str, written: Any
) -> None:
    """Every broadcast is received by both writers: the second one takes over while the first one appends."""
    first, second = (Writer(dynamodb_service, table, 1) for _ in range(2))
    claims = await asyncio.gather(*map(first.claim, range(MESSAGES)))
    zombies = [asyncio.create_task(first.append(number, claim)) for number, claim in enumerate(claims)]
    offsets = await asyncio.gather(*(second.write(number, receive_count=2) for number in range(MESSAGES)))
    history = written()
    assert history == {offset: f"b{number:03}" for number, offset in enumerate(offsets)}
    assert sorted(history) == list(range(min(history), min(history) + MESSAGES))
    for offset, zombie in zip(offsets, await asyncio.gather(*zombies), strict=True):
        assert zombie in (offset, NotAppended.TAKEN_OVER)
