"""The progress of a broadcast, in a form from which another worker can resume. Pure.

A checkpoint is a cursor (the last member that was read, in the order of the table's keys) and the members up to it that
have no outcome yet. All other members before the cursor are settled; all after it are untouched. A worker that resumes
retries the pending members and reads on after the cursor. Which of them use the dialect v2 is stored apart from them,
so that a worker of an earlier version can resume as well.
"""

from dataclasses import dataclass, field
from typing import Final

import msgspec

from worker.decisions.receipts import ReceiptState

WINDOW: Final = 1_000
"""Maximum of unsettled members per broadcast, and of posts that a crash repeats in addition to those in flight."""
SNAPSHOT_AFTER: Final = 500
"""Deliveries settled since the last snapshot. The rest of the window lets others continue while it is written."""
_SNAPSHOT_SECONDS: Final = 1.0
RENEW_SECONDS: Final = 60.0
"""The maximum interval between checkpoints: a broadcast that only waits is in progress, too."""


class Checkpoint(msgspec.Struct, frozen=True):
    """Where to resume. `cursor` is empty at the start; for `connections` it is the number of them that were read."""

    cursor: str = ""
    pending: tuple[tuple[str, int | None], ...] = ()
    """Connection ids with the time they joined (milliseconds since the epoch; None if unknown)."""
    v2: tuple[str, ...] = ()
    """Those of the pending connections that use the dialect v2."""
    receipt: ReceiptState | None = None
    """If the broadcast ends in a receipt: what has become of the settled members."""

    @property
    def is_start(self) -> bool:
        """Whether it is the start."""
        return not self.cursor and not self.pending

    def encode_pending(self) -> bytes:
        return msgspec.msgpack.encode(self.pending)

    def encode_v2(self) -> bytes | None:
        """None if no pending connection uses v2."""
        return msgspec.msgpack.encode(self.v2) if self.v2 else None

    @classmethod
    def decode(cls, cursor: str, pending: bytes, v2: bytes | None = None, receipt: bytes | None = None) -> "Checkpoint":
        """Raises msgspec.MsgspecError for anything that `encode_pending` and `encode_v2` do not write.

        `v2` may be older than `pending`: it is not written when no pending connection uses v2, or by workers of an
        earlier version. A connection's dialect does not change, so what it says of pending connections is still right.
        Counts change, so a `receipt` that is older than `pending` is ignored.
        """
        found = msgspec.msgpack.decode(pending, type=tuple[tuple[str, int | None], ...])
        ids = _checked([connection_id for connection_id, _ in found])
        state = ReceiptState.decode(receipt, cursor, pending) if receipt is not None else None
        if v2 is None:
            return cls(cursor, found, receipt=state)
        with_frames = _checked(msgspec.msgpack.decode(v2, type=list[str])) & ids
        return cls(cursor, found, tuple(each for each, _ in found if each in with_frames), state)


def _checked(ids: list[str]) -> set[str]:
    different = set(ids)
    if len(different) < len(ids) or len(ids) > WINDOW or "" in different:
        raise msgspec.ValidationError(f"not at most {WINDOW:,} different connection ids")
    return different


@dataclass(slots=True)
class CheckpointSchedule:
    """When the next checkpoint is due, and when deliveries must wait for it. Times are monotonic seconds.

    The caller adds one to both counters for each settled delivery. `since_written` is the number settled since the last
    checkpoint that is known to be written: a crash repeats these, and those in flight.
    """

    snapshot_at: float
    since_snapshot: int = field(init=False, default=0)
    since_written: int = field(init=False, default=0)
    _writing: bool = field(init=False, default=False)

    def due(self, now: float) -> bool:
        if self._writing:
            return False
        since = now - self.snapshot_at
        return (
            self.since_snapshot >= SNAPSHOT_AFTER
            or since >= RENEW_SECONDS
            or (since >= _SNAPSHOT_SECONDS and self.since_snapshot > 0)
        )

    def snapshot(self, now: float) -> None:
        """Record that a checkpoint of the current state is about to be written."""
        self.snapshot_at = now
        self.since_snapshot = 0
        self._writing = True

    def written(self) -> None:
        """Record that the latest snapshot is written: a crash repeats only deliveries settled after it."""
        self.since_written = self.since_snapshot
        self._writing = False
