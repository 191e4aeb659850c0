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

The last N messages are the end of the latest run. If they do not all fit, the response holds the first of them, and the
client reads on: once it has followed `more` to the end it has them all, or knows from `recovered` that one is missing.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from gatecast.frames import Message
from routes.entry_cache import EntryCache, StoredEntry
from routes.joins import Position
from routes.payloads import Payloads
from routes.requests import MAX_LIMIT
from routes.responses import Code, RequestRejected
from routes.runs import Allowance, Run
from routes.streams import Streams

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


class History:
    """Reads through `streams` and keeps entries in `cache`. `clock` is in seconds since the epoch. Thread-safe.

    `payloads` makes the links to those that are objects in S3.
    """

    def __init__(
        self,
        streams: Streams,
        cache: EntryCache | None = None,
        clock: Callable[[], float] = time.time,
        payloads: Payloads | None = None,
    ) -> None:
        self._streams = streams
        self._payloads = payloads or Payloads(None)
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
            return self._last(room, head, position.last, allowance)
        since = position.since
        if isinstance(since, UnsetType) or since == head:
            return Recovery(head, True)
        if since > head:  # it was checked before the join: someone has set back the head
            return Recovery(head, False)
        following = self._following(room, since, head, allowance)
        if isinstance(following, Recovery):
            return following
        run = self._latest(room, head, following + 1, allowance, MAX_LIMIT)
        if run.is_cut_short and not run.covered:  # other rooms have used the response: the client asks with `history`
            return Recovery(since, False, more=True)
        return Recovery(head, False, run.messages(), False, run.skipped())

    def _last(self, room: str, head: int, count: int, allowance: Allowance) -> Recovery:
        """The last `count` messages, or the first of them that fit.

        They are counted from the head, as far as a response reaches. Beyond that, each offset counts as a message.
        """
        used = copy.copy(allowance)
        run = self._latest(room, head, 1, used, count)
        if not run.is_cut_short:
            allowance.replace_by(used)
            return Recovery(head, True, run.messages(), False, run.skipped())
        allowance.reads = used.reads
        end = head - run.covered
        since = self._first(room, max(end - (count - run.count), 0) + 1, end + 1) - 1
        following = self._following(room, since, head, allowance) if since < head else head
        if isinstance(following, Recovery):
            return following
        return Recovery(following, True, more=following < head)  # only what is behind the missing message counts

    def _first(self, room: str, first: int, end: int) -> int:
        """The first offset from `first` whose message is not missing; `end` if those up to there all are.

        Usually the one at `first` is there, or the oldest have expired. So it is searched by halves: reading 100
        messages might take 13 MB. If others are missing, it is any offset that is there, behind one that is missing.
        """
        low, high, middle = first - 1, end, first
        while high - low > 1:
            low, high = (low, middle) if self._is_there(room, middle) else (middle, high)
            middle = (low + high) // 2
        return high

    def _is_there(self, room: str, offset: int) -> bool:
        entry = self._cache.run(room, offset, offset, 1).get(offset) or self._streams.entry(room, offset)
        if entry is None:
            return False
        self._cache.add(room, {offset: entry})
        return self._message(entry) is not None

    def _following(self, room: str, since: int, head: int, allowance: Allowance) -> Recovery | int:
        """The run that begins behind `since`, or the offset at which a message is missing."""
        used = copy.copy(allowance)  # for a run that is not sent uses nothing
        run = Run(used)
        end = since
        for offset, entry in self._entries(room, since + 1, head, used):
            if entry is None or (message := self._message(entry)) is None:
                return offset
            if not run.add(offset, message):
                break
            end = offset
        allowance.replace_by(used)
        return Recovery(end, True, run.messages(), end < head, run.skipped())

    def _latest(self, room: str, head: int, first: int, allowance: Allowance, count: int) -> Run:
        """The run that ends at the head and begins at `first` or later, with at most `count` messages.

        It is empty if the head's own entry is missing.
        """
        run = Run(allowance)
        if not count or first > head:
            return run
        for offset, entry in self._entries(room, head, first, allowance, count):
            if entry is None or (message := self._message(entry)) is None:
                return run
            if not run.add(offset, message):
                break
            if run.count == count:
                return run
        run.is_cut_short = run.covered <= head - first
        return run

    def _message(self, entry: StoredEntry) -> msgspec.Raw | UnsetType | None:
        """The entry's message; UNSET if it is skipped, None if it counts as missing."""
        now = self._clock()
        if entry.encoded is None or entry.expires_at <= now:
            return None
        if entry.message_expires_at_ms is not None and entry.message_expires_at_ms <= now * 1000:
            return UNSET
        if entry.reference is None:
            return msgspec.Raw(entry.encoded)
        link = self._payloads.link(entry.reference, entry.message_expires_at_ms)
        if link is None:
            return None
        return msgspec.structs.replace(msgspec.json.decode(entry.encoded, type=Message), reference=link).encode()

    def _entries(
        self, room: str, first: int, last: int, allowance: Allowance, wanted: int = MAX_LIMIT
    ) -> Iterator[tuple[int, StoredEntry | None]]:
        """The entries from `first` towards `last`, up to the first that is not there, for which there is None.

        Ends earlier if no more may be read. `first` and `last` are between 1 and a head that was read before. `wanted`
        are enough, if none is skipped: the first query reads no more.
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
                known = self._read(room, offset, last, allowance, wanted)
                wanted = MAX_LIMIT
            entry = known.get(offset)
            yield offset, entry
            if entry is None:
                return
            offset += step

    def _read(self, room: str, first: int, last: int, allowance: Allowance, wanted: int) -> dict[int, StoredEntry]:
        allowance.reads -= 1
        per_entry = self._cache.bytes_per_entry(room) or _USUAL_ENTRY_BYTES
        limit = min(wanted, allowance.entries + 1, allowance.bytes // per_entry + 1)
        entries = self._streams.read(room, first, last, limit).entries
        if first not in entries and (entry := self._streams.entry(room, first)):
            entries[first] = entry
        self._cache.add(room, entries)
        return entries
