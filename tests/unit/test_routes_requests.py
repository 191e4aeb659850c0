"""Parsing and validating what clients and API Gateway send."""

import json
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from gatecast import decode, encode
from routes.publishing import MAX_PUBLISHER_LENGTH, PublishRequest, publisher_key, to_broadcast
from routes.requests import (
    MAX_BODY_BYTES,
    Caller,
    RoomRequest,
    parse,
    unknown_action,
    validate_readable_room,
)
from routes.responses import Code, RequestRejected
from tests.routes_events import CONNECTED_AT_MS, CONNECTION_ID, REQUESTED_AT_MS, event, token_context

GENERATED_ID = "8c6f0f8a2d6e4a0f9b1c3d5e7f9a1b3c"


def caller(user: str | None = None, connection_id: str = CONNECTION_ID) -> Caller:
    return Caller(
        connection_id=connection_id, connected_at_ms=CONNECTED_AT_MS, requested_at_ms=REQUESTED_AT_MS, user=user
    )


def publish(**fields: Any) -> PublishRequest:
    return PublishRequest(**{"room": "lobby", "data": "hello", **fields})


def test_caller_is_the_connection_and_its_times() -> None:
    assert Caller.from_event(event("join")) == caller()


@pytest.mark.parametrize(
    ("authorizer", "user"),
    [
        ({"user": "alice", "principalId": "p-1", "integrationLatency": 12}, "alice"),
        ({"principalId": "me"}, None),
        ({"user": "", "principalId": "me"}, None),
        ({"user": 42, "principalId": "me"}, "42"),
        ({"user": "", "principalId": ""}, None),
        ({}, None),
        (None, None),
    ],
)
def test_user_is_the_contexts_user_and_never_its_principal_id(
    authorizer: dict[str, Any] | None, user: str | None
) -> None:
    assert Caller.from_event(event(authorizer=authorizer)).user == user


@pytest.mark.parametrize("frames", [None, "", "1", 1, "3", True, "two", ["2"], {"2": 2}, 2**60])
def test_only_the_contexts_2_is_the_dialect_with_frames(frames: object) -> None:
    assert Caller.from_event(event(authorizer={"frames": frames})).frames == 1
    for given in ("2", 2, 2.0):
        assert Caller.from_event(event(authorizer={"frames": given})).frames == 2
    assert Caller.from_event(event()).frames == 1


def test_a_connection_ends_with_its_token_and_after_two_hours_at_the_latest() -> None:
    assert caller().ends_at_ms == CONNECTED_AT_MS + 7_200_000
    assert Caller.from_event(event(authorizer=token_context(1_700_000_007))).ends_at_ms == 1_700_000_007_000
    assert Caller.from_event(event(authorizer=token_context(1_900_000_000))).ends_at_ms == CONNECTED_AT_MS + 7_200_000


def test_callers_access_comes_from_its_token() -> None:
    assert Caller.from_event(event(authorizer={"user": "alice"})).access is None
    access = Caller.from_event(event(authorizer=token_context(7, join="a b/*"))).access
    assert access
    assert (access.join, access.publish, access.expires_at) == (("a", "b/*"), (), 7)


def test_event_of_another_kind_is_rejected() -> None:
    with pytest.raises(msgspec.ValidationError):
        Caller.from_event({"requestContext": {"http": {"method": "GET"}}})


def test_members_read_the_rooms_of_the_system_that_they_are_in() -> None:
    for room in ("@all", "@user/alice", "lobby"):
        assert validate_readable_room(room, caller("alice")) == room
    for room, who in (("@user/bob", "alice"), ("@user/alice", None), ("@other", "alice"), ("a*", "alice")):
        with pytest.raises(RequestRejected) as rejection:
            validate_readable_room(room, caller(who))
        assert rejection.value.code is Code.FORBIDDEN_ROOM


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "not valid JSON"),
        ("", "not valid JSON"),
        ("hello", "not valid JSON"),
        ("{", "not valid JSON"),
        ('{"room":"a","data":"x"} {}', "not valid JSON"),
        ('{"room":"a","x":NaN}', "not valid JSON"),
        ('{"x":' + "[" * 100_000, "not valid JSON"),
        ('{"room":"a","x":' + '{"y":' * 20_000, "not valid JSON"),
        ('"\ud800"', "not valid UTF-8"),
        ("null", "Expected `object`"),
        ("[]", "Expected `object`"),
        ("7", "Expected `object`"),
        ("7" * 5_000, "out of range"),
        ("{}", "missing required field `room`"),
        ('{"room":null,"data":"x"}', "room: Expected `str`"),
        ('{"room":["a"],"data":"x"}', "room: Expected `str`"),
        ('{"room":"a","data":{"text":"x"}}', "data: Expected `str`"),
        ('{"room":"a","data":"x","echo":0}', "echo: Expected `bool`"),
        ('{"room":"a","data":"x","echo":"false"}', "echo: Expected `bool`"),
        ('{"room":"a","data":"x","echo":null}', "echo: Expected `bool`"),
        ('{"room":"a","data":"x","id":' + "9" * 5_000 + "}", "id: Number out of range"),
        ('{"room":"a","data":"x","id":null}', "id: Expected `str`"),
        ('{"room":"a","data":"\\ud83d"}', "data: half of a surrogate pair"),
        ('{"room":"\\udc00","data":"x"}', "room: half of a surrogate pair"),
        ('{"room":"a","data":"x","y":"\\ud83d"}', "not valid JSON"),
    ],
)
def test_malformed_request_is_rejected_with_the_invalid_field(body: str | None, message: str) -> None:
    with pytest.raises(RequestRejected) as rejection:
        parse(body, PublishRequest)
    assert rejection.value.code is Code.BAD_REQUEST
    assert message in rejection.value.message


@pytest.mark.parametrize("filler", ["x", "é", "\ud800", "["])
def test_oversized_message_is_not_parsed(filler: str) -> None:
    max_seconds = MAX_BODY_BYTES // len(filler.encode("utf-8", "surrogatepass"))
    for length, code in ((max_seconds, Code.BAD_REQUEST), (max_seconds + 1, Code.TOO_LARGE)):
        with pytest.raises(RequestRejected) as rejection:
            parse(filler * length, PublishRequest)
        assert rejection.value.code is code


def test_unknown_fields_are_ignored_and_the_last_duplicate_wins() -> None:
    body = '{"action":"join","room":"a","room":"b","x":' + "9" * 5_000 + ',"y":{"z":[]}}'
    assert parse(body, RoomRequest) == RoomRequest("b")


def test_a_broadcast_says_who_published_what_and_when() -> None:
    broadcast = to_broadcast(publish(id="42"), caller(), generated_id=GENERATED_ID)
    assert broadcast.id == f"{CONNECTION_ID}/42"
    assert (broadcast.room, broadcast.data, broadcast.except_) == ("lobby", "hello", UNSET)
    assert broadcast.published_at_ms == REQUESTED_AT_MS
    assert encode(broadcast) == encode(decode(encode(broadcast)))


def test_without_echo_the_publisher_is_excluded() -> None:
    assert to_broadcast(publish(echo=False), caller(), generated_id=GENERATED_ID).except_ == (CONNECTION_ID,)


def test_an_id_is_generated_if_the_client_sent_none() -> None:
    assert to_broadcast(publish(), caller("alice"), generated_id=GENERATED_ID).id == f"@alice/{GENERATED_ID}"


@pytest.mark.parametrize("bad", ["", "a b", "é", "x" * 94, "\n"])
def test_invalid_id_is_rejected_with_the_allowed_length(bad: str) -> None:
    with pytest.raises(RequestRejected, match=r"^id: must be 1 to 93 characters") as rejection:
        to_broadcast(publish(id=bad), caller("alice"), generated_id=GENERATED_ID)
    assert rejection.value.code is Code.BAD_REQUEST


def test_the_longest_id_that_fits() -> None:
    assert len(to_broadcast(publish(id="x" * 93), caller("alice"), generated_id=GENERATED_ID).id) == 100


@pytest.mark.parametrize("data", ["x", "x" * 129_000, "é" * 64_500, "\x00" * 21_000])
def test_data_that_can_be_posted_to_a_client(data: str) -> None:
    broadcast = to_broadcast(publish(data=data), caller(), generated_id=GENERATED_ID)
    assert decode(encode(broadcast)).data == data


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("", Code.BAD_REQUEST),
        *((text, Code.TOO_LARGE) for text in ("x" * 131_072, "x" * 131_073, "é" * 65_537, "\x00" * 22_000)),
    ],
)
def test_data_that_cannot_be_posted_to_a_client(data: str, code: Code) -> None:
    with pytest.raises(RequestRejected, match=r"^data: ") as rejection:
        to_broadcast(publish(data=data), caller(), generated_id=GENERATED_ID)
    assert rejection.value.code is code


def test_clients_publish_no_references() -> None:
    body = '{"room": "lobby", "data": "x", "reference": {"bucket": "b", "key": "k", "bytes": 1, "content_type": "t"}}'
    with pytest.raises(RequestRejected, match=r"^reference: only backends publish one") as rejection:
        to_broadcast(parse(body, PublishRequest), caller(), generated_id=GENERATED_ID)
    assert rejection.value.code is Code.BAD_REQUEST


def test_json_counts_with_the_length_that_it_has_on_the_queue() -> None:
    """SQS rejects U+FFFF, so it is escaped, and grows from three bytes to six."""
    for characters, fits in ((21_500, True), (21_600, False), (40_000, False)):
        request = PublishRequest("lobby", json=msgspec.Raw(('"' + "\uffff" * characters + '"').encode()))
        if fits:
            assert len(encode(to_broadcast(request, caller(), generated_id=GENERATED_ID))) > 6 * characters
            continue
        with pytest.raises(RequestRejected) as rejection:
            to_broadcast(request, caller(), generated_id=GENERATED_ID)
        assert rejection.value.code is Code.TOO_LARGE


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (caller("a/b"), caller("a")),
        (caller("a/b"), caller("a%2Fb")),
        (caller(CONNECTION_ID), caller()),
        (caller("u" * 90 + "1"), caller("u" * 90 + "2")),
        (caller("u" * 90), caller(publisher_key(caller("u" * 90)))),
    ],
)
def test_publishers_do_not_share_keys(one: Caller, other: Caller) -> None:
    assert publisher_key(one) != publisher_key(other)


@pytest.mark.parametrize("user", ["alice", "a/b%c", "zoë smith", "u" * 94, "/" * 94, "é" * 50])
def test_keys_leave_space_for_the_clients_id(user: str) -> None:
    key = publisher_key(caller(user))
    assert len(key) <= MAX_PUBLISHER_LENGTH
    assert "/" not in key
    assert to_broadcast(publish(id="x" * 39), caller(user), generated_id=GENERATED_ID).id == f"{key}/{'x' * 39}"


def test_keys_are_readable_if_possible() -> None:
    assert publisher_key(caller("auth0|a+b@example.com")) == "@auth0|a+b@example.com"
    assert publisher_key(caller("org/a%b")) == "@org%2Fa%25b"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (None, Code.BAD_REQUEST),
        ("hello", Code.BAD_REQUEST),
        ("[]", Code.BAD_REQUEST),
        ("{}", Code.BAD_REQUEST),
        (json.dumps({"action": 1}), Code.BAD_REQUEST),
        (json.dumps({"action": "dance"}), Code.UNKNOWN_ACTION),
        (json.dumps({"action": "Join", "room": "lobby"}), Code.UNKNOWN_ACTION),
    ],
)
def test_unknown_actions(body: str | None, code: Code) -> None:
    assert unknown_action(body).code is code
