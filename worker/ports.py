"""What the worker needs of its queue and its table, in its own words. `worker.aws` has the real ones.

Every call may raise any of `perseverance.DEPENDENCY_ERRORS`; nothing else says that a call has failed.
"""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final, NamedTuple, Protocol
from uuid import uuid4

from gatecast.broadcast import Broadcast
from gatecast.table import Key, RoomSettings
from worker.checkpoint import Checkpoint
from worker.fanout import Member

MAX_BATCH_GET: Final = 100


@dataclass(frozen=True, slots=True)
class Message:
    """One receive of one queue message."""

    id: str
    receipt: str
    body: str
    receives: int
    sent_at_ms: int
    group: str
    trace: Mapping[str, str] = field(default_factory=dict)
    """The publisher's trace context, if it sent one and traces are on."""


class Page(NamedTuple):
    """Members of a room's shard in key order, expired ones left out. `after` is where the next page starts, if any."""

    members: Sequence[Member]
    after: str | None


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims: a message, at one of its receives. `token` is new for every receive.

    `waited` are the receives before, if nobody has claimed the broadcast yet, that count as no try: on a FIFO queue it
    may have been received only to wait for others.
    """

    message_id: str
    receives: int
    token: str
    waited: int

    @classmethod
    def of(cls, message: Message, *, fifo: bool) -> "Claimant":
        return cls(message.id, message.receives, uuid4().hex, message.receives - 1 if fifo else 0)


@dataclass(frozen=True, slots=True)
class Claim:
    """A broadcast that is ours. `fresh_receives` counts the receives since one that made progress, with this one."""

    key: Key
    message_id: str
    claimed_by: str
    receives: int
    start: Checkpoint
    fresh_receives: int


class NotClaimed(Enum):
    """Why a broadcast is not ours."""

    COMPLETED = auto()
    """All that was to be done has been done: whatever message asks for it can be deleted."""
    HELD = auto()
    """Another message has it and may be in progress: it will be completed or abandoned, so ask again later."""
    SUPERSEDED = auto()
    """This very message was received again, later or elsewhere: hands off."""


class DamagedProgress(Exception):  # noqa: N818 - it says what is the case
    """The progress item cannot be read, and retrying does not help. The argument is its partition key."""


class ServiceError(Exception):
    """The service answered with an error; the argument is its code. `detail` is the answer's body."""

    def __init__(self, code: str, detail: bytes = b"") -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail


class NoAnswer(OSError):  # noqa: N818 - it says what happened
    """No answer came, or none that can be read; the call may have worked. The argument says why, in a few words."""


class JoinedRoom(NamedTuple):
    """A room that a connection has joined; `shard` is None where the table does not say on which one."""

    room: str
    shard: int | None


class MessageQueue(Protocol):
    """Batches answer an error code an entry, or None where it went well."""

    @property
    def url(self) -> str: ...

    async def receive(self, most: int, *, visibility_seconds: int, wait: bool = True) -> list[Message]:
        """At most `most` (1 to 10) messages; waits a few seconds for the first if `wait`."""

    async def count(self) -> dict[str, int]:
        """About how many messages there are: visible, in_flight, delayed."""

    async def delete(self, receipts: Sequence[str]) -> list[str | None]: ...

    async def change_visibility(self, receipts: Sequence[str], seconds: int) -> list[str | None]: ...

    async def send(self, messages: Sequence[dict[str, Any]]) -> list[str | None]:
        """At most 10 messages, at most 1 MiB together, each as SendMessage takes it."""


class MemberTable(Protocol):
    """Who is in which room."""

    def begin_page(self, room: str, shard: int, after: str = "") -> Awaitable[Page]:
        """Ask for a page of members behind the key `after` (empty: from the start) now, and await it later or never."""

    async def settings(self, rooms: Sequence[str]) -> Sequence[RoomSettings | Exception]:
        """The settings of at most 100 rooms; an error for a room that was not read this time."""

    async def connected_at_ms(self, connection_ids: Sequence[str]) -> dict[str, int]:
        """When these (100 at most) connected, by id; those that have no item are left out."""

    async def remove_connections(self, connection_ids: Sequence[str]) -> list[str]:
        """Delete the items of these (25 at most) connections: from here on none can join. Returns the unprocessed."""

    async def joined_rooms(self, connection_id: str) -> list[JoinedRoom]:
        """All rooms of a connection, read consistently."""

    async def delete_batch(self, doomed: Sequence[Key]) -> list[Key]:
        """At most 25 different keys; what comes back is unprocessed."""


class ProgressStore(Protocol):
    """Claims, checkpoints and completions."""

    async def claim(self, broadcast: Broadcast, claimant: Claimant) -> Claim | NotClaimed:
        """Repeating it for a claimant changes nothing. Raises DamagedProgress."""

    async def complete(self, claims: Sequence[Claim]) -> list[Claim]:
        """Write down that these (25 at most) are completed; returns those that were not processed."""

    async def forget(self, broadcast: Broadcast) -> None:
        """Remove what is known about it. Only for what is damaged."""

    async def write_checkpoint(self, claim: Claim, checkpoint: Checkpoint, *, progress: bool) -> bool:
        """False if the broadcast has been taken over: then nothing more may be done for it here.

        `progress`: somebody has had an outcome since the claim.
        """

    async def release(self, claim: Claim) -> bool:
        """Let any message claim the broadcast and go on from its checkpoint. False if it has been taken over.

        Repeating it changes nothing.
        """
