"""The worker's HTTP server responds whatever other clients do. With real sockets, on both event loops."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import cast

import aiohttp
import pytest
import uvloop
from aiohttp import web

from local.processes import free_port
from worker.observe.admin_server import AdminServer
from worker.observe.connection_guard import MAX_CONNECTIONS, MAX_REQUEST_BYTES
from worker.observe.health import Health
from worker.observe.metrics import Metrics

EVENT_LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
HANGING = 1_000
LONG_SECONDS = 3_600.0


@contextlib.asynccontextmanager
async def serving(lifetime_seconds: float = LONG_SECONDS) -> AsyncIterator[int]:
    """A server's port."""
    health, port = Health(), free_port()
    server = AdminServer("127.0.0.1", port, health=health, metrics=Metrics(health), lifetime_seconds=lifetime_seconds)
    await server.open()
    try:
        yield port
    finally:
        await server.close()


@pytest.fixture
def sockets() -> Iterator[contextlib.ExitStack]:
    """Closes the clients' sockets in the end."""
    with contextlib.ExitStack() as stack:
        yield stack


async def connect(port: int, sockets: contextlib.ExitStack, sent: bytes = b"") -> socket.socket:
    client = sockets.enter_context(socket.socket())
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port))
    if sent:
        await loop.sock_sendall(client, sent)
    return client


async def ended(client: socket.socket) -> bytes:
    """What the client receives until the server closes its connection."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := await asyncio.get_running_loop().sock_recv(client, 65_536):
            received += data
    return received


def is_open(client: socket.socket) -> bool:
    try:
        return client.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        assert response.headers["Connection"] == "close"
        return response.status, await response.text()


async def test_livez_responds_while_a_thousand_clients_hang(sockets: contextlib.ExitStack) -> None:
    async with serving() as port:
        clients = [await connect(port, sockets, b"GET /livez HTTP/1.1\r\n" * (nth % 2)) for nth in range(HANGING)]
        for path in ("/livez", "/readyz", "/metrics", "/broadcasts"):
            status, _ = await get(port, path)
            assert status == 200
        assert sum(map(is_open, clients)) <= MAX_CONNECTIONS
        assert is_open(clients[-1])
        assert not is_open(clients[0])


async def test_the_oldest_connection_without_a_request_is_replaced(sockets: contextlib.ExitStack) -> None:
    async with serving() as port:
        clients = [await connect(port, sockets) for _ in range(MAX_CONNECTIONS)]
        await get(port, "/livez")
        assert await ended(clients[0]) == b""
        assert all(map(is_open, clients[1:]))


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nHost: x\r\n"], ids=["silent", "half a request"])
async def test_a_client_that_does_not_send_its_request_is_disconnected(
    sockets: contextlib.ExitStack, sent: bytes
) -> None:
    async with serving(lifetime_seconds=0.2) as port:
        assert await ended(await connect(port, sockets, sent)) == b""


async def test_a_client_that_sends_its_request_slowly_is_disconnected(sockets: contextlib.ExitStack) -> None:
    async with serving(lifetime_seconds=0.3) as port:
        client = await connect(port, sockets, b"GET /livez HTTP/1.1\r\n")

        async def trickle() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await asyncio.get_running_loop().sock_sendall(client, b"X: y\r\n")
                    await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        assert await ended(client) == b""
        trickling.cancel()


async def test_a_large_head_is_not_kept_in_memory(sockets: contextlib.ExitStack) -> None:
    async with serving() as port:
        many = b"".join(b"X-%d: %s\r\n" % (nth, b"y" * 1_000) for nth in range(MAX_REQUEST_BYTES // 1_000 + 1))
        client = await connect(port, sockets, b"GET /livez HTTP/1.1\r\nHost: x\r\n" + many)
        assert b"200 OK" not in await ended(client)
        assert (await get(port, "/livez"))[0] == 200


async def test_a_connection_carries_one_request(sockets: contextlib.ExitStack) -> None:
    async with serving() as port:
        for path, status in (("/livez", b"200"), ("/nowhere", b"404")):
            client = await connect(port, sockets, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            response = await ended(client)
            assert response.startswith(b"HTTP/1.1 " + status)
            assert b"\r\nConnection: close\r\n" in response


async def test_closing_does_not_wait_for_clients_that_hang(sockets: contextlib.ExitStack) -> None:
    async with serving() as port:
        client = await connect(port, sockets, b"GET /livez HTTP/1.1\r\n")
        await get(port, "/livez")
    assert await ended(client) == b""


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False)])  # noqa: S104
async def test_rooms_are_named_on_a_loopback_address_only(host: str, shown: bool) -> None:
    health = Health()
    server = AdminServer(host, free_port(), health=health, metrics=Metrics(health))
    server.dearest_rooms = lambda: [{"room": "@user/ann", "billed_units": 5}]
    response = await server._serve_broadcasts(cast(web.Request, None))  # it is not opened: nothing listens
    assert (b"@user/ann" in cast(bytes, response.body)) is shown
