"""The HTTP API's functions: what each request publishes or returns, and every kind of bad request."""

import base64
import json
from typing import Any

import msgspec
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from gatecast import Broadcast
from gatecast.broadcast import MAX_DATA_BYTES
from gatecast.room_settings import RoomSettings
from gatecast.rooms.presence import Members, User
from routes.http import handlers
from routes.http.handlers import backend
from tests.http_doubles import HttpDoubles
from tests.http_events import IAM, REQUESTED_AT_MS, Result, call, http_event, token
from tests.openapi import check_response
from tests.routes_events import LambdaContext, captured_log, event, token_context

SECRET = "a-payload-nobody-may-log"
LARGE = json.dumps("x" * MAX_DATA_BYTES).encode()
EXPIRES_AT = REQUESTED_AT_MS // 1000 + 60
ALICE = token(token_context(EXPIRES_AT, join="lobby chat/*", publish="chat/* lobby"))


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> HttpDoubles:
    return HttpDoubles().install(monkeypatch)


def send(method: str, path: str, body: bytes = b"", **options: Any) -> Result:
    """As a backend; the response must be one that the description has."""
    authorizer = options.pop("authorizer", IAM)
    result = call(backend, http_event(method, path, body, authorizer=authorizer, **options))
    if result.status not in {404, 405}:
        check_response(method, path.partition("?")[0], result.status, result.headers, json.dumps(result.body).encode())
    return result


def client(method: str, path: str, body: bytes = b"", **options: Any) -> Result:
    """As alice."""
    authorizer = options.pop("authorizer", ALICE)
    result = call(handlers.client, http_event(method, f"/client{path}", body, authorizer=authorizer, **options))
    if result.status not in {404, 405}:
        path = f"/client{path.partition('?')[0]}"
        check_response(method, path, result.status, result.headers, json.dumps(result.body).encode())
    return result


def problem(result: Result) -> tuple[int, str, str]:
    assert result.headers["content-type"] == "application/problem+json"
    assert result.body["status"] == result.status >= 400
    return result.status, result.body["code"], result.body["detail"]


# Publishing


def test_the_body_is_published_to_the_room_with_the_key_as_its_id(doubles: HttpDoubles) -> None:
    result = send("POST", "/rooms/ticker/messages", b'{"price":  12.50}', idempotency_key="price-4711")
    assert (result.status, result.body) == (202, {"id": "price-4711"})
    (broadcast,) = doubles.queue.broadcasts
    assert (broadcast.id, broadcast.room) == ("price-4711", "ticker")
    assert bytes(broadcast.json or b"") == b'{"price":  12.50}'
    assert broadcast.from_ is msgspec.UNSET


@pytest.mark.parametrize("path", ["/rooms/chat/1/messages", "/rooms/@all/messages", "/rooms/a/messages/messages"])
def test_a_room_may_have_slashes_and_endings_of_paths(doubles: HttpDoubles, path: str) -> None:
    assert send("POST", path, b"1").status == 202
    (broadcast,) = doubles.queue.broadcasts
    assert f"/rooms/{broadcast.room}/messages" == path


def test_options_are_in_the_query(doubles: HttpDoubles) -> None:
    assert send("POST", "/users/ann/messages?from=shop&expires_in=1.5", b"hi", content_type="text/plain").status == 202
    (broadcast,) = doubles.queue.broadcasts
    assert (broadcast.room, broadcast.data, broadcast.from_) == ("@user/ann", "hi", "shop")
    assert broadcast.expires_at_ms == (broadcast.published_at_ms or 0) + 1_500


def test_without_a_key_each_request_is_another_message(doubles: HttpDoubles) -> None:
    ids = {send("POST", "/rooms/a/messages", b"1").body["id"] for _ in range(2)}
    assert ids == {each.id for each in doubles.queue.broadcasts}
    assert len(ids) == 2


def test_the_key_may_be_in_quotes(doubles: HttpDoubles) -> None:
    assert send("POST", "/rooms/a/messages", b"1", idempotency_key='"8e03978e"').body == {"id": "8e03978e"}
    assert [each.id for each in doubles.queue.broadcasts] == ["8e03978e"]


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("application/json", b" [1, 2]\n", {"json": msgspec.Raw(b"[1, 2]")}),
        ("application/json; charset=utf-8", b"null", {"json": msgspec.Raw(b"null")}),
        ("Application/Geo+JSON", b"{}", {"json": msgspec.Raw(b"{}")}),
        ("text/plain", "grüße\n".encode(), {"data": "grüße\n"}),
        ('text/csv; header=absent; charset="UTF-8"', b"a,b", {"data": "a,b"}),
    ],
)
def test_the_content_type_says_what_the_body_is(
    doubles: HttpDoubles, content_type: str, body: bytes, expected: dict[str, Any]
) -> None:
    assert send("POST", "/rooms/a/messages", body, content_type=content_type).status == 202
    (broadcast,) = doubles.queue.broadcasts
    assert {name: getattr(broadcast, name) for name in expected} == expected


def test_other_types_and_large_payloads_are_objects(doubles: HttpDoubles) -> None:
    assert send("POST", "/rooms/a/messages", b"\x89PNG", content_type="image/png").status == 202
    assert send("POST", "/rooms/a/messages", LARGE).status == 202
    stored = [doubles.bucket.objects[each.reference.key] for each in doubles.queue.broadcasts if each.reference]
    assert stored == [(b"\x89PNG", "image/png"), (LARGE, "application/json")]


def test_text_that_api_gateway_did_not_encode_arrives_as_it_is(doubles: HttpDoubles) -> None:
    plain = http_event("POST", "/rooms/a/messages", authorizer=IAM) | {"body": '"grüße"', "isBase64Encoded": False}
    assert call(backend, plain).status == 202
    assert [bytes(each.json or b"") for each in doubles.queue.broadcasts] == ['"grüße"'.encode()]


EVENT: dict[str, Any] = {"specversion": "1.0", "id": "order-7", "source": "/shop", "type": "order.shipped"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"data": {"a": 1}}, {"json": msgspec.Raw(b'{"a":1}')}),
        ({"data": None, "datacontenttype": None}, {"json": msgspec.Raw(b"null")}),
        ({"data": "text", "datacontenttype": "application/json"}, {"json": msgspec.Raw(b'"text"')}),
        ({"data": "<a/>", "datacontenttype": "text/xml"}, {"data": "<a/>"}),
        ({"data_base64": base64.b64encode(b"hi").decode(), "datacontenttype": "text/plain"}, {"data": "hi"}),
        ({"data_base64": base64.b64encode(b"[1]").decode()}, {"json": msgspec.Raw(b"[1]")}),
        ({"data": 1, "subject": "x", "extension": True}, {"json": msgspec.Raw(b"1")}),
    ],
)
def test_a_cloud_event_is_its_data_with_its_id(
    doubles: HttpDoubles, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    body = msgspec.json.encode({**EVENT, **fields})
    result = send("POST", "/rooms/a/messages", body, content_type="application/cloudevents+json; charset=utf-8")
    assert (result.status, result.body) == (202, {"id": "order-7"})
    (broadcast,) = doubles.queue.broadcasts
    assert {name: getattr(broadcast, name) for name in expected} == expected


def test_bytes_in_a_cloud_event_are_an_object(doubles: HttpDoubles) -> None:
    body = json.dumps({**EVENT, "data_base64": "iVBORw==", "datacontenttype": "image/png"}).encode()
    assert send("POST", "/rooms/a/messages", body, content_type="application/cloudevents+json").status == 202
    assert list(doubles.bucket.objects.values()) == [(b"\x89PNG", "image/png")]


@pytest.mark.parametrize(
    ("changed", "detail"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"id": ...}, "missing required field `id`"),
        ({"source": ""}, "source"),
        ({"type": 7}, "type"),
        ({"id": "a b"}, "id: must be 1 to 100 characters"),
        ({"data": ...}, "exactly one of `data` and `data_base64`"),
        ({"data_base64": "MQ=="}, "exactly one of `data` and `data_base64`"),
        ({"data": ..., "data_base64": "?"}, "data_base64: not valid Base64"),
        ({"data": ..., "data_base64": ""}, "must not be empty"),
        ({"data": {}, "datacontenttype": "text/plain"}, "must be a string"),
    ],
)
@pytest.mark.usefixtures("doubles")
def test_an_invalid_cloud_event_is_rejected(changed: dict[str, Any], detail: str) -> None:
    sent = {name: value for name, value in {**EVENT, "data": 1, **changed}.items() if value is not ...}
    kind = "application/cloudevents+json"
    status, code, message = problem(send("POST", "/rooms/a/messages", json.dumps(sent).encode(), content_type=kind))
    assert (status, code) == (400, "bad_request")
    assert detail in message


def test_a_cloud_event_s_id_and_another_key_contradict_each_other(doubles: HttpDoubles) -> None:
    body, kind = json.dumps({**EVENT, "data": 1}).encode(), "application/cloudevents+json"
    assert send("POST", "/rooms/a/messages", body, content_type=kind, idempotency_key="order-7").status == 202
    assert send("POST", "/rooms/a/messages", body, content_type=kind, idempotency_key="other").status == 400
    assert len(doubles.queue.broadcasts) == 1


@pytest.mark.parametrize(
    ("path", "body", "options", "expected"),
    [
        ("/rooms/a/messages", b"", {}, (400, "the body is empty")),
        ("/rooms/a/messages", b"{", {}, (400, "the payload is not valid JSON")),
        ("/rooms/a/messages", b"1 2", {}, (400, "the payload is not valid JSON")),
        ("/rooms/a/messages", b"\xff", {"content_type": "text/plain"}, (400, "not valid UTF-8")),
        ("/rooms/a/messages", b'"\xff"', {}, (400, "not valid JSON")),
        ("/rooms/a/messages", b"[" * 200 + b"]" * 200, {}, (400, "json: nested deeper than 128")),
        ("/rooms/a b/messages", b"1", {}, (400, "room: must be 1 to 100 characters")),
        (f"/rooms/{'x' * 101}/messages", b"1", {}, (400, "room: must be")),
        (f"/users/{'x' * 95}/messages", b"1", {}, (400, "user: must be 1 to 94")),
        ("/users/a b/messages", b"1", {}, (400, "user: must be")),
        ("/rooms/a/messages", b"1", {"idempotency_key": "a b"}, (400, "id: must be 1 to 100")),
        ("/rooms/a/messages", b"1", {"idempotency_key": ""}, (400, "id: must be 1 to 100")),
        ("/rooms/a/messages?from=a b", b"1", {}, (400, "from: must be 1 to 100")),
        ("/rooms/a/messages?expires_in=soon", b"1", {}, (400, "expires_in: must be a number")),
        ("/rooms/a/messages?expires_in=0", b"1", {}, (400, "expires_in: expected a number of seconds, above 0")),
        ("/rooms/a/messages?expires_in=99999999", b"1", {}, (400, "expires_in: expected a number of seconds, above 0")),
        *(
            (f"/rooms/a/messages?expires_in={each}", b"1", {}, (400, "expires_in: must be a number of seconds"))
            for each in ("-1", "nan", "inf", "1e3", "1_0", "%205", "5%20", "%D9%A3", "1.", "0x1")
        ),
        ("/rooms/a/messages?expire_in=1", b"1", {}, (400, "expected `from` and `expires_in`")),
        ("/rooms/a/messages", b"1", {"content_type": None}, (415, "Content-Type: must be given")),
        ("/rooms/a/messages", b"1", {"content_type": "json"}, (415, "Content-Type: must be given")),
        ("/rooms/a/messages", b"a=1", {"content_type": "application/x-www-form-urlencoded"}, (415, "is for forms")),
        ("/rooms/a/messages", b"1", {"content_type": "multipart/form-data; boundary=x"}, (415, "is for forms")),
        ("/rooms/a/messages", b"1", {"content_type": "text/plain; charset=latin1"}, (415, "charset must be utf-8")),
    ],
)  # fmt: skip
def test_a_bad_message_is_rejected_before_anything_is_sent(
    doubles: HttpDoubles, path: str, body: bytes, options: dict[str, Any], expected: tuple[int, str]
) -> None:
    status, code, detail = problem(send("POST", path, body, **options))
    assert (status, code) == (expected[0], "bad_request")
    assert expected[1] in detail
    assert not doubles.queue.messages
    assert not doubles.bucket.objects


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (LARGE, "application/json", (413, "too_large")),
        (b"x" * (MAX_DATA_BYTES + 1), "text/plain", (413, "too_large")),
        (b"x" * MAX_DATA_BYTES, "text/plain", (413, "too_large")),  # not with its frame
        (b"x", "image/png", (415, "bad_request")),
        (b"{", "application/json", (400, "bad_request")),
    ],
)
def test_without_a_bucket_there_are_no_large_payloads(
    monkeypatch: pytest.MonkeyPatch, body: bytes, content_type: str, expected: tuple[int, str]
) -> None:
    doubles = HttpDoubles().install(monkeypatch, with_bucket=False)
    assert problem(send("POST", "/rooms/a/messages", body, content_type=content_type))[:2] == expected
    assert not doubles.queue.messages
    assert send("POST", "/rooms/a/messages", b"x" * 131_000, content_type="text/plain").status == 413
    assert send("POST", "/rooms/a/messages", b"x" * 128_000, content_type="text/plain").status == 202


# Several broadcasts


def test_broadcasts_are_accepted_or_fail_one_by_one(doubles: HttpDoubles) -> None:
    broadcasts = [
        {"room": "a", "json": {"n": 1}, "id": "1", "from": "shop", "except": ["c="], "receipt": True, "key": "k"},
        {"user": "ann", "data": "hi", "expires_in": 60, "id": "2"},
        {"room": "a b", "data": "x", "id": "3"},
        {"connections": ["c=", "d="], "data": "x", "delay": 5, "id": "4"},
        {"room": "a", "user": "ann", "data": "x", "id": "5"},
        {"room": "a", "text": "x", "id": "6"},
        {"room": "a", "data": 7, "id": 7},
        8,
        {"room": "a", "data": "", "id": "9"},
    ]
    result = send("POST", "/broadcasts", json.dumps({"broadcasts": broadcasts}).encode())
    assert result.status == 202
    assert [(each["position"], each["id"]) for each in result.body["accepted"]] == [(0, "1"), (1, "2"), (3, "4")]
    failed = {each["position"]: each["message"] for each in result.body["failed"]}
    assert list(failed) == [2, 4, 5, 6, 7, 8]
    assert {each["code"] for each in result.body["failed"]} == {"bad_request"}
    for position, part in (
        (2, "room: must be"),
        (4, "exactly one of `room`"),
        (5, "unknown field `text`"),
        (6, "data"),
    ):
        assert part in failed[position]
    first, second, third = doubles.queue.broadcasts
    assert (first.from_, first.except_, first.receipt, first.key) == ("shop", ("c=",), True, "k")
    assert (second.room, third.connections) == ("@user/ann", ("c=", "d="))
    assert doubles.queue.messages[2]["DelaySeconds"] == 5


def test_the_ids_of_broadcasts_that_have_none_are_returned(doubles: HttpDoubles) -> None:
    result = send("POST", "/broadcasts", b'{"broadcasts": [{"room": "a", "data": "x"}, {"room": "a", "data": "y"}]}')
    assert [each["id"] for each in result.body["accepted"]] == [each.id for each in doubles.queue.broadcasts]


def test_if_no_broadcast_is_stored_it_is_an_error(doubles: HttpDoubles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatecast.publisher.publishers.time.sleep", lambda _: None)
    monkeypatch.setattr("routes.http.backend.RETRY_SECONDS", 0.0)
    result = send("POST", "/broadcasts", b'{"broadcasts": [{"room": "a", "data": "x", "id": 7}]}')
    assert problem(result)[:2] == (400, "bad_request")
    assert result.body["failed"][0]["position"] == 0
    doubles.queue.failure = ClientError(
        {"Error": {"Code": "ThrottlingException", "Message": SECRET}}, "SendMessageBatch"
    )
    with captured_log() as log:
        body = b'{"broadcasts": [{"room": "a b", "data": "x"}, {"room": "b", "data": "x"}]}'
        result = send("POST", "/broadcasts", body)
    assert problem(result)[:2] == (503, "unavailable")
    assert '"codes":["ThrottlingException"]' in log.getvalue()
    assert SECRET not in log.getvalue()
    assert [(each["position"], each["code"]) for each in result.body["failed"]] == [
        (0, "bad_request"),
        (1, "unavailable"),
    ]
    assert SECRET not in json.dumps(result.body)
    assert result.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b"", "application/json", (400, "not valid JSON")),
        (b"[]", "application/json", (400, "Expected `object`")),
        (b'{"broadcasts": []}', "application/json", (400, "broadcasts: expected at least 1 element")),
        (b'{"broadcasts": [' + b"1," * 100 + b"1]}", "application/json", (400, "expected at most 100 elements")),
        (b'{"messages": []}', "application/json", (400, "unknown field")),
        (b'{"broadcasts": [1]}', "text/plain", (415, "must be application/json")),
    ],
)
@pytest.mark.usefixtures("doubles")
def test_a_bad_list_of_broadcasts_is_rejected(body: bytes, content_type: str, expected: tuple[int, str]) -> None:
    status, code, detail = problem(send("POST", "/broadcasts", body, content_type=content_type))
    assert (status, code) == (expected[0], "bad_request")
    assert expected[1] in detail


def test_without_a_bucket_a_large_broadcast_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    HttpDoubles().install(monkeypatch, with_bucket=False)
    body = b'{"broadcasts": [{"room": "a", "json": ' + LARGE + b'}, {"room": "a", "data": "x"}]}'
    result = send("POST", "/broadcasts", body)
    assert [(each["position"], each["code"]) for each in result.body["failed"]] == [(0, "too_large")]
    assert [each["position"] for each in result.body["accepted"]] == [1]


# Disconnecting


def test_a_user_is_disconnected(doubles: HttpDoubles) -> None:
    result = send("POST", "/users/ann/disconnect", b'{"code": "moved", "retry": true}', idempotency_key="kick-1")
    assert (result.status, result.body) == (202, {"id": "kick-1"})
    (kick,) = doubles.queue.broadcasts
    assert kick.close
    assert (kick.id, kick.room, kick.close.code, kick.close.retry) == ("kick-1", "@user/ann", "moved", True)
    assert not doubles.revoked


def test_a_user_who_is_disconnected_for_a_time_is_revoked_before(doubles: HttpDoubles) -> None:
    doubles.queue.failure = EndpointConnectionError(endpoint_url="https://queue")
    assert send("POST", "/users/ann/disconnect", b'{"code": "banned", "for_seconds": 3600}').status == 503
    assert doubles.revoked == {"ann": REQUESTED_AT_MS // 1000 + 3_600}
    doubles.queue.failure = None
    assert send("POST", "/users/ann/disconnect", b'{"code": "banned", "for_seconds": 3600}').status == 202
    assert len(doubles.queue.broadcasts) == 2, "again, for those who are connecting"


def test_on_a_fifo_queue_the_caller_repeats_the_kick(monkeypatch: pytest.MonkeyPatch) -> None:
    doubles = HttpDoubles().install(monkeypatch, queue_url="https://queue.fifo")
    result = send("POST", "/users/ann/disconnect", b'{"code": "banned", "for_seconds": 60}')
    assert result.body["repeat_after_seconds"] == 30
    assert len(doubles.queue.broadcasts) == 1


@pytest.mark.parametrize(
    ("path", "body", "options", "expected"),
    [
        ("/users/ann/disconnect", b"{}", {}, (400, "missing required field `code`")),
        ("/users/ann/disconnect", b'{"code": "a b"}', {}, (400, "code: must be 1 to 100")),
        ("/users/ann/disconnect", b'{"code": "a", "retry": 1}', {}, (400, "retry: ")),
        ("/users/ann/disconnect", b'{"code": "a", "for_seconds": -1}', {}, (400, "for_seconds: ")),
        ("/users/ann/disconnect", b'{"code": "a", "for": 1}', {}, (400, "unknown field `for`")),
        ("/users/a b/disconnect", b'{"code": "a"}', {}, (400, "user: must be")),
        ("/users/ann/disconnect", b'{"code": "a"}', {"idempotency_key": "a b"}, (400, "Idempotency-Key: must be")),
        ("/users/ann/disconnect", b'{"code": "a"}', {"content_type": "text/plain"}, (415, "must be application/json")),
    ],
)
def test_a_bad_request_disconnects_nobody(
    doubles: HttpDoubles, path: str, body: bytes, options: dict[str, Any], expected: tuple[int, str]
) -> None:
    status, code, detail = problem(send("POST", path, body, **options))
    assert (status, code) == (expected[0], "bad_request")
    assert expected[1] in detail
    assert not doubles.queue.messages
    assert not doubles.revoked


# Reading


def test_a_room_s_members_are_counted(doubles: HttpDoubles) -> None:
    del doubles
    assert send("GET", "/rooms/chat/1").body == {"room": "chat/1", "members": 7, "counted_at_ms": 1_700_000_000_000}


def test_a_room_s_history_is_read_page_by_page(doubles: HttpDoubles) -> None:
    doubles.routes.with_history("lobby")
    first, *_ = [doubles.routes.stream.append("lobby") for _ in range(3)]
    page = send("GET", f"/rooms/lobby/messages?since={first - 1}&limit=2").body
    assert (page["recovered"], page["more"], len(page["messages"])) == (True, True, 2)
    rest = send("GET", f"/rooms/lobby/messages?since={page['offset']}").body
    assert (rest["recovered"], rest["more"], len(rest["messages"])) == (True, False, 1)
    latest = send("GET", "/rooms/lobby/messages?limit=2").body
    assert (latest["recovered"], latest["messages"]) == (False, [page["messages"][1], *rest["messages"]])


def test_the_users_in_a_room_are_listed(doubles: HttpDoubles) -> None:
    doubles.routes.settings["lobby"] = RoomSettings(presence=100)
    doubles.routes.presence.pages["lobby", "ann"] = Members([User("bob", 2)], "bob", 1_700_000_000_000)
    result = send("GET", "/rooms/lobby/members?after=ann")
    assert result.body == {
        "room": "lobby",
        "users": [{"user": "bob", "connections": 2}],
        "after": "bob",
        "at_ms": 1_700_000_000_000,
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/rooms/a b", "room: must be"),
        ("/rooms/lobby?since=1", "unknown query parameter: expected none"),
        ("/rooms/lobby/messages", "room: it has no history"),
        ("/rooms/lobby/messages?since=-1", "since: must be a whole number"),
        ("/rooms/lobby/messages?since=1,2", "since: must be a whole number"),
        ("/rooms/lobby/messages?since=1&limit=0", "limit: must be a whole number from 1 to 1000"),
        ("/rooms/lobby/messages?limit=1001", "limit: must be"),
        ("/rooms/lobby/messages?from=1", "expected `since` and `limit`"),
        ("/rooms/lobby/members", "room: its members cannot be listed"),
        ("/rooms/@all/members", "room: its members cannot be listed"),
        ("/rooms/lobby/members?since=1", "expected `after`"),
    ],
)
@pytest.mark.usefixtures("doubles")
def test_a_bad_reading_is_rejected(path: str, expected: str) -> None:
    status, code, detail = problem(send("GET", path))
    assert (status, code) == (400, "bad_request")
    assert expected in detail


# Paths


@pytest.mark.parametrize("path", ["/", "/rooms", "/rooms/", "/users/ann", "/nothing", "/client/rooms/a", "//rooms/a"])
@pytest.mark.usefixtures("doubles")
def test_an_unknown_path_is_404(path: str) -> None:
    assert problem(send("GET", path))[:2] == (404, "unknown_action")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/rooms/a/messages", "GET, POST"),
        ("POST", "/rooms/a", "GET"),
        ("POST", "/rooms/a/members", "GET"),
        ("GET", "/users/a/messages", "POST"),
        ("GET", "/users/a/disconnect", "POST"),
        ("GET", "/broadcasts", "POST"),
        ("HEAD", "/rooms/a", "GET"),
    ],
)
@pytest.mark.usefixtures("doubles")
def test_a_wrong_method_is_405_and_names_the_right_ones(method: str, path: str, allowed: str) -> None:
    result = send(method, path)
    assert problem(result)[:2] == (405, "unknown_action")
    assert result.headers["allow"] == allowed


# Who may call


@pytest.mark.parametrize(
    "authorizer", [None, {}, {"iam": None}, {"iam": "yes"}, ALICE, {"jwt": {"claims": {}}}, {"lambda": {"iam": {}}}]
)
def test_a_backend_that_iam_has_not_authorized_is_rejected(
    doubles: HttpDoubles, authorizer: dict[str, Any] | None
) -> None:
    with captured_log() as log:
        result = send("POST", "/rooms/a/messages", b"1", authorizer=authorizer)
    assert problem(result)[:2] == (503, "unavailable")
    assert "set AWS_IAM on the API's route" in log.getvalue()
    assert not doubles.queue.messages


@pytest.mark.parametrize(
    "authorizer",
    [
        None,
        {},
        IAM,
        {"lambda": None},
        token({}),
        token({"user": "alice"}),
        token({"user": "alice", "publish": "lobby"}),
        token({"publish": "lobby", "expiresAt": str(EXPIRES_AT)}),
        token({"user": "alice", "publish": "lobby", "expiresAt": "soon"}),
    ],
)
def test_a_client_that_no_authorizer_has_admitted_is_rejected(
    doubles: HttpDoubles, authorizer: dict[str, Any] | None
) -> None:
    assert problem(client("POST", "/rooms/lobby/messages", b"1", authorizer=authorizer))[:2] == (503, "unavailable")
    assert not doubles.queue.messages


def test_a_websocket_s_event_is_no_request(doubles: HttpDoubles) -> None:
    del doubles
    for handler in (backend, handlers.client):
        assert (
            call(handler, event("publish", '{"room": "lobby", "data": "x"}', authorizer=token_context())).status == 503
        )


def test_a_client_publishes_as_its_user(doubles: HttpDoubles) -> None:
    result = client("POST", "/rooms/chat/1/messages", b'{"a":  1}', idempotency_key="7")
    assert (result.status, result.body) == (202, {"id": "@alice/7"})
    assert doubles.queue.broadcasts == [
        Broadcast(
            id="@alice/7",
            room="chat/1",
            json=msgspec.Raw(b'{"a":  1}'),
            from_="alice",
            published_at_ms=REQUESTED_AT_MS,
        )
    ]
    assert doubles.routes.counter.counted == ["publish"]


def test_a_client_reads_what_it_may_join_and_rooms_of_its_own(doubles: HttpDoubles) -> None:
    assert [client("GET", f"/rooms/{room}").status for room in ("lobby", "chat/1", "@all", "@user/alice")] == [200] * 4
    assert doubles.routes.counter.counted == ["read"] * 4


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/rooms/other/messages"),
        ("POST", "/rooms/@all/messages"),
        ("POST", "/rooms/@user/alice/messages"),
        ("POST", "/rooms/chat/*/messages"),
        ("GET", "/rooms/other"),
        ("GET", "/rooms/other/messages"),
        ("GET", "/rooms/other/members"),
        ("GET", "/rooms/@user/bob"),
        ("GET", "/rooms/@user/bob/messages"),
    ],
)
def test_a_client_may_do_nothing_that_is_not_granted(doubles: HttpDoubles, method: str, path: str) -> None:
    assert problem(client(method, path, b"1"))[:2] == (403, "forbidden_room")
    assert not doubles.queue.messages
    assert not doubles.routes.counter.counted


def test_each_grant_is_for_one_thing(doubles: HttpDoubles) -> None:
    only = {name: token(token_context(EXPIRES_AT, **{name: "lobby"})) for name in ("join", "publish")}
    assert client("POST", "/rooms/lobby/messages", b"1", authorizer=only["join"]).status == 403
    assert client("GET", "/rooms/lobby", authorizer=only["publish"]).status == 403
    assert client("POST", "/rooms/lobby/messages", b"1", authorizer=only["publish"]).status == 202
    assert client("GET", "/rooms/lobby", authorizer=only["join"]).status == 200
    assert len(doubles.queue.broadcasts) == 1


@pytest.mark.parametrize(("method", "path"), [("POST", "/rooms/lobby/messages"), ("GET", "/rooms/@all")])
def test_an_expired_token_allows_nothing(doubles: HttpDoubles, method: str, path: str) -> None:
    expired = token(token_context(REQUESTED_AT_MS // 1000, join="lobby", publish="lobby"))
    result = client(method, path, b"1", authorizer=expired)
    assert problem(result)[:2] == (401, "token_expired")
    assert result.headers["www-authenticate"] == "Bearer"
    assert not doubles.queue.messages


@pytest.mark.parametrize(
    "path", ["/users/bob/messages", "/users/alice/disconnect", "/broadcasts", "/../rooms/lobby/messages"]
)
def test_there_is_nothing_else_for_clients(doubles: HttpDoubles, path: str) -> None:
    assert problem(client("POST", path, b"1"))[:2] == (404, "unknown_action")
    assert not doubles.queue.messages


@pytest.mark.parametrize(
    ("path", "body", "options", "expected"),
    [
        ("/rooms/lobby/messages", b"x", {"content_type": "image/png"}, (415, "bad_request")),
        ("/rooms/lobby/messages", LARGE, {}, (413, "too_large")),
        ("/rooms/lobby/messages", b"{", {}, (400, "bad_request")),
        ("/rooms/lobby/messages?from=bob", b"1", {}, (400, "bad_request")),
        ("/rooms/lobby/messages", b"1", {"idempotency_key": "x" * 100}, (400, "bad_request")),
        ("/rooms/lobby/messages", b"1", {"idempotency_key": ""}, (400, "bad_request")),
    ],
)
def test_a_bad_message_of_a_client_is_rejected(
    doubles: HttpDoubles, path: str, body: bytes, options: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert problem(client("POST", path, body, **options))[:2] == expected
    assert not doubles.queue.messages


def test_a_user_s_requests_are_limited(doubles: HttpDoubles) -> None:
    doubles.routes.counter.left = 1
    assert client("POST", "/rooms/lobby/messages", b"1").status == 202
    result = client("POST", "/rooms/lobby/messages", b"1")
    assert problem(result)[:2] == (429, "rate_limited")
    assert 1 <= int(result.headers["retry-after"]) == result.body["retry_after_seconds"] <= 10
    assert len(doubles.queue.broadcasts) == 1


# Failures


def test_a_failing_queue_is_503_and_nothing_that_was_sent_is_logged(doubles: HttpDoubles) -> None:
    doubles.queue.failure = ClientError({"Error": {"Code": "AccessDenied", "Message": SECRET}}, "SendMessage")
    with captured_log() as log:
        result = send("POST", f"/rooms/{SECRET}/messages", json.dumps(SECRET).encode(), idempotency_key=SECRET)
    assert problem(result) == (503, "unavailable", "temporarily unavailable: retry")
    assert result.headers["retry-after"] == "1"
    assert '"code":"AccessDenied"' in log.getvalue()
    assert '"where":"backend.py' in log.getvalue()
    assert SECRET not in log.getvalue()


def test_a_table_that_is_busy_is_503(doubles: HttpDoubles, monkeypatch: pytest.MonkeyPatch) -> None:
    del doubles

    def fail(_room: str) -> None:
        raise EndpointConnectionError(endpoint_url="https://table")

    monkeypatch.setattr("routes.reading.count_of", fail)
    assert problem(send("GET", "/rooms/lobby"))[:2] == (503, "unavailable")


def test_responses_are_not_cached(doubles: HttpDoubles) -> None:
    del doubles
    for result in (send("GET", "/rooms/lobby"), send("GET", "/rooms/a b")):
        assert result.headers["cache-control"] == "no-store"


def test_other_events_are_ignored() -> None:
    assert backend({"source": "aws.events"}, LambdaContext()) == {"statusCode": 200}
