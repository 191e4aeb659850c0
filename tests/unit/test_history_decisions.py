"""Which offsets messages get, and what a transaction that was not executed means."""

import re
from math import ceil
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatecast.broadcast import LARGEST_OFFSET, Broadcast, Presence
from gatecast.entries import entry_item
from gatecast.frames import Message
from gatecast.table import MAX_HEAD
from worker.decisions.history import (
    MAX_SHARED,
    MAX_SHARED_BYTES,
    Conflict,
    Known,
    NotAppended,
    SeenHead,
    may_append,
    outcome,
    share,
    size_of,
)

CLOCK_MS = 1_800_000_000_000
TO_ROOM = Broadcast(id="one", room="room", data="x")


def test_a_room_without_a_head_starts_at_the_clock() -> None:
    assert Known(SeenHead(None)).next_offset(CLOCK_MS) == CLOCK_MS


def test_offsets_follow_the_head_whatever_the_clock_shows() -> None:
    for clock_ms in (0, 41, 42, CLOCK_MS):
        assert Known(SeenHead.at(41), used=41).next_offset(clock_ms) == 42


@pytest.mark.parametrize("clock_ms", [-5, 0, 1])
def test_a_clock_that_has_never_been_set_gives_a_valid_offset(clock_ms: int) -> None:
    assert Known(SeenHead(None)).next_offset(clock_ms) == 1


def test_after_the_head_has_been_deleted_offsets_do_not_run_backwards() -> None:
    known = Known().after(SeenHead.at(CLOCK_MS + 5_000)).after_conflict(Conflict(head_changed=True), [1])
    assert known.head is None
    assert known.after(SeenHead(None)).next_offset(CLOCK_MS) == CLOCK_MS + 5_001


def test_entries_beyond_the_head_are_passed_in_steps_that_grow() -> None:
    known, tried = Known(SeenHead.at(7), used=7), []
    for collisions in range(5):
        tried.append(known.next_offset(0, collisions))
        known = known.after_conflict(Conflict(occupied=frozenset({0})), [tried[-1]])
    assert tried == [8, 10, 14, 22, 38]
    assert known.next_offset(CLOCK_MS, 5) == CLOCK_MS


@given(st.integers(1, MAX_HEAD - 1), st.integers(0, 2 * CLOCK_MS))
def test_a_blocked_room_finds_a_free_offset_after_few_collisions(head: int, clock_ms: int) -> None:
    """Even if every offset up to the largest is occupied, it ends."""
    known = Known(SeenHead.at(head), used=head)
    for collisions in range(100):
        offset = known.next_offset(clock_ms, collisions)
        assert offset > known.used
        if offset > MAX_HEAD:
            return
        known = known.after_conflict(Conflict(occupied=frozenset({0})), [offset])
    pytest.fail("still not beyond the largest offset")


@pytest.mark.parametrize(
    "stored",
    [{"S": "x"}, {"N": "-1"}, {"N": "1e40"}, {"N": str(LARGEST_OFFSET)}, {"NULL": True}, {"N": "nan"}, {}],
    ids=str,
)
def test_a_head_that_no_worker_writes_is_damaged_and_the_room_continues_at_the_clock(stored: dict[str, str]) -> None:
    head = SeenHead(stored)
    assert head.is_damaged
    assert Known().after(head).next_offset(CLOCK_MS) == CLOCK_MS


def test_a_head_without_an_offset_is_not_damaged() -> None:
    assert not SeenHead(None).is_damaged
    assert not SeenHead.at(0).is_damaged
    assert not SeenHead.at(MAX_HEAD).is_damaged


def test_a_read_that_was_overtaken_by_a_transaction_is_ignored() -> None:
    known = Known().after(SeenHead.at(9))
    assert known.after_read(SeenHead.at(8)) == known
    assert known.after_read(SeenHead(None)) == known
    assert known.after_read(SeenHead.at(10)) == Known(SeenHead.at(10), 10)
    assert Known(None, 9).after_read(SeenHead.at(8)) == Known(SeenHead.at(8), 9)


def test_a_lost_race_shows_the_head_or_that_it_must_be_read() -> None:
    known = Known().after(SeenHead.at(9))
    assert known.after_conflict(Conflict(SeenHead.at(12), head_changed=True), [10]).next_offset(0) == 13
    assert known.after_conflict(Conflict(head_changed=True), [10]).head is None
    assert known.after_conflict(Conflict(taken_over=frozenset({0})), [10, 11]) == known


def test_after_a_lost_response_the_recorded_offsets_hold_and_others_continue_behind_them() -> None:
    conflict = Conflict(
        SeenHead.at(11), head_changed=True, occupied=frozenset({0, 1}), recorded={0: 10}, taken_over=frozenset({1})
    )
    assert [outcome(number, conflict) for number in range(3)] == [10, NotAppended.TAKEN_OVER, None]
    assert Known(SeenHead.at(9), 9).after_conflict(conflict, [10, 11, 12]).next_offset(0) == 12


@pytest.mark.parametrize(
    ("conflict", "lost"),
    [
        (Conflict(), True),
        (Conflict(head_changed=True), True),
        (Conflict(SeenHead.at(7), head_changed=True, taken_over=frozenset({0})), True),
        (Conflict(taken_over=frozenset({0})), False),
        (Conflict(recorded={0: 7}), False),
        (Conflict(occupied=frozenset({0})), False),
    ],
)
def test_only_another_transaction_is_a_lost_race(conflict: Conflict, lost: bool) -> None:
    assert conflict.lost_race is lost


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        ({}, True),
        ({"data": msgspec.UNSET, "json": msgspec.Raw(b"[1]")}, True),
        ({"part": "again"}, True),
        ({"shard": 0}, False),
        ({"offset": 7}, False),
        ({"room": msgspec.UNSET, "connections": ("c=",)}, False),
        ({"room": msgspec.UNSET, "connections": ("c=",), "origin_room": "room"}, False),
        ({"data": msgspec.UNSET, "presence": Presence(joined=("ann",)), "v": 2}, False),
    ],
    ids=str,
)
def test_only_messages_to_a_whole_room_are_appended(changes: dict[str, object], may: bool) -> None:
    broadcast = msgspec.structs.replace(TO_ROOM, **changes)
    assert may_append(broadcast, is_start=True, history_seconds=1) is may
    assert not may_append(broadcast, is_start=True, history_seconds=0)
    assert not may_append(broadcast, is_start=False, history_seconds=1)


def test_the_size_of_an_entry_is_that_of_its_payload_in_utf_8() -> None:
    euro = msgspec.structs.replace(TO_ROOM, data="€" * 10)
    json = msgspec.structs.replace(TO_ROOM, data=msgspec.UNSET, json=msgspec.Raw('["€"]'.encode()))
    assert size_of(euro) - size_of(TO_ROOM) == 29
    assert size_of(json) - size_of(TO_ROOM) == 6


@given(st.lists(st.tuples(st.integers(0, 60), st.sampled_from([1_001, 50_000, 132_072, 500_000])), max_size=80))
def test_what_shares_a_transaction_fits_and_keeps_its_order(waiting: list[tuple[int, int]]) -> None:
    messages = [((f"broadcast {key}", "part#"), size) for key, size in waiting]
    numbers = list(share(messages))
    assert numbers == sorted(set(numbers))
    assert bool(numbers) == bool(messages)
    shared = [messages[number] for number in numbers]
    assert len({key for key, _ in shared}) == len(shared) <= MAX_SHARED
    assert len(shared) == 1 or sum(size for _, size in shared) <= MAX_SHARED_BYTES
    if numbers:
        assert numbers[0] == 0, "the first one never waits for others"
        passed_over = [messages[number][0] for number in range(numbers[-1]) if number not in numbers]
        assert set(passed_over) <= {key for key, _ in shared}, "only a broadcast that is in it already waits"


def test_a_broadcast_that_was_received_twice_waits_for_the_next_transaction() -> None:
    once, twice = ("broadcast one", "part#"), ("broadcast two", "part#")
    assert list(share([(once, 1), (once, 1), (twice, 1), (once, 1)])) == [0, 2]


def per_second(payload_bytes: int, *, sharing: bool) -> float:
    """How many messages of one room its partition takes: 1,000 write units, two per KB in a transaction."""
    data = "x" * payload_bytes
    broadcast = Broadcast(id="@alice/0123456789abcdef", room="lobby", data=data, published_at_ms=CLOCK_MS)
    message = msgspec.structs.replace(Message.from_broadcast(broadcast), offset=CLOCK_MS)
    item = entry_item("lobby", message, expires_at=CLOCK_MS // 1000)
    item_bytes = sum(len(name) + len(text) for name, value in item.items() for text in value.values())
    waiting = [(("pk", str(number)), size_of(broadcast)) for number in range(100)]
    messages = len(list(share(waiting))) if sharing else 1
    return 1_000 * messages / (2 + 2 * ceil(item_bytes / 1_024) * messages)


def test_the_documented_rates_of_one_room_are_those_of_its_partition() -> None:
    assert [per_second(850, sharing=sharing) for sharing in (False, True)] == [250, 490]
    assert [round(per_second(100 * 1_024, sharing=sharing)) for sharing in (False, True)] == [5, 5]
    documents = Path(__file__).parents[2] / "docs"
    for name, phrase in (
        ("reference-operators.md", "1,000 write units"),
        ("deploy.md", "A room's history has no shards"),
    ):
        [row] = [line for line in (documents / name).read_text().splitlines() if phrase in line]
        assert "250" in row
        assert "up to 490 where" in row
        assert re.search(r"\b5 (per second )?of 100 KB", row)
