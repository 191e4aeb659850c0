"""Who is present in a room: the list of users, and the announcement of joins and departures.

The rules, and why they lose no event, are in `gatecast.presence`. If a join cannot be announced, its client receives
`unavailable`, although it is written: only the client remembers that something is left to be done, and its retry costs
a failed condition, a query and the announcement. A client retries as well if the process dies before it responds. What
happens if a departure cannot be announced is in `gatecast.rooms.departures`.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from gatecast import presence, table
from gatecast.broadcast import MAX_NAME_LENGTH, InvalidBroadcast
from gatecast.presence import DEPARTURE_DELAY_SECONDS, PresenceItem
from gatecast.publisher import Publisher
from gatecast.rooms.connection import Connection
from gatecast.rooms.counts import Counts
from gatecast.rooms.errors import Code, NoPublisher, RequestRejected
from gatecast.rooms.names import NAME
from gatecast.rooms.observer import LOG, Observer
from gatecast.rooms.settings_cache import RoomSettingsCache

MAX_USERS: Final = 500
"""Per page of `members`."""
MAX_QUERIES: Final = 5
"""Per page of `members`: a user may have any number of connections."""
FAILURES: Final = (BotoCoreError, ClientError, InvalidBroadcast, NoPublisher, RequestRejected)
"""Why an event may not be announced. InvalidBroadcast: another program has written the user's item."""


class SupportsQuery(Protocol):
    def query(self, **kwargs: Any) -> Any: ...


class User(NamedTuple):
    """A user who is present, and on how many connections."""

    user: str
    connections: int


class Members(NamedTuple):
    """A page of users, in order."""

    users: list[User]
    after: str | None
    """The user after whom the next page begins; None if there is none."""
    at_ms: int
    """A time before the page was read: events of an earlier time say nothing new about its users."""


class Presence:
    """The table and the queue, through boto3 clients. Thread-safe. `wall_clock` gives seconds since the epoch.

    `publisher` is called when the first event is published: only rooms with presence need a queue. It raises
    NoPublisher if there is none. `limit` counts an announced join, and raises RequestRejected if its connection has too
    many announced: one request may join many rooms.
    """

    def __init__(
        self,
        dynamodb: SupportsQuery,
        table_name: str,
        settings: RoomSettingsCache,
        counts: Counts,
        publisher: Callable[[], Publisher],
        *,
        limit: Callable[[Connection], None] = lambda _: None,
        observer: Observer = LOG,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._dynamodb = dynamodb
        self._table = table_name
        self._settings = settings
        self._counts = counts
        self._publisher = publisher
        self._limit = limit
        self.observer = observer
        self.clock = clock
        self._wall_clock = wall_clock

    def members(self, room: str, after: str | None = None) -> Members:
        """The page of users after the user `after`.

        At most MAX_USERS, and as many as MAX_QUERIES find with all their connections, or else one of whose connections
        not all are counted. Read consistently, so that nobody is missing whose join was announced before. Raises
        RequestRejected (bad_request); the SDK's errors pass through.
        """
        if after is not None and not NAME.fullmatch(after):
            raise RequestRejected(Code.BAD_REQUEST, f"after: must be 1 to {MAX_NAME_LENGTH} characters from ! to ~")
        now_seconds = self._wall_clock()
        at_ms = int(now_seconds * 1000)
        connections: dict[str, int] = {}
        complete: str | None = None
        last: str | None = None
        for number, (items, has_more) in enumerate(self._pages(room, after or ""), start=1):
            for item in items:
                if item.user != last:
                    complete, last = last, item.user
                if item.expires_at <= now_seconds:
                    continue
                if len(connections) == MAX_USERS and item.user not in connections:
                    return Members(_users(connections), complete, at_ms)
                connections[item.user] = connections.get(item.user, 0) + 1
            if has_more and last is not None and number >= MAX_QUERIES:
                if complete is not None:
                    connections.pop(last, None)
                return Members(_users(connections), complete or last, at_ms)
        return Members(_users(connections), None, at_ms)

    def announce_joins(
        self, connection: Connection, joins: Mapping[str, int | None], ends_at_seconds: float
    ) -> dict[str, RequestRejected]:
        """Announces the connection's joins of these rooms with presence.

        `joins` has, by room, the time in the presence item that the join wrote; None if an earlier join wrote it.
        Returns a rejection for each that it could not announce. From `ends_at_seconds` on it begins no further one, nor
        after a failure: the client retries.
        """
        left = list(joins)
        rejection = RequestRejected(Code.UNAVAILABLE, "not announced yet: retry")
        while left and self.clock() < ends_at_seconds:
            try:
                self._announce_join(connection, left[0], joins[left[0]])
            except FAILURES as error:
                if isinstance(error, RequestRejected):  # too many, or a dependency that is busy
                    rejection = error
                self.observer.fail("presence.not_announced", error)
                break
            del left[0]
        if left:
            self.observer.count_unannounced(len(left))
        return dict.fromkeys(left, rejection)

    @property
    def is_fifo(self) -> bool:
        """Whether departures are announced after the deletion. Raises NoPublisher."""
        return self._publisher().fifo

    def announce_departure(self, room: str, user: str) -> None:
        """Has the worker look whether the user is absent, after a delay if the queue supports it.

        Raises one of FAILURES.
        """
        if not self._is_announced(room):
            return
        event = presence.departed_broadcast(room, user, unique=uuid.uuid4().hex, published_at_ms=self._now_ms())
        self._publisher().publish(event, delay_seconds=0 if self.is_fifo else DEPARTURE_DELAY_SECONDS)

    def _announce_join(self, connection: Connection, room: str, joined_at_ms: int | None) -> None:
        user = connection.user
        if user is None or not self._is_announced(room):
            return
        at_ms = self._now_ms()  # before the query
        found = self._dynamodb.query(**presence.user_query(self._table, room, user))["Items"]
        items = [item for item in map(PresenceItem.from_item, found) if item is not None]
        now_seconds = connection.requested_at_ms / 1000
        if presence.announces_join(items, connection.connection_id, joined_at_ms, now_seconds):
            self._limit(connection)
            unique = uuid.uuid4().hex
            self._publisher().publish(presence.joined_broadcast(room, user, unique=unique, published_at_ms=at_ms))

    def _is_announced(self, room: str) -> bool:
        settings = self._settings.get([room])[room]
        if not settings.presence:
            return False
        return presence.is_announced(self._counts.members(room, settings.shards), settings.presence)

    def _pages(self, room: str, after: str) -> Iterator[tuple[list[PresenceItem], bool]]:
        """The room's presence items behind those of the user `after`, in the order of users, page by page.

        Each with whether another one follows.
        """
        query: dict[str, Any] = {
            "TableName": self._table,
            "ConsistentRead": True,
            # the smallest text above all keys of a user: a name is followed by a space, which precedes `!`
            "KeyConditionExpression": "pk = :pk AND sk > :after",
            "ExpressionAttributeValues": {":pk": {"S": table.presence_pk(room)}, ":after": {"S": f"{after}!"}},
            "Limit": MAX_USERS + 1,
        }
        while True:
            page = self._dynamodb.query(**query)
            items = [item for item in map(PresenceItem.from_item, page["Items"]) if item is not None]
            yield items, "LastEvaluatedKey" in page
            if "LastEvaluatedKey" not in page:
                return
            query["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def _now_ms(self) -> int:
        return int(self._wall_clock() * 1000)


def _users(connections: Mapping[str, int]) -> list[User]:
    return [User(*each) for each in connections.items()]
