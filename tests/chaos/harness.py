"""The chaos test harness: queues of its own in ministack, an endpoint that counts deliveries, and worker processes."""

import inspect
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from gatecast import Broadcast, Publisher
from local.backend import Backend
from local.resources import create_queues
from tests.chaos.endpoint import Endpoint, Tally
from tests.queues import DeadLetter, dead_letters, queue_depth
from tests.worker_process import WorkerProcess, eventually

VISIBILITY_SECONDS = 5


class Room(NamedTuple):
    """A room and all its members."""

    name: str
    ids: Sequence[str]


class Harness:
    """Use `open`. Workers that still run when it closes are killed."""

    def __init__(self, backend: Backend, endpoint: Endpoint, sqs: Any, dynamodb: Any, directory: Path) -> None:
        self.backend = backend
        self.endpoint = endpoint
        self.sqs = sqs
        self.dynamodb = dynamodb
        self.directory = directory
        self.workers: list[WorkerProcess] = []
        self.started_at = time.monotonic()

    @classmethod
    @asynccontextmanager
    async def open(cls, base: Backend, name: str, directory: Path, *, fifo: bool = False) -> AsyncIterator[Self]:
        """`base` provides the table; the queues are named after `name`. Logs go to `directory`."""
        async with AsyncExitStack() as stack:
            sqs = stack.enter_context(base.client("sqs"))
            dynamodb = stack.enter_context(base.client("dynamodb"))
            backend = base._replace(queues=create_queues(sqs, name, fifo=fifo))
            endpoint = await stack.enter_async_context(Endpoint.serving(directory / f"{name}-endpoint.log"))
            harness = cls(backend, endpoint, sqs, dynamodb, directory)
            try:
                yield harness
            finally:
                for worker in harness.workers:
                    worker.resume()
                    worker.kill()

    def launch(self, settings: Mapping[str, str] | None = None) -> WorkerProcess:
        """Start a worker and return at once. `settings` are environment variables that override the defaults."""
        environment = {
            **self.backend.environment(),
            "GATECAST_CONNECTIONS_ENDPOINT": self.endpoint.url,
            "GATECAST_VISIBILITY_SECONDS": str(VISIBILITY_SECONDS),
            **(settings or {}),
        }
        name = self.backend.queues.url.rpartition("/")[2]
        worker = WorkerProcess.launch(environment, self.directory / f"{name}-worker-{len(self.workers)}.log")
        self.workers.append(worker)
        return worker

    def publish(self, broadcast: Broadcast) -> None:
        Publisher(self.sqs, self.backend.queues.url).publish(broadcast)

    def depth(self) -> int:
        """Messages on the broadcast queue: visible, in flight and delayed."""
        return queue_depth(self.sqs, self.backend.queues.url)

    def dead_letter_depth(self) -> int:
        return queue_depth(self.sqs, self.backend.queues.dead_letter_url)

    async def wait_until_drained(self, *, seconds: float) -> None:
        """Wait until the broadcast queue is empty."""
        await self.wait_until(lambda: self.depth() == 0, seconds=seconds)

    async def wait_until_reached(self, at_least: int, *, seconds: float) -> None:
        """Wait until at least that many different connections have been reached."""

        async def enough() -> bool:
            return (await self.endpoint.summary()).reached >= at_least

        await self.wait_until(enough, seconds=seconds)

    async def wait_until(self, condition: Callable[[], Any], *, seconds: float) -> None:
        """Like `eventually`, but fail at once when a worker has failed."""

        async def holds() -> bool:
            self._assert_no_worker_failed()
            held = condition()
            return bool(await held if inspect.isawaitable(held) else held)

        await eventually(holds, seconds=seconds)

    async def holds_within(self, condition: Callable[[], Any], *, seconds: float) -> bool:
        """Whether the condition holds in time: like `wait_until`, for results recorded before they are asserted."""
        try:
            await self.wait_until(condition, seconds=seconds)
        except AssertionError:
            self._assert_no_worker_failed()
            return False
        return True

    def _assert_no_worker_failed(self) -> None:
        for worker in self.workers:
            assert worker.exit_code in {None, 0, -signal.SIGKILL}, worker.log_tail()

    async def tally(self, data: str, expected: Sequence[str]) -> Tally:
        return Tally.from_counts(await self.endpoint.counts(data), expected)

    def dead_letters(self) -> list[DeadLetter]:
        return dead_letters(self.sqs, self.backend.queues.dead_letter_url)

    def missed_deliveries(self) -> Counter[tuple[str, str]]:
        """(data, connection id) of each delivery on the dead-letter queue. Fails if it holds any other dead letter."""
        found: Counter[tuple[str, str]] = Counter()
        for letter in self.dead_letters():
            assert letter.reason in {"undelivered", "rejected"}, letter
            broadcast = json.loads(letter.body)
            found.update((broadcast["data"], each) for each in broadcast["connections"])
        return found

    @property
    def elapsed_seconds(self) -> float:
        """Since the harness was opened."""
        return time.monotonic() - self.started_at
