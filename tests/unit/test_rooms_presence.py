"""Presence: what is written, what is announced, and what happens if it cannot be."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from gatecast import Publisher, decode, table
from gatecast.broadcast import Broadcast
from gatecast.presence import DEPARTURE_DELAY_SECONDS, REPEAT_SECONDS
from gatecast.rooms.backoff import Backoff
from gatecast.rooms.connection import Connection
from gatecast.rooms.counts import Counts
from gatecast.rooms.departures import DISCONNECTING_SECONDS
from gatecast.rooms.errors import NoPublisher
from gatecast.rooms.memberships import JOIN_SECONDS, Memberships
from gatecast.rooms.presence import MAX_QUERIES, MAX_USERS, Members, Presence
from gatecast.rooms.settings_cache import RoomSettingsCache
from gatecast.table import Item
from routes.observing import OBSERVER
from routes.requests import Caller
from routes.responses import Code, RequestRejected
from tests.routes_events import CONNECTION_ID, EXPIRES_AT, REQUESTED_AT_MS, captured_log, event
from tests.scripted_dynamodb import FAILED, Scripted, cancelled, error

ALICE = Caller.from_event(event(authorizer={"user": "alice"}))
NOW = REQUESTED_AT_MS / 1000
DOWN = EndpointConnectionError(endpoint_url="https://sqs")


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Queue:
    """An SQS client. Each call takes `seconds`; those after the first `works` fail. `before` runs at each call."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sent: list[dict[str, Any]] = []
        self.calls = 0
        self.works = 10**9
        self.seconds = 0.0
        self.before: Callable[[], object] = lambda: None

    def send_message(self, **message: Any) -> None:
        self.before()
        self.clock.now += self.seconds
        self.calls += 1
        if self.calls > self.works:
            raise DOWN
        self.sent.append(message)

    @property
    def broadcasts(self) -> list[Broadcast]:
        return [decode(message["MessageBody"]) for message in self.sent]

    @property
    def changes(self) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        """Room, joined and departed users of each event."""
        events = [(each, each.presence) for each in self.broadcasts]
        return [(str(each.room), change.joined, change.departed) for each, change in events if change]


class Routes:
    """The routes' classes with scripted responses, in which rooms whose names begin with `p` have presence."""

    def __init__(self, *, fifo: bool = False, members: int | None = None, **scripts: list[Any]) -> None:
        self.clock = Clock()
        self.queue = Queue(self.clock)
        self.present: list[Item] = [present(CONNECTION_ID)]
        self.dynamodb = Table(self, members, **scripts)
        publisher = Publisher(self.queue, "https://sqs/1/q.fifo" if fifo else "https://sqs/1/q")
        backoff = Backoff(max_attempts=3, clock=self.clock, sleep=lambda _: None)
        settings = RoomSettingsCache(self.dynamodb, "gatecast", backoff, OBSERVER)
        times: dict[str, Any] = {"clock": self.clock, "wall_clock": self.clock}
        self.publisher: Callable[[], Publisher] = lambda: publisher
        counts = Counts(self.dynamodb, "gatecast", settings, observer=OBSERVER, **times)
        self.limit: Callable[[Connection], None] = lambda _: None
        self.presence = Presence(
            self.dynamodb,
            "gatecast",
            settings,
            counts,
            self._publisher,
            limit=self._limit,
            observer=OBSERVER,
            **times,
        )
        self.memberships = Memberships(
            self.dynamodb, "gatecast", max_rooms=50, backoff=backoff, settings=settings, presence=self.presence
        )

    def _limit(self, connection: Connection) -> None:
        self.limit(connection)

    def _publisher(self) -> Publisher:
        return self.publisher()

    def operations(self) -> list[str]:
        return [operation for operation, _ in self.dynamodb.calls]


class Table(Scripted):
    """Settings and counts of rooms, and the presence items of `routes`; the rest is scripted.

    A scripted call takes some `seconds`.
    """

    def __init__(self, routes: Routes, members: int | None, **scripts: list[Any]) -> None:
        super().__init__(**scripts)
        self.seconds: dict[str, float] = {}
        self._routes = routes
        self._members = members

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        self._routes.clock.now += self.seconds.get(operation, 0.0)
        return super().__getattr__(operation)

    def batch_get_item(self, **arguments: Any) -> Any:
        self.calls.append(("batch_get_item", arguments))
        keys = arguments["RequestItems"]["gatecast"]["Keys"]
        items = [{**key, "presence": {"N": "100"}} for key in keys if key["pk"]["S"].startswith("settings#p")]
        return {"Responses": {"gatecast": items}}

    def query(self, **arguments: Any) -> Any:
        pk = arguments["ExpressionAttributeValues"][":pk"]["S"]
        self.calls.append((f"query {pk.partition('#')[0]}", arguments))
        if pk.startswith("count#"):
            now_ms = int(self._routes.clock.now * 1000)
            room, members = pk.removeprefix("count#"), self._members
            known = [] if members is None else [table.count_item(room, 0, members=members, counted_at_ms=now_ms)]
            return {"Items": known}
        if pk.startswith("presence#"):
            return {"Items": self._routes.present}
        page = self.scripts["joined"]
        return {"Items": page[0]}


def present(connection_id: str, *, user: str = "alice", joined_at_ms: int = REQUESTED_AT_MS) -> Item:
    return table.presence_item("p", user, connection_id, joined_at_ms=joined_at_ms, expires_at=EXPIRES_AT)


def joined(room: str, user: str | None = "alice") -> Item:
    return table.joined_room_item(CONNECTION_ID, room, 0, expires_at=EXPIRES_AT, present_user=user)


def written(routes: Routes) -> list[tuple[str, str, str]]:
    """The kind and key of each action of the last transaction."""
    actions = routes.dynamodb.arguments("transact_write_items")[-1]["TransactItems"]
    found = [(kind, (action.get("Key") or action["Item"])) for each in actions for kind, action in each.items()]
    return [(kind, key["pk"]["S"], key["sk"]["S"]) for kind, key in found]


@pytest.fixture(autouse=True)
def metrics(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many events could not be announced, according to the metric."""
    monkeypatch.delenv("POWERTOOLS_METRICS_DISABLED", raising=False)

    def unannounced() -> int:
        lines = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines() if "_aws" in line]
        return int(sum(line.get("PresenceNotAnnounced", [0])[0] for line in lines))

    return unannounced


# Joining


def test_the_presence_item_is_written_with_the_membership_and_the_join_is_announced() -> None:
    routes = Routes()
    assert routes.memberships.join(ALICE, ["p"]) == {}
    assert written(routes) == [
        ("Update", f"connection#{CONNECTION_ID}", "connection"),
        ("Put", "room#p#0", CONNECTION_ID),
        ("Put", f"connection#{CONNECTION_ID}", "room#p"),
        ("Put", "presence#p", f"alice {CONNECTION_ID}"),
    ]
    actions = routes.dynamodb.arguments("transact_write_items")[0]["TransactItems"]
    assert actions[2]["Put"]["Item"]["present"] == {"S": "alice"}
    assert routes.operations() == ["batch_get_item", "transact_write_items", "query count", "query presence"]
    assert routes.queue.changes == [("p", ("alice",), ())]
    (message,) = routes.queue.sent
    assert "DelaySeconds" not in message
    assert routes.dynamodb.arguments("query presence")[0]["ConsistentRead"]


@pytest.mark.parametrize(
    ("caller", "room"),
    [(msgspec.structs.replace(ALICE, user=None), "p"), (ALICE, "lobby")],
    ids=["no user", "no setting"],
)
def test_without_a_user_or_the_setting_nothing_is_added(caller: Caller, room: str) -> None:
    routes = Routes()
    routes.memberships.join(caller, [room])
    assert routes.operations() == ["batch_get_item", "transact_write_items"]
    assert len(written(routes)) == 3
    assert routes.queue.calls == 0


def test_another_connection_of_the_user_that_is_older_keeps_the_join_from_being_announced() -> None:
    routes = Routes()
    routes.present.append(present("older=", joined_at_ms=REQUESTED_AT_MS - 1))
    assert routes.memberships.join(ALICE, ["p"]) == {}
    assert routes.queue.calls == 0


def test_the_time_of_the_event_is_taken_before_the_query() -> None:
    routes = Routes()
    original = routes.dynamodb.query

    def slow(**arguments: Any) -> Any:
        routes.clock.now += 2.0
        return original(**arguments)

    routes.dynamodb.query = slow  # type: ignore[method-assign]
    routes.memberships.join(ALICE, ["p"])
    (broadcast,) = routes.queue.broadcasts
    assert broadcast.published_at_ms == REQUESTED_AT_MS + 2_000, "after the count, before the user's items"


def test_a_retried_join_is_announced_although_its_membership_is_there() -> None:
    routes = Routes(transact_write_items=[cancelled("None", "None", FAILED, "None")])
    routes.present[:] = [present(CONNECTION_ID, joined_at_ms=REQUESTED_AT_MS - 1_000)]
    assert routes.memberships.join(ALICE, ["p"]) == {}
    assert routes.queue.changes == [("p", ("alice",), ())]


def test_announced_joins_are_limited_each_and_not_by_request() -> None:
    """One request joins up to 25 rooms, and a client may leave and join them again."""
    routes = Routes()
    allowed = iter(range(2))

    def limit(connection: Connection) -> None:
        assert connection is ALICE
        if next(allowed, None) is None:
            raise RequestRejected(Code.RATE_LIMITED, "at most 2 in 10 s", retry_after_seconds=3)

    routes.limit = limit
    rejected = routes.memberships.join(ALICE, ["p1", "p2", "p3", "p4", "other"])
    assert [each[0] for each in routes.queue.changes] == ["p1", "p2"]
    assert {room: each.code for room, each in rejected.items()} == dict.fromkeys(["p3", "p4"], Code.RATE_LIMITED)


@pytest.mark.parametrize("age_ms", [3_600_000, REPEAT_SECONDS * 1_000])
def test_a_member_that_repeats_its_join_later_announces_nothing(age_ms: int) -> None:
    """Otherwise a member could have 25 rooms notified by each request."""
    routes = Routes(transact_write_items=[cancelled("None", "None", FAILED, "None")])
    routes.present[:] = [present(CONNECTION_ID, joined_at_ms=REQUESTED_AT_MS - age_ms)]
    assert routes.memberships.join(ALICE, ["p"]) == {}
    assert routes.queue.sent == []


def member_without_presence(*rooms: str) -> ClientError:
    """A transaction that finds the connection a member of these rooms, which had no presence when it joined."""
    found = cancelled("None", *("None", FAILED, "None") * len(rooms))
    for room, reason in zip(rooms, found.response["CancellationReasons"][2::3], strict=True):
        reason["Item"] = joined(room, None)
    return found


def test_a_member_since_before_the_room_had_presence_becomes_present_when_it_repeats_its_join() -> None:
    routes = Routes(transact_write_items=[member_without_presence("p"), {}])
    assert routes.memberships.join(ALICE, ["p"]) == {}
    assert written(routes) == [
        ("Update", f"connection#{CONNECTION_ID}", "connection"),
        ("Update", f"connection#{CONNECTION_ID}", "room#p"),
        ("Put", "presence#p", f"alice {CONNECTION_ID}"),
    ]
    entering = routes.dynamodb.arguments("transact_write_items")[1]["TransactItems"]
    assert [each["Update"]["ConditionExpression"] for each in entering[:2]] == [
        "attribute_exists(pk) AND expires_at > :now",
        "attribute_exists(pk) AND attribute_not_exists(#present)",
    ]
    assert entering[2]["Put"]["Item"] == present(CONNECTION_ID)
    assert routes.queue.changes == [("p", ("alice",), ())], "as a first join"


def test_in_a_room_above_its_limit_such_a_member_becomes_present_as_well() -> None:
    routes = Routes(members=101, transact_write_items=[member_without_presence("p"), {}])
    assert routes.memberships.join(ALICE, ["p"]) == {}
    assert ("Put", "presence#p", f"alice {CONNECTION_ID}") in written(routes)
    assert routes.queue.sent == []


def test_such_a_member_of_several_rooms_becomes_present_with_one_transaction() -> None:
    routes = Routes(
        transact_write_items=[member_without_presence("p1", "p2"), cancelled("None", FAILED, *["None"] * 3), {}]
    )
    assert routes.memberships.join(ALICE, ["p1", "p2"]) == {}
    assert [room for _, room, _ in written(routes)[2:]] == ["presence#p2"], "it has left p1, or entered it, meanwhile"
    assert routes.dynamodb.count("transact_write_items") == 3


@pytest.mark.parametrize("reasons", [(FAILED, "None", "None"), ("None", FAILED, "None")], ids=["closing", "left"])
def test_who_is_no_member_any_more_does_not_become_present(reasons: tuple[str, ...]) -> None:
    routes = Routes(transact_write_items=[member_without_presence("p"), cancelled(*reasons)])
    routes.present.clear()
    assert routes.memberships.join(ALICE, ["p"]) == {}
    assert routes.dynamodb.count("transact_write_items") == 2
    assert routes.queue.sent == []


def test_a_presence_item_that_cannot_be_added_makes_its_room_alone_unavailable() -> None:
    contended = [cancelled("None", "TransactionConflict", "None")] * 3
    routes = Routes(transact_write_items=[member_without_presence("p"), *contended])
    rejected = routes.memberships.join(ALICE, ["p"])
    assert {room: each.code for room, each in rejected.items()} == {"p": Code.UNAVAILABLE}
    assert routes.queue.sent == []


@pytest.mark.parametrize(("members", "events"), [(100, 1), (101, 0), (None, 1)])
def test_a_room_above_its_limit_has_no_events(members: int | None, events: int) -> None:
    routes = Routes(members=members, get_item=[{"Item": joined("p")}])
    routes.memberships.join(ALICE, ["p"])
    assert len(routes.queue.sent) == events
    routes.memberships.leave(ALICE, "p")
    assert len(routes.queue.sent) == 2 * events
    assert ("query presence" in routes.operations()) == bool(events)


def test_counts_are_read_once_in_ten_seconds() -> None:
    routes = Routes()
    for _ in range(3):
        routes.memberships.join(ALICE, ["p"])
    assert routes.operations().count("query count") == 1


def test_of_several_rooms_only_those_with_presence_are_announced() -> None:
    routes = Routes()
    assert routes.memberships.join(ALICE, ["p1", "a", "p2"]) == {}
    assert len(written(routes)) == 1 + 2 * 3 + 2
    assert [room for room, _, _ in routes.queue.changes] == ["p1", "p2"]


def test_a_join_that_cannot_be_announced_is_unavailable_and_its_retry_announces_it(metrics: Callable[[], int]) -> None:
    routes = Routes(
        transact_write_items=[{}, cancelled("None", "None", FAILED, "None", "None", "None", FAILED, "None")]
    )
    routes.queue.works = 1
    with captured_log() as log:
        rejected = routes.memberships.join(ALICE, ["p1", "lobby", "p2", "p3"])
    assert {room: each.code for room, each in rejected.items()} == dict.fromkeys(("p2", "p3"), Code.UNAVAILABLE)
    assert routes.queue.calls == 2, "the queue is not called again after a failure"
    assert metrics() == 2
    assert "presence.not_announced" in log.getvalue()
    assert "p2" not in log.getvalue()
    routes.queue.works = 10
    assert routes.memberships.join(ALICE, ["p2", "p3"]) == {}
    assert [room for room, _, _ in routes.queue.changes] == ["p1", "p2", "p3"]


def test_a_failing_query_does_not_fail_the_other_rooms() -> None:
    routes = Routes()
    routes.dynamodb.query = lambda **_: (_ for _ in ()).throw(error("ThrottlingException"))  # type: ignore[method-assign]
    assert set(routes.memberships.join(ALICE, ["p", "lobby"])) == {"p"}


def test_a_queue_that_is_not_configured_makes_only_rooms_with_presence_unavailable() -> None:
    routes = Routes()
    routes.publisher = lambda: (_ for _ in ()).throw(NoPublisher("GATECAST_QUEUE_URL is not set"))
    assert routes.memberships.join(ALICE, ["lobby"]) == {}
    with captured_log() as log:
        assert set(routes.memberships.join(ALICE, ["p"])) == {"p"}
    assert "GATECAST_QUEUE_URL is not set" in log.getvalue()


def test_announcements_of_a_join_end_in_time() -> None:
    routes = Routes()
    routes.queue.seconds = 4.0
    rejected = routes.memberships.join(ALICE, [f"p{number}" for number in range(25)])
    assert len(routes.queue.sent) == 4
    assert len(rejected) == 21
    assert routes.clock.now - NOW < JOIN_SECONDS + 4.0


# Leaving


def test_leaving_is_announced_with_a_delay_before_the_items_are_deleted() -> None:
    routes = Routes(get_item=[{"Item": joined("p")}])
    routes.queue.before = lambda: operations.extend(routes.operations())
    operations: list[str] = []
    routes.memberships.leave(ALICE, "p")
    assert "transact_write_items" not in operations
    assert routes.queue.changes == [("p", (), ("alice",))]
    (message,) = routes.queue.sent
    assert message["DelaySeconds"] == DEPARTURE_DELAY_SECONDS
    assert written(routes) == [
        ("Delete", "room#p#0", CONNECTION_ID),
        ("Delete", "presence#p", f"alice {CONNECTION_ID}"),
        ("Delete", f"connection#{CONNECTION_ID}", "room#p"),
        ("Update", f"connection#{CONNECTION_ID}", "connection"),
    ]


def test_on_a_fifo_queue_leaving_is_announced_after_the_deletion_and_without_delay() -> None:
    routes = Routes(fifo=True, get_item=[{"Item": joined("p")}])
    routes.queue.before = lambda: operations.extend(routes.operations())
    operations: list[str] = []
    routes.memberships.leave(ALICE, "p")
    assert "transact_write_items" in operations
    (message,) = routes.queue.sent
    assert "DelaySeconds" not in message
    assert message["MessageGroupId"] == "p"


def test_leaving_a_room_without_presence_costs_what_it_did() -> None:
    routes = Routes(get_item=[{"Item": joined("lobby", None)}])
    routes.memberships.leave(ALICE, "lobby")
    assert routes.operations() == ["get_item", "transact_write_items"]
    assert len(written(routes)) == 3


def test_leaving_is_announced_once_however_often_it_is_contended() -> None:
    script = [cancelled("None", "None", FAILED, "None"), {}]
    routes = Routes(get_item=[{"Item": joined("p")}], transact_write_items=script)
    routes.memberships.leave(ALICE, "p")
    assert routes.dynamodb.count("transact_write_items") == 2
    assert len(routes.queue.sent) == 1


def test_a_deletion_that_takes_longer_than_the_delay_is_announced_again() -> None:
    routes = Routes(get_item=[{"Item": joined("p")}])
    routes.dynamodb.seconds["transact_write_items"] = 14.0
    routes.memberships.leave(ALICE, "p")
    assert routes.queue.changes == [("p", (), ("alice",))] * 2


def test_leaving_is_unavailable_and_nothing_deleted_while_a_standard_queue_fails() -> None:
    routes = Routes(get_item=[{"Item": joined("p")}])
    routes.queue.works = 0
    with pytest.raises(RequestRejected) as rejection:
        routes.memberships.leave(ALICE, "p")
    assert rejection.value.code is Code.UNAVAILABLE
    assert "transact_write_items" not in routes.operations()


def test_leaving_succeeds_while_a_fifo_queue_fails_for_a_retry_would_find_nothing(metrics: Callable[[], int]) -> None:
    routes = Routes(fifo=True, get_item=[{"Item": joined("p")}])
    routes.queue.works = 0
    with captured_log() as log:
        routes.memberships.leave(ALICE, "p")
    assert "transact_write_items" in routes.operations()
    assert "presence.not_announced" in log.getvalue()
    assert metrics() == 1


# Disconnecting


def doomed(routes: Routes) -> list[str]:
    """What the batches delete, besides the connection."""
    batches = [each["RequestItems"]["gatecast"] for each in routes.dynamodb.arguments("batch_write_item")]
    return [request["DeleteRequest"]["Key"]["pk"]["S"] for batch in batches for request in batch]


@pytest.mark.parametrize("fifo", [False, True])
def test_disconnecting_announces_each_departure_beside_the_deletion_of_its_batch(fifo: bool) -> None:
    rooms = [joined(f"p{number}") for number in range(20)]
    routes = Routes(fifo=fifo, joined=[[joined("a", None), *rooms]])
    deleted: list[int] = []
    routes.queue.before = lambda: deleted.append(sum(pk.startswith("presence#p") for pk in doomed(routes)))
    routes.memberships.disconnect(CONNECTION_ID)
    assert routes.queue.changes == [(f"p{number}", (), ("alice",)) for number in range(20)]
    assert len(doomed(routes)) == 2 + 3 * 20
    for index, before in enumerate(deleted):
        assert (before > index) == fifo, "on a standard queue before the deletion, on a FIFO queue after it"


def test_disconnecting_without_presence_costs_what_it_did() -> None:
    routes = Routes(joined=[[joined("a", None)]])
    routes.publisher = lambda: pytest.fail("no queue is needed")
    routes.memberships.disconnect(CONNECTION_ID)
    assert routes.operations() == ["delete_item", "query connection", "batch_write_item"]


FIRST_BATCH = 8
"""Rooms with presence whose items are deleted together."""


@pytest.mark.parametrize(("fifo", "deleted"), [(False, 2), (True, FIRST_BATCH)])
def test_items_whose_departure_the_queue_does_not_take_are_left(
    fifo: bool, deleted: int, metrics: Callable[[], int]
) -> None:
    """With their memberships: the next broadcast to such a room finds the connection gone, and the worker announces."""
    rooms = [item for number in range(20) for item in (joined(f"p{number:02d}"), joined(f"r{number:02d}", None))]
    routes = Routes(fifo=fifo, joined=[sorted(rooms, key=lambda item: item["sk"]["S"])])
    routes.queue.works = 2
    with captured_log() as log:
        routes.memberships.disconnect(CONNECTION_ID)
    assert [pk for pk in doomed(routes) if pk.startswith("presence#")] == [
        f"presence#p{number:02d}" for number in range(deleted)
    ]
    assert len(doomed(routes)) == 3 * deleted + 2 * 20, "rooms without presence are left in any case"
    assert routes.queue.calls == 3, "it is not called again"
    assert metrics() == 18
    assert log.getvalue().count("presence.not_announced") == 1


@pytest.mark.parametrize(("fifo", "deleted"), [(False, DISCONNECTING_SECONDS), (True, FIRST_BATCH)])
def test_a_slow_queue_leaves_time_for_the_deletion(fifo: bool, deleted: int, metrics: Callable[[], int]) -> None:
    routes = Routes(fifo=fifo, joined=[[joined(f"p{number}") for number in range(20)]])
    routes.queue.seconds = 1.0
    routes.memberships.disconnect(CONNECTION_ID)
    assert len(doomed(routes)) == 3 * deleted
    assert len(routes.queue.sent) == DISCONNECTING_SECONDS
    assert metrics() == 20 - DISCONNECTING_SECONDS


@pytest.mark.parametrize("fifo", [False, True])
def test_departures_that_need_no_announcement_are_no_reason_to_leave_anything(fifo: bool) -> None:
    routes = Routes(fifo=fifo, members=101, joined=[[joined("p1"), joined("p2")]])
    routes.queue.works = 0
    routes.memberships.disconnect(CONNECTION_ID)
    assert len(doomed(routes)) == 2 * 3


def test_without_a_queue_only_what_has_presence_is_left(metrics: Callable[[], int]) -> None:
    routes = Routes(joined=[[joined("a", None), joined("p")]])
    routes.publisher = lambda: (_ for _ in ()).throw(NoPublisher("GATECAST_QUEUE_URL is not set"))
    routes.memberships.disconnect(CONNECTION_ID)
    assert doomed(routes) == ["room#a#0", f"connection#{CONNECTION_ID}"]
    assert metrics() == 1


def test_a_batch_that_takes_longer_to_delete_than_the_delay_is_counted(metrics: Callable[[], int]) -> None:
    routes = Routes(joined=[[joined("p1"), joined("p2")]])
    routes.dynamodb.seconds["batch_write_item"] = 14.0
    routes.memberships.disconnect(CONNECTION_ID)
    assert len(routes.queue.sent) == 2, "there is no time for another call"
    assert metrics() == 2


@pytest.mark.parametrize("fifo", [False, True])
def test_an_item_that_makes_no_event_is_deleted_and_keeps_no_other(fifo: bool, metrics: Callable[[], int]) -> None:
    routes = Routes(fifo=fifo, joined=[[joined("p", "two words"), joined("p" * 101), joined("p1")]])
    routes.memberships.disconnect(CONNECTION_ID)
    assert len(doomed(routes)) == 3 * 3
    assert routes.queue.changes == [("p1", (), ("alice",))]
    assert metrics() == 2


def test_while_settings_cannot_be_read_items_are_left(metrics: Callable[[], int]) -> None:
    """Whether the departure has to be announced is not known."""
    routes = Routes(joined=[[joined("p")]])
    routes.dynamodb.batch_get_item = lambda **_: (_ for _ in ()).throw(error("ThrottlingException"))  # type: ignore[method-assign]
    routes.memberships.disconnect(CONNECTION_ID)
    assert doomed(routes) == []
    assert metrics() == 1


# Listing


class Pages:
    """The presence items of a room in pages, as DynamoDB returns them for this query."""

    def __init__(self, items: list[Item], clock: Clock) -> None:
        self.clock = clock
        self.items = sorted(items, key=lambda item: item["sk"]["S"].encode())
        self.calls: list[dict[str, Any]] = []

    def query(self, **arguments: Any) -> Any:
        self.calls.append(arguments)
        start = arguments.get("ExclusiveStartKey", {}).get("sk", arguments["ExpressionAttributeValues"][":after"])["S"]
        found = [item for item in self.items if item["sk"]["S"].encode() > start.encode()]
        page = found[: arguments["Limit"]]
        key = {name: page[-1][name] for name in ("pk", "sk")} if len(found) > len(page) else None
        return {"Items": page, **({"LastEvaluatedKey": key} if key else {})}


def listing(items: list[Item]) -> tuple[Pages, Presence]:
    routes = Routes()
    pages = Pages(items, routes.clock)
    return pages, Presence(
        pages, "gatecast", routes.presence._settings, routes.presence._counts, routes.publisher, wall_clock=routes.clock
    )


def test_users_are_listed_once_with_the_number_of_their_connections() -> None:
    items = [present(c, user=user) for user, c in [("al", "1"), ("al!", "1"), ("bob", "1"), ("al", "2"), ("bob", "3")]]
    expired = {**present("9", user="carol"), "expires_at": {"N": str(int(NOW))}}
    _, presence = listing([*items, expired])
    assert presence.members("p") == ([("al", 2), ("al!", 1), ("bob", 2)], None, REQUESTED_AT_MS)


def test_the_time_of_a_page_is_taken_before_its_query() -> None:
    """An event that is later holds: what it announces may have happened after the query."""
    pages, presence = listing([present("1")])
    original = pages.query

    def slow(**arguments: Any) -> Any:
        pages.clock.now += 2.0
        return original(**arguments)

    pages.query = slow  # type: ignore[method-assign]
    assert presence.members("p").at_ms == REQUESTED_AT_MS


@pytest.mark.parametrize("users", [MAX_USERS - 1, MAX_USERS, MAX_USERS + 1, 2 * MAX_USERS, 1_234])
def test_pages_have_at_most_500_users_and_no_user_is_on_two(users: int) -> None:
    names = sorted(f"u{number}" for number in range(users))
    pages, presence = listing(
        [present(c, user=name) for number, name in enumerate(names) for c in "abc"[: 1 + number % 3]]
    )
    found: list[tuple[str, int]] = []
    after: str | None = None
    while True:
        page, after, _ = presence.members("p", after)
        assert len(page) <= MAX_USERS
        found += page
        if after is None:
            break
        assert after == page[-1].user
    assert found == [(name, 1 + number % 3) for number, name in enumerate(names)]
    assert all(call["ConsistentRead"] for call in pages.calls)


def test_a_room_with_501_users_has_a_page_of_500_and_one_of_1() -> None:
    """Exactly: the contract with clients, whatever the code calls it."""
    _, presence = listing([present("a", user=f"u{number:03}") for number in range(501)])
    first = presence.members("p")
    assert (len(first.users), first.after) == (500, "u499")
    assert presence.members("p", first.after).users == [("u500", 1)]


def test_a_page_that_begins_after_a_user_has_no_other_connection_of_this_user() -> None:
    _, presence = listing([present(c, user=user) for user in ("al", "al!", "am") for c in ("!", "~", "é")])
    assert presence.members("p", "al") == ([("al!", 3), ("am", 3)], None, REQUESTED_AT_MS)
    assert presence.members("p", "am") == ([], None, REQUESTED_AT_MS)


def read_all(pages: Pages, presence: Presence) -> list[Members]:
    found: list[Members] = []
    while not found or found[-1].after is not None:
        pages.calls.clear()
        found.append(presence.members("p", found[-1].after if found else None))
        assert len(pages.calls) <= MAX_QUERIES
    return found


READ = (MAX_USERS + 1) * MAX_QUERIES
"""Presence items that are read for one page at most."""


def test_a_page_ends_before_the_first_user_who_does_not_fit_into_its_queries() -> None:
    counts = {"u1": 2_000, "u2": 500, "u3": 6, "u4": 2_500, "u5": 1}
    pages, presence = listing(
        [present(f"{number:04d}", user=user) for user, count in counts.items() for number in range(count)]
    )
    found = read_all(pages, presence)
    assert [page.users for page in found] == [[("u1", 2_000), ("u2", 500)], [("u3", 6)], [("u4", 2_500), ("u5", 1)]]
    assert [page.after for page in found] == ["u2", "u3", None]


def test_a_user_with_more_connections_than_are_read_is_listed_with_those() -> None:
    counts = {"u1": 1, "u2": READ + 1, "u3": READ, "u4": 2}
    pages, presence = listing(
        [present(f"{number:04d}", user=user) for user, count in counts.items() for number in range(count)]
    )
    found = read_all(pages, presence)
    assert [page.users for page in found] == [[("u1", 1)], [("u2", READ)], [("u3", READ)], [("u4", 2)]]
    assert [page.after for page in found] == ["u1", "u2", "u3", None]


def test_a_page_of_expired_items_alone_leads_on() -> None:
    expired = {"expires_at": {"N": str(int(NOW))}}
    old = [{**present("1", user=f"u{number:04d}"), **expired} for number in range(READ + 1)]
    unreadable = [{**each, "sk": {"S": f"!{number:04d}"}} for number, each in enumerate(old)]
    pages, presence = listing([*old, present("1", user="zoe")])
    assert [page.users for page in read_all(pages, presence)] == [[], [("zoe", 1)]]
    pages, presence = listing([*unreadable, present("1", user="zoe")])
    assert presence.members("p").users == [("zoe", 1)]


@pytest.mark.parametrize("after", ["", "two words", "é", "x" * 101])
def test_an_invalid_position_is_rejected_before_any_call(after: str) -> None:
    pages, presence = listing([])
    with pytest.raises(RequestRejected) as rejection:
        presence.members("p", after)
    assert rejection.value.code is Code.BAD_REQUEST
    assert rejection.value.message.startswith("after: ")
    assert pages.calls == []
