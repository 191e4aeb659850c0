"""The engine and its pool, with real sockets, when keep-alive connections have died without notice.

No delivery may suffer: no failed post, no backoff, no reported problem of the endpoint.
"""

import asyncio
import math
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from gatecast.broadcast import Broadcast
from tests.connections_endpoint import ConnectionsEndpoint
from tests.nat import Nat, can_drop_packets
from tests.worker_process import eventually
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.outcome import Outcome
from worker.delivery.engine import DeliveryEngine, Exchange
from worker.delivery.fanout import Delivery, Fanout
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.ports import Member
from worker.transport.pool import IDLE_SECONDS, WARM_CONNECTIONS, ExchangeHandler, Pool
from worker.transport.signing import Address, Credentials, Signer

CONNECTIONS = 64
SILENT = pytest.param(True, marks=pytest.mark.skipif(not can_drop_packets(), reason="requires Linux"), id="silent")


class RecordedFanout(Fanout):
    """Counts how often a delivery had to wait for another attempt."""

    backoffs = 0

    def await_retry(self, delivery: Delivery) -> None:
        RecordedFanout.backoffs += 1
        super().await_retry(delivery)


class Sender:
    """An engine whose clock can be advanced; `problems` are all that it has reported."""

    def __init__(self, port: int) -> None:
        self.skipped = 0.0
        self.metrics = Metrics(Health())
        self.problems: set[str] = set()
        address = Address.from_url(f"http://127.0.0.1:{port}/live")
        signer = Signer(address, "eu-west-1", "execute-api")
        signer.use(Credentials("key", "secret"))

        def pool(handler: ExchangeHandler[Exchange]) -> Pool[Exchange]:
            self.pool = Pool(address, size=CONNECTIONS, handler=handler, tls=None)
            return self.pool

        self.engine = DeliveryEngine(
            signer=signer,
            pool=pool,
            posts_per_second=100_000,
            metrics=self.metrics,
            clock=lambda: time.monotonic() + self.skipped,
        )
        RecordedFanout.backoffs = 0

    async def broadcast(self, members: int) -> None:
        """Deliver one broadcast to this many members; return when all of them have an outcome."""
        fanout = RecordedFanout(
            Broadcast(id="b", room="room", data="hello"),
            Checkpoint(),
            time.monotonic,
            order=(0, 0),
            prior_rejections=None,
            totals=dict.fromkeys(Outcome, 0),
            gone=lambda _: None,
        )
        fanout.add_page([Member(f"c{number:04d}=", 0) for number in range(members)], last=True)
        self.engine.offer(fanout)
        while not fanout.settled:
            problem = self.engine.problem()
            if problem is not None:
                self.problems.add(problem)
            await asyncio.sleep(0.01)
            fanout.checkpoint_schedule.since_written = 0  # no checkpoints are written here

    async def pass_time(self, seconds: float, nat: Nat | None = None) -> None:
        """Advance the clock, in steps that leave the engine time to react."""
        while seconds > 0:
            step = min(seconds, 40.0)
            if nat is not None:
                nat.pass_time(step)
            self.skipped += step
            seconds -= step
            await asyncio.sleep(0.25)

    def assert_no_failures(self, posts: int) -> None:
        assert self.metrics.posts_without_response == 0
        assert self.metrics.posts == {200: posts}
        assert RecordedFanout.backoffs == 0
        assert not self.problems


@asynccontextmanager
async def sending(port: int) -> AsyncIterator[Sender]:
    sender = Sender(port)
    running = asyncio.create_task(sender.engine.run())
    try:
        yield sender
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def port_of(endpoint: ConnectionsEndpoint) -> int:
    port = urlsplit(endpoint.url).port
    assert port
    return port


@pytest.mark.parametrize("silent", [pytest.param(False, id="reset"), SILENT])
async def test_ten_idle_minutes_behind_a_nat_break_no_connection(endpoint: ConnectionsEndpoint, silent: bool) -> None:
    async with Nat.in_front_of(port_of(endpoint), 350, silent=silent) as nat, sending(nat.port) as sender:
        endpoint.latency_seconds = 0.05
        await sender.broadcast(300)
        assert sender.pool.open_connections > 20
        await sender.pass_time(600, nat)
        assert sender.pool.open_connections == WARM_CONNECTIONS
        await sender.broadcast(5)
        sender.assert_no_failures(305)
        assert nat.used_after_drop == sender.pool.retried == 0
        assert endpoint.posts == Counter(
            {f"c{number:04d}=": 2 if number < 5 else 1 for number in range(300)},
        )


@pytest.mark.parametrize("silent", [pytest.param(False, id="reset"), SILENT])
async def test_a_nat_with_a_short_timeout_costs_each_post_one_retry(
    endpoint: ConnectionsEndpoint, silent: bool
) -> None:
    async with Nat.in_front_of(port_of(endpoint), 30, silent=silent) as nat, sending(nat.port) as sender:
        endpoint.latency_seconds = 0.05
        await sender.broadcast(300)
        kept = sender.pool.open_connections
        assert kept > 20
        await sender.pass_time(IDLE_SECONDS * 0.6, nat)
        assert sender.pool.open_connections == kept
        await sender.broadcast(5)
        sender.assert_no_failures(305)
        assert sender.pool.retried == 5
        assert nat.used_after_drop == (0 if silent else 5)
        assert sender.pool.open_connections < kept - 20, (
            "connections that were idle as long are closed without being used"
        )
        assert endpoint.posts == Counter(
            {f"c{number:04d}=": 2 if number < 5 else 1 for number in range(300)},
        )


@asynccontextmanager
async def resetting(every: int, *, after_seconds: float = 0.0) -> AsyncIterator[tuple[int, Counter[str]]]:
    """A server that resets a connection at every nth request on it. Yields its port and its counters.

    With `after_seconds` only if the request comes at least that long after the previous one.
    """
    seen: Counter[str] = Counter()
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        seen["connections"] += 1
        requests = 0
        served_at = math.inf if after_seconds else 0.0  # the first request has none before it
        while await reader.read(65536):  # a request of these tests is one segment
            requests += 1
            if requests % every == 0 and time.monotonic() - served_at >= after_seconds:
                seen["reset"] += 1
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                return
            seen["responded"] += 1
            served_at = time.monotonic()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


async def test_an_endpoint_that_resets_every_second_request_costs_only_connections() -> None:
    async with resetting(every=2) as (port, seen), sending(port) as sender:
        await sender.broadcast(400)
        sender.assert_no_failures(400)
        assert seen["responded"] == 400
        assert seen["reset"] == sender.pool.retried
        assert seen["connections"] <= 400 + CONNECTIONS


async def test_an_endpoint_that_resets_every_request_fails() -> None:
    """Retries on new connections must not hide the failure, even if connections have been open for long."""
    async with resetting(every=1) as (port, seen), sending(port) as sender:
        await sender.pass_time(30)
        assert sender.pool.open_connections == WARM_CONNECTIONS
        broadcast = asyncio.create_task(sender.broadcast(50))
        await eventually(lambda: sender.engine.problem() is not None)
        broadcast.cancel()
        assert sender.pool.retried <= WARM_CONNECTIONS
        assert sender.metrics.posts_without_response >= 20
        assert seen["responded"] == 0


async def test_an_endpoint_that_drops_idle_connections_fails_no_post() -> None:
    async with resetting(every=1, after_seconds=0.5) as (port, seen), sending(port) as sender:
        await sender.broadcast(200)
        await asyncio.sleep(0.6)
        await sender.broadcast(200)
        sender.assert_no_failures(400)
        assert seen["responded"] == 400
        assert seen["reset"] == sender.pool.retried > 0
