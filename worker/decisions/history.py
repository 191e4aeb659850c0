"""Which offset each message of a room gets, and what a transaction that was not executed means. Pure.

A room's head item has the offset of its latest message. One transaction changes the head, writes an entry for each of
its messages, and records each message's offset in the progress item of its broadcast:

    head      offset = n + k - 1     if it is still the offset that was seen (or absent, as it was seen)
    k entries n … n + k - 1          if there is none at this offset
    k items   offset = n … n + k - 1 if claimed by the same claim, and without an offset

So offsets are dense, a message has one offset or none, and a worker that has lost its claim can assign none. A response
may be lost: then the repeated transaction is cancelled, and the progress items contain what happened. A room without a
head starts at the clock in milliseconds, so offsets never run backwards, even if someone deletes the head.
`tests/property/test_history_schedules.py` explores every schedule of this.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final, NamedTuple

from msgspec import UNSET

from gatecast.broadcast import Broadcast, utf8_length
from gatecast.table import offset_of_head

MAX_SHARED: Final = 49
"""Messages per transaction: with the head, and two items for each, DynamoDB's limit of 100 actions."""
MAX_SHARED_BYTES: Final = 400_000
"""Of the messages of a transaction. DynamoDB's limit is 4 MB; but a room's entries are in one partition. It takes 1,000
write units per second, and a transaction uses two of them per KB."""
_ITEM_BYTES: Final = 1_000
"""More than an entry has besides its payload."""
_MAX_DOUBLINGS: Final = 53

Attribute = Mapping[str, Any]
"""The value of a head's attribute `offset` as it is stored, such as `{"N": "7"}`."""


class NotAppended(Enum):
    """Why a message has no offset."""

    TAKEN_OVER = auto()
    """Another worker has taken the broadcast over, or completed it: leave the broadcast to that one."""
    STOPPED = auto()
    """The lease is ending or lost. The offset may have been assigned: then it is in the progress item."""
    REJECTED = auto()
    """DynamoDB never accepts the entry. The broadcast is delivered without an offset."""


class SeenHead(NamedTuple):
    """What a read, or a condition that was not met, showed of a room's head; `stored` is None if it has no offset."""

    stored: Attribute | None

    @property
    def offset(self) -> int | None:
        """None if there is none from which offsets can continue."""
        return offset_of_head({"offset": self.stored}) if self.stored is not None else None

    @property
    def is_damaged(self) -> bool:
        return self.stored is not None and self.offset is None

    @classmethod
    def at(cls, offset: int) -> "SeenHead":
        return cls({"N": str(offset)})


@dataclass(frozen=True, slots=True)
class Conflict:
    """Why a transaction was not executed. Its messages are numbered from 0."""

    head: SeenHead | None = None
    """The head, if it is not the expected one and the response contains it."""
    head_changed: bool = False
    occupied: frozenset[int] = frozenset()
    """Messages at whose offset there is an entry already."""
    recorded: Mapping[int, int] = field(default_factory=dict)
    """Messages whose broadcast has an offset already, under the same claim."""
    taken_over: frozenset[int] = frozenset()
    """Messages whose broadcast is not claimed by this worker any more."""

    @property
    def lost_race(self) -> bool:
        """Whether another transaction was faster, or was being executed."""
        return self.head_changed or not (self.occupied or self.recorded or self.taken_over)


class Known(NamedTuple):
    """What a worker has seen of a room's stream. `head` is None if it has to be read, `used` is the largest offset."""

    head: SeenHead | None = None
    used: int = 0

    def after(self, head: SeenHead) -> "Known":
        """After a response that shows the head."""
        return Known(head, max(self.used, head.offset or 0))

    def after_read(self, head: SeenHead) -> "Known":
        """After a read that transactions of this worker may have overtaken."""
        overtaken = self.head is not None and (head.offset or 0) < self.used
        return self if overtaken else self.after(head)

    def after_conflict(self, conflict: Conflict, offsets: Sequence[int]) -> "Known":
        """After a transaction with these offsets was not executed."""
        known = self
        if conflict.head is not None:
            known = known.after(conflict.head)
        elif conflict.head_changed:
            known = known._replace(head=None)
        return known._replace(used=max(known.used, *(offsets[number] for number in conflict.occupied), 0))

    def next_offset(self, clock_ms: int, collisions: int = 0) -> int:
        """The offset of the next message: the one after the head, or the clock in milliseconds. Requires `head`.

        `used` is below the result unless someone has changed or deleted the head, or has written entries beyond it.
        Then the room continues beyond it, and not before the clock, by a step that grows with each collision: no number
        of such entries blocks the room for long.
        """
        offset = self.head.offset if self.head is not None else None
        following = max(clock_ms, 1) if offset is None else offset + 1
        if self.used < following:
            return following
        return max(clock_ms, self.used + (1 << min(collisions, _MAX_DOUBLINGS)))


def may_append(broadcast: Broadcast, *, is_start: bool, history_seconds: int) -> bool:
    """Whether a broadcast that has no offset yet belongs to its room's history.

    One that has begun without an offset, when the room had no history, gets none.
    """
    return history_seconds > 0 and is_start and lacks_offset(broadcast)


def lacks_offset(broadcast: Broadcast) -> bool:
    """Whether it is a message of a room that is to be delivered without an offset, unless it is appended."""
    is_message = broadcast.presence is broadcast.close is UNSET
    return bool(broadcast.room) and is_message and broadcast.shard is broadcast.offset is UNSET


def outcome(number: int, conflict: Conflict) -> int | NotAppended | None:
    """What becomes of one message of a transaction that was not executed; None if it gets a new offset."""
    if number in conflict.recorded:
        return conflict.recorded[number]
    return NotAppended.TAKEN_OVER if number in conflict.taken_over else None


def size_of(broadcast: Broadcast) -> int:
    """An upper bound for the bytes of a broadcast's entry."""
    if broadcast.reference is not UNSET:
        return utf8_length(broadcast.reference.key) + _ITEM_BYTES
    payload = utf8_length(broadcast.data) if broadcast.data is not UNSET else len(bytes(broadcast.json or b""))
    return payload + _ITEM_BYTES


def share(messages: Iterable[tuple[tuple[str, str], int]]) -> Iterator[int]:
    """Which of the waiting messages share the next transaction: their numbers, in order.

    Each is given by the key of its progress item and by its size. An item may occur only once in a transaction.
    """
    seen: set[tuple[str, str]] = set()
    total = 0
    for number, (key, size) in enumerate(messages):
        if key in seen:
            continue
        if seen and (len(seen) == MAX_SHARED or total + size > MAX_SHARED_BYTES):
            return
        seen.add(key)
        total += size
        yield number
