"""How many members a room has.

Workers that have read all members of a shard write the number down, in rooms with presence. Reading these numbers costs
half a read unit. Where one is missing or older than 10 s, one request counts and writes it, and meanwhile others
receive the older number: a lock in the table, which ends by itself, decides which one. Numbers are those of unexpired
memberships, and approximate.

Items: pk `count#{room}`; sk `{shard}` for a number (`gatecast.table.count_item`), `lock` for the lock, with
`locked_until_ms` N and `expires_at` N.
"""

import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from gatecast import table
from gatecast.rooms.backoff import busy
from gatecast.rooms.observer import LOG, Observer
from gatecast.rooms.settings_cache import RoomSettingsCache

FRESH_SECONDS: Final = 10
"""A number that is older is counted again if a client asks for it."""
KNOWN_SECONDS: Final = 60
"""A number that is older says nothing about whether a room is above its limit: a broadcast to it counts again."""
CACHE_SECONDS: Final = 10.0
LOCK_SECONDS: Final = 10
COUNTING_SECONDS: Final = 8.0
"""After this a request begins to read no further page, so that it ends before its lock does."""
MAX_CACHED_ROOMS: Final = 10_000
_LOCK_SK: Final = "lock"
_SHARD: Final = re.compile(r"0|[1-9][0-9]{0,3}")


class DynamoDB(Protocol):
    """The calls of a boto3 DynamoDB client that counting needs."""

    def query(self, **kwargs: Any) -> Any: ...
    def put_item(self, **kwargs: Any) -> Any: ...


class Count(NamedTuple):
    """A number of members, and when it was counted. Of a whole room: when its oldest shard was."""

    members: int
    counted_at_ms: int


Shards = Mapping[int, Count]
"""What is known of a room, by shard."""


class Counts:
    """The table, through a boto3 client. Thread-safe. `wall_clock` gives seconds since the epoch."""

    def __init__(
        self,
        dynamodb: DynamoDB,
        table_name: str,
        settings: RoomSettingsCache,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        observer: Observer = LOG,
    ) -> None:
        self._dynamodb = dynamodb
        self._table = table_name
        self._settings = settings
        self._clock = clock
        self._wall_clock = wall_clock
        self._observer = observer
        self._cached: OrderedDict[str, tuple[float, Shards]] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, room: str) -> Count:
        """The room's members, and when they were counted.

        The SDK's errors pass through. Raises RequestRejected (unavailable) if the members cannot be counted in time; a
        retry continues with the shards that were not counted.
        """
        shards = range(self._settings.get([room])[room].shards)
        now_ms = self._now_ms()
        known = self._remembered(room) or {}
        if _stale(known, shards, now_ms):  # another request, or a worker, may have counted since
            known = self._read(room)
        stale = _stale(known, shards, now_ms)
        if stale and self._takes_lock(room, now_ms):
            known = {**known, **self._count_shards(room, stale)}
            self._remember(room, known, self._clock())
        found = _sum(known, shards)
        if found is None:
            raise busy()
        return found

    def members(self, room: str, shards: int) -> int | None:
        """How many members the room had in the last minute; None if this is not known. At most one query in 10 s.

        `shards` is the room's setting. The SDK's errors pass through.
        """
        oldest_ms = self._now_ms() - KNOWN_SECONDS * 1000
        remembered = self._remembered(room)
        found = _sum(self._read(room) if remembered is None else remembered, range(shards))
        return found.members if found and found.counted_at_ms >= oldest_ms else None

    def _remembered(self, room: str) -> Shards | None:
        """What was known of the room at most CACHE_SECONDS ago."""
        with self._lock:
            read_at, known = self._cached.get(room, (-math.inf, None))
        return known if self._clock() - read_at < CACHE_SECONDS else None

    def _read(self, room: str) -> Shards:
        read_at = self._clock()
        known: dict[int, Count] = {}
        for page in self._pages(table.count_pk(room)):
            known |= dict(_numbers(page["Items"], self._wall_clock()))
        self._remember(room, known, read_at)
        return known

    def _remember(self, room: str, known: Shards, read_at: float) -> None:
        with self._lock:
            self._cached[room] = (read_at, known)
            self._cached.move_to_end(room)
            if len(self._cached) > MAX_CACHED_ROOMS:
                self._cached.popitem(last=False)

    def _takes_lock(self, room: str, now_ms: int) -> bool:
        """Whether this request shall count. The lock ends by itself, so one that dies delays others by LOCK_SECONDS."""
        until_ms = now_ms + LOCK_SECONDS * 1000
        try:
            self._dynamodb.put_item(
                TableName=self._table,
                Item={
                    **table.key(table.count_pk(room), _LOCK_SK),
                    "locked_until_ms": {"N": str(until_ms)},
                    "expires_at": {"N": str(until_ms // 1000 + 1)},
                },
                ConditionExpression="attribute_not_exists(pk) OR locked_until_ms <= :now",
                ExpressionAttributeValues={":now": {"N": str(now_ms)}},
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise
            return False
        return True

    def _count_shards(self, room: str, shards: Iterable[int]) -> dict[int, Count]:
        """Counts these shards, in this order, as far as the time permits, and writes each number."""
        ends_at = self._clock() + COUNTING_SECONDS
        counted: dict[int, Count] = {}
        for shard in shards:
            count = self._count_shard(room, shard, ends_at)
            if count is None:
                break
            counted[shard] = count
            item = table.count_item(room, shard, members=count.members, counted_at_ms=count.counted_at_ms)
            try:
                self._dynamodb.put_item(TableName=self._table, Item=item)
            except (BotoCoreError, ClientError) as error:  # this request has its number; the next one counts again
                self._observer.fail("count.not_written", error)
        return counted

    def _count_shard(self, room: str, shard: int, ends_at: float) -> Count | None:
        """The shard's members; None if it takes too long. Costs half a read unit per 4 KB of memberships."""
        now_ms = self._now_ms()
        members = 0
        pages = self._pages(
            table.room_pk(room, shard),
            {":now": {"N": str(now_ms // 1000)}},
            Select="COUNT",
            FilterExpression="attribute_not_exists(expires_at) OR expires_at > :now",
        )
        while self._clock() < ends_at:
            page = next(pages, None)
            if page is None:
                return Count(members, now_ms)
            members += page["Count"]
        return None

    def _pages(self, pk: str, values: Mapping[str, Any] | None = None, **arguments: Any) -> Iterator[Any]:
        """The pages of an eventually consistent query, each read when it is wanted."""
        query = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": {"S": pk}, **(values or {})},
            **arguments,
        }
        while True:
            page = self._dynamodb.query(**query)
            yield page
            if "LastEvaluatedKey" not in page:
                return
            query["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def _now_ms(self) -> int:
        return int(self._wall_clock() * 1000)


def _numbers(items: Iterable[Mapping[str, Any]], now_seconds: float) -> Iterator[tuple[int, Count]]:
    """The unexpired numbers in these items, by shard. The lock is none, and neither is an item that cannot be read."""
    for item in items:
        shard, names = item["sk"]["S"], ("members", "counted_at_ms", "expires_at")
        members, counted_at_ms, expires_at = (table.lenient_number(item.get(name)) or 0 for name in names)
        if _SHARD.fullmatch(shard) and members >= 0 and counted_at_ms > 0 and expires_at > now_seconds:
            yield int(shard), Count(int(members), int(counted_at_ms))


def _stale(known: Shards, shards: Iterable[int], now_ms: int) -> list[int]:
    """The shards to count: those that are missing first, then the oldest, so that retries come to an end."""
    counted_at_ms = {shard: known[shard].counted_at_ms if shard in known else 0 for shard in shards}
    stale = [shard for shard, at_ms in counted_at_ms.items() if at_ms <= now_ms - FRESH_SECONDS * 1000]
    return sorted(stale, key=counted_at_ms.__getitem__)


def _sum(known: Shards, shards: Iterable[int]) -> Count | None:
    """The room's count; None unless each of these shards is known."""
    counts = [known.get(shard) for shard in shards]
    found = [count for count in counts if count is not None]
    if len(found) < len(counts):
        return None
    return Count(sum(count.members for count in found), min(count.counted_at_ms for count in found))
