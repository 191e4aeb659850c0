"""The handlers' responses to valid and invalid messages, and when a dependency fails."""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError

from routes import dependencies, handlers
from routes.environment import OPEN_ACCESS, ConfigurationError
from routes.responses import Code, RequestRejected
from tests.route_doubles import SECRET, Counter, Doubles, FakeQueue, FakeTable
from tests.routes_events import (
    CONNECTED_AT_MS,
    CONNECTION_ID,
    REQUESTED_AT_MS,
    LambdaContext,
    captured_log,
    event,
    token_context,
)

ABOUT_CONNECTION = {"connection": CONNECTION_ID, "expires_at_ms": CONNECTED_AT_MS + 7_200_000}


@pytest.fixture(autouse=True)
def doubles(monkeypatch: pytest.MonkeyPatch) -> Doubles:
    return Doubles().install(monkeypatch)


@pytest.fixture
def memberships(doubles: Doubles) -> FakeTable:
    return doubles.memberships


@pytest.fixture
def queue(doubles: Doubles) -> FakeQueue:
    return doubles.queue


@pytest.fixture
def counter(doubles: Doubles) -> Counter:
    return doubles.counter


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    with captured_log() as stream:
        yield stream


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.undo()  # the doubles
    monkeypatch.setenv("GATECAST_AUTHORIZER", OPEN_ACCESS)
    names = ("TABLE", "QUEUE_URL", "JOINS_PER_SECOND", "PUBLISHES_PER_SECOND")
    for name in names:
        monkeypatch.delenv(f"GATECAST_{name}", raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    dependencies.clear_caches()
    yield
    dependencies.clear_caches()


def invoke(handler: Callable[..., dict[str, Any]], body: object, **kwargs: Any) -> dict[str, Any]:
    text = body if body is None or isinstance(body, str) else json.dumps(body)
    result = handler(event(body=text, **kwargs), LambdaContext())
    assert set(result) == {"statusCode", "body"}
    assert result["statusCode"] == 200
    message: dict[str, Any] = json.loads(result["body"])
    assert message["type"] in {"ok", "error"}
    return message


def test_join_publish_leave(memberships: FakeTable, queue: FakeQueue) -> None:
    assert invoke(handlers.join, {"action": "join", "room": "lobby"}) == {
        "type": "ok",
        "action": "join",
        "room": "lobby",
        **ABOUT_CONNECTION,
    }
    assert invoke(handlers.publish, {"action": "publish", "room": "lobby", "data": "hi", "id": "1"}) == {
        "type": "ok",
        "action": "publish",
        "room": "lobby",
        "id": f"{CONNECTION_ID}/1",
    }
    assert [(broadcast.room, broadcast.data) for broadcast in queue.broadcasts] == [("lobby", "hi")]
    assert invoke(handlers.leave, {"action": "leave", "room": "lobby"})["type"] == "ok"
    rejection = invoke(handlers.publish, {"action": "publish", "room": "lobby", "data": "hi"})
    assert (rejection["action"], rejection["code"]) == ("publish", "not_a_member")
    assert len(queue.broadcasts) == 1
    assert memberships.rooms == {CONNECTION_ID: set()}


def test_generated_ids_are_unique(memberships: FakeTable, queue: FakeQueue) -> None:
    memberships.rooms[CONNECTION_ID] = {"lobby"}
    one, other = (invoke(handlers.publish, {"room": "lobby", "data": "hi"})["id"] for _ in range(2))
    assert one != other
    assert [broadcast.id for broadcast in queue.broadcasts] == [one, other]


@pytest.mark.parametrize("handler", [handlers.join, handlers.leave, handlers.publish])
@pytest.mark.usefixtures("memberships", "queue")
def test_system_rooms_are_rejected(handler: Callable[..., dict[str, Any]]) -> None:
    assert invoke(handler, {"room": "@all", "data": "hi"})["code"] == "forbidden_room"


@pytest.mark.parametrize("handler", [handlers.join, handlers.leave, handlers.publish, handlers.default])
@pytest.mark.parametrize("body", [None, "", "{", "[]", '{"room":7}', "\ud800", '{"room":"\\ud800"}', "[" * 100_000])
@pytest.mark.usefixtures("memberships", "queue")
def test_malformed_message_gets_an_error(handler: Callable[..., dict[str, Any]], body: str | None) -> None:
    assert invoke(handler, body)["code"] == "bad_request"


def test_default_route_lists_the_actions() -> None:
    assert invoke(handlers.default, {"action": "dance"}) == {
        "type": "error",
        "code": "unknown_action",
        "message": "action: must be one of join, leave, publish, history, members, count, ping",
    }


def test_connect_joins_all_and_the_user(memberships: FakeTable) -> None:
    opened = handlers.connect(event("$connect", authorizer={"user": "alice"}), LambdaContext())
    assert opened == {"statusCode": 200}
    assert memberships.rooms == {CONNECTION_ID: {"@all", "@user/alice"}}
    assert handlers.disconnect(event("$disconnect"), LambdaContext()) == {"statusCode": 200}
    assert memberships.rooms == {}


@pytest.mark.parametrize(
    ("offered", "headers"),
    [
        ("gatecast.v1, a.b.c", {"Sec-WebSocket-Protocol": "gatecast.v1"}),
        ("a.b.c, gatecast.v1", {"Sec-WebSocket-Protocol": "gatecast.v1"}),
        ("a.b.c", None),
        ("chat", None),
    ],
)
def test_connect_returns_only_the_supported_subprotocol(
    offered: str, headers: dict[str, str] | None, memberships: FakeTable
) -> None:
    opened = handlers.connect(event("$connect", headers={"Sec-WebSocket-Protocol": offered}), LambdaContext())
    assert opened == {"statusCode": 200, **({"headers": headers} if headers else {})}
    assert memberships.rooms == {CONNECTION_ID: {"@all"}}


def test_user_that_does_not_fit_in_a_room_name_is_rejected(memberships: FakeTable, log: io.StringIO) -> None:
    rejection = handlers.connect(event("$connect", authorizer={"user": "Zoë Smith"}), LambdaContext())
    assert rejection == {"statusCode": 400}
    assert memberships.rooms == {}
    assert "user: must be 1 to 94 characters" in log.getvalue()


FAILURES = [
    ClientError({"Error": {"Code": "ThrottlingException", "Message": SECRET}}, "GetItem"),
    ConnectTimeoutError(endpoint_url=SECRET),
    RequestRejected(Code.UNAVAILABLE, "busy: retry"),
    ValueError(SECRET),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("handler", [handlers.join, handlers.leave, handlers.publish])
def test_table_failure_is_unavailable_and_logged_without_client_data(
    handler: Callable[..., dict[str, Any]],
    failure: Exception,
    memberships: FakeTable,
    queue: FakeQueue,
    log: io.StringIO,
) -> None:
    memberships.failure = failure
    assert invoke(handler, {"room": "lobby", "data": SECRET})["code"] == "unavailable"
    assert queue.broadcasts == []
    logged = log.getvalue()
    line = json.loads(logged)
    assert (line["service"], line["message"], line["level"]) == ("gatecast-routes", "route.failed", "ERROR")
    assert line["error"] == type(failure).__name__
    assert line["function_request_id"] == LambdaContext.aws_request_id
    assert SECRET not in logged
    assert "lobby" not in logged


def test_queue_failure_is_unavailable(memberships: FakeTable, queue: FakeQueue, log: io.StringIO) -> None:
    memberships.rooms[CONNECTION_ID] = {"lobby"}
    queue.failure = ClientError({"Error": {"Code": "KmsThrottled", "Message": SECRET}}, "SendMessage")
    assert invoke(handlers.publish, {"room": "lobby", "data": SECRET})["code"] == "unavailable"
    line = json.loads(log.getvalue())
    assert (line["code"], line["operation"]) == ("KmsThrottled", "SendMessage")


@pytest.mark.parametrize("handler", [handlers.connect, handlers.disconnect])
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_connection_that_cannot_be_written_gets_503(
    handler: Callable[..., dict[str, Any]],
    failure: Exception,
    memberships: FakeTable,
    log: io.StringIO,
) -> None:
    memberships.failure = failure
    assert handler(event("$connect"), LambdaContext()) == {"statusCode": 503}
    assert json.loads(log.getvalue())["error"] == type(failure).__name__


def test_events_are_not_logged_even_if_the_environment_enables_it(
    monkeypatch: pytest.MonkeyPatch, memberships: FakeTable, log: io.StringIO
) -> None:
    monkeypatch.setenv("POWERTOOLS_LOGGER_LOG_EVENT", "true")
    handlers.connect(event("$connect", headers={"Authorization": SECRET}), LambdaContext())
    assert memberships.rooms
    assert log.getvalue() == ""


@pytest.mark.usefixtures("no_environment")
def test_a_missing_variable_is_named_in_the_log(monkeypatch: pytest.MonkeyPatch, log: io.StringIO) -> None:
    assert invoke(handlers.join, {"room": "lobby"})["code"] == "unavailable"
    assert json.loads(log.getvalue())["reason"] == "GATECAST_TABLE is not set"
    double = Doubles()
    double.memberships.rooms[CONNECTION_ID] = {"lobby"}
    monkeypatch.setattr(dependencies, "memberships", lambda: double.memberships)
    monkeypatch.setattr(dependencies, "limits", lambda: double.limits)
    assert invoke(handlers.publish, {"room": "lobby", "data": "hi"})["code"] == "unavailable"
    assert json.loads(log.getvalue().splitlines()[-1])["reason"] == "GATECAST_QUEUE_URL is not set"


@pytest.mark.usefixtures("no_environment")
def test_aws_clients_are_created_once_and_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATECAST_TABLE", "gatecast")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    assert dependencies.memberships() is dependencies.memberships()
    with pytest.raises(ConfigurationError, match="GATECAST_QUEUE_URL"):
        dependencies.publisher()


def test_token_allows_only_its_grants(memberships: FakeTable, queue: FakeQueue) -> None:
    token = token_context(join="lobby chat/*", publish="chat/* news")
    rooms = ["lobby", "chat/1", "chat/", "chat", "lobby2", "@all", "@user/bob"]
    codes = [invoke(handlers.join, {"room": room}, authorizer=token).get("code") for room in rooms]
    assert codes == [None, None, *["forbidden_room"] * 5]
    assert memberships.rooms == {CONNECTION_ID: {"lobby", "chat/1"}}
    rooms = ["chat/1", "lobby", "news", "@all"]
    codes = [invoke(handlers.publish, {"room": room, "data": "hi"}, authorizer=token).get("code") for room in rooms]
    assert codes == [None, "forbidden_room", "not_a_member", "forbidden_room"]
    assert [broadcast.room for broadcast in queue.broadcasts] == ["chat/1"]


@pytest.mark.usefixtures("memberships", "queue")
def test_token_without_grants_allows_no_room() -> None:
    for handler in (handlers.join, handlers.publish):
        rejection = invoke(handler, {"room": "lobby", "data": "hi"}, authorizer=token_context())
        assert rejection["code"] == "forbidden_room"
        assert rejection["message"].startswith("room: the token does not allow to ")


def test_client_with_expired_token_can_only_leave(memberships: FakeTable, queue: FakeQueue) -> None:
    now = REQUESTED_AT_MS // 1000 + 1
    memberships.rooms[CONNECTION_ID] = {"lobby"}

    def code(handler: Callable[..., dict[str, Any]], requested_at_ms: int) -> str | None:
        token = token_context(now, join="lobby", publish="lobby")
        body = {"room": "lobby", "data": "hi"}
        response = invoke(handler, body, authorizer=token, requested_at_ms=requested_at_ms)
        return response.get("code")

    assert [code(handler, now * 1000 - 1) for handler in (handlers.join, handlers.publish)] == [None, None]
    expired = [code(handler, now * 1000) for handler in (handlers.join, handlers.publish)]
    assert expired == ["token_expired", "token_expired"]
    assert len(queue.broadcasts) == 1
    assert code(handlers.leave, now * 1000) is None
    assert memberships.rooms == {CONNECTION_ID: set()}


@pytest.mark.usefixtures("log")
def test_token_that_expires_before_connect_is_rejected(memberships: FakeTable) -> None:
    late = event("$connect", authorizer=token_context(REQUESTED_AT_MS // 1000))
    assert handlers.connect(late, LambdaContext()) == {"statusCode": 401}
    assert memberships.rooms == {}


@pytest.mark.parametrize("value", [None, "required"])
@pytest.mark.parametrize("context", [None, {}, {"principalId": "alice"}, {"user": "alice", "join": "lobby"}])
def test_connections_without_required_authorizer_are_rejected(
    value: str | None,
    context: dict[str, Any] | None,
    memberships: FakeTable,
    queue: FakeQueue,
    log: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if value is None:
        monkeypatch.delenv("GATECAST_AUTHORIZER")
    else:
        monkeypatch.setenv("GATECAST_AUTHORIZER", value)
    memberships.rooms[CONNECTION_ID] = {"lobby"}
    assert handlers.connect(event("$connect", authorizer=context), LambdaContext()) == {"statusCode": 503}
    for handler in (handlers.join, handlers.publish, handlers.leave):
        assert invoke(handler, {"room": "lobby", "data": "hi"}, authorizer=context)["code"] == "unavailable"
    assert memberships.rooms == {CONNECTION_ID: {"lobby"}}
    assert queue.broadcasts == []
    assert "attach the authorizer to $connect" in log.getvalue()
    assert handlers.disconnect(event("$disconnect"), LambdaContext()) == {"statusCode": 200}


@pytest.mark.usefixtures("memberships")
@pytest.mark.parametrize("value", ["", "none", "open", "None, anyone may connect", "false"])
def test_only_the_exact_value_allows_everyone(value: str, log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATECAST_AUTHORIZER", value)
    assert handlers.connect(event("$connect"), LambdaContext()) == {"statusCode": 503}
    assert "expected 'required' or 'none, anyone may connect'" in json.loads(log.getvalue())["reason"]


@pytest.mark.parametrize("expires_at", ["soon", "1e9", True, [], "9" * 5_000])
def test_malformed_authorizer_context_grants_nothing(
    expires_at: object, memberships: FakeTable, queue: FakeQueue, log: io.StringIO
) -> None:
    context = {"user": "alice", "expiresAt": expires_at, "join": "lobby", "publish": "lobby"}
    assert handlers.connect(event("$connect", authorizer=context), LambdaContext()) == {"statusCode": 503}
    assert invoke(handlers.join, {"room": "lobby"}, authorizer=context)["code"] == "unavailable"
    assert memberships.rooms == {}
    assert queue.broadcasts == []
    reasons = [json.loads(line)["reason"] for line in log.getvalue().splitlines()]
    assert [reason.partition(":")[0] for reason in reasons] == ["expiresAt of the authorizer's context"] * 2


@pytest.mark.parametrize("handler", [handlers.join, handlers.publish])
def test_rate_limited_response_has_retry_after_seconds(
    handler: Callable[..., dict[str, Any]], memberships: FakeTable, queue: FakeQueue, counter: Counter
) -> None:
    memberships.rooms[CONNECTION_ID] = {"lobby"}
    counter.left = 1
    body = {"room": "lobby", "data": "hi"}
    assert invoke(handler, body)["type"] == "ok"
    assert invoke(handler, body) == {
        "type": "error",
        "action": handler.__name__,
        "code": "rate_limited",
        "message": "at most 100 in 10 s",
        "retry_after_seconds": 10 - REQUESTED_AT_MS // 1000 % 10,
    }
    assert len(queue.broadcasts) <= 1
    counter.left = 1
    assert invoke(handlers.leave, body)["type"] == "ok"


@pytest.mark.usefixtures("memberships")
def test_invalid_requests_are_not_counted(counter: Counter) -> None:
    before = counter.left
    for body in ("{", {"room": "@all"}, {"room": "two words"}):
        invoke(handlers.join, body)
    invoke(handlers.join, {"room": "lobby"}, authorizer=token_context())
    invoke(handlers.join, {"room": "lobby"}, authorizer=token_context(1, join="lobby"))
    assert counter.left == before


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize("value", ["", "-1", "1.5", "101", "ten", "9" * 20])
def test_invalid_limit_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATECAST_TABLE", "gatecast")
    monkeypatch.setenv("GATECAST_PUBLISHES_PER_SECOND", value)
    with pytest.raises(ConfigurationError, match=r"^GATECAST_PUBLISHES_PER_SECOND is .* from 0 to 100"):
        dependencies.limits()
