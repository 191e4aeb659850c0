"""The limits of the WebSocket side: sizes, types, timeouts, and the send buffer of a client that does not read."""

import asyncio
import contextlib
import socket
import time
from typing import Any

import pytest
import uvloop
import websockets

from gatecast.emulator.limits import Limits
from gatecast.emulator.server import Gateway
from tests.gateway_doubles import Recorder, call, close_code, connected, management_client, send_request

# The event loop owns the send buffer: its limit must hold with both.
EVENT_LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def test_a_frame_of_32_kb_and_a_message_of_128_kb_pass() -> None:
    recorder = Recorder()
    async with Gateway(recorder.routes("$default")) as gateway, connected(gateway) as (client, _):
        await client.send("x" * 32_768)
        assert await client.recv() == "x" * 32_768
        await client.send(["y" * 32_768] * 4)
        assert await client.recv() == "y" * 131_072


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("x" * 32_769, 1009),
        ("ü" * 16_385, 1009),
        (["x" * 32_768] * 4 + ["x"], 1009),
        ("x" * 900_000, 1009),
        (["x"] * 3 + ["x" * 40_000], 1009),
        (b"binary", 1003),
        ([b"binary", b"parts"], 1003),
        (b"x" * 40_000, 1003),
    ],
)
async def test_violations_close_the_connection_before_any_route_is_invoked(message: Any, code: int) -> None:
    recorder = Recorder()
    async with Gateway(recorder.routes("$default")) as gateway, connected(gateway) as (client, _):
        await client.send(message)
        assert await close_code(client) == code
        (event,) = await recorder.wait_for("$disconnect")
        assert event["requestContext"]["disconnectStatusCode"] == code
        assert not gateway.connections
    assert recorder.events_for("$default") == []


async def test_messages_before_the_violation_are_handled() -> None:
    recorder = Recorder()
    async with Gateway(recorder.routes("$default")) as gateway, connected(gateway) as (client, _):
        await client.send("before")
        await client.send(b"binary")
        await client.send("after")
        assert await close_code(client) == 1003
        await recorder.wait_for("$disconnect")
    assert [event["body"] for event in recorder.events_for("$default")] == ["before"]


async def test_a_client_cannot_negotiate_compression_around_the_limit() -> None:
    async with (
        Gateway(Recorder().routes("$default")) as gateway,
        connected(gateway, compression="deflate") as (client, _),
    ):
        assert client.protocol.extensions == []
        await client.send("x" * 40_000)
        assert await close_code(client) == 1009


async def test_idle_client_is_closed() -> None:
    recorder = Recorder()
    async with (
        Gateway(recorder.routes(), limits=Limits(idle_seconds=0.05)) as gateway,
        connected(gateway) as (client, _),
    ):
        assert await close_code(client) == 1001
        (event,) = await recorder.wait_for("$disconnect")
        assert (event["requestContext"]["disconnectStatusCode"], event["requestContext"]["disconnectReason"]) == (
            1001,
            "Going away",
        )


async def keep_busy(
    client: websockets.ClientConnection, connection_id: str, sdk: Any, direction: str, last: float, seconds: float
) -> float:
    """Sequential traffic in one direction; returns the longest pause since `last`, in seconds."""
    longest_pause, start = 0.0, time.monotonic()
    with contextlib.suppress(websockets.ConnectionClosed, sdk.exceptions.GoneException):
        while time.monotonic() < start + seconds:
            if direction == "from the client":
                await send_request(client, action="echo")
            elif direction == "to the client":
                await call(sdk.post_to_connection, ConnectionId=connection_id, Data=b"x")
                await client.recv()
            else:
                await (await client.ping())
            longest_pause = max(longest_pause, time.monotonic() - last)
            last = time.monotonic()
    return max(longest_pause, time.monotonic() - last)


@pytest.mark.parametrize("direction", ["from the client", "to the client", "ping"])
async def test_any_traffic_resets_the_idle_timeout(direction: str) -> None:
    idle_seconds = 0.5
    limits = Limits(idle_seconds=idle_seconds, control_frames_are_activity=direction == "ping")
    async with Gateway(Recorder().routes("echo"), limits=limits) as gateway:
        with management_client(gateway) as sdk:  # created before the client, which is idle during this
            last = time.monotonic()
            async with connected(gateway) as (client, id_):
                longest_pause = await keep_busy(client, id_, sdk, direction, last, 2 * idle_seconds)
                if longest_pause < idle_seconds:  # if the machine stalled, the client really was idle
                    assert client.close_code is None


async def test_client_is_closed_at_the_end_of_its_lifetime_even_if_active() -> None:
    limits = Limits(lifetime_seconds=0.2)
    async with Gateway(Recorder().routes("echo"), limits=limits) as gateway, connected(gateway) as (client, _):
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await send_request(client, action="echo")
        assert client.close_code == 1001


def small_receive_buffer(gateway: Gateway) -> socket.socket:
    """A connection with a small receive buffer, so that unread data soon fills the gateway's send buffer."""
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    small.connect(("127.0.0.1", gateway.port))
    small.setblocking(False)
    return small


async def stalled_client(gateway: Gateway) -> tuple[socket.socket, str]:
    """A client that connects and then never reads."""
    before = set(gateway.connections)
    raw = small_receive_buffer(gateway)
    loop = asyncio.get_running_loop()
    upgrade = (
        f"GET /local HTTP/1.1\r\nHost: 127.0.0.1:{gateway.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await loop.sock_sendall(raw, upgrade.encode())
    assert (await loop.sock_recv(raw, 4_096)).startswith(b"HTTP/1.1 101")
    (connection_id,) = set(gateway.connections) - before
    return raw, connection_id


async def fill(sdk: Any, connection_id: str) -> None:
    """Posts until the client's send buffer is full."""
    with contextlib.suppress(sdk.exceptions.LimitExceededException):
        while True:
            await call(sdk.post_to_connection, ConnectionId=connection_id, Data=b"x" * 30_000)


async def test_only_the_client_that_does_not_read_is_throttled() -> None:
    limits = Limits(send_buffer_bytes=65_536, requests_per_second=None)
    async with Gateway(Recorder().routes(), limits=limits) as gateway, connected(gateway) as (healthy, healthy_id):
        raw, slow_id = await stalled_client(gateway)
        with raw, management_client(gateway) as sdk:
            await fill(sdk, slow_id)
            await call(sdk.post_to_connection, ConnectionId=healthy_id, Data=b"still here")
            assert await healthy.recv() == "still here"
            assert gateway.counters.throttled == {"client": 1}
            assert gateway.connections[slow_id].transport.get_write_buffer_size() <= 65_536


async def test_a_slow_client_that_reads_again_can_be_posted_to_again() -> None:
    limits = Limits(send_buffer_bytes=65_536, requests_per_second=None)
    async with Gateway(Recorder().routes(), limits=limits) as gateway:
        raw, slow_id = await stalled_client(gateway)
        loop = asyncio.get_running_loop()
        with raw, management_client(gateway) as sdk:
            await fill(sdk, slow_id)
            while gateway.connections[slow_id].transport.get_write_buffer_size():
                await loop.sock_recv(raw, 1_000_000)
            await call(sdk.post_to_connection, ConnectionId=slow_id, Data=b"again")


async def test_a_client_that_does_not_read_can_be_deleted() -> None:
    limits = Limits(send_buffer_bytes=65_536, requests_per_second=None, close_seconds=0.1)
    recorder = Recorder()
    async with Gateway(recorder.routes(), limits=limits) as gateway:
        raw, slow_id = await stalled_client(gateway)
        with raw, management_client(gateway) as sdk:
            await fill(sdk, slow_id)
            await call(sdk.delete_connection, ConnectionId=slow_id)
            await recorder.wait_for("$disconnect")
            assert not gateway.connections


async def test_text_that_is_not_utf_8_closes_the_connection() -> None:
    recorder = Recorder()
    async with Gateway(recorder.routes("$default")) as gateway, connected(gateway) as (client, _):
        await client.send(b"\xff\xfe", text=True)
        assert await close_code(client) == 1007
        (event,) = await recorder.wait_for("$disconnect")
        assert event["requestContext"]["disconnectStatusCode"] == 1007
