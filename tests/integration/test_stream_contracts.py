"""The contract of a `StreamStore`, with the progress items that it changes: in memory, and on DynamoDB (ministack)."""

import asyncio
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from gatecast import Broadcast
from gatecast import table as keys
from gatecast.entries import entry_item
from gatecast.frames import Message
from tests.memory_stores import MemoryProgress, MemoryStream, ProgressItems, TableState
from worker.aws.progress import Progress
from worker.aws.stream import Stream
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import ABANDONED_SECONDS, DUPLICATE_SECONDS, Claimant, NotClaimed
from worker.decisions.history import MAX_SHARED, Conflict, SeenHead
from worker.ports import Append, Claim, DamagedProgress, NewEntry, ProgressStore, StreamStore

HALFWAY = Checkpoint("c5=", (("c1=", 7),))
FIRST = 1_800_000_000_000


class Clock:
    """Seconds since the epoch."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Stores(NamedTuple):
    """Both stores of one table, and functions that get and put its items."""

    stream: StreamStore
    progress: ProgressStore
    get: Callable[[str, str], Any]
    put: Callable[[Any], object]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "aws"])
def stores(request: pytest.FixtureRequest, clock: Clock) -> Stores:
    if request.param == "memory":
        state, items = TableState(), ProgressItems()
        return Stores(MemoryStream(state, items), MemoryProgress(items, wall_clock=clock), state.get, state.put)
    service, dynamodb, table = map(request.getfixturevalue, ("dynamodb_service", "dynamodb", "table"))
    return Stores(
        Stream(service, table),
        Progress(service, table, wall_clock=clock),
        lambda pk, sk: dynamodb.get_item(TableName=table, Key=keys.key(pk, sk), ConsistentRead=True).get("Item"),
        lambda item: dynamodb.put_item(TableName=table, Item=item),
    )


async def claimed(stores: Stores, name: str = "one", receive_count: int = 1, *, message: str = "m") -> Claim:
    claimant = Claimant(message, receive_count, f"{message}/{receive_count}", 0)
    claim = await stores.progress.claim(Broadcast(id=name, room="room", data="x"), claimant)
    assert isinstance(claim, Claim)
    return claim


def item(name: str, offset: int) -> keys.Item:
    message = Message(id=name, offset=offset, published_at_ms=FIRST, data=f"data of {name}")
    return entry_item("room", message, expires_at=1_900_000_000)


def append(head: SeenHead, first: int, *claims: Claim) -> Append:
    entries = []
    for offset, claim in enumerate(claims, start=first):
        name = claim.key["pk"]["S"].partition(" ")[2]
        entries.append(NewEntry(offset, item(name, offset), claim))
    return Append("room", head, entries, uuid.uuid4().hex)


def entry(stores: Stores, offset: int) -> str | None:
    """The id of the message at an offset."""
    found = stores.get(keys.stream_pk("room"), keys.entry_sk(offset))
    return found["id"]["S"] if found else None


async def test_a_room_without_a_head_starts_where_the_first_entry_is(stores: Stores) -> None:
    assert await stores.stream.head("room") == SeenHead(None)
    claims = [await claimed(stores, name) for name in ("one", "two")]
    assert await stores.stream.append(append(SeenHead(None), FIRST, *claims)) is None
    assert await stores.stream.head("room") == SeenHead.at(FIRST + 1)
    assert [entry(stores, FIRST + more) for more in range(3)] == ["one", "two", None]
    assert stores.get(keys.stream_pk("room"), keys.entry_sk(FIRST)) == item("one", FIRST)


async def test_offsets_continue_from_the_head(stores: Stores) -> None:
    assert await stores.stream.append(append(SeenHead(None), 7, await claimed(stores))) is None
    assert await stores.stream.append(append(SeenHead.at(7), 8, await claimed(stores, "two"))) is None
    assert await stores.stream.head("room") == SeenHead.at(8)
    assert await stores.stream.head("other") == SeenHead(None)


@pytest.mark.parametrize("seen", [SeenHead(None), SeenHead.at(6), SeenHead.at(8)])
async def test_a_lost_race_has_no_effect_and_returns_the_head(stores: Stores, seen: SeenHead) -> None:
    assert await stores.stream.append(append(SeenHead(None), 7, await claimed(stores))) is None
    second = await claimed(stores, "two")
    conflict = await stores.stream.append(append(seen, 9, second))
    assert conflict == Conflict(SeenHead.at(7), head_changed=True)
    assert conflict.lost_race
    assert entry(stores, 9) is None
    assert await stores.stream.append(append(SeenHead.at(7), 8, second)) is None


async def test_a_head_that_is_gone_is_a_changed_head(stores: Stores) -> None:
    conflict = await stores.stream.append(append(SeenHead.at(7), 8, await claimed(stores)))
    assert conflict == Conflict(head_changed=True)


async def test_one_transaction_may_hold_49_messages(stores: Stores) -> None:
    claims = [await claimed(stores, f"b{number}") for number in range(MAX_SHARED)]
    assert await stores.stream.append(append(SeenHead(None), 1, *claims)) is None
    assert await stores.stream.head("room") == SeenHead.at(MAX_SHARED)
    assert [(await claimed(stores, f"b{number}", 2)).offset for number in (0, 48)] == [1, 49]


async def test_the_same_transaction_is_executed_once(stores: Stores) -> None:
    request = append(SeenHead(None), 7, await claimed(stores))
    assert await stores.stream.append(request) is None
    assert await stores.stream.append(request) is None, "as if the first response had been lost"
    assert await stores.stream.head("room") == SeenHead.at(7)


async def test_a_repetition_under_another_token_shows_the_offsets_that_are_recorded(stores: Stores) -> None:
    claims = [await claimed(stores), await claimed(stores, "two")]
    assert await stores.stream.append(append(SeenHead(None), 7, *claims)) is None
    conflict = await stores.stream.append(append(SeenHead(None), 7, *claims))
    assert conflict == Conflict(
        SeenHead.at(8), head_changed=True, occupied=frozenset({0, 1}), recorded={0: 7, 1: 8}, taken_over=frozenset()
    )


async def test_a_broadcast_that_was_taken_over_is_named_and_the_others_can_be_appended(stores: Stores) -> None:
    first, second, third = [await claimed(stores, name) for name in ("one", "two", "three")]
    await claimed(stores, "one", 2)
    assert await stores.progress.complete([third]) == []
    conflict = await stores.stream.append(append(SeenHead(None), 7, first, second, third))
    assert conflict == Conflict(taken_over=frozenset({0, 2}))
    assert not conflict.lost_race
    assert await stores.stream.head("room") == SeenHead(None)
    assert await stores.stream.append(append(SeenHead(None), 7, second)) is None
    assert entry(stores, 7) == "two"


async def test_without_a_progress_item_nothing_is_appended(stores: Stores) -> None:
    claim = await claimed(stores)
    await stores.progress.reset(Broadcast(id="one", room="room", data="x"))
    assert await stores.stream.append(append(SeenHead(None), 7, claim)) == Conflict(taken_over=frozenset({0}))
    assert stores.get(claim.key["pk"]["S"], claim.key["sk"]["S"]) is None, "the transaction creates no item"


async def test_an_entry_beyond_the_head_is_kept(stores: Stores) -> None:
    stores.put(item("by hand", 8))
    claims = [await claimed(stores), await claimed(stores, "two")]
    conflict = await stores.stream.append(append(SeenHead(None), 7, *claims))
    assert conflict == Conflict(occupied=frozenset({1}))
    assert entry(stores, 8) == "by hand"
    assert entry(stores, 7) is None


@pytest.mark.parametrize("offset", [None, {"S": "many"}, {"N": "-1"}, {"N": "1" + "0" * 30}, {"BOOL": True}])
async def test_a_room_whose_head_has_no_usable_offset_continues(stores: Stores, offset: Any) -> None:
    stores.put({**keys.key(keys.stream_pk("room"), keys.HEAD_SK), **({"offset": offset} if offset else {})})
    seen = await stores.stream.head("room")
    assert seen == SeenHead(offset)
    assert seen.offset is None
    assert seen.is_damaged is (offset is not None)
    assert await stores.stream.append(append(seen, FIRST, await claimed(stores))) is None
    assert await stores.stream.head("room") == SeenHead.at(FIRST)


async def test_the_worker_that_takes_over_reads_the_offset_back(stores: Stores, clock: Clock) -> None:
    first = await claimed(stores)
    assert first.offset is None
    assert await stores.stream.append(append(SeenHead(None), 7, first)) is None
    assert await claimed(stores) == Claim(first.key, "m", "m/1", 1, Checkpoint(), 1, 7), "the claim may be repeated"
    second = await claimed(stores, "one", 2)
    assert second.offset == 7
    assert await stores.progress.write_checkpoint(second, HALFWAY, made_progress=True)
    clock.now += ABANDONED_SECONDS
    moved = await claimed(stores, message="moved")
    assert (moved.offset, moved.start) == (7, HALFWAY)
    assert await stores.progress.release(moved)
    letter = await claimed(stores, message="letter")
    assert (letter.offset, letter.start) == (7, HALFWAY)


async def test_another_message_a_day_later_is_another_broadcast_without_an_offset(stores: Stores, clock: Clock) -> None:
    first = await claimed(stores)
    assert await stores.stream.append(append(SeenHead(None), 7, first)) is None
    clock.now += DUPLICATE_SECONDS
    second = await claimed(stores, message="other")
    assert second.offset is None
    assert await stores.stream.append(append(SeenHead.at(7), 8, second)) is None
    assert await stores.stream.append(append(SeenHead.at(8), 9, first)) == Conflict(taken_over=frozenset({0}))


async def test_an_item_that_is_reset_keeps_nothing_but_the_offset(stores: Stores) -> None:
    """So that a broadcast whose position is damaged starts from the beginning, but is not appended a second time."""
    first = await claimed(stores)
    assert await stores.stream.append(append(SeenHead(None), 7, first)) is None
    assert await stores.progress.write_checkpoint(first, HALFWAY, made_progress=True)
    await stores.progress.reset(Broadcast(id="one", room="room", data="x", offset=7))
    assert not await stores.progress.write_checkpoint(first, HALFWAY, made_progress=True)
    again = await claimed(stores, message="letter")
    assert (again.offset, again.start, again.receives_without_progress) == (7, Checkpoint(), 1)


async def test_a_completed_broadcast_has_no_claim_that_could_append(stores: Stores) -> None:
    claim = await claimed(stores)
    assert await stores.progress.complete([claim]) == []
    assert await stores.stream.append(append(SeenHead(None), 7, claim)) == Conflict(taken_over=frozenset({0}))
    again = await stores.progress.claim(Broadcast(id="one", room="room", data="x"), Claimant("m", 2, "m/2", 0))
    assert again is NotClaimed.COMPLETED


@pytest.mark.parametrize("stores", ["aws"], indirect=True)
@pytest.mark.parametrize(
    ("attribute", "value", "known"),
    [
        ("offset", {"S": "seven"}, None),
        ("offset", {"N": "0"}, None),
        ("offset", {"N": "7.5"}, None),
        ("offset", {"N": "1" + "0" * 16}, None),
        ("pending", {"S": "x"}, 7),
        ("progressed_at_receive", {"N": "1.5"}, 7),
    ],
)
async def test_a_damaged_item_shows_its_offset_if_it_is_readable(
    stores: Stores, attribute: str, value: Any, known: int | None
) -> None:
    claim = await claimed(stores)
    assert await stores.stream.append(append(SeenHead(None), 7, claim)) is None
    stored = stores.get(claim.key["pk"]["S"], claim.key["sk"]["S"])
    stores.put({**stored, "cursor": {"S": ""}, "pending": {"B": HALFWAY.encode_pending()}, attribute: value})
    with pytest.raises(DamagedProgress) as raised:
        await claimed(stores, "one", 2)
    assert raised.value.offset == known


async def test_two_writers_at_once_leave_dense_offsets(stores: Stores) -> None:
    """Each appends as fast as it can, continuing from the head that a lost race returns."""
    claims = [await claimed(stores, f"b{number:02}") for number in range(40)]

    async def write(mine: list[Claim]) -> None:
        seen = SeenHead(None)
        for claim in mine:
            while True:
                first = (seen.offset or 6) + 1
                request = append(seen, first, claim)
                conflict = await stores.stream.append(request)
                if conflict is None:
                    seen = SeenHead.at(first)
                    break
                seen = conflict.head or await stores.stream.head("room")

    await asyncio.gather(write(claims[::2]), write(claims[1::2]))
    found = [entry(stores, offset) for offset in range(7, 48)]
    assert sorted(filter(None, found)) == [f"b{number:02}" for number in range(40)]
    assert found[40] is None


async def test_an_offset_is_skipped_only_where_there_is_a_head_that_counts(stores: Stores) -> None:
    await stores.stream.skip("room")
    assert await stores.stream.head("room") == SeenHead(None)
    assert await stores.stream.append(append(SeenHead(None), 7, await claimed(stores))) is None
    await stores.stream.skip("room")
    assert await stores.stream.head("room") == SeenHead.at(8)
    conflict = await stores.stream.append(append(SeenHead.at(7), 8, await claimed(stores, "two")))
    assert conflict == Conflict(SeenHead.at(8), head_changed=True)
    assert entry(stores, 8) is None


async def test_a_damaged_head_is_left_as_it_is(stores: Stores) -> None:
    stores.put({**keys.key(keys.stream_pk("room"), keys.HEAD_SK), "offset": {"S": "many"}})
    await stores.stream.skip("room")
    assert await stores.stream.head("room") == SeenHead({"S": "many"})
