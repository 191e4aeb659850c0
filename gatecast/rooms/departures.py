"""Announcing that a user may have departed, around the deletion of the presence item.

On a standard queue a departure is published before the deletion, with a delay, so that a process that dies in between
loses nothing; on a FIFO queue, which delays no single message, after it. What happens if it cannot be published:

- *Leaving* on a standard queue is rejected as unavailable before anything is deleted, and the client retries. On a FIFO
  queue the items are gone by then, and a retry would find nothing to do: it is logged and counted.
- *`$disconnect`* is not retried by API Gateway. It is logged and counted, the queue is not called again, and the items
  of rooms with presence that remain are left, memberships included: the next broadcast to such a room finds the
  connection gone, and the worker announces the departure and removes them. Until then, or until they expire, the user
  is among the `members`, and so it is for those who follow the events. On a FIFO queue this holds for all but the batch
  that has just been deleted.

Where the items are gone without an announcement, the user is not among the `members`, and the next departure of this
user is announced.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from gatecast import table
from gatecast.broadcast import InvalidBroadcast
from gatecast.presence import DEPARTURE_DELAY_SECONDS
from gatecast.rooms.errors import Code, NoPublisher, RequestRejected
from gatecast.rooms.presence import FAILURES, Presence
from gatecast.table import Item

DISCONNECTING_SECONDS: Final = 3.0
"""After this `$disconnect` begins no further announcement; one that is in progress takes 9 s at most."""
_LOOK_MARGIN_SECONDS: Final = 1.0


class Leaving:
    """A membership that is being deleted, with its presence item."""

    def __init__(self, presence: Presence, room: str, user: str) -> None:
        """Announces the departure if this precedes the deletion. Raises RequestRejected (unavailable)."""
        self._presence = presence
        self._departure = (room, user)
        self._began_at = presence.clock()
        try:
            if not presence.is_fifo:
                presence.announce_departure(*self._departure)
        except FAILURES as error:
            presence.observer.fail("presence.not_announced", error)
            raise RequestRejected(Code.UNAVAILABLE, "temporarily unavailable: retry") from None

    def deleted(self) -> None:
        """Announces the departure if this follows the deletion, or the delay may have ended before it."""
        try:
            if self._presence.is_fifo or _may_have_been_read(self._began_at, self._presence.clock()):
                self._presence.announce_departure(*self._departure)
        except FAILURES as error:
            self._presence.observer.fail("presence.not_announced", error)
            self._presence.observer.count_unannounced(1)


class Disconnecting:
    """A connection whose items are being deleted, batch by batch. Raises nothing."""

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self._ends_at = presence.clock() + DISCONNECTING_SECONDS
        self._batch: list[tuple[str, str]] = []
        """Rooms and users. Their departures are announced already, or on a FIFO queue once the batch is deleted."""
        self._batch_began_at = 0.0
        self._failed = False

    def deletable(self, joined_rooms: Iterable[Item]) -> Iterator[Item]:
        """Those of the items that are to be deleted. `deleted` must be called before the next batch of them is taken.

        On a standard queue an item's departure is announced when the item is taken.
        """
        left = 0
        for item in joined_rooms:
            user = table.present_user(item)
            if not user or self._may_delete(item["sk"]["S"].removeprefix(table.JOINED_ROOM_PREFIX), user):
                yield item
            else:
                left += 1
        self._not_announced(left)

    def deleted(self) -> None:
        """The items that have been taken are deleted."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        if self._is_fifo:
            self._not_announced(sum(self._is_over or not self._announce(*departure) for departure in batch))
        elif _may_have_been_read(self._batch_began_at, self._presence.clock()):
            self._not_announced(len(batch))  # too late for another call

    def _may_delete(self, room: str, user: str) -> bool:
        if self._is_over:
            return False
        if not self._batch:
            self._batch_began_at = self._presence.clock()
        if not (self._is_fifo or self._announce(room, user)):
            return False
        self._batch.append((room, user))
        return True

    def _announce(self, room: str, user: str) -> bool:
        """Whether nothing is left to be announced."""
        try:
            self._presence.announce_departure(room, user)
        except InvalidBroadcast as error:  # nor can the worker announce it
            self._presence.observer.fail("presence.not_announced", error)
            self._not_announced(1)
        except FAILURES as error:
            self._presence.observer.fail("presence.not_announced", error)
            self._failed = True
        return not self._failed

    def _not_announced(self, departures: int) -> None:
        if departures:
            self._presence.observer.warn("presence.departures_not_announced", events=departures)
            self._presence.observer.count_unannounced(departures)

    @property
    def _is_over(self) -> bool:
        return self._failed or self._presence.clock() >= self._ends_at

    @property
    def _is_fifo(self) -> bool:
        with suppress(NoPublisher):
            return self._presence.is_fifo
        return False


def _may_have_been_read(began_at: float, now: float) -> bool:
    """Whether a worker may have found an item that was deleted after its departure had been published."""
    return now - began_at >= DEPARTURE_DELAY_SECONDS - _LOOK_MARGIN_SECONDS
