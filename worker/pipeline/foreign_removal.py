"""What is done about gone connections whose items are in a table of the operator's own: delete them, or tell a queue.

An item is deleted if it still names the connection. Where what is known does not lead to an item, as for some dead
letters sent again, it stays, and the next broadcast to its room finds it. The queue receives a JSON object per item
(`connection_id`, and `room`, `shard`, `user` where they are known), at least once: until the operator's program has
removed the item, later broadcasts find the connection again, but it is sent no more than once per REST_SECONDS.

What if we die at an await? The items are still there, so the next broadcast finds them again.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from gatecast.publisher import is_fifo
from worker.decisions.locator import Locator
from worker.observe.health import Health
from worker.pipeline.removal import Gone, batches
from worker.pipeline.sender import Sender
from worker.ports import ForeignMembers, MessageRejected
from worker.resilience import retry_forever

log = structlog.get_logger()

REST_SECONDS: Final = 60.0
_MAX_RESTING: Final = 20_000
_CONCURRENCY: Final = 8


class ItemRemoval:
    """Deletes their items."""

    knows_ages = False

    def __init__(self, members: ForeignMembers, health: Health) -> None:
        self._members = members
        self._health = health

    async def remove(self, gone: Sequence[Gone]) -> int:
        deleted = 0
        for chunk in batches(gone, _CONCURRENCY):
            async with asyncio.TaskGroup() as group:
                deletions = [
                    group.create_task(
                        retry_forever("reaper", self._health, partial(self._members.delete, *each)), name="delete item"
                    )
                    for each in chunk
                ]
            deleted += sum(deletion.result() for deletion in deletions)
        return deleted


class QueueRemoval:
    """Sends them to a queue."""

    knows_ages = False

    def __init__(self, sender: Sender, clock: Callable[[], float] = time.monotonic) -> None:
        self._sender = sender
        self._clock = clock
        self._resting: OrderedDict[Gone, float] = OrderedDict()
        """When each that has been sent may be sent again, in monotonic seconds, in this order."""

    async def remove(self, gone: Sequence[Gone]) -> int:
        """Returns 0: what the queue's receiver does is not known."""
        now = self._clock()
        while self._resting and (next(iter(self._resting.values())) <= now or len(self._resting) > _MAX_RESTING):
            self._resting.popitem(last=False)
        fresh = [each for each in gone if each not in self._resting]
        await asyncio.gather(*map(self._send, fresh))
        self._resting.update(dict.fromkeys(fresh, now + REST_SECONDS))
        return 0

    async def _send(self, gone: Gone) -> None:
        try:
            await self._sender.send(self._message(gone))
        except MessageRejected as rejected:
            log.error("gone.rejected", code=rejected.code)  # noqa: TRY400

    def _message(self, gone: Gone) -> dict[str, Any]:
        body: dict[str, Any] = {"connection_id": gone.connection_id}
        if gone.found_in is not None:
            body["room"], body["shard"] = gone.found_in
        if gone.locator and (user := Locator.decode(gone.locator).user):
            body["user"] = user
        message = {"MessageBody": msgspec.json.encode(body).decode()}
        if not is_fifo(self._sender.url):
            return message
        digest = hashlib.sha256(message["MessageBody"].encode()).hexdigest()
        return {**message, "MessageGroupId": digest, "MessageDeduplicationId": digest}
