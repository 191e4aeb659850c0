"""Simulated workers: the real `Worker` with in-memory adapters (`tests.memory_stores`), in virtual time.

Nothing waits: the event loop's clock jumps to the next thing that is due, so hours of timeouts, leases and retries take
a moment, and every run is repeatable. Workers can be killed (calls that have not taken effect never do), drained, and
cut off from the queue or the table, and their wall clock can be changed.
"""

import asyncio
import heapq
import itertools
import random
import selectors
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import unquote

import msgspec

from gatecast import table as keys
from gatecast.broadcast import Broadcast
from gatecast.frames import V1
from gatecast.publisher import queue_message
from gatecast.receipt import Receipt
from tests.memory_members import ForeignItems, MemoryMembers
from tests.memory_payloads import MemoryPayloads
from tests.memory_stores import (
    MemoryPresence,
    MemoryProgress,
    MemoryQueue,
    MemoryReceipts,
    MemoryStream,
    MemoryTable,
    ProgressItems,
    QueueState,
    StoredMessage,
    TableState,
)
from worker.decisions.receipts import SharedReceipt
from worker.delivery.engine import Exchange
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.ports import DependencyError, NoResponse
from worker.settings import Settings, SlowClients
from worker.transport.pool import ExchangeHandler, Pool
from worker.transport.responses import Response
from worker.transport.signing import Address, Credentials, Signer
from worker.worker import Adapters, Worker

EPOCH = 1_800_000_000.0
LONG_AGO_MS = int(EPOCH * 1000) - 3_600_000
_EXPIRES_AT = int(EPOCH) + 30 * 24 * 3600
CONNECTIONS = 64
_TIMEOUT_SECONDS = 24 * 3600.0
_FAULTS = {
    ("queue", "change_visibility"): "lease",
    ("queue", "delete"): "delete",
    ("queue", "send"): "send",
    ("dead_letter_queue", "send"): "dead letters",
    ("receipts_queue", "send"): "receipts",
    ("payloads", "length"): "payloads",
    ("payloads", "link"): "payloads",
    ("table", "begin_page"): "page",
    ("table", "connections"): "page",
    ("table", "delete_batch"): "deletions",
    ("table", "is_present"): "presence",
    ("stream", "append"): "append",
}
"""The faults of `World.broken` that affect single operations."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now

    async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))]


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "deadlock: no timer is pending"
            self._loop.now += max(0.0, timeout)
        return ready


async def _ignore(worker: "SimulatedWorker", call: str) -> None:
    del worker, call


@dataclass
class World:
    """Everything that outlives workers: clients, queues and the table."""

    members: dict[str, int]
    """The members of the room `room` at the start, and when each joined, in milliseconds since the epoch."""
    respond: Callable[[str, int], int | None] = lambda _id, _nth: 200
    """The status of a post, by connection id and the number of the post to it; None: the connection is reset.

    Called for connections that are members or were named by a broadcast; all others return `reference_status`.
    """
    reference_status: Callable[[], int | None] = lambda: 410
    poll_seconds: float = 0.5
    """How often a long poll looks at the queue."""
    latency: Callable[[], float] = lambda: 0.01
    """Seconds until the response to a post."""
    rng: random.Random = field(default_factory=random.Random)
    fifo: bool = False
    honours_superseded: bool = False
    """What the queue does with superseded receipt handles: `QueueState`."""
    clock_offset: float = 0.0
    """How far the workers' wall clocks are ahead, in seconds."""
    broken: set[str] = field(default_factory=set)
    """What fails now: "queue", "table", or single operations: "lease" (extensions), "delete", "send", "dead letters",
    "page", "deletions", "presence", "append", "responses" (half of those to appends), "payloads". With "letters
    rejected" the dead-letter queue rejects every message.
    """
    named: set[str] = field(default_factory=set)
    """The connections that exist or existed: members, and those that a broadcast named."""
    posts: Counter[str] = field(default_factory=Counter)
    delivered: Counter[str] = field(default_factory=Counter)
    received: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    """By connection: the times and payloads of its messages."""
    closed: Counter[str] = field(default_factory=Counter)
    """How often each connection that a worker closed was closed."""
    close_status: Callable[[str], int | None] = lambda _id: 204
    """The status of a request that closes a connection, by its id; with any but 204 it stays open."""
    close_latency: float | None = None
    """Seconds until the response to a request that closes a connection, if not as for a post."""
    ended: set[str] = field(default_factory=set)
    """Connections that have ended otherwise."""
    foreign: ForeignItems | None = None
    """The members of rooms, for workers that are started from now on, if they are in a table of the operator's own."""
    payloads: Mapping[str, int] = field(default_factory=dict)
    """The lengths of the objects in the bucket of payloads, by key."""
    with_receipts: bool = True
    """Whether workers have a receipts queue."""
    on_call: Callable[["SimulatedWorker", str], Awaitable[None]] = _ignore
    """Awaited before each call of a worker, with the component and the operation."""

    def __post_init__(self) -> None:
        self.queue = QueueState(
            clock=self.now,
            wall_clock=self._true_time,
            fifo=self.fifo,
            honours_superseded=self.honours_superseded,
        )
        self.dead_letter_queue = QueueState(
            clock=self.now,
            wall_clock=self._true_time,
            fifo=self.fifo,
            rejects=lambda: "letters rejected" in self.broken,
        )
        self.receipts_queue = QueueState(clock=self.now, wall_clock=self._true_time, fifo=self.fifo)
        self.shared_receipts: dict[tuple[str, str], SharedReceipt] = {}
        self.table = TableState()
        self.progress: ProgressItems = {}
        self._connected: set[str] = set()
        self.add_members("room", self.members)

    @property
    def messages(self) -> list[StoredMessage]:
        return self.queue.messages

    @property
    def dead_letters(self) -> list[StoredMessage]:
        return self.dead_letter_queue.messages

    @property
    def receipts(self) -> list[Receipt]:
        """Those that were sent, in order."""
        return [msgspec.json.decode(message.body, type=Receipt) for message in self.receipts_queue.messages]

    @property
    def removed(self) -> set[str]:
        """The members whose connections have been removed from the table."""
        return {each for each in self._connected if not self.table.get(keys.connection_pk(each), keys.CONNECTION_SK)}

    def current_members(self, room: str, shard: int = 0) -> set[str]:
        return {item["sk"]["S"] for item in self.table.query(keys.room_pk(room, shard))}

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_clock(self) -> float:
        return self._true_time() + self.clock_offset

    def _true_time(self) -> float:
        return EPOCH + self.now()

    def add_members(
        self, room: str, members: Mapping[str, int] | Iterable[str], *, shard: int = 0, frames: int = V1
    ) -> None:
        """Connect these clients, which use the dialect `frames`, and let them join the room. The times when they joined
        are in a mapping's values, in milliseconds since the epoch; the default is an hour before the start.
        """
        joined = members if isinstance(members, Mapping) else dict.fromkeys(members, LONG_AGO_MS)
        for each, joined_at_ms in joined.items():
            self.table.put(keys.connection_item(each, connected_at_ms=joined_at_ms, frames=frames))
            self.table.put(
                keys.membership_item(
                    room, shard, each, joined_at_ms=joined_at_ms, expires_at=_EXPIRES_AT, frames=frames
                )
            )
            self.table.put(keys.joined_room_item(each, room, shard, expires_at=_EXPIRES_AT))
        self._connected.update(joined)
        self.named.update(joined)

    def enter(self, room: str, user: str, connection_id: str) -> None:
        """Let a member be present in the room as this user."""
        joined_room = self.table.get(keys.connection_pk(connection_id), keys.joined_room_sk(room))
        assert joined_room is not None
        self.table.put({**joined_room, "present": {"S": user}})
        self.table.put(keys.presence_item(room, user, connection_id, joined_at_ms=LONG_AGO_MS, expires_at=_EXPIRES_AT))

    def present(self, room: str) -> set[str]:
        """The users who are present in the room."""
        return {item["sk"]["S"].partition(" ")[0] for item in self.table.query(keys.presence_pk(room))}

    def add_connections(self, connections: Iterable[str]) -> None:
        """Write these clients' connection items, which expire an hour from the start."""
        for each in connections:
            self.table.put(keys.connection_item(each, connected_at_ms=LONG_AGO_MS))

    def expire(self, members: Iterable[str], room: str = "room", *, shard: int = 0, seconds: float = 600) -> None:
        """Let the tokens of these members have expired, this number of seconds before the start."""
        for each in members:
            pk = keys.connection_pk(each)
            item_keys = ((pk, keys.CONNECTION_SK), (pk, keys.joined_room_sk(room)), (keys.room_pk(room, shard), each))
            for item in [self.table.get(*item_key) for item_key in item_keys]:
                assert item is not None
                self.table.put({**item, "expires_at": {"N": str(int(EPOCH - seconds))}})

    def set_shards(self, room: str, shards: int) -> None:
        """From now on the room is read in this number of shards."""
        self.set(room, shards=shards)

    def set(self, room: str, **numbers: int) -> None:
        """Write the room's settings item."""
        settings = {name: {"N": str(number)} for name, number in numbers.items()}
        self.table.put({**keys.key(keys.settings_pk(room), keys.SETTINGS_SK), **settings})

    def history(self, room: str) -> dict[int, str]:
        """The ids of the messages in the room's history, by offset."""
        items = self.table.query(keys.stream_pk(room), prefix=keys.ENTRY_PREFIX)
        return {int(item["sk"]["S"].removeprefix(keys.ENTRY_PREFIX)): item["id"]["S"] for item in items}

    def publish(self, broadcast: Broadcast) -> None:
        self.named.update(broadcast.connections or ())
        self.queue.send(queue_message(broadcast, fifo=self.fifo))

    def hand_out_again(self) -> None:
        """A standard queue may hand out a message that is in flight, with a new receipt handle."""
        for message in self.messages:
            if message.receive_count:
                message.visible_at = min(message.visible_at, self.now())

    def move_back(self) -> None:
        """SQS moves all visible messages to the dead-letter queue and back: under new ids, never received."""
        for message in self.messages:
            if message.visible_at <= self.now():
                message.id = f"{message.id}'"
                message.receive_count = 0
                message.receipt_handle = ""


_QUEUE_EVENTS = {"handed out again": World.hand_out_again, "moved back": World.move_back}


def make_members(count: int) -> dict[str, int]:
    """Connections that joined an hour ago."""
    return {f"c{number:06d}=": LONG_AGO_MS for number in range(count)}


def run(simulation: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(simulation)


async def until_empty(world: World) -> None:
    while world.messages:
        await asyncio.sleep(1)
        assert world.now() < _TIMEOUT_SECONDS, f"still on the queue: {world.messages[:3]}"
    await asyncio.sleep(30)


class SimulatedWorker:
    """One worker of a world. After `kill` nothing that it does has any effect."""

    def __init__(
        self,
        world: World,
        *,
        visibility_seconds: int = 30,
        drain_seconds: int = 25,
        max_broadcasts: int = 64,
        max_posts_per_second: int = 10_000,
        slow_clients: SlowClients = "close",
    ) -> None:
        self.world = world
        self.alive = True
        self.stop = asyncio.Event()
        signer = Signer(Address.from_url("http://127.0.0.1:1/live"), "eu-west-1", "execute-api")
        signer.use(Credentials("a", "b"))
        settings = Settings(
            queue_url="http://queue/broadcasts",
            table="table",
            connections_endpoint="http://127.0.0.1:1/live",
            visibility_seconds=visibility_seconds,
            drain_seconds=drain_seconds,
            max_broadcasts=max_broadcasts,
            max_posts_per_second=max_posts_per_second,
            slow_clients=slow_clients,
        )
        adapters = Adapters(
            queue=MemoryQueue(world.queue, before_call=self._before_call, poll_seconds=world.poll_seconds),
            dead_letter_queue=MemoryQueue(
                world.dead_letter_queue, component="dead_letter_queue", before_call=self._before_call
            ),
            table=(table := MemoryTable(world.table, wall_clock=world.wall_clock, before_call=self._before_call)),
            members=MemoryMembers(world.foreign, table, before_call=self._before_call) if world.foreign else None,
            progress=MemoryProgress(world.progress, wall_clock=world.wall_clock, before_call=self._before_call),
            stream=MemoryStream(
                world.table, world.progress, before_call=self._before_call, after_call=self._lose_response
            ),
            presence=MemoryPresence(world.table, wall_clock=world.wall_clock, before_call=self._before_call),
            payloads=MemoryPayloads(world.payloads, wall_clock=world.wall_clock, before_call=self._before_call),
            receipts=MemoryReceipts(world.shared_receipts, before_call=self._before_call),
            receipts_queue=MemoryQueue(world.receipts_queue, component="receipts_queue", before_call=self._before_call)
            if world.with_receipts
            else None,
            signer=signer,
            pool=lambda handler: cast(Pool[Exchange], MemoryPool(self, handler)),
            clock=world.now,
            wall_clock=world.wall_clock,
        )
        self.health = Health("queue", "table", clock=world.now)
        self.metrics = Metrics(self.health)
        self.real_worker = Worker(settings, adapters, health=self.health, metrics=self.metrics)
        self.task = asyncio.create_task(self.real_worker.run(self.stop))

    async def _before_call(self, component: str, operation: str) -> None:
        """A call takes a moment and fails while what it needs is broken. After a kill it never takes effect."""
        await self.world.on_call(self, f"{component} {operation}")
        broken = self.world.broken
        if _FAULTS.get((component, operation)) in broken:
            await self._pause(0.1)
            raise DependencyError("broken")
        await self._pause(0.002 + 0.01 * self.world.rng.random())
        if ("queue" if component.endswith("queue") else "table") in broken:
            await self._pause(0.5)
            raise DependencyError("broken")

    async def _lose_response(self, component: str, operation: str) -> None:
        """While "responses" are broken, half of the responses to transactions are lost after these were executed."""
        del component, operation
        if "responses" in self.world.broken and self.world.rng.random() < 1 / 2:
            await self._pause(0.1)
            raise NoResponse("lost")

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not self.alive:
            await asyncio.Event().wait()

    async def kill(self) -> None:
        self.alive = False
        await _end(self.task)

    async def terminate(self) -> None:
        self.stop.set()
        await self.task


async def apply_plan(
    world: World, plan: Sequence[tuple[float, str]], *, max_broadcasts: int = 64, republish: Broadcast | None = None
) -> list[SimulatedWorker]:
    """Start a worker and apply the plan's events, each after its delay. Returns the workers that run at its end.

    Events that are not named here are names of components, which fail from then on, or recover.
    """

    def start() -> SimulatedWorker:
        return SimulatedWorker(world, max_broadcasts=max_broadcasts)

    workers = [start()]
    for seconds, event in plan:
        await asyncio.sleep(seconds)
        match event:
            case "kill":
                await workers.pop(0).kill()
            case "terminate":
                await workers.pop(0).terminate()
            case "second worker":
                workers.append(start())
            case "published again":
                assert republish is not None
                world.publish(republish)
            case "handed out again" | "moved back":
                _QUEUE_EVENTS[event](world)
            case "clock forward" | "clock back":
                world.clock_offset += 40 if event == "clock forward" else -40
            case component:
                world.broken ^= {component}
        if not workers:
            workers.append(start())
    world.broken.clear()
    return workers


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class MemoryPool:
    """The methods of `Pool` that the engine uses. A post takes effect when it is sent, even if the worker is killed."""

    def __init__(self, worker: SimulatedWorker, handler: ExchangeHandler[Exchange]) -> None:
        self.address = Address.from_url("http://127.0.0.1:1/live")
        self.in_flight = 0
        self.size = self.open_connections = CONNECTIONS
        self.problem: str | None = None
        self._worker = worker
        self._handler = handler
        self._responses: list[tuple[float, int, float, Exchange, int | None]] = []
        self._sequence = itertools.count()

    @property
    def idle(self) -> int:
        return CONNECTIONS - self.in_flight

    @property
    def busy(self) -> bool:
        return self.in_flight > 0

    def resolved(self, addresses: object) -> None: ...

    def request_connections(self, more: int, now: float) -> None: ...

    def send(self, exchange: Exchange, request: bytes, now: float) -> None:
        self.in_flight += 1
        if not self._worker.alive:
            return
        world = self._worker.world
        connection_id = unquote(request.split(b" ", 2)[1].decode().rpartition("/")[2])
        if connection_id not in world.named:
            status = world.reference_status()
        elif connection_id in world.ended:
            status = 410
        elif request.startswith(b"DELETE "):
            status = 410 if connection_id in world.closed else world.close_status(connection_id)
            if status in (204, 410):
                world.closed[connection_id] += 1
        elif connection_id in world.closed:
            status = 410
        else:
            world.posts[connection_id] += 1
            status = world.respond(connection_id, world.posts[connection_id])
            if status == 200:
                world.delivered[connection_id] += 1
                world.received.setdefault(connection_id, []).append((now, request.rpartition(b"\r\n")[2].decode()))
        is_slow = request.startswith(b"DELETE ") and world.close_latency is not None
        latency = float(world.close_latency or 0) if is_slow else world.latency()
        heapq.heappush(self._responses, (now + latency, next(self._sequence), now, exchange, status))

    def poll(self, now: float) -> None:
        plain: list[Exchange] = []
        seconds: list[float] = []
        while self._responses and self._responses[0][0] <= now:
            _, _, started_at, exchange, status = heapq.heappop(self._responses)
            self.in_flight -= 1
            if status is None:
                self._handler.on_failure(exchange, "reset", now - started_at, now)
            elif status == 200:
                plain.append(exchange)
                seconds.append(now - started_at)
            else:
                self._handler.on_response(exchange, Response(status, {}, b"", reusable=True), now - started_at, now)
        if plain:
            self._handler.on_plain_responses(plain, seconds, now)

    def sweep(self, now: float) -> None: ...

    def close(self) -> None: ...
