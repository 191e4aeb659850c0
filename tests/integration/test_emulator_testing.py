"""`WebSocketApi`, which tests that are not asynchronous use: clients, faults and time."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from gatecast.emulator import ConfigurationError, Credentials, Limits, Route
from gatecast.emulator.environment import redirect_sdk
from gatecast.emulator.faults import GONE, UNAVAILABLE
from gatecast.emulator.testing import Client, ConnectionRejected, Disconnected, WebSocketApi

Event = dict[str, Any]
disconnects: list[int] = []


def connect(event: Event, _context: Any) -> Any:
    query = event.get("queryStringParameters") or {}
    headers = {"Sec-WebSocket-Protocol": "chat"} if "Sec-WebSocket-Protocol" in event["headers"] else {}
    return {"statusCode": int(query.get("status", 200)), "headers": headers}


def disconnect(event: Event, _context: Any) -> Any:
    disconnects.append(event["requestContext"]["disconnectStatusCode"])
    return {"statusCode": 200}


def echo(event: Event, _context: Any) -> Any:
    return {"statusCode": 200, "body": event["body"]}


ROUTES: dict[str, Any] = {"$connect": connect, "$disconnect": disconnect, "echo": Route(echo, response=True)}


@pytest.fixture
def api() -> Iterator[WebSocketApi]:
    disconnects.clear()
    with WebSocketApi(ROUTES) as running:
        yield running


def management(api: WebSocketApi, endpoint: str | None = None) -> Any:
    return boto3.session.Session("any", "any", region_name="eu-west-1").client(
        "apigatewaymanagementapi",
        endpoint_url=endpoint or api.endpoint,
        config=Config(retries={"mode": "standard", "total_max_attempts": 1}),
    )


def status_of(api: WebSocketApi, client: Client, data: bytes = b"x") -> int:
    """The status of a post."""
    try:
        response = management(api).post_to_connection(ConnectionId=client.id, Data=data)
    except ClientError as error:
        response = error.response
    return int(response["ResponseMetadata"]["HTTPStatusCode"])


def test_clients_send_and_receive(api: WebSocketApi) -> None:
    client = api.connect({"name": "ann"}, headers={"X-Test": "1"}, subprotocols=["chat"])
    assert client.subprotocol == "chat"
    assert api.connections == [client.id]
    client.send({"action": "echo", "n": 1})
    client.send('{"action": "echo", "n": 2}')
    assert sorted([client.receive_json()["n"], client.receive_json()["n"]]) == [1, 2]
    assert len(client.received) == 2
    assert status_of(api, client, b"posted") == 200
    assert client.receive() == "posted"
    with pytest.raises(TimeoutError, match=r"no message within 0\.01 s, 3 have been received before"):
        client.receive(timeout_seconds=0.01)


def test_a_rejected_client_has_a_status(api: WebSocketApi) -> None:
    with pytest.raises(ConnectionRejected) as rejected:
        api.connect({"status": "403"})
    assert rejected.value.status == 403


def test_settling_waits_for_messages_and_disconnects(api: WebSocketApi) -> None:
    clients = [api.connect() for _ in range(3)]
    for client in clients:
        for number in range(20):
            client.send({"action": "echo", "n": number})
    api.settle()
    assert [len(client.received) for client in clients] == [20] * 3
    for client in clients:
        client.close(4001)
    api.settle()
    assert disconnects == [4001] * 3


def test_connections_end_in_every_way(api: WebSocketApi) -> None:
    closed, dropped, too_long, binary = [api.connect() for _ in range(4)]
    closed.close()
    dropped.drop()
    too_long.send("x" * 32_769)
    binary.send(b"x")
    assert [each.wait_closed() for each in (closed, dropped, too_long, binary)] == [1000, 1006, 1009, 1003]
    api.settle()
    assert sorted(disconnects) == [1000, 1003, 1009], "a lost network is no disconnect"
    assert status_of(api, dropped) == 410
    with pytest.raises(Disconnected) as ended:
        too_long.receive()
    assert ended.value.code == 1009


def test_time_passes_at_once(api: WebSocketApi) -> None:
    idle = api.connect()
    api.advance(minutes=9, seconds=59)
    assert idle.close_code is None
    api.advance(seconds=1)
    assert idle.close_code == 1001
    old = api.connect()
    api.advance(hours=1, minutes=59, active=True)
    assert old.close_code is None
    api.advance(minutes=1, active=True)
    assert old.close_code == 1001
    assert disconnects == [1001, 1001]


def test_a_handler_that_takes_29_seconds_is_cut_off() -> None:
    started, released = threading.Event(), threading.Event()

    def wait(_event: Event, _context: Any) -> Any:
        started.set()
        released.wait()
        return {"statusCode": 200}

    with WebSocketApi({"wait": wait}) as api:
        client = api.connect()
        client.send({"action": "wait"})
        started.wait()
        api.advance(seconds=29)
        assert json.loads(client.received[0])["message"] == "Endpoint request timed out"
        released.set()


def test_both_kinds_of_429_and_other_faults(api: WebSocketApi) -> None:
    ann, bob = api.connect(), api.connect()
    api.throttle(bob)
    assert [status_of(api, each) for each in (ann, bob)] == [200, 429]
    api.clear_faults()
    api.throttle(times=1)
    assert [status_of(api, each) for each in (ann, ann, bob)] == [429, 200, 200]
    api.clear_faults()
    api.inject(GONE, client=ann)
    api.inject(UNAVAILABLE, client=bob, times=1)
    assert [status_of(api, each) for each in (ann, bob, bob)] == [410, 503, 200]


def test_the_account_s_rate_recovers_with_time() -> None:
    with WebSocketApi(ROUTES, limits=Limits(requests_per_second=0.001, request_burst=2)) as api:
        client = api.connect()
        assert [status_of(api, client) for _ in range(3)] == [200, 200, 429]
        api.advance(seconds=1_000, active=True)
        assert status_of(api, client) == 200


def test_a_slow_client_s_buffer_fills_and_empties_in_order() -> None:
    with WebSocketApi(ROUTES, limits=Limits(send_buffer_bytes=2_048)) as api:
        slow_client, other = api.connect(), api.connect()
        slow_client.stop_reading()
        assert [status_of(api, slow_client, b"%d" % n * 900) for n in range(3)] == [200, 200, 429]
        assert status_of(api, other) == 200
        assert slow_client.received == []
        slow_client.read_again()
        api.settle()
        assert slow_client.received == ["0" * 900, "1" * 900]
        assert status_of(api, slow_client) == 200


def test_a_disconnect_can_be_lost(api: WebSocketApi) -> None:
    lost, seen = api.connect(), api.connect()
    api.lose_disconnects(lost)
    lost.close()
    seen.close()
    api.settle()
    assert disconnects == [1000]
    assert api.counters.disconnects_lost == 1


def test_only_the_given_credentials_sign() -> None:
    with WebSocketApi(ROUTES, credentials=Credentials("other", "secret")) as api:
        assert status_of(api, api.connect()) == 403


def test_the_sdk_reaches_it_by_the_address_that_most_handlers_make(api: WebSocketApi) -> None:
    client = api.connect()
    redirect_sdk(api.endpoint)
    sdk = management(api, api.endpoint.replace("http://", "https://"))
    sdk.post_to_connection(ConnectionId=client.id, Data=b"without TLS")
    assert client.receive() == "without TLS"


def test_it_takes_files(tmp_path: Path) -> None:
    (tmp_path / "emulated_app.py").write_text(
        "def handler(event, context):\n    return {'statusCode': 200, 'body': 'file'}\n"
    )
    (tmp_path / "emulator.toml").write_text(
        'stage = "prod"\n[routes]\nread = { integration = "python:emulated_app.handler", response = true }\n'
    )
    with WebSocketApi({"echo": Route(echo, response=True)}, config=tmp_path / "emulator.toml") as api:
        assert api.url.endswith("/prod")
        client = api.connect()
        client.send({"action": "read"})
        assert client.receive() == "file"
        client.send({"action": "echo"})
        assert json.loads(client.receive()) == {"action": "echo"}


def test_it_is_stopped_where_it_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "emulator.toml").write_text('[routes]\nread = "python:no_such_module.handler"\n')
    api = WebSocketApi(config=tmp_path / "emulator.toml")
    with pytest.raises(ConfigurationError, match="no module no_such_module"), api:
        pass
    with pytest.raises(ConfigurationError, match="there are no routes: give handlers"):
        WebSocketApi()
