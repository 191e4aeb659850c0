"""Announcing that a user may have departed, around the deletion of the presence item.

On a standard queue a departure is published before the deletion, with a delay, so that a process that dies in between
loses nothing; on a FIFO queue, which delays no single message, after it. What happens if it cannot be published:

- *Leaving* on a standard queue is rejected as unavailable before anything is deleted, and the client retries. On a FIFO
  queue the items are gone by then, and a retry would find nothing to do: it is logged and counted.
- *`$disconnect`* is not retried by API Gateway and must remove the items: it is logged and counted, and the queue is
  not called again.

A user whose departure was not announced is not among the `members`, and the next departure of this user is announced.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from gatecast import table
from gatecast.presence import DEPARTURE_DELAY_SECONDS
from gatecast.table import Item
from routes.log import log_failure, logger
from routes.metrics import record_unannounced_presence
from routes.presence import FAILURES, Presence
from routes.responses import Code, RequestRejected

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
            log_failure("presence.not_announced", error)
            raise RequestRejected(Code.UNAVAILABLE, "temporarily unavailable: retry") from None

    def deleted(self) -> None:
        """Announces the departure if this follows the deletion, or the delay may have ended before it."""
        try:
            if self._presence.is_fifo or _may_have_been_read(self._began_at, self._presence.clock()):
                self._presence.announce_departure(*self._departure)
        except FAILURES as error:
            log_failure("presence.not_announced", error)
            record_unannounced_presence(1)


class Disconnecting:
    """A connection whose items are being deleted, batch by batch. Raises nothing."""

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self._ends_at = presence.clock() + DISCONNECTING_SECONDS
        self._batch: list[tuple[str, str]] = []
        self._batch_began_at = 0.0
        self._failed = False

    def watching(self, joined_rooms: Iterable[Item]) -> Iterator[Item]:
        """The same items; the departures among those that have been taken are those of the next batch."""
        for item in joined_rooms:
            if user := table.present_user(item):
                self._batch.append((item["sk"]["S"].removeprefix(table.JOINED_ROOM_PREFIX), user))
            yield item

    def before_deletion(self) -> None:
        """A batch of the items is about to be deleted."""
        self._batch_began_at = self._presence.clock()
        self._announce(if_fifo=False)

    def after_deletion(self) -> None:
        """The batch is deleted."""
        if _may_have_been_read(self._batch_began_at, self._presence.clock()):
            self._not_announced(len(self._batch))  # too late for another call
        else:
            self._announce(if_fifo=True)
        self._batch.clear()

    def _announce(self, *, if_fifo: bool) -> None:
        """Announces the departures of the batch on one kind of queue."""
        announced = 0
        try:
            if self._batch and self._presence.is_fifo == if_fifo:
                for departure in self._batch:
                    if self._failed or self._presence.clock() >= self._ends_at:
                        break
                    self._presence.announce_departure(*departure)
                    announced += 1
                self._not_announced(len(self._batch) - announced)
        except FAILURES as error:
            log_failure("presence.not_announced", error)
            self._failed = True
            self._not_announced(len(self._batch) - announced)

    def _not_announced(self, events: int) -> None:
        if events:
            logger.warning("presence.departures_not_announced", extra={"events": events})
            record_unannounced_presence(events)


def _may_have_been_read(began_at: float, now: float) -> bool:
    """Whether a worker may have found an item that was deleted after its departure had been published."""
    return now - began_at >= DEPARTURE_DELAY_SECONDS - _LOOK_MARGIN_SECONDS
