"""Kicks: closing the connections of a user, and keeping the user from connecting again for a time. Pure.

A kick is a broadcast with `close`, to a user, a room or single connections (`kick_broadcast`). Workers post the reason
to connections of the dialect `gatecast.v2`, and then delete all of them.

A user is revoked by an item of the table (`table.revocation_item`), which the authorizer reads at each `$connect`.
Until its `not_before` nobody connects as this user. After that only tokens that were issued later are accepted, while
the item exists: one that leaked before remains worthless for a day, which is longer than tokens should live. A token
that does not say when it was issued (`iat`) is accepted again.

Write the item first, then publish the kick: a connection that the authorizer has admitted before is there to be closed,
unless its `$connect` is still running, which takes up to 29 s. Therefore publish the kick again REPEAT_SECONDS later,
with that time as `published_at_ms`: workers spare members who joined later.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final
from uuid import uuid4

from msgspec import UNSET

from gatecast.broadcast import Broadcast, Close, InvalidBroadcast, encode
from gatecast.table import lenient_number

LEEWAY_SECONDS: Final = 10
"""The tolerated difference between the clock of a token's issuer and ours."""
MIN_REVOKED_SECONDS: Final = 1 + LEEWAY_SECONDS
"""A `not_before` this much later than now includes all tokens so far: `iat` is in whole seconds, of another clock."""
REPEAT_SECONDS: Final = 30
"""After this, each `$connect` that began before the kick has ended. Source: API Gateway's limit for integrations."""
_USER_ROOM: Final = "@user/"


def kick_broadcast(
    *,
    code: str,
    retry: bool,
    user: str | None = None,
    room: str | None = None,
    connections: Collection[str] | None = None,
    id: str | None = None,  # noqa: A002 - the field's name
    published_at_ms: int | None = None,
) -> Broadcast:
    """The broadcast that closes all connections of `user`, all members of `room`, or these `connections`.

    `code` (a name) and `retry`, whether clients may connect again, are what connections of `gatecast.v2` receive. Times
    are milliseconds since the epoch; without one it is that of SQS. Raises InvalidBroadcast, which names the field.
    """
    if user is not None:
        if room is not None:
            raise InvalidBroadcast("user", "exactly one of `user`, `room` and `connections` must be given")
        room = f"{_USER_ROOM}{user}"
    broadcast = Broadcast(
        v=2,
        id=uuid4().hex if id is None else id,
        room=UNSET if room is None else room,
        connections=UNSET if connections is None else tuple(connections),
        close=Close(code=code, retry=retry),
        published_at_ms=UNSET if published_at_ms is None else published_at_ms,
    )
    encode(broadcast)  # checks what the constructor does not, such as names
    return broadcast


def revoked_until(*, now_ms: int, for_seconds: int) -> int:
    """The `not_before`, in seconds since the epoch, that includes the tokens so far and lasts at least this long."""
    return now_ms // 1000 + max(for_seconds, MIN_REVOKED_SECONDS)


def is_revoked(item: Mapping[str, Any] | None, *, issued_at: float | None, now: float) -> bool:
    """Whether a user with this revocation item, or without one, may not connect with a token issued at this time.

    Times are seconds since the epoch. An item with an unreadable time revokes all tokens until it expires.
    """
    if item is None:
        return False
    expires_at, not_before = lenient_number(item.get("expires_at")), lenient_number(item.get("not_before"))
    if expires_at is not None and expires_at <= now:
        return False
    if not_before is None or now < not_before:
        return True
    return issued_at is not None and issued_at < not_before
