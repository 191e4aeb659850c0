"""Counting a room's members: what is read, who counts, and what the others receive."""

from collections.abc import Callable
from typing import Any

import pytest

from gatecast import table
from gatecast.rooms.backoff import Backoff
from gatecast.rooms.counts import CACHE_SECONDS, COUNTING_SECONDS, LOCK_SECONDS, Counts
from gatecast.rooms.settings_cache import RoomSettingsCache
from gatecast.table import Item
from routes.observing import OBSERVER
from routes.responses import Code, RequestRejected
from tests.routes_events import captured_log
from tests.scripted_dynamodb import Scripted, error

NOW = 1_800_000_000.0
NOW_MS = int(NOW * 1000)
LOCKED = error("ConditionalCheckFailedException", "PutItem")


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def counting(dynamodb: Scripted, shards: int = 1, clock: Clock | None = None) -> Counts:
    clock = clock or Clock()
    settings = [{**table.key("settings#lobby", table.SETTINGS_SK), "shards": {"N": str(shards)}}]
    dynamodb.scripts["batch_get_item"] = [{"Responses": {"gatecast": settings}}]
    cache = RoomSettingsCache(dynamodb, "gatecast", Backoff(clock=clock))
    return Counts(dynamodb, "gatecast", cache, clock=clock, wall_clock=clock, observer=OBSERVER)


def number(shard: int, members: int, age_seconds: float = 0) -> Item:
    return table.count_item("lobby", shard, members=members, counted_at_ms=NOW_MS - int(age_seconds * 1000))


def page(*items: Item) -> dict[str, Any]:
    return {"Items": list(items)}


def counted(members: int, *, last: bool = True) -> dict[str, Any]:
    """A page of a query that counts."""
    return {"Count": members, **({} if last else {"LastEvaluatedKey": table.key("room#lobby#0", "m")})}


def queried(dynamodb: Scripted) -> list[str]:
    return [each["ExpressionAttributeValues"][":pk"]["S"] for each in dynamodb.arguments("query")]


def test_young_numbers_cost_one_query_that_need_not_be_consistent() -> None:
    dynamodb = Scripted(query=[page(number(0, 3, 9), number(1, 4, 2))])
    assert counting(dynamodb, shards=2).count("lobby") == (7, NOW_MS - 9_000), "as old as its oldest shard"
    assert [operation for operation, _ in dynamodb.calls] == ["batch_get_item", "query"]
    (query,) = dynamodb.arguments("query")
    assert "ConsistentRead" not in query
    assert queried(dynamodb) == ["count#lobby"]


def test_numbers_in_memory_cost_nothing() -> None:
    dynamodb = Scripted(query=[page(number(0, 3))])
    counts = counting(dynamodb)
    assert counts.count("lobby") == counts.count("lobby") == (3, NOW_MS)
    assert counts.members("lobby", 1) == 3
    assert dynamodb.count("query") == 1


def test_an_old_number_is_counted_again_page_by_page_and_written() -> None:
    dynamodb = Scripted(query=[page(number(0, 3, 10)), counted(5, last=False), counted(6)])
    assert counting(dynamodb).count("lobby") == (11, NOW_MS)
    assert queried(dynamodb) == ["count#lobby", "room#lobby#0", "room#lobby#0"]
    _, first, second = dynamodb.arguments("query")
    assert first["Select"] == "COUNT"
    assert "expires_at > :now" in first["FilterExpression"]
    assert first["ExpressionAttributeValues"][":now"] == {"N": str(int(NOW))}
    assert "ExclusiveStartKey" in second
    lock, written = dynamodb.arguments("put_item")
    assert lock["Item"]["sk"] == {"S": "lock"}
    assert lock["Item"]["locked_until_ms"] == {"N": str(NOW_MS + LOCK_SECONDS * 1000)}
    assert lock["ExpressionAttributeValues"][":now"] == {"N": str(NOW_MS)}
    assert written["Item"] == number(0, 11)


def test_only_the_shards_whose_numbers_are_old_are_counted() -> None:
    dynamodb = Scripted(query=[page(number(0, 3, 60), number(1, 4, 1), number(3, 9, 30)), *map(counted, (10, 20, 30))])
    assert counting(dynamodb, shards=4).count("lobby") == (64, NOW_MS - 1_000)
    assert queried(dynamodb)[1:] == ["room#lobby#2", "room#lobby#0", "room#lobby#3"], "the missing one, then the oldest"


def test_while_another_request_counts_the_older_number_is_returned() -> None:
    dynamodb = Scripted(query=[page(number(0, 3, 500))], put_item=[LOCKED])
    assert counting(dynamodb).count("lobby") == (3, NOW_MS - 500_000)
    assert queried(dynamodb) == ["count#lobby"]


def test_without_an_older_number_the_others_retry() -> None:
    """If all of them counted, many at once would read the members of a large room, and none might finish."""
    dynamodb = Scripted(query=[page()], put_item=[LOCKED])
    with pytest.raises(RequestRejected) as rejection:
        counting(dynamodb).count("lobby")
    assert rejection.value.code is Code.UNAVAILABLE
    assert queried(dynamodb) == ["count#lobby"]


def test_an_old_number_in_memory_is_read_before_it_is_counted_again() -> None:
    clock = Clock()
    dynamodb = Scripted(query=[page(number(0, 3, 5)), page(number(0, 4, -6))])
    counts = counting(dynamodb, clock=clock)
    counts.count("lobby")
    clock.now += 6
    assert counts.count("lobby") == (4, NOW_MS + 6_000)
    assert dynamodb.count("put_item") == 0


def test_items_that_are_no_numbers_or_have_expired_count_as_absent() -> None:
    lock = {**table.key("count#lobby", "lock"), "locked_until_ms": {"N": "1"}, "expires_at": {"N": "9999999999"}}
    damaged = {**number(0, 5), "members": {"S": "many"}, "counted_at_ms": {"S": "x"}}
    expired = {**number(0, 5), "expires_at": {"N": str(int(NOW))}}
    for item in (lock, damaged, expired, {**number(0, 5), "sk": {"S": "0x1"}}):
        assert counting(Scripted(query=[page(item), counted(2)])).count("lobby") == (2, NOW_MS)


class Slow(Scripted):
    """Each call takes some seconds."""

    def __init__(self, clock: Clock, seconds: float, **scripts: list[Any]) -> None:
        super().__init__(**scripts)
        self._clock = clock
        self._seconds = seconds

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        self._clock.now += self._seconds
        return super().__getattr__(operation)


def test_counting_ends_before_its_lock_does_and_a_retry_continues() -> None:
    clock = Clock()
    pages = [page(), *[counted(1)] * 4]
    dynamodb = Slow(clock, 2.0, query=pages)
    counts = counting(dynamodb, shards=4, clock=clock)
    with pytest.raises(RequestRejected) as rejection:
        counts.count("lobby")
    assert rejection.value.code is Code.UNAVAILABLE
    assert clock.now - NOW < COUNTING_SECONDS + LOCK_SECONDS
    written = [each["Item"]["sk"]["S"] for each in dynamodb.arguments("put_item") if "members" in each["Item"]]
    assert written == ["0", "1"], "what was counted is written"
    known = [each["Item"] for each in dynamodb.arguments("put_item") if "members" in each["Item"]]
    dynamodb.scripts["query"] = [page(*known), *[counted(1)] * 4]
    before = dynamodb.count("query")
    assert counts.count("lobby").members == 4
    assert queried(dynamodb)[before + 1 :][:2] == ["room#lobby#2", "room#lobby#3"]


def test_a_shard_that_takes_too_long_leaves_the_older_number() -> None:
    clock = Clock()
    dynamodb = Slow(clock, 1.0, query=[page(number(0, 3, 60)), *[counted(1, last=False)] * 30])
    assert counting(dynamodb, clock=clock).count("lobby") == (3, NOW_MS - 60_000)
    assert dynamodb.count("query") <= 2 + COUNTING_SECONDS


def test_a_number_that_cannot_be_written_is_returned_all_the_same() -> None:
    dynamodb = Scripted(query=[page(), counted(2)], put_item=[{}, error("ThrottlingException", "PutItem")])
    with captured_log() as log:
        assert counting(dynamodb).count("lobby") == (2, NOW_MS)
    assert "count.not_written" in log.getvalue()


def test_other_errors_of_the_lock_pass_through() -> None:
    with pytest.raises(Exception, match="AccessDenied"):
        counting(Scripted(query=[page()], put_item=[error("AccessDeniedException")])).count("lobby")


def test_for_the_limit_only_numbers_of_the_last_minute_are_known() -> None:
    def members(*items: Item, shards: int = 2) -> int | None:
        return counting(Scripted(query=[page(*items)])).members("lobby", shards)

    assert members(number(0, 3, 59), number(1, 4)) == 7
    assert members(number(0, 3, 61), number(1, 4)) is None
    assert members(number(0, 3)) is None
    assert members(number(0, 3), number(1, 4), number(2, 50)) == 7, "shards that are not read do not count"
    assert members() is None


def test_that_nothing_is_known_is_cached_too() -> None:
    clock = Clock()
    dynamodb = Scripted(query=[page()])
    counts = counting(dynamodb, clock=clock)
    assert counts.members("lobby", 1) is counts.members("lobby", 1) is None
    assert dynamodb.count("query") == 1
    clock.now += CACHE_SECONDS
    counts.members("lobby", 1)
    assert dynamodb.count("query") == 2
    assert dynamodb.count("put_item") == 0, "it never counts"


def test_the_memory_of_counts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatecast.rooms.counts.MAX_CACHED_ROOMS", 3)
    counts = counting(Scripted(query=[page()]))
    for room in "abcdef":
        counts.members(room, 1)
    assert len(counts._cached) == 3
