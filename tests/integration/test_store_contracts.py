"""The contracts of the worker's ports: the same tests on the in-memory stores and on `worker.aws` with ministack.

Time passes by the stores' clock. Only visibility timeouts and delays of ministack's queues need real time.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import pytest

from gatecast import Broadcast, queue_message
from gatecast import table as keys
from gatecast.frames import V1, V2
from gatecast.room_settings import SettingsItem
from tests.memory_stores import (
    DEDUPLICATION_SECONDS,
    MemoryProgress,
    MemoryQueue,
    MemoryTable,
    ProgressItem,
    ProgressItems,
    QueueState,
    TableState,
    progress_key,
)
from worker.aws.progress import Progress
from worker.aws.progress_item import TTL_SECONDS
from worker.aws.queue import Queue
from worker.aws.table import Table
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import (
    ABANDONED_SECONDS,
    DUPLICATE_SECONDS,
    Claimant,
    NotClaimed,
    Resumption,
    Standing,
    decide,
)
from worker.decisions.parts import MAX_BATCH, MAX_BATCH_BYTES
from worker.ports import (
    Claim,
    Connection,
    DamagedProgress,
    JoinedRoom,
    Member,
    MemberTable,
    Message,
    MessageQueue,
    MessageRejected,
    ProgressStore,
    StaleReceipt,
)

PAGE_MEMBERS = 3
VISIBILITY_SECONDS = 60


class Clock:
    """Seconds since the epoch."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["memory", "aws"])
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clock() -> Clock:
    return Clock()


# Queues

Pass = Callable[[float], Awaitable[None]]


@pytest.fixture
def passing(implementation: str, request: pytest.FixtureRequest, clock: Clock) -> Pass:
    """Let seconds pass on the queues' clock."""
    late_seconds = 2 if request.config.getoption("sqs") == "localstack" else 0  # it looks once per second

    async def advance(seconds: float) -> None:
        clock.now += seconds

    async def wait(seconds: float) -> None:
        await asyncio.sleep(seconds + late_seconds)

    return advance if implementation == "memory" else wait


@pytest.fixture
def queue(implementation: str, request: pytest.FixtureRequest, clock: Clock) -> MessageQueue:
    if implementation == "memory":
        return memory_queue(clock)
    return Queue(request.getfixturevalue("sqs_service"), request.getfixturevalue("queues").url)


@pytest.fixture
def fifo_queue(implementation: str, request: pytest.FixtureRequest, clock: Clock) -> MessageQueue:
    if implementation == "memory":
        return memory_queue(clock, fifo=True)
    return Queue(request.getfixturevalue("sqs_service"), request.getfixturevalue("fifo_queues").url)


def memory_queue(clock: Clock, *, fifo: bool = False) -> MemoryQueue:
    return MemoryQueue(QueueState(clock=clock, wall_clock=clock, fifo=fifo), poll_seconds=0.01)


def entries(*bodies: str, group: str = "room") -> list[dict[str, Any]]:
    return [{"MessageBody": body, "MessageGroupId": group} for body in bodies]


def fifo_entry(name: str, room: str) -> dict[str, Any]:
    return queue_message(Broadcast(id=name, room=room, data=name), fifo=True)


async def receive(queue: MessageQueue, limit: int = MAX_BATCH, *, seconds: int = VISIBILITY_SECONDS) -> list[Message]:
    return await queue.receive(limit, visibility_seconds=seconds, wait=False)


def bodies(messages: list[Message]) -> list[str]:
    return sorted(message.body for message in messages)


async def test_a_received_message_is_invisible_until_its_visibility_timeout_ends(
    queue: MessageQueue, passing: Pass
) -> None:
    assert await queue.send(entries("a", "b", group="lobby")) == [None, None]
    first = await receive(queue, seconds=1)
    assert bodies(first) == ["a", "b"]
    assert {(message.group, message.receive_count) for message in first} == {("lobby", 1)}
    extended, expiring = first
    assert await queue.change_visibility([extended.receipt_handle], VISIBILITY_SECONDS) == [None]
    assert await receive(queue) == []
    await passing(1.05)
    [again] = await receive(queue)
    assert (again.id, again.body, again.sent_at_ms) == (expiring.id, expiring.body, expiring.sent_at_ms)
    assert again.receive_count == 2
    assert again.receipt_handle != expiring.receipt_handle


async def test_a_message_released_with_visibility_0_is_received_again_at_once(queue: MessageQueue) -> None:
    await queue.send(entries("a"))
    for receive_count in (1, 2, 3):
        [message] = await receive(queue)
        assert message.receive_count == receive_count
        assert await queue.change_visibility([message.receipt_handle], 0) == [None]
        assert await queue.count() == {"visible": 1, "in_flight": 0, "delayed": 0}


async def test_the_receipt_handle_of_an_earlier_receive_is_stale(queue: MessageQueue) -> None:
    await queue.send(entries("a"))
    [first] = await receive(queue)
    await queue.change_visibility([first.receipt_handle], 0)
    [second] = await receive(queue)
    [error] = await queue.change_visibility([first.receipt_handle], 0)
    assert isinstance(error, StaleReceipt)
    assert await receive(queue) == [], "the visibility timeout of the second receive is unchanged"
    assert await queue.change_visibility([second.receipt_handle], 0) == [None]
    [third] = await receive(queue)
    assert third.receive_count == 3


async def test_a_deletion_with_a_stale_receipt_handle_deletes_nothing(queue: MessageQueue) -> None:
    """SQS may report success nevertheless."""
    await queue.send(entries("a"))
    [first] = await receive(queue)
    await queue.change_visibility([first.receipt_handle], 0)
    [second] = await receive(queue)
    [error] = await queue.delete([first.receipt_handle])
    assert error is None or isinstance(error, StaleReceipt)
    assert await queue.change_visibility([second.receipt_handle], 0) == [None]
    assert bodies(await receive(queue)) == ["a"]


async def test_a_deleted_message_is_gone(queue: MessageQueue) -> None:
    await queue.send(entries("a", "b"))
    messages = await receive(queue)
    handles = [message.receipt_handle for message in messages]
    assert await queue.delete(handles) == [None, None]
    assert await queue.count() == {"visible": 0, "in_flight": 0, "delayed": 0}
    errors = await queue.change_visibility(handles, 0)
    assert all(isinstance(error, StaleReceipt) for error in errors)
    assert await receive(queue) == []


async def test_the_entries_of_a_batch_succeed_or_fail_separately(queue: MessageQueue) -> None:
    names = [f"m{number}" for number in range(MAX_BATCH)]
    assert await queue.send(entries(*names)) == [None] * MAX_BATCH
    first, second = await receive(queue, 4), await receive(queue)
    assert (len(first), len(second)) == (4, 6)
    assert bodies(first + second) == names
    handles = [message.receipt_handle for message in first + second][: MAX_BATCH - 1]
    for call in (queue.change_visibility([*handles, "no receipt"], 30), queue.delete([*handles, "no receipt"])):
        *errors, error = await call
        assert errors == [None] * (MAX_BATCH - 1)
        assert isinstance(error, StaleReceipt)
    assert await queue.count() == {"visible": 0, "in_flight": 1, "delayed": 0}


async def test_a_batch_that_is_too_large_is_rejected_as_a_whole(queue: MessageQueue) -> None:
    half = "x" * (MAX_BATCH_BYTES // 2)
    with pytest.raises(MessageRejected):
        await queue.send(entries(half, half, "x"))
    assert await queue.send(entries(half, half)) == [None, None]
    assert await queue.count() == {"visible": 2, "in_flight": 0, "delayed": 0}


async def test_a_delayed_message_is_not_received_before_its_delay_ends(queue: MessageQueue, passing: Pass) -> None:
    now, soon, late = entries("now", "soon", "late")
    assert await queue.send([now, {**soon, "DelaySeconds": 1}, {**late, "DelaySeconds": 900}]) == [None] * 3
    assert bodies(await receive(queue)) == ["now"]
    assert await queue.count() == {"visible": 0, "in_flight": 1, "delayed": 2}
    await passing(1.05)
    assert await queue.count() == {"visible": 1, "in_flight": 1, "delayed": 1}
    assert bodies(await receive(queue)) == ["soon"]


async def test_a_long_poll_receives_a_message_that_is_sent_meanwhile(queue: MessageQueue) -> None:
    polling = asyncio.create_task(queue.receive(MAX_BATCH, visibility_seconds=VISIBILITY_SECONDS))
    await asyncio.sleep(0.05)
    assert not polling.done()
    await queue.send(entries("a"))
    assert bodies(await asyncio.wait_for(polling, 4)) == ["a"]


async def test_a_fifo_queue_keeps_the_order_of_each_group(fifo_queue: MessageQueue) -> None:
    sent = [fifo_entry(name, room) for name, room in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("a3", "a"))]
    assert await fifo_queue.send(sent) == [None] * 4
    [first] = await receive(fifo_queue, 1)
    assert (first.group, first.body) == ("a", sent[0]["MessageBody"])
    [other] = await receive(fifo_queue)
    assert other.group == "b", "while a message of a group is in flight, no other of the group is received"
    assert await fifo_queue.change_visibility([first.receipt_handle], 0) == [None]
    [again] = await receive(fifo_queue, 1)
    assert (again.id, again.receive_count) == (first.id, 2), "a released message precedes later ones of its group"
    assert await fifo_queue.delete([again.receipt_handle]) == [None]
    rest = await receive(fifo_queue)
    assert [message.body for message in rest] == [sent[1]["MessageBody"], sent[3]["MessageBody"]]


async def test_a_fifo_queue_stores_a_deduplication_id_once_even_after_the_deletion(fifo_queue: MessageQueue) -> None:
    entry = fifo_entry("one", "room")
    assert await fifo_queue.send([entry]) == [None]
    assert await fifo_queue.send([entry]) == [None]
    [message] = await receive(fifo_queue)
    assert await fifo_queue.delete([message.receipt_handle]) == [None]
    other = queue_message(Broadcast(id="one", room="room", data="one"), fifo=True, sending="2")
    assert await fifo_queue.send([entry, other]) == [None, None]
    assert len(await receive(fifo_queue)) == 1


async def test_a_fifo_queue_rejects_delays(fifo_queue: MessageQueue) -> None:
    ok, rejected = await fifo_queue.send([fifo_entry("a", "room"), {**fifo_entry("b", "room"), "DelaySeconds": 1}])
    assert ok is None
    assert isinstance(rejected, MessageRejected)
    assert len(await receive(fifo_queue)) == 1


async def test_the_memory_queue_deduplicates_for_five_minutes(clock: Clock) -> None:
    queue = memory_queue(clock, fifo=True)
    for seconds, stored in ((0.0, 1), (DEDUPLICATION_SECONDS - 1, 1), (1.0, 2)):
        clock.now += seconds
        await queue.send([fifo_entry("one", "room")])
        assert sum((await queue.count()).values()) == stored


# Tables

Put = Callable[[dict[str, Any]], object]


class StoredTable(NamedTuple):
    """A table that reads pages of PAGE_MEMBERS, and a function that puts an item into it."""

    members: MemberTable
    put: Put


@pytest.fixture
def stored_table(
    implementation: str, request: pytest.FixtureRequest, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> StoredTable:
    if implementation == "memory":
        state = TableState()
        return StoredTable(MemoryTable(state, wall_clock=clock, page_members=PAGE_MEMBERS), state.put)
    monkeypatch.setattr("worker.aws.table._PAGE_MEMBERS", PAGE_MEMBERS)
    name, dynamodb = request.getfixturevalue("table"), request.getfixturevalue("dynamodb")
    members = Table(request.getfixturevalue("dynamodb_service"), name, wall_clock=clock)
    return StoredTable(members, lambda item: dynamodb.put_item(TableName=name, Item=item))


@pytest.fixture
def members(stored_table: StoredTable) -> MemberTable:
    return stored_table.members


@pytest.fixture
def put(stored_table: StoredTable) -> Put:
    return stored_table.put


JOINED_AT_MS = 1_700_000_000_000


def membership(
    room: str,
    connection_id: str,
    *,
    shard: int = 0,
    joined_at_ms: int = JOINED_AT_MS,
    expires_at: float = 2e9,
    frames: int = V1,
) -> Any:
    return keys.membership_item(
        room, shard, connection_id, joined_at_ms=joined_at_ms, expires_at=int(expires_at), frames=frames
    )


async def read_all(table: MemberTable, room: str, shard: int = 0) -> list[list[str]]:
    """The connection ids of all pages."""
    pages: list[list[str]] = []
    after: str | None = ""
    while after is not None:
        page = await table.begin_page(room, shard, after)
        pages.append([member.connection_id for member in page.members])
        after = page.after
    return pages


async def test_pages_hold_the_members_of_one_shard_in_key_order(members: MemberTable, put: Put) -> None:
    ids = ["b=", "é=", "a=", "Z=", "0=", "\U0001f600=", "c="]
    for each in ids:
        put(membership("room", each))
    for room, shard in (("room", 1), ("room#0", 0), ("other", 0)):
        put(membership(room, f"{room}{shard}=", shard=shard))
    pages = await read_all(members, "room")
    assert [each for page in pages for each in page] == sorted(ids, key=str.encode)
    assert max(map(len, pages)) == PAGE_MEMBERS
    assert await read_all(members, "room", 1) == [["room1="]]
    assert await read_all(members, "room", 2) == [[]]


async def test_a_page_gives_the_times_when_members_joined(members: MemberTable, put: Put) -> None:
    put(membership("room", "a=", joined_at_ms=1_799_999_999_999))
    put(keys.key(keys.room_pk("room", 0), "b="))
    page = await members.begin_page("room", 0)
    assert page.members == [Member("a=", 1_799_999_999_999), Member("b=", 0)]


async def test_a_page_gives_the_dialects_of_members(members: MemberTable, put: Put) -> None:
    put(membership("room", "a=", frames=V2))
    put(membership("room", "b="))
    put({**membership("room", "c="), "frames": {"N": "7"}})
    page = await members.begin_page("room", 0)
    assert [(each.connection_id, each.frames) for each in page.members] == [("a=", V2), ("b=", V1), ("c=", V1)]


async def test_expired_members_are_given_apart_and_do_not_end_the_paging(
    members: MemberTable, put: Put, clock: Clock
) -> None:
    for number in range(2 * PAGE_MEMBERS):
        put(membership("room", f"a{number}=", expires_at=clock.now - number, frames=V2 if number else V1))
    put(membership("room", "b=", expires_at=clock.now + 1))
    first = await members.begin_page("room", 0)
    assert first.expired == [Member("a0=", JOINED_AT_MS), *(Member(f"a{n}=", JOINED_AT_MS, V2) for n in (1, 2))]
    assert not first.members
    assert [each for page in await read_all(members, "room") for each in page] == ["b="]
    clock.now += 1
    assert not any(await read_all(members, "room"))


async def test_paging_continues_after_a_member_that_has_been_deleted(members: MemberTable, put: Put) -> None:
    for number in range(PAGE_MEMBERS + 2):
        put(membership("room", f"m{number}="))
    page = await members.begin_page("room", 0)
    assert page.after == f"m{PAGE_MEMBERS - 1}="
    assert await members.delete_batch([keys.key(keys.room_pk("room", 0), page.after)]) == []
    following = await members.begin_page("room", 0, page.after)
    assert [member.connection_id for member in following.members] == [f"m{PAGE_MEMBERS + more}=" for more in (0, 1)]
    assert following.after is None


async def test_room_settings_have_defaults(members: MemberTable, put: Put) -> None:
    counts = {"shards": {"N": "4"}, "join_shards": {"N": "2"}}
    put({**keys.key(keys.settings_pk("large"), keys.SETTINGS_SK), **counts})
    put({**keys.key(keys.settings_pk("half"), keys.SETTINGS_SK), "join_shards": {"N": "3"}})
    settings = await members.settings(["large", "small", "half", "large"])
    assert settings == [SettingsItem(4, 2), SettingsItem(), SettingsItem(join_shards=3), SettingsItem(4, 2)]


async def test_connections_are_read_by_id(members: MemberTable, put: Put) -> None:
    put(keys.connection_item("a=", connected_at_ms=1_799_999_999_999, frames=V2))
    put(keys.connection_item("b=", connected_at_ms=JOINED_AT_MS))
    put(keys.key(keys.connection_pk("c="), keys.CONNECTION_SK))
    found = await members.connections(["a=", "missing=", "b=", "a=", "c="])
    assert found == {
        "a=": Connection(1_799_999_999_999, V2, keys.expires_at(1_799_999_999_999)),
        "b=": Connection(JOINED_AT_MS, V1, keys.expires_at(JOINED_AT_MS)),
        "c=": Connection(0, V1, math.inf),
    }


async def test_a_removed_connection_still_has_its_rooms(members: MemberTable, put: Put) -> None:
    put(keys.connection_item("a=", connected_at_ms=JOINED_AT_MS))
    put(keys.connection_item("b=", connected_at_ms=JOINED_AT_MS + 1))
    put(keys.joined_room_item("a=", "lobby", 0, expires_at=2_000_000_000))
    assert await members.remove_connections(["a=", "missing="]) == []
    assert list(await members.connections(["a=", "b="])) == ["b="]
    assert await members.joined_rooms("a=") == [JoinedRoom("lobby", 0)]


async def test_joined_rooms_are_those_of_one_connection(members: MemberTable, put: Put) -> None:
    put(keys.connection_item("a=", connected_at_ms=JOINED_AT_MS))
    for room, shard in (("lobby", 0), ("room#1", 3), ("@all", 15)):
        put(keys.joined_room_item("a=", room, shard, expires_at=2_000_000_000))
    put({**keys.key(keys.connection_pk("a="), keys.joined_room_sk("odd")), "shard": {"S": "x"}})
    put(keys.joined_room_item("b=", "lobby", 0, expires_at=2_000_000_000))
    rooms = await members.joined_rooms("a=")
    assert rooms == [JoinedRoom("@all", 15), JoinedRoom("lobby", 0), JoinedRoom("odd", None), JoinedRoom("room#1", 3)]
    assert await members.joined_rooms("missing=") == []


async def test_a_batch_deletes_exactly_its_keys(members: MemberTable, put: Put) -> None:
    for each in ("a=", "b="):
        put(membership("room", each))
        put(keys.joined_room_item(each, "room", 0, expires_at=2_000_000_000))
    doomed = [
        keys.key(keys.room_pk("room", 0), "a="),
        keys.key(keys.connection_pk("b="), keys.joined_room_sk("room")),
        keys.key(keys.room_pk("room", 0), "missing="),
    ]
    assert await members.delete_batch(doomed) == []
    assert await read_all(members, "room") == [["b="]]
    assert await members.joined_rooms("a=") == [JoinedRoom("room", 0)]
    assert await members.joined_rooms("b=") == []


# Progress

BROADCAST = Broadcast(id="one", room="room", data="x")
HALFWAY = Checkpoint("c5=", (("c1=", 7), ("c2=", None)), ("c2=",))
CLAIMANT = Claimant("m", 2, "m/2", 0)


class StoredProgress(NamedTuple):
    """A progress store, and functions that put an item for BROADCAST with the checkpoint HALFWAY, and damage it."""

    store: ProgressStore
    put: Callable[[Standing], object]
    damage: Callable[[], object]


@pytest.fixture
def stored_progress(implementation: str, request: pytest.FixtureRequest, clock: Clock) -> StoredProgress:
    if implementation == "memory":
        return progress_in_memory(clock)
    store = Progress(request.getfixturevalue("dynamodb_service"), request.getfixturevalue("table"), wall_clock=clock)
    return progress_in_dynamodb(store, request.getfixturevalue("dynamodb"), request.getfixturevalue("table"), clock)


def progress_in_memory(clock: Clock) -> StoredProgress:
    items: ProgressItems = {}

    def put(standing: Standing) -> None:
        items[progress_key(BROADCAST)] = ProgressItem(
            message_id=standing.message_id,
            receive_count=standing.receive_count,
            claim_id=standing.claim_id,
            seen_at=int(standing.seen_at),
            completed=standing.completed,
            checkpoint=HALFWAY,
        )

    def damage() -> None:
        items[progress_key(BROADCAST)].unreadable_claims = 1_000

    return StoredProgress(MemoryProgress(items, wall_clock=clock), put, damage)


def progress_in_dynamodb(store: Progress, dynamodb: Any, table: str, clock: Clock) -> StoredProgress:
    key = keys.key(*progress_key(BROADCAST))

    def put(standing: Standing) -> None:
        numbers = {"claimed_at": standing.seen_at - 1, "renewed_at": standing.seen_at, "expires_at": clock.now + 9}
        if standing.completed:
            numbers["completed_at"] = standing.seen_at
        item: dict[str, Any] = {attribute: {"N": str(int(number))} for attribute, number in numbers.items()}
        if standing.message_id is not None:
            item["message_id"] = {"S": standing.message_id}
            item |= {"receives": {"N": str(standing.receive_count)}, "claimed_by": {"S": standing.claim_id}}
        checkpoint = {
            "cursor": {"S": HALFWAY.cursor},
            "pending": {"B": HALFWAY.encode_pending()},
            "pending_v2": {"B": HALFWAY.encode_v2()},
        }
        dynamodb.put_item(TableName=table, Item={**key, **item, **checkpoint})

    def damage() -> None:
        update = {"UpdateExpression": "SET pending = :odd", "ExpressionAttributeValues": {":odd": {"B": b"\xff\xff"}}}
        dynamodb.update_item(TableName=table, Key=key, **update)

    return StoredProgress(store, put, damage)


@pytest.fixture
def progress(stored_progress: StoredProgress) -> ProgressStore:
    return stored_progress.store


async def claimed(
    progress: ProgressStore, message: str, receive_count: int, *, waited: int = 0, broadcast: Broadcast = BROADCAST
) -> Claim:
    claimant = Claimant(message, receive_count, f"{message}/{receive_count}", waited)
    claim = await progress.claim(broadcast, claimant)
    assert isinstance(claim, Claim)
    return claim


async def test_the_same_message_takes_over_at_its_checkpoint(progress: ProgressStore) -> None:
    first = await claimed(progress, "m", 1)
    assert (first.start, first.receives_without_progress) == (Checkpoint(), 1)
    assert await progress.write_checkpoint(first, HALFWAY, made_progress=False)
    second = await claimed(progress, "m", 2)
    assert (second.start, second.receives_without_progress) == (HALFWAY, 2)
    assert not await progress.write_checkpoint(first, Checkpoint("c9="), made_progress=True), "it has been taken over"
    assert await progress.write_checkpoint(second, HALFWAY, made_progress=True)
    assert (await claimed(progress, "m", 3)).receives_without_progress == 1


async def test_an_earlier_or_simultaneous_receive_is_superseded(progress: ProgressStore) -> None:
    await claimed(progress, "m", 3)
    for claimant in (Claimant("m", 2, "late", 0), Claimant("m", 1, "m/1", 0), Claimant("m", 3, "elsewhere", 0)):
        assert await progress.claim(BROADCAST, claimant) is NotClaimed.SUPERSEDED


@pytest.mark.parametrize("receive_count", [1, 2])
async def test_a_claim_may_be_repeated(progress: ProgressStore, receive_count: int) -> None:
    """As if the first response had been lost."""
    first = await claimed(progress, "m", receive_count)
    assert await claimed(progress, "m", receive_count) == first
    assert await progress.write_checkpoint(first, HALFWAY, made_progress=True)


@pytest.mark.parametrize(("waited", "counted"), [(0, 5), (4, 1)])
async def test_receives_before_the_first_claim_count_unless_they_waited_for_others(
    progress: ProgressStore, waited: int, counted: int
) -> None:
    assert (await claimed(progress, "m", 5, waited=waited)).receives_without_progress == counted
    assert (await claimed(progress, "m", 6, waited=waited)).receives_without_progress == counted + 1


async def test_rooms_parts_and_broadcasts_to_connections_have_their_own_claims(progress: ProgressStore) -> None:
    for broadcast in (
        BROADCAST,
        Broadcast(id="one", room="room", data="x", part="s0", shard=0),
        Broadcast(id="one", room="other", data="x"),
        Broadcast(id="one", connections=("a=",), data="x"),
    ):
        assert (await claimed(progress, broadcast.part or "m", 1, broadcast=broadcast)).start == Checkpoint()


async def test_a_completed_broadcast_is_a_duplicate_for_a_day(progress: ProgressStore, clock: Clock) -> None:
    claim = await claimed(progress, "m", 1)
    assert await progress.complete([claim]) == []
    for claimant in (Claimant("m", 1, "m/1", 0), Claimant("m", 7, "m/7", 0), Claimant("other", 1, "o", 0)):
        assert await progress.claim(BROADCAST, claimant) is NotClaimed.COMPLETED
    assert not await progress.write_checkpoint(claim, HALFWAY, made_progress=True), "it is completed"
    assert not await progress.release(claim), "it is completed"
    clock.now += DUPLICATE_SECONDS - 1
    assert await progress.claim(BROADCAST, Claimant("other", 2, "o", 0)) is NotClaimed.COMPLETED
    clock.now += 1
    assert await progress.claim(BROADCAST, Claimant("m", 8, "m/8", 0)) is NotClaimed.COMPLETED
    new = await claimed(progress, "other", 1)
    assert (new.start, new.receives_without_progress) == (Checkpoint(), 1)
    assert await progress.write_checkpoint(new, HALFWAY, made_progress=True)


async def test_a_completion_needs_no_claim(progress: ProgressStore) -> None:
    """It records that every member has an outcome, whichever worker holds the claim."""
    first = await claimed(progress, "m", 1)
    second = await claimed(progress, "m", 2)
    assert await progress.complete([first]) == []
    assert not await progress.write_checkpoint(second, HALFWAY, made_progress=True)
    assert await progress.claim(BROADCAST, Claimant("m", 3, "m/3", 0)) is NotClaimed.COMPLETED


async def test_another_message_waits_while_the_first_is_in_progress_and_resumes_when_it_is_abandoned(
    progress: ProgressStore, clock: Clock
) -> None:
    first = await claimed(progress, "m", 3)
    clock.now += ABANDONED_SECONDS - 1
    assert await progress.claim(BROADCAST, Claimant("moved", 1, "x", 0)) is NotClaimed.HELD
    assert await progress.write_checkpoint(first, HALFWAY, made_progress=True)
    clock.now += ABANDONED_SECONDS - 1
    assert await progress.claim(BROADCAST, Claimant("moved", 2, "x", 0)) is NotClaimed.HELD
    clock.now += 1
    second = await claimed(progress, "moved", 3)
    assert (second.start, second.receives_without_progress) == (HALFWAY, 1), "until then it only waited"
    assert not await progress.write_checkpoint(first, Checkpoint("c9="), made_progress=True), "it has been taken over"
    assert not await progress.release(first), "it has been taken over"
    assert await progress.claim(BROADCAST, Claimant("m", 4, "late", 0)) is NotClaimed.HELD


async def test_after_a_day_without_completion_another_message_starts_from_the_beginning(
    progress: ProgressStore, clock: Clock
) -> None:
    assert await progress.write_checkpoint(await claimed(progress, "m", 1), HALFWAY, made_progress=True)
    clock.now += DUPLICATE_SECONDS + 1
    assert (await claimed(progress, "other", 1)).start == Checkpoint()


async def test_an_expired_item_counts_as_absent_for_another_message(progress: ProgressStore, clock: Clock) -> None:
    first = await claimed(progress, "m", 1)
    clock.now += TTL_SECONDS - 1
    assert await progress.write_checkpoint(first, HALFWAY, made_progress=True)
    assert await progress.claim(BROADCAST, Claimant("other", 1, "o", 0)) is NotClaimed.HELD
    clock.now += 1
    assert (await claimed(progress, "other", 2)).start == Checkpoint()


async def test_an_expired_item_is_resumed_by_its_own_message(progress: ProgressStore, clock: Clock) -> None:
    assert await progress.write_checkpoint(await claimed(progress, "m", 1), HALFWAY, made_progress=True)
    clock.now += TTL_SECONDS + 1
    assert (await claimed(progress, "m", 2)).start == HALFWAY


def standings(now: float) -> Iterator[Standing]:
    """All states of an item that make a difference to CLAIMANT."""
    for age in (0, ABANDONED_SECONDS - 1, ABANDONED_SECONDS, DUPLICATE_SECONDS - 1, DUPLICATE_SECONDS):
        for message, completed in product((None, "m", "other"), (False, True)):
            for receive_count, claim_id in product((1, 2, 3), ("m/2", "else")):
                yield Standing(message, receive_count, claim_id, now - age, completed)


async def test_every_claim_is_decided_by_the_rule(stored_progress: StoredProgress, clock: Clock) -> None:
    progress = stored_progress.store
    for standing in standings(clock.now):
        stored_progress.put(standing)
        found = await progress.claim(BROADCAST, CLAIMANT)
        verdict = decide(standing, CLAIMANT, clock.now)
        if isinstance(verdict, NotClaimed):
            assert found is verdict, standing
        else:
            start = HALFWAY if verdict is Resumption.FROM_CHECKPOINT else Checkpoint()
            assert isinstance(found, Claim), standing
            assert found.start == start, standing
            assert await progress.write_checkpoint(found, HALFWAY, made_progress=True)


async def test_a_release_may_be_repeated_and_any_message_resumes(progress: ProgressStore) -> None:
    claim = await claimed(progress, "m", 4)
    assert await progress.write_checkpoint(claim, HALFWAY, made_progress=True)
    assert await progress.release(claim)
    assert await progress.release(claim), "as if the first response had been lost"
    assert not await progress.write_checkpoint(claim, Checkpoint("c9="), made_progress=True), "it is released"
    resumed = await claimed(progress, "letter", 2)
    assert (resumed.start, resumed.receives_without_progress) == (HALFWAY, 2)
    assert not await progress.release(claim), "it has been taken over"


async def test_without_an_item_nothing_can_be_written(progress: ProgressStore) -> None:
    claim = await claimed(progress, "m", 1)
    await progress.reset(BROADCAST)
    assert not await progress.release(claim)
    assert not await progress.write_checkpoint(claim, HALFWAY, made_progress=True)
    await progress.reset(BROADCAST)
    assert (await claimed(progress, "other", 1)).start == Checkpoint()


async def test_many_broadcasts_are_completed_in_one_call(progress: ProgressStore) -> None:
    broadcasts = [Broadcast(id=f"b{number}", room="room", data="x") for number in range(25)]
    claims = [await claimed(progress, "m", 1, broadcast=each) for each in broadcasts]
    assert await progress.complete([*claims[:24], claims[0]]) == []
    for number, broadcast in enumerate(broadcasts):
        again = await progress.claim(broadcast, Claimant("o", 1, "o/1", 0))
        assert again is (NotClaimed.COMPLETED if number < 24 else NotClaimed.HELD)


async def test_a_damaged_item_is_reported_until_it_is_reset(stored_progress: StoredProgress) -> None:
    progress = stored_progress.store
    assert await progress.write_checkpoint(await claimed(progress, "m", 1), HALFWAY, made_progress=True)
    stored_progress.damage()
    for receive_count in (2, 3):
        with pytest.raises(DamagedProgress, match="broadcast#room one"):
            await progress.claim(BROADCAST, Claimant("m", receive_count, f"m/{receive_count}", 0))
    await progress.reset(BROADCAST)
    assert (await claimed(progress, "m", 4)).start == Checkpoint()
