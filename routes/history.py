"""What a client missed: the messages of a room's history behind a client's position.

How it is certain that a response hides no gap:

1. The client's membership is written first. Then the head is read: an offset, up to which everything had been written.
   What is appended later is delivered to the new member by a worker, which reads members after it has appended.
2. The entries from the client's position to that head are read, from memory, because they are immutable, or else from
   the table. All of them had been written before, so one that is not there has been removed or has expired.
3. A query is no snapshot, and might pass an entry's place before it sees the entry's transaction. So an entry that a
   query did not return is read by its key before it counts as missing.

A response holds one contiguous run and its `offset` is the end of it. `recovered` is true if the run begins behind the
client's position and ends at the head, or before an entry that can be read next (`more`). If an entry is missing, the
run is the latest one, which ends at the head, and `recovered` is false. An entry is missing if it is not there, has
expired, or cannot be read or sent. A message with an expiry of its own, which has passed, is not missing but skipped.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from gatecast.frames import MAX_FRAME_BYTES
from routes.entry_cache import EntryCache, StoredEntry
from routes.joins import Position
from routes.requests import MAX_LIMIT
from routes.responses import RESPONSE_BYTES, ROOM_BYTES, Code, RequestRejected
from routes.streams import Streams

MAX_RESPONSE_BYTES: Final = 100_000
"""Of a whole response. Only a single message that is longer makes it longer."""
MAX_READS: Final = 10
"""Queries per response, besides one for each room. More are needed only if nearly all messages are skipped."""
_SKIPPED_BYTES: Final = 40
"""More than a range of skipped offsets takes."""
_USUAL_ENTRY_BYTES: Final = 500
"""How long the messages of a room are expected to be of which none is known."""

_BEYOND_HEAD: Final = "since: beyond the room's latest message"


class Recovery(NamedTuple):
    """One room's part of a response: everything from a position, exclusive, to `offset`, inclusive."""

    offset: int
    recovered: bool
    messages: tuple[msgspec.Raw, ...] = ()
    more: bool = False
    """Whether there are further messages behind `offset`, for which the client asks next."""
    skipped: tuple[tuple[int, int], ...] = ()
    """Ranges of offsets, first and last, without a message for this client."""

    def fields(self) -> dict[str, Any]:
        fields = self._asdict()
        if not self.skipped:
            del fields["skipped"]
        return fields


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


class History:
    """Reads through `streams` and keeps entries in `cache`. `clock` is in seconds since the epoch. Thread-safe."""

    def __init__(
        self, streams: Streams, cache: EntryCache | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._streams = streams
        self._cache = EntryCache() if cache is None else cache
        self._clock = clock

    def check(self, positions: Mapping[str, Position]) -> dict[str, RequestRejected]:
        """The rooms whose `since` is beyond their head, which a join must reject before it writes anything.

        Reads the heads of rooms that are not known to have got that far, with one call. It writes nothing: a room
        without a head would begin at the clock.
        """
        since = {room: each.since for room, each in positions.items() if isinstance(each.since, int)}
        unknown = [room for room, offset in since.items() if offset > self._cache.head(room)]
        heads = self._streams.heads(unknown, create=False) if unknown else {}
        beyond = [room for room in unknown if since[room] > heads[room]]
        return {room: RequestRejected(Code.BAD_REQUEST, _BEYOND_HEAD) for room in beyond}

    def resume(self, positions: Mapping[str, Position], rooms: int) -> dict[str, Recovery]:
        """What a client that has joined these rooms missed in each. `rooms` is how many the response names."""
        allowance = Allowance(rooms)
        heads = self._heads(list(positions))
        return {room: self._recover(room, heads[room], each, allowance) for room, each in positions.items()}

    def read(self, room: str, since: int, limit: int) -> Recovery:
        """At most `limit` messages behind `since`. Raises RequestRejected (bad_request) if that is beyond the head."""
        head = self._heads([room])[room]
        if since > head:
            raise RequestRejected(Code.BAD_REQUEST, _BEYOND_HEAD)
        return self._recover(room, head, Position(since=since), Allowance(entries=limit))

    def _heads(self, rooms: list[str]) -> dict[str, int]:
        heads = self._streams.heads(rooms) if rooms else {}
        for room, head in heads.items():
            self._cache.remember_head(room, head)
        return heads

    def _recover(self, room: str, head: int, position: Position, allowance: Allowance) -> Recovery:
        if isinstance(position.last, int):
            run = self._latest(room, head, 1, allowance, position.last)
            return Recovery(head, True, run.messages(), False, run.skipped())
        since = position.since
        if isinstance(since, UnsetType) or since == head:
            return Recovery(head, True)
        if since > head:  # it was checked before the join: someone has set back the head
            return Recovery(head, False)
        following = self._following(room, since, head, allowance)
        if isinstance(following, Recovery):
            return following
        run = self._latest(room, head, following + 1, allowance, MAX_LIMIT)
        if run.is_cut_short:  # nothing fits beside other rooms' messages: the client asks for these with `history`
            return Recovery(since, False, more=True)
        return Recovery(head, False, run.messages(), False, run.skipped())

    def _following(self, room: str, since: int, head: int, allowance: Allowance) -> Recovery | int:
        """The run that begins behind `since`, or the offset at which a message is missing."""
        used = copy.copy(allowance)  # for a run that is not sent uses nothing
        run = _Run(used)
        end = since
        for offset, entry in self._entries(room, since + 1, head, used):
            if entry is None or (message := self._message(entry)) is None:
                return offset
            if not run.add(offset, message):
                break
            end = offset
        allowance.replace_by(used)
        return Recovery(end, True, run.messages(), end < head, run.skipped())

    def _latest(self, room: str, head: int, first: int, allowance: Allowance, count: int) -> "_Run":
        """The run that ends at the head and begins at `first` or later, with at most `count` messages.

        It is empty if the head's own entry is missing.
        """
        run = _Run(allowance)
        if not count or first > head:
            return run
        for offset, entry in self._entries(room, head, first, allowance):
            if entry is None or (message := self._message(entry)) is None:
                break
            if not run.add(offset, message):
                run.is_cut_short = not run.covered
                break
            if run.count == count:
                break
        return run

    def _message(self, entry: StoredEntry) -> msgspec.Raw | UnsetType | None:
        """The entry's message; UNSET if it is skipped, None if it counts as missing."""
        now = self._clock()
        if entry.encoded is None or entry.expires_at <= now:
            return None
        if entry.message_expires_at_ms is not None and entry.message_expires_at_ms <= now * 1000:
            return UNSET
        return msgspec.Raw(entry.encoded)

    def _entries(
        self, room: str, first: int, last: int, allowance: Allowance
    ) -> Iterator[tuple[int, StoredEntry | None]]:
        """The entries from `first` towards `last`, up to the first that is not there, for which there is None.

        Ends earlier if no more may be read. `first` and `last` are between 1 and a head that was read before.
        """
        step = 1 if last >= first else -1
        known: dict[int, StoredEntry] = {}
        offset = first
        while (last - offset) * step >= 0:
            if offset not in known:
                known = self._cache.run(room, offset, last, allowance.entries + 1)
            if offset not in known:
                if not allowance.reads:
                    return
                known = self._read(room, offset, last, allowance)
            entry = known.get(offset)
            yield offset, entry
            if entry is None:
                return
            offset += step

    def _read(self, room: str, first: int, last: int, allowance: Allowance) -> dict[int, StoredEntry]:
        allowance.reads -= 1
        per_entry = self._cache.bytes_per_entry(room) or _USUAL_ENTRY_BYTES
        limit = min(allowance.entries, allowance.bytes // per_entry) + 1
        entries = self._streams.read(room, first, last, limit).entries
        if first not in entries and (entry := self._streams.entry(room, first)):
            entries[first] = entry
        self._cache.add(room, entries)
        return entries


class _Run:
    """Consecutive offsets that are collected, upwards or downwards, for a response."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._messages: list[tuple[int, msgspec.Raw]] = []
        self._skipped: list[tuple[int, int]] = []
        self.covered = 0
        self.is_cut_short = False
        """Whether nothing is covered because nothing fits."""

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
