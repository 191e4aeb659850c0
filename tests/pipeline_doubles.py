"""Small fakes for tests of single modules of the pipeline, which run in virtual time (`tests.simulation`)."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, cast

from gatecast import Broadcast, encode
from gatecast.frames import V1
from gatecast.room_settings import SettingsItem
from tests.memory_payloads import MemoryPayloads
from tests.memory_stores import MemoryReceipts
from tests.simulation import EPOCH
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import Claimant, NotClaimed
from worker.decisions.dearest_rooms import DearestRooms
from worker.decisions.history import Conflict, SeenHead
from worker.decisions.outcome import Outcome
from worker.decisions.receipts import SharedReceipt
from worker.delivery.engine import DeliveryEngine
from worker.delivery.fanout import Delivery, Fanout
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.capacity import Capacity, Place
from worker.pipeline.closer import Closer
from worker.pipeline.counts import Counts
from worker.pipeline.dead_letters import DeadLetters
from worker.pipeline.lease import Lease
from worker.pipeline.payloads import Payloads
from worker.pipeline.presence import Announcement, Announcer
from worker.pipeline.reaper import Reaper
from worker.pipeline.receipts import Receipts
from worker.pipeline.sender import Sender
from worker.pipeline.services import Services
from worker.ports import (
    Append,
    Claim,
    Connection,
    DependencyError,
    Member,
    MemberTable,
    Message,
    MessageQueue,
    Page,
    PortError,
)

VISIBILITY_SECONDS = 30


def now() -> float:
    return asyncio.get_running_loop().time()


def wall_clock() -> float:
    return EPOCH + now()


def message(
    name: str, *, room: str = "room", group: str = "", body: str | None = None, receive_count: int = 1
) -> Message:
    """A message with a broadcast to a room. Its id and its receipt handle are `name`."""
    body = encode(Broadcast(id=name, room=room, data="x")) if body is None else body
    return Message(name, name, body, receive_count, int(EPOCH * 1000), group)


def lease() -> Lease:
    return Lease(message("m"), 0.0, VISIBILITY_SECONDS)


def place() -> Place:
    return Capacity(1).reserve("room")


def claim(
    *,
    start: Checkpoint | None = None,
    receives_without_progress: int = 1,
    offset: int | None = None,
    name: str = "broadcast",
) -> Claim:
    key = {"pk": {"S": name}, "sk": {"S": "part"}}
    return Claim(key, "m", "m/1", 1, start or Checkpoint(), receives_without_progress, offset)


class FakeQueue:
    """Delivers `messages` once and records every other call. `errors` are the results of the next deletions."""

    def __init__(self, *messages: Message, url: str = "http://queue/broadcasts") -> None:
        self.url = url
        self.messages = list(messages)
        self.errors: list[PortError] = []
        self.limits: list[int] = []
        self.deleted: list[str] = []
        self.visibility: list[tuple[str, int]] = []
        self.sent: list[dict[str, Any]] = []

    async def receive(self, limit: int, *, visibility_seconds: int, wait: bool = True) -> list[Message]:
        assert visibility_seconds == VISIBILITY_SECONDS
        self.limits.append(limit)
        received, self.messages = self.messages[:limit], self.messages[limit:]
        if wait and not received:
            await asyncio.sleep(5)
        return received

    async def delete(self, receipt_handles: Sequence[str]) -> list[PortError | None]:
        errors = [self.errors.pop(0) if self.errors else None for _ in receipt_handles]
        self.deleted += [handle for handle, error in zip(receipt_handles, errors, strict=True) if error is None]
        return errors

    async def change_visibility(self, receipt_handles: Sequence[str], seconds: int) -> list[PortError | None]:
        self.visibility += [(handle, seconds) for handle in receipt_handles]
        return [None] * len(receipt_handles)

    async def send(self, messages: Sequence[dict[str, Any]]) -> list[PortError | None]:
        self.sent += messages
        return [None] * len(messages)

    async def count(self) -> dict[str, int]:
        return {"visible": len(self.messages)}


class FakeTable:
    """One room with `members`, in pages of `page_size`. Records the reads of pages and counts those of settings.

    `frames` has the dialects of members and other connections that use v2, `expired` the members with an expired token.
    """

    def __init__(self, *members: str, page_size: int = 100, shards: int = 1) -> None:
        self.members = sorted(members)
        self.page_size = page_size
        self.shards = shards
        self.history_seconds: int | None = None
        self.frames: dict[str, int] = {}
        self.expired: list[str] = []
        self.pages_read: list[str] = []
        self.connections_read: list[list[str]] = []
        self.settings_read = 0

    def begin_page(self, room: str, shard: int, after: str = "") -> Awaitable[Page]:
        assert room
        assert not shard
        self.pages_read.append(after)
        following = [member for member in self.members if member > after]
        ids = following[: self.page_size]
        page: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        members = [Member(each, 0, self.frames.get(each, V1)) for each in ids]
        expired = [Member(each, 0) for each in self.expired]
        page.set_result(Page(members, ids[-1] if len(following) > len(ids) else None, expired))
        return page

    async def settings(self, names: Sequence[str]) -> Sequence[SettingsItem | DependencyError]:
        self.settings_read += 1
        return [SettingsItem(shards=self.shards, history_seconds=self.history_seconds)] * len(names)

    async def connections(self, connection_ids: Sequence[str]) -> dict[str, Connection]:
        self.connections_read.append(list(connection_ids))
        return {each: Connection(0, self.frames.get(each, V1)) for each in connection_ids}


class FakeProgress:
    """Returns or raises each of `results` in turn on a claim; `held` is whether this worker still holds its claim."""

    def __init__(self, *results: Claim | NotClaimed | Exception) -> None:
        self.results = list(results)
        self.held = True
        self.claimants: list[Claimant] = []
        self.checkpoints: list[tuple[Checkpoint, bool]] = []
        self.completed: list[Claim] = []
        self.released = 0
        self.resets = 0

    async def claim(self, broadcast: Broadcast, claimant: Claimant) -> Claim | NotClaimed:
        assert broadcast.id
        self.claimants.append(claimant)
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    async def write_checkpoint(self, claim: Claim, checkpoint: Checkpoint, *, made_progress: bool) -> bool:
        assert claim.key
        self.checkpoints.append((checkpoint, made_progress))
        return self.held

    async def complete(self, claims: Sequence[Claim]) -> list[Claim]:
        self.completed += claims
        return []

    async def release(self, claim: Claim) -> bool:
        assert claim.key
        self.released += 1
        return self.held

    async def reset(self, broadcast: Broadcast) -> None:
        assert broadcast.id
        self.resets += 1


class FakeStream:
    """A room's stream whose appends have these results, or raise them; then they succeed. Its head is `at`."""

    def __init__(self, *results: Conflict | Exception | None, at: int | None = None) -> None:
        self.results = list(results)
        self.seen = SeenHead(None) if at is None else SeenHead.at(at)
        self.heads_read = 0
        self.appends: list[Append] = []
        self.skips = 0

    async def skip(self, room: str) -> None:
        assert room
        self.skips += 1
        self.seen = SeenHead(None) if self.seen.offset is None else SeenHead.at(self.seen.offset + 1)

    async def head(self, room: str) -> SeenHead:
        assert room
        self.heads_read += 1
        await asyncio.sleep(0.001)
        return self.seen

    async def append(self, request: Append) -> Conflict | None:
        self.appends.append(request)
        await asyncio.sleep(0.005)
        result = self.results.pop(0) if self.results else None
        if isinstance(result, Exception):
            raise result
        return result

    @property
    def entries(self) -> list[tuple[str, int]]:
        """Of the latest transaction: ids and offsets."""
        return [(entry.item["id"]["S"], entry.offset) for entry in self.appends[-1].entries]


class FakeEngine:
    """Keeps every delivery that it is offered in flight until the test ends it, or delivers it if `delivers`."""

    def __init__(self, *, delivers: bool = False) -> None:
        self.delivers = delivers
        self.in_flight: dict[str, Delivery] = {}

    def offer(self, fanout: Fanout) -> None:
        while (delivery := fanout.take()) is not None:
            fanout.in_flight += 1
            self.in_flight[delivery.connection_id] = delivery
            if self.delivers:
                self.deliver(delivery.connection_id)

    def retry_later(self, delivery: Delivery) -> None:
        self.in_flight[delivery.connection_id] = delivery
        delivery.fanout.in_flight += 1

    def deliver(self, connection_id: str) -> None:
        delivery = self._end(connection_id)
        delivery.fanout.delivered(delivery)

    def settle(self, connection_id: str, outcome: Outcome) -> None:
        delivery = self._end(connection_id)
        delivery.fanout.settle(delivery, outcome)

    def fail(self, connection_id: str, attempts: int) -> None:
        """Let the delivery wait for a retry, after this number of failed attempts."""
        delivery = self._end(connection_id)
        delivery.counted_attempts = attempts
        delivery.fanout.await_retry(delivery)

    def _end(self, connection_id: str) -> Delivery:
        delivery = self.in_flight.pop(connection_id)
        delivery.fanout.in_flight -= 1
        return delivery


class FakeReaper:
    def __init__(self) -> None:
        self.offered: list[str] = []

    def offer(
        self,
        connection_id: str,
        membership: object,
        joined_at_ms: int | None = None,
        *,
        proven: bool = False,
        locator: str = "",
    ) -> None:
        assert membership
        assert joined_at_ms is not None or proven
        assert not locator
        self.offered.append(connection_id)


class FakeCloser:
    def __init__(self) -> None:
        self.offered: list[str] = []

    def offer(self, expired: Sequence[Member], found_in: object) -> None:
        assert found_in
        self.offered += [member.connection_id for member in expired]


class FakeAnnouncer:
    """Every broadcast is delivered as `result` says."""

    def __init__(self) -> None:
        self.result: Announcement | None = Announcement()

    async def announcement(self, broadcast: Broadcast) -> Announcement | None:
        assert broadcast.id
        return self.result


class FakeCounts:
    def __init__(self) -> None:
        self.counted: list[tuple[str, int, int]] = []

    def read(self, room: str, shard: int, members: int) -> None:
        self.counted.append((room, shard, members))


class Pipeline:
    """The fakes together, and `services` made of them. `dead_letters` is None for a worker without such a queue, and
    so is `receipts`.
    """

    def __init__(
        self,
        table: FakeTable,
        progress: FakeProgress,
        *,
        delivers: bool = False,
        dead_letters: FakeQueue | None = None,
        receipts: FakeQueue | None = None,
        url: str = "http://queue/broadcasts",
    ) -> None:
        self.table = table
        self.progress = progress
        self.queue = FakeQueue(url=url)
        self.engine = FakeEngine(delivers=delivers)
        self.reaper = FakeReaper()
        self.closer = FakeCloser()
        self.announcer = FakeAnnouncer()
        self.counts = FakeCounts()
        self.payloads = MemoryPayloads(wall_clock=wall_clock)
        self.shared_receipts: dict[tuple[str, str], SharedReceipt] = {}
        self.dearest_rooms = DearestRooms()
        self.health = Health(clock=now)
        self.metrics = Metrics(self.health)
        self.services = Services(
            sender=Sender(cast(MessageQueue, self.queue), self.health),
            table=cast(MemberTable, table),
            progress=progress,
            dead_letters=DeadLetters(cast("MessageQueue | None", dead_letters), self.health, self.metrics.dead_letters),
            engine=cast(DeliveryEngine, self.engine),
            reaper=cast(Reaper, self.reaper),
            closer=cast(Closer, self.closer),
            announcer=cast(Announcer, self.announcer),
            payloads=Payloads(self.payloads, self.health),
            receipts=Receipts(
                cast("MessageQueue | None", receipts),
                store=MemoryReceipts(self.shared_receipts),
                progress=progress,
                health=self.health,
                metrics=self.metrics,
            ),
            dearest_rooms=self.dearest_rooms,
            counts=cast(Counts, self.counts),
            health=self.health,
            metrics=self.metrics,
            clock=now,
            wall_clock=wall_clock,
        )


def ids(count: int) -> list[str]:
    return [f"c{number:04d}=" for number in range(count)]


def reasons(queue: FakeQueue) -> list[str]:
    """The reasons of the dead letters on this queue."""
    return [entry["MessageAttributes"]["reason"]["StringValue"] for entry in queue.sent]
