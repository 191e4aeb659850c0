"""The entries of a room's history: a message and its offset, as an item of the table.

A payload that is an object in S3 is stored as its place. Who reads the entry makes the link for the client.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from gatecast.broadcast import InvalidBroadcast, Reference, check_is_json
from gatecast.frames import Message
from gatecast.table import ENTRY_PREFIX, Item, entry_sk, key, lenient_number, milliseconds, seconds, stream_pk, text_of

_MAX_NUMBER: Final = 2**53
"""From here on, JSON numbers are not exact everywhere."""
_OFFSET: Final = re.compile(rf"{ENTRY_PREFIX}[0-9]{{16}}")


def entry_item(
    room: str,
    message: Message,
    *,
    expires_at: int,
    message_expires_at_ms: int | None = None,
    reference: Reference | UnsetType = UNSET,
) -> Item:
    """A stream entry: `message`, which must have an offset, and the place of its payload if that is an object in S3.

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
    if reference is not UNSET:
        item["reference"] = {"M": _reference_attribute(reference)}
    if message.from_ is not UNSET:
        item["from"] = {"S": message.from_}
    if message_expires_at_ms is not None:
        item["expires_at_ms"] = milliseconds("expires_at_ms", message_expires_at_ms)
    return item


class Entry(NamedTuple):
    """A stream entry that was read. Times are those of `entry_item`. `reference` is the place of an object in S3."""

    message: Message
    expires_at: float
    message_expires_at_ms: float | None
    reference: Reference | None = None

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
        reference = _reference_in(item["reference"]) if "reference" in item else None
        if sum(payload is not None for payload in (data, json, reference)) != 1:
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
        return cls(message, math.inf if expires_at is None else expires_at, expires_at_ms, reference)


def _reference_attribute(reference: Reference) -> dict[str, dict[str, str]]:
    return {
        "bucket": {"S": reference.bucket},
        "key": {"S": reference.key},
        "bytes": {"N": str(reference.bytes)},
        "content_type": {"S": reference.content_type},
    }


def _reference_in(attribute: object) -> Reference | None:
    """The place of an object in S3; None if the attribute is none."""
    match attribute:
        case {
            "M": {
                "bucket": {"S": str(bucket)},
                "key": {"S": str(key_)},
                "bytes": {"N": str(length)},
                "content_type": {"S": str(content_type)},
            }
        } if length.isascii() and length.isdecimal():
            fields = {"bucket": bucket, "key": key_, "bytes": int(length), "content_type": content_type}
        case _:
            return None
    try:
        return msgspec.convert(fields, Reference)
    except msgspec.ValidationError:
        return None
