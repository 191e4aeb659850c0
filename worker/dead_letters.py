"""What could not be delivered, kept where a person can see it and send it again.

With a dead-letter queue, missed deliveries go there as broadcasts to exactly the connections that missed, and messages
that are no broadcast go there as they are; a `reason` attribute says why. Without one they are logged, with the ids.
Nothing here gives up: a broadcast waits until its misses are safe.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from gatecast.broadcast import Broadcast
from gatecast.publisher import is_fifo, queue_message
from worker.delivery.outcome import Outcome
from worker.health import Health
from worker.parts import REJECTED_PREFIX, UNDELIVERED_PREFIX, to_connections
from worker.perseverance import DEPENDENCY_ERRORS, describe, persevere
from worker.ports import Message, MessageQueue, ServiceError

log = structlog.get_logger()


class Refused(Exception):  # noqa: N818 - it says what the queue did
    """SQS will not take this message, however often it is tried; the argument is its code."""


class DeadLetters:
    """`queue` is None where there is no dead-letter queue. `counts` counts dead letters by reason."""

    def __init__(self, queue: MessageQueue | None, health: Health, counts: dict[str, int]) -> None:
        self._queue = queue
        self._health = health
        self._counts = counts

    @property
    def exist(self) -> bool:
        return self._queue is not None

    async def missed(self, broadcast: Broadcast, connection_ids: Mapping[Outcome, Sequence[str]]) -> None:
        """Keep missed deliveries, by reason (1 to 1,000 of each). Returns when they are safe. Raises Refused."""
        if self._queue is None:
            log.error("broadcast.missed", **{str(reason): ids for reason, ids in connection_ids.items()})
            for reason in connection_ids:
                self._counts[reason] += 1
            return
        for reason, ids in connection_ids.items():
            prefix = REJECTED_PREFIX if reason is Outcome.REJECTED else UNDELIVERED_PREFIX
            await self.broadcast(to_connections(broadcast, ids, prefix), reason)

    async def broadcast(self, broadcast: Broadcast, reason: str) -> None:
        """Keep a whole broadcast. Returns when it is safe. Only where dead letters exist. Raises Refused."""
        assert self._queue is not None  # noqa: S101 - the caller has looked
        await self._send(queue_message(broadcast, fifo=is_fifo(self._queue.url)), reason)
        self._counts[reason] += 1

    async def poison(self, message: Message, reason: str) -> None:
        """Keep a message that is no broadcast. Raises Refused if SQS does not take it. Needs a dead-letter queue."""
        assert self._queue is not None  # noqa: S101 - the caller has looked
        body: dict[str, str] = {"MessageBody": message.body}
        if is_fifo(self._queue.url):
            body |= {"MessageGroupId": "poison", "MessageDeduplicationId": message.id}
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
            try:
                code = (await queue.send([entry]))[0]
            except DEPENDENCY_ERRORS as error:
                if is_refusal(describe(error)):
                    raise Refused(describe(error)) from None
                raise
            if code is not None:
                raise Refused(code) if is_refusal(code) else ServiceError(code)

        await persevere("dead letters", self._health, send)


def is_refusal(code: str) -> bool:
    """Would SQS say the same again? It is the message that it objects to."""
    return code.endswith(("BatchRequestTooLong", "InvalidMessageContents", "InvalidParameterValue"))


def printable(text: str) -> str:
    """At most 250 characters that a message attribute may hold."""
    return "".join(character if character.isprintable() else "?" for character in text[:250]) or "?"
