"""What broadcasts with receipts store: the same tests in memory, and in DynamoDB with ministack."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gatecast import Broadcast
from gatecast import table as keys
from tests.memory_stores import MemoryProgress, MemoryReceipts
from worker.aws.json_service import JsonService
from worker.aws.progress import Progress
from worker.aws.receipts import SharedReceipts
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import Claimant
from worker.decisions.receipts import ReceiptState, SharedReceipt, Sums, end, expect, forget
from worker.ports import Claim, ProgressStore, ReceiptStore

NOW = 1_800_000_000.0
BROADCAST = Broadcast(id="one", room="room", data="x", receipt=True)
KEY = keys.key(keys.progress_pk("room", "one"), keys.RECEIPT_SK)
SUMS = Sums(5, 1, 0, 2, 3, 14, 5)
STATE = ReceiptState(SUMS, revision=1, begun_by="m/1", handed_off=("c2=",))
HALFWAY = Checkpoint("c5=", (("c1=", 7), ("c2=", None)), ("c2=",), STATE)


@pytest.fixture(params=["memory", "aws"])
def receipts(request: pytest.FixtureRequest) -> ReceiptStore:
    if request.param == "memory":
        return MemoryReceipts({})
    service, table = request.getfixturevalue("dynamodb_service"), request.getfixturevalue("table")
    return SharedReceipts(service, table, wall_clock=lambda: NOW)


@pytest.fixture(params=["memory", "aws"])
def progress(request: pytest.FixtureRequest) -> ProgressStore:
    if request.param == "memory":
        return MemoryProgress({}, wall_clock=lambda: NOW)
    service, table = request.getfixturevalue("dynamodb_service"), request.getfixturevalue("table")
    return Progress(service, table, wall_clock=lambda: NOW)


async def claimed(progress: ProgressStore, receive_count: int) -> Claim:
    claim = await progress.claim(BROADCAST, Claimant("m", receive_count, f"m/{receive_count}", 0))
    assert isinstance(claim, Claim)
    return claim


async def test_parts_add_up_once_each(receipts: ReceiptStore) -> None:
    await receipts.expect(KEY, "a", ["itself", "s0", "s1"])
    await receipts.expect(KEY, "a", ["itself", "s0"])
    first = await receipts.end(KEY, "s0", SUMS, 700)
    assert first == SharedReceipt("a", frozenset({"itself", "s0", "s1"}), frozenset({"s0"}), SUMS, 700)
    assert await receipts.end(KEY, "s0", SUMS, 900) == first
    await receipts.expect(KEY, "", ["r-1"])
    for part in ("itself", "s1"):
        found = await receipts.end(KEY, part, Sums(), 0)
        assert found is not None
        assert not found.is_complete
    last = await receipts.end(KEY, "r-1", SUMS, 800)
    assert last is not None
    assert last.is_complete
    assert (last.sums, last.milliseconds) == (SUMS.plus(SUMS), 800)


async def test_a_part_that_nobody_expects_adds_nothing(receipts: ReceiptStore) -> None:
    await receipts.expect(KEY, "", ["r-1"])
    await receipts.forget(KEY, "r-1")
    assert await receipts.end(KEY, "r-1", SUMS, 1) is None
    await receipts.expect(KEY, "a", ["itself", "s0"])
    assert await receipts.end(KEY, "r-1", SUMS, 1) is None
    await receipts.forget(KEY, "s0")
    complete = await receipts.end(KEY, "itself", Sums(), 0)
    assert complete == SharedReceipt("a", frozenset({"itself"}), frozenset({"itself"}))
    assert complete is not None
    assert complete.is_complete


async def test_another_broadcast_with_the_same_id_begins_another_receipt(receipts: ReceiptStore) -> None:
    await receipts.expect(KEY, "a", ["itself", "s0"])
    await receipts.end(KEY, "s0", SUMS, 1)
    await receipts.expect(KEY, "b", ["itself", "s0"])
    assert await receipts.end(KEY, "itself", Sums(), 0) == SharedReceipt(
        "b", frozenset({"itself", "s0"}), frozenset({"itself"})
    )


PARTS = st.sampled_from(["itself", "s0", "r-1"])
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("expect"), st.sampled_from(["a", "b", ""]), st.lists(PARTS, min_size=1, unique=True)),
        st.tuples(st.just("forget"), st.sampled_from(["s0", "r-1"])),
        st.tuples(st.just("end"), PARTS, st.integers(0, 3), st.integers(0, 2)),
    ),
    max_size=10,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=CALLS)
async def test_dynamodb_does_what_the_decisions_say(
    dynamodb_service: JsonService, dynamodb: Any, table: str, calls: list[tuple[Any, ...]]
) -> None:
    dynamodb.delete_item(TableName=table, Key=KEY)
    store, known = SharedReceipts(dynamodb_service, table, wall_clock=lambda: NOW), None
    for call in calls:
        match call:
            case "expect", str(begun_by), list(parts):
                # the broadcast itself, which is the only one that begins a receipt, is always one of the parts
                parts = sorted({*parts, "itself"}) if begun_by else parts
                await store.expect(KEY, begun_by, parts)
                known = expect(known, begun_by, frozenset(parts))
            case "forget", str(part):
                await store.forget(KEY, part)
                known = forget(known, part)
            case "end", str(part), int(members), int(milliseconds):
                ended = end(known, part, Sums(delivered=members), milliseconds)
                assert await store.end(KEY, part, Sums(delivered=members), milliseconds) == ended
                known = ended or known


@pytest.mark.parametrize(
    "damaged", [{"expected": {"S": "x"}}, {"ended": {"N": "1"}}, {"begun_by": {"N": "1"}}, {"delivered": {"S": "x"}}]
)
async def test_a_damaged_shared_receipt_makes_no_call_fail(
    dynamodb_service: JsonService, dynamodb: Any, table: str, damaged: dict[str, Any]
) -> None:
    store = SharedReceipts(dynamodb_service, table, wall_clock=lambda: NOW)
    await store.expect(KEY, "a", ["itself", "s0"])
    found = dynamodb.get_item(TableName=table, Key=KEY)["Item"]
    dynamodb.put_item(TableName=table, Item={**found, **damaged})
    await store.end(KEY, "s0", SUMS, 1)
    await store.expect(KEY, "", ["r-1"])
    await store.forget(KEY, "r-1")
    assert await store.end(KEY, "itself", SUMS, 1) is None


async def test_a_shared_receipt_expires_with_the_progress_items(
    dynamodb_service: JsonService, dynamodb: Any, table: str
) -> None:
    await SharedReceipts(dynamodb_service, table, wall_clock=lambda: NOW).expect(KEY, "a", ["itself"])
    item = dynamodb.get_item(TableName=table, Key=KEY)["Item"]
    assert int(item["expires_at"]["N"]) == NOW + 15 * 24 * 3600


async def test_what_was_counted_is_resumed_with_the_checkpoint(progress: ProgressStore) -> None:
    assert await progress.write_checkpoint(await claimed(progress, 1), HALFWAY, made_progress=True)
    assert (await claimed(progress, 2)).start == HALFWAY


async def test_a_write_that_arrives_after_a_later_one_is_rejected(progress: ProgressStore) -> None:
    first = await claimed(progress, 1)
    later = replace(HALFWAY, receipt=replace(STATE, revision=2, handed_off=()))
    assert await progress.write_checkpoint(first, HALFWAY, made_progress=True)
    assert await progress.write_checkpoint(first, later, made_progress=True)
    assert await progress.write_checkpoint(first, later, made_progress=True), "it may be repeated"
    assert not await progress.write_checkpoint(first, HALFWAY, made_progress=True)
    second = await claimed(progress, 2)
    assert second.start == later
    assert await progress.write_checkpoint(second, HALFWAY, made_progress=True), "each claim numbers its own writes"


async def test_counts_that_are_older_than_the_checkpoint_are_not_resumed(progress: ProgressStore) -> None:
    """A worker of an earlier version writes the checkpoint and leaves the counts as they are."""
    first = await claimed(progress, 1)
    assert await progress.write_checkpoint(first, HALFWAY, made_progress=True)
    assert await progress.write_checkpoint(first, Checkpoint("c9="), made_progress=True)
    assert (await claimed(progress, 2)).start == Checkpoint("c9=")


async def test_a_broadcast_without_a_receipt_stores_nothing_more(
    dynamodb_service: JsonService, dynamodb: Any, table: str
) -> None:
    progress = Progress(dynamodb_service, table, wall_clock=lambda: NOW)
    claim = await claimed(progress, 1)
    assert await progress.write_checkpoint(claim, replace(HALFWAY, receipt=None), made_progress=True)
    item = dynamodb.get_item(TableName=table, Key=claim.key)["Item"]
    assert not [name for name in item if name.startswith("receipt_") or name == "receipt"]
    assert await progress.write_checkpoint(claim, HALFWAY, made_progress=True)
    item = dynamodb.get_item(TableName=table, Key=claim.key)["Item"]
    assert len(item["receipt"]["B"]) < 40
