"""The broadcast that closes connections, and who may connect while a user is revoked."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatecast import InvalidBroadcast, decode, encode, table
from gatecast.broadcast import Close
from gatecast.kicks import LEEWAY_SECONDS, is_revoked, kick_broadcast, revoked_until

NOW = 1_800_000_000


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"user": "alice"}, {"room": "@user/alice"}),
        ({"room": "lobby"}, {"room": "lobby"}),
        ({"connections": ["a=", "b="]}, {"connections": ["a=", "b="]}),
    ],
)
def test_a_kick_is_a_broadcast_with_close(target: Any, expected: dict[str, Any]) -> None:
    kick = kick_broadcast(**target, code="banned", retry=False, id="one", published_at_ms=NOW * 1000)
    assert kick.close == Close(code="banned", retry=False)
    fields = {name: value for name, value in json.loads(encode(kick)).items() if name != "part"}
    assert fields == {
        **expected,
        "v": 2,
        "id": "one",
        "close": {"code": "banned", "retry": False},
        "published_at_ms": NOW * 1000,
    }


def test_each_kick_has_an_id_of_its_own_and_the_time_of_the_queue() -> None:
    first, second = (kick_broadcast(user="alice", code="banned", retry=True) for _ in range(2))
    assert first.id != second.id
    assert not first.published_at_ms


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "room"),
        ({"user": "alice", "room": "lobby"}, "user"),
        ({"user": "alice", "connections": ["a="]}, "room"),
        ({"user": "a b"}, "room"),
        ({"user": "x" * 95}, "room"),
        ({"connections": []}, "connections"),
        ({"connections": [""]}, "connections"),
        ({"user": "alice", "code": "two words"}, "close"),
        ({"user": "alice", "id": ""}, "id"),
        ({"user": "alice", "published_at_ms": NOW}, "published_at_ms"),
    ],
)
def test_an_invalid_kick_is_rejected_with_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidBroadcast) as rejected:
        kick_broadcast(**{"code": "banned", "retry": False, **fields})
    assert rejected.value.field == field


# Revocations


def revoked(issued_at: float | None, *, since_not_before: int, **changed: Any) -> bool:
    item = {**table.revocation_item("alice", not_before=NOW - since_not_before), **changed}
    return is_revoked(item, issued_at=issued_at, now=NOW)


def test_the_item_of_a_revocation() -> None:
    assert table.revocation_item("alice", not_before=NOW) == {
        "pk": {"S": "user#alice"},
        "sk": {"S": "not_before"},
        "not_before": {"N": str(NOW)},
        "expires_at": {"N": str(NOW + 86_400)},
    }
    with pytest.raises(ValueError, match="milliseconds"):
        table.revocation_item("alice", not_before=NOW * 1000)


def test_without_an_item_nobody_is_revoked() -> None:
    assert not is_revoked(None, issued_at=None, now=NOW)


@pytest.mark.parametrize("issued_at", [None, NOW - 60, NOW, NOW + 5])
def test_before_its_end_a_revocation_holds_for_every_token(issued_at: float | None) -> None:
    assert revoked(issued_at, since_not_before=-1)


@pytest.mark.parametrize(
    ("issued_at", "expected"), [(NOW - 101, True), (NOW - 100, False), (NOW - 1, False), (None, False)]
)
def test_after_its_end_only_tokens_issued_before_it_are_rejected(issued_at: float | None, expected: bool) -> None:
    assert revoked(issued_at, since_not_before=100) == expected


@given(
    kicked_ms=st.integers(NOW * 1000, NOW * 1000 + 2_000),
    issued_before_ms=st.integers(0, 5_000),
    ahead_ms=st.integers(-LEEWAY_SECONDS * 1000, LEEWAY_SECONDS * 1000),
    for_seconds=st.integers(0, 60),
)
def test_every_token_that_was_issued_before_the_kick_is_revoked_whatever_the_clock_of_its_issuer(
    kicked_ms: int, issued_before_ms: int, ahead_ms: int, for_seconds: int
) -> None:
    not_before = revoked_until(now_ms=kicked_ms, for_seconds=for_seconds)
    item = table.revocation_item("alice", not_before=not_before)
    issued_at = (kicked_ms - issued_before_ms + ahead_ms) // 1000
    assert is_revoked(item, issued_at=issued_at, now=not_before)
    assert not is_revoked(item, issued_at=not_before, now=not_before)
    assert not_before - kicked_ms // 1000 == max(for_seconds, 11)


def test_an_expired_item_counts_as_absent() -> None:
    assert revoked(NOW - 100_000, since_not_before=86_399)
    assert not revoked(NOW - 100_000, since_not_before=86_400)


@pytest.mark.parametrize("damaged", [{"S": "soon"}, {"BOOL": True}, {"N": "nan"}])
def test_a_damaged_item_revokes_every_token_until_it_expires(damaged: Any) -> None:
    assert revoked(NOW, since_not_before=100, not_before=damaged)
    assert not revoked(NOW, since_not_before=86_400, not_before=damaged)


# The documentation


class Recorder:
    """DynamoDB's and SQS's clients."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def put_item(self, **request: Any) -> None:
        self.calls.append(request)

    def send_message(self, **request: Any) -> None:
        self.calls.append(request)


def test_the_documented_example_revokes_and_kicks_in_this_order(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference-publishers.md").read_text()
    [example] = [each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "kick_broadcast" in each]
    monkeypatch.setattr("time.time", lambda: float(NOW))
    aws = Recorder()
    boto3 = SimpleNamespace(client=lambda _service: aws)
    exec(example, {"dynamodb": aws, "table_name": "gatecast", "boto3": boto3, "queue_url": "http://q"})  # noqa: S102
    revocation, first, second = aws.calls
    assert is_revoked(revocation["Item"], issued_at=NOW + 60, now=NOW + 3_599)
    assert not is_revoked(revocation["Item"], issued_at=NOW + 3_600, now=NOW + 3_600)
    kicks = [decode(each["MessageBody"]) for each in (first, second)]
    assert {each.room for each in kicks} == {"@user/mallory"}
    assert kicks[0].id != kicks[1].id
    assert (second["DelaySeconds"], kicks[1].published_at_ms) == (30, (NOW + 30) * 1000)
    [body] = re.findall(r'`(\{"v": 2, "id": "kick-7".*?\}\})`', text)
    assert decode(body).close == Close(code="banned", retry=False)
