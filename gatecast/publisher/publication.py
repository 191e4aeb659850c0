"""What a program wants to publish, and the queue message and object in S3 that it becomes. Pure.

Everything is validated here, before any call. A retry with the same id makes the same object: its key is a digest of
the broadcast's identity and of its content, so that no object ever changes, and none of a publisher's text is in it.
"""

import json
import math
import re
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, Final, Literal, NamedTuple, TypedDict

import msgspec
from msgspec import UNSET

from gatecast.broadcast import (
    LARGEST_OFFSET,
    MAX_DATA_BYTES,
    MAX_NAME_LENGTH,
    Broadcast,
    InvalidBroadcast,
    Reference,
    check_is_json,
    for_sqs,
)
from gatecast.frames import MAX_FRAME_BYTES, broadcast_frame
from gatecast.publisher.queue import queue_message

MAX_DELAY_SECONDS: Final = 900
"""Source: API reference of SendMessage, DelaySeconds."""
_MAX_EXPIRY_SECONDS: Final = 365 * 24 * 3600
_USER_ROOM: Final = "@user/"
_USER: Final = re.compile(rf"[!-~]{{1,{MAX_NAME_LENGTH - len(_USER_ROOM)}}}")
_CONTENT_TYPE: Final = re.compile(r"[ -~]{1,255}")
_TARGETS: Final = ("room", "user", "connections")
_PAYLOADS: Final = ("data", "json", "payload")


class Publication(TypedDict, total=False):
    """One message to publish, to one target (`room`, `user` or `connections`) with one payload.

    The payload is `data`, `json` or `payload`. All other fields are optional, and None is the same as leaving one out.
    """

    room: str
    """All members of this room; `@all` is every connection."""
    user: str
    """All connections of this user: the room `@user/{user}`."""
    connections: Collection[str]
    """These connections, 1 to 1,000."""
    data: str
    """Text, which clients receive as it is."""
    json: Any
    """What `json.dumps` accepts, without NaN and infinities; or JSON that is encoded already, as `msgspec.Raw`."""
    payload: bytes
    """Any bytes, always through the bucket: clients receive a URL."""
    content_type: str
    """Of `payload`; by default `application/octet-stream`."""
    id: str | None
    """For 24 hours, an id identifies one message to its room, or one to any `connections`. A new one if absent."""
    from_: str | None
    """Who published it, for clients of `gatecast.v2`."""
    except_: Collection[str] | None
    """Connections to leave out, at most 1,000."""
    key: str | None
    """Reserved for conflation; ignored so far."""
    receipt: bool | None
    """Whether it ends in a receipt; if absent, the room's setting decides."""
    expires_in: float | None
    """Seconds after its publication from which nobody receives it any more."""
    delay: int | None
    """Seconds before it is published, 0 to 900, on standard queues only. `published_at_ms` is the time after it."""


@dataclass(frozen=True, slots=True)
class Destination:
    """The kind of queue; and the bucket of payloads longer than `reference_above` bytes, if there is one."""

    fifo: bool
    bucket: str | None = None
    reference_above: int = MAX_DATA_BYTES

    def __post_init__(self) -> None:
        if type(self.reference_above) is not int or not 0 <= self.reference_above <= MAX_DATA_BYTES:
            raise ValueError(f"reference_above: expected a number of bytes from 0 to {MAX_DATA_BYTES}")
        if self.bucket is None and self.reference_above != MAX_DATA_BYTES:
            raise ValueError("reference_above: requires a bucket")
        if self.bucket is not None:
            try:
                msgspec.convert({"bucket": self.bucket, "key": "-", "bytes": 1, "content_type": "-"}, Reference)
            except msgspec.ValidationError:
                raise ValueError(f"bucket: {self.bucket!r} is not the name of an S3 bucket") from None


class Prepared(NamedTuple):
    """A valid message: its id, its arguments for SendMessage and, if it refers to an object, those for PutObject."""

    id: str
    message: dict[str, Any]
    upload: dict[str, Any] | None


class _Payload(NamedTuple):
    field: Literal["data", "json", "payload"]
    inline: Any
    """Its value in a broadcast."""
    content: bytes
    content_type: str


def prepare(message: Broadcast | Publication, to: Destination, *, now_ms: int) -> Prepared:
    """Raises InvalidBroadcast, which names the field; TypeError for an unknown field, and for anything else."""
    if isinstance(message, Broadcast):
        payload = _payload_of(message)
        if payload is None or to.bucket is None:
            return Prepared(message.id, queue_message(message, fifo=to.fifo), None)
        return _placed(partial(msgspec.structs.replace, message, data=UNSET, json=UNSET), payload, to, now_ms)
    if not isinstance(message, Mapping):
        raise TypeError(f"expected a Broadcast or a Publication, got {type(message).__name__}")
    if unknown := sorted(set(message) - Publication.__optional_keys__):
        raise TypeError(f"unknown: {', '.join(unknown)}; expected {', '.join(sorted(Publication.__optional_keys__))}")
    fields: dict[str, Any] = {name: value for name, value in message.items() if value is not None or name == "json"}
    delay_seconds = check_delay(fields.get("delay", 0), "delay", fifo=to.fifo)
    published_at_ms = now_ms + delay_seconds * 1000
    prepared = _placed(_factory(fields, published_at_ms), _payload_in(fields), to, published_at_ms)
    if delay_seconds:
        prepared.message["DelaySeconds"] = delay_seconds
    return prepared


def check_delay(seconds: Any, field: str, *, fifo: bool) -> int:
    """The delay, if the queue supports it. Raises InvalidBroadcast."""
    if type(seconds) is not int or not 0 <= seconds <= MAX_DELAY_SECONDS:
        raise InvalidBroadcast(field, f"expected a whole number of seconds from 0 to {MAX_DELAY_SECONDS}")
    if seconds and fifo:
        raise InvalidBroadcast(field, "a FIFO queue delays no single message; it has a delay of its own")
    return seconds


def id_of(message: Broadcast | Publication) -> str:
    """The message's id, even if it is invalid; a new one if it has none."""
    given = message.id if isinstance(message, Broadcast) else message.get("id")
    return uuid.uuid4().hex if given is None else str(given)


def room_of(message: Broadcast | Publication) -> str | None:
    """The room of a message that may be invalid, if it names one."""
    if isinstance(message, Broadcast):
        return message.room or None
    room: object = message.get("room")
    if room is None and message.get("user") is not None:
        room = f"{_USER_ROOM}{message['user']}"
    return room if isinstance(room, str) else None


def _factory(fields: Mapping[str, Any], published_at_ms: int) -> Callable[..., Broadcast]:
    """Makes the broadcast of these fields; only the payload is left to be given."""
    _one_of(_TARGETS, fields)
    room = fields.get("room", UNSET)
    if (user := fields.get("user")) is not None:
        if not isinstance(user, str) or not _USER.fullmatch(user):
            longest = MAX_NAME_LENGTH - len(_USER_ROOM)
            raise InvalidBroadcast("user", f"expected a name of 1 to {longest} characters from ! to ~")
        room = _USER_ROOM + user
    return partial(
        Broadcast,
        id=fields["id"] if "id" in fields else uuid.uuid4().hex,
        room=room,
        connections=_ids(fields.get("connections", UNSET)),
        except_=_ids(fields.get("except_", UNSET)) or UNSET,
        from_=fields.get("from_", UNSET),
        key=fields.get("key", UNSET),
        receipt=fields.get("receipt", UNSET),
        published_at_ms=published_at_ms,
        expires_at_ms=_expiry(fields["expires_in"], published_at_ms) if "expires_in" in fields else UNSET,
    )


def _one_of(names: tuple[str, ...], fields: Mapping[str, Any]) -> str:
    given = [name for name in names if name in fields]
    if len(given) != 1:
        *others, last = (f"`{name}`" for name in names)
        raise InvalidBroadcast(names[0], f"exactly one of {', '.join(others)} and {last} must be given")
    return given[0]


def _ids(value: Any) -> Any:
    """A tuple of any collection; what is none is left to the broadcast, which rejects it by its type."""
    return tuple(value) if isinstance(value, Collection) and not isinstance(value, str | bytes) else value


def _expiry(seconds: Any, published_at_ms: int) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= _MAX_EXPIRY_SECONDS:
        raise InvalidBroadcast("expires_in", "expected a number of seconds, above 0 and up to a year")
    return published_at_ms + math.ceil(seconds * 1000)


def _payload_in(fields: Mapping[str, Any]) -> _Payload:
    field = _one_of(_PAYLOADS, fields)
    value = fields[field]
    if field != "payload" and "content_type" in fields:
        raise InvalidBroadcast("content_type", "only `payload` has one")
    if field == "data":
        return _text(value)
    if field == "json":
        return _json(value if isinstance(value, msgspec.Raw) else _encoded(value))
    if not isinstance(value, bytes) or not value:
        raise InvalidBroadcast("payload", f"expected bytes (at least one), got {type(value).__name__}")
    content_type = fields.get("content_type", "application/octet-stream")
    if not isinstance(content_type, str) or not _CONTENT_TYPE.fullmatch(content_type):
        raise InvalidBroadcast("content_type", "expected 1 to 255 printable ASCII characters, such as image/png")
    return _Payload("payload", None, value, content_type)


def _payload_of(broadcast: Broadcast) -> _Payload | None:
    """A broadcast's payload, if it is in the broadcast itself."""
    if broadcast.data is not UNSET:
        return _text(broadcast.data)
    return _json(broadcast.json) if isinstance(broadcast.json, msgspec.Raw) else None


def _text(data: Any) -> _Payload:
    """What is no text is left to the broadcast, which rejects it by its type."""
    try:
        content = data.encode() if isinstance(data, str) else b""
    except UnicodeEncodeError:
        raise InvalidBroadcast("data", "half of a surrogate pair has no UTF-8") from None
    return _Payload("data", data, content, "text/plain; charset=utf-8")


def _json(raw: msgspec.Raw) -> _Payload:
    check_is_json(raw)
    content = for_sqs(bytes(raw))  # as the queue will hold it, so that its length is the one that counts
    return _Payload("json", msgspec.Raw(content), content, "application/json")


def _encoded(value: Any) -> msgspec.Raw:
    try:
        return msgspec.Raw(json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidBroadcast("json", f"not possible as JSON: {error}") from None


def _placed(make: Callable[..., Broadcast], payload: _Payload, to: Destination, now_ms: int) -> Prepared:
    """The message with its payload or, if that is too large, with a reference to an object that holds it."""
    if payload.field != "payload" and len(payload.content) <= to.reference_above:
        broadcast = make(**{payload.field: payload.inline})
        message = queue_message(broadcast, fifo=to.fifo)
        if to.bucket is None or _has_frame(broadcast, now_ms):
            return Prepared(broadcast.id, message, None)
    if to.bucket is None:
        limit = f"more than {MAX_DATA_BYTES:,}" if payload.field != "payload" else "which only a bucket can hold"
        hint = "create the publisher with `s3` and `bucket`, and clients receive a URL"
        raise InvalidBroadcast(payload.field, f"{len(payload.content):,} bytes, {limit}: {hint}")
    key = _object_key(make(data="-"), payload)
    reference = Reference(bucket=to.bucket, key=key, bytes=len(payload.content), content_type=payload.content_type)
    broadcast = make(reference=reference)
    upload = {"Bucket": to.bucket, "Key": key, "Body": payload.content, "ContentType": payload.content_type}
    return Prepared(broadcast.id, queue_message(broadcast, fifo=to.fifo), upload)


def _has_frame(broadcast: Broadcast, now_ms: int) -> bool:
    """Whether connections of `gatecast.v2` can be posted to, whatever offset it is given."""
    published_at_ms = broadcast.published_at_ms or now_ms
    frame = broadcast_frame(msgspec.structs.replace(broadcast, offset=LARGEST_OFFSET, published_at_ms=published_at_ms))
    return len(frame) <= MAX_FRAME_BYTES


def _object_key(broadcast: Broadcast, payload: _Payload) -> str:
    identity = (broadcast.room or "", broadcast.id, broadcast.part, payload.content_type)
    return sha256("\0".join(identity).encode("utf-8", "surrogatepass") + b"\0" + payload.content).hexdigest()
