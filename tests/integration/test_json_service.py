"""The hot calls against a service that answers what no service should, and a poll that fails."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from worker.aws.errors import ServiceError
from worker.aws.json_service import JsonService
from worker.aws.queue import Queue
from worker.observe.metrics import ServiceCalls
from worker.ports import NoResponse
from worker.transport.pool import Pool
from worker.transport.signing import Credentials

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

    async with (
        await asyncio.start_server(answer, "127.0.0.1", 0) as server,
        running_client(server.sockets[0].getsockname()[1], calls) as client,
    ):
        yield client


@asynccontextmanager
async def running_client(port: int, calls: ServiceCalls) -> AsyncIterator[tuple[JsonService, asyncio.Task[None]]]:
    service = JsonService(
        f"http://127.0.0.1:{port}/",
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
        with pytest.raises(NoResponse, match="malformed"):
            await asyncio.wait_for(Queue(service, "url").receive(1, visibility_seconds=5), 5)
        assert not running.done()


@asynccontextmanager
async def resetting_kept_connections(
    calls: ServiceCalls, *, when: Callable[[int], bool]
) -> AsyncIterator[tuple[JsonService, list[bytes]]]:
    """A service that resets a connection instead of answering where `when` says so of the number of all calls.

    With the operations that it has seen.
    """
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(65536):  # a call of these tests is one segment
            seen.append(request.partition(b"x-amz-target: AmazonSQS.")[2].partition(b"\r\n")[0])
            if when(len(seen)):
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with (
        await asyncio.start_server(answer, "127.0.0.1", 0) as server,
        running_client(server.sockets[0].getsockname()[1], calls) as (service, _),
    ):
        yield service, seen


async def test_a_call_on_a_connection_that_has_died_is_made_once_more_and_no_failure() -> None:
    calls = ServiceCalls()
    async with resetting_kept_connections(calls, when=lambda number: number == 2) as (service, seen):
        for _ in range(3):
            assert await asyncio.wait_for(service.call("DeleteMessageBatch", b"{}"), 5) == b"{}"
        assert seen == [b"DeleteMessageBatch"] * 4
        assert not calls.errors.total()
        assert sum(calls.durations["sqs", "DeleteMessageBatch"].counts) == 3


async def test_a_call_whose_retry_fails_has_no_response() -> None:
    calls = ServiceCalls()
    async with resetting_kept_connections(calls, when=lambda number: number in {2, 3}) as (service, seen):
        await asyncio.wait_for(service.call("DeleteMessageBatch", b"{}"), 5)
        with pytest.raises(NoResponse):
            await asyncio.wait_for(service.call("DeleteMessageBatch", b"{}"), 5)
        assert len(seen) == 3
        assert calls.errors.total() == 1


async def test_a_call_that_nobody_waits_for_any_more_is_not_made_again() -> None:
    """A receive, for one, would take messages that nobody gets to see."""
    abandoned: list[asyncio.Task[bytes]] = []

    def when(number: int) -> bool:
        if number == 2:
            abandoned[0].cancel()
        return number == 2

    async with resetting_kept_connections(ServiceCalls(), when=when) as (service, seen):
        await asyncio.wait_for(service.call("DeleteMessageBatch", b"{}"), 5)
        abandoned.append(asyncio.create_task(service.call("ReceiveMessage", b"{}")))
        await asyncio.wait(abandoned, timeout=5)
        assert abandoned[0].cancelled()
        await asyncio.wait_for(service.call("DeleteMessageBatch", b"{}"), 5)
        assert seen == [b"DeleteMessageBatch", b"ReceiveMessage", b"DeleteMessageBatch"]


@pytest.mark.parametrize("descriptor", [True, False])
async def test_what_a_poll_raises_ends_the_run(descriptor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not descriptor:
        monkeypatch.setattr(Pool, "fileno", lambda _: None)
    async with calling(200, b"{}", BrokenCalls()) as (service, running):
        asking = asyncio.create_task(service.call("ReceiveMessage", b"{}"))
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(running, 5)
        asking.cancel()
