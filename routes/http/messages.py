"""The message that a request publishes: its payload, by the content type of the body, and its id. Pure.

| content type | payload |
|---|---|
| `application/json`, and others that end in `+json` | `json`; the bytes are passed on as they are |
| `text/…`, in UTF-8 | `data` |
| `application/cloudevents+json` | the event's `data`, by its own type, and its `id` |
| any other but those of forms | an object in the bucket, if there is one |
"""

import base64
import re
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gatecast import Publication
from gatecast.broadcast import (
    MAX_DATA_BYTES,
    MAX_NAME_LENGTH,
    InvalidBroadcast,
    check_is_json,
    decode,
    utf8_length,
)
from gatecast.publisher.publication import Destination, prepare
from gatecast.rooms.names import NAME
from routes.http.problems import unsupported
from routes.http.request import Request
from routes.publishing import check_length
from routes.requests import decode as decode_request
from routes.responses import Code, RequestRejected

MAX_BROADCASTS: Final = 100
"""Of one request."""
CLOUD_EVENT: Final = "application/cloudevents+json"
_JSON: Final = "application/json"
_FORMS: Final = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})
"""What curl and browsers send if they are not told otherwise."""
_MEDIA_TYPE: Final = re.compile(r"([\w!#$&^.+-]+/[\w!#$&^.+-]+)\s*(?:;(.*))?", re.ASCII | re.DOTALL)
_CHARSET: Final = re.compile(r"""charset\s*=\s*"?([^\s";]+)""", re.IGNORECASE)
_QUOTED: Final = re.compile(r'"([^"\\]*)"')
_JSON_SPACE: Final = b" \t\r\n"
_NAMES: Final = frozenset({"room", "id", "from_", "key"})
_FIELDS: Final = {"from_": "from", "except_": "except"}
"""The fields of a publication that have other names in requests."""

_NonEmpty = Annotated[str, Meta(min_length=1)]


class Message(NamedTuple):
    """Of `gatecast.Publication`, the fields of the payload; and the message's id, if the request names one."""

    payload: dict[str, Any]
    id: str | None


class _CloudEvent(msgspec.Struct, frozen=True):
    """CloudEvents 1.0 in structured mode. Other attributes are ignored."""

    specversion: Literal["1.0"]
    id: _NonEmpty
    source: _NonEmpty
    type: _NonEmpty
    datacontenttype: str | None = None
    data: msgspec.Raw | UnsetType = UNSET
    data_base64: str | UnsetType = UNSET


class _Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One broadcast of several. `from` and `except` have the names of a publication, for both are Python's words."""

    room: str | UnsetType = UNSET
    user: str | UnsetType = UNSET
    connections: list[str] | UnsetType = UNSET
    data: str | UnsetType = UNSET
    json: msgspec.Raw | UnsetType = UNSET
    id: str | UnsetType = UNSET
    from_: str | UnsetType = msgspec.field(default=UNSET, name="from")
    except_: list[str] | UnsetType = msgspec.field(default=UNSET, name="except")
    expires_in: float | UnsetType = UNSET
    delay: int | UnsetType = UNSET
    key: str | UnsetType = UNSET
    receipt: bool | UnsetType = UNSET


class _Broadcasts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    broadcasts: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=MAX_BROADCASTS)]


def message_in(request: Request) -> Message:
    """The request's message. Raises RequestRejected (bad_request, with 415 if it is the type that is wrong)."""
    if not request.body:
        raise RequestRejected(Code.BAD_REQUEST, "the body is empty: it must be the payload")
    own_id = idempotency_key(request)
    media_type, _ = _parsed(request.content_type)
    if media_type != CLOUD_EVENT:
        return Message(_payload(request.body, request.content_type), own_id)
    event = decode_request(request.body, _CloudEvent)
    if own_id not in {None, event.id}:
        raise RequestRejected(Code.BAD_REQUEST, "id: differs from the Idempotency-Key; give one of them")
    return Message(_event_payload(event), event.id)


def idempotency_key(request: Request) -> str | None:
    """The value of `Idempotency-Key`, which may be in quotes, as structured fields write texts."""
    value = request.headers.get("idempotency-key")
    quoted = _QUOTED.fullmatch(value) if value else None
    return quoted[1] if quoted else value


def check_name(value: str, field: str) -> str:
    """The value. Raises RequestRejected (bad_request) unless it is a name."""
    if not NAME.fullmatch(value):
        raise RequestRejected(Code.BAD_REQUEST, f"{field}: must be 1 to {MAX_NAME_LENGTH} characters from ! to ~")
    return value


def check_json(request: Request) -> None:
    """Raises RequestRejected (bad_request, as 415) unless the body is declared as JSON."""
    media_type, _ = _parsed(request.content_type)
    if media_type != _JSON:
        raise unsupported(f"the Content-Type must be {_JSON}")


def broadcasts_in(request: Request) -> list[msgspec.Raw]:
    """The broadcasts of a request that has several, each still to be read. Raises RequestRejected (bad_request)."""
    check_json(request)
    return decode_request(request.body, _Broadcasts).broadcasts


def publication_of(encoded: msgspec.Raw) -> dict[str, Any]:
    """One of several broadcasts as a `gatecast.Publication`. Raises RequestRejected (bad_request)."""
    item = decode_request(bytes(encoded), _Item)
    given = {name: getattr(item, name) for name in _Item.__struct_fields__}
    fields = {name: value for name, value in given.items() if value is not UNSET}
    for name in _NAMES & fields.keys():
        check_name(fields[name], _FIELDS.get(name, name))
    return fields


def id_of(encoded: msgspec.Raw) -> str | None:
    """The id of a broadcast that may be invalid."""
    try:
        found = msgspec.json.decode(encoded)
    except (msgspec.DecodeError, RecursionError):
        return None
    value = found.get("id") if isinstance(found, dict) else None
    return value if isinstance(value, str) else None


def check_fits(publication: Publication, *, fifo: bool, now_ms: int) -> None:
    """Raises RequestRejected (too_large; 415 for what only a bucket can hold), where there is no bucket.

    Raises InvalidBroadcast for everything else that is wrong.
    """
    if "payload" in publication:
        raise unsupported(f"the Content-Type must be {_JSON}, text/… or {CLOUD_EVENT}: there is no bucket for others")
    payload = publication.get("data", publication.get("json", ""))
    length = len(bytes(payload)) if isinstance(payload, msgspec.Raw) else utf8_length(payload)
    if length > MAX_DATA_BYTES:
        raise RequestRejected(Code.TOO_LARGE, f"the payload must be at most {MAX_DATA_BYTES:,} bytes")
    prepared = prepare(publication, Destination(fifo), now_ms=now_ms)
    check_length(decode(prepared.message["MessageBody"]))


def invalid(error: InvalidBroadcast) -> RequestRejected:
    """The rejection of a publication that is no valid broadcast."""
    return RequestRejected(Code.BAD_REQUEST, f"{_FIELDS.get(error.field, error.field)}: {error.reason}")


def _payload(content: bytes, content_type: str) -> dict[str, Any]:
    media_type, charset = _parsed(content_type)
    is_text, is_json = media_type.startswith("text/"), media_type == _JSON or media_type.endswith("+json")
    if media_type in _FORMS:
        raise unsupported(f"{media_type} is for forms: give a Content-Type, such as {_JSON} or text/plain")
    if (is_text or is_json) and charset not in {None, "utf-8", "us-ascii"}:
        raise unsupported("the charset must be utf-8")
    if is_json:
        return {"json": _json(content)}
    if is_text:
        return {"data": _text(content)}
    return {"payload": content, "content_type": content_type}


def _json(content: bytes) -> msgspec.Raw:
    raw = msgspec.Raw(content.strip(_JSON_SPACE))
    try:
        check_is_json(raw)
    except InvalidBroadcast as error:
        raise RequestRejected(Code.BAD_REQUEST, f"the payload is {error.reason}") from None
    return raw


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise RequestRejected(Code.BAD_REQUEST, "the payload is not valid UTF-8") from None


def _event_payload(event: _CloudEvent) -> dict[str, Any]:
    if (event.data is UNSET) == (event.data_base64 is UNSET):
        raise RequestRejected(Code.BAD_REQUEST, "data: exactly one of `data` and `data_base64` must be given")
    content_type = event.datacontenttype or _JSON
    media_type, _ = _parsed(content_type, "datacontenttype")
    if isinstance(event.data_base64, str):
        try:
            content = base64.b64decode(event.data_base64, validate=True)
        except ValueError:
            raise RequestRejected(Code.BAD_REQUEST, "data_base64: not valid Base64") from None
    elif media_type == _JSON or media_type.endswith("+json"):
        content = bytes(event.data or b"")
    else:
        content = _text_of(bytes(event.data or b"")).encode()
    if not content:
        raise RequestRejected(Code.BAD_REQUEST, "data: must not be empty")
    return _payload(content, content_type)


def _text_of(encoded: bytes) -> str:
    """The JSON string that `data` must be if its type is not JSON."""
    try:
        return msgspec.json.decode(encoded, type=str)
    except msgspec.DecodeError:
        raise RequestRejected(Code.BAD_REQUEST, "data: must be a string if datacontenttype is not JSON") from None


def _parsed(content_type: str, name: str = "Content-Type") -> tuple[str, str | None]:
    """Media type and charset, in lower case. Raises RequestRejected (bad_request, 415)."""
    found = _MEDIA_TYPE.fullmatch(content_type)
    if not found:
        raise unsupported(f"{name}: must be given, such as {_JSON} or text/plain")
    charset = _CHARSET.search(found[2] or "")
    return found[1].lower(), charset[1].lower() if charset else None
