"""`Rooms`: what it validates, reads and writes for a program's own handlers."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

import gatecast
from gatecast import Publisher, Rooms, decode, table
from gatecast.broadcast import InvalidBroadcast
from gatecast.kicks import MIN_REVOKED_SECONDS, REPEAT_SECONDS
from gatecast.rooms import Code, Member, NoPublisher, RequestRejected
from gatecast.table import Item
from tests.scripted_dynamodb import FAILED, Scripted, cancelled, error

ID = "L0SM9cOFvHcCIhw="
NOW = 1_700_000_005.5
NOW_MS = 1_700_000_005_500
EXPIRES_AT = 1_700_000_000 + 2 * 3600 + 600


class Queue:
    """An SQS client; `before` runs at each call."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.before: Callable[[], object] = lambda: None

    def send_message(self, **message: Any) -> None:
        self.before()
        self.sent.append(message)


def made(dynamodb: Scripted, queue: Queue | None = None, *, fifo: bool = False, **options: Any) -> Rooms:
    publisher = Publisher(queue, "https://sqs/1/q.fifo" if fifo else "https://sqs/1/q") if queue else None
    return Rooms(dynamodb, "gatecast", publisher=publisher, wall_clock=lambda: NOW, **options)


def connection(**attributes: Any) -> dict[str, Any]:
    item = table.connection_item(ID, connected_at_ms=1_700_000_000_123, user="ann", frames=2)
    return {"Item": {**item, **attributes}}


def settings(room: str, **attributes: Any) -> dict[str, Any]:
    item = {**table.key(table.settings_pk(room), table.SETTINGS_SK), **attributes}
    return {"Responses": {"gatecast": [item]}}


def items(dynamodb: Scripted) -> list[Item]:
    """What the last transaction puts."""
    actions = dynamodb.arguments("transact_write_items")[-1]["TransactItems"]
    return [action["Put"]["Item"] for action in actions if "Put" in action]


def operations(dynamodb: Scripted) -> list[str]:
    return [operation for operation, _ in dynamodb.calls]


# Creating


def test_it_is_imported_when_it_is_first_used() -> None:
    assert gatecast.Rooms is Rooms
    assert "Rooms" not in gatecast.__all__, "a star import works without the extra"


def test_without_the_extra_its_import_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("gatecast.rooms")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(vars(gatecast), "Rooms", raising=False)
    monkeypatch.setitem(sys.modules, "botocore", None)
    with pytest.raises(ModuleNotFoundError, match=r"install gatecast\[aws\]"):
        _ = gatecast.Rooms


def test_a_table_resource_is_not_a_client() -> None:
    with pytest.raises(TypeError, match=r'expected boto3.client\("dynamodb"\), got object'):
        Rooms(object(), "gatecast")


@pytest.mark.parametrize("max_rooms", [-1, 1_001, 1.5, True, "7", None])
def test_numbers_of_rooms_that_make_no_sense(max_rooms: Any) -> None:
    with pytest.raises(ValueError, match="max_rooms: expected a whole number from 0 to 1,000"):
        made(Scripted(), max_rooms=max_rooms)


# Connecting


def test_a_connection_joins_the_rooms_of_the_system() -> None:
    dynamodb = Scripted()
    made(dynamodb).connect(ID, user="ann", frames=2)
    assert operations(dynamodb) == ["get_item", "batch_get_item", "transact_write_items"]
    assert dynamodb.calls[0][1]["Key"] == table.key("user#ann", "not_before")
    connected, *others = items(dynamodb)
    assert connected == {
        **table.key(f"connection#{ID}", "connection"),
        "connected_at_ms": {"N": str(NOW_MS)},
        "expires_at": {"N": str(EXPIRES_AT + 5)},
        "user": {"S": "ann"},
        "frames": {"N": "2"},
    }
    assert [item["pk"]["S"] for item in others if item["pk"]["S"].startswith("room#")] == [
        "room#@all#0",
        "room#@user/ann#0",
    ]
    assert {item["expires_at"]["N"] for item in others} == {str(EXPIRES_AT + 5)}


def test_without_a_user_nothing_is_read_about_one() -> None:
    dynamodb = Scripted()
    made(dynamodb).connect(ID)
    assert operations(dynamodb) == ["batch_get_item", "transact_write_items"]
    assert len(items(dynamodb)) == 3


@pytest.mark.parametrize(("given", "written"), [(1_700_000_060, 1_700_000_060), (1_800_000_000, EXPIRES_AT + 5)])
def test_a_connection_expires_with_its_token_and_no_later_than_without_one(given: int, written: int) -> None:
    dynamodb = Scripted()
    made(dynamodb).connect(ID, expires_at=given)
    assert {item["expires_at"]["N"] for item in items(dynamodb)} == {str(written)}


def rejected(call: Callable[[], object]) -> Code:
    with pytest.raises(RequestRejected) as rejection:
        call()
    return rejection.value.code


@pytest.mark.parametrize("expires_at", [0, 1_700_000_005])
def test_a_token_that_has_expired_connects_nobody(expires_at: int) -> None:
    dynamodb = Scripted()
    assert rejected(lambda: made(dynamodb).connect(ID, user="ann", expires_at=expires_at)) is Code.TOKEN_EXPIRED
    assert dynamodb.calls == []


@pytest.mark.parametrize(
    ("not_before", "issued_at", "is_rejected"),
    [(1_700_000_006, None, True), (1_700_000_006, 1_700_000_005, True), (1_700_000_000, None, False),
     (1_700_000_000, 1_699_999_999, True), (1_700_000_000, 1_700_000_001, False)],
)  # fmt: skip
def test_who_has_been_kicked_for_longer_does_not_connect(
    not_before: int, issued_at: float | None, is_rejected: bool
) -> None:
    dynamodb = Scripted(get_item=[{"Item": table.revocation_item("ann", not_before=not_before)}])
    rooms = made(dynamodb)
    if is_rejected:
        assert rejected(lambda: rooms.connect(ID, user="ann", issued_at=issued_at)) is Code.TOKEN_EXPIRED
    else:
        rooms.connect(ID, user="ann", issued_at=issued_at)
    assert ("transact_write_items" in operations(dynamodb)) is not is_rejected


@pytest.mark.parametrize("user", ["", "two words", "é", "u" * 95])
def test_the_name_of_a_user_must_fit_into_a_room(user: str) -> None:
    dynamodb = Scripted()
    assert rejected(lambda: made(dynamodb).connect(ID, user=user)) is Code.BAD_REQUEST
    assert dynamodb.calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"frames": 3}, "frames: expected 1 or 2"), ({"expires_at": NOW_MS}, "expires_at: .* looks like milliseconds")],
)
def test_values_that_no_client_determines_raise_value_errors(arguments: dict[str, Any], message: str) -> None:
    dynamodb = Scripted()
    with pytest.raises(ValueError, match=message):
        made(dynamodb).connect(ID, **arguments)
    assert dynamodb.calls == []


@pytest.mark.parametrize("connection_id", ["", "x" * 129, None, 7])
def test_connection_ids_that_cannot_be_ones(connection_id: Any) -> None:
    dynamodb = Scripted()
    rooms = made(dynamodb)
    calls: list[Callable[[], object]] = [
        lambda: rooms.connect(connection_id),
        lambda: rooms.disconnect(connection_id),
        lambda: rooms.join(connection_id, "lobby"),
        lambda: rooms.leave(connection_id, "lobby"),
        lambda: rooms.is_member(connection_id, "lobby"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="connection_id: expected API Gateway's, 1 to 128 bytes"):
            call()
    assert dynamodb.calls == []


# Joining and leaving


def test_a_membership_has_what_is_known_of_the_connection() -> None:
    dynamodb = Scripted(get_item=[connection()])
    made(dynamodb).join(ID, "lobby")
    assert operations(dynamodb) == ["get_item", "batch_get_item", "transact_write_items"]
    assert dynamodb.calls[0][1]["ConsistentRead"]
    assert items(dynamodb)[0] == table.membership_item(
        "lobby", 0, ID, joined_at_ms=NOW_MS, expires_at=EXPIRES_AT, user="ann", frames=2
    )


@pytest.mark.parametrize("found", [{}, connection(expires_at={"N": "1700000005"}), connection(expires_at={"S": "x"})])
def test_a_connection_that_is_not_in_the_table_joins_nothing(found: dict[str, Any]) -> None:
    dynamodb = Scripted(get_item=[found])
    assert rejected(lambda: made(dynamodb).join(ID, "lobby")) is Code.NOT_CONNECTED
    assert operations(dynamodb) == ["get_item"]


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("", Code.BAD_REQUEST),
        ("two words", Code.BAD_REQUEST),
        ("@all", Code.FORBIDDEN_ROOM),
        ("a/*", Code.FORBIDDEN_ROOM),
    ],
)
def test_clients_do_not_join_and_leave_what_is_no_room_of_theirs(room: str, code: Code) -> None:
    dynamodb = Scripted(get_item=[connection()])
    assert rejected(lambda: made(dynamodb).join(ID, room)) is code
    assert rejected(lambda: made(dynamodb).leave(ID, room)) is code
    assert "transact_write_items" not in operations(dynamodb)


def full(rooms: int) -> Any:
    """A transaction of a connection that is in as many rooms as it may be."""
    return cancelled(FAILED, *["None"] * 2 * rooms)


def test_a_connection_that_is_in_too_many_rooms() -> None:
    dynamodb = Scripted(get_item=[connection(rooms={"N": "2"})], transact_write_items=[full(1)])
    assert rejected(lambda: made(dynamodb, max_rooms=2).join(ID, "lobby")) is Code.TOO_MANY_ROOMS


def test_of_many_rooms_each_that_cannot_be_joined_has_its_reason() -> None:
    dynamodb = Scripted(get_item=[connection(rooms={"N": "1"})], transact_write_items=[full(2), {}])
    found = made(dynamodb, max_rooms=2).join_many(ID, ["a", "@all", "b", "a"])
    assert {room: rejection.code for room, rejection in found.items()} == {
        "@all": Code.FORBIDDEN_ROOM,
        "b": Code.TOO_MANY_ROOMS,
    }
    assert items(dynamodb)[0]["pk"] == {"S": "room#a#0"}


def test_34_rooms_are_more_than_a_transaction_holds() -> None:
    dynamodb = Scripted(get_item=[connection()])
    names = [f"r{number}" for number in range(34)]
    assert rejected(lambda: made(dynamodb).join_many(ID, names)) is Code.BAD_REQUEST
    assert dynamodb.calls == []
    assert made(dynamodb).join_many(ID, names[1:]) == {}


@pytest.mark.parametrize("room", [None, 7, ["lobby"], {"room": "lobby"}])
def test_what_a_client_sent_instead_of_a_name_is_rejected(room: Any) -> None:
    dynamodb = Scripted(get_item=[connection()])
    rooms = made(dynamodb)
    for call in (rooms.join, rooms.leave):
        assert rejected(lambda call=call: call(ID, room)) is Code.BAD_REQUEST  # type: ignore[misc]
    assert not rooms.is_member(ID, room)
    assert dynamodb.calls == []


def test_one_name_is_no_list_of_names() -> None:
    with pytest.raises(TypeError, match="rooms: expected a sequence of names"):
        made(Scripted()).join_many(ID, "lobby")


def test_no_rooms_are_joined_without_a_write() -> None:
    dynamodb = Scripted(get_item=[connection()])
    assert made(dynamodb).join_many(ID, []) == {}
    assert operations(dynamodb) == ["get_item"]


def test_without_a_publisher_no_room_with_presence_is_joined() -> None:
    dynamodb = Scripted(get_item=[connection()], batch_get_item=[settings("p", presence={"N": "9"})])
    with pytest.raises(NoPublisher, match="create Rooms with a `publisher`"):
        made(dynamodb).join_many(ID, ["lobby", "p"])
    assert "transact_write_items" not in operations(dynamodb)


def test_a_user_becomes_present_and_the_room_is_notified() -> None:
    queue = Queue()
    present = table.presence_item("p", "ann", ID, joined_at_ms=NOW_MS, expires_at=EXPIRES_AT)
    dynamodb = Scripted(
        get_item=[connection()],
        batch_get_item=[settings("p", presence={"N": "9"})],
        query=[{"Items": []}, {"Items": [present]}],
    )
    made(dynamodb, queue).join(ID, "p")
    assert items(dynamodb)[-1] == present
    (message,) = queue.sent
    change = decode(message["MessageBody"]).presence
    assert change
    assert change.joined == ("ann",)


def test_what_could_not_be_announced_is_in_the_log_without_names(caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue()
    queue.before = lambda: (_ for _ in ()).throw(error("AccessDenied", "SendMessage"))
    joined = table.joined_room_item(ID, "p", 0, expires_at=EXPIRES_AT, present_user="ann")
    dynamodb = Scripted(get_item=[{"Item": joined}], batch_get_item=[settings("p", presence={"N": "9"})])
    dynamodb.scripts["query"] = [{"Items": [joined]}, {"Items": []}]
    with caplog.at_level(logging.WARNING, "gatecast.rooms"):
        made(dynamodb, queue).disconnect(ID)
    assert caplog.messages == [
        "presence.not_announced error='ClientError' code='AccessDenied' operation='SendMessage'",
        "presence.departures_not_announced events=1",
    ]
    assert "batch_write_item" not in operations(dynamodb), "the worker finds and announces it"


def test_leaving_and_asking_need_no_connection_item() -> None:
    joined = table.joined_room_item(ID, "lobby", 3, expires_at=EXPIRES_AT)
    dynamodb = Scripted(get_item=[{"Item": joined}])
    assert made(dynamodb).is_member(ID, "lobby")
    made(dynamodb).leave(ID, "lobby")
    assert operations(dynamodb) == ["get_item", "get_item", "transact_write_items"]
    assert {each["Key"]["sk"]["S"] for each in dynamodb.arguments("get_item")} == {"room#lobby"}


def test_an_expired_membership_is_none() -> None:
    joined = table.joined_room_item(ID, "lobby", 3, expires_at=1_700_000_005)
    assert not made(Scripted(get_item=[{"Item": joined}])).is_member(ID, "lobby")


# Listing


@pytest.mark.parametrize("room", ["lobby", "@all", "", "two words"])
def test_users_are_listed_only_where_there_is_presence(room: str) -> None:
    dynamodb = Scripted(batch_get_item=[settings("*", presence={"N": "9"} if room == "@all" else {"N": "0"})])
    assert rejected(lambda: made(dynamodb).members(room)) is Code.BAD_REQUEST
    assert "query" not in operations(dynamodb)


def test_the_users_in_a_room() -> None:
    present = [
        table.presence_item("p", user, ID, joined_at_ms=NOW_MS, expires_at=EXPIRES_AT) for user in ("ann", "bob")
    ]
    dynamodb = Scripted(batch_get_item=[settings("p", presence={"N": "9"})], query=[{"Items": present}])
    page = made(dynamodb).members("p", after="al")
    assert page == ([("ann", 1), ("bob", 1)], None, NOW_MS)
    assert dynamodb.arguments("query")[0]["ExpressionAttributeValues"][":after"] == {"S": "al!"}


def member(connection_id: str, *, expires_at: int = EXPIRES_AT, user: str | None = None) -> Item:
    return table.membership_item("lobby", 0, connection_id, joined_at_ms=NOW_MS, expires_at=expires_at, user=user)


def test_connections_are_read_page_by_page_over_all_shards() -> None:
    damaged = {**member("damaged="), "joined_at_ms": {"S": "?"}, "user": {"N": "7"}, "expires_at": {"S": "?"}}
    expired = member("old=", expires_at=1_700_000_005)
    pages = [
        {
            "Items": [member("a=", user="ann"), expired],
            "LastEvaluatedKey": {"at": "a="},
        },
        {"Items": [], "LastEvaluatedKey": {"at": "b="}},
        {"Items": [member("c=")]},
        {"Items": [damaged]},
    ]
    dynamodb = Scripted(batch_get_item=[settings("lobby", shards={"N": "2"})], query=pages)
    found = made(dynamodb).connections("lobby")
    assert next(found) == Member("a=", "ann", NOW_MS)
    assert dynamodb.count("query") == 1, "as far as it is wanted"
    assert list(found) == [Member("c=", None, NOW_MS), Member("damaged=", None, 0)]
    assert [each["ExpressionAttributeValues"][":pk"]["S"] for each in dynamodb.arguments("query")] == [
        *["room#lobby#0"] * 3,
        "room#lobby#1",
    ]


def test_connections_of_what_is_no_room() -> None:
    assert rejected(lambda: made(Scripted()).connections("two words")) is Code.BAD_REQUEST


# Kicking


def test_a_kick_closes_at_once_what_is_named() -> None:
    queue, dynamodb = Queue(), Scripted()
    kicked = made(dynamodb, queue).kick(connections=[ID], code="moved", retry=True)
    (message,) = queue.sent
    broadcast = decode(message["MessageBody"])
    assert (broadcast.id, broadcast.connections, kicked.repeat_after_seconds) == (kicked.id, (ID,), 0)
    assert broadcast.close
    assert (broadcast.close.code, broadcast.close.retry) == ("moved", True)
    assert dynamodb.calls == [], "nobody is revoked"


def test_a_user_is_revoked_before_the_kick_and_kicked_again_after_each_connect_has_ended() -> None:
    queue, dynamodb = Queue(), Scripted()
    queue.before = lambda: revoked.append(dynamodb.count("put_item"))
    revoked: list[int] = []
    kicked = made(dynamodb, queue).kick(user="ann", code="banned", for_seconds=3_600, id="k1")
    assert revoked == [1, 1]
    (put,) = dynamodb.arguments("put_item")
    assert put["Item"] == table.revocation_item("ann", not_before=1_700_003_605)
    first, late = (decode(message["MessageBody"]) for message in queue.sent)
    assert {first.room, late.room} == {"@user/ann"}
    assert (first.id, kicked.id, kicked.repeat_after_seconds) == ("k1", "k1", 0)
    assert late.id != first.id
    assert [message.get("DelaySeconds", 0) for message in queue.sent] == [0, REPEAT_SECONDS]
    assert late.published_at_ms == NOW_MS + 1_000 * REPEAT_SECONDS
    made(dynamodb, again := Queue()).kick(user="ann", code="banned", for_seconds=3_600, id="k1")
    assert [decode(message["MessageBody"]).id for message in again.sent] == [first.id, late.id], "a retry is no other"


@pytest.mark.parametrize("for_seconds", [0, 5])
def test_a_short_time_revokes_all_tokens_so_far(for_seconds: int) -> None:
    dynamodb = Scripted()
    made(dynamodb, queue := Queue()).kick(user="ann", code="new_password", for_seconds=for_seconds)
    (put,) = dynamodb.arguments("put_item")
    assert put["Item"] == table.revocation_item("ann", not_before=1_700_000_005 + MIN_REVOKED_SECONDS)
    assert len(queue.sent) == 2


def test_on_a_fifo_queue_the_caller_kicks_again() -> None:
    queue = Queue()
    kicked = made(Scripted(), queue, fifo=True).kick(user="ann", code="banned", for_seconds=60)
    assert (len(queue.sent), kicked.repeat_after_seconds) == (1, REPEAT_SECONDS)


def test_a_revocation_that_ends_later_remains() -> None:
    dynamodb = Scripted(put_item=[error("ConditionalCheckFailedException", "PutItem")])
    queue = Queue()
    made(dynamodb, queue).kick(user="ann", code="banned", for_seconds=60)
    assert len(queue.sent) == 2
    (put,) = dynamodb.arguments("put_item")
    assert put["ConditionExpression"] == "attribute_not_exists(not_before) OR not_before < :not_before"


def test_while_nobody_can_be_revoked_nobody_is_kicked() -> None:
    queue = Queue()
    dynamodb = Scripted(put_item=[denied := error("AccessDeniedException", "PutItem")])
    with pytest.raises(type(denied)):
        made(dynamodb, queue).kick(user="ann", code="banned", for_seconds=60)
    assert queue.sent == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of"),
        ({"user": "ann", "room": "lobby"}, "exactly one of"),
        ({"user": "two words", "for_seconds": 60}, "user: expected a name of 1 to 94"),
        ({"connections": []}, "connections"),
        ({"user": "ann", "code": "two words"}, "code: expected a name of 1 to 100"),
        ({"room": "lobby", "for_seconds": 0}, "for_seconds: only a user can be revoked"),
        ({"user": "ann", "for_seconds": -1}, "for_seconds: expected"),
        ({"user": "ann", "for_seconds": 0.5}, "for_seconds: expected"),
        ({"user": "ann", "for_seconds": 10**9}, "for_seconds: expected"),
    ],
)
def test_a_kick_that_makes_no_sense_does_nothing(arguments: dict[str, Any], message: str) -> None:
    queue, dynamodb = Queue(), Scripted()
    with pytest.raises(ValueError, match=message) as raised:
        made(dynamodb, queue).kick(**{"code": "banned", **arguments})
    assert isinstance(raised.value, InvalidBroadcast) or message.startswith("for_seconds")
    assert (queue.sent, dynamodb.calls) == ([], [])


def test_without_a_publisher_nobody_is_kicked() -> None:
    dynamodb = Scripted()
    with pytest.raises(NoPublisher):
        made(dynamodb).kick(user="ann", code="banned", for_seconds=60)
    assert dynamodb.calls == []


def test_the_clock_is_that_of_the_machine() -> None:
    dynamodb = Scripted()
    before_ms = int(time.time() * 1000)
    Rooms(dynamodb, "gatecast").connect(ID)
    assert before_ms <= int(items(dynamodb)[0]["connected_at_ms"]["N"]) <= int(time.time() * 1000)
