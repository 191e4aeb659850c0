"""The publishers: they make the calls that publishing asks for, with the clients that they were given."""

import time
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Iterator
from typing import Any, Final, TypeVar, Unpack, overload

from gatecast.broadcast import MAX_DATA_BYTES, Broadcast
from gatecast.publisher.batches import Batches, Published
from gatecast.publisher.publication import Destination, Prepared, Publication, check_delay, prepare
from gatecast.publisher.queue import is_fifo
from gatecast.publisher.steps import END, Call, Next, Sleep, Steps, publish_one

RETRY_SECONDS: Final = 30.0
"""For how long `publish_many` retries without success."""
T = TypeVar("T")
_NOTHING: Final[Iterable[Any]] = ()


class _Plan:
    """What both publishers have in common: where messages go, and the steps that publish them."""

    def __init__(self, queue_url: str, *, s3: Any, bucket: str | None, reference_above: int) -> None:
        if (s3 is None) != (bucket is None):
            raise ValueError("s3 and bucket: expected both, a client of S3 and the name of a bucket, or neither")
        self._queue_url = queue_url
        self.destination = Destination(is_fifo(queue_url), bucket, reference_above)

    def one(self, broadcast: Broadcast | None, delay_seconds: int, fields: Publication) -> Steps[str]:
        if broadcast is None:
            if delay_seconds:
                raise TypeError("delay_seconds: only for a Broadcast; the field is `delay`")
            return publish_one(self._queue_url, self._prepare(fields))
        if fields:
            raise TypeError(f"expected a Broadcast or fields, got both: {', '.join(sorted(fields))}")
        delay_seconds = check_delay(delay_seconds, "delay_seconds", fifo=self.destination.fifo)
        prepared = self._prepare(broadcast)
        if delay_seconds:
            prepared.message["DelaySeconds"] = delay_seconds
        return publish_one(self._queue_url, prepared)

    def many(self, retry_seconds: float) -> Steps[Published]:
        fifo = self.destination.fifo
        return Batches(self._queue_url, self._prepare, fifo=fifo, retry_seconds=retry_seconds).run()

    def _prepare(self, message: Broadcast | Publication) -> Prepared:
        return prepare(message, self.destination, now_ms=int(time.time() * 1000))


class Publisher:
    """Publishes to one queue through a boto3 client of SQS, whose errors pass through. Thread-safe, as its clients are.

    With `s3`, a boto3 client of S3, and `bucket`, payloads of more than `reference_above` bytes (0 to 131,072), and
    those whose frame would be too long for `gatecast.v2`, are stored as objects, and clients receive a URL. Raises
    ValueError if only one of them is given.

    >>> publisher = Publisher(sqs, queue_url)
    >>> publisher.publish(room="lobby", json={"price": 12.5}, id="price-4711")
    'price-4711'
    >>> publisher.publish(user="ann", data="hello", id="hello-1", expires_in=60)
    'hello-1'
    """

    def __init__(
        self,
        sqs: Any,
        queue_url: str,
        *,
        s3: Any = None,
        bucket: str | None = None,
        reference_above: int = MAX_DATA_BYTES,
    ) -> None:
        self._clients = {"sqs": sqs, "s3": s3}
        self._plan = _Plan(queue_url, s3=s3, bucket=bucket, reference_above=reference_above)

    @property
    def fifo(self) -> bool:
        """Whether the queue is a FIFO queue, which keeps the order of a room's broadcasts and delays none of them."""
        return self._plan.destination.fifo

    @overload
    def publish(self, broadcast: Broadcast, /, *, delay_seconds: int = 0) -> str: ...
    @overload
    def publish(self, /, **fields: Unpack[Publication]) -> str: ...
    def publish(
        self, broadcast: Broadcast | None = None, /, *, delay_seconds: int = 0, **fields: Unpack[Publication]
    ) -> str:
        """Publishes the message of these fields (`Publication`), or a broadcast. Returns its id once it is stored.

        Safe to retry with the same id: for 24 hours an id identifies one broadcast to its room, or one to any
        `connections`. Raises InvalidBroadcast before any call. A worker receives a broadcast after `delay_seconds`, 0
        to 900, which only standard queues support.
        """
        return self._run(self._plan.one(broadcast, delay_seconds, fields))

    def publish_many(
        self, messages: Iterable[Broadcast | Publication], *, retry_seconds: float = RETRY_SECONDS
    ) -> Published:
        """Publishes all of these messages, in batches, and returns which were accepted and which failed.

        At most one batch is held in memory. What may succeed later is retried, with jitter; when nothing has been
        accepted for `retry_seconds`, or an error is final (a missing permission), all that is left is named as failed,
        and so are invalid messages. Errors of the clients are not raised; those of `messages` are.

        On a FIFO queue each room keeps its order: one of its messages per call, and once one has failed, none of the
        later ones is sent. So the failed ones, in their order, can be published again.

        >>> publisher = Publisher(sqs, queue_url)
        >>> prices = (Publication(room="ticker", json=price, id=f"price-{price}") for price in (12, 13, float("nan")))
        >>> published = publisher.publish_many(prices)
        >>> published.accepted
        ['price-12', 'price-13']
        >>> [(failed.position, failed.id, failed.code) for failed in published.failed]
        [(2, 'price-nan', 'InvalidBroadcast')]
        """
        return self._run(self._plan.many(retry_seconds), messages)

    def _run(self, steps: Steps[T], messages: Iterable[Any] = _NOTHING) -> T:
        iterator = iter(messages)
        try:
            step = next(steps)
            while True:
                try:
                    result = self._perform(step, iterator)
                except Exception as error:  # noqa: BLE001 - the steps decide what it means
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            returned: T = end.value
            return returned

    def _perform(self, step: Call | Sleep | Next, messages: Iterator[Any]) -> Any:
        match step:
            case Call(service, method, arguments):
                response = getattr(self._clients[service], method)(**arguments)
                if isinstance(response, Coroutine):  # nothing has been sent, and nothing would be
                    response.close()
                    raise TypeError(f"{service}: an asynchronous client; expected one of boto3, or use AsyncPublisher")
                return response
            case Sleep(seconds):
                return time.sleep(seconds)
            case Next():
                return next(messages, END)


class AsyncPublisher:
    """Publishes to one queue through a client of SQS of aioboto3 or aiobotocore. Otherwise as `Publisher`.

    >>> async def main():
    ...     async with aioboto3.Session().client("sqs") as sqs:
    ...         return await AsyncPublisher(sqs, queue_url).publish(room="lobby", data="hello", id="hello-2")
    >>> asyncio.run(main())
    'hello-2'
    """

    def __init__(
        self,
        sqs: Any,
        queue_url: str,
        *,
        s3: Any = None,
        bucket: str | None = None,
        reference_above: int = MAX_DATA_BYTES,
    ) -> None:
        self._clients = {"sqs": sqs, "s3": s3}
        self._plan = _Plan(queue_url, s3=s3, bucket=bucket, reference_above=reference_above)

    @property
    def fifo(self) -> bool:
        """As `Publisher.fifo`."""
        return self._plan.destination.fifo

    @overload
    async def publish(self, broadcast: Broadcast, /, *, delay_seconds: int = 0) -> str: ...
    @overload
    async def publish(self, /, **fields: Unpack[Publication]) -> str: ...
    async def publish(
        self, broadcast: Broadcast | None = None, /, *, delay_seconds: int = 0, **fields: Unpack[Publication]
    ) -> str:
        """As `Publisher.publish`."""
        return await self._run(self._plan.one(broadcast, delay_seconds, fields))

    async def publish_many(
        self,
        messages: Iterable[Broadcast | Publication] | AsyncIterable[Broadcast | Publication],
        *,
        retry_seconds: float = RETRY_SECONDS,
    ) -> Published:
        """As `Publisher.publish_many`; `messages` may be asynchronous."""
        return await self._run(self._plan.many(retry_seconds), messages)

    async def _run(self, steps: Steps[T], messages: Iterable[Any] | AsyncIterable[Any] = _NOTHING) -> T:
        iterator = aiter(messages) if isinstance(messages, AsyncIterable) else iter(messages)
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._perform(step, iterator)
                except Exception as error:  # noqa: BLE001 - the steps decide what it means
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            returned: T = end.value
            return returned

    async def _perform(self, step: Call | Sleep | Next, messages: Iterator[Any] | AsyncIterator[Any]) -> Any:
        match step:
            case Call(service, method, arguments):
                return await getattr(self._clients[service], method)(**arguments)
            case Sleep(seconds):
                from asyncio import sleep  # noqa: PLC0415 - it would make each start of a Lambda function 40 ms longer

                return await sleep(seconds)
            case Next() if isinstance(messages, AsyncIterator):
                return await anext(messages, END)
            case Next():
                return next(messages, END)
