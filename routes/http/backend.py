"""The operations of backends, which may publish to everyone, read every room, and disconnect every user.

What is wrong with a request is named before anything is sent. A request that is repeated with the same
`Idempotency-Key`, because the process died or its response was lost, publishes nothing twice.
"""

import re
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Final, cast

import msgspec
from msgspec import Meta

from gatecast import Publication, Publisher, tracing
from gatecast.broadcast import InvalidBroadcast
from gatecast.publisher import Failed
from gatecast.rooms.kicking import MAX_REVOKED_SECONDS, kick
from gatecast.rooms.names import user_room
from routes import dependencies, reading
from routes.http import messages
from routes.http.problems import HttpRejected, response
from routes.http.reads import page_of
from routes.http.request import Request
from routes.http.routing import Operation
from routes.log import logger
from routes.requests import decode
from routes.responses import Code, RequestRejected, Response

RETRY_SECONDS: Final = 5.0
"""For how long a request with several broadcasts retries without success. API Gateway waits 30 s for its response."""
_NOT_STORED: Final = "not stored: repeat it with the same id"
_INVALID: Final = "InvalidBroadcast"
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class _Disconnect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    code: str
    retry: bool = False
    for_seconds: Annotated[int, Meta(ge=0, le=MAX_REVOKED_SECONDS)] | None = None


def publish_to_room(request: Request, room: str) -> Response:
    """All members of the room receive the body."""
    return _publish(request, {"room": messages.check_name(room, "room")})


def publish_to_user(request: Request, user: str) -> Response:
    """All connections of the user receive the body."""
    return _publish(request, {"user": _check_user(user)})


def publish_broadcasts(request: Request) -> Response:
    """Up to 100 broadcasts to any targets: which of them are stored, and why the others are not."""
    request.check_query()
    publisher = dependencies.storing_publisher()
    publications: dict[int, Publication] = {}
    failed: dict[int, dict[str, Any]] = {}
    for position, encoded in enumerate(messages.broadcasts_in(request)):
        own_id = messages.id_of(encoded)
        message_id = uuid.uuid4().hex if own_id is None else own_id
        try:
            publications[position] = _checked(
                {**messages.publication_of(encoded), "id": message_id}, publisher, request.requested_at_ms
            )
        except RequestRejected as rejection:
            failed[position] = _failure(position, message_id, rejection.code, rejection.message)
    with tracing.publishing():
        published = publisher.publish_many(publications.values(), retry_seconds=RETRY_SECONDS)
    tracing.flush()
    if codes := sorted({each.code for each in published.failed} - {_INVALID}):
        logger.error("broadcasts.not_stored", extra={"codes": codes})
    positions = list(publications)
    for each in published.failed:
        failed[positions[each.position]] = _failure(positions[each.position], each.id, *_reason(each))
    accepted = [
        {"position": position, "id": publication["id"]}
        for position, publication in publications.items()
        if position not in failed
    ]
    failures = [failed[position] for position in sorted(failed)]
    if accepted:
        return response(HTTPStatus.ACCEPTED, {"accepted": accepted, "failed": failures})
    if any(each["code"] == Code.UNAVAILABLE for each in failures):
        raise HttpRejected(
            HTTPStatus.SERVICE_UNAVAILABLE, Code.UNAVAILABLE, "no broadcast was stored", extra={"failed": failures}
        )
    raise HttpRejected(HTTPStatus.BAD_REQUEST, Code.BAD_REQUEST, "no broadcast is valid", extra={"failed": failures})


def room(request: Request, room: str) -> Response:
    """How many members the room has."""
    request.check_query()
    return response(HTTPStatus.OK, reading.count_of(messages.check_name(room, "room")))


def room_messages(request: Request, room: str) -> Response:
    """The room's history after an offset."""
    page = page_of(request)
    return response(HTTPStatus.OK, reading.messages_of(messages.check_name(room, "room"), page.since, page.limit))


def room_members(request: Request, room: str) -> Response:
    """The users who are present in the room."""
    request.check_query("after")
    name = messages.check_name(room, "room")
    return response(HTTPStatus.OK, reading.users_of(name, request.query.get("after") or None))


def disconnect(request: Request, user: str) -> Response:
    """Closes the user's connections and, with `for_seconds`, keeps the user from connecting for that long."""
    request.check_query()
    messages.check_json(request)
    asked = decode(request.body, _Disconnect)
    key = messages.idempotency_key(request)
    kicked = kick(
        dependencies.publisher(),
        dependencies.revocations(),
        user=_check_user(user),
        code=messages.check_name(asked.code, "code"),
        retry=asked.retry,
        for_seconds=asked.for_seconds,
        id=None if key is None else messages.check_name(key, "Idempotency-Key"),
        now_ms=request.requested_at_ms,
    )
    again = {"repeat_after_seconds": kicked.repeat_after_seconds} if kicked.repeat_after_seconds else {}
    return response(HTTPStatus.ACCEPTED, {"id": kicked.id, **again})


OPERATIONS: Final = (
    Operation("POST", "/rooms/{room}/messages", "publish_to_room", publish_to_room),
    Operation("GET", "/rooms/{room}/messages", "room_messages", room_messages),
    Operation("GET", "/rooms/{room}/members", "room_members", room_members),
    Operation("GET", "/rooms/{room}", "room", room),
    Operation("POST", "/users/{user}/messages", "publish_to_user", publish_to_user),
    Operation("POST", "/users/{user}/disconnect", "disconnect", disconnect),
    Operation("POST", "/broadcasts", "publish_broadcasts", publish_broadcasts),
)


def _publish(request: Request, target: Mapping[str, str]) -> Response:
    request.check_query("from", "expires_in")
    message = messages.message_in(request)
    options: dict[str, Any] = {"id": uuid.uuid4().hex if message.id is None else messages.check_name(message.id, "id")}
    if "from" in request.query:
        options["from_"] = messages.check_name(request.query["from"], "from")
    if "expires_in" in request.query:
        options["expires_in"] = _number(request.query["expires_in"])
    publisher = dependencies.storing_publisher()
    publication = _checked({**target, **message.payload, **options}, publisher, request.requested_at_ms)
    try:
        with tracing.publishing(gatecast_id=options["id"]):
            publisher.publish(**publication)
    except InvalidBroadcast as error:
        raise messages.invalid(error) from None
    tracing.flush()  # Lambda freezes the process once the handler has returned
    return response(HTTPStatus.ACCEPTED, {"id": options["id"]})


def _checked(fields: Mapping[str, Any], publisher: Publisher, now_ms: int) -> Publication:
    """The publication, if a queue without a bucket can hold it; with a bucket there is nothing to check.

    Raises RequestRejected.
    """
    publication = cast("Publication", fields)
    if dependencies.payload_bucket() is None:
        try:
            messages.check_fits(publication, fifo=publisher.fifo, now_ms=now_ms)
        except InvalidBroadcast as error:
            raise messages.invalid(error) from None
    return publication


def _check_user(user: str) -> str:
    if user_room(user) is None:
        raise RequestRejected(Code.BAD_REQUEST, "user: must be 1 to 94 characters from ! to ~")
    return user


def _number(text: str) -> float:
    if not _SECONDS.fullmatch(text):
        raise RequestRejected(Code.BAD_REQUEST, "expires_in: must be a number of seconds, such as 60 or 1.5")
    return float(text)


def _failure(position: int, message_id: str, code: Code, message: str) -> dict[str, Any]:
    return {"position": position, "id": message_id, "code": code.value, "message": message}


def _reason(failed: Failed) -> tuple[Code, str]:
    """Why the publisher failed. A service's own words are left out: they may quote what was sent."""
    if failed.code == _INVALID:
        return Code.BAD_REQUEST, failed.reason
    return Code.UNAVAILABLE, _NOT_STORED
