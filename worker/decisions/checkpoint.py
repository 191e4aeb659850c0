"""How far a broadcast has come, in a form that another worker can go on from. Pure.

A checkpoint is a cursor (the last member that was taken up, in the order of the table's keys) and the members up to it
that have no outcome yet. Everything else before the cursor is settled, everything behind it is untouched. Whoever
resumes tries the pending ones again and reads on behind the cursor.
"""

from dataclasses import dataclass, field
from typing import Final

import msgspec

WINDOW: Final = 1_000
"""Unsettled members of one broadcast at most; also what may be repeated after a crash, beside those in flight."""
SNAPSHOT_AFTER: Final = 500
"""Settled since the last snapshot. The rest of the window lets deliveries go on while the snapshot is written."""
_SNAPSHOT_SECONDS: Final = 1.0
RENEW_SECONDS: Final = 60.0
"""The longest between two checkpoints: a broadcast that only waits is in progress, too."""


class Checkpoint(msgspec.Struct, frozen=True):
    """Where to resume. `cursor` is empty at the start; for `connections` it is how many of them were taken up."""

    cursor: str = ""
    pending: tuple[tuple[str, int | None], ...] = ()
    """Connection ids with the time they joined (milliseconds since the epoch; None where that is not known)."""

    @property
    def is_start(self) -> bool:
        """It is the start."""
        return not self.cursor and not self.pending

    def encode_pending(self) -> bytes:
        return msgspec.msgpack.encode(self.pending)

    @classmethod
    def decode(cls, cursor: str, pending: bytes) -> "Checkpoint":
        """Raises msgspec.MsgspecError for what `encode_pending` never wrote."""
        found = msgspec.msgpack.decode(pending, type=tuple[tuple[str, int | None], ...])
        ids = {connection_id for connection_id, _ in found}
        if len(ids) < len(found) or len(found) > WINDOW or "" in ids:
            raise msgspec.ValidationError(f"not at most {WINDOW:,} different connection ids")
        return cls(cursor, found)


@dataclass(slots=True)
class Pace:
    """When the next checkpoint is due, and when deliveries must wait for it. Times are monotonic seconds.

    Whoever settles a delivery adds one to both counters. What was settled since the last checkpoint that is known to be
    written is what a crash repeats, beside what is in flight.
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
        """A checkpoint is about to be written of how things are now."""
        self.snapshot_at = now
        self.since_snapshot = 0
        self._writing = True

    def written(self) -> None:
        """The latest snapshot is safe: only what was settled after it can be repeated."""
        self.since_written = self.since_snapshot
        self._writing = False
