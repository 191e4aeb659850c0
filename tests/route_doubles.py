"""What the handlers depend on, in memory: for tests of requests and responses without a table and a queue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from botocore.exceptions import ClientError

from gatecast import Broadcast, Publisher, decode
from gatecast.room_settings import RoomSettings
from gatecast.rooms.counts import Count
from gatecast.rooms.presence import Members
from routes import dependencies
from routes.environment import OPEN_ACCESS
from routes.history import History
from routes.limits import Limits
from routes.requests import Caller
from routes.responses import RequestRejected
from routes.streams import Streams
from tests.stream_table import StreamTable

SECRET = "the-client's-own-text"
NOW = 1_700_000_010.0
PER_SECOND = {"join": 10, "leave": 10, "publish": 10, "read": 10}


class FakeTable:
    """Memberships in memory. If `failure` is set, every call raises it; `rejected` are rooms that cannot be joined."""

    def __init__(self) -> None:
        self.rooms: dict[str, set[str]] = {}
        self.failure: Exception | None = None
        self.rejected: dict[str, RequestRejected] = {}
        self.dialects: list[int] = []
        self.joins: list[list[str]] = []

    def _of(self, connection_id: str) -> set[str]:
        if self.failure:
            raise self.failure
        return self.rooms.setdefault(connection_id, set())

    def connect(self, caller: Caller, rooms: list[str]) -> None:
        self._of(caller.connection_id).update(rooms)
        self.dialects.append(caller.frames)

    def join(self, caller: Caller, rooms: Sequence[str]) -> Mapping[str, RequestRejected]:
        rejected = {room: self.rejected[room] for room in rooms if room in self.rejected}
        self._of(caller.connection_id).update(set(rooms) - set(rejected))
        self.dialects.append(caller.frames)
        self.joins.append(list(rooms))
        return rejected

    def leave(self, caller: Caller, room: str) -> None:
        self._of(caller.connection_id).discard(room)

    def is_member(self, caller: Caller, room: str) -> bool:
        return room in self._of(caller.connection_id)

    def disconnect(self, connection_id: str) -> None:
        self._of(connection_id)
        del self.rooms[connection_id]


class FakeQueue:
    def __init__(self) -> None:
        self.broadcasts: list[Broadcast] = []
        self.bodies: list[str] = []
        self.failure: Exception | None = None

    def send_message(self, **kwargs: Any) -> None:
        if self.failure:
            raise self.failure
        self.bodies.append(kwargs["MessageBody"])
        self.broadcasts.append(decode(kwargs["MessageBody"]))


class Counter:
    """Replaces DynamoDB in `Limits`: the condition fails after `left` updates."""

    def __init__(self) -> None:
        self.left = 1_000_000
        self.counted: list[str] = []

    def update_item(self, **arguments: Any) -> None:
        self.left -= 1
        self.counted.append(arguments["Key"]["sk"]["S"].partition("#")[0])
        if self.left < 0:
            raise ClientError({"Error": {"Code": "ConditionalCheckFailedException", "Message": SECRET}}, "UpdateItem")


class FakeSettings(dict[str, RoomSettings]):
    """Rooms that are not in it have no settings."""

    def get(self, rooms: Any, _default: Any = None) -> Any:
        return {room: super(FakeSettings, self).get(room, RoomSettings()) for room in rooms}


class FakePresence:
    def __init__(self) -> None:
        self.pages: dict[tuple[str, str | None], Members] = {}

    def members(self, room: str, after: str | None = None) -> Members:
        return self.pages.get((room, after), Members([], None, int(NOW * 1000)))


class FakeCounts:
    def count(self, _room: str) -> Count:
        return Count(7, 1_700_000_000_000)


@dataclass
class Doubles:
    """Takes the place of `routes.dependencies`, in an environment in which anyone may connect."""

    memberships: FakeTable = field(default_factory=FakeTable)
    queue: FakeQueue = field(default_factory=FakeQueue)
    counter: Counter = field(default_factory=Counter)
    settings: FakeSettings = field(default_factory=FakeSettings)
    presence: FakePresence = field(default_factory=FakePresence)
    stream: StreamTable = field(default_factory=lambda: StreamTable(NOW))

    def __post_init__(self) -> None:
        self.limits = Limits(self.counter, "gatecast", PER_SECOND)
        self.history = History(Streams(self.stream, "gatecast", clock=self.stream.clock), clock=self.stream.clock)

    def with_history(self, *rooms: str) -> None:
        for room in rooms:
            self.settings[room] = RoomSettings(history_seconds=3600)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Doubles":
        monkeypatch.setenv("GATECAST_AUTHORIZER", OPEN_ACCESS)
        replaced = {
            "memberships": self.memberships,
            "publisher": Publisher(self.queue, "https://queue"),
            "limits": self.limits,
            "settings": self.settings,
            "presence": self.presence,
            "history": self.history,
            "counts": FakeCounts(),
            "rejections": None,
        }
        for name, double in replaced.items():
            monkeypatch.setattr(dependencies, name, lambda double=double: double)
        return self
