"""A client that resumes misses nothing silently, even if messages are appended, removed and expire meanwhile.

The model is the list of all messages that were ever appended. A query may leave out what is being appended while it
runs, as DynamoDB's may; other reads do not.
"""

import json
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatecast.rooms.backoff import Backoff
from routes.entry_cache import EntryCache
from routes.history import History, Recovery
from routes.joins import Position
from routes.responses import MAX_MESSAGE_BYTES, ROOM_BYTES
from routes.runs import MAX_RESPONSE_BYTES
from routes.streams import Streams
from tests.examples import examples
from tests.stream_table import StreamTable

NOW = 1_700_000_000.0
ROOM = "a"
SIZES = (1, 10, 900, 30_000, 60_000, 105_000, 131_000)
KINDS = ("append", "append", "append", "expiring", "short", "delete", "time", "damage")
steps = st.tuples(st.sampled_from(KINDS), st.integers(0, 6), st.integers(0, 30))


class Room:
    """The table, and what is true of the room."""

    def __init__(self) -> None:
        self.table = StreamTable(NOW)
        self.sent: dict[int, tuple[int, float, float | None]] = {}
        """By offset: the payload's size, when the entry expires, and when the message does."""
        self.removed: set[int] = set()
        self.recent: set[int] = set()
        self.asked_at = NOW
        """When the request began whose response is looked at."""
        self.first = self.append(1, 3_600.0, None)

    def append(self, size: int, seconds: float, message_seconds: float | None) -> int:
        expires_at_ms = None if message_seconds is None else int((self.table.now + message_seconds) * 1000)
        offset = self.table.append(ROOM, "x" * size, seconds=seconds, expires_at_ms=expires_at_ms)
        self.sent[offset] = (size, self.table.now + seconds, expires_at_ms)
        self.recent.add(offset)
        return offset

    def run(self, kind: str, size: int, number: int) -> None:
        match kind:
            case "append":
                self.append(SIZES[size], 3_600.0, None)
            case "expiring":
                self.append(SIZES[size], 3_600.0, float(number))
            case "short":
                self.append(SIZES[size], float(number), None)
            case "time":
                self.table.now += number
            case "delete" | "damage":
                offset = sorted(self.sent)[number % len(self.sent)]
                item = self.table.entry(ROOM, offset)
                if kind == "delete" or item is None:
                    self.table.delete(ROOM, offset)
                else:
                    item.pop("id", None)
                self.removed.add(offset)

    def meanwhile(self, concurrent: list[list[Any]], *, hidden: bool) -> list[list[Any]]:
        """Runs some of these steps at each call from now on; returns those that wait. Queries may omit new ones."""
        waiting = list(concurrent)

        def happen(_call: str) -> None:
            for step in waiting.pop(0) if waiting else ():
                self.run(*step)

        self.recent.clear()
        self.table.on_call = happen
        self.table.hides = lambda offset: hidden and offset in self.recent
        return waiting

    @property
    def head(self) -> int:
        return max(self.sent)

    def is_missing(self, offset: int) -> bool:
        size, expires_at, _ = self.sent[offset]
        return offset in self.removed or expires_at <= self.table.now or size == SIZES[-1]

    def has_expired(self, offset: int, at: float) -> bool:
        expires_at_ms = self.sent[offset][2]
        return expires_at_ms is not None and expires_at_ms <= at * 1000


def subject(room: Room, max_bytes: int) -> History:
    streams = Streams(room.table, "gatecast", Backoff(sleep=lambda _: None), room.table.clock)
    return History(streams, EntryCache(max_bytes), room.table.clock)


def covered(room: Room, recovery: Recovery) -> list[int]:
    """The offsets of a response, in order, each with or without a message as it must be."""
    body = msgspec.json.encode(recovery.fields())
    assert len(body) < MAX_RESPONSE_BYTES or (
        len(recovery.messages) == 1 and len(body) < MAX_MESSAGE_BYTES + ROOM_BYTES
    )
    messages = [json.loads(bytes(each)) for each in recovery.messages]
    for message in messages:
        size, _, _ = room.sent[message["offset"]]
        assert (message["id"], len(message["data"])) == (f"id-{message['offset']}", size)
    with_message = [message["offset"] for message in messages]
    skipped = [offset for first, last in recovery.skipped for offset in range(first, last + 1)]
    assert with_message == sorted(with_message)
    assert all(room.has_expired(offset, room.table.now) for offset in skipped)
    assert not any(room.has_expired(offset, room.asked_at) for offset in with_message)
    return sorted(with_message + skipped)


def check(room: Room, since: int, head: int, recovery: Recovery) -> None:
    """`head` is the room's when the client's membership was written."""
    run = covered(room, recovery)
    if recovery.recovered:
        assert run == list(range(since + 1, recovery.offset + 1)), "nothing is missing, and nothing is repeated"
        assert recovery.more or recovery.offset >= head
    else:
        gap = [offset for offset in range(since + 1, room.head + 1) if room.is_missing(offset)]
        assert gap, "no false alarm"
        assert recovery.offset >= head or recovery.more
        assert run == list(range(recovery.offset - len(run) + 1, recovery.offset + 1))
        assert not recovery.messages or run[0] > gap[0]


@settings(max_examples=examples(300), deadline=None)
@given(
    before=st.lists(steps, max_size=25),
    behind=st.integers(0, 25),
    concurrent=st.lists(st.lists(steps, max_size=2), max_size=6),
    hidden=st.booleans(),
    max_bytes=st.sampled_from([0, 5_000, 16_000_000]),
    warm=st.booleans(),
)
@example(
    before=[("append", 3, 0)] * 9,
    behind=9,
    concurrent=[[("delete", 0, 5)]] * 3,
    hidden=True,
    max_bytes=16_000_000,
    warm=True,
)
@example(
    before=[("expiring", 1, 0)] * 4 + [("append", 5, 0)] * 3,
    behind=7,
    concurrent=[],
    hidden=False,
    max_bytes=0,
    warm=False,
)
@example(  # a message expires after it was read and before the response is complete
    before=[("append", 0, 0), ("append", 0, 0), ("delete", 0, 2)],
    behind=2,
    concurrent=[[], [("expiring", 0, 1)], [("delete", 0, 1)], [], [], [("time", 0, 1)]],
    hidden=False,
    max_bytes=0,
    warm=False,
)
def test_nothing_is_missed_silently(
    before: list[Any], behind: int, concurrent: list[list[Any]], *, hidden: bool, max_bytes: int, warm: bool
) -> None:
    room = Room()
    for step in before:
        room.run(*step)
    history = subject(room, max_bytes)
    if warm:
        history.resume({ROOM: Position(since=room.first)}, 1)
    waiting = room.meanwhile(concurrent, hidden=hidden)
    since = max(room.first, room.head - behind)
    assert not history.check({ROOM: Position(since=since)})
    head = room.head
    room.asked_at = room.table.now
    recovery = history.resume({ROOM: Position(since=since)}, 1)[ROOM]
    check(room, since, head, recovery)
    waiting.clear()
    for _ in range(100):
        if not recovery.more:
            break
        since = recovery.offset
        room.asked_at = room.table.now
        recovery = history.read(ROOM, since, 1 + behind)
        check(room, since, head, recovery)
    assert not recovery.more


def the_last(room: Room, count: int) -> list[int]:
    """The last `count` messages up to the head that nothing missing precedes."""
    messages: list[int] = []
    for offset in range(room.head, room.first - 1, -1):
        if room.is_missing(offset) or len(messages) == count:
            break
        if not room.has_expired(offset, room.table.now):
            messages.append(offset)
    return messages[::-1]


def pages_of_the_last(room: Room, history: History, count: int) -> list[Recovery]:
    """The response to a join, and those to the requests for what is behind it."""
    room.asked_at = room.table.now
    head = room.head
    pages = [history.resume({ROOM: Position(last=count)}, 1)[ROOM]]
    run = covered(room, pages[0])
    assert pages[0].recovered
    assert run == list(range(pages[0].offset - len(run) + 1, pages[0].offset + 1)), "without a gap"
    while pages[-1].more:
        since, room.asked_at = pages[-1].offset, room.table.now
        pages.append(history.read(ROOM, since, 1_000))
        check(room, since, head, pages[-1])
        assert pages[-1].offset > since
    assert pages[-1].offset >= head
    return pages


@settings(max_examples=examples(300), deadline=None)
@given(
    before=st.lists(steps, max_size=40),
    count=st.integers(0, 5) | st.integers(0, 100),
    hidden=st.sets(st.integers(0, 40), max_size=5),
    max_bytes=st.sampled_from([0, 5_000, 16_000_000]),
)
@example(  # longer than a response, and the first message is not the room's
    before=[("append", 3, 0)] * 20, count=15, hidden=set(), max_bytes=16_000_000
)
@example(  # no longer than was asked for, because there are no more
    before=[("append", 3, 0)] * 8, count=100, hidden={3}, max_bytes=0
)
@example(  # the oldest have expired, but are still in the table
    before=[("short", 3, 5)] * 9 + [("time", 0, 5)] + [("append", 3, 0)] * 7, count=30, hidden=set(), max_bytes=0
)
@example(  # a gap, where the response is full already
    before=[("append", 3, 0)] * 20 + [("delete", 0, 9)], count=15, hidden=set(), max_bytes=16_000_000
)
def test_the_last_messages_are_the_latest_run(before: list[Any], count: int, hidden: set[int], max_bytes: int) -> None:
    """A client that reads on as long as `more` is true has them all, or knows that one is missing."""
    room = Room()
    for step in before:
        room.run(*step)
    room.table.hides = lambda offset: offset - room.first in hidden
    expected = the_last(room, count)
    pages = pages_of_the_last(room, subject(room, max_bytes), count)
    read = [json.loads(bytes(each))["offset"] for page in pages for each in page.messages]
    assert read == sorted(set(read))
    if not pages[0].more:
        assert read == expected, "they fit"
    elif all(page.recovered for page in pages):
        expired = sum(room.has_expired(offset, room.table.now) for offset in room.sent)
        assert read == expected[len(expected) - len(read) :]
        assert len(read) >= len(expected) - expired, "what has expired may count where not all is read"
    else:
        assert len(expected) < count, "no false alarm: one of those that were asked for is missing"
        first = min(offset for offset in room.sent if not room.is_missing(offset))
        assert any(room.is_missing(offset) for offset in range(first, room.head + 1)), "and not only the oldest are"


@settings(max_examples=examples(100), deadline=None)
@given(
    before=st.lists(steps, max_size=25),
    count=st.integers(0, 100),
    concurrent=st.lists(st.lists(steps, max_size=2), max_size=12),
    hidden=st.booleans(),
    max_bytes=st.sampled_from([0, 16_000_000]),
)
def test_what_happens_while_the_last_messages_are_read_hides_none(
    before: list[Any], count: int, concurrent: list[list[Any]], *, hidden: bool, max_bytes: int
) -> None:
    room = Room()
    for step in before:
        room.run(*step)
    room.meanwhile(concurrent, hidden=hidden)
    pages_of_the_last(room, subject(room, max_bytes), count)


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.lists(st.sampled_from(SIZES[:-1]), max_size=4)), max_size=25),
    st.sampled_from([0, 16_000_000]),
)
def test_rooms_of_one_join_share_a_response_and_miss_nothing(
    rooms: list[tuple[int, list[int]]], max_bytes: int
) -> None:
    table = StreamTable(NOW)
    sent: dict[str, list[int]] = {}
    lost: dict[str, bool] = {}
    positions: dict[str, Position] = {}
    for number, (deleted, sizes) in enumerate(rooms):
        room = f"room-{number}"
        positions[room] = Position(since=table.append(room, "x"))
        sent[room] = [table.append(room, "x" * size) for size in sizes]
        lost[room] = deleted < len(sizes)
        if lost[room]:
            table.delete(room, sent[room][deleted])
    streams = Streams(table, "gatecast", Backoff(sleep=lambda _: None), table.clock)
    history = History(streams, EntryCache(max_bytes), table.clock)
    found = history.resume(positions, len(positions)) if positions else {}
    body = msgspec.json.encode([{"room": room, **each.fields()} for room, each in found.items()])
    assert len(body) < MAX_RESPONSE_BYTES or sum(len(each.messages) for each in found.values()) == 1
    assert len(body) < MAX_MESSAGE_BYTES
    for room, recovery in found.items():
        read = [json.loads(bytes(each))["offset"] for each in recovery.messages]
        recovered = recovery.recovered
        while recovery.more:
            recovery = history.read(room, recovery.offset, 1_000)  # noqa: PLW2901 - the next page
            read += [json.loads(bytes(each))["offset"] for each in recovery.messages]
            recovered &= recovery.recovered
        assert recovered is not lost[room]
        assert read == sent[room] or lost[room]
        assert recovery.offset == max([*sent[room], *read, recovery.offset])


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 100), st.integers(0, 4), st.lists(st.sampled_from(SIZES[:-1]), max_size=9)),
        max_size=25,
    ),
    st.sampled_from([0, 16_000_000]),
)
def test_the_last_messages_of_several_rooms_are_cut_visibly(
    rooms: list[tuple[int, int, list[int]]], max_bytes: int
) -> None:
    """Of a room that has no space left, the client reads everything with `history`. The oldest messages are gone."""
    table = StreamTable(NOW)
    expected: dict[str, list[int]] = {}
    positions: dict[str, Position] = {}
    for number, (count, gone, sizes) in enumerate(rooms):
        room = f"room-{number}"
        positions[room] = Position(last=count)
        offsets = [table.append(room, "x" * size) for size in sizes]
        for offset in offsets[:gone]:
            table.delete(room, offset)
        expected[room] = offsets[gone:][-count:] if count else []
    streams = Streams(table, "gatecast", Backoff(sleep=lambda _: None), table.clock)
    history = History(streams, EntryCache(max_bytes), table.clock)
    found = history.resume(positions, len(positions)) if positions else {}
    body = msgspec.json.encode([{"room": room, **each.fields()} for room, each in found.items()])
    assert len(body) < MAX_RESPONSE_BYTES or sum(len(each.messages) for each in found.values()) == 1
    for room, recovery in found.items():
        pages = [recovery]
        while pages[-1].more:
            pages.append(history.read(room, pages[-1].offset, 1_000))
        assert all(page.recovered for page in pages)
        assert [json.loads(bytes(each))["offset"] for page in pages for each in page.messages] == expected[room]
        assert pages[-1].offset == table.head(room)
