"""A worker in a world of its own: the real core, with a queue, a table and connections in memory, in virtual time.

Nothing waits: the event loop's clock jumps to the next thing that is due, so hours of time-outs, leases and retries
pass in a moment, and everything is repeatable. Workers can be killed (whatever they were about to do never happens),
stopped by a drain, cut off from the queue or the table, and their wall clock can be moved.
"""

import asyncio
import heapq
import itertools
import random
import selectors
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from urllib.parse import unquote

from gatecast.broadcast import Broadcast
from gatecast.publisher import queue_message
from gatecast.table import Key, RoomSettings
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import Claimant, NotClaimed, Resumption, Standing, judge
from worker.delivery.engine import Exchange
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.ports import (
    Claim,
    DamagedProgress,
    DependencyError,
    JoinedRoom,
    Member,
    Message,
    MessageRejected,
    Page,
    PortError,
    StaleReceipt,
)
from worker.settings import Settings, SlowClients
from worker.transport.pool import ExchangeHandler, Pool
from worker.transport.responses import Answer
from worker.transport.signing import Address, Credentials, Signer
from worker.worker import Adapters, Worker

R = TypeVar("R")

EPOCH = 1_800_000_000.0
PAGE_MEMBERS = 700
CONNECTIONS = 64


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits."""

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
            assert timeout is not None, "everybody waits for somebody else"
            self._loop.now += max(0.0, timeout)
        return ready


@dataclass
class Stored:
    """A message on the queue."""

    id: str
    body: str
    group: str
    visible_at: float
    sent_at: float
    receives: int = 0
    receipt_handle: str = ""


@dataclass
class World:
    """What outlives workers. `answer` decides by connection id and number of the post; None: it is never answered."""

    members: dict[str, int]
    """When each joined, in milliseconds since the epoch."""
    answer: Callable[[str, int], int | None] = lambda _id, _nth: 200
    """For connection ids that are members or were named by a broadcast; all others are answered with `made_up`."""
    made_up: Callable[[], int | None] = lambda: 410
    named: set[str] = field(default_factory=set)
    poll_seconds: float = 0.5
    """How often a long poll looks at the queue."""
    latency: Callable[[], float] = lambda: 0.01
    """Seconds that an answer takes."""
    messages: list[Stored] = field(default_factory=list)
    dead_letters: list[Stored] = field(default_factory=list)
    progress: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    posts: Counter[str] = field(default_factory=Counter)
    delivered: Counter[str] = field(default_factory=Counter)
    received: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    """By connection, when and which payloads."""
    closed: Counter[str] = field(default_factory=Counter)
    removed: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    """What fails now: "queue", "table", or of these alone "lease" (extensions), "delete", "send", "dead letters",
    "page".

    With "letters refused" SQS says no to dead letters for good.
    """
    shards: int = 1
    """Of the rooms; all members are on the first."""
    others: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Members of other rooms than `room`, by room; they joined long ago."""
    clock_offset: float = 0.0
    rng: random.Random = field(default_factory=random.Random)
    fifo: bool = False
    _swallowed_until: dict[tuple[int, str], float] = field(default_factory=dict)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_clock(self) -> float:
        return EPOCH + self.now() + self.clock_offset

    def move_back(self) -> None:
        """SQS moves all visible messages to the dead-letter queue and back: under new ids, never received."""
        for message in self.messages:
            if message.visible_at <= self.now():
                message.id = f"{message.id}'"
                message.receives = 0
                message.receipt_handle = ""

    def publish(self, broadcast: Broadcast) -> None:
        self.named.update(self.members, broadcast.connections or (), *self.others.values())
        message = queue_message(broadcast, fifo=self.fifo)
        self._store(self.messages, message, 0)

    def _store(self, messages: list[Stored], message: dict[str, Any], delay: float) -> None:
        if (deduplication_id := message.get("MessageDeduplicationId")) is not None:
            key = (id(messages), deduplication_id)
            if self.now() < self._swallowed_until.get(key, 0.0):
                return
            self._swallowed_until[key] = self.now() + DEDUPLICATION_SECONDS
        number = f"m{len(self.messages)}-{self.rng.getrandbits(64):x}"
        now = self.now()
        messages.append(Stored(number, message["MessageBody"], message["MessageGroupId"], now + delay, now))


LONG_AGO_MS = int(EPOCH * 1000) - 3_600_000
A_DAY = 24 * 3600.0
DEDUPLICATION_SECONDS = 300.0


def members_of(count: int) -> dict[str, int]:
    """Connections that joined an hour ago."""
    return {f"c{number:06d}=": LONG_AGO_MS for number in range(count)}


def run(simulation: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(simulation)


async def until_empty(world: World) -> None:
    while world.messages:
        await asyncio.sleep(1)
        assert world.now() < A_DAY, f"still on the queue: {world.messages[:3]}"
    await asyncio.sleep(30)


class SimulatedWorker:
    """One worker of a world. After `kill` nothing that it does has an effect any more."""

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
        signer = Signer(Address.of("http://127.0.0.1:1/live"), "eu-west-1", "execute-api")
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
            queue=MemoryQueue(self, world.messages),
            dead_letter_queue=MemoryQueue(self, world.dead_letters),
            table=MemoryTable(self),
            progress=MemoryProgress(self),
            signer=signer,
            pool=lambda owner: cast(Pool[Exchange], MemoryPool(self, owner)),
            clock=world.now,
            wall_clock=world.wall_clock,
        )
        self.health = Health("queue", "table", clock=world.now)
        self.metrics = Metrics(self.health)
        self.core = Worker(settings, adapters, health=self.health, metrics=self.metrics)
        self.task = asyncio.create_task(self.core.run(self.stop))

    async def call(self, part: str, what: Callable[[], R]) -> R:
        """One call of a dependency: takes a moment, fails where that part is broken, never returns after a kill."""
        await self.pause(0.002 + 0.01 * self.world.rng.random())
        if part in self.world.broken:
            await self.pause(0.5)
            raise DependencyError("broken")
        return what()

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not self.alive:
            await asyncio.Event().wait()

    async def kill(self) -> None:
        self.alive = False
        await _end(self.task)

    async def terminate(self) -> None:
        self.stop.set()
        await self.task


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class MemoryQueue:
    def __init__(self, worker: SimulatedWorker, messages: list[Stored]) -> None:
        self.url = f"http://queue/broadcasts{'.fifo' if worker.world.fifo else ''}"
        self._worker = worker
        self._messages = messages

    async def receive(self, most: int, *, visibility_seconds: int, wait: bool = True) -> list[Message]:
        for _ in range(int(5 / self._worker.world.poll_seconds) if wait else 1):
            received = await self._worker.call("queue", lambda: self._receive(most, visibility_seconds))
            if received or not wait:
                break
            await self._worker.pause(self._worker.world.poll_seconds)
        return received

    def _receive(self, most: int, visibility_seconds: int) -> list[Message]:
        now = self._worker.world.now()
        received = []
        visible = [each for each in self._messages if each.visible_at <= now]
        if self._worker.world.fifo:
            blocked = {each.group for each in self._messages if each.visible_at > now}
            visible = [each for each in visible if each.group not in blocked]
        for stored in visible[:most]:
            stored.receives += 1
            stored.visible_at = now + visibility_seconds
            stored.receipt_handle = f"{stored.id}/{stored.receives}"
            received.append(
                Message(
                    stored.id,
                    stored.receipt_handle,
                    stored.body,
                    stored.receives,
                    int((EPOCH + stored.sent_at) * 1000),
                    stored.group,
                )
            )
        return received

    async def count(self) -> dict[str, int]:
        return await self._worker.call("queue", lambda: {"visible": len(self._messages)})

    async def delete(self, receipt_handles: Sequence[str]) -> list[PortError | None]:
        def delete() -> list[PortError | None]:
            found = {stored.receipt_handle: stored for stored in self._messages}
            for receipt_handle in receipt_handles:
                if receipt_handle in found:
                    self._messages.remove(found[receipt_handle])
            return [None if each in found else StaleReceipt("ReceiptHandleIsInvalid") for each in receipt_handles]

        if "delete" in self._worker.world.broken:
            await self._worker.pause(0.1)
            raise DependencyError("broken")
        return await self._worker.call("queue", delete)

    async def change_visibility(self, receipt_handles: Sequence[str], seconds: int) -> list[PortError | None]:
        def change() -> list[PortError | None]:
            now = self._worker.world.now()
            found = {stored.receipt_handle: stored for stored in self._messages if stored.visible_at > now}
            for receipt_handle in receipt_handles:
                if receipt_handle in found:
                    found[receipt_handle].visible_at = now + seconds
            return [None if each in found else StaleReceipt("ReceiptHandleIsInvalid") for each in receipt_handles]

        if "lease" in self._worker.world.broken:
            raise DependencyError("broken")
        return await self._worker.call("queue", change)

    async def send(self, messages: Sequence[dict[str, Any]]) -> list[PortError | None]:
        def send() -> list[PortError | None]:
            for message in messages:
                self._worker.world._store(self._messages, message, message.get("DelaySeconds", 0))
            return [None] * len(messages)

        dead = self._messages is self._worker.world.dead_letters
        if dead and "letters refused" in self._worker.world.broken:
            return await self._worker.call("queue", lambda: [MessageRejected("InvalidParameterValue")] * len(messages))
        if ("dead letters" if dead else "send") in self._worker.world.broken:
            await self._worker.pause(0.1)
            raise DependencyError("broken")
        return await self._worker.call("queue", send)


class MemoryTable:
    def __init__(self, worker: SimulatedWorker) -> None:
        self._worker = worker
        self.pages: Callable[[str, int], Page] | None = None
        """Whole rooms in one page each, by room and shard; None: the world's."""

    def _call(self, what: Callable[[], R]) -> Awaitable[R]:
        return self._worker.call("table", what)

    def begin_page(self, room: str, shard: int, after: str = "") -> Awaitable[Page]:
        page = asyncio.create_task(self._page(room, shard, after))
        page.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return page

    async def _page(self, room: str, shard: int, after: str) -> Page:
        if "page" in self._worker.world.broken:
            await self._worker.pause(0.1)
            raise DependencyError("broken")

        if self.pages is not None:
            pages = self.pages
            return await self._call(lambda: pages(room, shard))

        def read() -> Page:
            world = self._worker.world
            joined = world.members if room == "room" else dict.fromkeys(world.others[room], LONG_AGO_MS)
            behind = sorted(member for member in joined if member > after and not shard)
            members = [Member(member, joined[member]) for member in behind[:PAGE_MEMBERS]]
            return Page(members, members[-1].connection_id if len(behind) > PAGE_MEMBERS else None)

        return await self._call(read)

    async def settings(self, rooms: Sequence[str]) -> Sequence[RoomSettings | DependencyError]:
        return await self._call(lambda: [RoomSettings(shards=self._worker.world.shards)] * len(rooms))

    async def connected_at_ms(self, connection_ids: Sequence[str]) -> dict[str, int]:
        members = self._worker.world.members
        return await self._call(lambda: {each: members[each] for each in connection_ids if each in members})

    async def remove_connections(self, connection_ids: Sequence[str]) -> list[str]:
        await self._call(lambda: self._worker.world.removed.update(connection_ids))
        return []

    async def joined_rooms(self, connection_id: str) -> list[JoinedRoom]:
        del connection_id
        return await self._call(list)

    async def delete_batch(self, doomed: Sequence[Key]) -> list[Key]:
        def delete() -> list[Key]:
            for key in doomed:
                self._worker.world.members.pop(key["sk"]["S"], None)
            return []

        return await self._call(delete)


class MemoryProgress:
    """What `worker.aws.progress` does, without its protocol."""

    def __init__(self, worker: SimulatedWorker) -> None:
        self._worker = worker

    def _call(self, what: Callable[[], R]) -> Awaitable[R]:
        return self._worker.call("table", what)

    async def claim(self, broadcast: Broadcast, claimant: Claimant) -> Claim | NotClaimed:
        key = (broadcast.room or "", broadcast.id, broadcast.part)
        return await self._call(lambda: self._claim(key, claimant))

    def _claim(self, key: tuple[str, str, str], claimant: Claimant) -> Claim | NotClaimed:
        world = self._worker.world
        item = world.progress.setdefault(key, {})
        now = world.wall_clock()
        if item.get("damaged"):
            item["damaged"] -= 1
            raise DamagedProgress(str(key))
        holder = item.get("message_id")
        standing = Standing(
            holder, item.get("receives", 0), item.get("token", ""), item.get("seen_at", 0.0), "completed_at" in item
        )
        verdict = judge(standing, claimant, now)
        if isinstance(verdict, NotClaimed):
            return verdict
        if verdict is Resumption.FROM_START:
            item.clear()
        if holder not in (None, claimant.message_id):
            item["progressed"] = claimant.receives - 1
        item.update(message_id=claimant.message_id, receives=claimant.receives, token=claimant.token, seen_at=now)
        start = item.get("checkpoint", Checkpoint())
        fresh_receives = claimant.receives - item.setdefault("progressed", claimant.waited)
        return Claim(cast(Any, key), claimant.message_id, claimant.token, claimant.receives, start, fresh_receives)

    async def write_checkpoint(self, claim: Claim, checkpoint: Checkpoint, *, progress: bool) -> bool:
        def write() -> bool:
            item = self._worker.world.progress[cast(Any, claim.key)]
            if item.get("token") != claim.claimed_by:
                return False
            item["checkpoint"] = Checkpoint.decode(checkpoint.cursor, checkpoint.encode_pending())
            item["seen_at"] = self._worker.world.wall_clock()
            if progress:
                item["progressed"] = claim.receives
            return True

        return await self._call(write)

    async def complete(self, claims: Sequence[Claim]) -> list[Claim]:
        def write() -> list[Claim]:
            now = self._worker.world.wall_clock()
            for claim in claims:
                item = {"message_id": claim.message_id, "completed_at": now, "seen_at": now}
                self._worker.world.progress[cast(Any, claim.key)] = item
            return []

        return await self._call(write)

    async def forget(self, broadcast: Broadcast) -> None:
        key = (broadcast.room or "", broadcast.id, broadcast.part)
        await self._call(lambda: self._worker.world.progress.pop(key, None))

    async def release(self, claim: Claim) -> bool:
        def release() -> bool:
            item = self._worker.world.progress[cast(Any, claim.key)]
            if "message_id" in item and item["token"] != claim.claimed_by:
                return False
            for attribute in ("message_id", "token", "receives", "progressed"):
                item.pop(attribute, None)
            return True

        return await self._call(release)


class MemoryPool:
    """What the engine uses of `Pool`. A post has its effect when it is sent, whatever becomes of the worker."""

    def __init__(self, worker: SimulatedWorker, owner: ExchangeHandler[Exchange]) -> None:
        self.address = Address.of("http://127.0.0.1:1/live")
        self.in_flight = 0
        self.open_connections = CONNECTIONS
        self.problem: str | None = None
        self._worker = worker
        self._owner = owner
        self._answers: list[tuple[float, int, float, Exchange, int | None]] = []
        self._sequence = itertools.count()

    @property
    def idle(self) -> int:
        return CONNECTIONS - self.in_flight

    @property
    def busy(self) -> bool:
        return self.in_flight > 0

    def resolved(self, addresses: object) -> None: ...

    def want(self, more: int, now: float) -> None: ...

    def send(self, exchange: Exchange, request: bytes, now: float) -> None:
        self.in_flight += 1
        if not self._worker.alive:
            return
        world = self._worker.world
        connection_id = unquote(request.split(b" ", 2)[1].decode().rpartition("/")[2])
        if connection_id not in world.named:
            status = world.made_up()
        elif request.startswith(b"DELETE "):
            world.closed[connection_id] += 1
            status = 204
        elif connection_id in world.closed:
            status = 410
        else:
            world.posts[connection_id] += 1
            status = world.answer(connection_id, world.posts[connection_id])
            if status == 200:
                world.delivered[connection_id] += 1
                world.received.setdefault(connection_id, []).append((now, request.rpartition(b"\r\n")[2].decode()))
        heapq.heappush(self._answers, (now + world.latency(), next(self._sequence), now, exchange, status))

    def poll(self, now: float) -> None:
        ordinary: list[Exchange] = []
        seconds: list[float] = []
        while self._answers and self._answers[0][0] <= now:
            _, _, started_at, exchange, status = heapq.heappop(self._answers)
            self.in_flight -= 1
            if status is None:
                self._owner.failed(exchange, "reset", now - started_at, now)
            elif status == 200:
                ordinary.append(exchange)
                seconds.append(now - started_at)
            else:
                self._owner.answered(exchange, Answer(status, {}, b"", reusable=True), now - started_at, now)
        if ordinary:
            self._owner.on_plain_responses(ordinary, seconds, now)

    def sweep(self, now: float) -> None: ...

    def close(self) -> None: ...
