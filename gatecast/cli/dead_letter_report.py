"""A dead letter as lines for people, and as values for JSON."""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET

from gatecast.broadcast import Broadcast
from gatecast.cli.output import time_text
from gatecast.dead_letters import DeadLetter


def summary(letter: DeadLetter) -> dict[str, Any]:
    """What it is, without its payload, as values for JSON."""
    broadcast = letter.broadcast
    found: dict[str, Any] = {
        "message": letter.message_id,
        "reason": letter.reason,
        "resendable": letter.why_not_resent() is None,
        "sent_at_ms": letter.sent_at_ms,
    }
    if broadcast is not None:
        found |= {
            "id": broadcast.id,
            "part": broadcast.part,
            "room": broadcast.room or None,
            "connections": len(broadcast.connections or ()),
            "published_at_ms": letter.published_at_ms,
        }
    return found


def contents(letter: DeadLetter) -> dict[str, Any]:
    """Whom it reaches and what, as values for JSON. Of poison, the body as it is."""
    if letter.broadcast is None:
        return {"body": letter.body}
    return {"broadcast": msgspec.Raw(letter.body.encode("utf-8", "replace"))}


def lines(letter: DeadLetter) -> Iterator[str]:
    """The dead letter for people."""
    yield f"message   {letter.message_id}"
    yield f"reason    {letter.reason}"
    if letter.sent_at_ms is not None:
        yield f"stored    {time_text(letter.sent_at_ms / 1000)}"
    broadcast = letter.broadcast
    if broadcast is None:
        yield f"body      {letter.body}"
        return
    yield f"id        {broadcast.id}" + (f", part {broadcast.part}" if broadcast.part else "")
    if letter.published_at_ms is not None:
        yield f"published {time_text(letter.published_at_ms / 1000)}"
    if broadcast.room:
        yield f"room      {broadcast.room}"
    for connection_id in broadcast.connections or ():
        yield f"to        {connection_id}"
    yield from _payload(broadcast)


def _payload(broadcast: Broadcast) -> Iterator[str]:
    if isinstance(broadcast.data, str):
        yield f"data      {broadcast.data}"
    elif isinstance(broadcast.json, msgspec.Raw):
        yield f"json      {bytes(broadcast.json).decode('utf-8', 'replace')}"
    elif broadcast.reference is not UNSET:
        reference = broadcast.reference
        yield f"object    s3://{reference.bucket}/{reference.key}, {reference.bytes:,} bytes, {reference.content_type}"
    elif broadcast.close is not UNSET:
        yield f"close     code {broadcast.close.code}, retry {broadcast.close.retry}"
