"""Connections, rooms and their members in the documented table: `Rooms`, and what the routes of Gatecast use of it.

- `rooms`: `Rooms`, for Lambda handlers of a program of its own
- `memberships`, `actions`, `rooms_to_join`: the transactions that connect, join and leave
- `presence`, `departures`, `counts`: who is in a room, and how many
- `revocations`, `kicking`: users who may not connect
- `settings_cache`, `backoff`, `observer`, `names`, `errors`, `connection`: what these share

It needs the extra `aws`, and nothing of Lambda.
"""

try:
    import botocore.exceptions  # noqa: F401 - so that what is missing is named
except ModuleNotFoundError as error:  # pragma: no cover - without the extra
    raise ModuleNotFoundError("gatecast.rooms needs botocore: install gatecast[aws]") from error

from gatecast.rooms.errors import Code, NoPublisher, RequestRejected
from gatecast.rooms.kicking import Kicked
from gatecast.rooms.presence import Members, User
from gatecast.rooms.rooms import Member, Rooms

__all__ = ["Code", "Kicked", "Member", "Members", "NoPublisher", "RequestRejected", "Rooms", "User"]
