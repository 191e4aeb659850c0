"""How each fault of the chaos tests shows on the dashboards, and which alerts it fires.

A real Prometheus scrapes the workers, with all durations in the rules divided by `SPEEDUP`: a minute here stands for
ten minutes in production. `make fault-visibility` runs every fault and writes the table in docs/operations.md.
"""

import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from gatecast import Broadcast
from gatecast.emulator.faults import THROTTLED, Rule, Stall
from local.backend import Backend
from tests.chaos.endpoint_model import Account
from tests.chaos.fault_visibility import PanelExpectation, Row, Window, fired_alerts, observe, record
from tests.chaos.harness import Harness, Room
from tests.chaos.scale import FULL, SEED, rng
from tests.chaos.service_proxy import ServiceFault, ServiceProxy, ServiceResponse
from tests.chaos.test_failing_endpoint import BURSTS, BURSTS_NAME, FORBIDDEN, GONE
from tests.chaos.test_failing_services import ERRORS
from tests.chaos.test_lost_leases import EXTENDED, STALE_RECEIPT
from tests.chaos.test_messages import POISON
from tests.chaos.test_soak import RULES, SERVICE_FAULTS
from tests.members import connection_ids, write_members
from tests.prometheus import Prometheus
from tests.worker_process import WorkerProcess, eventually

SPEEDUP: Final = 10 if FULL else 30
BASELINE_SECONDS: Final = 10
FAULT_SECONDS: Final = 60
"""Duration of a fault that fires no alert."""
TIMEOUT_SECONDS: Final = 240
"""Maximum time until the expected alerts have fired."""
SCRAPE_LAG_SECONDS: Final = 3
THROTTLING: Final = ServiceResponse.error(400, "ThrottlingException")
FAILING: Final = ServiceResponse.error(500, "InternalServerError")


@dataclass(frozen=True, kw_only=True)
class Load:
    """The constant load. Rooms have full memberships only if members are to be removed from them.

    `proxied` is the number of workers that reach SQS and DynamoDB through the proxy, if not all do.
    """

    rooms: int = 5
    members: int = 40
    broadcasts_per_second: float = 5
    posts_per_second: int = 2_000
    latency_seconds: float = 0.01
    workers: int = 1
    proxied: int | None = None
    removable: bool = False


class Deployment:
    """Workers under load behind a proxy to SQS and DynamoDB, and the Prometheus that scrapes them. Use `set_up`."""

    def __init__(
        self, load: Load, harness: Harness, proxy: ServiceProxy, prometheus: Prometheus, rooms: list[Room]
    ) -> None:
        self.load = load
        self.harness = harness
        self.proxy = proxy
        self.prometheus = prometheus
        self.rooms = rooms
        self.workers: list[WorkerProcess] = []

    @classmethod
    @asynccontextmanager
    async def set_up(cls, load: Load, backend: Backend, directory: Path) -> AsyncIterator["Deployment"]:
        name = f"faults-{uuid.uuid4().hex[:8]}"
        async with AsyncExitStack() as stack:
            harness = await stack.enter_async_context(Harness.open(backend, name, directory))
            proxy = await stack.enter_async_context(ServiceProxy.serving(backend.ministack.url))
            rooms = [
                Room(f"{name}-{number}", connection_ids(load.members, f"{number}-")) for number in range(load.rooms)
            ]
            for room in rooms:
                write_members(harness.dynamodb, backend.table, room.name, room.ids, memberships_only=not load.removable)
            await harness.endpoint.configure(latency_seconds=load.latency_seconds)
            prometheus = stack.enter_context(Prometheus.serving(directory / f"{name}-prometheus", faster=SPEEDUP))
            deployment = cls(load, harness, proxy, prometheus, rooms)
            await deployment.launch(load.workers)
            await eventually(lambda: len(prometheus.ask("gatecast_ready == 1")) == load.workers)
            publishing = asyncio.create_task(deployment.publish_continuously())
            try:
                yield deployment
            finally:
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)

    async def launch(self, number: int = 1) -> None:
        """Start that many more workers and wait until they are ready."""
        started = []
        for _ in range(number):
            proxied = self.load.proxied is None or len(self.workers) < self.load.proxied
            proxy = self.proxy.environment() if proxied else {}
            started.append(
                self.harness.launch(
                    {
                        "GATECAST_MAX_POSTS_PER_SECOND": str(self.load.posts_per_second),
                        "GATECAST_MAX_IN_FLIGHT": "1000",
                        "GATECAST_DRAIN_SECONDS": "5",
                        **proxy,
                    }
                )
            )
            self.workers.append(started[-1])
        await asyncio.gather(*(worker.ready() for worker in started))
        self.update_targets()

    def update_targets(self) -> None:
        """Let Prometheus scrape the running workers only, as service discovery would."""
        self.prometheus.watch([worker.port for worker in self.workers if worker.exit_code is None])

    async def replace(self, end: Callable[[WorkerProcess], object]) -> None:
        """Start another worker, then end the oldest running one."""
        oldest = next(worker for worker in self.workers if worker.exit_code is None)
        await self.launch()
        end(oldest)
        await oldest.ended(seconds=TIMEOUT_SECONDS)
        self.update_targets()

    async def publish_continuously(self) -> None:
        for room in itertools.cycle(self.rooms):
            await asyncio.to_thread(self.harness.publish, Broadcast(id=uuid.uuid4().hex, room=room.name, data="x"))
            await asyncio.sleep(1 / self.load.broadcasts_per_second)


FaultInjector = Callable[[Deployment], Coroutine[None, None, None]]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault and how it must show. `inject` starts it, or keeps injecting it until cancelled.

    All of `alerts` must fire. Without any, none may fire except `optional_alerts`, which depend on chance.
    """

    name: str
    inject: FaultInjector
    panels: Sequence[PanelExpectation]
    alerts: frozenset[str] = frozenset()
    optional_alerts: frozenset[str] = frozenset()
    owner: str
    load: Load = Load()


def endpoint_faults(*rules: Rule, account: Account | None = None) -> FaultInjector:
    """Configure the `@connections` endpoint with these rules and this account quota."""

    async def inject(deployment: Deployment) -> None:
        await deployment.harness.endpoint.configure(*rules, seed=SEED, latency_seconds=0.01, account=account)

    return inject


def service_faults(fault: Callable[[str], ServiceFault | None]) -> FaultInjector:
    """Inject faults into calls to SQS and DynamoDB, by operation."""

    async def inject(deployment: Deployment) -> None:
        deployment.proxy.fault = fault

    return inject


def random_share(share: float, faults: Sequence[ServiceFault]) -> Callable[[str], ServiceFault | None]:
    """A fault for this random share of all calls, with each fault in turn."""
    random, errors = rng("visibility"), itertools.cycle(faults)
    return lambda _operation: next(errors) if random.random() < share else None


async def bursts(deployment: Deployment) -> None:
    for rules in itertools.cycle(BURSTS):
        await deployment.harness.endpoint.configure(*rules, seed=SEED, latency_seconds=0.01)
        await asyncio.sleep(0.2)
        await deployment.harness.endpoint.configure(latency_seconds=0.01)
        await asyncio.sleep(2.3)


async def half_are_gone(deployment: Deployment) -> None:
    gone = frozenset(each for room in deployment.rooms for each in rng(room.name).sample(room.ids, len(room.ids) // 2))
    await deployment.harness.endpoint.configure(Rule(fault=GONE, only=gone), latency_seconds=0.01)


async def gone_for_a_new_worker(deployment: Deployment) -> None:
    """Deploy a worker with another API's address. A worker that delivered within ten minutes would believe the 410."""
    [worker] = deployment.workers
    worker.terminate()
    await worker.ended(seconds=TIMEOUT_SECONDS)
    await deployment.harness.endpoint.configure(Rule(fault=GONE))
    await deployment.launch()


async def down(deployment: Deployment) -> None:
    await deployment.proxy.stop()


async def kill_once(deployment: Deployment) -> None:
    await deployment.replace(WorkerProcess.kill)


async def kill_repeatedly(deployment: Deployment) -> None:
    while True:
        await deployment.replace(WorkerProcess.kill)
        await asyncio.sleep(5)


async def terminate(deployment: Deployment) -> None:
    await deployment.replace(WorkerProcess.terminate)


async def pause(deployment: Deployment) -> None:
    """Suspend a worker for longer than its lease, and until its absence is noticed; then it continues unaware."""
    deployment.workers[0].pause()
    await asyncio.sleep(500 / SPEEDUP)
    deployment.workers[0].resume()


async def send_poison(deployment: Deployment) -> None:
    for body in (body for body in POISON if body != "\u0000"):
        deployment.harness.sqs.send_message(QueueUrl=deployment.harness.backend.queues.url, MessageBody=body)


async def publish_twice(deployment: Deployment) -> None:
    for number in itertools.count():
        broadcast = Broadcast(id=f"twice-{number}", room=deployment.rooms[0].name, data="x")
        for _ in range(2):
            await asyncio.to_thread(deployment.harness.publish, broadcast)
        await asyncio.sleep(0.5)


async def a_little_of_everything(deployment: Deployment) -> None:
    deployment.proxy.fault = random_share(0.01, SERVICE_FAULTS)
    await deployment.harness.endpoint.configure(*RULES, seed=SEED, latency_seconds=0.01)


BUSY: Final = Load(members=150, broadcasts_per_second=2, latency_seconds=3, workers=2)
"""Each worker always has several broadcasts in progress."""
LONG: Final = Load(broadcasts_per_second=2, latency_seconds=8, workers=2, proxied=1)
"""As `BUSY`, and each broadcast takes longer than its first lease."""

FAULTS: Final = (
    Fault(
        name=BURSTS_NAME,
        inject=bursts,
        panels=[
            PanelExpectation("Delivery: Posts that fail", "5xx"),
            PanelExpectation("Delivery: Posts that fail", "no response"),
            PanelExpectation("Delivery: Waiting for retry"),
        ],
        owner="Nobody: failed posts are retried and delivered",
    ),
    Fault(
        name="2% of posts stall for 30 s",
        inject=endpoint_faults(Rule(fault=Stall(seconds=30), share=0.02)),
        panels=[
            PanelExpectation("Overview: Completion time", "p95"),
            PanelExpectation("Delivery: Response time, percentiles", "p99"),
            PanelExpectation("Delivery: Posts that fail", "no response"),
        ],
        alerts=frozenset({"GatecastSloBurnsFast"}),
        owner="On call: broadcasts are late, though none is lost. Check AWS and the network path to it",
    ),
    Fault(
        name="50% of connections gone",
        inject=half_are_gone,
        panels=[
            PanelExpectation("Overview: Deliveries", "gone"),
            PanelExpectation("Overview: Gone clients", "memberships reaped"),
        ],
        owner="Nobody: their memberships are removed",
        load=Load(rooms=40, removable=True),
    ),
    Fault(
        name="403 for all",
        inject=endpoint_faults(Rule(fault=FORBIDDEN)),
        panels=[
            PanelExpectation("Overview: Workers ready", decreases=True),
            PanelExpectation("Dependencies: Failing components", "connections"),
            PanelExpectation("Delivery: Posts by status", "403"),
            PanelExpectation("Overview: Oldest broadcast in progress"),
        ],
        alerts=frozenset({"GatecastNoWorkerReady", "GatecastDependencyFailing"}),
        owner="On call: check the role's policy and the endpoint",
    ),
    Fault(
        name="410 for all that a new worker posts to",
        inject=gone_for_a_new_worker,
        panels=[
            PanelExpectation("Overview: Deliveries", "gone"),
            PanelExpectation("Overview: Rate", "status 200", decreases=True),
            PanelExpectation("Delivery: Gone but not removed"),
        ],
        alerts=frozenset({"GatecastGoneUnproven"}),
        owner="On call: the endpoint is wrong",
    ),
    Fault(
        name="SQS and DynamoDB down",
        inject=down,
        panels=[
            PanelExpectation("Overview: Workers ready", decreases=True),
            PanelExpectation("Dependencies: Failing components", "queue"),
            PanelExpectation("Dependencies: Failed calls by operation", "ReceiveMessage"),
            PanelExpectation("Dependencies: Failed calls by component", "queue"),
        ],
        alerts=frozenset({"GatecastNoWorkerReady", "GatecastDependencyFailing"}),
        owner="On call, if it lasts for minutes: check role, network and AWS's status. Workers recover by themselves",
    ),
    Fault(
        name="a third of all calls to SQS and DynamoDB throttled",
        inject=service_faults(random_share(1 / 3, [THROTTLING])),
        panels=[
            PanelExpectation("Dependencies: Failed calls by operation"),
            PanelExpectation("Dependencies: Failed calls by component"),
        ],
        optional_alerts=frozenset({"GatecastDependencyFailing"}),
        owner="By day, if it continues: check quotas. Everything is delivered, a little later",
        load=Load(workers=2),
    ),
    Fault(
        name="every other call to SQS and DynamoDB fails",
        inject=service_faults(random_share(1 / 2, ERRORS)),
        panels=[
            PanelExpectation("Dependencies: Failed calls by operation"),
            PanelExpectation("Dependencies: Failed calls by component"),
            PanelExpectation("Dependencies: Failing components"),
        ],
        alerts=frozenset({"GatecastNoWorkerReady"}),
        owner="On call, if it lasts for minutes: check role, network and AWS's status. Everything is delivered, later",
    ),
    Fault(
        name="one call in fifty fails",
        inject=service_faults(random_share(1 / 50, ERRORS)),
        panels=[PanelExpectation("Dependencies: Failed calls by operation")],
        owner="Nobody: the call is retried",
    ),
    Fault(
        name="kill -9, once",
        inject=kill_once,
        panels=[
            PanelExpectation("Overview: Queue lag", "p99"),
        ],
        owner="Nobody: another worker resumes when the leases expire",
        load=BUSY,
    ),
    Fault(
        name="kill -9, repeatedly",
        inject=kill_repeatedly,
        panels=[
            PanelExpectation("Overview: Queue lag", "p99"),
        ],
        alerts=frozenset({"GatecastWorkerRestarting"}),
        owner="By day: find out why workers end. On call if broadcasts are late, as here",
        load=BUSY,
    ),
    Fault(
        name="SIGTERM",
        inject=terminate,
        panels=[
            PanelExpectation("Dependencies: Draining"),
        ],
        owner="Nobody: a deployment",
        load=BUSY,
    ),
    Fault(
        name="poison",
        inject=send_poison,
        panels=[
            PanelExpectation("Delivery: Broadcasts", "poison"),
            PanelExpectation("Overview: Dead letters", "poison"),
        ],
        alerts=frozenset({"GatecastDeadLettersWritten"}),
        owner="By day: find the sender",
    ),
    Fault(
        name="5% slow clients",
        inject=endpoint_faults(Rule(fault=THROTTLED, share=0.05, of="connections")),
        panels=[
            PanelExpectation("Overview: Posts with status 429", "connection"),
            PanelExpectation("Delivery: Connections that do not read"),
            PanelExpectation("Delivery: Slow clients given up", "closed"),
            PanelExpectation("Delivery: Waiting for retry"),
            PanelExpectation("Overview: Completion time", "p95"),
            PanelExpectation("Overview: Undelivered, rejected and expired", "undelivered"),
            PanelExpectation("Overview: Dead letters", "undelivered"),
        ],
        alerts=frozenset({"GatecastDeliveriesMissed"}),
        owner="By day, if it continues: find out which clients. They are closed; all others receive everything",
        load=Load(broadcasts_per_second=1),
    ),
    Fault(
        name="lease lost: extensions silently dropped",
        inject=service_faults({"ChangeMessageVisibilityBatch": EXTENDED}.get),
        panels=[
            PanelExpectation("Dependencies: Lease extensions", "lost"),
            PanelExpectation("Overview: Queue lag", "p99"),
        ],
        alerts=frozenset({"GatecastLeasesLost"}),
        owner="By day: check the network path between workers and SQS",
        load=LONG,
    ),
    Fault(
        name="lease lost: extensions rejected",
        inject=service_faults({"ChangeMessageVisibilityBatch": STALE_RECEIPT}.get),
        panels=[
            PanelExpectation("Dependencies: Lease extensions", "lost"),
            PanelExpectation("Dependencies: Failing components", "lease"),
            PanelExpectation("Overview: Queue lag", "p99"),
        ],
        alerts=frozenset({"GatecastLeasesLost", "GatecastDependencyFailing"}),
        owner="By day: check the role and the queue's settings. On call if broadcasts are late, as here",
        load=LONG,
    ),
    Fault(
        name="lease lost: worker paused",
        inject=pause,
        panels=[
            PanelExpectation("Overview: Workers not ready"),
            PanelExpectation("Overview: Queue lag", "p99"),
        ],
        alerts=frozenset({"GatecastWorkerUnreachable", "GatecastLeasesLost"}),
        owner="By day: check for a starved CPU or a hanging host. On call if broadcasts are late, as here",
        load=LONG,
    ),
    Fault(
        name="the same id published twice",
        inject=publish_twice,
        panels=[PanelExpectation("Delivery: Broadcasts", "duplicate")],
        owner="Nobody: the duplicate is recognised",
    ),
    Fault(
        name="account throttled to a fifth",
        inject=endpoint_faults(account=Account(200, 100)),
        panels=[
            PanelExpectation("Overview: Posts with status 429", "account"),
            PanelExpectation("Delivery: Rate limit", decreases=True),
            PanelExpectation("Delivery: Rate cuts"),
        ],
        alerts=frozenset({"GatecastThrottled", "GatecastSloBurnsFast"}),
        owner="By day: request a higher quota, or find other users of it. On call if broadcasts are late, as here",
        load=Load(broadcasts_per_second=10, posts_per_second=1_000),
    ),
    Fault(
        name="a little of everything",
        inject=a_little_of_everything,
        panels=[
            PanelExpectation("Delivery: Posts that fail"),
            PanelExpectation("Dependencies: Failed calls by operation"),
        ],
        owner="Nobody",
    ),
)
SHORT_RUN: Final = "403 for all"
"""The fault that `make test` runs."""


@pytest.mark.parametrize(
    "fault", [pytest.param(each, id=each.name) for each in FAULTS if FULL or each.name == SHORT_RUN]
)
@pytest.mark.timeout(400)
async def test_a_fault_is_visible(chaos_backend: Backend, tmp_path: Path, fault: Fault) -> None:
    async with Deployment.set_up(fault.load, chaos_backend, tmp_path) as deployment:
        await asyncio.sleep(BASELINE_SECONDS)
        before = Window(time.time() - BASELINE_SECONDS + SCRAPE_LAG_SECONDS, time.time())
        injecting = asyncio.create_task(fault.inject(deployment))
        during = await wait_for_alerts(fault, deployment, before.end)
        injecting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await injecting
        fired = fired_alerts(deployment.prometheus, during)
        observations = [observe(deployment.prometheus, expectation, before, during) for expectation in fault.panels]
        assert fired_alerts(deployment.prometheus, before) == {}
    record(
        Row(
            fault=fault.name,
            panels=[str(each) for each in observations],
            alerts=[f"{name}, after {seconds:.0f} s" for name, seconds in fired.items()],
            owner=fault.owner,
        )
    )
    assert all(each.is_significant for each in observations), [
        str(each) for each in observations if not each.is_significant
    ]
    assert fired.keys() >= fault.alerts
    assert fault.alerts or fired.keys() <= fault.optional_alerts


async def wait_for_alerts(fault: Fault, deployment: Deployment, start: float) -> Window:
    """Wait until all expected alerts have fired or, if none is expected, for the duration of the fault."""
    if fault.alerts:
        await deployment.harness.wait_until(
            lambda: fired_alerts(deployment.prometheus, Window(start, time.time())).keys() >= fault.alerts,
            seconds=TIMEOUT_SECONDS,
        )
    else:
        await asyncio.sleep(FAULT_SECONDS)
    await asyncio.sleep(SCRAPE_LAG_SECONDS)
    return Window(start, time.time())
