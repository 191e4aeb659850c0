"""Dead letters: what a message on the dead-letter queue is, and whether sending it again can help. Pure.

The worker gives each of them a message attribute `reason`: a word and, after a colon, what is wrong, for people. What
SQS itself has moved there, after too many receives, has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from gatecast.broadcast import Broadcast, InvalidBroadcast, decode
from gatecast.frames import MAX_FRAME_BYTES

TOO_LARGE: Final = "too_large"
"""The reason of a broadcast whose frame is longer than API Gateway accepts, so that v2 connections missed it."""
MISSING_OBJECT: Final = "missing_object"
FOREIGN_BUCKET: Final = "foreign_bucket"
NO_BUCKET: Final = "no_bucket"
PAYLOAD_REASONS: Final = (MISSING_OBJECT, FOREIGN_BUCKET, NO_BUCKET)
"""Whose broadcasts return at once if the cause still exists."""
REASONS: Final = ("undelivered", "rejected", "receives", "damaged", *PAYLOAD_REASONS)
"""The reasons that the worker gives for broadcasts that may succeed when they are sent again."""
NO_REASON: Final = "no reason"
_TOO_LARGE_TEXT: Final = f"{TOO_LARGE}: clients that use v2 would receive more than {MAX_FRAME_BYTES:,} bytes"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message on the dead-letter queue. All of its texts come from others, and are not safe for a terminal."""

    message_id: str
    receipt_handle: str
    body: str
    reason: str
    sent_at_ms: int | None
    """When it came onto the queue, in milliseconds since the epoch."""
    broadcast: Broadcast | None
    """None if it is poison."""

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Self:
        """From a message of ReceiveMessage, with the attribute `reason` and the system attribute SentTimestamp."""
        reason = message.get("MessageAttributes", {}).get("reason", {}).get("StringValue", NO_REASON)
        sent_at_ms = message.get("Attributes", {}).get("SentTimestamp")
        try:
            broadcast = decode(message["Body"])
        except InvalidBroadcast:
            broadcast = None
        return cls(
            message["MessageId"],
            message["ReceiptHandle"],
            message["Body"],
            reason,
            None if sent_at_ms is None else int(sent_at_ms),
            broadcast,
        )

    @property
    def word(self) -> str:
        """The reason without what follows it for people."""
        return word_of(self.reason)

    @property
    def identity(self) -> tuple[str, str, str] | None:
        """What makes two dead letters the same broadcast: room, id and part. None if it is poison."""
        return (self.broadcast.room or "", self.broadcast.id, self.broadcast.part) if self.broadcast else None

    @property
    def published_at_ms(self) -> int | None:
        """When it was published or, where no publisher has set a time, when it came onto the queue."""
        return (self.broadcast and self.broadcast.published_at_ms) or self.sent_at_ms

    def why_not_resent(self) -> str | None:
        """Why it must not be sent again before a person has looked at it; None if it may."""
        if self.broadcast is not None and self.word in REASONS:
            return None
        return _TOO_LARGE_TEXT if self.reason == TOO_LARGE else self.reason

    def describe(self, *, now_ms: float) -> str:
        """Whom it reaches, its id and part, and its age: everything but the payload. Of poison, only its age."""
        published_at_ms = now_ms if self.published_at_ms is None else self.published_at_ms
        age = f"{max(0.0, now_ms - published_at_ms) / 60_000:,.0f} min old"
        broadcast = self.broadcast
        if broadcast is None:
            return age
        count = len(broadcast.connections or ())
        target = f"room {broadcast.room}" if broadcast.room else f"{count:,} connection{'s' * (count != 1)}"
        part = f", part {broadcast.part}" if broadcast.part else ""
        return f"{target}, id {broadcast.id}{part}, {age}"


def word_of(reason: str) -> str:
    """The word of a reason, without what follows it for people."""
    return reason.partition(":")[0]
