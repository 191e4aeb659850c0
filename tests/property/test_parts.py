"""Parts of a broadcast: their names, and how they are batched into calls."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gatecast import Broadcast, decode, encode, queue_message
from worker.decisions.parts import (
    MAX_BATCH,
    MAX_BATCH_BYTES,
    REJECTED_PREFIX,
    REMAINDER_PREFIX,
    UNDELIVERED_PREFIX,
    batches,
    to_connections,
    to_shards,
)

PARTS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=24)
IDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=100)
SIZES = st.sampled_from([1, 1_000, 104_764, 131_072, MAX_BATCH_BYTES - 8 * 1024])


@given(st.lists(SIZES, max_size=40))
def test_batches_hold_every_message_once_in_order_and_fit_with_their_attributes(sizes: list[int]) -> None:
    messages: list[dict[str, Any]] = [
        {"MessageBody": "x" * size, "MessageGroupId": str(number)} for number, size in enumerate(sizes)
    ]
    made = list(batches(messages))
    assert [message for batch in made for message in batch] == messages
    traced = len("traceparent") + len("String") + 55 + len("tracestate") + len("String") + 512
    for batch in made:
        assert 1 <= len(batch) <= MAX_BATCH
        assert sum(len(message["MessageBody"]) + traced for message in batch) <= MAX_BATCH_BYTES


@given(PARTS, st.integers(1, 200))
def test_names_of_shards_are_unique_and_deterministic(part: str, shards: int) -> None:
    broadcast = Broadcast(id="one", room="hall", data="x", part=part)
    parts = list(to_shards(broadcast, shards))
    names = [each.part for each in parts]
    assert [each.shard for each in parts] == list(range(shards))
    assert len(set(names)) == shards
    assert all(0 < len(name) <= 24 for name in names)
    assert names == [each.part for each in to_shards(broadcast, shards)]


@given(st.lists(IDS, min_size=1, max_size=50, unique=True), st.randoms())
def test_the_part_name_does_not_depend_on_the_order_of_members(ids: list[str], rng: Any) -> None:
    broadcast = Broadcast(id="one", room="hall", data="x", shard=3, except_=("c",))
    shuffled = rng.sample(ids, len(ids))
    part = to_connections(broadcast, ids, REMAINDER_PREFIX)
    assert part.part == to_connections(broadcast, shuffled, REMAINDER_PREFIX).part
    assert part.part != to_connections(broadcast, [*ids, ids[0] + "x"], REMAINDER_PREFIX).part
    assert len(part.part) <= 24
    assert part.connections == tuple(ids)
    assert not part.room


@given(st.lists(IDS, min_size=1, max_size=50, unique=True), st.sets(IDS, max_size=5), st.data())
def test_parts_of_parts_keep_the_room_the_offset_and_whom_the_broadcast_excludes(
    ids: list[str], others: set[str], data: st.DataObject
) -> None:
    excluded = frozenset(data.draw(st.lists(st.sampled_from(ids)))) | others
    broadcast = Broadcast(id="one", room="hall", data="x", shard=3, offset=7, except_=tuple(excluded))
    part = to_connections(broadcast, ids, REMAINDER_PREFIX)
    some = data.draw(st.lists(st.sampled_from(ids), min_size=1, unique=True))
    for made, named in ((part, ids), (to_connections(part, some, UNDELIVERED_PREFIX), some)):
        assert (made.origin_room, made.offset, made.connections) == ("hall", 7, tuple(named))
        assert set(made.except_ or ()) == excluded & set(named)
        assert decode(encode(made)) == made


STEPS = st.sampled_from([REMAINDER_PREFIX, UNDELIVERED_PREFIX, REJECTED_PREFIX])


@given(st.lists(STEPS, min_size=1, max_size=5), st.integers(0, 1))
def test_parts_of_one_id_in_two_rooms_never_share_a_deduplication_id(steps: list[str], shards: int) -> None:
    """Whole rooms, their shards, remainders of these, the misses of those, and so on."""

    def chain(room: str, shard: int) -> list[str]:
        broadcast = Broadcast(id="one", room=room, data="x")
        made = [broadcast]
        if shards:
            made.append(list(to_shards(broadcast, 2))[shard])
        for prefix in steps:
            made.append(to_connections(made[-1], ["c=", "d="], prefix))
        return [queue_message(each, fifo=True)["MessageDeduplicationId"] for each in made[1:]]

    ids = [each for room in ("hall", "lobby") for shard in range(shards + 1) for each in chain(room, shard)]
    assert len(ids) == len(set(ids))
