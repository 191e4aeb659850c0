"""Putting broadcasts that the worker makes (parts and remainders) on its own queue, ten in a call."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from worker.batching import Batcher
from worker.dead_letters import is_refusal
from worker.health import Health
from worker.parts import MAX_BATCH, batches
from worker.perseverance import DEPENDENCY_ERRORS, describe, persevere
from worker.ports import MessageQueue, ServiceError

_WAIT_SECONDS: Final = 0.02


class RejectedForGood(Exception):  # noqa: N818 - it says what the queue did
    """SQS will not take this message, however often it is sent; the argument is its code."""


class Sender:
    """Sends until it succeeds; a dependency that fails is waited for."""

    def __init__(self, queue: MessageQueue, health: Health) -> None:
        self._queue = queue
        self._health = health
        self._batcher: Batcher[dict[str, Any], str | None] = Batcher(
            self._send_batch, most=MAX_BATCH, wait_seconds=_WAIT_SECONDS, urgent=False
        )

    @property
    def url(self) -> str:
        return self._queue.url

    async def send(self, message: dict[str, Any], *, delay_seconds: int = 0) -> None:
        """Returns when the queue has it. What is sent at the same time shares calls. Raises RejectedForGood."""
        entry = {**message, **({"DelaySeconds": delay_seconds} if delay_seconds else {})}

        async def send() -> None:
            _check(await self._batcher.ask(entry))

        await persevere("send", self._health, send)

    async def send_all(self, messages: Iterable[dict[str, Any]]) -> None:
        """Returns when the queue has all of them. They are made as they are sent. Raises RejectedForGood."""
        for batch in batches(messages):
            await self._send_until_taken(batch)

    async def _send_until_taken(self, entries: list[dict[str, Any]]) -> None:
        async def send() -> None:
            nonlocal entries
            codes = await self._send_entries(entries)
            entries = [entry for entry, code in zip(entries, codes, strict=True) if code is not None]
            for code in codes:
                _check(code)

        await persevere("send", self._health, send)

    async def _send_batch(self, messages: Sequence[dict[str, Any]]) -> list[str | None]:
        codes: list[str | None] = []
        for batch in batches(messages):
            codes += await self._send_entries(batch)
        return codes

    async def _send_entries(self, entries: Sequence[dict[str, Any]]) -> list[str | None]:
        """The codes of their errors. A call that is rejected as a whole is made entry by entry."""
        try:
            return await self._queue.send(entries)
        except DEPENDENCY_ERRORS as error:
            code = describe(error)
            if not is_refusal(code):
                raise
        if len(entries) == 1:
            return [code]
        return [(await self._send_entries([entry]))[0] for entry in entries]


def _check(code: str | None) -> None:
    if code is not None:
        raise RejectedForGood(code) if is_refusal(code) else ServiceError(code)
