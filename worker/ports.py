"""What the worker requires of its queue and its table, in its own terms. `worker.aws` implements it on AWS.

A call that fails raises DependencyError and may succeed when it is retried. Other errors are documented per call.
"""

import math
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from gatecast.broadcast import Broadcast, Reference
from gatecast.frames import V1, Link
from gatecast.room_settings import SettingsItem
from gatecast.table import Item, Key
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import Claimant, NotClaimed
from worker.decisions.history import Conflict, SeenHead
from worker.decisions.receipts import SharedReceipt, Sums

MAX_BATCH_GET: Final = 100


@dataclass(frozen=True, slots=True)
class Message:
    """One receive of one queue message."""

    id: str
    receipt_handle: str
    body: str
    receive_count: int
    sent_at_ms: int
    group: str
    trace: Mapping[str, str] = field(default_factory=dict)
    """The publisher's trace context, if it sent one and traces are on."""


class Member(NamedTuple):
    """A connection to reach.

    `joined_at_ms` is None if it must be looked up before a 410 is trusted, and 0 if it is not known. `frames` is its
    dialect (`gatecast.frames.V1` or `V2`). `locator` is where `ForeignMembers` hold it; it is empty in Gatecast's own
    table, where the connection id says that.
    """

    connection_id: str
    joined_at_ms: int | None
    frames: int = V1
    locator: str = ""


class Connection(NamedTuple):
    """What a connection's item says. It expires at `expires_at`, in seconds since the epoch; infinity if unknown."""

    connected_at_ms: int
    frames: int = V1
    expires_at: float = math.inf


class Page(NamedTuple):
    """Members in key order. `expired` are those among them whose membership has expired: they are not in `members`.

    `after` is the key that the next page starts after; None on the last page.
    """

    members: Sequence[Member]
    after: str | None
    expired: Sequence[Member] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """This worker's claim on a broadcast.

    `receives_without_progress` counts the receives since the last one that made progress, including this one. `offset`
    is the broadcast's position in its room's history, if it has got one already.
    """

    key: Key
    message_id: str
    claim_id: str
    receive_count: int
    start: Checkpoint
    receives_without_progress: int
    offset: int | None = None


class NewEntry(NamedTuple):
    """A message to append to its room's history: `item` is its stream entry, `claim` that on its broadcast."""

    offset: int
    item: Item
    claim: Claim


@dataclass(frozen=True, slots=True)
class Append:
    """A transaction that appends entries with ascending offsets to a room's history if its head is the expected one.

    `token` is the same only for the same transaction: DynamoDB executes it once, even if its response is lost.
    """

    room: str
    head: SeenHead
    entries: Sequence[NewEntry]
    token: str


class DamagedProgress(Exception):
    """The progress item cannot be read, and retrying does not help. The first argument is its partition key.

    `offset` is the broadcast's offset, if the item contains one that can be read.
    """

    def __init__(self, pk: str, offset: int | None = None) -> None:
        super().__init__(pk)
        self.offset = offset


class PortError(Exception):
    """A call to an external service failed or was rejected. `code` says why, in a few words that are safe to log."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code

    @property
    def reason(self) -> str:
        """The code and, if the service says more that an operator needs and that is safe to log, that as well."""
        return self.code


class DependencyError(PortError):
    """A call failed and may succeed when it is retried. It may have taken effect nevertheless."""


class NoResponse(DependencyError):
    """No response arrived, or it could not be read."""


class StaleReceipt(PortError):
    """The message has been received again or deleted since: this receipt handle is no longer valid."""


class MessageRejected(PortError):
    """The queue rejects the message itself, so that retrying is pointless."""


class NoObject(PortError):
    """No object can be read at this place, for a reason that concerns this object: retrying is pointless."""


class EntryRejected(PortError):
    """The table never accepts this transaction, so that retrying it is pointless."""


class JoinedRoom(NamedTuple):
    """A room that a connection has joined; `shard` is None if the table does not say which one.

    `present` is the user of the presence item that belongs to it, if the room has presence.
    """

    room: str
    shard: int | None
    present: str | None = None


class Count(NamedTuple):
    """How many members a room's shard had at a time in milliseconds since the epoch."""

    room: str
    shard: int
    members: int
    counted_at_ms: int


class MessageQueue(Protocol):
    """A batch call returns one element per entry: an error, or None if the entry succeeded."""

    @property
    def url(self) -> str: ...

    async def receive(self, limit: int, *, visibility_seconds: int, wait: bool = True) -> list[Message]:
        """Receive at most `limit` (1 to 10) messages; if `wait`, wait a few seconds for the first."""

    async def count(self) -> dict[str, int]:
        """The approximate number of messages, by state: visible, in_flight, delayed."""

    async def delete(self, receipt_handles: Sequence[str]) -> list[PortError | None]:
        """Delete messages. StaleReceipt for each whose receipt handle is no longer valid.

        A standard SQS queue may return None instead, with no effect, if the message has been received again since.
        """

    async def change_visibility(self, receipt_handles: Sequence[str], seconds: int) -> list[PortError | None]:
        """Set the visibility timeout. StaleReceipt for each message whose receipt handle is no longer valid."""

    async def send(self, messages: Sequence[dict[str, Any]]) -> list[PortError | None]:
        """Send at most 10 messages, together at most 1 MiB, each as SendMessage takes it.

        If the queue will never accept an entry, its error is MessageRejected; if it rejects the whole call,
        MessageRejected is raised.
        """


class MemberSource(Protocol):
    """The members of rooms."""

    def begin_page(self, room: str, shard: int, after: str = "") -> Awaitable[Page]:
        """Start reading the page of members after the key `after` (empty: from the start). It need not be awaited."""

    async def settings(self, names: Sequence[str]) -> Sequence[SettingsItem | DependencyError]:
        """At most 100 settings items, in order of their names; an error for each that could not be read this time."""

    async def connections(self, connection_ids: Sequence[str]) -> dict[str, Connection]:
        """The items of these connections (at most 100) by id, read consistently; those without an item are omitted."""


class MemberTable(MemberSource, Protocol):
    """Connections, rooms and memberships, in Gatecast's own table."""

    async def remove_connections(self, connection_ids: Sequence[str]) -> list[str]:
        """Delete these connections' items (at most 25), so that none of them can join any more.

        Returns the ids that were not processed.
        """

    async def joined_rooms(self, connection_id: str) -> list[JoinedRoom]:
        """All rooms of a connection, read consistently."""

    async def delete_batch(self, doomed: Sequence[Key]) -> list[Key]:
        """Delete the items with these keys (at most 25, all different). Returns the keys that were not processed."""


class ForeignMembers(MemberSource, Protocol):
    """Members in a table or index of the operator's own. Their locators begin with `prefix`."""

    @property
    def prefix(self) -> str: ...

    async def delete(self, connection_id: str, found_in: tuple[str, int] | None, locator: str) -> bool:
        """Delete this connection's item, found in this room and shard and by this locator, if each is known.

        If it names another connection meanwhile, or does not exist, nothing happens. Returns False if what is known
        does not lead to an item.
        """


class PresenceStore(Protocol):
    """Who is present in a room, and how many members it has."""

    async def is_present(self, room: str, user: str) -> bool:
        """Whether any presence item of this user in the room has not expired, read consistently."""

    async def write_counts(self, counts: Sequence[Count]) -> None:
        """Write these counts (at most 25, of different shards). Some may be dropped without an error."""


class ProgressStore(Protocol):
    """Claims, checkpoints and completions."""

    async def claim(self, broadcast: Broadcast, claimant: Claimant) -> Claim | NotClaimed:
        """Claim the broadcast. Idempotent per claimant. Raises DamagedProgress."""

    async def complete(self, claims: Sequence[Claim]) -> list[Claim]:
        """Record these broadcasts (at most 25) as completed. Returns the claims that were not processed."""

    async def reset(self, broadcast: Broadcast) -> None:
        """Delete the broadcast's progress item, except for the broadcast's offset. Only for one that is damaged."""

    async def write_checkpoint(self, claim: Claim, checkpoint: Checkpoint, *, made_progress: bool) -> bool:
        """Returns False if the broadcast has been taken over: this worker must then stop working on it.

        `made_progress`: at least one member has had an outcome since the claim.
        """

    async def release(self, claim: Claim) -> bool:
        """Release the claim, so that any message may claim the broadcast and resume from its checkpoint.

        Idempotent. Returns False if the broadcast has been taken over.
        """


class ReceiptStore(Protocol):
    """The receipts that parts of broadcasts share, by the key of their item. Every call is idempotent."""

    async def expect(self, key: Key, begun_by: str, parts: Sequence[str]) -> None:
        """Expect these parts, as `worker.decisions.receipts.expect` says."""

    async def forget(self, key: Key, part: str) -> None:
        """Expect a part no more."""

    async def end(self, key: Key, part: str, sums: Sums, milliseconds: int) -> SharedReceipt | None:
        """Add what a part has counted, as `worker.decisions.receipts.end` says. Returns the shared receipt."""


class StreamStore(Protocol):
    """Rooms' histories."""

    async def head(self, room: str) -> SeenHead:
        """The room's head, read consistently."""

    async def append(self, request: Append) -> Conflict | None:
        """Execute the transaction. Returns why it was not executed, or None if it was. Raises EntryRejected.

        After a DependencyError it may have been executed. With the same token it is executed only once; a repetition
        without effect returns None, or a Conflict that contains the recorded offsets.
        """

    async def skip(self, room: str) -> None:
        """Advance the room's head by one offset that has no entry. Without a head, or with a damaged one, do nothing.

        After a DependencyError it may have been advanced; repeating it only skips another offset.
        """


class PayloadStore(Protocol):
    """The bucket of payloads that are objects in S3."""

    @property
    def bucket(self) -> str: ...

    async def length(self, key: str) -> int:
        """The length of the object in bytes, at least 1. Raises NoObject."""

    async def link(self, reference: Reference, message_expires_at_ms: int | None) -> Link:
        """A new link to the object, which works until the message expires, or for as long as links do."""
