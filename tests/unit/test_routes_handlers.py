"""What the handlers answer, whatever is sent and whatever fails behind them."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError

from gatecast import Broadcast, Publisher, decode
from routes import dependencies, handlers
from routes.answers import Code, Refused
from routes.requests import Caller
from tests.routes_events import CONNECTION_ID, LambdaContext, event

SECRET = "the-client's-own-text"


class FakeTable:
    """Memberships in memory; `failure`, if set, is what every call ends in."""

    def __init__(self) -> None:
        self.rooms: dict[str, set[str]] = {}
        self.failure: Exception | None = None

    def _of(self, connection_id: str) -> set[str]:
        if self.failure:
            raise self.failure
        return self.rooms.setdefault(connection_id, set())

    def connect(self, caller: Caller, rooms: list[str]) -> None:
        self._of(caller.connection_id).update(rooms)

    def join(self, caller: Caller, room: str) -> None:
        self._of(caller.connection_id).add(room)

    def leave(self, caller: Caller, room: str) -> None:
        self._of(caller.connection_id).discard(room)

    def is_member(self, caller: Caller, room: str) -> bool:
        return room in self._of(caller.connection_id)

    def disconnect(self, connection_id: str) -> None:
        self._of(connection_id)
        del self.rooms[connection_id]


class FakeQueue:
    def __init__(self) -> None:
        self.broadcasts: list[Broadcast] = []
        self.failure: Exception | None = None

    def send_message(self, **kwargs: Any) -> None:
        if self.failure:
            raise self.failure
        self.broadcasts.append(decode(kwargs["MessageBody"]))


@pytest.fixture
def memberships(monkeypatch: pytest.MonkeyPatch) -> FakeTable:
    fake = FakeTable()
    monkeypatch.setattr(dependencies, "memberships", lambda: fake)
    return fake


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> FakeQueue:
    fake = FakeQueue()
    monkeypatch.setattr(dependencies, "publisher", lambda: Publisher(fake, "https://queue"))
    return fake


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = handlers.logger.registered_handler
    assert isinstance(handler, logging.StreamHandler)
    usual = handler.setStream(stream)
    yield stream
    handler.setStream(usual)


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("GATECAST_TABLE", "GATECAST_QUEUE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    dependencies.reset()
    yield
    dependencies.reset()


def answer(handler: Callable[..., dict[str, Any]], body: object, **kwargs: Any) -> dict[str, Any]:
    text = body if body is None or isinstance(body, str) else json.dumps(body)
    result = handler(event(body=text, **kwargs), LambdaContext())
    assert set(result) == {"statusCode", "body"}
    assert result["statusCode"] == 200
    message: dict[str, Any] = json.loads(result["body"])
    assert message["type"] in {"ok", "error"}
    return message


def test_join_publish_leave(memberships: FakeTable, queue: FakeQueue) -> None:
    assert answer(handlers.join, {"action": "join", "room": "lobby"}) == {
        "type": "ok",
        "action": "join",
        "room": "lobby",
    }
    assert answer(handlers.publish, {"action": "publish", "room": "lobby", "data": "hi", "id": "1"}) == {
        "type": "ok",
        "action": "publish",
        "room": "lobby",
        "id": f"{CONNECTION_ID}/1",
    }
    assert [(broadcast.room, broadcast.data) for broadcast in queue.broadcasts] == [("lobby", "hi")]
    assert answer(handlers.leave, {"action": "leave", "room": "lobby"})["type"] == "ok"
    refused = answer(handlers.publish, {"action": "publish", "room": "lobby", "data": "hi"})
    assert (refused["action"], refused["code"]) == ("publish", "not_a_member")
    assert len(queue.broadcasts) == 1
    assert memberships.rooms == {CONNECTION_ID: set()}


def test_ids_made_up_differ(memberships: FakeTable, queue: FakeQueue) -> None:
    memberships.rooms[CONNECTION_ID] = {"lobby"}
    one, other = (answer(handlers.publish, {"room": "lobby", "data": "hi"})["id"] for _ in range(2))
    assert one != other
    assert [broadcast.id for broadcast in queue.broadcasts] == [one, other]


@pytest.mark.parametrize("handler", [handlers.join, handlers.leave, handlers.publish])
@pytest.mark.usefixtures("memberships", "queue")
def test_system_rooms_are_refused(handler: Callable[..., dict[str, Any]]) -> None:
    assert answer(handler, {"room": "@all", "data": "hi"})["code"] == "forbidden_room"


@pytest.mark.parametrize("handler", [handlers.join, handlers.leave, handlers.publish, handlers.default])
@pytest.mark.parametrize("body", [None, "", "{", "[]", '{"room":7}', "\ud800", '{"room":"\\ud800"}', "[" * 100_000])
@pytest.mark.usefixtures("memberships", "queue")
def test_text_that_is_no_request_gets_an_error(handler: Callable[..., dict[str, Any]], body: str | None) -> None:
    assert answer(handler, body)["code"] == "bad_request"


def test_default_tells_the_actions() -> None:
    assert answer(handlers.default, {"action": "dance"}) == {
        "type": "error",
        "code": "unknown_action",
        "message": "action: must be one of join, leave, publish",
    }


def test_connect_joins_all_and_the_user(memberships: FakeTable) -> None:
    opened = handlers.connect(event("$connect", authorizer={"principalId": "alice"}), LambdaContext())
    assert opened == {"statusCode": 200}
    assert memberships.rooms == {CONNECTION_ID: {"@all", "@user/alice"}}
    assert handlers.disconnect(event("$disconnect"), LambdaContext()) == {"statusCode": 200}
    assert memberships.rooms == {}


def test_connect_takes_the_first_subprotocol(memberships: FakeTable) -> None:
    headers = {"Sec-WebSocket-Protocol": "chat.v2, chat.v1"}
    opened = handlers.connect(event("$connect", headers=headers), LambdaContext())
    assert opened == {"statusCode": 200, "headers": {"Sec-WebSocket-Protocol": "chat.v2"}}
    assert memberships.rooms == {CONNECTION_ID: {"@all"}}


def test_a_user_that_fits_no_room_is_not_let_in(memberships: FakeTable, log: io.StringIO) -> None:
    refused = handlers.connect(event("$connect", authorizer={"user": "Zoë Smith"}), LambdaContext())
    assert refused == {"statusCode": 400}
    assert memberships.rooms == {}
    assert "user: must be 1 to 94 characters" in log.getvalue()


FAILURES = [
    ClientError({"Error": {"Code": "ThrottlingException", "Message": SECRET}}, "GetItem"),
    ConnectTimeoutError(endpoint_url=SECRET),
    Refused(Code.UNAVAILABLE, "busy: try again"),
    ValueError(SECRET),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("handler", [handlers.join, handlers.leave, handlers.publish])
def test_a_failing_table_is_unavailable_and_logged_without_what_was_sent(
    handler: Callable[..., dict[str, Any]],
    failure: Exception,
    memberships: FakeTable,
    queue: FakeQueue,
    log: io.StringIO,
) -> None:
    memberships.failure = failure
    assert answer(handler, {"room": "lobby", "data": SECRET})["code"] == "unavailable"
    assert queue.broadcasts == []
    logged = log.getvalue()
    line = json.loads(logged)
    assert (line["service"], line["message"], line["level"]) == ("gatecast-routes", "route.failed", "ERROR")
    assert line["error"] == type(failure).__name__
    assert line["function_request_id"] == LambdaContext.aws_request_id
    assert SECRET not in logged
    assert "lobby" not in logged


def test_a_failing_queue_is_unavailable(memberships: FakeTable, queue: FakeQueue, log: io.StringIO) -> None:
    memberships.rooms[CONNECTION_ID] = {"lobby"}
    queue.failure = ClientError({"Error": {"Code": "KmsThrottled", "Message": SECRET}}, "SendMessage")
    assert answer(handlers.publish, {"room": "lobby", "data": SECRET})["code"] == "unavailable"
    line = json.loads(log.getvalue())
    assert (line["code"], line["operation"]) == ("KmsThrottled", "SendMessage")


@pytest.mark.parametrize("handler", [handlers.connect, handlers.disconnect])
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_connection_that_cannot_be_written_down_is_turned_away(
    handler: Callable[..., dict[str, Any]],
    failure: Exception,
    memberships: FakeTable,
    log: io.StringIO,
) -> None:
    memberships.failure = failure
    assert handler(event("$connect"), LambdaContext()) == {"statusCode": 503}
    assert json.loads(log.getvalue())["error"] == type(failure).__name__


def test_events_are_not_logged_even_where_the_environment_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, memberships: FakeTable, log: io.StringIO
) -> None:
    monkeypatch.setenv("POWERTOOLS_LOGGER_LOG_EVENT", "true")
    handlers.connect(event("$connect", headers={"Authorization": SECRET}), LambdaContext())
    assert memberships.rooms
    assert log.getvalue() == ""


@pytest.mark.usefixtures("no_environment")
def test_a_missing_variable_is_named_in_the_log(monkeypatch: pytest.MonkeyPatch, log: io.StringIO) -> None:
    assert answer(handlers.join, {"room": "lobby"})["code"] == "unavailable"
    assert json.loads(log.getvalue())["reason"] == "GATECAST_TABLE is not set"
    members = FakeTable()
    members.rooms[CONNECTION_ID] = {"lobby"}
    monkeypatch.setattr(dependencies, "memberships", lambda: members)
    assert answer(handlers.publish, {"room": "lobby", "data": "hi"})["code"] == "unavailable"
    assert json.loads(log.getvalue().splitlines()[-1])["reason"] == "GATECAST_QUEUE_URL is not set"


@pytest.mark.usefixtures("no_environment")
def test_clients_are_made_once_and_only_for_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATECAST_TABLE", "gatecast")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    assert dependencies.memberships() is dependencies.memberships()
    with pytest.raises(dependencies.ConfigurationError, match="GATECAST_QUEUE_URL"):
        dependencies.publisher()
