"""What a response holds of a room's history: a run of messages, as far as they fit. Pure."""

from typing import Final

import msgspec
from msgspec import UnsetType

from gatecast.frames import MAX_FRAME_BYTES
from routes.requests import MAX_LIMIT
from routes.responses import RESPONSE_BYTES, ROOM_BYTES

MAX_RESPONSE_BYTES: Final = 100_000
"""Of a whole response. Only a single message that is longer makes it longer."""
MAX_READS: Final = 10
"""Queries per response, besides one for each room. More are needed only if nearly all messages are skipped."""
_SKIPPED_BYTES: Final = 40
"""More than a range of skipped offsets takes."""


class Allowance:
    """What a response may still hold, and how much may still be read for it. The rooms of one join share it.

    For one room it holds any message of up to MAX_MESSAGE_BYTES. Longer ones than fit into a response for several rooms
    are left to `more`: the client asks for them with `history`.
    """

    def __init__(self, rooms: int = 1, entries: int = MAX_LIMIT) -> None:
        others = RESPONSE_BYTES + ROOM_BYTES * rooms
        self.bytes = MAX_RESPONSE_BYTES - others
        self.entries = entries
        self.reads = MAX_READS + rooms
        self._alone = MAX_FRAME_BYTES - others
        self._is_empty = True

    def take(self, size: int) -> bool:
        """Whether a message, or a range, of this many bytes fits. A long message fits if it is the only one."""
        fits = size <= self.bytes or (self._is_empty and size <= self._alone)
        if not self.entries or not fits:
            return False
        self._is_empty = False
        self.entries -= 1
        self.bytes = max(self.bytes - size, 0)
        return True

    def replace_by(self, other: "Allowance") -> None:
        """Uses what `other`, a copy of this one, has used."""
        self.__dict__.update(other.__dict__)


class Run:
    """Consecutive offsets that are collected, upwards or downwards, for a response."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._messages: list[tuple[int, msgspec.Raw]] = []
        self._skipped: list[tuple[int, int]] = []
        self.covered = 0
        self.is_cut_short = False
        """Whether there may be more of it than is covered, which does not fit or may not be read."""

    @property
    def count(self) -> int:
        return len(self._messages)

    def add(self, offset: int, message: msgspec.Raw | UnsetType) -> bool:
        """Whether it fits; the offset is covered only then."""
        if isinstance(message, UnsetType):
            fits = self._allowance.take(_SKIPPED_BYTES)
            if fits:
                self._skip(offset)
        else:
            fits = self._allowance.take(len(bytes(message)) + 1)
            if fits:
                self._messages.append((offset, message))
        self.covered += fits
        return fits

    def messages(self) -> tuple[msgspec.Raw, ...]:
        return tuple(message for _, message in sorted(self._messages, key=lambda each: each[0]))

    def skipped(self) -> tuple[tuple[int, int], ...]:
        return tuple(sorted(self._skipped))

    def _skip(self, offset: int) -> None:
        if self._skipped:
            first, last = self._skipped[-1]
            if offset == last + 1:
                self._skipped[-1] = (first, offset)
                return
            if offset == first - 1:
                self._skipped[-1] = (offset, last)
                return
        self._skipped.append((offset, offset))
