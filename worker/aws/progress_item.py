"""A progress item as DynamoDB keeps it, and its strict reading: what no worker writes is `Unreadable`.

Beside its keys it has `message_id`, `receives`, `claimed_by`, `claimed_at` (the claim: which message, at which receive,
by which lease, when), `renewed_at` (when it was last in progress for certain), `cursor`, `pending` (the checkpoint),
`progressed_at_receive` and `expires_at`. Of a completed one only the claim's message and times are left, and
`completed_at`. Pure.
"""

from typing import Any, Final

import msgspec

from gatecast.broadcast import Broadcast, utf8_length
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import DUPLICATE_SECONDS, Standing
from worker.ports import Claim

TTL_SECONDS: Final = 15 * 24 * 3600
"""Beyond the longest retention of a queue (14 days): a message never outlives what is known about it."""
_MAX_SORT_KEY_BYTES: Final = 1024


class Unreadable(Exception):  # noqa: N818 - it says what is the case
    """An item has another form than any worker writes; the argument says what is wrong."""


class _S(msgspec.Struct):
    S: str


class _N(msgspec.Struct):
    N: str


class _B(msgspec.Struct):
    B: bytes


class ProgressItem(msgspec.Struct):
    """All absent: there is no item."""

    message_id: _S | None = None
    receives: _N | None = None
    claimed_by: _S | None = None
    claimed_at: _N | None = None
    renewed_at: _N | None = None
    completed_at: _N | None = None
    cursor: _S | None = None
    pending: _B | None = None
    progressed_at_receive: _N | None = None
    expires_at: _N | None = None

    def standing(self, now: float) -> Standing:
        """Raises Unreadable. An item that has expired counts as absent for other messages: as one of long ago."""
        seen_at = max(_integer(self.claimed_at), _integer(self.renewed_at))
        if self.expires_at is not None and _integer(self.expires_at) <= now:
            seen_at = min(seen_at, int(now) - DUPLICATE_SECONDS)
        if seen_at > now + DUPLICATE_SECONDS:
            raise Unreadable("a claim of the future")
        completed = self.completed_at is not None
        if self.message_id is not None and not completed and (self.receives is None or self.claimed_by is None):
            raise Unreadable("a claim without `receives` or `claimed_by`")
        return Standing(
            self.message_id.S if self.message_id else None,
            _integer(self.receives),
            self.claimed_by.S if self.claimed_by else "",
            seen_at,
            completed,
        )

    def progressed_at(self) -> int | None:
        """At which receive somebody last had an outcome, or was known to have been waited for. Raises Unreadable."""
        return _integer(self.progressed_at_receive) if self.progressed_at_receive else None

    def start(self, broadcast: Broadcast) -> Checkpoint:
        """Raises Unreadable for what cannot be a checkpoint of this broadcast."""
        if self.cursor is None or self.pending is None:
            return Checkpoint()
        try:
            start = Checkpoint.decode(self.cursor.S, self.pending.B)
        except msgspec.MsgspecError as error:
            raise Unreadable(f"`pending`: {error}") from None
        if broadcast.connections:
            count = len(set(broadcast.connections))
            if start.cursor and not (start.cursor.isascii() and start.cursor.isdecimal() and _up_to(start, count)):
                raise Unreadable(f"`cursor` is no number from 0 to {count}")
        elif utf8_length(start.cursor) > _MAX_SORT_KEY_BYTES:
            raise Unreadable("`cursor` is longer than a key of the table")
        return start


def _up_to(start: Checkpoint, count: int) -> bool:
    return len(start.cursor) <= len(str(count)) and int(start.cursor) <= count


def read(item: msgspec.Raw) -> ProgressItem:
    """Raises Unreadable; and msgspec.DecodeError or UnicodeDecodeError for what is no JSON, which no item can be."""
    try:
        return msgspec.json.decode(item, type=ProgressItem)
    except msgspec.ValidationError as error:
        raise Unreadable(str(error)) from None


class CompletedKey(msgspec.Struct):
    """Of an item that `completed_item` has made."""

    pk: _S
    sk: _S

    @property
    def key(self) -> tuple[str, str]:
        return self.pk.S, self.sk.S


def completed_item(claim: Claim, now: int) -> dict[str, Any]:
    return {
        **claim.key,
        "message_id": {"S": claim.message_id},
        "claimed_at": {"N": str(now)},
        "completed_at": {"N": str(now)},
        "expires_at": {"N": str(now + TTL_SECONDS)},
    }


def _integer(number: _N | None) -> int:
    try:
        return int(number.N) if number else 0
    except ValueError:
        raise Unreadable("a number is none") from None
