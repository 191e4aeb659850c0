"""What a message on the dead-letter queue is, and which of them a redrive sends again."""

import json
from typing import Any

import msgspec
import pytest

from gatecast import Broadcast, encode
from gatecast.cli.dead_letter_report import contents, lines, summary
from gatecast.dead_letters import REASONS, DeadLetter
from gatecast.kicks import kick_broadcast
from tests.memory_payloads import reference_to

PUBLISHED_AT_MS = 1_790_000_000_000


def letter(body: str, reason: str | None = "undelivered", **attributes: str) -> DeadLetter:
    message: dict[str, Any] = {"MessageId": "m-1", "ReceiptHandle": "r", "Body": body, "Attributes": attributes}
    if reason is not None:
        message["MessageAttributes"] = {"reason": {"DataType": "String", "StringValue": reason}}
    return DeadLetter.from_message(message)


def broadcast(**fields: Any) -> str:
    payload = {"data": "hello"} if not {"json", "reference"} & set(fields) else {}
    return encode(Broadcast(**{"id": "b", "room": "lobby", "published_at_ms": PUBLISHED_AT_MS, **payload, **fields}))


@pytest.mark.parametrize("reason", [*REASONS, "missing_object: NoSuchKey"])
def test_what_may_succeed_is_sent_again(reason: str) -> None:
    assert letter(broadcast(), reason).why_not_resent() is None


@pytest.mark.parametrize(
    ("body", "reason", "why"),
    [
        (broadcast(), None, "no reason"),
        (broadcast(), "poison: body: not valid JSON", "poison: body: not valid JSON"),
        (broadcast(), "too_large", "too_large: clients that use v2 would receive more than 131,072 bytes"),
        ("{}", "undelivered", "undelivered"),
        (broadcast(), "something new", "something new"),
    ],
)
def test_what_a_person_has_to_look_at_is_not(body: str, reason: str | None, why: str) -> None:
    assert letter(body, reason).why_not_resent() == why


def test_the_age_is_that_of_the_broadcast_or_else_of_the_queue_message() -> None:
    now_ms = PUBLISHED_AT_MS + 180_000
    assert letter(broadcast(part="u-1")).describe(now_ms=now_ms) == "room lobby, id b, part u-1, 3 min old"
    body = '{"v": 1, "id": "b", "connections": ["a=", "b="], "data": "x"}'
    stored = letter(body, SentTimestamp=str(now_ms - 60_000))
    assert stored.describe(now_ms=now_ms) == "2 connections, id b, 1 min old"
    assert letter("poison").describe(now_ms=now_ms) == "0 min old"


def test_the_report_has_the_payload_only_where_it_is_asked_for() -> None:
    found = letter(broadcast(json=msgspec.Raw(b'{"n": 1.10}'), connections=["a="], room=msgspec.UNSET))
    assert summary(found) == {
        "message": "m-1", "reason": "undelivered", "resendable": True, "sent_at_ms": None, "id": "b", "part": "",
        "room": None, "connections": 1, "published_at_ms": PUBLISHED_AT_MS,
    }  # fmt: skip
    whole = msgspec.json.encode(contents(found)).decode()
    assert '"n": 1.10' in whole
    assert json.loads(whole)["broadcast"]["connections"] == ["a="]
    assert {"to        a=", 'json      {"n": 1.10}'} <= set(lines(found))


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (broadcast(), "data      hello"),
        (broadcast(reference=reference_to("k", 5_000)), "5,000 bytes"),
        (encode(kick_broadcast(code="banned", retry=False, user="ann")), "close     code banned, retry False"),
        ("no broadcast", "body      no broadcast"),
    ],
)
def test_each_kind_of_payload_is_shown(body: str, line: str) -> None:
    assert any(line in each for each in lines(letter(body)))
    assert msgspec.json.encode(contents(letter(body)))
