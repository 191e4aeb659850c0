"""Where a chaos test takes place: queues of its own in ministack, a counting endpoint, and workers to ill-treat."""

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
from tests.worker_process import WorkerProcess, eventually

VISIBILITY_SECONDS = 5
_DEPTHS = ["", "NotVisible", "Delayed"]


class Room(NamedTuple):
    """A room and all its members."""

    name: str
    ids: Sequence[str]


class DeadLetter(NamedTuple):
    """What a dead letter says; `body` is a broadcast, unless it is poison."""

    reason: str
    body: str


class Arena:
    """Use `opened`. Workers that still run when it closes are killed."""

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
    async def opened(cls, base: Backend, name: str, directory: Path, *, fifo: bool = False) -> AsyncIterator[Self]:
        """`base` has the table; `name` names the queues. Logs go to `directory`."""
        async with AsyncExitStack() as stack:
            sqs = stack.enter_context(base.client("sqs"))
            dynamodb = stack.enter_context(base.client("dynamodb"))
            backend = base._replace(queues=create_queues(sqs, name, fifo=fifo))
            endpoint = await stack.enter_async_context(Endpoint.serving(directory / f"{name}-endpoint.log"))
            arena = cls(backend, endpoint, sqs, dynamodb, directory)
            try:
                yield arena
            finally:
                for worker in arena.workers:
                    worker.resume()
                    worker.kill()

    def launch(self, settings: Mapping[str, str] | None = None) -> WorkerProcess:
        """Starts a worker and returns at once. `settings` are further variables, which win."""
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

    def depth(self, url: str | None = None) -> int:
        """Messages on the broadcast queue (or another): waiting, in hand and delayed."""
        names = [f"ApproximateNumberOfMessages{which}" for which in _DEPTHS]
        answer = self.sqs.get_queue_attributes(QueueUrl=url or self.backend.queues.url, AttributeNames=names)
        return sum(int(answer["Attributes"][name]) for name in names)

    async def drained(self, *, seconds: float) -> None:
        """Returns when the broadcast queue is empty."""
        await self.until(lambda: self.depth() == 0, seconds=seconds)

    async def reached(self, at_least: int, *, seconds: float) -> None:
        """Returns when so many different connections have been reached."""

        async def enough() -> bool:
            return (await self.endpoint.summary()).reached >= at_least

        await self.until(enough, seconds=seconds)

    async def until(self, condition: Callable[[], Any], *, seconds: float) -> None:
        """As `eventually`, but fails at once when a worker has failed."""

        async def holds() -> bool:
            self._no_worker_has_failed()
            held = condition()
            return bool(await held if inspect.isawaitable(held) else held)

        await eventually(holds, seconds=seconds)

    async def within(self, condition: Callable[[], Any], *, seconds: float) -> bool:
        """Whether it holds in time: as `until`, for what is to be recorded before it is asserted."""
        try:
            await self.until(condition, seconds=seconds)
        except AssertionError:
            self._no_worker_has_failed()
            return False
        return True

    def _no_worker_has_failed(self) -> None:
        for worker in self.workers:
            assert worker.exit_code in {None, 0, -signal.SIGKILL}, worker.log_tail()

    async def tally(self, data: str, expected: Sequence[str]) -> Tally:
        return Tally.of(await self.endpoint.counts(data), expected)

    def dead_letters(self) -> list[DeadLetter]:
        """All that are on the dead-letter queue. They stay there, and are visible again at once."""
        url = self.backend.queues.dead_letter_url
        received: list[Any] = []
        while messages := self.sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=60, MessageAttributeNames=["All"]
        ).get("Messages"):
            received += messages
        for message in received:
            self.sqs.change_message_visibility(
                QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
            )
        return [
            DeadLetter(message["MessageAttributes"]["reason"]["StringValue"], message["Body"]) for message in received
        ]

    def misses(self) -> Counter[tuple[str, str]]:
        """Data and connection of each delivery that the dead-letter queue names. All must be missed deliveries."""
        found: Counter[tuple[str, str]] = Counter()
        for letter in self.dead_letters():
            assert letter.reason in {"undelivered", "rejected"}, letter
            broadcast = json.loads(letter.body)
            found.update((broadcast["data"], each) for each in broadcast["connections"])
        return found

    @property
    def seconds(self) -> float:
        """Since the arena was opened."""
        return time.monotonic() - self.started_at
