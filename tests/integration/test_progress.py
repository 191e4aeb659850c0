"""Claims and checkpoints as DynamoDB keeps them, and members whose numbers somebody else wrote."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import product
from typing import Any

import msgspec
import pytest

from gatecast import Broadcast
from worker.aws.json_service import JsonService
from worker.aws.progress import Progress
from worker.aws.table import Table
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import (
    ABANDONED_SECONDS,
    DUPLICATE_SECONDS,
    Claimant,
    NotClaimed,
    Resumption,
    Standing,
    judge,
)
from worker.observe.metrics import ServiceCalls
from worker.ports import Claim, DamagedProgress, Member
from worker.transport.signing import Credentials

BROADCAST = Broadcast(id="one", room="room", data="x")
HALFWAY = Checkpoint("c5=", (("c1=", 7), ("c2=", None)))
TWICE = msgspec.msgpack.encode([("c1=", None), ("c1=", 7)])
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
    assert await progress.claim(BROADCAST, Claimant("m", 2, "late", 0)) is NotClaimed.SUPERSEDED


@pytest.mark.parametrize(("waited", "counted"), [(0, 5), (4, 1)])
async def test_receives_before_the_first_claim_count_unless_they_waited_for_others(
    progress: Progress, waited: int, counted: int
) -> None:
    assert (await claimed(progress, "m", 5, waited=waited)).fresh_receives == counted
    assert (await claimed(progress, "m", 6, waited=waited)).fresh_receives == counted + 1


async def test_what_is_completed_is_a_duplicate_for_a_day(progress: Progress, clock: Clock) -> None:
    claim = await claimed(progress, "m", 1)
    assert await progress.complete([claim]) == []
    for claimant in (Claimant("m", 1, "m/1", 0), Claimant("m", 7, "m/7", 0), Claimant("other", 1, "o", 0)):
        assert await progress.claim(BROADCAST, claimant) is NotClaimed.COMPLETED
    assert not await progress.write_checkpoint(claim, HALFWAY, progress=True), "it is completed"
    clock.now += DUPLICATE_SECONDS + 1
    assert await progress.claim(BROADCAST, Claimant("m", 8, "m/8", 0)) is NotClaimed.COMPLETED
    afresh = await claimed(progress, "other", 1)
    assert (afresh.start, afresh.fresh_receives) == (Checkpoint(), 1)
    assert await progress.write_checkpoint(afresh, HALFWAY, progress=True)


async def test_another_message_waits_while_the_first_is_in_progress_and_goes_on_when_it_is_abandoned(
    progress: Progress, clock: Clock
) -> None:
    first = await claimed(progress, "m", 3)
    clock.now += ABANDONED_SECONDS - 1
    assert await progress.claim(BROADCAST, Claimant("moved", 1, "x", 0)) is NotClaimed.HELD
    assert await progress.write_checkpoint(first, HALFWAY, progress=True)
    clock.now += ABANDONED_SECONDS - 1
    assert await progress.claim(BROADCAST, Claimant("moved", 2, "x", 0)) is NotClaimed.HELD
    clock.now += 1
    second = await claimed(progress, "moved", 3)
    assert (second.start, second.fresh_receives) == (HALFWAY, 1), "until then it only waited"
    assert not await progress.write_checkpoint(first, Checkpoint("c9="), progress=True), "it has been taken over"
    assert await progress.claim(BROADCAST, Claimant("m", 4, "late", 0)) is NotClaimed.HELD


async def test_what_nobody_finished_within_a_day_begins_anew(progress: Progress, clock: Clock) -> None:
    assert await progress.write_checkpoint(await claimed(progress, "m", 1), HALFWAY, progress=True)
    clock.now += DUPLICATE_SECONDS + 1
    assert (await claimed(progress, "other", 1)).start == Checkpoint()


async def test_many_are_completed_in_one_call(progress: Progress, service: JsonService) -> None:
    claims = []
    for number in range(25):
        claim = await progress.claim(Broadcast(id=f"b{number}", room="room", data="x"), Claimant("m", 1, "m/1", 0))
        assert isinstance(claim, Claim)
        claims.append(claim)
    assert await progress.complete([*claims[:24], claims[0]]) == []
    for number in range(25):
        again = await progress.claim(Broadcast(id=f"b{number}", room="room", data="x"), Claimant("o", 1, "o/1", 0))
        assert again is (NotClaimed.COMPLETED if number < 24 else NotClaimed.HELD)
    del service


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pending", {"B": b"\xff\xff"}),
        ("pending", {"S": "x"}),
        ("cursor", {"N": "1"}),
        ("claimed_at", {"S": "yesterday"}),
        ("progressed_at_receive", {"N": "1.5"}),
        ("receives", {"S": "2"}),
        ("cursor", {"S": "c" * 1_025}),
        ("pending", {"B": TWICE}),
        ("completed_at", {"S": "never"}),
        ("message_id", {"N": "5"}),
    ],
)
async def test_a_damaged_item_is_said_to_be_damaged_and_forgotten_on_demand(
    progress: Progress, dynamodb: Any, table: str, name: str, value: Any
) -> None:
    assert await progress.write_checkpoint(await claimed(progress, "m", 1), HALFWAY, progress=True)
    dynamodb.update_item(
        TableName=table,
        Key=KEY,
        UpdateExpression="SET #name = :value",
        ExpressionAttributeNames={"#name": name},
        ExpressionAttributeValues={":value": value},
    )
    message = "other" if name == "claimed_at" else "m"
    for receives in (2, 3):
        with pytest.raises(DamagedProgress, match="broadcast#room one"):
            await progress.claim(BROADCAST, Claimant(message, receives, f"{message}/{receives}", 0))
    await progress.forget(BROADCAST)
    assert (await claimed(progress, message, 4)).start == Checkpoint()


@pytest.mark.parametrize("cursor", ["four", "-1", "5", "1e0", "\u0663", "9" * 40])
async def test_a_cursor_that_no_broadcast_to_connections_can_have(progress: Progress, cursor: str) -> None:
    broadcast = Broadcast(id="one", connections=("a", "b", "c", "b"), data="x")
    for receives, checkpoint in ((1, Checkpoint("3")), (2, Checkpoint(cursor))):
        claim = await progress.claim(broadcast, Claimant("m", receives, f"m/{receives}", 0))
        assert isinstance(claim, Claim)
        assert await progress.write_checkpoint(claim, checkpoint, progress=True)
    with pytest.raises(DamagedProgress):
        await progress.claim(broadcast, Claimant("m", 3, "m/3", 0))


CLAIMANT = Claimant("m", 2, "m/2", 0)


def standings(now: float) -> Iterator[Standing]:
    """All that an item can say, as far as it matters to this claimant."""
    for age in (0, ABANDONED_SECONDS - 1, ABANDONED_SECONDS, DUPLICATE_SECONDS - 1, DUPLICATE_SECONDS):
        for message, completed in product((None, "m", "other"), (False, True)):
            for receives, claim_id in product((1, 2, 3), ("m/2", "else")):
                yield Standing(message, receives, claim_id, now - age, completed)


async def test_what_is_claimed_is_what_the_rule_says(
    progress: Progress, clock: Clock, dynamodb: Any, table: str
) -> None:
    for standing in standings(clock.now):
        numbers = {"claimed_at": standing.seen_at - 1, "renewed_at": standing.seen_at, "expires_at": clock.now + 9}
        if standing.completed:
            numbers["completed_at"] = standing.seen_at
        item = {name: {"N": str(int(number))} for name, number in numbers.items()}
        if standing.message_id is not None:
            item["message_id"] = {"S": standing.message_id}
            item |= {"receives": {"N": str(standing.receives)}, "claimed_by": {"S": standing.claim_id}}
        pending = {"B": HALFWAY.encode_pending()}
        dynamodb.put_item(TableName=table, Item={**KEY, **item, "cursor": {"S": HALFWAY.cursor}, "pending": pending})
        found = await progress.claim(BROADCAST, CLAIMANT)
        verdict = judge(standing, CLAIMANT, clock.now)
        if isinstance(verdict, NotClaimed):
            assert found is verdict, standing
        else:
            start = HALFWAY if verdict is Resumption.FROM_CHECKPOINT else Checkpoint()
            assert isinstance(found, Claim), standing
            assert found.start == start, standing
            assert await progress.write_checkpoint(found, HALFWAY, progress=True)


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
    page = await Table(service, table, wall_clock=clock).begin_page("room", 0)
    assert page.members == [Member("a=", 1234), Member("c=", 1000)]
