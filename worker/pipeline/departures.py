"""Publish that users may have departed from rooms, because a connection of theirs is removed from the table.

On a standard queue this happens before the presence items are deleted, and the message is delayed: if the worker ends
in between, nothing is lost, and whether the users are absent is decided when the message is received. A FIFO queue
delays no single message, so there it happens after the deletion; the items that lead to it are deleted later still.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from uuid import uuid4

import structlog

from gatecast.broadcast import InvalidBroadcast
from gatecast.presence import DEPARTURE_DELAY_SECONDS, departed_broadcast
from gatecast.publisher import is_fifo, queue_message
from worker.pipeline.sender import Sender
from worker.ports import MessageRejected

log = structlog.get_logger()

_MAX_USERS: Final = 100


class Departures:
    """Sends broadcasts of departures to the worker's own queue. `wall_clock` gives seconds since the epoch."""

    def __init__(self, sender: Sender, wall_clock: Callable[[], float] = time.time) -> None:
        self._sender = sender
        self._wall_clock = wall_clock
        self._fifo = is_fifo(sender.url)

    @property
    def before_deletion(self) -> bool:
        """Whether to publish departures before the presence items are deleted, or else after that."""
        return not self._fifo

    async def publish(self, departures: Mapping[str, Sequence[str]]) -> None:
        """Returns when the queue has stored the departures: users, by room. Sending is retried forever."""
        messages = [
            message
            for room, users in departures.items()
            for start in range(0, len(users), _MAX_USERS)
            for message in self._messages(room, users[start : start + _MAX_USERS])
        ]
        try:
            await self._sender.send_all(messages)
        except MessageRejected as rejected:
            log.error("departures.rejected", code=rejected.code)  # noqa: TRY400

    def _messages(self, room: str, users: Sequence[str]) -> list[dict[str, object]]:
        delay = 0 if self._fifo else DEPARTURE_DELAY_SECONDS
        published_at_ms = int(self._wall_clock() * 1000)
        try:
            broadcast = departed_broadcast(room, *users, unique=uuid4().hex, published_at_ms=published_at_ms)
            message = queue_message(broadcast, fifo=self._fifo)
        except InvalidBroadcast:
            if len(users) == 1:
                return []  # no route has written such a name
            return [message for user in users for message in self._messages(room, [user])]
        return [{**message, "DelaySeconds": delay} if delay else message]
