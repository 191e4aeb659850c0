"""`ref`: every response repeats it, and a bad one is rejected without being repeated."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from routes import handlers
from routes.requests import ref_of
from routes.responses import Code, RequestRejected
from tests.route_doubles import Doubles
from tests.routes_events import CONNECTION_ID, LambdaContext, event

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]
HANDLERS = ("join", "leave", "publish", "history", "members", "count", "ping", "default")
LARGEST, SMALLEST = 10**64 - 1, -(10**63) + 1
"""The integers of 64 characters that are furthest from zero."""
BAD = ["null", "true", "1.0", "1e2", "{}", "[1]", f'"{"x" * 65}"', str(LARGEST + 1), str(SMALLEST - 1), "9" * 5_000]


@pytest.fixture(autouse=True)
def doubles(monkeypatch: pytest.MonkeyPatch) -> Doubles:
    return Doubles().install(monkeypatch)


def invoked(handler: Handler, body: str | None) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(handler(event(body=body), LambdaContext())["body"])
    return message


@pytest.mark.parametrize(
    "ref", ["", "x" * 64, "é" * 64, "🦆" * 64, '"\\\u0000', 0, 7, 2**53 + 1, -(2**64), LARGEST, SMALLEST]
)
def test_a_ref_is_a_short_string_or_integer(ref: str | int) -> None:
    assert ref_of(json.dumps({"ref": ref})) == ref
    assert ref_of(json.dumps({"ref": ref}, ensure_ascii=False)) == ref
    response = invoked(handlers.ping, json.dumps({"action": "ping", "ref": ref}))
    assert response == {"type": "pong", "ref": ref}
    assert isinstance(response["ref"], type(ref))


@pytest.mark.parametrize("ref", BAD)
@pytest.mark.parametrize("name", HANDLERS)
def test_a_bad_ref_is_rejected_and_not_repeated(name: str, ref: str, doubles: Doubles) -> None:
    response = invoked(getattr(handlers, name), f'{{"action":"{name}","room":"a","data":"x","since":1,"ref":{ref}}}')
    assert (response["type"], response["code"]) == ("error", "bad_request")
    assert response["message"].startswith("ref: must be a string or an integer of at most 64 characters")
    assert "ref" not in response
    assert doubles.memberships.joins == []
    assert doubles.queue.broadcasts == []


@pytest.mark.parametrize("name", HANDLERS)
@pytest.mark.parametrize(
    "body", ['{"action":7,"room":7,"ref":"r-1"}', '{"ref":"r-1","room":"\\ud800"}', '{"room":"@x","ref":"r-1"}']
)
def test_an_error_repeats_the_ref_of_a_message_that_is_bad_otherwise(name: str, body: str) -> None:
    response = invoked(getattr(handlers, name), body)
    assert response["ref"] == "r-1"
    assert response["type"] == ("pong" if name == "ping" else "error")


def test_ok_responses_repeat_the_ref(doubles: Doubles) -> None:
    doubles.with_history("a")
    doubles.memberships.rooms[CONNECTION_ID] = {"a"}
    for name, fields in (
        ("join", {"room": "a"}),
        ("join", {"rooms": [{"room": "a"}]}),
        ("publish", {"room": "a", "data": "x"}),
        ("history", {"room": "a", "since": doubles.stream.append("a")}),
        ("count", {"room": "a"}),
        ("leave", {"room": "a"}),
    ):
        response = invoked(getattr(handlers, name), json.dumps({"action": name, **fields, "ref": 42}))
        assert (response["type"], response["ref"]) == ("ok", 42)


def test_failures_of_ours_repeat_the_ref_too(doubles: Doubles) -> None:
    doubles.memberships.failure = ValueError("secret")
    assert invoked(handlers.join, '{"action":"join","room":"a","ref":"r"}') == {
        "type": "error",
        "action": "join",
        "ref": "r",
        "code": "unavailable",
        "message": "temporarily unavailable: retry",
    }


@pytest.mark.parametrize("body", [None, "", "{", "[]", "7", '"ref"', '{"REF":1}', "\ud800", '{"a":' + "[" * 100_000])
def test_without_a_readable_ref_none_is_repeated(body: str | None) -> None:
    assert not ref_of(body)
    assert "ref" not in invoked(handlers.default, body)


def test_of_several_refs_the_last_one_holds() -> None:
    assert ref_of('{"ref":{},"ref":1}') == 1
    assert ref_of('{"ref":1,"ref":10000000000000000000000001,"x":"\\ud800"}') == 10**25 + 1
    with pytest.raises(RequestRejected):
        ref_of('{"ref":1,"ref":{}}')


@pytest.mark.parametrize("ref", ['"\\ud800"', f'"{"x" * 65}"', "[]"])
def test_a_bad_ref_in_a_message_that_is_not_valid_either(ref: str) -> None:
    with pytest.raises(RequestRejected, match=r"^ref: ") as rejection:
        ref_of(f'{{"ref":{ref},"x":"\\ud800"}}')
    assert rejection.value.code is Code.BAD_REQUEST


def test_a_message_that_is_too_long_is_not_parsed() -> None:
    assert not ref_of(json.dumps({"ref": 1, "x": "x" * 131_072}))
