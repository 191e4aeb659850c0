"""Send messages that the worker creates, such as parts and remainders to its own queue, ten per call."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from worker.batcher import Batcher
from worker.decisions.parts import MAX_BATCH, batches
from worker.observe.health import Component, Health
from worker.ports import MessageQueue, MessageRejected, PortError
from worker.resilience import retry_forever

_WAIT_SECONDS: Final = 0.02


class Sender:
    """Sends messages, retrying forever if the queue fails. Failures count as those of `component`."""

    def __init__(self, queue: MessageQueue, health: Health, component: Component = "send") -> None:
        self._queue = queue
        self._health = health
        self._component: Component = component
        self._batcher: Batcher[dict[str, Any], PortError | None] = Batcher(
            self._send_batch, max_items=MAX_BATCH, wait_seconds=_WAIT_SECONDS, urgent=False
        )

    @property
    def url(self) -> str:
        return self._queue.url

    async def send(self, message: dict[str, Any], *, delay_seconds: int = 0) -> None:
        """Returns when the queue has stored the message. Concurrent sends share calls. Raises MessageRejected."""
        entry = {**message, **({"DelaySeconds": delay_seconds} if delay_seconds else {})}

        async def send() -> None:
            _raise(await self._batcher.submit(entry))

        await retry_forever(self._component, self._health, send)

    async def send_all(self, messages: Iterable[dict[str, Any]]) -> None:
        """Returns when the queue has stored all messages. `messages` is consumed lazily. Raises MessageRejected."""
        for batch in batches(messages):
            await self._send_until_stored(batch)

    async def _send_until_stored(self, entries: list[dict[str, Any]]) -> None:
        async def send() -> None:
            nonlocal entries
            errors = await self._send_entries(entries)
            entries = [entry for entry, error in zip(entries, errors, strict=True) if error is not None]
            for error in errors:
                _raise(error)

        await retry_forever(self._component, self._health, send)

    async def _send_batch(self, messages: Sequence[dict[str, Any]]) -> list[PortError | None]:
        errors: list[PortError | None] = []
        for batch in batches(messages):
            errors += await self._send_entries(batch)
        return errors

    async def _send_entries(self, entries: Sequence[dict[str, Any]]) -> list[PortError | None]:
        """Send one batch. If the call is rejected as a whole, each entry is sent in a call of its own."""
        try:
            return await self._queue.send(entries)
        except MessageRejected as rejected:
            if len(entries) == 1:
                return [rejected]
        return [(await self._send_entries([entry]))[0] for entry in entries]


def _raise(error: PortError | None) -> None:
    if error is not None:
        raise error
