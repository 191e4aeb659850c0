"""The broadcast: the body of one queue message. Its format is defined only here.

`decode` accepts exactly what the contract allows, so a decoded `Broadcast` needs no further validation. `encode`
accepts only what `decode` accepts.
"""

import json
import re
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

MAX_BODY_BYTES: Final = 1024 * 1024 - 8 * 1024
"""SQS accepts 1 MiB per message; the rest is reserved for attributes, and for fields that the worker adds to a part."""
_PART_BYTES: Final = 1024
"""An upper bound for the fields that the worker adds: `part`, `shard`, `offset`, `origin_room`, `published_at_ms`."""
MAX_DATA_BYTES: Final = 131_072
"""The largest message that API Gateway posts to a connection (128 KB)."""
MAX_NESTING: Final = 128
"""How deep the arrays and objects of `json` may be nested."""
MAX_CONNECTIONS: Final = 1_000
MAX_CONNECTION_ID_BYTES: Final = 128
MAX_NAME_LENGTH: Final = 100

MIN_TIME_MS: Final = 978_307_200_000
"""2001-01-01T00:00:00Z. A time in seconds is smaller, and so is one of a clock that started at 0."""
MAX_AHEAD_MS: Final = 366 * 24 * 3600 * 1000
"""A time in microseconds is further ahead."""

_LARGEST_EXACT_INTEGER: Final = 2**53 - 1

LARGEST_OFFSET: Final = 10**16 - 1
"""The largest number that a stream entry's key can hold."""

_NAME: Final = Meta(pattern=r"^[!-~]{1,100}\Z", description="1 to 100 characters from ! to ~")
_BUCKET: Final = Meta(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z", description="the name of a bucket")
_CONTENT_TYPE: Final = Meta(pattern=r"^[ -~]{1,255}\Z", description="1 to 255 printable ASCII characters")
Name = Annotated[str, _NAME]
Milliseconds = Annotated[int, Meta(ge=0, le=_LARGEST_EXACT_INTEGER)]

MAX_KEY_BYTES: Final = 1_024
"""Of an object's key in S3. Source: S3's user guide, object key names."""


class InvalidBroadcast(ValueError):
    """Not a valid broadcast. `field` is the invalid field, or "body"; `reason` says why it is invalid."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class Presence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which users have joined the broadcast's room, and which may have departed: the worker checks the latter."""

    joined: tuple[Name, ...] = ()
    departed: tuple[Name, ...] = ()


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """The payload as an object in S3, `bytes` long. Clients receive a URL by which they can read it."""

    bucket: Annotated[str, _BUCKET]
    key: Annotated[str, Meta(min_length=1, max_length=MAX_KEY_BYTES)]
    bytes: Annotated[int, Meta(ge=1, le=_LARGEST_EXACT_INTEGER)]
    content_type: Annotated[str, _CONTENT_TYPE]


class Close(msgspec.Struct, frozen=True, kw_only=True):
    """Why the connections are closed, and whether their clients may connect again."""

    code: Name
    retry: bool


class Broadcast(msgspec.Struct, frozen=True, kw_only=True):
    """One message to one target: all members of `room`, or exactly `connections`.

    Its payload is exactly one of `data` (text), `json` (any JSON value, as its bytes), `reference` (an object in S3),
    `presence`, which only v2 connections receive, and `close`, after which they are closed; the last two require `v` 2.
    Absent optional fields are `msgspec.UNSET`, which is falsy. Times are
    milliseconds since the epoch, from 2001 to a year from now. The constructor validates types, times, lengths in bytes
    and constraints between fields (InvalidBroadcast); `decode` and `encode` validate everything.
    """

    id: Name
    data: Annotated[str, Meta(min_length=1, max_length=MAX_DATA_BYTES)] | UnsetType = UNSET
    json: msgspec.Raw | UnsetType = UNSET
    """A JSON value's bytes, which nothing between the publisher and the client changes."""
    reference: Reference | UnsetType = UNSET
    close: Close | UnsetType = UNSET
    """Instead of a payload: v2 connections receive the reason, and then all of them are closed."""
    presence: Presence | UnsetType = UNSET
    """A change of who is present. Written by the routes and the worker."""
    v: Literal[1, 2] = 1
    room: Name | UnsetType = UNSET
    connections: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_CONNECTIONS)] | UnsetType = UNSET
    except_: Annotated[tuple[str, ...], Meta(max_length=MAX_CONNECTIONS)] | UnsetType = msgspec.field(
        default=UNSET, name="except"
    )
    from_: Name | UnsetType = msgspec.field(default=UNSET, name="from")
    """The user who published it, where it is known. The routes set it, never the client."""
    key: Name | UnsetType = UNSET
    """Reserved: of waiting messages with the same key, only the latest would have to be delivered. Ignored so far."""
    receipt: bool | UnsetType = UNSET
    """Whether the broadcast ends in a receipt; absent, the room's setting decides."""
    published_at_ms: Milliseconds | UnsetType = UNSET
    expires_at_ms: Milliseconds | UnsetType = UNSET
    shard: Annotated[int, Meta(ge=0, le=_LARGEST_EXACT_INTEGER)] | UnsetType = UNSET
    offset: Annotated[int, Meta(ge=1, le=LARGEST_OFFSET)] | UnsetType = UNSET
    """Its position in the room's history. Written by the worker into parts, remainders and dead letters."""
    origin_room: Name | UnsetType = UNSET
    """The room of which these connections were members when the worker read it: its name in frames. Written by the
    worker into remainders and dead letters."""
    part: Annotated[str, Meta(max_length=24)] = ""
    tried: tuple[Annotated[int, Meta(ge=0)], Milliseconds, Annotated[float, Meta(ge=0)]] | UnsetType = UNSET
    """For remainders: the minimum number of rejected posts of each of its connections, the time of the first one, and
    the evidence that none of them reads (a decimal logarithm of odds). Written by the worker."""

    def __post_init__(self) -> None:
        if not _has_exact_types(self):
            _check_types(self)
        if (self.room is UNSET) == (self.connections is UNSET):
            raise InvalidBroadcast("room", "exactly one of `room` and `connections` must be given")
        if self.shard is not UNSET and self.room is UNSET:
            raise InvalidBroadcast("shard", "only a room has shards")
        _check_payload(self)
        if self.origin_room is not UNSET and self.room is not UNSET:
            raise InvalidBroadcast("origin_room", "only a broadcast to `connections` has one")
        if self.connections is not UNSET:
            _check_connections(self.connections)
        if self.except_ is not UNSET:
            _joined("except", self.except_)
        if self.published_at_ms is not UNSET:
            _check_time("published_at_ms", self.published_at_ms)
        if self.expires_at_ms is not UNSET:
            _check_time("expires_at_ms", self.expires_at_ms)
        if self.tried is not UNSET:
            _check_tried(self.tried)


class _Version(msgspec.Struct):
    """Decoded first: another version may change all other fields."""

    v: Literal[1, 2]


_version_decoder: Final = msgspec.json.Decoder(_Version)
_decoder: Final = msgspec.json.Decoder(Broadcast)


def _plain(value: object) -> object:
    """The text or number in an object of a derived type, which msgspec does not encode."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    raise TypeError(type(value).__name__)


_encoder: Final = msgspec.json.Encoder(enc_hook=_plain)
_SNS_ENVELOPE: Final = "an SNS notification around the message: enable raw message delivery for the subscription"
_LONE_SURROGATE: Final = "half of a surrogate pair has no UTF-8"
_TYPE_NAMES: Final[dict[type, str]] = {
    str: "text (str)",
    int: "a whole number (int)",
    bool: "true or false (bool)",
    tuple: "a tuple or list",
    msgspec.Raw: "a JSON value's bytes (msgspec.Raw)",
    Reference: "a Reference",
    Close: "a Close",
    Presence: "a Presence",
}
_REQUIRED: Final = ("id", "v", "part")
_FIELD_TYPES: Final[tuple[tuple[str, str, type], ...]] = (
    ("id", "id", str),
    ("data", "data", str),
    ("json", "json", msgspec.Raw),
    ("reference", "reference", Reference),
    ("close", "close", Close),
    ("presence", "presence", Presence),
    ("from_", "from", str),
    ("v", "v", int),
    ("room", "room", str),
    ("connections", "connections", tuple),
    ("except_", "except", tuple),
    ("key", "key", str),
    ("receipt", "receipt", bool),
    ("published_at_ms", "published_at_ms", int),
    ("expires_at_ms", "expires_at_ms", int),
    ("shard", "shard", int),
    ("offset", "offset", int),
    ("origin_room", "origin_room", str),
    ("part", "part", str),
    ("tried", "tried", tuple),
)
"""Attribute, field of the message, and type."""
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")
_IN_WORDS: Final = {
    f"Expected `str` matching regex {each.pattern!r}": f"expected {each.description}"
    for each in (_NAME, _BUCKET, _CONTENT_TYPE)
}
_LENGTH: Final = re.compile(r"Expected `(array|str)` of length (>=|<=) ([0-9]+)")
_FIELD_AT_FAULT: Final = re.compile(r" - at `\$\.(\w+)")
_MISSING_FIELD: Final = re.compile(r"missing required field `(\w+)")


def decode(body: str | bytes) -> Broadcast:
    """The broadcast in a queue message's body. Raises InvalidBroadcast, which names the invalid field."""
    try:
        encoded = body.encode() if isinstance(body, str) else body
        if not isinstance(body, str):
            body.decode()  # msgspec does not validate what it only passes on, as in `json`
    except UnicodeError:
        raise InvalidBroadcast("body", "not valid UTF-8") from None
    if len(encoded) > MAX_BODY_BYTES + _PART_BYTES:
        raise _too_long()
    try:
        _version_decoder.decode(encoded)
        broadcast = _decoder.decode(encoded)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, InvalidBroadcast):
            raise error.__cause__ from None
        if b'"TopicArn"' in encoded and b'"Type"' in encoded:
            raise InvalidBroadcast("body", _SNS_ENVELOPE) from None
        message = str(error)
        found = _FIELD_AT_FAULT.search(message) or _MISSING_FIELD.search(message)
        raise InvalidBroadcast(found[1] if found else "body", reason_of(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if field := field_with_lone_surrogate(encoded, Broadcast.__struct_encode_fields__):
            raise InvalidBroadcast(field, _LONE_SURROGATE) from None
        raise InvalidBroadcast("body", f"not valid JSON ({error})") from None
    if len(encoded) > MAX_BODY_BYTES and not broadcast.part:
        raise _too_long()
    return broadcast


def reason_of(error: msgspec.ValidationError) -> str:
    """Why a value is invalid, without its place and in words."""
    reason = str(error).partition(" - at `$")[0]
    if found := _LENGTH.fullmatch(reason):
        kind, bound, length = found.groups()
        few = "least" if bound == ">=" else "most"
        thing = "element" if kind == "array" else "character"
        return f"expected at {few} {int(length):,} {thing}{'' if length == '1' else 's'}"
    return _IN_WORDS.get(reason, reason)


def _too_long() -> InvalidBroadcast:
    return InvalidBroadcast("body", f"longer than {MAX_BODY_BYTES:,} bytes")


def encode(broadcast: Broadcast) -> str:
    """A queue message's body. Raises InvalidBroadcast for everything that `decode` would reject."""
    if isinstance(broadcast.json, msgspec.Raw):
        check_is_json(broadcast.json)
    try:
        body = _encoder.encode(broadcast)
    except UnicodeEncodeError:
        values = zip(Broadcast.__struct_encode_fields__, msgspec.structs.astuple(broadcast), strict=True)
        field = next((name for name, value in values if _has_lone_surrogate(value)), "body")
        raise InvalidBroadcast(field, _LONE_SURROGATE) from None
    body = for_sqs(body)
    decode(body)
    return body.decode()


def check_is_json(value: msgspec.Raw) -> None:
    """Raises InvalidBroadcast unless it is exactly one JSON value: other bytes would change other fields."""
    try:
        msgspec.json.decode(value, type=msgspec.Raw)
        bytes(value).decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidBroadcast("json", f"not valid JSON ({error})") from None


def for_sqs(encoded: bytes) -> bytes:
    """Escape U+FFFE and U+FFFF, which JSON allows unescaped and SQS rejects; these bytes encode nothing else."""
    return encoded.replace(b"\xef\xbf\xbe", b"\\ufffe").replace(b"\xef\xbf\xbf", b"\\uffff")


def _has_exact_types(broadcast: Broadcast) -> bool:
    """Whether every field has exactly its type, as after `decode`, which takes this path for every message."""
    room, connections, except_ = broadcast.room, broadcast.connections, broadcast.except_
    published_at_ms, expires_at_ms, shard = broadcast.published_at_ms, broadcast.expires_at_ms, broadcast.shard
    data, json_, from_, offset = broadcast.data, broadcast.json, broadcast.from_, broadcast.offset
    return (
        type(broadcast.id) is type(broadcast.part) is str
        and type(broadcast.v) is int
        and (type(data) is str or (data is UNSET and (json_ is UNSET or type(json_) is msgspec.Raw)))
        and (broadcast.reference is UNSET or type(broadcast.reference) is Reference)
        and (broadcast.close is UNSET or type(broadcast.close) is Close)
        and (broadcast.presence is UNSET or type(broadcast.presence) is Presence)
        and (broadcast.key is UNSET or type(broadcast.key) is str)
        and (broadcast.receipt is UNSET or type(broadcast.receipt) is bool)
        and (from_ is UNSET or type(from_) is str)
        and (offset is UNSET or type(offset) is int)
        and (broadcast.origin_room is UNSET or type(broadcast.origin_room) is str)
        and (room is UNSET or type(room) is str)
        and (connections is UNSET or type(connections) is tuple)
        and (except_ is UNSET or type(except_) is tuple)
        and (published_at_ms is UNSET or type(published_at_ms) is int)
        and (expires_at_ms is UNSET or type(expires_at_ms) is int)
        and (shard is UNSET or type(shard) is int)
        and (broadcast.tried is UNSET or type(broadcast.tried) is tuple)
    )


def _check_types(broadcast: Broadcast) -> None:
    """Makes tuples of lists. Raises InvalidBroadcast for the first field of a wrong type, and names both types."""
    for name, field, expected in _FIELD_TYPES:
        value: Any = getattr(broadcast, name)
        if expected is tuple and isinstance(value, list):
            msgspec.structs.force_setattr(broadcast, name, tuple(value))
        elif value is UNSET and field not in _REQUIRED:
            continue
        elif not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            hint = "; decode bytes to text, and serialise objects to JSON" if field == "data" else ""
            raise InvalidBroadcast(field, f"expected {_TYPE_NAMES[expected]}, got {type(value).__name__}{hint}")


def _check_payload(broadcast: Broadcast) -> None:
    data, json_, presence, close = broadcast.data, broadcast.json, broadcast.presence, broadcast.close
    given = (data, json_, broadcast.reference, presence, close)
    if sum(each is not UNSET for each in given) != 1:
        raise InvalidBroadcast("data", "exactly one of `data`, `json` and `reference` must be given")
    if broadcast.v == 1 and (presence is not UNSET or close is not UNSET):
        raise InvalidBroadcast("close" if presence is UNSET else "presence", "requires `v` 2")
    if presence is not UNSET and broadcast.room is UNSET and broadcast.origin_room is UNSET:
        raise InvalidBroadcast("presence", "requires a room")
    if isinstance(data, str) and utf8_length(data) > MAX_DATA_BYTES:
        raise InvalidBroadcast("data", f"longer than {MAX_DATA_BYTES:,} bytes in UTF-8")
    if isinstance(json_, msgspec.Raw) and (problem := json_problem(bytes(json_))):
        raise InvalidBroadcast("json", problem)
    if isinstance(broadcast.reference, Reference) and utf8_length(broadcast.reference.key) > MAX_KEY_BYTES:
        raise InvalidBroadcast("reference", f"key: longer than {MAX_KEY_BYTES:,} bytes in UTF-8")


def json_problem(value: bytes) -> str | None:
    """Why these bytes cannot be `json`, although they may be valid JSON; None if they can."""
    if not 1 <= len(value) <= MAX_DATA_BYTES:
        return f"must be 1 to {MAX_DATA_BYTES:,} bytes"
    if value.count(b"[") + value.count(b"{") > MAX_NESTING and _nesting(value) > MAX_NESTING:
        return f"nested deeper than {MAX_NESTING} levels"
    return None


def _nesting(value: bytes) -> int:
    """How deep the arrays and objects of a JSON value are nested."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", value)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _check_connections(ids: tuple[str, ...]) -> None:
    joined = _joined("connections", ids)
    longest = max(map(len if joined.isascii() else utf8_length, ids), default=0)
    if longest > MAX_CONNECTION_ID_BYTES or "" in ids:
        raise InvalidBroadcast("connections", f"an id is empty or longer than {MAX_CONNECTION_ID_BYTES} bytes")


def _joined(field: str, ids: tuple[Any, ...]) -> str:
    """The ids as one text. Raises InvalidBroadcast unless all of them are text."""
    try:
        return "".join(ids)
    except TypeError:
        wrong = next(each for each in ids if not isinstance(each, str))
        raise InvalidBroadcast(field, f"expected ids as text (str), got {type(wrong).__name__}") from None


def _check_tried(tried: tuple[Any, ...]) -> None:
    types = [type(each) for each in tried]
    if types not in ([int, int, float], [int, int, int]):
        given = ", ".join(each.__name__ for each in types)
        raise InvalidBroadcast("tried", f"expected probes, since_ms and evidence (int, int, float), got ({given})")
    _check_time("tried", tried[1])


def _check_time(field: str, value: int) -> None:
    if value < MIN_TIME_MS or value > time.time() * 1000 + MAX_AHEAD_MS:
        seconds = MIN_TIME_MS <= value * 1000 < 10 * MIN_TIME_MS
        hint = "this looks like seconds" if seconds else "from 2001 to a year from now"
        raise InvalidBroadcast(field, f"{value} is not a time in milliseconds since the epoch: {hint}")


def utf8_length(text: str) -> int:
    """The text's length in UTF-8 bytes; a lone surrogate, which has no encoding, counts as three."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def field_with_lone_surrogate(body: bytes, fields: Collection[str]) -> str | None:
    """The field of a JSON object that contains half of a surrogate pair, or None.

    msgspec reports such a text as malformed without naming the field; Python's parser accepts it.
    """
    with suppress(ValueError, RecursionError):
        found = json.loads(body)
        if isinstance(found, dict):
            return next((name for name in fields if _has_lone_surrogate(found.get(name))), None)
    return None


def _has_lone_surrogate(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return True
    return False
