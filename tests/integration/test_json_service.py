"""The hot calls against a service that answers what no service should, and a poll that fails."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvloop

from worker.aws.json_service import JsonService
from worker.aws.queue import Queue
from worker.http.pool import Pool
from worker.http.signing import Credentials
from worker.metrics import ServiceCalls
from worker.perseverance import DEPENDENCY_ERRORS
from worker.ports import ServiceError

# What becomes of an exception in a reader's callback is the event loop's to say.
EVENT_LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

NOT_UTF8 = b'{"__type":"\xff","Messages":[{"Body":"\xff"}]}'


class BrokenCalls(ServiceCalls):
    def answered(self, *_: object, **__: object) -> None:
        raise ZeroDivisionError


@asynccontextmanager
async def calling(
    status: int, body: bytes, calls: ServiceCalls
) -> AsyncIterator[tuple[JsonService, asyncio.Task[None]]]:
    """A service that answers every call with `status` and `body`, and the task that runs its client."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(b"HTTP/1.1 %d Whatever\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        service = JsonService(
            f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/",
            region="eu-west-1",
            service="sqs",
            prefix="AmazonSQS",
            json_version="1.0",
            connections=2,
            tls=None,
            calls=calls,
        )
        service.use(Credentials("key", "secret"))
        running = asyncio.create_task(service.run())
        try:
            yield service, running
        finally:
            running.cancel()
            await asyncio.wait({running})


async def test_an_error_that_is_not_utf8_has_no_code() -> None:
    async with calling(400, NOT_UTF8, ServiceCalls()) as (service, running):
        for _ in range(2):
            with pytest.raises(ServiceError, match="status 400"):
                await asyncio.wait_for(service.call("ReceiveMessage", b"{}"), 5)
        assert not running.done()


async def test_an_answer_that_is_not_utf8_is_a_failure_of_the_service() -> None:
    async with calling(200, NOT_UTF8, ServiceCalls()) as (service, running):
        with pytest.raises(DEPENDENCY_ERRORS):
            await asyncio.wait_for(Queue(service, "url").receive(1, visibility_seconds=5), 5)
        assert not running.done()


@pytest.mark.parametrize("descriptor", [True, False])
async def test_what_a_poll_raises_ends_the_run(descriptor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not descriptor:
        monkeypatch.setattr(Pool, "fileno", lambda _: None)
    async with calling(200, b"{}", BrokenCalls()) as (service, running):
        asking = asyncio.create_task(service.call("ReceiveMessage", b"{}"))
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(running, 5)
        asking.cancel()
