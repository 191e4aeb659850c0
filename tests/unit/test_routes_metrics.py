"""The metrics in the routes' log: counts by route, and nothing that clients send."""

import json
from typing import Any

import msgspec
import pytest

from gatecast import Publisher
from routes import authorizer, dependencies, environment, handlers
from routes.environment import OPEN_ACCESS
from routes.history import Recovery
from routes.metrics import record_recoveries
from routes.responses import Code, RequestRejected
from tests.route_doubles import FakeSettings
from tests.routes_events import CONNECTION_ID, LambdaContext, event
from tests.scripted_dynamodb import Scripted

SECRET = "the-clients-own-text"


class Table:
    """Memberships and limits that succeed, or raise `failure`."""

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def __getattr__(self, _: str) -> Any:
        def call(*_arguments: Any) -> bool:
            if self.failure:
                raise self.failure
            return True

        return call

    def join(self, *_arguments: Any) -> dict[str, RequestRejected]:
        if self.failure:
            raise self.failure
        return {}

    def send_message(self, **_: Any) -> None: ...


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setenv("GATECAST_AUTHORIZER", OPEN_ACCESS)
    monkeypatch.delenv("POWERTOOLS_METRICS_DISABLED", raising=False)
    table = Table()
    for name in ("memberships", "limits"):
        monkeypatch.setattr(dependencies, name, lambda: table)
    monkeypatch.setattr(dependencies, "settings", FakeSettings)
    monkeypatch.setattr(dependencies, "publisher", lambda: Publisher(table, "https://queue"))
    return table


def invoke(capsys: pytest.CaptureFixture[str], handler: Any, **arguments: Any) -> dict[str, Any]:
    """The metrics of one invocation, with their dimensions."""
    capsys.readouterr()
    handler(event(**arguments), LambdaContext())
    printed = capsys.readouterr().out
    assert SECRET not in printed
    assert CONNECTION_ID not in printed
    [line] = [json.loads(line) for line in printed.splitlines() if "_aws" in line]
    [directive] = line["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "Gatecast"
    assert [sorted(dimensions) for dimensions in directive["Dimensions"]] == [["route", "service"]]
    metrics = {metric["Name"]: line[metric["Name"]] for metric in directive["Metrics"]}
    found = {name: value[0] if isinstance(value, list) else value for name, value in metrics.items()}
    assert found.pop("Latency") >= 0
    return {"route": line["route"], **found}


def test_successful_requests_are_counted(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    del table
    publish = json.dumps({"action": "publish", "room": "lobby", "data": SECRET})
    join = json.dumps({"action": "join", "room": SECRET})
    fine = {"Rejected": 0, "Errors": 0}
    opened = {"route": "$connect", "ConnectionsOpened": 1, **fine}
    assert invoke(capsys, handlers.connect, route="$connect") == opened
    assert invoke(capsys, handlers.join, body=join) == {"route": "join", **fine}
    assert invoke(capsys, handlers.publish, body=publish) == {"route": "publish", "MessagesPublished": 1, **fine}
    closed = {"route": "$disconnect", "ConnectionsClosed": 1, **fine}
    assert invoke(capsys, handlers.disconnect, route="$disconnect") == closed


def test_rejections_and_failures_are_counted_separately(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    body = json.dumps({"action": "publish", "room": "lobby", "data": SECRET})
    rejected = {"route": "publish", "MessagesPublished": 0, "Rejected": 1, "Errors": 0}
    failed = {"route": "publish", "MessagesPublished": 0, "Rejected": 0, "Errors": 1}
    assert invoke(capsys, handlers.publish, body=SECRET) == rejected
    table.failure = RequestRejected(Code.UNAVAILABLE, "busy: retry")
    assert invoke(capsys, handlers.publish, body=body) == failed
    table.failure = KeyError(SECRET)
    assert invoke(capsys, handlers.publish, body=body) == failed
    opened = {"route": "$connect", "ConnectionsOpened": 0, "Rejected": 0, "Errors": 1}
    assert invoke(capsys, handlers.connect, route="$connect") == opened
    unknown = json.dumps({"action": SECRET})
    assert invoke(capsys, handlers.default, body=unknown) == {"route": "$default", "Rejected": 1, "Errors": 0}


def test_connects_rejected_by_the_authorizer_are_counted(
    table: Table, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del table
    monkeypatch.setenv("GATECAST_TABLE", "gatecast")
    monkeypatch.setattr(environment, "client", lambda *_: Scripted())
    monkeypatch.setenv("GATECAST_TOKEN_ISSUER", "https://issuer.example")
    monkeypatch.setenv("GATECAST_TOKEN_AUDIENCE", "gatecast")
    monkeypatch.setenv("GATECAST_TOKEN_JWKS_URL", "https://issuer.example/keys")
    authorizer.clear_caches()

    def without_a_token(request: dict[str, Any], context: Any) -> None:
        with pytest.raises(Exception, match="Unauthorized"):
            authorizer.handler(request, context)

    sent_away = {"route": "authorizer", "Rejected": 1, "Errors": 0}
    assert invoke(capsys, without_a_token, route="$connect") == sent_away
    authorizer.clear_caches()


@pytest.mark.usefixtures("table")
def test_events_of_others_are_counted_apart(capsys: pytest.CaptureFixture[str]) -> None:
    handlers.join({"source": "aws.events", "detail": SECRET}, LambdaContext())
    [line] = [json.loads(line) for line in capsys.readouterr().out.splitlines() if "_aws" in line]
    [directive] = line["_aws"]["CloudWatchMetrics"]
    assert directive["Dimensions"] == [["service"]], "not among the requests of a route"
    assert [metric["Name"] for metric in directive["Metrics"]] == ["Ignored"]
    assert line["Ignored"] == [1]


def test_metrics_can_be_disabled(
    table: Table, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del table
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
    handlers.connect(event(route="$connect"), LambdaContext())
    assert "_aws" not in capsys.readouterr().out


def test_what_histories_returned_is_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POWERTOOLS_METRICS_DISABLED", raising=False)
    message = msgspec.Raw(b'{"id":"1"}')
    capsys.readouterr()
    record_recoveries([Recovery(9, True, (message, message)), Recovery(9, False, (message,)), Recovery(9, True)])
    record_recoveries([])
    (line,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if "_aws" in line]
    assert (line["HistoryMessages"], line["HistoryBytes"], line["NotRecovered"]) == ([3], [30], [1])
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive["Dimensions"] == [["service"]]
