"""In-memory implementations of the worker's ports: a queue, a table and a progress store, without AWS.

They behave as `worker.aws` does on SQS and DynamoDB: tests/integration/test_store_contracts.py runs the same tests on
both. The stored state (`QueueState`, `TableState`, `ProgressItems`) is separate from the stores, so that several
workers can share it. Time comes from the clocks that are passed in.

`before_call` determines what a call costs. It is awaited before the call takes effect, so a call that fails or is
cancelled there has no effect.
"""

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import UNSET

from gatecast import table as keys
from gatecast.broadcast import Broadcast, utf8_length
from gatecast.room_settings import SettingsItem
from gatecast.table import Key, lenient_number
from worker.aws.progress_item import TTL_SECONDS
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import DUPLICATE_SECONDS, Claimant, NotClaimed, Resumption, Standing, decide
from worker.decisions.history import MAX_SHARED, Conflict, SeenHead
from worker.decisions.parts import MAX_BATCH, MAX_BATCH_BYTES
from worker.decisions.receipts import SharedReceipt, Sums, end, expect, forget
from worker.ports import (
    MAX_BATCH_GET,
    Append,
    Claim,
    Connection,
    Count,
    DamagedProgress,
    DependencyError,
    JoinedRoom,
    Member,
    Message,
    MessageRejected,
    NewEntry,
    Page,
    PortError,
    StaleReceipt,
)

BeforeCall = Callable[[str, str], Awaitable[None]]
"""Called with the component and the operation. It may wait, raise a PortError, or never return."""
Item = Mapping[str, Any]
"""An item of the table in DynamoDB's JSON, as `gatecast.table` makes it."""

DEDUPLICATION_SECONDS: Final = 300.0
_LONG_POLL_SECONDS: Final = 5.0
_MAX_TOKEN_LENGTH: Final = 36


async def no_cost(component: str, operation: str) -> None:
    """The call takes effect at once."""
    del component, operation


@dataclass(eq=False)
class StoredMessage:
    """A message on a queue. `visible_at` is in the queue's monotonic seconds."""

    id: str
    body: str
    group: str
    visible_at: float
    sent_at_ms: int
    receive_count: int = 0
    receipt_handle: str = ""
    """Of its latest receive."""


class QueueState:
    """The messages of one queue, in the order in which they were sent, and what SQS does with them.

    `clock` gives monotonic seconds, `wall_clock` seconds since the epoch. While `rejects` returns True, every message
    is rejected. With `honours_superseded` a superseded receipt handle has the effect of the latest one on a standard
    queue, as on LocalStack: AWS documents only that it might have none. Sources: the API reference of SQS for
    ChangeMessageVisibility and DeleteMessage, its developer guide for FIFO queues, and AWS's Knowledge Center for
    expired receipt handles.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        fifo: bool = False,
        rejects: Callable[[], bool] = lambda: False,
        honours_superseded: bool = False,
    ) -> None:
        self.messages: list[StoredMessage] = []
        self.fifo = fifo
        self._honours_superseded = honours_superseded
        self._clock = clock
        self._wall_clock = wall_clock
        self._rejects = rejects
        self._issued: dict[str, StoredMessage] = {}
        """By receipt handle, also by superseded ones."""
        self._deduplicated_until: dict[str, float] = {}
        self._numbers = itertools.count()

    def send(self, message: Mapping[str, Any]) -> MessageRejected | None:
        """Store a message, given as SendMessage takes it, or return why SQS rejects it."""
        delay_seconds = message.get("DelaySeconds", 0)
        deduplication_id = message.get("MessageDeduplicationId")
        if self._rejects() or (delay_seconds if self.fifo else deduplication_id is not None):
            return MessageRejected("InvalidParameterValue")
        now = self._clock()
        if self.fifo:
            assert deduplication_id is not None, "the queue has no content-based deduplication"
            assert message["MessageGroupId"]
            if now < self._deduplicated_until.get(deduplication_id, now):
                return None
            self._deduplicated_until[deduplication_id] = now + DEDUPLICATION_SECONDS
        self.messages.append(
            StoredMessage(
                f"m{next(self._numbers)}",
                message["MessageBody"],
                message.get("MessageGroupId", ""),
                now + delay_seconds,
                int(self._wall_clock() * 1000),
            )
        )
        return None

    def receive(self, limit: int, visibility_seconds: int) -> list[Message]:
        """At most `limit` visible messages. A FIFO queue returns none of a group that has messages in flight."""
        now = self._clock()
        visible = [each for each in self.messages if each.visible_at <= now]
        if self.fifo:
            blocked = {each.group for each in self.messages if each.visible_at > now}
            visible = [each for each in visible if each.group not in blocked]
        return [self._received(each, now + visibility_seconds) for each in visible[:limit]]

    def _received(self, stored: StoredMessage, visible_at: float) -> Message:
        stored.receive_count += 1
        stored.visible_at = visible_at
        stored.receipt_handle = f"{stored.id}/{next(self._numbers)}"
        self._issued[stored.receipt_handle] = stored
        return Message(
            stored.id, stored.receipt_handle, stored.body, stored.receive_count, stored.sent_at_ms, stored.group
        )

    def delete(self, receipt_handle: str) -> StaleReceipt | None:
        """Delete a message. For a superseded receipt handle a standard queue returns no error, and deletes or not."""
        stored = self._issued.get(receipt_handle)
        if stored is None:
            return StaleReceipt("ReceiptHandleIsInvalid")
        latest = stored.receipt_handle == receipt_handle or (self._honours_superseded and not self.fifo)
        if self.fifo and not (latest and stored.visible_at > self._clock()):
            return StaleReceipt("InvalidParameterValue")  # "The receipt handle has expired"
        if latest and stored in self.messages:
            self.messages.remove(stored)
        return None

    def change_visibility(self, receipt_handle: str, seconds: int) -> StaleReceipt | None:
        """Change the visibility timeout of a message in flight."""
        now = self._clock()
        stored = self._issued.get(receipt_handle)
        if stored is None:
            return StaleReceipt("ReceiptHandleIsInvalid")
        superseded = stored.receipt_handle != receipt_handle
        if stored not in self.messages or (superseded and not self._honours_superseded):
            return StaleReceipt("InvalidParameterValue")
        if stored.visible_at <= now:
            return StaleReceipt("MessageNotInflight")
        stored.visible_at = now + seconds
        return None

    def count(self) -> dict[str, int]:
        now = self._clock()
        invisible = [each for each in self.messages if each.visible_at > now]
        in_flight = sum(each.receive_count > 0 for each in invisible)
        return {
            "visible": len(self.messages) - len(invisible),
            "in_flight": in_flight,
            "delayed": len(invisible) - in_flight,
        }


class MemoryQueue:
    """A `MessageQueue` on a QueueState. A long poll looks at the queue every `poll_seconds`."""

    def __init__(
        self,
        state: QueueState,
        *,
        component: str = "queue",
        before_call: BeforeCall = no_cost,
        poll_seconds: float = 0.5,
    ) -> None:
        self.url = f"http://queue/broadcasts{'.fifo' if state.fifo else ''}"
        self._state = state
        self._component = component
        self._before_call = before_call
        self._poll_seconds = poll_seconds

    async def receive(self, limit: int, *, visibility_seconds: int, wait: bool = True) -> list[Message]:
        assert 1 <= limit <= MAX_BATCH
        for _ in range(int(_LONG_POLL_SECONDS / self._poll_seconds) if wait else 1):
            await self._before_call(self._component, "receive")
            received = self._state.receive(limit, visibility_seconds)
            if received or not wait:
                break
            await asyncio.sleep(self._poll_seconds)
        return received

    async def count(self) -> dict[str, int]:
        await self._before_call(self._component, "count")
        return self._state.count()

    async def delete(self, receipt_handles: Sequence[str]) -> list[PortError | None]:
        assert 1 <= len(receipt_handles) <= MAX_BATCH
        await self._before_call(self._component, "delete")
        return [self._state.delete(each) for each in receipt_handles]

    async def change_visibility(self, receipt_handles: Sequence[str], seconds: int) -> list[PortError | None]:
        assert 1 <= len(receipt_handles) <= MAX_BATCH
        await self._before_call(self._component, "change_visibility")
        return [self._state.change_visibility(each, seconds) for each in receipt_handles]

    async def send(self, messages: Sequence[dict[str, Any]]) -> list[PortError | None]:
        assert 1 <= len(messages) <= MAX_BATCH
        await self._before_call(self._component, "send")
        if sum(utf8_length(each["MessageBody"]) for each in messages) > MAX_BATCH_BYTES:
            raise MessageRejected("BatchRequestTooLong")
        return [self._state.send(each) for each in messages]


class TableState:
    """The items of a table, by partition key and sort key."""

    def __init__(self) -> None:
        self._items: dict[str, dict[str, Item]] = {}
        self.transactions: dict[str, Append] = {}
        """Those that were sent, by token."""
        self.executed: set[str] = set()
        """The tokens of those that were executed."""

    def put(self, item: Item) -> None:
        self._items.setdefault(item["pk"]["S"], {})[item["sk"]["S"]] = item

    def get(self, pk: str, sk: str) -> Item | None:
        return self._items.get(pk, {}).get(sk)

    def delete(self, key: Key) -> None:
        self._items.get(key["pk"]["S"], {}).pop(key["sk"]["S"], None)

    def query(self, pk: str, *, after: str = "", prefix: str = "") -> list[Item]:
        """The items with this partition key, in the order of their sort keys."""
        items = self._items.get(pk, {})
        return [items[sk] for sk in sorted(items) if sk > after and sk.startswith(prefix)]


class MemoryTable:
    """A `MemberTable` on a TableState. `wall_clock` gives seconds since the epoch."""

    def __init__(
        self,
        state: TableState,
        *,
        wall_clock: Callable[[], float],
        before_call: BeforeCall = no_cost,
        page_members: int = 700,
    ) -> None:
        self.unprocessed: list[int] = []
        """How many items each of the next batches leaves unprocessed, as DynamoDB may."""
        self._state = state
        self._wall_clock = wall_clock
        self._before_call = before_call
        self._page_members = page_members

    def begin_page(self, room: str, shard: int, after: str = "") -> Awaitable[Page]:
        page = asyncio.create_task(self._page(room, shard, after))
        page.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return page

    async def _page(self, room: str, shard: int, after: str) -> Page:
        await self._before_call("table", "begin_page")
        now = self._wall_clock()
        following = self._state.query(keys.room_pk(room, shard), after=after)
        items = following[: self._page_members]
        members: list[Member] = []
        expired: list[Member] = []
        for item in items:
            member = Member(item["sk"]["S"], int(_number(item, "joined_at_ms", 0)), keys.frames_of(item))
            (expired if _number(item, "expires_at", now + 1) <= now else members).append(member)
        return Page(members, items[-1]["sk"]["S"] if len(following) > len(items) else None, expired)

    async def settings(self, names: Sequence[str]) -> Sequence[SettingsItem | DependencyError]:
        assert len(names) <= MAX_BATCH_GET
        await self._before_call("table", "settings")
        return [SettingsItem.from_item(self._state.get(keys.settings_pk(each), keys.SETTINGS_SK)) for each in names]

    async def connections(self, connection_ids: Sequence[str]) -> dict[str, Connection]:
        assert len(connection_ids) <= MAX_BATCH_GET
        await self._before_call("table", "connections")
        items = {each: self._state.get(keys.connection_pk(each), keys.CONNECTION_SK) for each in connection_ids}
        return {
            each: Connection(
                int(_number(item, "connected_at_ms", 0)), keys.frames_of(item), _number(item, "expires_at", math.inf)
            )
            for each, item in items.items()
            if item is not None
        }

    async def remove_connections(self, connection_ids: Sequence[str]) -> list[str]:
        doomed = [keys.key(keys.connection_pk(each), keys.CONNECTION_SK) for each in connection_ids]
        unprocessed = await self.delete_batch(doomed)
        return [key["pk"]["S"].removeprefix(keys.connection_pk("")) for key in unprocessed]

    async def joined_rooms(self, connection_id: str) -> list[JoinedRoom]:
        await self._before_call("table", "joined_rooms")
        items = self._state.query(keys.connection_pk(connection_id), prefix=keys.JOINED_ROOM_PREFIX)
        return [
            JoinedRoom(
                item["sk"]["S"].removeprefix(keys.JOINED_ROOM_PREFIX), keys.shard_of_item(item), keys.present_user(item)
            )
            for item in items
        ]

    async def delete_batch(self, doomed: Sequence[Key]) -> list[Key]:
        assert 1 <= len(doomed) <= keys.MAX_BATCH_WRITE
        assert len({(key["pk"]["S"], key["sk"]["S"]) for key in doomed}) == len(doomed), (
            "a duplicate key fails the whole call"
        )
        await self._before_call("table", "delete_batch")
        processed_from = self.unprocessed.pop(0) if self.unprocessed else 0
        for key in doomed[processed_from:]:
            self._state.delete(key)
        return list(doomed[:processed_from])


class MemoryPresence:
    """A `PresenceStore` on a TableState. `wall_clock` gives seconds since the epoch."""

    def __init__(
        self, state: TableState, *, wall_clock: Callable[[], float], before_call: BeforeCall = no_cost
    ) -> None:
        self._state = state
        self._wall_clock = wall_clock
        self._before_call = before_call

    async def is_present(self, room: str, user: str) -> bool:
        await self._before_call("table", "is_present")
        items = self._state.query(keys.presence_pk(room), prefix=keys.presence_sk(user, ""))
        return any(_number(item, "expires_at", math.inf) > self._wall_clock() for item in items)

    async def write_counts(self, counts: Sequence[Count]) -> None:
        assert 1 <= len(counts) <= keys.MAX_BATCH_WRITE
        assert len({(each.room, each.shard) for each in counts}) == len(counts), "a duplicate key fails the whole call"
        await self._before_call("table", "write_counts")
        for room, shard, members, counted_at_ms in counts:
            self._state.put(keys.count_item(room, shard, members=members, counted_at_ms=counted_at_ms))


def _number(item: Item, attribute: str, default: float) -> float:
    number = lenient_number(item.get(attribute))
    return default if number is None else number


@dataclass
class ProgressItem:
    """A broadcast's claim and checkpoint. Times are whole seconds since the epoch."""

    message_id: str | None = None
    """None if the claim was released."""
    receive_count: int = 0
    claim_id: str = ""
    seen_at: int = 0
    """When the broadcast was last known to be in progress, or completed."""
    expires_at: int | None = None
    completed: bool = False
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    progressed_at: int | None = None
    """The receive count at which a member last had an outcome, or until which receives do not count."""
    offset: int | None = None
    """In the room's history."""
    revision: int = 0
    """The number of the latest checkpoint with a receipt under the current claim."""
    unreadable_claims: int = 0
    """How many of the next claims find the item damaged."""

    def standing(self, now: int) -> Standing:
        """An expired item counts as so old that any other message may start the broadcast again."""
        seen_at = self.seen_at
        if self.expires_at is not None and self.expires_at <= now:
            seen_at = min(seen_at, now - DUPLICATE_SECONDS)
        return Standing(self.message_id, self.receive_count, self.claim_id, seen_at, self.completed)


ProgressItems = dict[tuple[str, str], ProgressItem]
"""By partition key and sort key."""


def progress_key(broadcast: Broadcast) -> tuple[str, str]:
    return keys.progress_pk(broadcast.room or "", broadcast.id), keys.progress_sk(broadcast.part)


class MemoryProgress:
    """A `ProgressStore` on ProgressItems. `wall_clock` gives seconds since the epoch."""

    def __init__(
        self,
        items: ProgressItems,
        *,
        wall_clock: Callable[[], float],
        before_call: BeforeCall = no_cost,
    ) -> None:
        self._items = items
        self._wall_clock = wall_clock
        self._before_call = before_call

    async def claim(self, broadcast: Broadcast, claimant: Claimant) -> Claim | NotClaimed:
        await self._before_call("progress", "claim")
        key = progress_key(broadcast)
        item = self._items.setdefault(key, ProgressItem())
        if item.unreadable_claims:
            item.unreadable_claims -= 1
            raise DamagedProgress(key[0], item.offset)
        now = int(self._wall_clock())
        verdict = decide(item.standing(now), claimant, now)
        if isinstance(verdict, NotClaimed):
            return verdict
        if verdict is Resumption.FROM_START:
            item.checkpoint = Checkpoint()
            item.offset = None
            item.completed = False
        if item.message_id not in (None, claimant.message_id):
            item.progressed_at = (
                claimant.receive_count - 1
            )  # earlier receives only waited for the other message's claim
        elif item.progressed_at is None:
            item.progressed_at = claimant.waited
        item.message_id = claimant.message_id
        item.receive_count = claimant.receive_count
        item.claim_id = claimant.claim_id
        item.revision = 0
        item.seen_at = now
        item.expires_at = now + TTL_SECONDS
        assert item.progressed_at is not None
        return Claim(
            keys.key(*key),
            claimant.message_id,
            claimant.claim_id,
            claimant.receive_count,
            item.checkpoint,
            claimant.receive_count - item.progressed_at,
            item.offset,
        )

    async def complete(self, claims: Sequence[Claim]) -> list[Claim]:
        assert 1 <= len(claims) <= keys.MAX_BATCH_WRITE
        await self._before_call("progress", "complete")
        now = int(self._wall_clock())
        for claim in claims:
            self._items[_key(claim)] = ProgressItem(
                message_id=claim.message_id, seen_at=now, expires_at=now + TTL_SECONDS, completed=True
            )
        return []

    async def reset(self, broadcast: Broadcast) -> None:
        await self._before_call("progress", "reset")
        self._items.pop(progress_key(broadcast), None)
        if broadcast.offset is not UNSET:
            expires_at = int(self._wall_clock()) + TTL_SECONDS
            self._items[progress_key(broadcast)] = ProgressItem(expires_at=expires_at, offset=broadcast.offset)

    async def write_checkpoint(self, claim: Claim, checkpoint: Checkpoint, *, made_progress: bool) -> bool:
        await self._before_call("progress", "write_checkpoint")
        item = self._items.get(_key(claim))
        if item is None or item.claim_id != claim.claim_id:
            return False
        pending, receipt = checkpoint.encode_pending(), None
        if checkpoint.receipt is not None:
            if item.revision > checkpoint.receipt.revision:
                return False
            item.revision = checkpoint.receipt.revision
            receipt = checkpoint.receipt.encode(checkpoint.cursor, pending)
        item.checkpoint = Checkpoint.decode(checkpoint.cursor, pending, checkpoint.encode_v2(), receipt)
        item.seen_at = int(self._wall_clock())
        if made_progress:
            item.progressed_at = claim.receive_count
        return True

    async def release(self, claim: Claim) -> bool:
        await self._before_call("progress", "release")
        item = self._items.get(_key(claim))
        if item is None or (item.message_id is not None and item.claim_id != claim.claim_id):
            return False
        item.message_id = item.progressed_at = None
        item.claim_id = ""
        item.receive_count = 0
        return True


class MemoryReceipts:
    """A `ReceiptStore` on shared receipts, by the keys of their items."""

    def __init__(self, items: dict[tuple[str, str], SharedReceipt], *, before_call: BeforeCall = no_cost) -> None:
        self._items = items
        self._before_call = before_call

    async def expect(self, key: Key, begun_by: str, parts: Sequence[str]) -> None:
        await self._before_call("receipts", "expect")
        self._put(key, expect(self._get(key), begun_by, frozenset(parts)))

    async def forget(self, key: Key, part: str) -> None:
        await self._before_call("receipts", "forget")
        self._put(key, forget(self._get(key), part))

    async def end(self, key: Key, part: str, sums: Sums, milliseconds: int) -> SharedReceipt | None:
        await self._before_call("receipts", "end")
        ended = end(self._get(key), part, sums, milliseconds)
        if ended is not None:
            self._put(key, ended)
        return ended

    def _get(self, key: Key) -> SharedReceipt | None:
        return self._items.get((key["pk"]["S"], key["sk"]["S"]))

    def _put(self, key: Key, receipt: SharedReceipt | None) -> None:
        if receipt is not None:
            self._items[key["pk"]["S"], key["sk"]["S"]] = receipt


class MemoryStream:
    """A `StreamStore` on a TableState and ProgressItems.

    `after_call` is awaited after a call has taken effect: what it raises is as a response that is lost.
    """

    def __init__(
        self,
        state: TableState,
        progress: ProgressItems,
        *,
        before_call: BeforeCall = no_cost,
        after_call: BeforeCall = no_cost,
    ) -> None:
        self._state = state
        self._progress = progress
        self._before_call = before_call
        self._after_call = after_call

    async def head(self, room: str) -> SeenHead:
        await self._before_call("stream", "head")
        return SeenHead((self._head_item(room) or {}).get("offset"))

    async def append(self, request: Append) -> Conflict | None:
        await self._before_call("stream", "append")
        assert 1 <= len(request.token) <= _MAX_TOKEN_LENGTH
        assert len({_key(entry.claim) for entry in request.entries}) == len(request.entries) <= MAX_SHARED
        assert self._state.transactions.setdefault(request.token, request) == request, "the token of another one"
        conflict = None if request.token in self._state.executed else self._execute(request)
        if conflict is None:
            self._state.executed.add(request.token)
        await self._after_call("stream", "append")
        return conflict

    async def skip(self, room: str) -> None:
        await self._before_call("stream", "skip")
        item = self._head_item(room)
        offset = (item or {}).get("offset", {}).get("N")
        if item is not None and offset is not None:
            self._state.put({**item, "offset": {"N": str(int(offset) + 1)}})
        await self._after_call("stream", "skip")

    def _head_item(self, room: str) -> Item | None:
        return self._state.get(keys.stream_pk(room), keys.HEAD_SK)

    def _execute(self, request: Append) -> Conflict | None:
        head = self._head_item(request.room)
        head_changed = (head or {}).get("offset") != request.head.stored
        occupied = {number for number, entry in enumerate(request.entries) if self._entry(entry) is not None}
        recorded: dict[int, int] = {}
        taken_over = set()
        for number, entry in enumerate(request.entries):
            item = self._progress.get(_key(entry.claim))
            if item is None or item.completed or item.claim_id != entry.claim.claim_id:
                taken_over.add(number)
            elif item.offset is not None:
                recorded[number] = item.offset
        if head_changed or occupied or recorded or taken_over:
            seen = SeenHead(head.get("offset")) if head_changed and head is not None else None
            return Conflict(seen, head_changed, frozenset(occupied), recorded, frozenset(taken_over))
        for entry in request.entries:
            self._state.put(entry.item)
            self._progress[_key(entry.claim)].offset = entry.offset
        offset = {"N": str(request.entries[-1].offset)}
        self._state.put({**keys.key(keys.stream_pk(request.room), keys.HEAD_SK), **(head or {}), "offset": offset})
        return None

    def _entry(self, entry: NewEntry) -> Item | None:
        return self._state.get(entry.item["pk"]["S"], entry.item["sk"]["S"])


def _key(claim: Claim) -> tuple[str, str]:
    return claim.key["pk"]["S"], claim.key["sk"]["S"]
