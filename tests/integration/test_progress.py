"""Claims and checkpoints as DynamoDB keeps them, and members whose numbers somebody else wrote."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from gatecast import Broadcast
from worker.aws.json_service import JsonService
from worker.aws.progress import DUPLICATE_SECONDS, Progress
from worker.aws.table import Table
from worker.checkpoint import Checkpoint
from worker.fanout import Member
from worker.http.signing import Credentials
from worker.metrics import ServiceCalls
from worker.ports import Claim, Claimant, NotClaimed

BROADCAST = Broadcast(id="one", room="room", data="x")
HALFWAY = Checkpoint("c5=", (("c1=", 7), ("c2=", None)))
KEY = {"pk": {"S": "broadcast#room one"}, "sk": {"S": "part#"}}


class Clock:
    """Seconds since the epoch."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def service(aws: dict[str, str]) -> AsyncIterator[JsonService]:
    service = JsonService(
        aws["AWS_ENDPOINT_URL_DYNAMODB"],
        region=aws["AWS_REGION"],
        service="dynamodb",
        prefix="DynamoDB_20120810",
        json_version="1.0",
        connections=2,
        tls=None,
        calls=ServiceCalls(),
    )
    service.use(Credentials(aws["AWS_ACCESS_KEY_ID"], aws["AWS_SECRET_ACCESS_KEY"]))
    running = asyncio.create_task(service.run())
    yield service
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


@pytest.fixture
def progress(service: JsonService, table: str, clock: Clock) -> Progress:
    return Progress(service, table, wall_clock=clock)


async def claimed(progress: Progress, message: str, receives: int, *, waited: int = 0) -> Claim:
    claim = await progress.claim(BROADCAST, Claimant(message, receives, f"{message}/{receives}", waited))
    assert isinstance(claim, Claim)
    return claim


async def test_the_same_message_takes_over_where_it_was(progress: Progress) -> None:
    first = await claimed(progress, "m", 1)
    assert (first.start, first.fresh_receives) == (Checkpoint(), 1)
    assert await progress.write_checkpoint(first, HALFWAY, progress=False)
    second = await claimed(progress, "m", 2)
    assert (second.start, second.fresh_receives) == (HALFWAY, 2)
    assert not await progress.write_checkpoint(first, Checkpoint("c9="), progress=True), "it has been taken over"
    assert await progress.write_checkpoint(second, HALFWAY, progress=True)
    assert (await claimed(progress, "m", 3)).fresh_receives == 1
    assert await progress.claim(BROADCAST, Claimant("m", 2, "late", 0)) == NotClaimed(duplicate=False)


@pytest.mark.parametrize(("waited", "counted"), [(0, 5), (4, 1)])
async def test_receives_before_the_first_claim_count_unless_they_waited_for_others(
    progress: Progress, waited: int, counted: int
) -> None:
    assert (await claimed(progress, "m", 5, waited=waited)).fresh_receives == counted
    assert (await claimed(progress, "m", 6, waited=waited)).fresh_receives == counted + 1


async def test_another_message_is_a_duplicate_for_a_day(progress: Progress, clock: Clock) -> None:
    assert await progress.write_checkpoint(await claimed(progress, "m", 1), HALFWAY, progress=True)
    assert await progress.claim(BROADCAST, Claimant("other", 1, "o", 0)) == NotClaimed(duplicate=True)
    clock.now += DUPLICATE_SECONDS + 1
    afresh = await claimed(progress, "other", 1)
    assert (afresh.start, afresh.fresh_receives) == (Checkpoint(), 1)


async def test_an_expired_item_counts_as_absent(progress: Progress, clock: Clock, dynamodb: Any, table: str) -> None:
    assert await progress.write_checkpoint(await claimed(progress, "m", 1), HALFWAY, progress=True)
    dynamodb.update_item(
        TableName=table,
        Key=KEY,
        UpdateExpression="SET expires_at = :past",
        ExpressionAttributeValues={":past": {"N": str(int(clock.now) - 1)}},
    )
    assert (await claimed(progress, "other", 1)).start == Checkpoint()


async def test_a_release_may_be_repeated_and_anybody_goes_on_from_there(progress: Progress) -> None:
    claim = await claimed(progress, "m", 1)
    assert await progress.write_checkpoint(claim, HALFWAY, progress=True)
    assert await progress.release(claim)
    assert await progress.release(claim), "as if its first answer had been lost"
    assert (await claimed(progress, "letter", 1)).start == HALFWAY
    assert not await progress.release(claim), "it has been taken over"


async def test_a_release_makes_no_item(progress: Progress, dynamodb: Any, table: str) -> None:
    claim = await claimed(progress, "m", 1)
    dynamodb.delete_item(TableName=table, Key=KEY)
    assert not await progress.release(claim)
    assert "Item" not in dynamodb.get_item(TableName=table, Key=KEY)


async def test_numbers_need_not_be_whole(service: JsonService, dynamodb: Any, table: str, clock: Clock) -> None:
    numbers = {"a=": (clock.now + 0.5, 1234.5), "b=": (clock.now - 0.5, 1234.5), "c=": (2e9, 1e3)}
    for connection_id, (expires_at, joined_at_ms) in numbers.items():
        dynamodb.put_item(
            TableName=table,
            Item={
                "pk": {"S": "room#room#0"},
                "sk": {"S": connection_id},
                "expires_at": {"N": repr(expires_at)},
                "joined_at_ms": {"N": repr(joined_at_ms)},
            },
        )
    page = await Table(service, table, wall_clock=clock).page("room", 0, "")
    assert page.members == [Member("a=", 1234), Member("c=", 1000)]
