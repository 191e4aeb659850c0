"""The client on real sockets, against a server in this process that speaks the contract."""

import asyncio
import http
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed as SocketClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from gatecast import client
from gatecast.client import Client, Options
from gatecast.client.transport import MAX_FRAME_BYTES, TransportClosed
from tests.client_server import Connection, Server, fails, read, shown, until

QUICK = Options(backoff_seconds=0.01, max_backoff_seconds=0.05, first_connection_seconds=0.2)
TOKEN = "header.claims.signature"


@dataclass
class Sockets:
    """The state of rooms, and WebSockets that lead to it. `dialect` is the subprotocol that is chosen."""

    server: Server = field(default_factory=lambda: Server(lambda: 0.0))
    dialect: str | None = "gatecast.v2"
    status: int = 101
    offered: list[list[str]] = field(default_factory=list)
    frames: list[list[str]] = field(default_factory=list)
    """The frames of each message that a client sent."""
    sockets: list[ServerConnection] = field(default_factory=list)
    url: str = ""

    def choose(self, _socket: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        self.offered.append([str(each) for each in offered])
        return Subprotocol(self.dialect) if self.dialect else None

    def admit(self, socket: ServerConnection, _request: Request) -> Response | None:
        return None if self.status == 101 else socket.respond(http.HTTPStatus(self.status), "")

    async def handle(self, socket: ServerConnection) -> None:
        self.sockets.append(socket)
        connection = self.server.connect(self.offered[-1][1] if len(self.offered[-1]) > 1 else None)
        sending = asyncio.create_task(self._send(socket, connection))
        try:
            while True:
                frames = [str(each) async for each in socket.recv_streaming()]
                self.frames.append(frames)
                self.server.receive(connection, "".join(frames))
        except SocketClosed:
            pass
        finally:
            self.server.cut([connection])
            await sending

    async def _send(self, socket: ServerConnection, connection: Connection) -> None:
        while isinstance(text := await connection.texts.get(), str):
            try:
                await socket.send(text)
            except SocketClosed:
                return
        await socket.close(1001)

    def client(self, token: client.TokenSource = None, options: Options = QUICK) -> Client:
        return client.connect(self.url, token, options=options, opener=client.opener(proxy=None))


async def _later(texts: asyncio.Queue[str | int]) -> int:
    """How many texts wait after a moment in which a socket that is read would have taken some."""
    await asyncio.sleep(0.1)
    return texts.qsize()


@pytest.fixture
async def sockets() -> AsyncIterator[Sockets]:
    async with running() as made:
        yield made


@asynccontextmanager
async def running() -> AsyncIterator[Sockets]:
    made = Sockets()
    async with serve(
        made.handle, "127.0.0.1", 0, select_subprotocol=made.choose, process_request=made.admit, ping_interval=None
    ) as listening:
        made.url = f"ws://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}/live"
        yield made


async def test_the_token_stands_beside_the_dialect_and_messages_come_back(sockets: Sockets) -> None:
    sockets.server.keep_history("lobby")
    async with sockets.client(TOKEN) as connected:
        room = await connected.join("lobby")
        await room.publish(data="grüße ✓")
        assert shown(await read(room, 1)) == ["grüße ✓"]
    assert sockets.offered == [["gatecast.v2", TOKEN]]
    assert sockets.sockets[0].close_code == 1000


async def test_without_a_token_only_the_dialect_is_offered(sockets: Sockets) -> None:
    async with sockets.client() as connected:
        await connected.join("lobby")
    assert sockets.offered == [["gatecast.v2"]]


async def test_a_long_message_is_sent_in_frames_that_api_gateway_accepts(sockets: Sockets) -> None:
    async with sockets.client() as connected:
        room = await connected.join("lobby")
        text = "€" * 40_000
        await room.publish(data=text)
        assert shown(await read(room, 1)) == [text]
        assert max(len(frame.encode()) for frame in sockets.frames[-1]) <= 32 * 1024
        await room.publish(data="x" * 31_000)
    assert [len(frames) > 1 for frames in sockets.frames] == [False, True, False]


async def test_a_long_message_that_is_cancelled_does_not_break_the_connection(sockets: Sockets) -> None:
    async with sockets.client() as connected:
        room = await connected.join("lobby")
        for _ in range(20):
            publishing = asyncio.create_task(room.publish(data="x" * 100_000))
            await asyncio.sleep(0)
            publishing.cancel()
        await room.publish(data="after")
        while shown(await read(room, 1)) != ["after"]:
            pass
    assert len(sockets.sockets) == 1


async def test_a_reset_connection_is_replaced_and_nothing_is_lost(sockets: Sockets) -> None:
    sockets.server.keep_history("lobby")
    async with sockets.client() as connected:
        room = await connected.join("lobby")
        for number in range(20):
            sockets.sockets[-1].transport.abort()
            sockets.server.publish("lobby", str(number))
            while (received := shown(await read(room, 1))) == [True]:
                pass
            assert received == [str(number)]


@pytest.mark.parametrize("dialect", [None, "gatecast.v1"])
async def test_a_server_of_the_old_dialect_is_a_clear_error(sockets: Sockets, dialect: str | None) -> None:
    sockets.dialect = dialect
    with pytest.raises(client.WrongDialect, match=r"this client needs gatecast\.v2"):
        await sockets.client(TOKEN).__aenter__()


async def test_a_token_that_the_server_echoes_is_in_no_error(sockets: Sockets) -> None:
    sockets.dialect = TOKEN
    with pytest.raises(client.WrongDialect) as failed:
        await sockets.client(TOKEN).__aenter__()
    assert TOKEN not in str(failed.value)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_rejected_connection_names_the_status(sockets: Sockets, status: int) -> None:
    sockets.status = status
    with pytest.raises(client.ConnectionRejected) as failed:
        await sockets.client(TOKEN).__aenter__()
    assert failed.value.status == status


async def test_a_server_that_is_unavailable_is_retried_for_a_while(sockets: Sockets) -> None:
    sockets.status = 503
    with pytest.raises(client.ConnectionFailed):
        await sockets.client().__aenter__()


@pytest.mark.parametrize("token", ["two words", "", "a,b", "ü"])
async def test_what_cannot_be_a_token_is_not_sent(sockets: Sockets, token: str) -> None:
    with pytest.raises(client.ConnectionFailed, match="no JWT"):
        await sockets.client(token).__aenter__()
    assert not sockets.offered


async def test_nobody_listens() -> None:
    with pytest.raises(client.ConnectionFailed):
        await client.connect("ws://127.0.0.1:1", options=QUICK, opener=client.opener(proxy=None)).__aenter__()


def test_the_address_is_that_of_a_websocket() -> None:
    with pytest.raises(ValueError, match="wss://"):
        client.connect("https://example.com")


async def test_a_socket_that_is_not_read_holds_the_server_up_and_loses_nothing(sockets: Sockets) -> None:
    sockets.server.keep_history("lobby")
    options = Options(max_buffered=10)
    async with sockets.client(options=options) as connected:
        room = await connected.join("lobby")
        text = "x" * 50_000
        for number in range(1_000):
            sockets.server.publish("lobby", f"{number} {text}")
        unsent = sockets.server.open[0].texts
        before = await _later(unsent)
        while (after := await _later(unsent)) != before:
            before = after
        assert before > 500, "the server waits, with most of them unsent"
        received = shown(await read(room, 1_000))
        assert received == [f"{number} {text}" for number in range(1_000)]
    assert len(sockets.sockets) == 1


async def test_the_example_in_the_document_runs(sockets: Sockets) -> None:
    document = (Path(__file__).parents[2] / "docs/client-python.md").read_text()
    [example] = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, "docs/client-python.md", "exec"), names)  # noqa: S102
    sockets.server.keep_history("lobby")
    printed: list[str] = []

    async def token() -> str:
        return TOKEN

    names["print"] = lambda *values: printed.append(" ".join(map(str, values)))
    following = asyncio.create_task(names["follow"](sockets.url, token))
    await until(lambda: len(printed) == 1 or following.done())
    sockets.server.publish("lobby", '{"text": "hi"}')
    sockets.server.send(sockets.server.open[0], type="presence", room="lobby", joined=["bob"], departed=[], at_ms=1)
    await until(lambda: len(printed) == 3 or following.done())
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert printed == [
        "1001 None {'text': 'hello'}",
        "1002 None {'text': 'hi'}",
        "joined ('bob',) departed ()",
    ]


def test_without_the_extra_the_error_names_it() -> None:
    program = "import sys; sys.modules['websockets'] = None; import gatecast; import gatecast.client"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "install gatecast[client]" in ran.stderr.splitlines()[-1]


async def test_an_error_response_is_an_exception(sockets: Sockets) -> None:
    sockets.server.script("join", fails("forbidden_room"))
    async with sockets.client() as connected:
        with pytest.raises(client.RequestFailed, match="forbidden_room"):
            await connected.join("lobby")


async def test_a_closed_transport_reports_the_close_code(sockets: Sockets) -> None:
    transport = await client.open_websocket(sockets.url, None, proxy=None)
    await sockets.sockets[0].close(1009)
    with pytest.raises(TransportClosed, match="1009"):
        await transport.receive()
    for text in ("x", "x" * (MAX_FRAME_BYTES + 1)):
        with pytest.raises(TransportClosed, match="1009"):
            await transport.send(text)
    await transport.close()
