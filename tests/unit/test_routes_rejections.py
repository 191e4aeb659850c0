"""How rejected requests are counted, in memory and in the table, and when a connection is closed."""

import io
import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError

from routes import dependencies, handlers
from routes.environment import OPEN_ACCESS
from routes.rejections import MAX_REJECTED, MAX_REMEMBERED, STEP, Rejections
from routes.requests import Caller
from tests.routes_events import CONNECTION_ID, LambdaContext, captured_log, event

START = 1_700_000_000  # a window begins


class Counters:
    """DynamoDB with the one update that `Rejections` needs, shared by all of Lambda's environments."""

    def __init__(self) -> None:
        self.used: dict[tuple[str, str], int] = {}
        self.updates = 0
        self.failure: Exception | None = None

    def update_item(self, **update: Any) -> Any:
        self.updates += 1
        if self.failure:
            raise self.failure
        assert update["UpdateExpression"] == "SET expires_at = :expires_at ADD used :step"
        values = {name: int(value["N"]) for name, value in update["ExpressionAttributeValues"].items()}
        key = (update["Key"]["pk"]["S"], update["Key"]["sk"]["S"])
        assert values[":expires_at"] >= int(key[1].partition("#")[2]) + 10
        self.used[key] = self.used.get(key, 0) + values[":step"]
        return {"Attributes": {"used": {"N": str(self.used[key])}}}


def environment(counters: Counters, closed: list[str], starts: Callable[[int], int] = lambda _below: 0) -> Rejections:
    return Rejections(counters, "gatecast", closed.append, starts)


def caller(connection_id: str = CONNECTION_ID, at: float = START) -> Caller:
    return Caller(connection_id=connection_id, connected_at_ms=0, requested_at_ms=int(at * 1000))


def test_a_connection_is_closed_at_the_limit_once() -> None:
    counters, closed = Counters(), list[str]()
    rejections = environment(counters, closed)
    for _ in range(MAX_REJECTED - 1):
        rejections.count(caller())
    assert not closed
    for _ in range(MAX_REJECTED):
        rejections.count(caller())
    assert closed == [CONNECTION_ID]
    assert counters.updates == MAX_REJECTED // STEP, "what is closed costs nothing any more"


@pytest.mark.parametrize("environments", [1, 5, 50, 500])
def test_environments_add_up_in_the_table(environments: int) -> None:
    """Also if each of them sees one request only: counting begins at a random point of the step."""
    counters, closed = Counters(), list[str]()
    rng = random.Random(1)
    many = [environment(counters, closed, rng.randrange) for _ in range(environments)]
    closed_at = 0
    while not closed:
        many[closed_at % environments].count(caller())
        closed_at += 1
    assert MAX_REJECTED / 2 < closed_at < MAX_REJECTED * 2


def test_many_connections_in_turn_do_not_empty_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them is remembered until its next request, and yet all are closed."""
    monkeypatch.setattr("routes.rejections.MAX_REMEMBERED", 10)
    closed = list[str]()
    rejections = environment(Counters(), closed, random.Random(1).randrange)
    for number in range(20 * MAX_REJECTED * 3):
        rejections.count(caller(f"c{number % 20}"))
    assert set(closed) == {f"c{number}" for number in range(20)}


def test_other_windows_and_connections_are_counted_apart() -> None:
    closed = list[str]()
    rejections = environment(Counters(), closed)
    for number in range(MAX_REJECTED * 3):
        rejections.count(caller(f"c{number % 5}", at=START + number // MAX_REJECTED * 10))
    assert not closed


def test_few_rejected_requests_write_nothing() -> None:
    counters = Counters()
    rejections = environment(counters, [])
    for _ in range(STEP - 1):
        rejections.count(caller())
    assert not counters.updates


@pytest.mark.parametrize(
    "failure",
    [
        ClientError({"Error": {"Code": "ThrottlingException", "Message": "secret"}}, "UpdateItem"),
        ConnectTimeoutError(endpoint_url="https://secret"),
    ],
)
def test_without_the_table_memory_alone_decides(failure: Exception) -> None:
    counters, closed = Counters(), list[str]()
    counters.failure = failure
    rejections = environment(counters, closed)
    with captured_log() as log:
        for _ in range(MAX_REJECTED):
            rejections.count(caller())
    assert closed == [CONNECTION_ID]
    assert "secret" not in log.getvalue()


@pytest.mark.parametrize(("code", "lines"), [("ForbiddenException", 1), ("GoneException", 0)])
def test_a_connection_that_cannot_be_closed_does_no_harm(code: str, lines: int) -> None:
    def fail(_connection_id: str) -> None:
        raise ClientError({"Error": {"Code": code, "Message": "secret"}}, "DeleteConnection")

    rejections = Rejections(Counters(), "gatecast", fail, lambda _below: 0)
    with captured_log() as log:
        for _ in range(3 * MAX_REJECTED):
            rejections.count(caller())
    logged = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["message"], line["code"]) for line in logged] == [("connection.not_closed", code)] * lines


def test_memory_is_bounded_and_keeps_the_latest() -> None:
    rejections = environment(Counters(), [])
    for number in range(MAX_REMEMBERED + 100):
        rejections.count(caller(f"c{number}"))
    assert len(rejections._counted) == MAX_REMEMBERED
    assert "c0" not in rejections._counted
    assert f"c{MAX_REMEMBERED + 99}" in rejections._counted


def test_threads_lose_no_count() -> None:
    counters, closed = Counters(), list[str]()
    rejections = environment(counters, closed)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: rejections.count(caller()), range(MAX_REJECTED)))
    assert closed == [CONNECTION_ID]


# In the handlers


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("GATECAST_AUTHORIZER", OPEN_ACCESS)
    found: list[str] = []

    class Recording:
        def count(self, caller: Caller) -> None:
            found.append(caller.connection_id)

    monkeypatch.setattr(dependencies, "rejections", Recording)
    return found


@pytest.mark.parametrize(
    ("handler", "body"),
    [
        (handlers.default, "hello"),
        (handlers.default, json.dumps({"action": "dance"})),
        (handlers.join, "{"),
        (handlers.join, json.dumps({"action": "join", "room": "@all"})),
        (handlers.join, json.dumps({"action": "join", "room": "a/*"})),
        (handlers.leave, json.dumps({"action": "leave"})),
        (handlers.publish, json.dumps({"action": "publish", "room": "a", "data": ""})),
        (handlers.join, json.dumps({"action": "join", "rooms": []})),
        (handlers.history, json.dumps({"action": "history", "room": "a"})),
        (handlers.members, json.dumps({"action": "members", "room": "@user/bob"})),
        (handlers.count, json.dumps({"action": "count", "room": 7})),
        (handlers.ping, json.dumps({"action": "ping", "ref": {}})),
    ],
)
def test_every_rejected_request_is_counted(
    handler: Callable[..., dict[str, Any]], body: str, counted: list[str]
) -> None:
    assert json.loads(handler(event(body=body), LambdaContext())["body"])["type"] == "error"
    assert counted == [CONNECTION_ID]


def test_failures_of_ours_are_not_counted(counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATECAST_TABLE", raising=False)
    dependencies.clear_caches()
    with captured_log():
        response = handlers.join(event(body=json.dumps({"action": "join", "room": "lobby"})), LambdaContext())
    assert '"code":"unavailable"' in response["body"]
    assert not counted


def test_the_client_gets_its_response_even_if_counting_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATECAST_AUTHORIZER", OPEN_ACCESS)

    def fail() -> Rejections:
        raise ValueError("secret")

    monkeypatch.setattr(dependencies, "rejections", fail)
    with captured_log() as log:
        response = handlers.default(event(body="hello"), LambdaContext())
    assert '"code":"bad_request"' in response["body"]
    assert "rejection.not_counted" in log.getvalue()
    assert "secret" not in log.getvalue()
    capsys.readouterr()


def test_without_the_api_s_address_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATECAST_CONNECTIONS_ENDPOINT", raising=False)
    dependencies.clear_caches()
    with captured_log() as log:
        assert dependencies.rejections() is None
        assert dependencies.rejections() is None
    assert len(log.getvalue().splitlines()) == 1


@pytest.mark.parametrize(
    "url",
    [
        "abc.execute-api.eu-west-1.amazonaws.com/live",
        "wss://abc.execute-api.eu-west-1.amazonaws.com/live",
        "http://abc.execute-api.eu-west-1.amazonaws.com/live",
        "https://secret@example.com/live",
        "https:///live",
        "https://example.com:port/live",
        "https://exam ple.com/live",
    ],
)
def test_an_invalid_address_of_the_api_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be signed for nowhere or, with http, show the session token."""
    monkeypatch.setenv("GATECAST_AUTHORIZER", OPEN_ACCESS)
    monkeypatch.setenv("GATECAST_CONNECTIONS_ENDPOINT", url)
    dependencies.clear_caches()
    with captured_log() as log:
        response = handlers.default(event(body="hello"), LambdaContext())
    assert '"code":"bad_request"' in response["body"]
    (line,) = log.getvalue().splitlines()
    assert json.loads(line)["message"] == "rejection.not_counted"
    assert json.loads(line)["reason"].startswith("GATECAST_CONNECTIONS_ENDPOINT ")
    assert "secret" not in line


# Events that are not a client's message


@pytest.mark.parametrize("handler", [handlers.connect, handlers.disconnect, handlers.default, handlers.join])
@pytest.mark.parametrize("other", [{}, {"source": "aws.events", "detail-type": "Scheduled Event"}, {"warmer": True}])
def test_other_events_are_ignored(handler: Callable[..., dict[str, Any]], other: dict[str, Any]) -> None:
    with captured_log() as log:
        assert handler(other, LambdaContext()) == {"statusCode": 200}
    (line,) = io.StringIO(log.getvalue())
    assert json.loads(line)["message"] == "event.ignored"


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"body": {"action": "dance"}}, "unknown_action"),
        ({"body": "eyJhY3Rpb24iOiJkYW5jZSJ9", "isBase64Encoded": True}, "unknown_action"),
        ({"body": "no Base64!", "isBase64Encoded": True}, "bad_request"),
        ({"body": "/w==", "isBase64Encoded": True}, "bad_request"),
        ({"body": [1]}, "bad_request"),
        ({"body": 7}, "bad_request"),
        ({"body": None}, "bad_request"),
    ],
)
def test_bodies_in_other_forms_are_read(changes: dict[str, Any], code: str) -> None:
    response = handlers.default({**event(), **changes}, LambdaContext())
    assert json.loads(response["body"])["code"] == code
