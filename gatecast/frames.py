"""Frames: what connections of the dialect `gatecast.v2` receive. Their format is defined only here. Pure.

So is that of a reference, which connections of `gatecast.v1` receive as well.

A frame is one JSON object with `type`. Messages have the same form in frames and in the responses of `join` and
`history`. A client ignores types and fields that it does not know.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from gatecast.broadcast import MAX_DATA_BYTES, Broadcast

V1: Final = 1
"""The dialect `gatecast.v1`: payloads as they are. Connections without a subprotocol use it, too."""
V2: Final = 2
"""The dialect `gatecast.v2`: frames."""
MAX_FRAME_BYTES: Final = MAX_DATA_BYTES


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """The payload as an object in S3, `bytes` long. Anyone who has the URL can read it until `expires_at_ms`."""

    url: str
    bytes: int
    content_type: str
    expires_at_ms: int


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message in a frame, in the response of a resume, or in a room's history. Times are milliseconds.

    `reference` is absent from a room's history, which has the object's place instead (`gatecast.entries`).
    """

    id: str
    from_: str | UnsetType = msgspec.field(default=UNSET, name="from")
    offset: int | UnsetType = UNSET
    published_at_ms: int
    data: str | UnsetType = UNSET
    json: msgspec.Raw | UnsetType = UNSET
    reference: Link | UnsetType = UNSET

    @classmethod
    def from_broadcast(cls, broadcast: Broadcast, link: Link | UnsetType = UNSET) -> "Message":
        """The message that a broadcast delivers; its time of publication must be known.

        `link` is the link to its payload, if that is an object in S3.
        """
        return cls(
            id=broadcast.id,
            from_=broadcast.from_,
            offset=broadcast.offset,
            published_at_ms=int(broadcast.published_at_ms or 0),
            data=broadcast.data,
            json=broadcast.json,
            reference=link,
        )

    def encode(self) -> msgspec.Raw:
        return msgspec.Raw(msgspec.json.encode(self))


class _Messages(msgspec.Struct, tag_field="type", tag="messages"):
    room: str | UnsetType
    messages: Sequence[msgspec.Raw]
    skipped: Sequence[tuple[int, int]] | UnsetType


class _Reference(Link, tag_field="type", tag="reference", frozen=True):
    pass


class _Presence(msgspec.Struct, tag_field="type", tag="presence"):
    room: str
    joined: Sequence[str]
    departed: Sequence[str]
    at_ms: int


class _Closed(msgspec.Struct, tag_field="type", tag="closed"):
    code: str
    retry: bool


def messages(
    room: str | UnsetType, encoded: Sequence[msgspec.Raw], skipped: Sequence[tuple[int, int]] | UnsetType = UNSET
) -> bytes:
    """A frame with these messages (`Message.encode`). `room` is UNSET for a broadcast to connections of no room.

    `skipped` are ranges of offsets, first and last, that the frame covers without a message.
    """
    return msgspec.json.encode(_Messages(room, encoded, skipped))


def broadcast_frame(broadcast: Broadcast, link: Link | UnsetType = UNSET) -> bytes:
    """The frame that delivers this broadcast. It may be longer than MAX_FRAME_BYTES."""
    return messages(room_of(broadcast), [Message.from_broadcast(broadcast, link).encode()])


def reference(link: Link) -> bytes:
    """What connections of `gatecast.v1` receive in place of a payload that is an object in S3."""
    return msgspec.json.encode(_Reference(**msgspec.structs.asdict(link)))


def skipping_frame(broadcast: Broadcast) -> bytes:
    """The frame for a connection that is excluded from a broadcast with an offset: the offset without the message."""
    offset = int(broadcast.offset or 0)
    return messages(room_of(broadcast), [], [(offset, offset)])


def room_of(broadcast: Broadcast) -> str | UnsetType:
    """The room that frames of this broadcast name."""
    return broadcast.room or broadcast.origin_room


def presence(room: str, *, joined: Sequence[str] = (), departed: Sequence[str] = (), at_ms: int) -> bytes:
    """Users who have joined the room, and users who have departed. Of two frames about a user the later one holds."""
    return msgspec.json.encode(_Presence(room, joined, departed, at_ms))


def closed(code: str, *, retry: bool) -> bytes:
    """The last frame before the connection is closed. `retry`: whether to connect again, with a new token if needed."""
    return msgspec.json.encode(_Closed(code, retry))
