"""The body of `publish`, and the broadcast that it becomes. Pure."""

import hashlib
import string
from typing import Final
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

from gatecast import Broadcast
from gatecast.broadcast import (
    LARGEST_OFFSET,
    MAX_DATA_BYTES,
    MAX_NAME_LENGTH,
    for_sqs,
    json_problem,
    utf8_length,
)
from gatecast.frames import Message
from gatecast.rooms.names import NAME, validate_client_room
from routes.requests import Caller
from routes.responses import MAX_MESSAGE_BYTES, Code, RequestRejected

MAX_PUBLISHER_LENGTH: Final = 60
"""Longer keys are replaced by a digest, so that at least 39 characters remain for a client's own id."""

_SAFE_IN_PUBLISHER: Final = "".join(sorted(set(string.punctuation) - set("%/")))


class PublishRequest(msgspec.Struct, frozen=True):
    """The body of `publish`, with exactly one of `data` and `json`, whose bytes are passed on as they are.

    A `reference` is rejected: it would let members read any object of the bucket. Without `id` one is generated, so
    that a retry is another broadcast.
    """

    room: str
    data: str | UnsetType = UNSET
    json: msgspec.Raw | UnsetType = UNSET
    id: str | UnsetType = UNSET
    echo: bool = True
    reference: msgspec.Raw | UnsetType = UNSET


def to_broadcast(request: PublishRequest, caller: Caller, *, generated_id: str) -> Broadcast:
    """The broadcast that a member's request publishes. Raises RequestRejected (bad_request, too_large)."""
    room = validate_client_room(request.room)
    if isinstance(request.json, msgspec.Raw):  # as the queue will hold it, so that its length is the one that counts
        request = msgspec.structs.replace(request, json=msgspec.Raw(for_sqs(bytes(request.json))))
    _check_payload(request)
    publisher = publisher_key(caller)
    own_id = generated_id if isinstance(request.id, UnsetType) else request.id
    broadcast_id = f"{publisher}/{own_id}"
    if not own_id or not NAME.fullmatch(broadcast_id):
        available = MAX_NAME_LENGTH - len(publisher) - 1
        raise RequestRejected(Code.BAD_REQUEST, f"id: must be 1 to {available} characters from ! to ~")
    broadcast = Broadcast(
        id=broadcast_id,
        room=room,
        data=request.data,
        json=request.json,
        from_=caller.user if caller.user and NAME.fullmatch(caller.user) else UNSET,
        except_=UNSET if request.echo else (caller.connection_id,),
        published_at_ms=caller.requested_at_ms,
    )
    check_length(broadcast)
    return broadcast


def _check_payload(request: PublishRequest) -> None:
    if request.reference is not UNSET:
        raise RequestRejected(Code.BAD_REQUEST, "reference: only backends publish one; send `data` or `json`")
    if (request.data is UNSET) == (request.json is UNSET):
        raise RequestRejected(Code.BAD_REQUEST, "data: exactly one of `data` and `json` must be given")
    if isinstance(request.data, str):
        if not request.data:
            raise RequestRejected(Code.BAD_REQUEST, "data: must not be empty")
        if utf8_length(request.data) > MAX_DATA_BYTES:
            raise RequestRejected(Code.TOO_LARGE, f"data: must be at most {MAX_DATA_BYTES:,} bytes in UTF-8")
        return
    encoded = bytes(request.json or b"")
    if problem := json_problem(encoded):
        code = Code.TOO_LARGE if len(encoded) > MAX_DATA_BYTES else Code.BAD_REQUEST
        raise RequestRejected(code, f"json: {problem}")


def check_length(broadcast: Broadcast) -> None:
    """Raises RequestRejected (too_large) if no response could hold the message, whatever offset it is given.

    Frames, which have less around it, can hold somewhat more; but who resumes would miss it.
    """
    message = Message.from_broadcast(msgspec.structs.replace(broadcast, offset=LARGEST_OFFSET))
    excess = len(bytes(message.encode())) - MAX_MESSAGE_BYTES
    if excess > 0:
        field = "data" if broadcast.data is not UNSET else "json"
        raise RequestRejected(
            Code.TOO_LARGE,
            f"{field}: {excess:,} bytes too long: with its id and other fields, at most {MAX_MESSAGE_BYTES:,} bytes",
        )


def publisher_key(caller: Caller) -> str:
    """The namespace of a publisher's ids: `@` and the user, or the connection id; at most 60 characters, no slash.

    No two publishers share a key: a connection id never begins with `@`, and as `%` and `/` are percent-encoded, only
    a digest's key begins with `%sha256:`.
    """
    publisher = f"@{caller.user}" if caller.user else caller.connection_id
    key = quote(publisher, safe=_SAFE_IN_PUBLISHER)
    if len(key) <= MAX_PUBLISHER_LENGTH:
        return key
    return f"%sha256:{hashlib.sha256(publisher.encode()).hexdigest()[:40]}"
