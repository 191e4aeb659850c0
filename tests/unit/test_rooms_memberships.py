"""How the routes handle DynamoDB's rarer responses, which a scripted client returns."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from botocore.exceptions import ClientError

from gatecast import table
from gatecast.rooms.backoff import Backoff
from gatecast.rooms.memberships import DISCONNECT_SECONDS, Memberships
from gatecast.table import Item
from routes.observing import OBSERVER
from routes.requests import Caller
from routes.responses import Code, RequestRejected
from tests.routes_events import CONNECTION_ID, EXPIRES_AT, captured_log, event, token_context
from tests.scripted_dynamodb import FAILED, Scripted, cancelled, error

CALLER = Caller.from_event(event())
CONFLICT = "TransactionConflict"


def memberships(dynamodb: Scripted, attempts: int = 4) -> Memberships:
    return Memberships(
        dynamodb, "gatecast", backoff=Backoff(max_attempts=attempts, clock=lambda: 0.0, sleep=lambda _: None)
    )


def joined(room: str, shard: int = 0) -> Item:
    return table.joined_room_item(CONNECTION_ID, room, shard, expires_at=EXPIRES_AT)


@pytest.mark.parametrize("reason", [CONFLICT, "ThrottlingError", "ProvisionedThroughputExceeded"])
def test_contended_join_is_retried(reason: str) -> None:
    dynamodb = Scripted(transact_write_items=[cancelled("None", "None", reason), cancelled(reason, "None", "None"), {}])
    memberships(dynamodb).join(CALLER, ["lobby"])
    assert dynamodb.count("transact_write_items") == 3


@pytest.mark.parametrize("reasons", [(FAILED, "None", "None"), (FAILED, "None", FAILED), (FAILED, CONFLICT, CONFLICT)])
def test_join_without_a_connection_is_rejected_without_retry(reasons: tuple[str, ...]) -> None:
    dynamodb = Scripted(transact_write_items=[cancelled(*reasons)])
    with pytest.raises(RequestRejected) as rejection:
        memberships(dynamodb).join(CALLER, ["lobby"])
    assert rejection.value.code is Code.NOT_CONNECTED
    assert dynamodb.count("transact_write_items") == 1


@pytest.mark.parametrize("reasons", [("None", "None", FAILED), (CONFLICT, "None", FAILED)])
def test_a_second_join_changes_nothing(reasons: tuple[str, ...]) -> None:
    dynamodb = Scripted(transact_write_items=[cancelled(*reasons)])
    memberships(dynamodb).join(CALLER, ["lobby"])
    assert dynamodb.count("transact_write_items") == 1


@pytest.mark.parametrize(
    "write",
    [
        lambda routes: routes.connect(CALLER, ["@all"]),
        lambda routes: routes.join(CALLER, ["lobby"]),
        lambda routes: routes.leave(CALLER, "lobby"),
    ],
    ids=["connect", "join", "leave"],
)
def test_persistent_contention_is_rejected_as_unavailable(write: Callable[[Memberships], None]) -> None:
    dynamodb = Scripted(transact_write_items=[cancelled(CONFLICT)], get_item=[{"Item": joined("lobby")}])
    with pytest.raises(RequestRejected) as rejection:
        write(memberships(dynamodb))
    assert rejection.value.code is Code.UNAVAILABLE
    assert dynamodb.count("transact_write_items") == 4


@pytest.mark.parametrize(
    "failure",
    [error("AccessDeniedException"), error("ThrottlingException"), cancelled("None", "ValidationError", "None")],
)
def test_other_failures_of_a_transaction_pass_through(failure: ClientError) -> None:
    dynamodb = Scripted(transact_write_items=[failure])
    with pytest.raises(ClientError) as raised:
        memberships(dynamodb).join(CALLER, ["lobby"])
    assert raised.value is failure
    assert dynamodb.count("transact_write_items") == 1


def test_connecting_is_one_transaction() -> None:
    dynamodb = Scripted()
    memberships(dynamodb).connect(Caller.from_event(event(authorizer={"user": "alice"})), ["@all", "@user/alice"])
    (transaction,) = [arguments for operation, arguments in dynamodb.calls if operation == "transact_write_items"]
    keys = [(put["Put"]["Item"]["pk"]["S"], put["Put"]["Item"]["sk"]["S"]) for put in transaction["TransactItems"]]
    assert keys == [
        (f"connection#{CONNECTION_ID}", "connection"),
        ("room#@all#0", CONNECTION_ID),
        (f"connection#{CONNECTION_ID}", "room#@all"),
        ("room#@user/alice#0", CONNECTION_ID),
        (f"connection#{CONNECTION_ID}", "room#@user/alice"),
    ]
    assert {put["Put"]["Item"]["expires_at"]["N"] for put in transaction["TransactItems"]} == {str(EXPIRES_AT)}


@pytest.mark.parametrize(("expires_at", "written"), [(EXPIRES_AT - 1, EXPIRES_AT - 1), (EXPIRES_AT + 1, EXPIRES_AT)])
def test_all_items_expire_with_the_token_but_no_later_than_without_one(expires_at: int, written: int) -> None:
    dynamodb = Scripted()
    caller = Caller.from_event(event(authorizer=token_context(expires_at, join="lobby")))
    memberships(dynamodb).connect(caller, ["@all", "@user/alice"])
    memberships(dynamodb).join(caller, ["lobby"])
    items = [
        action["Put"]["Item"]
        for operation, arguments in dynamodb.calls
        if operation == "transact_write_items"
        for action in arguments["TransactItems"]
        if "Put" in action
    ]
    assert len(items) == 7
    assert {item["expires_at"]["N"] for item in items} == {str(written)}


def test_leave_retries_when_the_membership_moved_to_another_shard() -> None:
    dynamodb = Scripted(
        get_item=[{"Item": joined("lobby", 0)}, {"Item": joined("lobby", 2)}],
        transact_write_items=[cancelled("None", FAILED, "None"), {}],
    )
    memberships(dynamodb).leave(CALLER, "lobby")
    deleted = [
        arguments["TransactItems"][0]["Delete"]["Key"]["pk"]["S"]
        for operation, arguments in dynamodb.calls
        if operation == "transact_write_items"
    ]
    assert deleted == ["room#lobby#0", "room#lobby#2"]


def test_leaving_a_room_that_was_not_joined_writes_nothing() -> None:
    dynamodb = Scripted()
    memberships(dynamodb).leave(CALLER, "lobby")
    assert [operation for operation, _ in dynamodb.calls] == ["get_item"]


def test_expired_membership_does_not_count() -> None:
    expires_at = CALLER.requested_at_ms // 1000
    expired, valid = joined("lobby"), joined("lobby")
    expired["expires_at"], valid["expires_at"] = {"N": str(expires_at)}, {"N": str(expires_at + 1)}
    assert not memberships(Scripted(get_item=[{"Item": expired}])).is_member(CALLER, "lobby")
    assert memberships(Scripted(get_item=[{"Item": valid}])).is_member(CALLER, "lobby")
    assert not memberships(Scripted()).is_member(CALLER, "lobby")


def test_disconnecting_deletes_the_connection_before_it_reads_the_rooms_page_by_page() -> None:
    cursor = {"pk": {"S": "p"}, "sk": {"S": "s"}}
    dynamodb = Scripted(
        query=[
            {"Items": [joined(f"r{number}") for number in range(20)], "LastEvaluatedKey": cursor},
            {"Items": [], "LastEvaluatedKey": cursor},
            {"Items": [joined("last", 3)]},
        ]
    )
    memberships(dynamodb).disconnect(CONNECTION_ID)
    operations = [operation for operation, _ in dynamodb.calls]
    assert operations == ["delete_item", "query", "batch_write_item", "query", "query", "batch_write_item"]
    queries = [arguments for operation, arguments in dynamodb.calls if operation == "query"]
    assert all(query["ConsistentRead"] for query in queries)
    assert ["ExclusiveStartKey" in query for query in queries] == [False, True, True]
    requests = [
        request["DeleteRequest"]["Key"]["pk"]["S"]
        for operation, arguments in dynamodb.calls
        if operation == "batch_write_item"
        for request in arguments["RequestItems"]["gatecast"]
    ]
    assert len(requests) == 2 * 21
    assert "room#last#3" in requests


def test_unprocessed_items_are_retried() -> None:
    dynamodb = Scripted(
        query=[{"Items": [joined("a"), joined("b")]}],
        batch_write_item=[
            {"UnprocessedItems": {"gatecast": ["third", "fourth"]}},
            {"UnprocessedItems": {"gatecast": ["fourth"]}},
            {"UnprocessedItems": {}},
        ],
    )
    memberships(dynamodb).disconnect(CONNECTION_ID)
    written = [
        arguments["RequestItems"]["gatecast"] for name, arguments in dynamodb.calls if name == "batch_write_item"
    ]
    assert len(written[0]) == 4
    assert written[1:] == [["third", "fourth"], ["fourth"]]


def test_delete_is_retried_on_transaction_conflict() -> None:
    conflict = error("TransactionConflictException", "DeleteItem")
    dynamodb = Scripted(delete_item=[conflict, conflict, {}], query=[{"Items": []}])
    memberships(dynamodb).disconnect(CONNECTION_ID)
    assert [operation for operation, _ in dynamodb.calls] == ["delete_item"] * 3 + ["query"]


def test_disconnect_with_persistent_contention_is_unavailable() -> None:
    dynamodb = Scripted(
        query=[{"Items": [joined("a")]}], batch_write_item=[{"UnprocessedItems": {"gatecast": ["membership"]}}]
    )
    with pytest.raises(RequestRejected) as rejection:
        memberships(dynamodb).disconnect(CONNECTION_ID)
    assert rejection.value.code is Code.UNAVAILABLE
    assert dynamodb.count("batch_write_item") == 4


def test_a_disconnect_that_takes_too_long_leaves_the_rest() -> None:
    now = 0.0

    class Slow(Scripted):
        def __getattr__(self, operation: str) -> Callable[..., Any]:
            nonlocal now
            now += 1.0
            assert now < 2 * DISCONNECT_SECONDS, "it does not end"
            return super().__getattr__(operation)

    cursor = {"pk": {"S": "p"}, "sk": {"S": "s"}}
    slow = Slow(query=[{"Items": [joined(f"r{number}") for number in range(24)], "LastEvaluatedKey": cursor}])
    with captured_log() as log:
        Memberships(slow, "gatecast", backoff=Backoff(clock=lambda: now), observer=OBSERVER).disconnect(CONNECTION_ID)
    assert DISCONNECT_SECONDS <= now < DISCONNECT_SECONDS + 2
    assert slow.count("batch_write_item") >= 8
    assert "disconnect.incomplete" in log.getvalue()


def test_retries_of_a_disconnect_end_with_it() -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    busy = Scripted(
        delete_item=[error("TransactionConflictException", "DeleteItem")] * 20 + [{}],
        query=[{"Items": [joined("a")]}],
        batch_write_item=[{"UnprocessedItems": {"gatecast": ["membership"]}}],
    )
    backoff = Backoff(max_attempts=1_000, deadline_seconds=1_000, clock=lambda: now, sleep=sleep, random=lambda: 0.5)
    with pytest.raises(RequestRejected):
        Memberships(busy, "gatecast", backoff=backoff).disconnect(CONNECTION_ID)
    assert busy.count("batch_write_item") > 1
    assert now < DISCONNECT_SECONDS


def limited(dynamodb: Scripted, max_rooms: int) -> Memberships:
    backoff = Backoff(max_attempts=4, clock=lambda: 0.0, sleep=lambda _: None)
    return Memberships(dynamodb, "gatecast", max_rooms=max_rooms, backoff=backoff)


def rooms_written(arguments: dict[str, Any]) -> list[str]:
    """The rooms of a transaction that joins."""
    items = [action["Put"]["Item"] for action in arguments["TransactItems"] if "Put" in action]
    return [item["sk"]["S"].removeprefix("room#") for item in items if item["sk"]["S"].startswith("room#")]


def counted(rooms: int) -> dict[str, Any]:
    return {"Item": {"rooms": {"N": str(rooms)}, "expires_at": {"N": str(EXPIRES_AT)}}}


def test_several_rooms_are_joined_in_one_transaction() -> None:
    dynamodb = Scripted()
    rooms = [f"r{number}" for number in range(25)]
    assert memberships(dynamodb).join(CALLER, rooms) == {}
    assert [operation for operation, _ in dynamodb.calls] == ["batch_get_item", "transact_write_items"]
    (settings,) = dynamodb.arguments("batch_get_item")
    assert len(settings["RequestItems"]["gatecast"]["Keys"]) == 26, "those of the rooms, and `*`"
    (transaction,) = dynamodb.arguments("transact_write_items")
    assert rooms_written(transaction) == rooms
    assert len(transaction["TransactItems"]) == 1 + 2 * 25
    assert transaction["TransactItems"][0]["Update"]["ExpressionAttributeValues"][":joined"] == {"N": "25"}


def test_rooms_that_are_joined_already_are_left_out_of_the_next_attempt() -> None:
    script = [cancelled("None", "None", FAILED, "None", "None", "None", FAILED), {}]
    dynamodb = Scripted(transact_write_items=script)
    assert memberships(dynamodb, attempts=1).join(CALLER, ["a", "b", "c"]) == {}
    assert [rooms_written(each) for each in dynamodb.arguments("transact_write_items")] == [["a", "b", "c"], ["b"]]


def test_rooms_above_the_limit_are_rejected_and_the_others_joined() -> None:
    dynamodb = Scripted(transact_write_items=[cancelled(FAILED, *["None"] * 8), {}], get_item=[counted(8)])
    rejected = limited(dynamodb, 10).join(CALLER, ["a", "b", "c", "d"])
    assert {room: rejection.code for room, rejection in rejected.items()} == dict.fromkeys("cd", Code.TOO_MANY_ROOMS)
    assert [rooms_written(each) for each in dynamodb.arguments("transact_write_items")] == [list("abcd"), list("ab")]


def test_rooms_that_are_joined_already_do_not_count_against_the_limit() -> None:
    codes = (FAILED, "None", FAILED, "None", "None", "None", FAILED)
    dynamodb = Scripted(transact_write_items=[cancelled(*codes), {}], get_item=[counted(9)])
    assert limited(dynamodb, 10).join(CALLER, ["a", "b", "c"]) == {}
    assert [rooms_written(each) for each in dynamodb.arguments("transact_write_items")] == [["a", "b", "c"], ["b"]]


def test_more_rooms_than_a_connection_may_join_do_not_fit_on_an_empty_one() -> None:
    dynamodb = Scripted(transact_write_items=[cancelled(FAILED, *["None"] * 6), {}], get_item=[counted(0)])
    assert set(limited(dynamodb, 2).join(CALLER, ["a", "b", "c"])) == {"c"}
    first, second = dynamodb.arguments("transact_write_items")
    assert "attribute_not_exists(rooms)" not in first["TransactItems"][0]["Update"]["ConditionExpression"]
    assert "attribute_not_exists(rooms)" in second["TransactItems"][0]["Update"]["ConditionExpression"]


def test_a_full_connection_joins_nothing() -> None:
    dynamodb = Scripted(transact_write_items=[cancelled(FAILED, *["None"] * 4)], get_item=[counted(10)])
    assert set(limited(dynamodb, 10).join(CALLER, ["a", "b"])) == {"a", "b"}
    assert dynamodb.count("transact_write_items") == 1


def test_a_join_is_retried_if_rooms_became_free_in_between() -> None:
    dynamodb = Scripted(transact_write_items=[cancelled(FAILED, *["None"] * 4), {}], get_item=[counted(8)])
    assert limited(dynamodb, 10).join(CALLER, ["a", "b"]) == {}
    assert dynamodb.count("transact_write_items") == 2


def test_contention_during_a_join_of_several_rooms_loses_none() -> None:
    script = [
        cancelled("None", CONFLICT, "None", "None", FAILED, "None", "None"),
        cancelled(CONFLICT, "None", "None", "None", "None"),
        {},
    ]
    dynamodb = Scripted(transact_write_items=script)
    assert memberships(dynamodb).join(CALLER, ["a", "b", "c"]) == {}
    attempts = [rooms_written(each) for each in dynamodb.arguments("transact_write_items")]
    assert attempts == [["a", "b", "c"], ["a", "c"], ["a", "c"]]


def test_a_transaction_has_at_most_a_hundred_actions() -> None:
    with pytest.raises(ValueError, match="at most 33"):
        memberships(Scripted()).join(CALLER, [f"r{number}" for number in range(34)])


def test_the_dialect_is_written_on_connection_and_memberships_unless_it_is_the_first() -> None:
    dynamodb = Scripted()
    for frames in (1, 2):
        caller = msgspec.structs.replace(CALLER, frames=frames)
        memberships(dynamodb).connect(caller, ["@all"])
        memberships(dynamodb).join(caller, ["lobby"])
    written = [
        (action["Put"]["Item"]["pk"]["S"], action["Put"]["Item"]["sk"]["S"])
        for arguments in dynamodb.arguments("transact_write_items")
        for action in arguments["TransactItems"]
        if "frames" in action.get("Put", {}).get("Item", {})
    ]
    assert written == [
        (f"connection#{CONNECTION_ID}", "connection"),
        ("room#@all#0", CONNECTION_ID),
        ("room#lobby#0", CONNECTION_ID),
    ]


def test_a_join_writes_the_dialect_on_the_connection_without_another_call() -> None:
    """Only the client may know it. What is posted to the connection by its id has the form of its memberships."""
    dynamodb = Scripted()
    for frames in (1, 2):
        memberships(dynamodb).join(msgspec.structs.replace(CALLER, frames=frames), ["lobby", "news"])
    plain, named = (each["TransactItems"][0]["Update"] for each in dynamodb.arguments("transact_write_items"))
    assert plain["UpdateExpression"] == "ADD rooms :joined"
    assert ":frames" not in plain["ExpressionAttributeValues"]
    assert named["UpdateExpression"] == "SET frames = :frames ADD rooms :joined"
    assert named["ExpressionAttributeValues"] == {**plain["ExpressionAttributeValues"], ":frames": {"N": "2"}}


def test_the_next_attempt_of_a_join_writes_the_dialect_too() -> None:
    dynamodb = Scripted(transact_write_items=[cancelled("None", "None", FAILED, "None", "None"), {}])
    memberships(dynamodb).join(msgspec.structs.replace(CALLER, frames=2), ["a", "b"])
    updates = [each["TransactItems"][0]["Update"] for each in dynamodb.arguments("transact_write_items")]
    assert [each["ExpressionAttributeValues"][":frames"] for each in updates] == [{"N": "2"}] * 2
