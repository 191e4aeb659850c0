"""Presence: which users are in a room, and which events announce a change of it. Pure.

A user is present in a room while a presence item of one of the user's connections exists and has not expired. Events
are broadcasts to the room. Each has a time, `at_ms`, that was taken before the table was read consistently; clients
keep, per user, the event with the latest time. So after the last event the announced state is the true one:

- *The user is present in the end.* Consider the last moment without an item, and of the joins that wrote their items
  after it the one with the oldest item. Its query finds no older one, so it is announced (`announces_join`), at a later
  time than any departure, because each departure's query came before that moment.
- *The user is absent in the end.* The worker's query for the last departure comes after the last deletion
  (`departed_users`). Each announced join was announced because its query found an item, which was deleted afterwards:
  the departure's time is later.

"Announce a join if its item is the only one" loses joins: two connections that join at once each find two items. "If
its item is still there, and the oldest" loses one where the oldest connection leaves before its query.

A process that dies after it has written an item, and before it has announced it, is made up for by the retry of its
client. If there is none, another connection that relied on this announcement is present without having been announced.

On a standard queue a departure is published before the item is deleted, with DEPARTURE_DELAY_SECONDS, so that a process
that ends in between loses nothing, and a reload of a page is no departure. A FIFO queue delays no single message, so
there it is published after the deletion, and is lost with a process that dies in between.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from gatecast.broadcast import Broadcast
from gatecast.broadcast import Presence as Change
from gatecast.table import lenient_number, presence_pk, presence_sk

DEPARTURE_DELAY_SECONDS: Final = 15
"""After this the worker looks whether a user who has left a room on one connection is absent."""
EXPIRY_MARGIN_SECONDS: Final = 60
"""A joining connection disregards older items that expire so soon: the worker's clock may be ahead, and regard them as
expired. One announcement too many does no harm."""
REPEAT_SECONDS: Final = 120
"""For how long after a join its repetition is announced: longer than clients retry one that was not confirmed."""
_ID_PREFIX: Final = "%presence/"
"""No client can make such an id: publishers' keys begin with `@`, a connection id or a digest's prefix."""


class PresenceItem(NamedTuple):
    """A presence item that was read: one connection of a user in a room."""

    user: str
    connection_id: str
    joined_at_ms: float
    expires_at: float
    """Seconds since the epoch."""

    @classmethod
    def from_item(cls, item: Mapping[str, Any]) -> "PresenceItem | None":
        """None if its key is no user and connection. With an unreadable time it is present, and older than no other."""
        match item:
            case {"sk": {"S": str(sk)}}:
                user, space, connection_id = sk.partition(" ")
            case _:
                return None
        if not (user and space and connection_id):
            return None
        joined_at_ms, expires_at = (lenient_number(item.get(name)) for name in ("joined_at_ms", "expires_at"))
        return cls(
            user,
            connection_id,
            math.inf if joined_at_ms is None else joined_at_ms,
            math.inf if expires_at is None else expires_at,
        )


def user_query(table: str, room: str, user: str) -> dict[str, Any]:
    """The arguments of the consistent Query for a user's presence items in a room. One page holds thousands."""
    return {
        "TableName": table,
        "ConsistentRead": True,
        "KeyConditionExpression": "pk = :pk AND begins_with(sk, :user)",
        "ExpressionAttributeValues": {":pk": {"S": presence_pk(room)}, ":user": {"S": presence_sk(user, "")}},
    }


def is_present(items: Iterable[PresenceItem], now_seconds: float) -> bool:
    """Whether any of a user's items has not expired."""
    return any(item.expires_at > now_seconds for item in items)


def announces_join(
    items: Collection[PresenceItem], connection_id: str, joined_at_ms: int | None, now_seconds: float
) -> bool:
    """Whether this connection's join is announced. `items` are its user's, read consistently after its own was written.

    `joined_at_ms` is the time in the item that this join wrote; None if an earlier join had written it. That one may
    have ended before its announcement, so this one is announced as that one would have been, but only for
    REPEAT_SECONDS: a member that repeats its join later announces nothing.
    """
    if not is_present(items, now_seconds):
        return False  # the connection has left in the meantime; its departure may have been announced already
    own_ms: float | None = joined_at_ms
    if own_ms is None:
        own_ms = next((item.joined_at_ms for item in items if item.connection_id == connection_id), None)
        if own_ms is None or not now_seconds - REPEAT_SECONDS < own_ms / 1000 < math.inf:
            return False
    own = (own_ms, connection_id)
    return not any(
        (item.joined_at_ms, item.connection_id) < own
        for item in items
        if item.connection_id != connection_id and item.expires_at > now_seconds + EXPIRY_MARGIN_SECONDS
    )


def departed_users(departed: Sequence[str], present: Collection[str]) -> tuple[str, ...]:
    """The users to announce as departed: those of a departure's broadcast who are not present (`is_present`).

    The time of the event must have been taken before `present` was read.
    """
    return tuple(user for user in departed if user not in present)


def is_announced(members: int | None, limit: int) -> bool:
    """Whether a room with this number of members, None if it is not known, has events of presence.

    `limit` is the room's setting `presence`.
    """
    return limit > 0 and (members is None or members <= limit)


def joined_broadcast(room: str, user: str, *, unique: str, published_at_ms: int) -> Broadcast:
    """The broadcast that announces a join. Its time must have been taken before the query of `announces_join`."""
    return _broadcast(room, Change(joined=(user,)), unique, published_at_ms)


def departed_broadcast(room: str, *users: str, unique: str, published_at_ms: int) -> Broadcast:
    """The broadcast for which the worker looks whether the users are absent, and announces it."""
    return _broadcast(room, Change(departed=users), unique, published_at_ms)


def _broadcast(room: str, change: Change, unique: str, published_at_ms: int) -> Broadcast:
    return Broadcast(id=f"{_ID_PREFIX}{unique}", room=room, presence=change, v=2, published_at_ms=published_at_ms)
