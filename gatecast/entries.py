"""The entries of a room's history: a message and its offset, as an item of the table."""

import math
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET

from gatecast.broadcast import InvalidBroadcast, check_is_json
from gatecast.frames import Message
from gatecast.table import ENTRY_PREFIX, Item, entry_sk, key, lenient_number, milliseconds, seconds, stream_pk, text_of

_MAX_NUMBER: Final = 2**53
"""From here on, JSON numbers are not exact everywhere."""
_OFFSET: Final = re.compile(rf"{ENTRY_PREFIX}[0-9]{{16}}")


def entry_item(room: str, message: Message, *, expires_at: int, message_expires_at_ms: int | None = None) -> Item:
    """A stream entry: `message`, which must have an offset.

    `expires_at` is when the room's history ends for it, `message_expires_at_ms` when nobody shall receive it any more.
    """
    item: Item = {
        **key(stream_pk(room), entry_sk(int(message.offset or 0))),
        "id": {"S": message.id},
        "published_at_ms": milliseconds("published_at_ms", message.published_at_ms),
        "expires_at": seconds("expires_at", expires_at),
    }
    if message.data is not UNSET:
        item["data"] = {"S": message.data}
    if message.json is not UNSET:
        item["json"] = {"S": bytes(message.json).decode()}
    if message.from_ is not UNSET:
        item["from"] = {"S": message.from_}
    if message_expires_at_ms is not None:
        item["expires_at_ms"] = milliseconds("expires_at_ms", message_expires_at_ms)
    return item


class Entry(NamedTuple):
    """A stream entry that was read. Times are those of `entry_item`."""

    message: Message
    expires_at: float
    message_expires_at_ms: float | None

    @classmethod
    def from_item(cls, item: Mapping[str, Any]) -> "Entry | None":
        """The entry in an item; None if its offset, time, id or payload is invalid, so that it cannot be delivered."""
        match item:
            case {"sk": {"S": str(sk)}, "id": {"S": str(id_)}} if _OFFSET.fullmatch(sk):
                pass
            case _:
                return None
        offset = int(sk.removeprefix(ENTRY_PREFIX))
        published_at_ms = int(lenient_number(item.get("published_at_ms")) or 0)
        if max(offset, abs(published_at_ms)) >= _MAX_NUMBER:
            return None
        data, json, from_ = (text_of(item.get(name)) for name in ("data", "json", "from"))
        if (data is None) == (json is None):
            return None
        raw = UNSET if json is None else msgspec.Raw(json.encode())
        if isinstance(raw, msgspec.Raw):
            try:
                check_is_json(raw)
            except InvalidBroadcast:
                return None
        expires_at, expires_at_ms = lenient_number(item.get("expires_at")), lenient_number(item.get("expires_at_ms"))
        message = Message(
            id=id_,
            from_=UNSET if from_ is None else from_,
            offset=offset,
            published_at_ms=published_at_ms,
            data=UNSET if data is None else data,
            json=raw,
        )
        return cls(message, math.inf if expires_at is None else expires_at, expires_at_ms)
