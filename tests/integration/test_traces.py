"""Traces from the publisher through the queue to a real worker, as a collector receives them."""

import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider

from gatecast import Broadcast, Publisher, queue_message, tracing
from local.resources import Queues
from routes import dependencies, handlers
from routes.environment import OPEN_ACCESS
from tests.connections_endpoint import ConnectionsEndpoint
from tests.members import connection_ids, write_members
from tests.routes_events import LambdaContext, event
from tests.worker_fixtures import Launch
from tests.worker_process import eventually


class Collector:
    """Receives spans by OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        for resource in ExportTraceServiceRequest.FromString(await request.read()).resource_spans:
            attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.services.add(attributes["service.name"])
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response()

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    collector.url = f"http://{host}:{port}"
    yield collector
    await runner.cleanup()


@pytest.fixture
def publisher_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process creates spans but does not export them: the tests need only their context."""
    monkeypatch.setattr(tracing, "_tracer", TracerProvider(shutdown_on_exit=False).get_tracer("test"))


def attributes_of(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@pytest.mark.usefixtures("publisher_traces")
async def test_a_trace_spans_from_the_publisher_to_the_acknowledgement(
    sqs: Any,
    dynamodb: Any,
    table: str,
    queues: Queues,
    endpoint: ConnectionsEndpoint,
    launch: Launch,
    collector: Collector,
) -> None:
    everyone = connection_ids(30)
    write_members(dynamodb, table, "lobby", everyone)
    endpoint.respond = lambda connection_id, _nth: 413 if connection_id == everyone[0] else 200
    worker = launch(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="200")
    await worker.ready()

    with tracing.publishing():
        sent = tracing.message_attributes()["traceparent"]["StringValue"]
        Publisher(sqs, queues.url).publish(Broadcast(id="traced", room="lobby", data="canary-payload"))
    await eventually(lambda: len(collector.named("settle")) == 2 and collector.named("broadcast"))

    _, trace_id, publisher_id, _ = sent.split("-")
    [root] = collector.named("broadcast")
    assert root.trace_id.hex() == trace_id
    assert root.parent_span_id.hex() == publisher_id
    assert attributes_of(root)["gatecast.id"] == "traced"
    assert attributes_of(root)["gatecast.outcome"] == "completed"
    by_id = {span.span_id: span for span in collector.spans}
    parents = {(span.name, by_id[span.parent_span_id].name) for span in collector.spans if span is not root}
    assert parents == {
        ("receive", "broadcast"),
        ("claim", "broadcast"),
        ("deliver", "broadcast"),
        ("page", "deliver"),
        ("settle", "deliver"),
        ("settle", "broadcast"),
    }
    assert attributes_of(collector.named("deliver")[0]) == {"gatecast.delivered": 29, "gatecast.rejected": 1}
    assert attributes_of(collector.named("page")[0]) == {"gatecast.members": 30}
    assert collector.services == {"gatecast-worker"}
    assert "canary-payload" not in str(collector.spans)


@pytest.mark.usefixtures("publisher_traces")
async def test_parts_of_a_split_room_belong_to_the_same_trace(
    sqs: Any,
    dynamodb: Any,
    table: str,
    queues: Queues,
    endpoint: ConnectionsEndpoint,
    launch: Launch,
    collector: Collector,
) -> None:
    write_members(dynamodb, table, "hall", connection_ids(40), shards=2)
    worker = launch(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    await worker.ready()
    with tracing.publishing():
        Publisher(sqs, queues.url).publish(Broadcast(id="split", room="hall", data="x"))
    await eventually(lambda: len(endpoint.delivered) == 40)
    worker.terminate()
    assert await worker.ended(seconds=30) == 0

    roots = collector.named("broadcast")  # a graceful stop exports the remaining spans
    assert sorted(attributes_of(root)["gatecast.part"] for root in roots) == ["", "s0", "s1"]
    assert len({root.trace_id for root in roots}) == 1


async def test_a_hanging_collector_delays_nothing(
    sqs: Any, dynamodb: Any, table: str, queues: Queues, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, and never responds
        write_members(dynamodb, table, "lobby", connection_ids(5))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        worker = launch(OTEL_EXPORTER_OTLP_ENDPOINT=url, GATECAST_DRAIN_SECONDS="5")
        await worker.ready()
        Publisher(sqs, queues.url).publish(Broadcast(id="one", room="lobby", data="x"))
        await eventually(lambda: len(endpoint.delivered) == 5)
        worker.terminate()
        assert await worker.ended(seconds=15) == 0


def test_without_a_span_nothing_is_added_to_a_message() -> None:
    assert tracing.message_attributes() == {}
    assert "MessageAttributes" not in queue_message(Broadcast(id="a", room="b", data="c"), fifo=False)
    assert not tracing.enabled()
    assert not tracing.enable("nobody", {})
    with tracing.span("nothing"), tracing.publishing(), tracing.consuming({}, 0):
        tracing.set_attributes(gatecast_id="a")


@pytest.mark.usefixtures("publisher_traces")
def test_a_route_publishes_within_its_own_span(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []

    class Fake:
        def __getattr__(self, _: str) -> Any:
            return lambda *_arguments: True

        def send_message(self, **message: Any) -> None:
            sent.append(message)

    monkeypatch.setenv("GATECAST_AUTHORIZER", OPEN_ACCESS)
    for name in ("memberships", "limits"):
        monkeypatch.setattr(dependencies, name, Fake)
    monkeypatch.setattr(dependencies, "publisher", lambda: Publisher(Fake(), "https://queue"))
    body = '{"action": "publish", "room": "lobby", "data": "x"}'

    with tracing.span("invocation"):
        outside = tracing.message_attributes()["traceparent"]["StringValue"]
        assert '"ok"' in handlers.publish(event(body=body), LambdaContext())["body"]

    [message] = sent
    inside = message["MessageAttributes"]["traceparent"]["StringValue"]
    assert inside.split("-")[1] == outside.split("-")[1], "the trace of the invocation"
    assert inside.split("-")[2] != outside.split("-")[2], "but the span of the publication"
