"""How the stream store reads responses to its transactions. A scripted service responds."""

import asyncio
import json
from typing import Any, cast

import pytest

from gatecast import table as keys
from gatecast.entries import entry_item
from gatecast.frames import Message
from worker.aws.errors import ServiceError
from worker.aws.json_service import JsonService
from worker.aws.stream import Stream
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.history import Conflict, SeenHead
from worker.ports import Append, Claim, DependencyError, EntryRejected, NewEntry, NoResponse

CANCELLED = "TransactionCanceledException"
OURS, THEIRS = {"claimed_by": {"S": "m/1"}}, {"claimed_by": {"S": "m/2"}}
NONE, FAILED = {"Code": "None"}, {"Code": "ConditionalCheckFailed"}


class Service:
    """Returns or raises `result`, and keeps what it was sent."""

    def __init__(self, result: bytes | Exception) -> None:
        self.result = result
        self.operation = ""
        self.body: dict[str, Any] = {}

    async def call(self, operation: str, body: bytes) -> bytes:
        self.operation, self.body = operation, json.loads(body)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def request(*names: str, head: SeenHead | None = None) -> Append:
    entries = []
    for offset, name in enumerate(names, start=8):
        message = Message(id=name, offset=offset, published_at_ms=1_800_000_000_000, data="x")
        item = entry_item("room", message, expires_at=1_900_000_000)
        claim = Claim(keys.key(f"broadcast#room {name}", "part#"), "m", "m/1", 1, Checkpoint(), 1)
        entries.append(NewEntry(offset, item, claim))
    return Append("room", head or SeenHead.at(7), entries, "token")


def append(result: bytes | Exception, wanted: Append) -> Conflict | None:
    return asyncio.run(Stream(cast(JsonService, Service(result)), "table").append(wanted))


def cancelled(*reasons: dict[str, Any]) -> ServiceError:
    return ServiceError(CANCELLED, json.dumps({"CancellationReasons": reasons}).encode())


def test_the_transaction_is_conditional_on_head_entries_and_claims() -> None:
    service = Service(b"{}")
    assert asyncio.run(Stream(cast(JsonService, service), "table").append(request("a", "b"))) is None
    assert service.operation == "TransactWriteItems"
    assert service.body["ClientRequestToken"] == "token"
    head, *others = service.body["TransactItems"]
    assert head["Update"]["Key"] == keys.key("stream#room", "head")
    assert head["Update"]["ConditionExpression"] == "#offset = :seen"
    assert head["Update"]["ExpressionAttributeValues"] == {":offset": {"N": "9"}, ":seen": {"N": "7"}}
    assert [each["Put"]["Item"]["sk"]["S"] for each in others[::2]] == ["m#0000000000000008", "m#0000000000000009"]
    assert {each["Put"]["ConditionExpression"] for each in others[::2]} == {"attribute_not_exists(pk)"}
    assert [each["Update"]["Key"]["pk"]["S"] for each in others[1::2]] == ["broadcast#room a", "broadcast#room b"]
    conditions = {each["Update"]["ConditionExpression"] for each in others[1::2]}
    assert conditions == {"claimed_by = :claimed_by AND attribute_not_exists(#offset)"}


def test_an_absent_head_must_still_be_absent() -> None:
    service = Service(b"{}")
    asyncio.run(Stream(cast(JsonService, service), "table").append(request("a", head=SeenHead(None))))
    update = service.body["TransactItems"][0]["Update"]
    assert update["ConditionExpression"] == "attribute_not_exists(#offset)"
    assert update["ExpressionAttributeValues"] == {":offset": {"N": "8"}}


@pytest.mark.parametrize(
    ("reasons", "conflict"),
    [
        ([{**FAILED, "Item": {"offset": {"N": "9"}}}, NONE, NONE, NONE, NONE], Conflict(SeenHead.at(9), True)),
        ([{**FAILED, "Item": {"pk": {"S": "x"}}}, NONE, NONE, NONE, NONE], Conflict(SeenHead(None), True)),
        ([FAILED, NONE, NONE, NONE, NONE], Conflict(None, True)),
        ([NONE, FAILED, NONE, NONE, NONE], Conflict(occupied=frozenset({0}))),
        ([NONE, NONE, FAILED, NONE, NONE], Conflict(taken_over=frozenset({0}))),
        ([NONE, NONE, NONE, NONE, {**FAILED, "Item": THEIRS}], Conflict(taken_over=frozenset({1}))),
        (
            [NONE, NONE, NONE, NONE, {**FAILED, "Item": {**THEIRS, "offset": {"N": "9"}}}],
            Conflict(taken_over=frozenset({1})),
        ),
        ([NONE, NONE, {**FAILED, "Item": {**OURS, "offset": {"N": "5"}}}, NONE, NONE], Conflict(recorded={0: 5})),
        (
            [NONE, NONE, {**FAILED, "Item": {**OURS, "offset": {"S": "x"}}}, NONE, NONE],
            Conflict(taken_over=frozenset({0})),
        ),
        ([{"Code": "TransactionConflict"}, NONE, NONE, NONE, NONE], Conflict()),
        ([{"Code": "TransactionConflict"}, NONE, FAILED, NONE, NONE], Conflict(taken_over=frozenset({0}))),
        ([{"Code": "ThrottlingError"}, FAILED, NONE, NONE, NONE], Conflict(occupied=frozenset({0}))),
    ],
)
def test_a_cancelled_transaction_shows_which_conditions_were_not_met(
    reasons: list[dict[str, Any]], conflict: Conflict
) -> None:
    error = cancelled(*reasons)
    assert append(error, request("a", "b")) == conflict
    assert error.is_provoked is ("ThrottlingError" not in str(reasons) or FAILED in reasons)


def test_a_token_that_was_used_for_another_transaction_is_a_conflict() -> None:
    """The caller then sends the transaction under another token."""
    assert append(ServiceError("IdempotentParameterMismatchException"), request("a")) == Conflict()


@pytest.mark.parametrize(
    "error",
    [
        ServiceError("ValidationException", b'{"message": "Item size has exceeded the maximum allowed size"}'),
        cancelled(NONE, {"Code": "ValidationError", "Message": "secret"}, NONE),
        cancelled(NONE, {"Code": "ItemCollectionSizeLimitExceeded"}, NONE),
    ],
)
def test_an_entry_that_is_never_accepted_is_rejected(error: ServiceError) -> None:
    with pytest.raises(EntryRejected) as raised:
        append(error, request("a"))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (cancelled({"Code": "ThrottlingError"}, NONE, NONE), "ThrottlingError"),
        (cancelled(NONE, NONE, {"Code": "ProvisionedThroughputExceeded"}), "ProvisionedThroughputExceeded"),
        (cancelled(NONE, NONE, NONE), CANCELLED),
        (ServiceError("TransactionInProgressException"), "TransactionInProgressException"),
        (ServiceError("InternalServerError"), "InternalServerError"),
        (ServiceError("AccessDeniedException"), "AccessDeniedException"),
    ],
)
def test_everything_else_may_be_retried(error: ServiceError, code: str) -> None:
    with pytest.raises(DependencyError) as raised:
        append(error, request("a"))
    assert raised.value.code == code
    assert not error.is_provoked


@pytest.mark.parametrize(
    "detail",
    [b"", b"{", b"{}", b'{"CancellationReasons": []}', b'{"CancellationReasons": [{"Code": "None"}]}', b"\xff"],
)
def test_a_malformed_response_counts_as_no_response(detail: bytes) -> None:
    with pytest.raises(NoResponse):
        append(ServiceError(CANCELLED, detail), request("a"))


@pytest.mark.parametrize(
    ("body", "head"),
    [
        (b"{}", SeenHead(None)),
        (b'{"Item": {}}', SeenHead(None)),
        (b'{"Item": {"offset": {"N": "7"}}}', SeenHead.at(7)),
        (b'{"Item": {"offset": {"BOOL": true}}}', SeenHead({"BOOL": True})),
    ],
)
def test_the_head_is_read_consistently_as_it_is_stored(body: bytes, head: SeenHead) -> None:
    service = Service(body)
    assert asyncio.run(Stream(cast(JsonService, service), "table").head("room")) == head
    assert service.body["ConsistentRead"]
    assert service.body["Key"] == keys.key("stream#room", "head")


def test_a_malformed_head_response_counts_as_no_response() -> None:
    for body in (b"", b"[]", b'{"Item": 7}'):
        with pytest.raises(NoResponse):
            asyncio.run(Stream(cast(JsonService, Service(body)), "table").head("room"))
