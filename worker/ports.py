"""What the worker needs of its queue and its table, in its own words. `worker.aws` has the real ones.

A call that fails raises DependencyError, and it may succeed when it is retried; where others are raised, it says so.
"""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from gatecast.broadcast import Broadcast
from gatecast.table import Key, RoomSettings
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import Claimant, NotClaimed

MAX_BATCH_GET: Final = 100


@dataclass(frozen=True, slots=True)
class Message:
    """One receive of one queue message."""

    id: str
    receipt_handle: str
    body: str
    receives: int
    sent_at_ms: int
    group: str
    trace: Mapping[str, str] = field(default_factory=dict)
    """The publisher's trace context, if it sent one and traces are on."""


class Member(NamedTuple):
    """A connection to reach. `joined_at_ms` is None where it has to be looked up before a 410 is believed."""

    connection_id: str
    joined_at_ms: int | None


class Page(NamedTuple):
    """Members of a room's shard in key order, expired ones left out. `after` is where the next page starts, if any."""

    members: Sequence[Member]
    after: str | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A broadcast that is ours. `fresh_receives` counts the receives since one that made progress, with this one."""

    key: Key
    message_id: str
    claimed_by: str
    receives: int
    start: Checkpoint
    fresh_receives: int


class DamagedProgress(Exception):  # noqa: N818 - it says what is the case
    """The progress item cannot be read, and retrying does not help. The argument is its partition key."""


class PortError(Exception):
    """Something outside failed or said no. `code` says why, in a few words that are safe to log."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class DependencyError(PortError):
    """A call failed and may succeed when it is retried. It may have had its effect all the same."""


class NoResponse(DependencyError):  # noqa: N818 - it says what happened
    """No response came, or none that can be read."""


class StaleReceipt(PortError):  # noqa: N818 - it says what is the case
    """The message has been received again or deleted since: this receipt is good for nothing any more."""


class MessageRejected(PortError):  # noqa: N818 - it says what happened
    """The queue rejects the message itself, so that retrying is pointless."""


class JoinedRoom(NamedTuple):
    """A room that a connection has joined; `shard` is None where the table does not say on which one."""

    room: str
    shard: int | None


class MessageQueue(Protocol):
    """Batches return an error per entry, or None where it succeeded."""

    @property
    def url(self) -> str: ...

    async def receive(self, most: int, *, visibility_seconds: int, wait: bool = True) -> list[Message]:
        """At most `most` (1 to 10) messages; waits a few seconds for the first if `wait`."""

    async def count(self) -> dict[str, int]:
        """About how many messages there are: visible, in_flight, delayed."""

    async def delete(self, receipt_handles: Sequence[str]) -> list[PortError | None]:
        """StaleReceipt where it is too late."""

    async def change_visibility(self, receipt_handles: Sequence[str], seconds: int) -> list[PortError | None]:
        """StaleReceipt where it is too late."""

    async def send(self, messages: Sequence[dict[str, Any]]) -> list[PortError | None]:
        """At most 10 messages, at most 1 MiB together, each as SendMessage takes it.

        MessageRejected for an entry, or raised for all of them, if the queue will never take them.
        """


class MemberTable(Protocol):
    """Who is in which room."""

    def begin_page(self, room: str, shard: int, after: str = "") -> Awaitable[Page]:
        """Ask for a page of members behind the key `after` (empty: from the start) now, and await it later or never."""

    async def settings(self, rooms: Sequence[str]) -> Sequence[RoomSettings | DependencyError]:
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
