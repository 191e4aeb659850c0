"""Joining with history, several rooms at once, and reading: what clients send, and what they receive."""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gatecast.frames import MAX_FRAME_BYTES
from gatecast.room_settings import RoomSettings
from gatecast.rooms.presence import Members, User
from routes import handlers
from routes.requests import MAX_BODY_BYTES, MAX_REF_LENGTH
from routes.responses import MAX_ECHOED, Code, RequestRejected
from tests.route_doubles import NOW, Doubles
from tests.routes_events import CONNECTED_AT_MS, CONNECTION_ID, LambdaContext, captured_log, event, token_context

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]
ABOUT = {"connection": CONNECTION_ID, "expires_at_ms": CONNECTED_AT_MS + 7_200_000}


@pytest.fixture(autouse=True)
def doubles(monkeypatch: pytest.MonkeyPatch) -> Doubles:
    return Doubles().install(monkeypatch)


@pytest.fixture(autouse=True)
def log() -> Iterator[io.StringIO]:
    with captured_log() as log:
        yield log


def invoked(handler: Handler, authorizer: dict[str, Any] | None = None, **body: Any) -> dict[str, Any]:
    result = handler(event(body=json.dumps(body), authorizer=authorizer), LambdaContext())
    message: dict[str, Any] = json.loads(result["body"])
    return message


def joined(doubles: Doubles, *rooms: str) -> None:
    doubles.memberships.rooms.setdefault(CONNECTION_ID, set()).update(rooms)


# join


def test_a_room_without_history_is_joined_as_before(doubles: Doubles) -> None:
    assert invoked(handlers.join, room="a") == {"type": "ok", "action": "join", "room": "a", **ABOUT}
    assert invoked(handlers.join, room="b", since=7)["type"] == "ok", "a client need not know which rooms have history"
    assert doubles.stream.calls == []


def test_a_token_ends_the_connection_earlier() -> None:
    token = token_context(1_700_000_099, join="a")
    assert invoked(handlers.join, token, room="a")["expires_at_ms"] == 1_700_000_099_000


def test_a_room_with_history_is_joined_with_its_position(doubles: Doubles) -> None:
    doubles.with_history("a")
    offset = doubles.stream.append("a")
    response = invoked(handlers.join, room="a")
    history = {"offset": offset, "recovered": True, "messages": [], "more": False}
    assert response == {"type": "ok", "action": "join", "room": "a", **history, **ABOUT}
    assert doubles.stream.calls == ["GetItem"]


def test_a_client_that_resumes_receives_what_it_missed(doubles: Doubles) -> None:
    doubles.with_history("a")
    since = doubles.stream.append("a")
    offset = doubles.stream.append("a", "hi", from_="alice")
    response = invoked(handlers.join, room="a", since=since)
    message = {
        "id": f"id-{offset}",
        "from": "alice",
        "offset": offset,
        "published_at_ms": int(NOW * 1000),
        "data": "hi",
    }
    assert (response["offset"], response["recovered"], response["messages"]) == (offset, True, [message])
    assert invoked(handlers.join, room="a", last=1)["messages"] == [message]


def test_a_position_beyond_the_head_is_rejected_and_nothing_is_joined(doubles: Doubles) -> None:
    doubles.with_history("a")
    offset = doubles.stream.append("a")
    response = invoked(handlers.join, room="a", since=offset + 1)
    assert (response["code"], response["message"]) == ("bad_request", "since: beyond the room's latest message")
    assert doubles.memberships.joins == []


def test_the_bytes_of_json_reach_the_client_unchanged(doubles: Doubles) -> None:
    doubles.with_history("a")
    payload = b'{"b": 1e400,"a":9007199254740993, "a" :[ ]}'
    doubles.stream.append("a", json=payload)
    result = handlers.join(event(body='{"room":"a","last":1}'), LambdaContext())
    assert f'"json":{payload.decode()}}}' in result["body"]


def test_several_rooms_are_joined_with_one_count_and_one_write(doubles: Doubles) -> None:
    doubles.with_history("b", "c")
    since = doubles.stream.append("b")
    doubles.stream.append("b")
    head = doubles.stream.append("c")
    response = invoked(handlers.join, rooms=[{"room": "a"}, {"room": "b", "since": since}, {"room": "c"}])
    a, b, c = response.pop("rooms")
    assert response == {"type": "ok", "action": "join", **ABOUT}
    assert a == {"room": "a"}
    assert (b["room"], b["offset"], b["recovered"], len(b["messages"])) == ("b", since + 1, True, 1)
    assert c == {"room": "c", "offset": head, "recovered": True, "messages": [], "more": False}
    assert doubles.counter.counted == ["join"]
    assert doubles.memberships.joins == [["a", "b", "c"]]


def test_a_room_that_cannot_be_joined_fails_alone(doubles: Doubles, log: io.StringIO) -> None:
    doubles.with_history("beyond")
    head = doubles.stream.append("beyond")
    doubles.memberships.rejected = {
        "full": RequestRejected(Code.TOO_MANY_ROOMS, "room: too many"),
        "busy": RequestRejected(Code.UNAVAILABLE, "busy: retry"),
    }
    rooms = ["good", "full", "busy", "@all", "a b", "beyond", "late"]
    since = {"beyond": {"since": head + 1}}
    response = invoked(handlers.join, rooms=[{"room": room, **since.get(room, {})} for room in rooms])
    assert [each["room"] for each in response["rooms"]] == rooms
    found = {each["room"]: each.get("error", {}).get("code") for each in response["rooms"]}
    assert found == {
        "good": None,
        "full": "too_many_rooms",
        "busy": "unavailable",
        "@all": "forbidden_room",
        "a b": "bad_request",
        "beyond": "bad_request",
        "late": None,
    }
    assert all(set(each.get("error", {})) <= {"code", "message"} for each in response["rooms"])
    assert doubles.memberships.joins == [["good", "full", "busy", "late"]]
    assert json.loads(log.getvalue())["reason"] == "busy: retry"


def test_rooms_that_all_fail_are_counted_and_nothing_is_written(doubles: Doubles) -> None:
    response = invoked(handlers.join, rooms=[{"room": "@all"}, {"room": "x y"}])
    assert [each["error"]["code"] for each in response["rooms"]] == ["forbidden_room", "bad_request"]
    assert doubles.counter.counted == ["join"]
    assert doubles.memberships.joins == []


def test_a_connection_that_is_closing_fails_as_a_whole(monkeypatch: pytest.MonkeyPatch, doubles: Doubles) -> None:
    def join(*_arguments: Any) -> Any:
        raise RequestRejected(Code.NOT_CONNECTED, "the connection is closing")

    monkeypatch.setattr(doubles.memberships, "join", join)
    assert invoked(handlers.join, rooms=[{"room": "a"}, {"room": "b"}])["code"] == "not_connected"


def test_histories_that_cannot_be_read_make_the_join_unavailable_and_safe_to_retry(doubles: Doubles) -> None:
    doubles.with_history("a")
    since = doubles.stream.append("a")
    doubles.stream.append("a")

    def fail(call: str) -> None:
        if call == "Query":
            raise ConnectionError

    doubles.stream.on_call = fail
    assert invoked(handlers.join, room="a", since=since)["code"] == "unavailable"
    doubles.stream.on_call = lambda _call: None
    assert len(invoked(handlers.join, room="a", since=since)["messages"]) == 1


def test_the_dialect_comes_from_connecting_or_from_the_join(doubles: Doubles) -> None:
    for offered, frames in (("gatecast.v2, t", 2), ("gatecast.v1, t", 1)):
        headers = {"Sec-WebSocket-Protocol": offered}
        opened = handlers.connect(event("$connect", headers=headers), LambdaContext())
        assert opened["headers"]["Sec-WebSocket-Protocol"] == offered.partition(",")[0]
        assert doubles.memberships.dialects.pop() == frames
    assert handlers.connect(event("$connect"), LambdaContext()) == {"statusCode": 200}
    for context, fields, frames in (
        (None, {}, 1),
        (None, {"frames": 2}, 2),
        (None, {"frames": 1}, 1),
        ({"user": "alice", "frames": "2"}, {}, 2),
        ({"user": "alice", "frames": "2"}, {"frames": 1}, 2),
        ({"user": "alice"}, {"frames": 2}, 2),
        (token_context(join="a"), {"frames": 2}, 1),
        ({**token_context(join="a"), "frames": "2"}, {"frames": 1}, 2),
    ):
        assert invoked(handlers.join, context, room="a", **fields)["type"] == "ok"
        assert doubles.memberships.dialects.pop() == frames
    assert invoked(handlers.join, room="a", frames=3)["code"] == "bad_request"


# publish


def test_a_broadcast_names_its_user_whatever_the_client_sends(doubles: Doubles) -> None:
    joined(doubles, "a")
    fields: dict[str, Any] = {"room": "a", "from": "mallory", "offset": 7, "published_at_ms": 1, "key": ["ignored"]}
    assert invoked(handlers.publish, {"user": "alice"}, data="x", **fields)["type"] == "ok"
    assert invoked(handlers.publish, json={"x": None}, **fields)["type"] == "ok"
    one, other = doubles.queue.broadcasts
    assert (one.from_, one.data, one.json) == ("alice", "x", other.data)
    assert not other.from_
    assert bytes(other.json or b"") == b'{"x": null}'
    assert not one.offset


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({}, "bad_request", "data: exactly one of `data` and `json`"),
        ({"data": "x", "json": 7}, "bad_request", "data: exactly one of `data` and `json`"),
        ({"data": ""}, "bad_request", "data: must not be empty"),
        ({"data": {"x": 1}}, "bad_request", "data: Expected `str`"),
        ({"data": "x" * 130_990}, "too_large", "data: "),
        ({"json": "x" * 130_990}, "too_large", "json: "),
    ],
)
def test_bad_payloads_are_rejected(fields: dict[str, Any], code: str, message: str, doubles: Doubles) -> None:
    joined(doubles, "a")
    response = invoked(handlers.publish, room="a", **fields)
    assert response["code"] == code
    assert response["message"].startswith(message)
    assert doubles.queue.broadcasts == []


@pytest.mark.parametrize("value", ["nonsense", "NaN", "{'a':1}", "[1,]", "01", '"\\ud800"', "", "[" * 129 + "]" * 129])
def test_json_that_is_none_is_rejected(value: str, doubles: Doubles) -> None:
    joined(doubles, "a")
    body = f'{{"action":"publish","room":"a","json":{value}}}'
    response = json.loads(handlers.publish(event(body=body), LambdaContext())["body"])
    assert response["code"] == "bad_request"
    assert doubles.queue.broadcasts == []


@pytest.mark.parametrize("value", ["null", "false", "0", '""', "[]", "{}"])
def test_any_json_value_is_a_payload(value: str, doubles: Doubles) -> None:
    joined(doubles, "a")
    body = f'{{"action":"publish","room":"a","json":{value}}}'
    assert json.loads(handlers.publish(event(body=body), LambdaContext())["body"])["type"] == "ok"
    assert f'"json":{value}' in doubles.queue.bodies[0]


# history


def test_a_member_reads_history_in_pages(doubles: Doubles) -> None:
    doubles.with_history("a")
    joined(doubles, "a")
    since = doubles.stream.append("a")
    sent = [doubles.stream.append("a") for _ in range(3)]
    response = invoked(handlers.history, room="a", since=since, limit=2)
    messages = response.pop("messages")
    expected = {"type": "ok", "action": "history", "room": "a", "offset": sent[1], "recovered": True, "more": True}
    assert response == expected
    assert [message["offset"] for message in messages] == sent[:2]
    rest = invoked(handlers.history, room="a", since=sent[1])
    assert [message["offset"] for message in rest["messages"]] == sent[2:]
    assert doubles.counter.counted == ["read", "read"]


def test_members_read_the_history_of_the_rooms_of_the_system(doubles: Doubles) -> None:
    doubles.with_history("@all", "@user/alice")
    joined(doubles, "@all", "@user/alice")
    for room in ("@all", "@user/alice"):
        since = doubles.stream.append(room)
        assert invoked(handlers.history, {"user": "alice"}, room=room, since=since)["recovered"] is True
    assert invoked(handlers.history, {"user": "alice"}, room="@user/bob", since=1)["code"] == "forbidden_room"
    assert invoked(handlers.join, {"user": "alice"}, room="@all")["code"] == "forbidden_room"


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({}, "bad_request", "Object missing required field `since`"),
        ({"since": -1}, "bad_request", "since: Expected `int` >= 0"),
        ({"since": "7"}, "bad_request", "since: Expected `int`"),
        ({"since": True}, "bad_request", "since: Expected `int`"),
        ({"since": None}, "bad_request", "since: Expected `int`"),
        ({"since": 1.5}, "bad_request", "since: Expected `int`"),
        ({"since": 10**15}, "bad_request", "since: beyond the room's latest message"),
        ({"since": 0, "last": 1}, "bad_request", "last: only `join` has it"),
        ({"since": 0, "limit": 0}, "bad_request", "limit: Expected `int` >= 1"),
        ({"since": 0, "limit": 1_001}, "bad_request", "limit: Expected `int` <= 1000"),
        ({"since": 0, "limit": "1"}, "bad_request", "limit: Expected `int`"),
        ({"since": 0, "limit": None}, "bad_request", "limit: Expected `int`"),
        ({"since": 0, "room": "plain"}, "bad_request", "room: it has no history"),
        ({"since": 0, "room": "other"}, "not_a_member", "room: only its members"),
        ({"since": 0, "room": "two words"}, "bad_request", "room: must be"),
        ({"since": 0, "room": "a/*"}, "forbidden_room", "room: names that contain"),
    ],
)
def test_bad_requests_for_history(fields: dict[str, Any], code: str, message: str, doubles: Doubles) -> None:
    doubles.with_history("a", "other")
    joined(doubles, "a", "plain")
    doubles.stream.append("a")
    response = invoked(handlers.history, **{"room": "a", **fields})
    assert (response["type"], response["code"]) == ("error", code)
    assert response["message"].startswith(message)


# members, count, ping


def test_users_are_listed_in_pages(doubles: Doubles) -> None:
    doubles.settings["a"] = RoomSettings(presence=10)
    joined(doubles, "a")
    doubles.presence.pages["a", None] = Members([User("alice", 2), User("bob", 1)], "bob", 1_700_000_000_000)
    doubles.presence.pages["a", "bob"] = Members([User("carol", 1)], None, 1_700_000_000_001)
    first = invoked(handlers.members, room="a")
    assert first == {
        "type": "ok",
        "action": "members",
        "room": "a",
        "users": [{"user": "alice", "connections": 2}, {"user": "bob", "connections": 1}],
        "after": "bob",
        "at_ms": 1_700_000_000_000,
    }
    second = invoked(handlers.members, room="a", after=first["after"])
    assert (second["users"], second["after"]) == ([{"user": "carol", "connections": 1}], None)
    assert second["at_ms"] == 1_700_000_000_001
    assert invoked(handlers.members, room="a", after=second["after"]) == first, "null is none"


def test_history_members_and_count_share_one_limit(doubles: Doubles) -> None:
    doubles.settings["a"] = RoomSettings(presence=10, history_seconds=60)
    joined(doubles, "a")
    offset = doubles.stream.append("a")
    requests: list[tuple[Handler, dict[str, Any]]] = [
        (handlers.history, {"since": offset}),
        (handlers.members, {}),
        (handlers.count, {}),
    ]
    for handler, fields in requests:
        assert invoked(handler, room="a", **fields)["type"] == "ok"
    assert doubles.counter.counted == ["read"] * 3
    doubles.counter.left = 0
    for handler, fields in requests:
        assert invoked(handler, room="a", **fields)["code"] == "rate_limited"


def test_members_are_counted(doubles: Doubles) -> None:
    joined(doubles, "a")
    counted = {"room": "a", "members": 7, "counted_at_ms": 1_700_000_000_000}
    assert invoked(handlers.count, room="a") == {"type": "ok", "action": "count", **counted}
    assert doubles.counter.counted == ["read"]


def test_listing_is_for_members_and_for_rooms_with_presence(doubles: Doubles) -> None:
    doubles.settings["a"] = RoomSettings(presence=10)
    for handler in (handlers.members, handlers.count):
        assert invoked(handler, room="a")["code"] == "not_a_member"
        assert invoked(handler, room=7)["code"] == "bad_request"
    joined(doubles, "plain")
    response = invoked(handlers.members, room="plain")
    assert (response["code"], response["message"]) == (
        "bad_request",
        "room: its members cannot be listed, because it has no presence",
    )
    for after in (7, "x" * 101, ["b"]):
        assert invoked(handlers.members, room="a", after=after)["code"] == "bad_request"


@pytest.mark.parametrize("handler", [handlers.history, handlers.members, handlers.count])
def test_reading_ends_with_the_token_and_is_limited(handler: Handler, doubles: Doubles) -> None:
    doubles.with_history("a")
    joined(doubles, "a")
    expired = token_context(1_700_000_001, join="a")
    assert invoked(handler, expired, room="a", since=0)["code"] == "token_expired"
    doubles.counter.left = 0
    limited = invoked(handler, room="a", since=0)
    assert (limited["code"], limited["retry_after_seconds"] > 0) == ("rate_limited", True)
    assert doubles.stream.calls == []


def test_reading_shares_one_limit_and_leaves_joins_theirs(doubles: Doubles) -> None:
    joined(doubles, "a")
    for handler in (handlers.history, handlers.members, handlers.count, handlers.join, handlers.leave):
        invoked(handler, room="a", since=0)
    assert doubles.counter.counted == ["read", "read", "read", "join", "leave"]


def test_pings_get_pongs_and_cost_nothing(doubles: Doubles) -> None:
    assert invoked(handlers.ping, action="ping") == {"type": "pong"}
    assert invoked(handlers.ping, action="ping", ref="r") == {"type": "pong", "ref": "r"}
    assert doubles.counter.counted == []


def test_only_clients_that_were_admitted_read(monkeypatch: pytest.MonkeyPatch, doubles: Doubles) -> None:
    monkeypatch.setenv("GATECAST_AUTHORIZER", "required")
    joined(doubles, "a")
    for handler in (handlers.history, handlers.members, handlers.count, handlers.ping):
        assert invoked(handler, room="a", since=0)["code"] == "unavailable"


# Sizes


def test_a_long_name_is_not_repeated_at_its_length(doubles: Doubles) -> None:
    doubles.with_history("a")
    names = [f"{number:02d}" + "x" * 5_200 for number in range(24)]
    body = json.dumps({"rooms": [{"room": "a"}, *({"room": name} for name in names)]})
    assert MAX_BODY_BYTES - 6_000 < len(body) <= MAX_BODY_BYTES
    response = handlers.join(event(body=body), LambdaContext())["body"]
    first, *others = json.loads(response)["rooms"]
    assert first["recovered"] is True
    assert [each["room"] for each in others] == [name[:MAX_ECHOED] for name in names]
    assert {each["error"]["code"] for each in others} == {"bad_request"}
    assert len(response) < 10_000


@pytest.mark.parametrize("character", ["\x01", '"', "😀"])
def test_names_that_are_repeated_leave_the_space_that_a_message_needs(character: str, doubles: Doubles) -> None:
    invalid = [{"room": f"{number:02d} " + character * 150} for number in range(24)]
    received: list[int] = []
    for length in range(105_000, 125_000, 500):
        room = f"r{length}"
        doubles.with_history(room)
        since = doubles.stream.append(room)
        doubles.stream.append(room, "x" * length)
        fields = {"rooms": [{"room": room, "since": since}, *invalid], "ref": "\x01" * MAX_REF_LENGTH}
        response = handlers.join(event(body=json.dumps(fields)), LambdaContext())["body"]
        assert len(response.encode()) <= MAX_FRAME_BYTES
        joined = json.loads(response)["rooms"][0]
        assert joined["recovered"] is True
        received.append(len(joined["messages"]))
    assert set(received) == {0, 1}


LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("handler", "fields"),
    [
        *((each, {"room": LONG, "since": 0}) for each in (handlers.join, handlers.history, handlers.members)),
        *((each, {"room": LONG, "data": "x"}) for each in (handlers.leave, handlers.publish, handlers.count)),
        (handlers.join, {"room": "a", "since": LONG}),
        (handlers.join, {"rooms": [{"room": "a"}, {LONG: "b"}]}),
        (handlers.join, {"rooms": [{"room": LONG}, {"room": LONG}]}),
        (handlers.publish, {"room": "a", "data": "x", "id": LONG}),
        (handlers.publish, {"room": "a", "data": "x", "ref": LONG}),
        (handlers.publish, {"room": "a", "data": "x", LONG: LONG}),
        (handlers.history, {"room": "a", "since": 0, "limit": LONG}),
        (handlers.members, {"room": "a", "after": LONG}),
        (handlers.default, {"action": LONG}),
        (handlers.ping, {"ref": LONG}),
    ],
)
def test_no_response_repeats_a_long_text(handler: Handler, fields: dict[str, Any], doubles: Doubles) -> None:
    doubles.settings["a"] = RoomSettings(presence=10, history_seconds=60)
    joined(doubles, "a")
    assert len(handler(event(body=json.dumps(fields)), LambdaContext())["body"]) < 1_000
