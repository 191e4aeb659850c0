"""The JSON client against a service that returns malformed responses or resets connections, and a poll that fails."""

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

# Event loops differ in how they handle an exception in a reader's callback.
EVENT_LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

NOT_UTF8 = b'{"__type":"\xff","Messages":[{"Body":"\xff"}]}'


class BrokenCalls(ServiceCalls):
    def record_response(self, *_: object, **__: object) -> None:
        raise ZeroDivisionError


@asynccontextmanager
async def calling(
    status: int, body: bytes, calls: ServiceCalls
) -> AsyncIterator[tuple[JsonService, asyncio.Task[None]]]:
    """A client of a service that responds to every call with `status` and `body`, and the task that runs it."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(b"HTTP/1.1 %d Reason\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        writer.close()

    async with (
        await asyncio.start_server(respond, "127.0.0.1", 0) as server,
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


async def test_a_response_that_is_not_utf8_is_a_service_failure() -> None:
    async with calling(200, NOT_UTF8, ServiceCalls()) as (service, running):
        with pytest.raises(NoResponse, match="malformed"):
            await asyncio.wait_for(Queue(service, "url").receive(1, visibility_seconds=5), 5)
        assert not running.done()


@asynccontextmanager
async def resetting_kept_connections(
    calls: ServiceCalls, *, when: Callable[[int], bool]
) -> AsyncIterator[tuple[JsonService, list[bytes]]]:
    """A client of a service that resets the connection instead of responding if `when(number of the call)` is true.

    Yields the client and the list of operations that the service has received.
    """
    seen: list[bytes] = []

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
        await asyncio.start_server(respond, "127.0.0.1", 0) as server,
        running_client(server.sockets[0].getsockname()[1], calls) as (service, _),
    ):
        yield service, seen


async def test_a_call_on_a_dead_connection_is_retried_and_not_counted_as_a_failure() -> None:
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


async def test_a_cancelled_call_is_not_retried() -> None:
    """A retried receive, for example, would make messages invisible without anyone processing them."""
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
async def test_an_exception_in_a_poll_ends_the_run(descriptor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not descriptor:
        monkeypatch.setattr(Pool, "fileno", lambda _: None)
    async with calling(200, b"{}", BrokenCalls()) as (service, running):
        calling_task = asyncio.create_task(service.call("ReceiveMessage", b"{}"))
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(running, 5)
        calling_task.cancel()
