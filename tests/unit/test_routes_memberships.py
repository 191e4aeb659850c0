"""How the routes handle DynamoDB's rarer responses, which a scripted client returns."""

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from gatecast import table
from gatecast.table import Item
from routes.backoff import Backoff
from routes.join_shards import CACHE_SECONDS, JoinShards
from routes.memberships import DISCONNECT_SECONDS, Memberships
from routes.requests import Caller
from routes.responses import Code, RequestRejected
from tests.routes_events import CONNECTION_ID, EXPIRES_AT, captured_log, event, token_context

CALLER = Caller.from_event(event())
CONFLICT = "TransactionConflict"
FAILED = "ConditionalCheckFailed"
Call = tuple[str, dict[str, Any]]


def error(code: str, operation: str = "AnyOperation", reasons: list[str] | None = None) -> ClientError:
    response: dict[str, Any] = {"Error": {"Code": code, "Message": "secret"}}
    if reasons is not None:
        response["CancellationReasons"] = [{"Code": reason} for reason in reasons]
    return ClientError(response, operation)


def cancelled(*reasons: str) -> ClientError:
    return error("TransactionCanceledException", "TransactWriteItems", list(reasons))


class Scripted:
    """Returns the next response of the operation's script for each call, or an empty response."""

    def __init__(self, **scripts: list[Any]) -> None:
        self.scripts = scripts
        self.calls: list[Call] = []

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            self.calls.append((operation, arguments))
            script = self.scripts.get(operation) or [{}]
            response = script.pop(0) if len(script) > 1 else script[0]
            if isinstance(response, Exception):
                raise response
            return response

        return call

    def count(self, operation: str) -> int:
        return sum(called == operation for called, _ in self.calls)


def memberships(dynamodb: Scripted, attempts: int = 4) -> Memberships:
    return Memberships(
        dynamodb, "gatecast", backoff=Backoff(max_attempts=attempts, clock=lambda: 0.0, sleep=lambda _: None)
    )


def joined(room: str, shard: int = 0) -> Item:
    return table.joined_room_item(CONNECTION_ID, room, shard, expires_at=EXPIRES_AT)


@pytest.mark.parametrize("reason", [CONFLICT, "ThrottlingError", "ProvisionedThroughputExceeded"])
def test_contended_join_is_retried(reason: str) -> None:
    dynamodb = Scripted(transact_write_items=[cancelled("None", "None", reason), cancelled(reason, "None", "None"), {}])
    memberships(dynamodb).join(CALLER, "lobby")
    assert dynamodb.count("transact_write_items") == 3


@pytest.mark.parametrize("reasons", [(FAILED, "None", "None"), (FAILED, "None", FAILED), (FAILED, CONFLICT, CONFLICT)])
def test_join_without_a_connection_is_rejected_without_retry(reasons: tuple[str, ...]) -> None:
    dynamodb = Scripted(transact_write_items=[cancelled(*reasons)])
    with pytest.raises(RequestRejected) as rejection:
        memberships(dynamodb).join(CALLER, "lobby")
    assert rejection.value.code is Code.NOT_CONNECTED
    assert dynamodb.count("transact_write_items") == 1


@pytest.mark.parametrize("reasons", [("None", "None", FAILED), (CONFLICT, "None", FAILED)])
def test_a_second_join_changes_nothing(reasons: tuple[str, ...]) -> None:
    dynamodb = Scripted(transact_write_items=[cancelled(*reasons)])
    memberships(dynamodb).join(CALLER, "lobby")
    assert dynamodb.count("transact_write_items") == 1


@pytest.mark.parametrize(
    "write",
    [
        lambda routes: routes.connect(CALLER, ["@all"]),
        lambda routes: routes.join(CALLER, "lobby"),
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
        memberships(dynamodb).join(CALLER, "lobby")
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
    memberships(dynamodb).join(caller, "lobby")
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
        Memberships(slow, "gatecast", backoff=Backoff(clock=lambda: now)).disconnect(CONNECTION_ID)
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


def test_join_shards_are_cached() -> None:
    now = 0.0
    dynamodb = Scripted(get_item=[{}, {"Item": {"shards": {"N": "8"}, "join_shards": {"N": "4"}}}])
    shards = JoinShards(dynamodb, "gatecast", lambda: now)
    assert shards.get("lobby") == shards.get("lobby") == 1
    now += CACHE_SECONDS
    assert shards.get("lobby") == shards.get("lobby") == 4
    assert dynamodb.count("get_item") == 2


def test_invalid_join_shards_do_not_prevent_joining() -> None:
    dynamodb = Scripted(get_item=[{"Item": {"shards": {"S": "x"}, "join_shards": {"N": "2.5"}}}])
    assert JoinShards(dynamodb, "gatecast", lambda: 0.0).get("lobby") == 2


def test_join_shards_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routes.join_shards.MAX_CACHED_ROOMS", 3)
    dynamodb = Scripted()
    shards = JoinShards(dynamodb, "gatecast", lambda: 0.0)
    for number in range(10):
        shards.get(f"room-{number}")
        assert len(shards._cached) <= 3
