"""Rooms' histories: give each message its offset, and write it to its room's stream, before members are read.

Per room one transaction runs at a time in this worker. Messages that wait meanwhile share the next one, in the order in
which their broadcasts were received. `worker.decisions.history` describes the transaction and decides what a cancelled
one means. If another worker was faster, the response contains the head to continue from.

What if we die at an await? Before the transaction nothing has happened; after it the offset is in the progress item,
where the worker that takes the broadcast over reads it with its claim. While a call is in flight it may be either. The
same holds if the lease is lost: a transaction still in flight has no effect once another worker has the claim.
"""

import asyncio
import random
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final
from uuid import uuid4

import msgspec
import structlog
from msgspec import UNSET

from gatecast import frames
from gatecast.broadcast import Broadcast
from gatecast.entries import entry_item
from gatecast.table import MAX_HEAD, stream_pk
from worker.decisions.history import Known, NotAppended, SeenHead, outcome, share, size_of
from worker.observe.damaged_items import DamagedItems
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.lease import Lease, LeaseState
from worker.pipeline.room_settings import CACHE_SECONDS
from worker.ports import Append, Claim, DependencyError, EntryRejected, NewEntry, StreamStore
from worker.resilience import retry_forever

log = structlog.get_logger()

_MAX_ROOMS: Final = 10_000
_CONTENDED_SECONDS: Final = 5.0
"""For how long after a lost race the head is read before it is needed: another worker probably changes it, too."""
_OFF_SECONDS: Final = 2 * CACHE_SECONDS
_JITTER_SECONDS: Final = 0.004
"""Up to this long after a lost race the transaction is repeated. A longer wait would only make the known head older, so
it grows, by up to `_MAX_DOUBLINGS`, only after `_PROMPT_RACES` lost races in a row."""
_PROMPT_RACES: Final = 8
_MAX_DOUBLINGS: Final = 4
_PAUSE_SECONDS: Final = 0.01
"""Up to this long after a transaction the next one of the same room waits: other workers get their turn, and more
messages share it. A message that finds no transaction running does not wait."""


class _Waiting:
    """A broadcast that waits for its offset."""

    __slots__ = ("broadcast", "claim", "has_payload", "history_seconds", "key", "order", "result", "size")

    def __init__(self, broadcast: Broadcast, claim: Claim, order: int, history_seconds: int) -> None:
        self.broadcast = broadcast
        self.claim = claim
        self.order = order
        self.history_seconds = history_seconds
        self.key = (claim.key["pk"]["S"], claim.key["sk"]["S"])
        self.size = size_of(broadcast)
        self.has_payload = True
        self.result: asyncio.Future[int | NotAppended] = asyncio.get_running_loop().create_future()

    def resolve(self, result: int | NotAppended) -> None:
        """It may have stopped waiting meanwhile."""
        if not self.result.done():
            self.result.set_result(result)

    def entry(self, offset: int, now: float) -> NewEntry:
        """Its stream entry. Without its payload it is unreadable: clients learn that they miss a message."""
        message = msgspec.structs.replace(frames.Message.from_broadcast(self.broadcast), offset=offset)
        if not self.has_payload:
            message = msgspec.structs.replace(message, data=UNSET, json=UNSET)
        expires_at_ms = self.broadcast.expires_at_ms
        item = entry_item(
            str(self.broadcast.room),
            message,
            expires_at=int(now) + self.history_seconds,
            message_expires_at_ms=None if expires_at_ms is UNSET else expires_at_ms,
            reference=self.broadcast.reference if self.has_payload else UNSET,
        )
        return NewEntry(offset, item, self.claim)


class _Room:
    """What this worker has seen of a room's stream, and when it last lost a race for it (in monotonic seconds)."""

    __slots__ = ("known", "off_since", "raced_at")

    def __init__(self) -> None:
        self.known = Known()
        self.raced_at = float("-inf")
        self.off_since: float | None = None
        """When this worker first delivered a message without an offset after the room's history was switched off."""


class History:
    """Appends to rooms' histories. `clock` returns monotonic seconds, `wall_clock` seconds since the epoch."""

    def __init__(
        self,
        stream: StreamStore,
        *,
        health: Health,
        metrics: Metrics,
        damaged: DamagedItems,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._stream = stream
        self._health = health
        self._metrics = metrics
        self._damaged = damaged
        self._clock = clock
        self._wall_clock = wall_clock
        self._rooms: OrderedDict[str, _Room] = OrderedDict()
        self._queues: dict[str, list[_Waiting]] = {}
        """The broadcasts that wait for the next transaction, of each room for which a transaction is running."""
        self._reads: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def remembers(self, room: str) -> bool:
        """Whether the room had a history recently."""
        return room in self._rooms

    async def omit(self, room: str, *, has_history: bool) -> None:
        """Skip an offset, because a message of the room is about to be delivered without one.

        Then a client that misses the message misses the offset, too, and is notified. In a room without history nothing
        is done, unless it had one: for `_OFF_SECONDS` other workers may still append, and clients have positions.
        """
        seen = self._room(room) if has_history else self._rooms.get(room)
        if seen is None:
            return
        if not has_history:
            now = self._clock()
            seen.off_since = now if seen.off_since is None else seen.off_since
            if now - seen.off_since >= _OFF_SECONDS:
                del self._rooms[room]
                return
        seen.known = seen.known._replace(head=None)
        await retry_forever("history", self._health, partial(self._stream.skip, room))

    def begin(self, room: str) -> None:
        """Start reading the room's head, if it is not known or has probably changed, for `append` to use."""
        if room in self._reads or room in self._queues:
            return
        seen = self._rooms.get(room)
        if seen and seen.known.head is not None and self._clock() - seen.raced_at >= _CONTENDED_SECONDS:
            return
        task = self._reads[room] = asyncio.create_task(self._read_early(room), name="read head")
        task.add_done_callback(lambda _: self._reads.pop(room, None))

    async def _read_early(self, room: str) -> None:
        try:
            head = await self._stream.head(room)
        except DependencyError:
            return  # it is read again when it is needed
        seen = self._room(room)
        seen.known = seen.known.after_read(head)

    async def append(
        self, broadcast: Broadcast, claim: Claim, lease: Lease, *, order: int, history_seconds: int
    ) -> int | NotAppended:
        """Append the broadcast's message to its room's history. Returns its offset, or why it has none.

        `order` is the number of the broadcast in the order in which this worker received them.
        """
        if lease.state is not LeaseState.HELD:
            return NotAppended.STOPPED
        started_at = self._clock()
        self._room(str(broadcast.room)).off_since = None
        waiting = _Waiting(broadcast, claim, order, history_seconds)
        self._enqueue(str(broadcast.room), waiting)
        lease.on_change = lambda: waiting.resolve(NotAppended.STOPPED)
        try:
            result = await waiting.result
        finally:
            lease.on_change = None
            waiting.result.cancel()
        if isinstance(result, int):
            self._metrics.history_append_duration.observe(self._clock() - started_at)
            self._metrics.history_messages["appended" if waiting.has_payload else "without_payload"] += 1
        return result

    def _enqueue(self, room: str, waiting: _Waiting) -> None:
        queue = self._queues.get(room)
        if queue is None:
            queue = self._queues[room] = []
            task = asyncio.create_task(self._run(room, queue), name="append")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        insort(queue, waiting, key=lambda each: each.order)

    async def _run(self, room: str, queue: list[_Waiting]) -> None:
        """Append what waits for this room, one transaction after another, until nothing waits."""
        batch: list[_Waiting] = []
        try:
            while batch := self._next_batch(queue):
                await self._append_all(room, batch)
                if queue:
                    await asyncio.sleep(random.random() * _PAUSE_SECONDS)
        except Exception as error:  # noqa: BLE001 - every error must reach those that wait
            for each in (*batch, *queue):
                if not each.result.done():
                    each.result.set_exception(error)
        finally:
            del self._queues[room]

    def _next_batch(self, queue: list[_Waiting]) -> list[_Waiting]:
        """Take what shares the next transaction out of the queue."""
        queue[:] = [each for each in queue if not each.result.done()]
        numbers = set(share((each.key, each.size) for each in queue))
        batch = [each for number, each in enumerate(queue) if number in numbers]
        queue[:] = [each for number, each in enumerate(queue) if number not in numbers]
        return batch

    async def _append_all(self, room: str, batch: list[_Waiting]) -> None:
        """Append these, in order, until each has a result."""
        races = collisions = 0
        while batch := [each for each in batch if not each.result.done()]:
            seen = await self._room_with_head(room)
            request = self._transaction(room, seen.known, batch, collisions)
            if request is None:
                self._reject(batch, "no offset is left")
                return
            try:
                conflict = await retry_forever("history", self._health, partial(self._stream.append, request))
            except EntryRejected as rejected:
                await self._append_singly(room, batch, rejected)
                return
            self._metrics.history_transactions += 1
            if conflict is None:
                seen.known = seen.known.after(SeenHead.at(request.entries[-1].offset))
                for each, entry in zip(batch, request.entries, strict=True):
                    each.resolve(entry.offset)
                return
            seen.known = seen.known.after_conflict(conflict, [entry.offset for entry in request.entries])
            for number, each in enumerate(batch):
                if (result := outcome(number, conflict)) is not None:
                    each.resolve(result)
            collisions += bool(conflict.occupied)
            if conflict.lost_race:
                self._metrics.history_conflicts += 1
                seen.raced_at = self._clock()
                races += 1
                doublings = min(max(0, races - _PROMPT_RACES), _MAX_DOUBLINGS)
                await asyncio.sleep(random.random() * _JITTER_SECONDS * (1 << doublings))

    async def _room_with_head(self, room: str) -> _Room:
        """What is known of the room, with a head: the cached one, the one that is being read, or one read now."""
        reading = self._reads.get(room)
        if reading is not None:
            await asyncio.wait({reading})
        seen = self._room(room)
        if seen.known.head is None:
            seen.known = seen.known.after(await retry_forever("history", self._health, lambda: self._stream.head(room)))
        return seen

    def _room(self, room: str) -> _Room:
        seen = self._rooms.get(room)
        if seen is None:
            seen = self._rooms[room] = _Room()
            if len(self._rooms) > _MAX_ROOMS:
                self._rooms.popitem(last=False)
        self._rooms.move_to_end(room)
        return seen

    def _transaction(self, room: str, known: Known, batch: list[_Waiting], collisions: int) -> Append | None:
        """The transaction that appends these; None if their offsets would be too large for the table's keys."""
        head = known.head or SeenHead(None)
        if head.is_damaged:
            self._damaged.report("stream", stream_pk(room), "the head's offset is not a number that offsets can have")
        now = self._wall_clock()
        first = known.next_offset(int(now * 1000), collisions)
        if first > MAX_HEAD:
            return None
        entries = [each.entry(first + number, now) for number, each in enumerate(batch)]
        return Append(room, head, entries, uuid4().hex)

    async def _append_singly(self, room: str, batch: list[_Waiting], rejected: EntryRejected) -> None:
        """DynamoDB rejects the transaction: no other message may suffer from the one that causes it.

        That one gets an offset and an entry without a payload, which readers report as missing. If even that is
        rejected, it is delivered without an offset: a room must not wait for ever for one message.
        """
        if len(batch) > 1:
            for each in batch:
                await self._append_all(room, [each])
        elif batch[0].has_payload:
            log.error("history.payload_rejected", id=batch[0].broadcast.id, code=rejected.code)
            batch[0].has_payload = False
            await self._append_all(room, batch)
        else:
            self._reject(batch, rejected.code)

    def _reject(self, batch: list[_Waiting], code: str) -> None:
        for each in batch:
            log.error("history.rejected", id=each.broadcast.id, code=code)
            self._metrics.history_messages["rejected"] += 1
            each.resolve(NotAppended.REJECTED)
