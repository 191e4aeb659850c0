"""Kicking: revoking the user, and publishing what closes the connections, in this order (`gatecast.kicks`)."""

from collections.abc import Collection
from hashlib import sha256
from typing import Final, NamedTuple
from uuid import uuid4

from gatecast.broadcast import MAX_NAME_LENGTH, InvalidBroadcast
from gatecast.kicks import REPEAT_SECONDS, kick_broadcast, revoked_until
from gatecast.publisher import Publisher
from gatecast.rooms.names import MAX_USER_LENGTH, NAME, user_room
from gatecast.rooms.revocations import Revocations

MAX_REVOKED_SECONDS: Final = 366 * 24 * 3600


class Kicked(NamedTuple):
    """The id of the broadcast that closes the connections, and what is left to be done."""

    id: str
    repeat_after_seconds: int = 0
    """If not 0: kick again this much later, with another id. A FIFO queue delays no single message."""


def kick(
    publisher: Publisher,
    revocations: Revocations,
    *,
    code: str,
    retry: bool,
    now_ms: int,
    user: str | None = None,
    room: str | None = None,
    connections: Collection[str] | None = None,
    for_seconds: int | None = None,
    id: str | None = None,  # noqa: A002 - the field's name
) -> Kicked:
    """Closes the connections of `user`, of all members of `room`, or these `connections`, as `kick_broadcast`.

    With `for_seconds` the user cannot connect for that long, nor afterwards with a token that was issued before. It is
    at least MIN_REVOKED_SECONDS, to include all tokens so far: 0 does only that. A revocation that ends later remains.
    Connections that are being established meanwhile
    are closed by a second broadcast. Repeating it with the same `id` is safe. Raises InvalidBroadcast and ValueError
    before any call; the SDK's errors pass through.
    """
    if not NAME.fullmatch(code):
        raise InvalidBroadcast("code", f"expected a name of 1 to {MAX_NAME_LENGTH} characters from ! to ~")
    if user is not None and user_room(user) is None:
        raise InvalidBroadcast("user", f"expected a name of 1 to {MAX_USER_LENGTH} characters from ! to ~")
    if for_seconds is not None:
        if user is None:
            raise ValueError("for_seconds: only a user can be revoked")
        if type(for_seconds) is not int or not 0 <= for_seconds <= MAX_REVOKED_SECONDS:
            raise ValueError(f"for_seconds: expected a whole number from 0 to {MAX_REVOKED_SECONDS:,}")
    kick_id = uuid4().hex if id is None else id
    first = kick_broadcast(code=code, retry=retry, user=user, room=room, connections=connections, id=kick_id)
    if for_seconds is None:
        publisher.publish(first)
        return Kicked(kick_id)
    revocations.revoke(str(user), not_before=revoked_until(now_ms=now_ms, for_seconds=for_seconds))
    publisher.publish(first)
    if publisher.fifo:
        return Kicked(kick_id, repeat_after_seconds=REPEAT_SECONDS)
    late = kick_broadcast(
        code=code,
        retry=retry,
        user=user,
        id=sha256(f"{kick_id} late".encode()).hexdigest(),
        published_at_ms=now_ms + REPEAT_SECONDS * 1000,
    )
    publisher.publish(late, delay_seconds=REPEAT_SECONDS)
    return Kicked(kick_id)
