"""How a broadcast, and all its parts, end in one receipt with true counts, at whichever step a worker dies. Pure.

A broadcast that ends in a receipt has a `ReceiptState` in its progress item, written together with each checkpoint:
what became of the members that are settled there. A worker that resumes it counts on, so each member counts once. When
all are settled, the state is written a last time, as ended. From then on nothing is counted or posted, and whichever
worker resumes the broadcast sends the same receipt.

A broadcast with parts (shards, remainders) shares its receipt with them. `SharedReceipt`, an item of its own, has the
names of the parts that are expected, among them the broadcast itself, and of those that have ended, and their sums. It
is complete when all that are expected have ended. The worker that ends a part and finds it complete sends the receipt.

    state with `begun_by` or `handed_off` ──▶ expect the parts ──▶ send them ──▶ state without these members
    state that has ended ──▶ end the part ──▶ if complete: send the receipt ──▶ record the completion ──▶ acknowledge

- A part is expected before it is sent, and by one that has not ended. So the receipt is not complete too early.
- What is to be sent is in the state before it is expected. So what is expected is sent, if not by this worker then by
  the one that resumes the broadcast.
- Expecting and ending a part twice has no effect, so every step may be repeated.
- Of the members of a remainder, either the state or the remainder counts each, never both: they leave the pending
  members in the same write that makes the remainder unnecessary to repeat.
- An id that is used again a day later begins a new receipt: `begun_by` is different then. Only the broadcast itself
  begins one, and `begun_by` is in its state before.
- A write that arrives late, after a later one, is rejected by its `revision`.

What if a part is never sent again, because a person drops it from the dead-letter queue? Then there is no receipt:
there is none with missing counts. `tests/property/test_receipt_schedules.py` explores every schedule of this.
"""

import zlib
from typing import Final, NamedTuple

import msgspec
from msgspec import UNSET

from gatecast.broadcast import Broadcast
from gatecast.receipt import Receipt
from gatecast.room_settings import RoomSettings

ITSELF: Final = "the broadcast itself, not a part"
"""The broadcast's name among its parts: longer than a part's name can be."""
UNIT_BYTES: Final = 32 * 1024
"""API Gateway bills each message per 32 KB or part thereof. Source: its pricing."""


class Sums(NamedTuple):
    """What became of members, and how many posts and billed units it took."""

    delivered: int = 0
    gone: int = 0
    expired: int = 0
    rejected: int = 0
    undelivered: int = 0
    posts: int = 0
    billed_units: int = 0

    def plus(self, other: "Sums") -> "Sums":
        return Sums(*map(sum, zip(self, other, strict=True)))

    @property
    def members(self) -> int:
        return self.delivered + self.gone + self.expired + self.rejected + self.undelivered


class ReceiptState(msgspec.Struct, frozen=True, array_like=True):
    """What the progress item of a broadcast that ends in a receipt has besides its claim and its checkpoint."""

    sums: Sums = Sums()
    """Of the settled members."""
    revision: int = 0
    """The number of the write under its claim: a later one is not overwritten by an earlier one that arrives late."""
    begun_by: str = ""
    """The claim that began the receipt that it shares with its parts, if it is no part itself and has any."""
    handed_off: tuple[str, ...] = ()
    """Pending members that are being sent as a remainder, so that this broadcast does not count them."""
    milliseconds: int | None = None
    """From the publication until it ended; 0 if it settled nothing itself. None: it has not ended."""

    @property
    def has_ended(self) -> bool:
        return self.milliseconds is not None

    def encode(self, cursor: str, pending: bytes) -> bytes:
        """`cursor` and `pending` are the checkpoint that it belongs to."""
        return msgspec.msgpack.encode((_checksum(cursor, pending), self))

    @classmethod
    def decode(cls, encoded: bytes, cursor: str, pending: bytes) -> "ReceiptState | None":
        """None if it does not belong to this checkpoint, which a worker of an earlier version has written."""
        try:
            checksum, state = msgspec.msgpack.decode(encoded, type=tuple[int, ReceiptState])
        except msgspec.MsgspecError:
            return None
        return state if checksum == _checksum(cursor, pending) else None


def _checksum(cursor: str, pending: bytes) -> int:
    return zlib.crc32(pending, zlib.crc32(cursor.encode("utf-8", "surrogatepass")))


class SharedReceipt(NamedTuple):
    """The receipt that the parts of a broadcast share. The functions below say what happens to it in the table."""

    begun_by: str
    expected: frozenset[str]
    ended: frozenset[str] = frozenset()
    sums: Sums = Sums()
    milliseconds: int = 0
    """Of the part that ended last, among those that settled anything."""

    @property
    def is_complete(self) -> bool:
        return self.expected <= self.ended


def expect(before: SharedReceipt | None, begun_by: str, parts: frozenset[str]) -> SharedReceipt | None:
    """The shared receipt once these parts are expected. `begun_by` is empty if it is a part that expects others.

    A part expects nothing where there is no receipt that it shares: it was published as a part.
    """
    if before is None or (begun_by and before.begun_by != begun_by):
        return SharedReceipt(begun_by, parts) if begun_by else None
    return before._replace(expected=before.expected | parts)


def end(before: SharedReceipt | None, part: str, sums: Sums, milliseconds: int) -> SharedReceipt | None:
    """The shared receipt once this part has ended; None if it is not part of one."""
    if before is None or part not in before.expected:
        return None
    if part in before.ended:
        return before
    return before._replace(
        ended=before.ended | {part},
        sums=before.sums.plus(sums),
        milliseconds=milliseconds or before.milliseconds,
    )


def forget(before: SharedReceipt | None, part: str) -> SharedReceipt | None:
    """The shared receipt if this part is expected no more, because it could not be sent."""
    return before._replace(expected=before.expected - {part}) if before is not None else None


def wants_receipt(broadcast: Broadcast, settings: RoomSettings) -> bool:
    """Whether the broadcast ends in a receipt. `settings` are those of its room, or the defaults for any part of it.

    A change of presence ends in none: it is not published by a program that could expect one.
    """
    if broadcast.presence is not UNSET:
        return False
    return settings.receipt if broadcast.receipt is UNSET else broadcast.receipt


def part_name(broadcast: Broadcast) -> str:
    return broadcast.part or ITSELF


def shares_receipt(broadcast: Broadcast, state: ReceiptState) -> bool:
    """Whether it ends in a receipt together with other parts."""
    return bool(broadcast.part or state.begun_by)


def billed_units(payload_bytes: int) -> int:
    """The units for which API Gateway bills a message of this size."""
    return max(1, -(-payload_bytes // UNIT_BYTES))


def room_of(broadcast: Broadcast) -> str | None:
    """The room whose members it is for, or was for; None for a broadcast that was published to `connections`."""
    return broadcast.room or broadcast.origin_room or None


def receipt(broadcast: Broadcast, sums: Sums, milliseconds: int) -> Receipt:
    """The receipt of a broadcast, or of that which this is a part of."""
    return Receipt(
        id=broadcast.id,
        room=room_of(broadcast),
        members=sums.members,
        conflated=0,
        seconds=milliseconds / 1000,
        **sums._asdict(),
    )
