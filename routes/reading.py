"""What can be read about a room, as the fields of a response: its messages, its users, and the number of its members.

Whether the caller may read them is decided before. The SDK's errors pass through.
"""

from collections.abc import Mapping
from typing import Any

from routes import dependencies
from routes.metrics import record_recoveries
from routes.responses import Code, RequestRejected

Fields = Mapping[str, Any]


def messages_of(room: str, since: int, limit: int) -> Fields:
    """At most `limit` messages after the offset `since`. Raises RequestRejected (bad_request)."""
    if not dependencies.settings().get([room])[room].history_seconds:
        raise RequestRejected(Code.BAD_REQUEST, "room: it has no history")
    recovery = dependencies.history().read(room, since, limit)
    record_recoveries([recovery])
    return {"room": room, **recovery.fields()}


def users_of(room: str, after: str | None) -> Fields:
    """A page of the users whose names are above `after`. Raises RequestRejected (bad_request)."""
    if room.startswith("@") or not dependencies.settings().get([room])[room].presence:
        raise RequestRejected(Code.BAD_REQUEST, "room: its members cannot be listed, because it has no presence")
    page = dependencies.presence().members(room, after)
    users = [user._asdict() for user in page.users]
    return {"room": room, "users": users, "after": page.after, "at_ms": page.at_ms}


def count_of(room: str) -> Fields:
    """How many connections are members, and when they were counted. Raises RequestRejected (unavailable)."""
    counted = dependencies.counts().count(room)
    return {"room": room, "members": counted.members, "counted_at_ms": counted.counted_at_ms}
