"""Progress and membership items in DynamoDB that no worker or route has written in this form."""

import asyncio
from typing import Any

import msgspec
import pytest

from gatecast import Broadcast
from worker.aws.json_service import JsonService
from worker.aws.progress import Progress
from worker.aws.table import Table
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import Claimant
from worker.ports import Claim, DamagedProgress, Member

NOW = 1_800_000_000.0
BROADCAST = Broadcast(id="one", room="room", data="x")
HALFWAY = Checkpoint("c5=", (("c1=", 7), ("c2=", None)))
TWICE = msgspec.msgpack.encode([("c1=", None), ("c1=", 7)])
KEY = {"pk": {"S": "broadcast#room one"}, "sk": {"S": "part#"}}


@pytest.fixture
def progress(dynamodb_service: JsonService, table: str) -> Progress:
    return Progress(dynamodb_service, table, wall_clock=lambda: NOW)


async def claimed(progress: Progress, message: str, receive_count: int) -> Claim:
    claim = await progress.claim(BROADCAST, Claimant(message, receive_count, f"{message}/{receive_count}", 0))
    assert isinstance(claim, Claim)
    return claim


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
        ("pending_v2", {"B": b"\xff\xff"}),
        ("pending_v2", {"S": "c1="}),
        ("pending_v2", {"B": msgspec.msgpack.encode(["c1=", "c1="])}),
        ("completed_at", {"S": "never"}),
        ("message_id", {"N": "5"}),
    ],
)
async def test_an_item_damaged_in_any_attribute_is_reported_until_it_is_reset(
    progress: Progress, dynamodb: Any, table: str, name: str, value: Any
) -> None:
    assert await progress.write_checkpoint(await claimed(progress, "m", 1), HALFWAY, made_progress=True)
    dynamodb.update_item(
        TableName=table,
        Key=KEY,
        UpdateExpression="SET #name = :value",
        ExpressionAttributeNames={"#name": name},
        ExpressionAttributeValues={":value": value},
    )
    message = "other" if name == "claimed_at" else "m"
    for receive_count in (2, 3):
        with pytest.raises(DamagedProgress, match="broadcast#room one"):
            await progress.claim(BROADCAST, Claimant(message, receive_count, f"{message}/{receive_count}", 0))
    await progress.reset(BROADCAST)
    assert (await claimed(progress, message, 4)).start == Checkpoint()


@pytest.mark.parametrize("cursor", ["four", "-1", "5", "1e0", "\u0663", "9" * 40])
async def test_an_impossible_cursor_of_a_broadcast_to_connections_is_damage(progress: Progress, cursor: str) -> None:
    broadcast = Broadcast(id="one", connections=("a", "b", "c", "b"), data="x")
    for receive_count, checkpoint in ((1, Checkpoint("3")), (2, Checkpoint(cursor))):
        claim = await progress.claim(broadcast, Claimant("m", receive_count, f"m/{receive_count}", 0))
        assert isinstance(claim, Claim)
        assert await progress.write_checkpoint(claim, checkpoint, made_progress=True)
    with pytest.raises(DamagedProgress):
        await progress.claim(broadcast, Claimant("m", 3, "m/3", 0))


async def test_claims_of_the_same_broadcast_may_share_a_call(progress: Progress) -> None:
    """DynamoDB rejects a whole batch of statements if two of them are about one item (ministack does not)."""
    other = Broadcast(id="other", room="room", data="x")
    claims = await asyncio.gather(
        *(
            progress.claim(broadcast, Claimant(message, 1, f"{message}/1", 0))
            for broadcast, message in ((BROADCAST, "m1"), (BROADCAST, "m2"), (other, "m3"), (BROADCAST, "m4"))
        )
    )
    assert [isinstance(claim, Claim) for claim in claims] == [True, False, True, False]
    completed = [claim for claim in claims if isinstance(claim, Claim)]
    assert await progress.complete([*completed, completed[0]]) == []


async def test_a_release_creates_no_item(progress: Progress, dynamodb: Any, table: str) -> None:
    claim = await claimed(progress, "m", 1)
    dynamodb.delete_item(TableName=table, Key=KEY)
    assert not await progress.release(claim)
    assert "Item" not in dynamodb.get_item(TableName=table, Key=KEY)


async def test_times_of_members_need_not_be_whole_numbers(
    dynamodb_service: JsonService, dynamodb: Any, table: str
) -> None:
    numbers = {"a=": (NOW + 0.5, 1234.5), "b=": (NOW - 0.5, 1234.5), "c=": (2e9, 1e3)}
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
    page = await Table(dynamodb_service, table, wall_clock=lambda: NOW).begin_page("room", 0)
    assert page.members == [Member("a=", 1234), Member("c=", 1000)]


async def test_dialects_of_an_earlier_checkpoint_do_no_harm(progress: Progress, dynamodb: Any, table: str) -> None:
    """They remain while no pending connection uses v2, and after a checkpoint of a worker of an earlier version."""
    claim = await claimed(progress, "m", 1)
    with_v2 = Checkpoint("c5=", (("c1=", 7), ("c2=", None)), ("c1=",))
    assert await progress.write_checkpoint(claim, with_v2, made_progress=True)
    assert await progress.write_checkpoint(claim, Checkpoint("c9=", (("c8=", 7),)), made_progress=True)
    assert "pending_v2" in dynamodb.get_item(TableName=table, Key=KEY)["Item"]
    assert (await claimed(progress, "m", 2)).start == Checkpoint("c9=", (("c8=", 7),))
