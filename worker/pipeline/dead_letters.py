"""Store what could not be delivered as dead letters, so that a person can inspect and redrive it.

With a dead-letter queue, missed deliveries go there as broadcasts to exactly the connections that missed, a broadcast
that no v2 connection can receive, or that is given up, goes there as it is, and messages that are not valid broadcasts
go there unchanged; a `reason` attribute says why. Without one they are logged with their ids, and so are ids that no
broadcast can name. Calls are retried forever: a broadcast does not end before its missed deliveries are stored.

A FIFO queue drops a message whose deduplication id it received within the last five minutes, even if the first one has
since been redriven and deleted. So each dead letter has a deduplication id of its own, which only its retries share.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

import msgspec
import structlog
from msgspec import UNSET

from gatecast import table as keys
from gatecast.broadcast import Broadcast, InvalidBroadcast
from gatecast.dead_letters import TOO_LARGE
from gatecast.printable import printable
from gatecast.publisher import is_fifo, queue_message
from worker.decisions.outcome import Outcome
from worker.decisions.parts import REJECTED_PREFIX, UNDELIVERED_PREFIX, can_name, fitting
from worker.observe.damaged_items import DamagedItems
from worker.observe.health import Health
from worker.ports import Message, MessageQueue
from worker.resilience import retry_forever

log = structlog.get_logger()

_MAX_REASON_CHARACTERS: Final = 250


class DeadLetters:
    """`queue` is None if there is no dead-letter queue. `counts` counts dead letters by reason."""

    def __init__(
        self,
        queue: MessageQueue | None,
        health: Health,
        counts: dict[str, int],
        damaged: DamagedItems | None = None,
    ) -> None:
        self._queue = queue
        self._health = health
        self._counts = counts
        self._damaged = damaged or DamagedItems({})

    @property
    def configured(self) -> bool:
        return self._queue is not None

    async def store_missed(self, broadcast: Broadcast, connection_ids: Mapping[Outcome, Sequence[str]]) -> None:
        """Store missed deliveries, by reason (1 to 1,000 of each). Returns when all are stored.

        Raises MessageRejected.
        """
        if self._queue is None:
            log.error("broadcast.missed", **{str(reason): ids for reason, ids in connection_ids.items()})
            for reason in connection_ids:
                self._counts[reason] += 1
            return
        unnameable: dict[str, list[str]] = {}
        for reason, ids in connection_ids.items():
            prefix = REJECTED_PREFIX if reason is Outcome.REJECTED else UNDELIVERED_PREFIX
            for part_broadcast in fitting(broadcast, [each for each in ids if can_name(each)], prefix):
                await self.store_broadcast(part_broadcast, reason)
            if unnamed := [each for each in ids if not can_name(each)]:
                unnameable[str(reason)] = unnamed
        if unnameable:
            log.error("broadcast.missed", why="no dead letter can name these ids", **unnameable)
            where = keys.room_pk(broadcast.room or "", int(broadcast.shard or 0))
            items = sum(map(len, unnameable.values()))
            self._damaged.report("membership", where, "connection ids that no connection can have", items=items)

    async def store_too_large(self, broadcast: Broadcast) -> None:
        """Store, once for all members concerned, a broadcast whose frame cannot be posted. Raises MessageRejected."""
        if self._queue is None:
            log.error("broadcast.too_large", id=broadcast.id, part=broadcast.part)
            self._counts[TOO_LARGE] += 1
        else:
            await self.store_broadcast(broadcast, TOO_LARGE)

    async def store_whole(self, broadcast: Broadcast, reason: str, why: str = "") -> None:
        """Store a broadcast that is given up. Without a queue it is only counted: the caller logs it."""
        if self._queue is None:
            self._counts[reason] += 1
        else:
            await self.store_broadcast(broadcast, reason, why)

    async def store_broadcast(self, broadcast: Broadcast, reason: str, why: str = "") -> None:
        """Store a whole broadcast. Returns when it is stored. Requires `configured`. Raises MessageRejected.

        `why` is for people: it follows the reason.
        """
        assert self._queue is not None  # noqa: S101 - the caller has checked
        fifo, sending = is_fifo(self._queue.url), uuid4().hex
        try:
            message = queue_message(broadcast, fifo=fifo, sending=sending)
        except InvalidBroadcast:  # it is too long with what the worker has added, and can add again after a redrive
            published = msgspec.structs.replace(broadcast, published_at_ms=UNSET, offset=UNSET)
            message = queue_message(published, fifo=fifo, sending=sending)
        await self._send(message, f"{reason}: {why}" if why else reason)
        self._counts[reason] += 1

    async def store_poison(self, message: Message, reason: str) -> None:
        """Store a message that is not a valid broadcast. Requires `configured`. Raises MessageRejected."""
        assert self._queue is not None  # noqa: S101 - the caller has checked
        body: dict[str, str] = {"MessageBody": message.body}
        if is_fifo(self._queue.url):
            body |= {"MessageGroupId": message.id, "MessageDeduplicationId": message.id}
        await self._send(body, reason)
        self._counts["poison"] += 1

    async def _send(self, message: dict[str, Any], reason: str) -> None:
        queue = self._queue
        assert queue is not None  # noqa: S101
        entry: dict[str, Any] = {
            **message,
            "MessageAttributes": {
                **message.get("MessageAttributes", {}),
                "reason": {"DataType": "String", "StringValue": printable(reason)[:_MAX_REASON_CHARACTERS]},
            },
        }

        async def send() -> None:
            [error] = await queue.send([entry])
            if error is not None:
                raise error

        await retry_forever("dead_letters", self._health, send)
