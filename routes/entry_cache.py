"""The entries of rooms' histories that this process has read.

Entries are immutable, so that after a mass reconnection, in which many clients ask for the same messages, each is read
once. Heads move: a remembered one is only a lower bound.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, NamedTuple

from gatecast.broadcast import Reference

MAX_BYTES: Final = 16 * 1024 * 1024
_ENTRY_BYTES: Final = 250
"""What Python needs for an entry, beside its message."""
_LINK_BYTES: Final = 1_500
"""What a link takes in a response, and more than Python needs for its reference."""
_ROOM_BYTES: Final = 500


class StoredEntry(NamedTuple):
    """A message as responses contain it, JSON in UTF-8; None if no response can contain it.

    After `expires_at` (seconds since the epoch) the entry counts as absent. After `message_expires_at_ms` nobody shall
    receive the message any more. A message with a `reference` has no payload yet: the link to it is made for each
    response.
    """

    encoded: bytes | None
    expires_at: float
    message_expires_at_ms: float | None
    reference: Reference | None = None


class _Room:
    __slots__ = ("bytes", "entries", "head")

    def __init__(self) -> None:
        self.head = 0
        self.entries: dict[int, StoredEntry] = {}
        self.bytes = _ROOM_BYTES


class EntryCache:
    """Holds about `max_bytes` at most, and of one room a quarter: its latest. Thread-safe.

    The rooms that were used last remain.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rooms: OrderedDict[str, _Room] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def head(self, room: str) -> int:
        """An offset that the room's head has reached; 0 if none is remembered."""
        with self._lock:
            return self._rooms[room].head if room in self._rooms else 0

    def remember_head(self, room: str, offset: int) -> None:
        with self._lock:
            found = self._used(room)
            found.head = max(found.head, offset)
            self._evict_rooms()

    def add(self, room: str, entries: Mapping[int, StoredEntry]) -> None:
        """Keeps these entries of a room, by their offsets."""
        with self._lock:
            found = self._used(room)
            for offset, entry in entries.items():
                if offset not in found.entries:
                    found.entries[offset] = entry
                    self._grow(found, _size(entry))
            self._evict_entries(found)
            self._evict_rooms()

    def run(self, room: str, first: int, last: int, count: int) -> dict[int, StoredEntry]:
        """At most `count` entries from `first` towards `last`, in either direction, up to one that is not known."""
        step = 1 if last >= first else -1
        run: dict[int, StoredEntry] = {}
        with self._lock:
            if room not in self._rooms:
                return run
            entries = self._used(room).entries
            offset = first
            while len(run) < count and (last - offset) * step >= 0 and (entry := entries.get(offset)):
                run[offset] = entry
                offset += step
        return run

    def bytes_per_entry(self, room: str) -> int | None:
        """The mean length of the room's messages that are known, or None."""
        with self._lock:
            found = self._rooms.get(room)
            return found.bytes // len(found.entries) if found and found.entries else None

    def _used(self, room: str) -> _Room:
        found = self._rooms.get(room)
        if found is None:
            found = self._rooms[room] = _Room()
            self._bytes += found.bytes
        self._rooms.move_to_end(room)
        return found

    def _grow(self, room: _Room, size: int) -> None:
        room.bytes += size
        self._bytes += size

    def _evict_entries(self, room: _Room) -> None:
        if room.bytes <= self._max_bytes // 4:
            return
        for offset in sorted(room.entries):
            self._grow(room, -_size(room.entries.pop(offset)))
            if room.bytes <= self._max_bytes // 5:  # with room for some more, so that not each call sorts
                return

    def _evict_rooms(self) -> None:
        while self._bytes > self._max_bytes and self._rooms:
            _, room = self._rooms.popitem(last=False)
            self._bytes -= room.bytes


def _size(entry: StoredEntry) -> int:
    return len(entry.encoded or b"") + _ENTRY_BYTES + _LINK_BYTES * (entry.reference is not None)
