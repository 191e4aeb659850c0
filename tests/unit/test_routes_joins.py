"""The body of `join`: one room or several, positions, and which errors concern one room alone."""

import json
from typing import Any

import pytest

from routes.access import Access
from routes.joins import JoinRequest, Position, parse_join
from routes.requests import Caller
from routes.responses import Code, RequestRejected
from tests.routes_events import CONNECTED_AT_MS, CONNECTION_ID, REQUESTED_AT_MS


def caller(*grants: str, expires_at: int = 1_800_000_000) -> Caller:
    access = Access(join=grants, publish=(), expires_at=expires_at) if grants else None
    return Caller(
        connection_id=CONNECTION_ID, connected_at_ms=CONNECTED_AT_MS, requested_at_ms=REQUESTED_AT_MS, access=access
    )


def parsed(body: Any, who: Caller | None = None) -> JoinRequest:
    return parse_join(body if isinstance(body, str) else json.dumps(body), who or caller())


def codes(request: JoinRequest) -> dict[str, str]:
    return {room: each.code for room, each in request.rooms.items() if isinstance(each, RequestRejected)}


def test_one_room() -> None:
    assert parsed({"room": "a"}) == JoinRequest({"a": Position()}, is_list=False, frames=1)
    assert parsed({"room": "a", "since": 7, "frames": 2}) == JoinRequest({"a": Position(since=7)}, False, 2)
    assert parsed({"room": "a", "frames": 2}, caller("a")).frames == 1, "Gatecast's authorizer would have told"
    assert parsed({"rooms": [{"room": "a"}], "frames": 2}, caller("a")).frames == 1
    assert parsed({"rooms": [{"room": "a"}], "frames": 2}).frames == 2
    assert parsed({"room": "a", "last": 100}).positions == {"a": Position(last=100)}
    assert parsed({"room": "a", "since": 0, "frames": 1}).positions == {"a": Position(since=0)}


def test_several_rooms_keep_their_order() -> None:
    request = parsed({"rooms": [{"room": "b", "since": 7}, {"room": "a", "last": 0}, {"room": "c", "x": 1}]})
    assert list(request.rooms.items()) == [("b", Position(since=7)), ("a", Position(last=0)), ("c", Position())]
    assert request.is_list
    assert len(parsed({"rooms": [{"room": f"r{number}"} for number in range(25)]}).positions) == 25


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "room: exactly one of"),
        ({"room": "a", "rooms": [{"room": "b"}]}, "room: exactly one of"),
        ({"room": 7}, "room: Expected `str`"),
        ({"room": "a b"}, "room: must be 1 to 100"),
        ({"rooms": []}, "rooms: expected at least 1 element"),
        ({"rooms": [{"room": f"r{number}"} for number in range(26)]}, "rooms: expected at most 25 elements"),
        ({"rooms": {"room": "a"}}, "rooms: Expected `array`"),
        ({"rooms": ["a"]}, "rooms[0]: Expected `object`"),
        ({"rooms": [{"room": "a"}, {"rom": "b"}]}, "rooms[1]: Object missing required field `room`"),
        ({"rooms": [{"room": "a"}, {"room": 7}]}, "rooms[1]: room: Expected `str`"),
        ({"rooms": [{"room": "a"}, {"room": "b"}, {"room": "a", "since": 7}]}, "rooms[2].room: the same room twice"),
        ({"rooms": [{"room": "a"}], "since": 7}, "rooms: `since` and `last` belong"),
        ({"rooms": [{"room": "a"}], "last": 7}, "rooms: `since` and `last` belong"),
        ({"room": "a", "since": -1}, "since: Expected `int` >= 0"),
        ({"room": "a", "since": "7"}, "since: Expected `int`"),
        ({"room": "a", "since": True}, "since: Expected `int`"),
        ({"room": "a", "since": 7.5}, "since: Expected `int`"),
        ({"room": "a", "since": None}, "since: Expected `int`"),
        ({"room": "a", "since": 10**16}, "since: Expected `int` <= "),
        ({"room": "a", "since": 7, "last": 7}, "last: cannot be given together with `since`"),
        ({"room": "a", "last": 101}, "last: Expected `int` <= 100"),
        ({"room": "a", "last": -1}, "last: Expected `int` >= 0"),
        ({"room": "a", "last": "7"}, "last: Expected `int`"),
        *(({"room": "a", "frames": bad}, "frames: Expected `int`") for bad in (0, 3, "2", True, None, 2.5, [2])),
    ],
)
def test_a_bad_request_is_rejected_as_a_whole(body: Any, message: str) -> None:
    with pytest.raises(RequestRejected) as rejection:
        parsed(body)
    assert rejection.value.code is Code.BAD_REQUEST
    assert rejection.value.message.startswith(message)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ({"room": "@all"}, "forbidden_room"),
        ({"room": "other"}, "forbidden_room"),
        ({"room": "a/*"}, "forbidden_room"),
        ({"room": ""}, "bad_request"),
        ({"room": "two words"}, "bad_request"),
        ({"room": "a/1", "since": -1}, "bad_request"),
        ({"room": "a/1", "since": "7"}, "bad_request"),
        ({"room": "a/1", "since": 1, "last": 1}, "bad_request"),
        ({"room": "a/1", "last": 101}, "bad_request"),
    ],
)
def test_a_bad_room_among_good_ones_fails_alone(bad: dict[str, Any], code: str) -> None:
    request = parsed({"rooms": [{"room": "a/2", "since": 7}, bad, {"room": "a/3"}]}, caller("a/*"))
    assert codes(request) == {bad["room"]: code}
    assert request.positions == {"a/2": Position(since=7), "a/3": Position()}


def test_a_forbidden_single_room_and_an_expired_token_fail_as_before() -> None:
    expired = caller("a", expires_at=REQUESTED_AT_MS // 1000)
    for body, who, code in (
        ({"room": "b"}, caller("a"), Code.FORBIDDEN_ROOM),
        ({"room": "@all"}, caller(), Code.FORBIDDEN_ROOM),
        ({"room": "a"}, expired, Code.TOKEN_EXPIRED),
        ({"rooms": [{"room": "a"}]}, expired, Code.TOKEN_EXPIRED),
    ):
        with pytest.raises(RequestRejected) as rejection:
            parsed(body, who)
        assert rejection.value.code is code


def test_text_that_has_no_utf_8_in_one_room_is_a_bad_request() -> None:
    for body in ('{"rooms":[{"room":"\\ud800"}]}', '{"rooms":[{"room":"a"}],"x":"\\ud800"}', "{", None):
        with pytest.raises(RequestRejected) as rejection:
            parse_join(body, caller())
        assert rejection.value.code is Code.BAD_REQUEST
