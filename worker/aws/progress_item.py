"""A progress item as DynamoDB stores it, and its strict parser: an item that no worker writes is unreadable.

Besides its keys it has `message_id`, `receives`, `claimed_by`, `claimed_at` (the claim: which message, at which receive
count, under which claim id, when), `renewed_at` (when the broadcast was last known to be in progress), `cursor`,
`pending`, `pending_v2` (the checkpoint), `progressed_at_receive`, `offset` (in its room's history) and `expires_at`; if
it ends in a receipt also `receipt`, which belongs to the checkpoint, and `receipt_revision`, the number of that write
under the same claim. A completed one has only the claim's message and times, and `completed_at`. Pure.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import msgspec

from gatecast.broadcast import LARGEST_OFFSET, Broadcast, utf8_length
from gatecast.table import Key
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import DUPLICATE_SECONDS, Standing
from worker.decisions.locator import Locator, is_locator
from worker.ports import Claim

TTL_SECONDS: Final = 15 * 24 * 3600
"""Longer than the maximum retention of a queue (14 days), so that a message never outlives its progress item."""
_MAX_SORT_KEY_BYTES: Final = 1024


class UnreadableItem(Exception):
    """An item does not have the form that workers write; the argument says what is wrong.

    `offset` is the broadcast's offset, if it can be read nevertheless.
    """

    offset: int | None = None


class _S(msgspec.Struct):
    S: str


class _N(msgspec.Struct):
    N: str


class _B(msgspec.Struct):
    B: bytes


class _Offset(msgspec.Struct):
    offset: _N | None = None


class ProgressItem(msgspec.Struct):
    """If all attributes are absent, there is no item."""

    message_id: _S | None = None
    receives: _N | None = None
    claimed_by: _S | None = None
    claimed_at: _N | None = None
    renewed_at: _N | None = None
    completed_at: _N | None = None
    cursor: _S | None = None
    pending: _B | None = None
    pending_v2: _B | None = None
    receipt: _B | None = None
    progressed_at_receive: _N | None = None
    expires_at: _N | None = None
    offset: _N | None = None

    def valid_offset(self) -> int | None:
        """The broadcast's offset in its room's history, if it has one. Raises UnreadableItem."""
        if self.offset is None:
            return None
        offset = _integer(self.offset)
        if not 1 <= offset <= LARGEST_OFFSET:
            raise UnreadableItem(f"`offset` is not a number from 1 to {LARGEST_OFFSET}")
        return offset

    def standing(self, now: float) -> Standing:
        """The state of the broadcast's claim. Raises UnreadableItem.

        An expired item counts as so old that any other message may start the broadcast over.
        """
        seen_at = max(_integer(self.claimed_at), _integer(self.renewed_at))
        if self.expires_at is not None and _integer(self.expires_at) <= now:
            seen_at = min(seen_at, int(now) - DUPLICATE_SECONDS)
        if seen_at > now + DUPLICATE_SECONDS:
            raise UnreadableItem("the claim's time is in the future")
        completed = self.completed_at is not None
        if self.message_id is not None and not completed and (self.receives is None or self.claimed_by is None):
            raise UnreadableItem("a claim without `receives` or `claimed_by`")
        return Standing(
            self.message_id.S if self.message_id else None,
            _integer(self.receives),
            self.claimed_by.S if self.claimed_by else "",
            seen_at,
            completed,
        )

    def progressed_at(self) -> int | None:
        """The receive count at which a member last had an outcome, or until which receives do not count as attempts.

        Raises UnreadableItem.
        """
        return _integer(self.progressed_at_receive) if self.progressed_at_receive else None

    def start(self, broadcast: Broadcast) -> Checkpoint:
        """The checkpoint to resume from. Raises UnreadableItem if it cannot be one of this broadcast."""
        if self.cursor is None or self.pending is None:
            return Checkpoint()
        try:
            start = Checkpoint.decode(
                self.cursor.S,
                self.pending.B,
                self.pending_v2.B if self.pending_v2 else None,
                self.receipt.B if self.receipt else None,
            )
        except msgspec.MsgspecError as error:
            raise UnreadableItem(f"`pending` or `pending_v2`: {error}") from None
        if broadcast.connections:
            count = len(set(broadcast.connections))
            if start.cursor and not (start.cursor.isascii() and start.cursor.isdecimal() and _up_to(start, count)):
                raise UnreadableItem(f"`cursor` is not a number from 0 to {count}")
        elif is_locator(start.cursor):
            try:
                Locator.decode(start.cursor)
            except msgspec.MsgspecError as error:
                raise UnreadableItem(f"`cursor`: {error}") from None
        elif utf8_length(start.cursor) > _MAX_SORT_KEY_BYTES:
            raise UnreadableItem("`cursor` is longer than a key of the table may be")
        return start


def _up_to(start: Checkpoint, count: int) -> bool:
    return len(start.cursor) <= len(str(count)) and int(start.cursor) <= count


def parse_item(item: msgspec.Raw) -> ProgressItem:
    """Raises UnreadableItem. For invalid JSON, which no item can be, msgspec.DecodeError or UnicodeDecodeError."""
    try:
        return msgspec.json.decode(item, type=ProgressItem)
    except msgspec.ValidationError as error:
        unreadable = UnreadableItem(str(error))
        with suppress(msgspec.ValidationError, UnreadableItem):
            unreadable.offset = ProgressItem(offset=msgspec.json.decode(item, type=_Offset).offset).valid_offset()
        raise unreadable from None


@contextmanager
def judging(item: ProgressItem) -> Iterator[None]:
    """Add the item's offset, if it can be read, to an UnreadableItem that is raised meanwhile."""
    try:
        yield
    except UnreadableItem as error:
        with suppress(UnreadableItem):
            error.offset = item.valid_offset()
        raise


class CompletedKey(msgspec.Struct):
    """The key of an item made by `completed_item`."""

    pk: _S
    sk: _S

    @property
    def key(self) -> tuple[str, str]:
        return self.pk.S, self.sk.S


def completed_item(claim: Claim, now: int) -> dict[str, Any]:
    """The item that records a completion at `now` (seconds since the epoch), in DynamoDB's JSON."""
    return {
        **claim.key,
        "message_id": {"S": claim.message_id},
        "claimed_at": {"N": str(now)},
        "completed_at": {"N": str(now)},
        "expires_at": {"N": str(now + TTL_SECONDS)},
    }


def reset_item(key: Key, offset: int, now: int) -> dict[str, Any]:
    """An item of which only the broadcast's offset is known, in DynamoDB's JSON: any message may claim it."""
    return {**key, "offset": {"N": str(offset)}, "expires_at": {"N": str(now + TTL_SECONDS)}}


def _integer(number: _N | None) -> int:
    try:
        return int(number.N) if number else 0
    except ValueError:
        raise UnreadableItem("an attribute of type N is not a whole number") from None
