"""Joins of several rooms, presence and counts in DynamoDB and SQS: items, races and costs."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gatecast import Publisher, decode
from gatecast import table as keys
from gatecast.broadcast import Broadcast
from gatecast.broadcast import Presence as Change
from gatecast.rooms.counts import Counts
from gatecast.rooms.memberships import Memberships
from gatecast.rooms.presence import Presence
from gatecast.rooms.settings_cache import RoomSettingsCache
from local.resources import Queues
from routes.requests import Caller
from routes.responses import Code, RequestRejected
from tests.metered_clients import Cost, Meter
from tests.routes_events import event

Keys = set[tuple[str, str]]


class Routes:
    """The routes' classes, as `routes.dependencies` makes them, as in a new process."""

    def __init__(self, dynamodb: Any, sqs: Any, name: str, queue_url: str, *, max_rooms: int = 100) -> None:
        self.settings = RoomSettingsCache(dynamodb, name)
        self.counts = Counts(dynamodb, name, self.settings)
        publisher = Publisher(sqs, queue_url)
        self.presence = Presence(dynamodb, name, self.settings, self.counts, lambda: publisher)
        self.memberships = Memberships(
            dynamodb, name, max_rooms=max_rooms, settings=self.settings, presence=self.presence
        )


class Stack:
    """A table with settings, a queue, and routes that use them."""

    def __init__(self, dynamodb: Any, sqs: Any, name: str, queue_url: str) -> None:
        self.dynamodb, self.sqs, self.name, self.queue_url = dynamodb, sqs, name, queue_url
        self.meter = Meter()
        self.setting("p/*", presence={"N": "100"})
        self.routes = self.new_process()

    def setting(self, name: str, **attributes: Any) -> None:
        item = {**keys.key(keys.settings_pk(name), keys.SETTINGS_SK), **attributes}
        self.dynamodb.put_item(TableName=self.name, Item=item)

    def new_process(self, *, max_rooms: int = 100, dynamodb: Any = None) -> Routes:
        metered = self.meter.metered
        return Routes(
            metered(dynamodb or self.dynamodb), metered(self.sqs), self.name, self.queue_url, max_rooms=max_rooms
        )

    def items(self) -> Keys:
        """The keys of all items other than settings, counts and locks."""
        found: list[Any] = self.dynamodb.scan(TableName=self.name, ConsistentRead=True)["Items"]
        pairs = {(item["pk"]["S"], item["sk"]["S"]) for item in found}
        return {pair for pair in pairs if not pair[0].startswith(("settings#", "count#"))}

    def broadcasts(self, expected: int) -> list[Broadcast]:
        """The next broadcasts on the queue; they are deleted."""
        found: list[Broadcast] = []
        ends_at = time.monotonic() + 30
        while len(found) < expected and time.monotonic() < ends_at:
            received = self.sqs.receive_message(QueueUrl=self.queue_url, MaxNumberOfMessages=10, WaitTimeSeconds=1)
            for message in received.get("Messages", ()):
                self.sqs.delete_message(QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"])
                found.append(decode(message["Body"]))
        assert len(found) == expected
        return found

    def waiting(self) -> int:
        """How many messages are on the queue, delayed ones included."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesDelayed"]
        found = self.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)


@pytest.fixture
def stack(dynamodb: Any, sqs: Any, table: str, queues: Queues) -> Stack:
    return Stack(dynamodb, sqs, table, queues.url)


@pytest.fixture
def fifo_stack(dynamodb: Any, sqs: Any, table: str, fifo_queues: Queues) -> Stack:
    return Stack(dynamodb, sqs, table, fifo_queues.url)


def caller(connection_id: str = "tab1=", user: str | None = "alice") -> Caller:
    """A connection that was established a minute ago, now."""
    now_ms = int(time.time() * 1000)
    made = event(connection_id=connection_id, authorizer={"user": user} if user else {}, requested_at_ms=now_ms)
    made["requestContext"]["connectedAt"] = now_ms - 60_000
    return Caller.from_event(made)


def connected(stack: Stack, connection_id: str = "tab1=", user: str | None = "alice") -> Caller:
    who = caller(connection_id, user)
    stack.routes.memberships.connect(who, ["@all"])
    stack.meter.take()
    return who


def change_of(broadcast: Broadcast) -> Change:
    assert isinstance(broadcast.presence, Change)
    return broadcast.presence


# Items


def test_the_items_of_a_member_in_a_room_with_presence(stack: Stack) -> None:
    who = connected(stack)
    assert stack.routes.memberships.join(who, ["p/1", "lobby"]) == {}
    joined = {
        ("connection#tab1=", "connection"),
        ("connection#tab1=", "room#@all"),
        ("room#@all#0", "tab1="),
        ("connection#tab1=", "room#p/1"),
        ("room#p/1#0", "tab1="),
        ("presence#p/1", "alice tab1="),
        ("connection#tab1=", "room#lobby"),
        ("room#lobby#0", "tab1="),
    }
    assert stack.items() == joined
    assert stack.routes.presence.members("p/1").users == [("alice", 1)]
    stack.routes.memberships.leave(who, "p/1")
    assert stack.items() == joined - {
        ("connection#tab1=", "room#p/1"), ("room#p/1#0", "tab1="), ("presence#p/1", "alice tab1="),
    }  # fmt: skip
    assert stack.routes.presence.members("p/1").users == []
    assert stack.routes.memberships.join(who, ["p/1"]) == {}
    stack.routes.memberships.disconnect("tab1=")
    assert stack.items() == set()


def test_a_member_since_before_the_room_had_presence_becomes_present_by_joining_again(stack: Stack) -> None:
    who = connected(stack)
    rooms = ["later/1", "lobby", "later/2"]
    assert stack.routes.memberships.join(who, rooms) == {}
    stack.setting("later/*", presence={"N": "100"})
    without = stack.items()
    announced = {"transact_write_items": 2, "query": 2, "send_message": 2}
    routes = stack.new_process()
    routes.settings.get(rooms)
    routes.counts.members("later/1", 1)
    routes.counts.members("later/2", 1)
    stack.meter.take()
    assert routes.memberships.join(who, rooms) == {}
    entering = stack.meter.take()
    assert entering.calls == announced
    assert stack.items() == without | {("presence#later/1", "alice tab1="), ("presence#later/2", "alice tab1=")}
    assert routes.presence.members("later/1").users == [("alice", 1)]
    assert {broadcast.room for broadcast in stack.broadcasts(2)} == {"later/1", "later/2"}
    assert routes.memberships.join(who, rooms) == {}
    assert stack.meter.take().calls == {**announced, "transact_write_items": 1, "query": 3}, "one lists the members"
    routes.memberships.leave(who, "later/1")
    assert stack.items() == {pair for pair in without if "later/1" not in "".join(pair)} | {
        ("presence#later/2", "alice tab1=")
    }
    routes.memberships.disconnect("tab1=")
    assert stack.items() == set()


def test_a_bulk_join_of_25_rooms_with_presence_and_its_removal(stack: Stack) -> None:
    who = connected(stack)
    rooms = [f"p/{number}" for number in range(25)]
    assert stack.routes.memberships.join(who, rooms) == {}
    assert len(stack.items()) == 3 + 3 * 25
    assert all(stack.routes.memberships.is_member(who, room) for room in rooms)
    item = stack.dynamodb.get_item(TableName=stack.name, Key=keys.key("connection#tab1=", "connection"))["Item"]
    assert item["rooms"] == {"N": "25"}
    announced = stack.broadcasts(25)
    assert {broadcast.room for broadcast in announced} == set(rooms)
    assert all(change_of(broadcast).joined == ("alice",) for broadcast in announced)
    stack.routes.memberships.disconnect("tab1=")
    assert stack.items() == set()
    assert stack.waiting() == 25, "the departures are delayed"


def test_of_many_rooms_as_many_are_joined_as_fit(stack: Stack) -> None:
    who = connected(stack)
    routes = stack.new_process(max_rooms=5).memberships
    assert routes.join(who, ["a", "b"]) == {}
    rejected = routes.join(who, ["c", "a", "d", "b", "e", "f", "g"])
    assert {room: each.code for room, each in rejected.items()} == dict.fromkeys("fg", Code.TOO_MANY_ROOMS)
    assert {room for room in "abcdefg" if routes.is_member(who, room)} == set("abcde")
    routes.leave(who, "a")
    assert set(routes.join(who, ["f", "g"])) == {"g"}
    routes.disconnect("tab1=")
    assert stack.items() == set()


def test_more_rooms_at_once_than_a_connection_may_join(stack: Stack) -> None:
    who = connected(stack)
    routes = stack.new_process(max_rooms=2).memberships
    assert set(routes.join(who, ["a", "b", "c"])) == {"c"}
    assert routes.join(who, ["a", "b"]) == {}


# Announcements


def test_a_users_second_tab_is_not_announced_and_the_departure_is_looked_at_later(stack: Stack) -> None:
    first, second = connected(stack), connected(stack, "tab2=")
    before_ms = int(time.time() * 1000)
    stack.routes.memberships.join(first, ["p/1"])
    stack.routes.memberships.join(second, ["p/1"])
    (joined,) = stack.broadcasts(1)
    assert change_of(joined).joined == ("alice",)
    assert before_ms <= int(joined.published_at_ms or 0) <= int(time.time() * 1000)
    assert stack.waiting() == 0
    assert stack.routes.presence.members("p/1").users == [("alice", 2)]
    stack.routes.memberships.leave(first, "p/1")
    stack.routes.memberships.disconnect("tab2=")
    assert stack.waiting() == 2
    received = stack.sqs.receive_message(QueueUrl=stack.queue_url, WaitTimeSeconds=1)
    assert "Messages" not in received, "the worker reads who is present after the delay"


def test_on_a_fifo_queue_the_departure_follows_at_once(fifo_stack: Stack) -> None:
    who = connected(fifo_stack)
    fifo_stack.routes.memberships.join(who, ["p/1"])
    fifo_stack.routes.memberships.leave(who, "p/1")
    joined, departed = fifo_stack.broadcasts(2)
    assert (change_of(joined).joined, change_of(departed).departed) == (("alice",), ("alice",))
    fifo_stack.routes.memberships.join(who, ["p/1"])
    fifo_stack.routes.memberships.disconnect("tab1=")
    assert len({broadcast.id for broadcast in fifo_stack.broadcasts(2)}) == 2, "events are not deduplicated"
    assert fifo_stack.items() == set()


def test_a_room_above_its_limit_is_silent_once_it_has_been_counted(stack: Stack) -> None:
    stack.setting("p/full", presence={"N": "1"})
    for number in range(3):
        stack.new_process().memberships.join(connected(stack, f"c{number}=", f"u{number}"), ["p/full"])
    stack.broadcasts(3)
    assert stack.new_process().counts.count("p/full").members == 3
    stack.new_process().memberships.join(connected(stack, "c9=", "u9"), ["p/full"])
    stack.new_process().memberships.leave(caller("c0=", "u0"), "p/full")
    assert stack.waiting() == 0
    assert [user.user for user in stack.routes.presence.members("p/full").users] == ["u1", "u2", "u9"]


# Races


class Interrupted:
    """A DynamoDB client that runs `interruption` before one of its calls."""

    def __init__(self, dynamodb: Any, before_call: int, interruption: Callable[[], object]) -> None:
        self._dynamodb = dynamodb
        self._calls_left = before_call
        self._interruption = interruption

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            if self._calls_left == 0:
                self._interruption()
            self._calls_left -= 1
            return getattr(self._dynamodb, operation)(**arguments)

        return call

    @property
    def was_interrupted(self) -> bool:
        return self._calls_left < 0


def join_unless_closing(routes: Routes, who: Caller, rooms: list[str]) -> None:
    try:
        routes.memberships.join(who, rooms)
    except RequestRejected as rejection:
        if rejection.code is not Code.NOT_CONNECTED:
            raise


ROOMS = ["p/1", "lobby", "p/2"]


@pytest.mark.parametrize("before_call", range(5))
def test_a_bulk_join_between_the_steps_of_a_disconnect(stack: Stack, before_call: int) -> None:
    who = connected(stack)
    stack.routes.memberships.join(who, ["p/0"])
    interrupted = Interrupted(stack.dynamodb, before_call, lambda: join_unless_closing(stack.routes, who, ROOMS))
    stack.new_process(dynamodb=interrupted).memberships.disconnect("tab1=")
    assert interrupted.was_interrupted
    assert stack.items() == set()


@pytest.mark.parametrize("before_call", range(5))
def test_a_disconnect_between_the_steps_of_a_bulk_join(stack: Stack, before_call: int) -> None:
    who = connected(stack)
    interrupted = Interrupted(stack.dynamodb, before_call, lambda: stack.routes.memberships.disconnect("tab1="))
    join_unless_closing(stack.new_process(dynamodb=interrupted), who, ROOMS)
    assert interrupted.was_interrupted
    assert stack.items() == set()


@pytest.mark.parametrize("before_call", range(3))
def test_a_rejoin_between_the_steps_of_a_leave_leaves_no_presence_behind(stack: Stack, before_call: int) -> None:
    """The room has presence only from the second join on."""
    who = connected(stack)
    stack.routes.memberships.join(who, ["later"])

    def rejoin() -> None:
        stack.routes.memberships.leave(who, "later")
        stack.setting("later", presence={"N": "5"})
        stack.new_process().memberships.join(who, ["later"])

    interrupted = Interrupted(stack.dynamodb, before_call, rejoin)
    stack.new_process(dynamodb=interrupted).memberships.leave(who, "later")
    stack.new_process().memberships.leave(who, "later")
    assert {pk for pk, _ in stack.items()} == {"connection#tab1=", "room#@all#0"}


@pytest.mark.parametrize("before_call", range(4))
def test_a_disconnect_between_the_steps_of_a_member_becoming_present(stack: Stack, before_call: int) -> None:
    who = connected(stack)
    stack.routes.memberships.join(who, ["later"])
    stack.setting("later", presence={"N": "5"})
    interrupted = Interrupted(stack.dynamodb, before_call, lambda: stack.routes.memberships.disconnect("tab1="))
    join_unless_closing(stack.new_process(dynamodb=interrupted), who, ["later"])
    assert interrupted.was_interrupted
    assert stack.items() == set()


@pytest.mark.parametrize("before_call", range(3))
def test_a_member_becoming_present_between_the_steps_of_a_disconnect(stack: Stack, before_call: int) -> None:
    who = connected(stack)
    stack.routes.memberships.join(who, ["later"])
    stack.setting("later", presence={"N": "5"})

    def rejoin() -> None:
        join_unless_closing(stack.new_process(), who, ["later"])

    interrupted = Interrupted(stack.dynamodb, before_call, rejoin)
    stack.new_process(dynamodb=interrupted).memberships.disconnect("tab1=")
    assert interrupted.was_interrupted
    assert stack.items() == set()


@pytest.mark.parametrize("before_call", range(3))
def test_a_member_becoming_present_between_the_steps_of_its_leave(stack: Stack, before_call: int) -> None:
    who = connected(stack)
    stack.routes.memberships.join(who, ["later"])
    stack.setting("later", presence={"N": "5"})
    interrupted = Interrupted(stack.dynamodb, before_call, lambda: stack.new_process().memberships.join(who, ["later"]))
    stack.new_process(dynamodb=interrupted).memberships.leave(who, "later")
    stack.new_process().memberships.leave(who, "later")
    assert {pk for pk, _ in stack.items()} == {"connection#tab1=", "room#@all#0"}


def test_bulk_joins_leaves_and_a_disconnect_on_threads_of_their_own(stack: Stack) -> None:
    errors: list[Exception] = []

    def run(step: Callable[[], object], start: threading.Barrier) -> None:
        start.wait()
        try:
            step()
        except Exception as error:  # noqa: BLE001 - reported by the main thread
            errors.append(error)

    for _ in range(8):
        who = connected(stack)
        steps: list[Callable[[], object]] = [
            lambda: stack.routes.memberships.disconnect("tab1="),
            lambda who=who: stack.routes.memberships.leave(who, "p/1"),  # type: ignore[misc]
            lambda who=who: join_unless_closing(stack.routes, who, ["p/1", "p/2"]),  # type: ignore[misc]
            lambda who=who: join_unless_closing(stack.routes, who, ["p/2", "p/3", "x"]),  # type: ignore[misc]
        ]
        start = threading.Barrier(len(steps))
        threads = [threading.Thread(target=run, args=(step, start)) for step in steps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert stack.items() == set()


# Counts


def test_a_room_is_counted_by_one_request_and_read_by_the_others(stack: Stack) -> None:
    stack.setting("p/1", shards={"N": "4"}, join_shards={"N": "4"})
    members = [connected(stack, f"c{number}=", f"u{number}") for number in range(12)]
    for who in members:
        stack.routes.memberships.join(who, ["p/1"])
    expired = keys.membership_item("p/1", 2, "old=", joined_at_ms=1_600_000_000_000, expires_at=1_600_000_000)
    stack.dynamodb.put_item(TableName=stack.name, Item=expired)
    stack.meter.take()
    counted = stack.new_process().counts.count("p/1")
    assert counted.members == 12
    assert stack.meter.take().calls == {"batch_get_item": 1, "query": 1 + 4, "put_item": 1 + 4}
    assert stack.new_process().counts.count("p/1") == counted
    assert stack.meter.take().calls == {"batch_get_item": 1, "query": 1}


def test_of_many_who_ask_at_once_one_counts(stack: Stack) -> None:
    """An older number is there, so the others need not wait."""
    old_ms = int(time.time() * 1000) - 30_000
    item = keys.count_item("p/1", 0, members=7, counted_at_ms=old_ms)
    stack.dynamodb.put_item(TableName=stack.name, Item=item)
    processes = [stack.new_process() for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda process: process.counts.count("p/1").members, processes))
    assert set(found) <= {0, 7}
    assert found.count(0) >= 1
    assert stack.meter.take().calls["query"] <= 8 + 1, "one of them has read the members"


@pytest.mark.parametrize("ends_in_ms", [-1, 0, 1, 10_000])
def test_a_lock_that_has_expired_is_taken_over_and_another_is_not(stack: Stack, ends_in_ms: int) -> None:
    """Its item may still be there: TTL deletes lag."""
    now = int(time.time())
    now_ms = now * 1000
    lock = {**keys.key("count#p/1", "lock"), "locked_until_ms": {"N": str(now_ms + ends_in_ms)}}
    older = keys.count_item("p/1", 0, members=7, counted_at_ms=now_ms - 30_000)
    for item in (lock, older):
        stack.dynamodb.put_item(TableName=stack.name, Item=item)
    counts = Counts(stack.dynamodb, stack.name, stack.routes.settings, wall_clock=lambda: now)
    counted = (0, now_ms) if ends_in_ms <= 0 else (7, now_ms - 30_000)
    assert counts.count("p/1") == counted
    key = keys.key("count#p/1", "lock")
    left = stack.dynamodb.get_item(TableName=stack.name, Key=key, ConsistentRead=True)["Item"]["locked_until_ms"]
    assert int(left["N"]) == now_ms + (10_000 if ends_in_ms <= 0 else ends_in_ms)


# Costs. The table stands in the reference; change both.


def cost(stack: Stack, operation: Callable[[Routes], object], *, warm: bool = True) -> Cost:
    """What it costs in a process that has the settings and counts in memory, or in a new one."""
    routes = stack.new_process()
    if warm:
        routes.settings.get(["p/1", "lobby", "@all"])
        routes.counts.members("p/1", 1)
    stack.meter.take()
    operation(routes)
    return stack.meter.take()


def test_the_costs_of_one_room_without_presence(stack: Stack) -> None:
    who = connected(stack)
    assert cost(stack, lambda routes: routes.memberships.join(who, ["lobby"]), warm=False) == (
        {"batch_get_item": 1, "transact_write_items": 1}, 6, 1.0,
    )  # fmt: skip
    assert cost(stack, lambda routes: routes.memberships.leave(who, "lobby")) == (
        {"get_item": 1, "transact_write_items": 1}, 6, 1.0,
    )  # fmt: skip
    assert cost(stack, lambda routes: routes.memberships.join(who, ["lobby"])) == ({"transact_write_items": 1}, 6, 0.0)
    assert cost(stack, lambda routes: routes.memberships.is_member(who, "lobby")) == ({"get_item": 1}, 0, 1.0)
    assert cost(stack, lambda routes: routes.memberships.join(who, ["lobby"])) == ({"transact_write_items": 1}, 6, 0.0)
    assert cost(stack, lambda routes: routes.memberships.disconnect("tab1=")) == (
        {"delete_item": 1, "query": 1, "batch_write_item": 1}, 5, 1.0,
    )  # fmt: skip


def test_the_costs_of_connecting(stack: Stack) -> None:
    connects = {"batch_get_item": 1, "transact_write_items": 1}
    who = caller()
    assert cost(stack, lambda routes: routes.memberships.connect(who, ["@all", "@user/alice"])) == (connects, 10, 1.0)


def test_the_costs_of_25_rooms_without_presence(stack: Stack) -> None:
    who = connected(stack)
    rooms = [f"r{number}" for number in range(25)]
    joins = {"batch_get_item": 1, "transact_write_items": 1}
    assert cost(stack, lambda routes: routes.memberships.join(who, rooms)) == (joins, 2 * 51, 12.5)


def test_the_costs_of_one_room_with_presence(stack: Stack) -> None:
    who, second = connected(stack), connected(stack, "tab2=")
    announced = {"transact_write_items": 1, "query": 1, "send_message": 1}
    silent = {"transact_write_items": 1, "query": 1}
    leaves = {"get_item": 1, "transact_write_items": 1, "send_message": 1}
    disconnects = {"delete_item": 1, "query": 1, "batch_write_item": 1, "send_message": 1}
    assert cost(stack, lambda routes: routes.memberships.join(who, ["p/1"])) == (announced, 8, 1.0)
    assert cost(stack, lambda routes: routes.memberships.join(second, ["p/1"])) == (silent, 8, 1.0)
    assert cost(stack, lambda routes: routes.memberships.join(who, ["p/1"])) == (announced, 8, 1.0), "repeated"
    assert cost(stack, lambda routes: routes.memberships.leave(second, "p/1")) == (leaves, 8, 1.0)
    assert cost(stack, lambda routes: routes.memberships.disconnect("tab1=")) == (disconnects, 6, 1.0)
    new = cost(stack, lambda routes: routes.memberships.join(connected(stack, "tab3="), ["p/1"]), warm=False)
    assert new.read == 1.0 + 3 * 0.5 + 0.5, "the user's items; three settings items; the count"


def test_the_costs_of_25_rooms_with_presence(stack: Stack) -> None:
    who = connected(stack)
    rooms = [f"p/r{number}" for number in range(25)]
    found = cost(stack, lambda routes: routes.memberships.join(who, rooms))
    assert found.calls == {"batch_get_item": 1, "transact_write_items": 1, "query": 50, "send_message": 25}
    assert (found.written, found.read) == (2 * 76, 12.5 + 25 * 1.5)


def test_the_costs_of_listing_and_counting(stack: Stack) -> None:
    for number in range(20):
        stack.routes.memberships.join(connected(stack, f"c{number}=", f"u{number}"), ["p/1"])
    assert cost(stack, lambda routes: routes.presence.members("p/1")) == ({"query": 1}, 0, 1.0)
    counts = {"query": 2, "put_item": 2}
    assert cost(stack, lambda routes: routes.counts.count("p/1")) == (counts, 2, 1.0), "by the one that counts"
    assert cost(stack, lambda routes: routes.counts.count("p/1")) == ({}, 0, 0.0), "from memory"
    stack.meter.take()
    routes = stack.new_process()
    routes.settings.get(["p/1"])
    stack.meter.take()
    routes.counts.count("p/1")
    assert stack.meter.take() == ({"query": 1}, 0, 0.5), "by any other"
