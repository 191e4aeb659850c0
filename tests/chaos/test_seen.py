"""Every fault of these tests, as somebody sees it who looks at the dashboards, and whether it tells anybody by itself.

A real Prometheus watches the workers, with all durations of the rules divided by `FASTER`: what lasts a minute here
lasts ten minutes there. `make faults-seen` does this to every fault and writes the table of docs/operations.md.
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
from local.backend import Backend
from local.gateway.faults import THROTTLED, Rule, Stall
from tests.chaos.arena import Arena, Room
from tests.chaos.counting import Account
from tests.chaos.rooms import connection_ids, write_members
from tests.chaos.seen import Row, Sight, Window, alerts_in, look, record
from tests.chaos.service_proxy import Answered, ServiceFault, ServiceProxy
from tests.chaos.sizes import FULL, SEED, rng
from tests.chaos.test_failing_endpoint import BURSTS, FORBIDDEN, GONE
from tests.chaos.test_failing_services import ERRORS
from tests.chaos.test_messages import POISON
from tests.chaos.test_soak import RULES, SERVICE_FAULTS
from tests.chaos.test_takeovers import EXTENDED, NOT_YOURS
from tests.prometheus import Prometheus
from tests.worker_process import WorkerProcess, eventually

FASTER: Final = 10 if FULL else 30
BEFORE_SECONDS: Final = 10
LASTS_SECONDS: Final = 60
"""A fault that nobody is told of."""
PATIENCE_SECONDS: Final = 240
"""For one that somebody is told of."""
SCRAPED_SECONDS: Final = 3
THROTTLING: Final = Answered.error(400, "ThrottlingException")
FAILING: Final = Answered.error(500, "InternalServerError")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What goes on all the time. Rooms have full memberships only where somebody is to be removed from them.

    `proxied` is how many workers reach SQS and DynamoDB through the proxy, if not all.
    """

    rooms: int = 5
    members: int = 40
    broadcasts_per_second: float = 5
    posts_per_second: int = 2_000
    answer_seconds: float = 0.01
    workers: int = 1
    proxied: int | None = None
    removable: bool = False


class Scene:
    """Workers at work, behind a proxy to SQS and DynamoDB, and Prometheus that watches them. Use `set_up`."""

    def __init__(
        self, load: Load, arena: Arena, proxy: ServiceProxy, prometheus: Prometheus, rooms: list[Room]
    ) -> None:
        self.load = load
        self.arena = arena
        self.proxy = proxy
        self.prometheus = prometheus
        self.rooms = rooms
        self.workers: list[WorkerProcess] = []

    @classmethod
    @asynccontextmanager
    async def set_up(cls, load: Load, backend: Backend, directory: Path) -> AsyncIterator["Scene"]:
        name = f"seen-{uuid.uuid4().hex[:8]}"
        async with AsyncExitStack() as stack:
            arena = await stack.enter_async_context(Arena.opened(backend, name, directory))
            proxy = await stack.enter_async_context(ServiceProxy.serving(backend.ministack.url))
            rooms = [
                Room(f"{name}-{number}", connection_ids(load.members, f"{number}-")) for number in range(load.rooms)
            ]
            for room in rooms:
                write_members(arena.dynamodb, backend.table, room.name, room.ids, memberships_only=not load.removable)
            await arena.endpoint.behave(latency_seconds=load.answer_seconds)
            prometheus = stack.enter_context(Prometheus.serving(directory / f"{name}-prometheus", faster=FASTER))
            scene = cls(load, arena, proxy, prometheus, rooms)
            await scene.launch(load.workers)
            await eventually(lambda: len(prometheus.ask("gatecast_ready == 1")) == load.workers)
            publishing = asyncio.create_task(scene.publish_all_the_time())
            try:
                yield scene
            finally:
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)

    async def launch(self, number: int = 1) -> None:
        """Starts so many more workers."""
        started = []
        for _ in range(number):
            proxied = self.load.proxied is None or len(self.workers) < self.load.proxied
            behind = self.proxy.environment() if proxied else {}
            started.append(
                self.arena.launch(
                    {
                        "GATECAST_MAX_POSTS_PER_SECOND": str(self.load.posts_per_second),
                        "GATECAST_MAX_IN_FLIGHT": "1000",
                        "GATECAST_DRAIN_SECONDS": "5",
                        **behind,
                    }
                )
            )
            self.workers.append(started[-1])
        await asyncio.gather(*(worker.ready() for worker in started))
        self.watch()

    def watch(self) -> None:
        """As a service discovery does: what has ended is no longer there."""
        self.prometheus.watch([worker.port for worker in self.workers if worker.exit_code is None])

    async def replace(self, ending: Callable[[WorkerProcess], object]) -> None:
        """Another worker comes, then the oldest one that runs ends in this way."""
        oldest = next(worker for worker in self.workers if worker.exit_code is None)
        await self.launch()
        ending(oldest)
        await oldest.ended(seconds=PATIENCE_SECONDS)
        self.watch()

    async def publish_all_the_time(self) -> None:
        for room in itertools.cycle(self.rooms):
            await asyncio.to_thread(self.arena.publish, Broadcast(id=uuid.uuid4().hex, room=room.name, data="seen"))
            await asyncio.sleep(1 / self.load.broadcasts_per_second)


Making = Callable[[Scene], Coroutine[None, None, None]]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`make` begins it, or goes on making it until it is cancelled. Nobody is told but by `alerts`, which must fire.

    `perhaps` are such as depend on the dice.
    """

    name: str
    make: Making
    sights: Sequence[Sight]
    alerts: frozenset[str] = frozenset()
    perhaps: frozenset[str] = frozenset()
    must_act: str
    load: Load = Load()


def answering(*rules: Rule, account: Account | None = None) -> Making:
    """@connections behaves like this."""

    async def make(scene: Scene) -> None:
        await scene.arena.endpoint.behave(*rules, seed=SEED, latency_seconds=0.01, account=account)

    return make


def calling(fault: Callable[[str], ServiceFault | None]) -> Making:
    """Calls to SQS and DynamoDB end like this, by operation."""

    async def make(scene: Scene) -> None:
        scene.proxy.fault = fault

    return make


def some(share: float, faults: Sequence[ServiceFault]) -> Callable[[str], ServiceFault | None]:
    """This share of all calls, each in another way."""
    thrown, ways = rng("seen"), itertools.cycle(faults)
    return lambda _operation: next(ways) if thrown.random() < share else None


async def bursts(scene: Scene) -> None:
    for rules in itertools.cycle(BURSTS):
        await scene.arena.endpoint.behave(*rules, seed=SEED, latency_seconds=0.01)
        await asyncio.sleep(0.2)
        await scene.arena.endpoint.behave(latency_seconds=0.01)
        await asyncio.sleep(2.3)


async def half_are_gone(scene: Scene) -> None:
    gone = frozenset(each for room in scene.rooms for each in rng(room.name).sample(room.ids, len(room.ids) // 2))
    await scene.arena.endpoint.behave(Rule(fault=GONE, only=gone), latency_seconds=0.01)


async def gone_for_a_new_worker(scene: Scene) -> None:
    """A deployment with another API's address. One that has delivered within ten minutes would take 410 for proof."""
    [worker] = scene.workers
    worker.terminate()
    await worker.ended(seconds=PATIENCE_SECONDS)
    await scene.arena.endpoint.behave(Rule(fault=GONE))
    await scene.launch()


async def down(scene: Scene) -> None:
    await scene.proxy.down()


async def kill_once(scene: Scene) -> None:
    await scene.replace(WorkerProcess.kill)


async def kill_again_and_again(scene: Scene) -> None:
    while True:
        await scene.replace(WorkerProcess.kill)
        await asyncio.sleep(5)


async def terminate(scene: Scene) -> None:
    await scene.replace(WorkerProcess.terminate)


async def pause(scene: Scene) -> None:
    """For longer than its lease, and until it is missed; then it goes on as if nothing had happened."""
    scene.workers[0].pause()
    await asyncio.sleep(500 / FASTER)
    scene.workers[0].resume()


async def send_poison(scene: Scene) -> None:
    for body in (body for body in POISON if body != "\u0000"):
        scene.arena.sqs.send_message(QueueUrl=scene.arena.backend.queues.url, MessageBody=body)


async def publish_twice(scene: Scene) -> None:
    for number in itertools.count():
        broadcast = Broadcast(id=f"twice-{number}", room=scene.rooms[0].name, data="seen")
        for _ in range(2):
            await asyncio.to_thread(scene.arena.publish, broadcast)
        await asyncio.sleep(0.5)


async def a_little_of_everything(scene: Scene) -> None:
    scene.proxy.fault = some(0.01, SERVICE_FAULTS)
    await scene.arena.endpoint.behave(*RULES, seed=SEED, latency_seconds=0.01)


BUSY: Final = Load(members=150, broadcasts_per_second=2, answer_seconds=3, workers=2)
"""Each worker always has several broadcasts in hand."""
LONG: Final = Load(broadcasts_per_second=2, answer_seconds=8, workers=2, proxied=1)
"""And each broadcast outlives its first lease."""

FAULTS: Final = (
    Fault(
        name="bursts of 5xx, resets and half answers",
        make=bursts,
        sights=[
            Sight("Delivery: Posts that fail", "5xx"),
            Sight("Delivery: Posts that fail", "no answer"),
            Sight("Delivery: Waiting to be tried again"),
        ],
        must_act="Nobody: everything is tried again and arrives",
    ),
    Fault(
        name="2% of posts stall for 30 s",
        make=answering(Rule(fault=Stall(seconds=30), share=0.02)),
        sights=[
            Sight("Overview: Completion time", "p95"),
            Sight("Delivery: Answer time, percentiles", "p99"),
            Sight("Delivery: Posts that fail", "no answer"),
        ],
        alerts=frozenset({"GatecastSloBurnsFast"}),
        must_act="On call: broadcasts are late, though none is lost. AWS, or what is on the way to it",
    ),
    Fault(
        name="50% of connections gone",
        make=half_are_gone,
        sights=[
            Sight("Overview: Deliveries", "gone"),
            Sight("Overview: Clients that are gone", "memberships reaped"),
        ],
        must_act="Nobody: they are removed",
        load=Load(rooms=40, removable=True),
    ),
    Fault(
        name="403 for all",
        make=answering(Rule(fault=FORBIDDEN)),
        sights=[
            Sight("Overview: Workers ready", falls=True),
            Sight("Dependencies: Trouble by part", "connections"),
            Sight("Delivery: Posts by status", "403"),
            Sight("Overview: Oldest broadcast in hand"),
        ],
        alerts=frozenset({"GatecastNoWorkerReady", "GatecastDependencyFailing"}),
        must_act="On call: the role's policy, or the endpoint",
    ),
    Fault(
        name="410 for all that a new worker posts to",
        make=gone_for_a_new_worker,
        sights=[
            Sight("Overview: Deliveries", "gone"),
            Sight("Overview: Rate", "answered 200", falls=True),
            Sight("Delivery: Gone, not removed"),
        ],
        alerts=frozenset({"GatecastGoneUnproven"}),
        must_act="On call: the endpoint is the wrong one",
    ),
    Fault(
        name="SQS and DynamoDB down",
        make=down,
        sights=[
            Sight("Overview: Workers ready", falls=True),
            Sight("Dependencies: Trouble by part", "queue"),
            Sight("Dependencies: Calls that failed", "ReceiveMessage"),
            Sight("Dependencies: Failed calls by part", "queue"),
        ],
        alerts=frozenset({"GatecastNoWorkerReady", "GatecastDependencyFailing"}),
        must_act="On call, if it lasts for minutes: role, network, AWS's status. It recovers by itself",
    ),
    Fault(
        name="a third of all calls to SQS and DynamoDB throttled",
        make=calling(some(1 / 3, [THROTTLING])),
        sights=[
            Sight("Dependencies: Calls that failed"),
            Sight("Dependencies: Failed calls by part"),
        ],
        perhaps=frozenset({"GatecastDependencyFailing"}),
        must_act="By day, if it goes on: quotas. Everything arrives, a little later",
        load=Load(workers=2),
    ),
    Fault(
        name="every other call to SQS and DynamoDB fails",
        make=calling(some(1 / 2, ERRORS)),
        sights=[
            Sight("Dependencies: Calls that failed"),
            Sight("Dependencies: Failed calls by part"),
            Sight("Dependencies: Trouble by part"),
        ],
        alerts=frozenset({"GatecastNoWorkerReady"}),
        must_act="On call, if it lasts for minutes: role, network, AWS's status. Everything arrives, later",
    ),
    Fault(
        name="one call in fifty fails",
        make=calling(some(1 / 50, ERRORS)),
        sights=[Sight("Dependencies: Calls that failed")],
        must_act="Nobody: it is tried again",
    ),
    Fault(
        name="kill -9, once",
        make=kill_once,
        sights=[
            Sight("Overview: Queue lag", "p99"),
        ],
        must_act="Nobody: another worker goes on when the leases end",
        load=BUSY,
    ),
    Fault(
        name="kill -9, again and again",
        make=kill_again_and_again,
        sights=[
            Sight("Overview: Queue lag", "p99"),
        ],
        alerts=frozenset({"GatecastWorkerRestarting"}),
        must_act="By day: why they end. On call where broadcasts are late for it, as here",
        load=BUSY,
    ),
    Fault(
        name="SIGTERM",
        make=terminate,
        sights=[
            Sight("Dependencies: Draining"),
        ],
        must_act="Nobody: a deployment",
        load=BUSY,
    ),
    Fault(
        name="poison",
        make=send_poison,
        sights=[
            Sight("Delivery: Broadcasts", "poison"),
            Sight("Overview: Dead letters", "poison"),
        ],
        alerts=frozenset({"GatecastDeadLettersWritten"}),
        must_act="By day: find who sends it",
    ),
    Fault(
        name="5% slow clients",
        make=answering(Rule(fault=THROTTLED, share=0.05, of="connections")),
        sights=[
            Sight("Overview: Posts answered 429", "connection"),
            Sight("Delivery: Connections that do not read"),
            Sight("Delivery: Slow clients given up", "closed"),
            Sight("Delivery: Waiting to be tried again"),
            Sight("Overview: Completion time", "p95"),
            Sight("Overview: Clients that do not read, and refusals", "undelivered"),
            Sight("Overview: Dead letters", "undelivered"),
        ],
        alerts=frozenset({"GatecastDeliveriesMissed"}),
        must_act="By day, if it goes on: who these clients are. They are closed, and all others have everything",
        load=Load(broadcasts_per_second=1),
    ),
    Fault(
        name="lease lost: extensions are swallowed",
        make=calling({"ChangeMessageVisibilityBatch": EXTENDED}.get),
        sights=[
            Sight("Dependencies: Lease extensions", "lost"),
            Sight("Overview: Queue lag", "p99"),
        ],
        alerts=frozenset({"GatecastLeasesLost"}),
        must_act="By day: what is between the workers and SQS",
        load=LONG,
    ),
    Fault(
        name="lease lost: extensions are refused",
        make=calling({"ChangeMessageVisibilityBatch": NOT_YOURS}.get),
        sights=[
            Sight("Dependencies: Lease extensions", "lost"),
            Sight("Dependencies: Trouble by part", "lease"),
            Sight("Overview: Queue lag", "p99"),
        ],
        alerts=frozenset({"GatecastLeasesLost", "GatecastDependencyFailing"}),
        must_act="By day: the role, or the queue's settings. On call where broadcasts are late for it, as here",
        load=LONG,
    ),
    Fault(
        name="lease lost: it is paused",
        make=pause,
        sights=[
            Sight("Overview: Workers not ready"),
            Sight("Overview: Queue lag", "p99"),
        ],
        alerts=frozenset({"GatecastWorkerUnreachable", "GatecastLeasesLost"}),
        must_act="By day: a starved CPU, or a host that hangs. On call where broadcasts are late for it, as here",
        load=LONG,
    ),
    Fault(
        name="the same id published twice",
        make=publish_twice,
        sights=[Sight("Delivery: Broadcasts", "duplicate")],
        must_act="Nobody: the second one is recognised",
    ),
    Fault(
        name="account throttled to a fifth",
        make=answering(account=Account(200, 100)),
        sights=[
            Sight("Overview: Posts answered 429", "account"),
            Sight("Delivery: Rate limit", falls=True),
            Sight("Delivery: Rate cuts"),
        ],
        alerts=frozenset({"GatecastThrottled", "GatecastSloBurnsFast"}),
        must_act="By day: a higher quota, or who else uses it. On call where broadcasts are late for it, as here",
        load=Load(broadcasts_per_second=10, posts_per_second=1_000),
    ),
    Fault(
        name="a little of everything",
        make=a_little_of_everything,
        sights=[Sight("Delivery: Posts that fail"), Sight("Dependencies: Calls that failed")],
        must_act="Nobody",
    ),
)
SHORT: Final = "403 for all"
"""What is done with every `make test`."""


@pytest.mark.parametrize("fault", [pytest.param(each, id=each.name) for each in FAULTS if FULL or each.name == SHORT])
@pytest.mark.timeout(400)
async def test_a_fault_is_seen(chaos_backend: Backend, tmp_path: Path, fault: Fault) -> None:
    async with Scene.set_up(fault.load, chaos_backend, tmp_path) as scene:
        await asyncio.sleep(BEFORE_SECONDS)
        before = Window(time.time() - BEFORE_SECONDS + SCRAPED_SECONDS, time.time())
        making = asyncio.create_task(fault.make(scene))
        meanwhile = await while_it_lasts(fault, scene, before.end)
        making.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await making
        fired = alerts_in(scene.prometheus, meanwhile)
        seen = [look(scene.prometheus, sight, before, meanwhile) for sight in fault.sights]
        assert alerts_in(scene.prometheus, before) == {}
    record(
        Row(
            fault=fault.name,
            panels=[str(each) for each in seen],
            alerts=[f"{name}, after {seconds:.0f} s" for name, seconds in fired.items()],
            must_act=fault.must_act,
        )
    )
    assert all(each.clear for each in seen), [str(each) for each in seen if not each.clear]
    assert fired.keys() >= fault.alerts
    assert fault.alerts or fired.keys() <= fault.perhaps


async def while_it_lasts(fault: Fault, scene: Scene, start: float) -> Window:
    """Until all have been told that should be, or for as long as nobody should be."""
    if fault.alerts:
        await scene.arena.until(
            lambda: alerts_in(scene.prometheus, Window(start, time.time())).keys() >= fault.alerts,
            seconds=PATIENCE_SECONDS,
        )
    else:
        await asyncio.sleep(LASTS_SECONDS)
    await asyncio.sleep(SCRAPED_SECONDS)
    return Window(start, time.time())
