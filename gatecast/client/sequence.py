"""The messages of one room, put in order: what to deliver, what to report and what to ask for. Pure.

In a room with history every message has an offset, and offsets are dense. The *position* is the offset up to which
everything has been delivered, was skipped, or was reported as possibly missing. What arrives ahead of it is held. What
always holds: the offsets of delivered messages increase, no message is delivered twice, and where one may be missing
between two of them, `Recovered(recovered=False)` is between them.

Frames of several connections, responses of `join` and of `history` may arrive in any order, and repeatedly: each only
moves the position forward. A room without history has no position: its messages are delivered as they arrive, each id
once.
"""

from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Many
from typing import Final, Literal

import msgspec

from gatecast.client.events import Message, Recovered

Delivery = Message | Recovered
Range = tuple[int, int]
Urgency = Literal["now", "later"]

MAX_FRUITLESS: Final = 3
"""Responses that do not move the position, until the offsets that stay out are given up and reported."""
_DAY_MS: Final = 24 * 3600 * 1000
"""How long one id is one message."""


class Ask(msgspec.Struct, frozen=True):
    """What a `join` asks for: everything after `since`, or the `last` messages, or, with neither, nothing old.

    `restart`: the position is discarded, because the server's history ends before it.
    """

    since: int | None = None
    last: int = 0
    restart: bool = False


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """What a room with history returns. `offset` is the end of the run of messages that it holds."""

    offset: int
    recovered: bool = True
    messages: Many[Message] = ()
    skipped: Many[Range] = ()
    more: bool = False

    @property
    def run_begins(self) -> int:
        """The first offset of the run of messages, and of offsets without one, that ends at `offset`."""
        offsets = [each.offset for each in self.messages if each.offset is not None]
        return min([*offsets, *(first for first, _ in self.skipped)], default=self.offset + 1)


class RecentIds:
    """The latest ids, up to a number. An id that returns a day later is another message."""

    def __init__(self, max_ids: int) -> None:
        self._max = max_ids
        self._published: OrderedDict[str, int | None] = OrderedDict()

    def add(self, message: Message) -> bool:
        """Whether the message is new."""
        is_known = message.id in self._published
        before = self._published.get(message.id)
        self._remember(message.id, message.published_at_ms)
        return not is_known or (before is not None and abs(message.published_at_ms - before) >= _DAY_MS)

    def exclude(self, message_id: str) -> None:
        """The next message with this id is not new, whenever it was published."""
        self._remember(message_id, None)

    def _remember(self, message_id: str, published_at_ms: int | None) -> None:
        self._published[message_id] = published_at_ms
        self._published.move_to_end(message_id)
        if len(self._published) > self._max:
            self._published.popitem(last=False)


class RoomSequence:
    """The sequence of one room. `since` and `last` are what the program asked for when it joined.

    `max_held` bounds how many messages, and how many ranges, are held ahead of the position. What exceeds it is dropped
    and read from the history later.
    """

    def __init__(
        self, room: str, *, since: int | None = None, last: int = 0, max_held: int = 1_000, max_ids: int = 1_000
    ) -> None:
        self.room = room
        self.position = since
        self._last = last
        self._restart = False
        self._joined = False
        self._held: dict[int, Message] = {}
        self._skipped: list[Range] = []
        self._max_held = max_held
        self._known = 0
        """An offset that exists, although it is not held."""
        self._more = False
        self._fruitless = 0
        self._ids = RecentIds(max_ids)

    def exclude(self, message_id: str) -> None:
        """The program does not want this message, which the history returns nevertheless."""
        self._ids.exclude(message_id)

    def ask(self) -> Ask:
        """What the next `join` asks for."""
        if self._restart:
            return Ask(restart=True)
        return Ask(since=self.position, last=0 if self._joined or self.position is not None else self._last)

    def wants(self) -> Urgency | None:
        """Whether messages after `position` are to be read from the history: at once, or if they do not arrive."""
        if not self._joined or self.position is None:
            return None
        if self._more or (self._known > self.position and not self._fruitless):
            return "now"
        return "later" if self._held or self._skipped or self._known > self.position else None

    def receive(
        self, messages: Iterable[Message], skipped: Iterable[Range] = (), *, room_left: bool = True
    ) -> list[Delivery]:
        """A frame has arrived. Without `room_left` nothing is delivered: what has an offset is read again later."""
        delivered: list[Delivery] = []
        for message in messages:
            if message.offset is None or (self._joined and self.position is None):
                if not room_left:
                    delivered.append(Recovered(room=self.room, recovered=False))
                elif self._ids.add(message):
                    delivered.append(message)
            elif not room_left:
                self._known = max(self._known, message.offset)
            elif self._joined and message.offset == (self.position or 0) + 1:
                self._held[message.offset] = message
                delivered += self._drain()
            else:
                self._hold(message, message.offset)
        for first, last in skipped:
            self._hold_range(first, last)
        return delivered + self._drain()

    def joined(self, asked: Ask, page: Page | None, *, overlapping: bool = False) -> list[Delivery]:
        """The response to a join that asked for `asked`; `page` is None if the room has no history.

        `overlapping`: another connection has been a member of the room all the time, so that nothing was interrupted.
        """
        first, self._joined = not self._joined, True
        if page is None:
            return self._without_history(interrupted=not first and not overlapping)
        if asked.restart:
            return self._restarted(page)
        if self.position is None:
            return self._begin(page, missed=not first)
        if asked.since is None:  # two connections joined at the same time, and the other response came first
            self._known = max(self._known, page.offset)
            return []
        return self._merge(asked.since, page, report=not overlapping)

    def rejected(self) -> bool:
        """The server does not accept the position: the next join begins without it. False if there was none."""
        if self._restart or self.position is None:
            return False
        self._restart = True
        return True

    def filled(self, since: int, page: Page) -> list[Delivery]:
        """The response to a request for the history after `since`."""
        before = self.position
        delivered = self._merge(since, page, report=False)
        if self.position is not None and self.position == before:
            return delivered + self.fruitless()
        self._fruitless = 0
        return delivered

    def fruitless(self) -> list[Delivery]:
        """The history did not help. After MAX_FRUITLESS times the room continues with what is there."""
        self._more = False
        self._fruitless += 1
        if self._fruitless < MAX_FRUITLESS or self.position is None or self.wants() is None:
            return []
        self._fruitless = 0
        if self._known > self.position:
            return self._jump(self._known)
        return self._jump(min([*self._held, *(first for first, _ in self._skipped)]) - 1)

    def _begin(self, page: Page, *, missed: bool) -> list[Delivery]:
        """The first position of a room is that of the response: what arrived before it belongs to the past."""
        event = [Recovered(room=self.room, recovered=False, before=page.offset + 1)] if missed else []
        return event + self._start_at(page)

    def _restarted(self, page: Page) -> list[Delivery]:
        before, self._restart = self.position, False
        self._held.clear()
        self._skipped.clear()
        self._known = 0
        event = Recovered(room=self.room, recovered=False, after=before, before=page.offset + 1)
        return [event, *self._start_at(page)]

    def _start_at(self, page: Page) -> list[Delivery]:
        self._more, self._fruitless, self.position = page.more, 0, 0
        self._held = {offset: each for offset, each in self._held.items() if offset > page.offset}
        for each in page.messages:
            if each.offset is not None:
                self._held[each.offset] = each
        return self._advance(page.offset)

    def _merge(self, since: int, page: Page, *, report: bool) -> list[Delivery]:
        position = self.position
        if position is None or since > position:
            return []  # asked for before the room began at another position
        if page.offset < since:  # the head is consistent: only a history of another beginning ends before the position
            return self._restarted(page)
        if page.offset >= position:  # otherwise what it says of later messages is out of date
            self._more = page.more
        run_begins = since + 1 if page.recovered else page.run_begins
        is_missing = run_begins > position + 1
        for each in page.messages:
            if each.offset is not None and each.offset > position:
                self._held.setdefault(each.offset, each)
        delivered: list[Delivery] = []
        if is_missing or (report and (page.recovered or not page.more)):
            before = run_begins if is_missing else position + 1
            delivered.append(Recovered(room=self.room, recovered=not is_missing, after=position, before=before))
        return delivered + self._advance(page.offset)

    def _jump(self, offset: int) -> list[Delivery]:
        event = Recovered(room=self.room, recovered=False, after=self.position, before=offset + 1)
        return [event, *self._advance(offset)]

    def _without_history(self, *, interrupted: bool) -> list[Delivery]:
        before, self.position = self.position, None
        self._more, self._fruitless, self._known, self._restart = False, 0, 0, False
        held = [self._held[offset] for offset in sorted(self._held)]
        self._held.clear()
        self._skipped.clear()
        delivered: list[Delivery] = []
        if interrupted or before is not None:
            delivered.append(Recovered(room=self.room, recovered=False, after=before))
        return delivered + [each for each in held if self._ids.add(each)]

    def _hold(self, message: Message, offset: int) -> None:
        if self.position is not None and offset <= self.position:
            return
        self._held.setdefault(offset, message)
        if len(self._held) > self._max_held:
            latest = max(self._held)
            del self._held[latest]
            self._known = max(self._known, latest)

    def _hold_range(self, first: int, last: int) -> None:
        if first > last or (self.position is not None and last <= self.position):
            return
        if len(self._skipped) < self._max_held:
            self._skipped.append((first, last))
        else:
            self._known = max(self._known, last)

    def _advance(self, offset: int) -> list[Delivery]:
        """Everything up to this offset is here, or was skipped, or has been reported."""
        position = self.position or 0
        ready = sorted(each for each in self._held if each <= offset)
        delivered: list[Delivery] = [each for each in map(self._held.pop, ready) if self._ids.add(each)]
        self.position = max(position, offset)
        return delivered + self._drain()

    def _drain(self) -> list[Delivery]:
        """What follows the position without a gap."""
        if self.position is None or not self._joined:
            return []
        delivered: list[Delivery] = []
        before = self.position
        while True:
            while message := self._held.pop(self.position + 1, None):
                self.position += 1
                if self._ids.add(message):
                    delivered.append(message)
            ends = [last for first, last in self._skipped if first <= self.position + 1 and last > self.position]
            if not ends:
                break
            self.position = max(ends)
            self._held = {offset: each for offset, each in self._held.items() if offset > max(ends)}
        if self._skipped:
            self._skipped = [each for each in self._skipped if each[1] > self.position]
        if self.position > before:
            self._fruitless = 0
        return delivered
