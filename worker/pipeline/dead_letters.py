"""What could not be delivered, kept where a person can see it and send it again.

With a dead-letter queue, missed deliveries go there as broadcasts to exactly the connections that missed, and messages
that are no broadcast go there as they are; a `reason` attribute says why. Without one they are logged, with the ids,
and so are ids that no broadcast can name. Nothing here gives up: a broadcast waits until its misses are safe.

A FIFO queue swallows what has the deduplication id of something that it had within five minutes, even if that has been
sent again and deleted since. So each dead letter has an id of its own, which only its own retries share.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

import structlog

from gatecast import table as keys
from gatecast.broadcast import Broadcast, InvalidBroadcast, encode
from gatecast.publisher import is_fifo, queue_message
from worker.decisions.outcome import Outcome
from worker.decisions.parts import REJECTED_PREFIX, UNDELIVERED_PREFIX, can_name, to_connections
from worker.observe.damaged_items import DamagedItems
from worker.observe.health import Health
from worker.ports import Message, MessageQueue
from worker.resilience import retry_forever

log = structlog.get_logger()


class DeadLetters:
    """`queue` is None where there is no dead-letter queue. `counts` counts dead letters by reason."""

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

    async def missed(self, broadcast: Broadcast, connection_ids: Mapping[Outcome, Sequence[str]]) -> None:
        """Keep missed deliveries, by reason (1 to 1,000 of each). Returns when they are safe. Raises MessageRejected."""
        if self._queue is None:
            log.error("broadcast.missed", **{str(reason): ids for reason, ids in connection_ids.items()})
            for reason in connection_ids:
                self._counts[reason] += 1
            return
        unnameable: dict[str, list[str]] = {}
        for reason, ids in connection_ids.items():
            prefix = REJECTED_PREFIX if reason is Outcome.REJECTED else UNDELIVERED_PREFIX
            for some in _fitting(broadcast, [each for each in ids if can_name(each)], prefix):
                await self.broadcast(some, reason)
            if others := [each for each in ids if not can_name(each)]:
                unnameable[str(reason)] = others
        if unnameable:
            log.error("broadcast.missed", why="no dead letter can name these ids", **unnameable)
            where = keys.room_pk(broadcast.room or "", int(broadcast.shard or 0))
            items = sum(map(len, unnameable.values()))
            self._damaged.report("membership", where, "connection ids that nobody has", items=items)

    async def broadcast(self, broadcast: Broadcast, reason: str) -> None:
        """Keep a whole broadcast. Returns when it is safe. Only where dead letters exist. Raises MessageRejected."""
        assert self._queue is not None  # noqa: S101 - the caller has looked
        await self._send(queue_message(broadcast, fifo=is_fifo(self._queue.url), sending=uuid4().hex), reason)
        self._counts[reason] += 1

    async def poison(self, message: Message, reason: str) -> None:
        """Keep a message that is no broadcast. Raises MessageRejected if SQS does not take it. Needs a dead-letter queue."""
        assert self._queue is not None  # noqa: S101 - the caller has looked
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
                "reason": {"DataType": "String", "StringValue": printable(reason)},
            },
        }

        async def send() -> None:
            [error] = await queue.send([entry])
            if error is not None:
                raise error

        await retry_forever("dead_letters", self._health, send)


def _fitting(broadcast: Broadcast, connection_ids: list[str], prefix: str) -> Iterator[Broadcast]:
    """The broadcast to these connections: one as a rule, several where one would be longer than a message may be."""
    if not connection_ids:
        return
    part = to_connections(broadcast, connection_ids, prefix)
    try:
        encode(part)
    except InvalidBroadcast:
        ordered = sorted(connection_ids)  # the same parts after a crash
        half = len(ordered) // 2
        if not half:
            raise
        yield from _fitting(broadcast, ordered[:half], prefix)
        yield from _fitting(broadcast, ordered[half:], prefix)
    else:
        yield part


def printable(text: str) -> str:
    """At most 250 characters that a message attribute may hold."""
    return "".join(character if character.isprintable() else "?" for character in text[:250]) or "?"
