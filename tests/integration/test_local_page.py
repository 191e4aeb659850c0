"""The local stack's page in Node, without a browser: its script with a document that records what is shown."""

import asyncio
import json
import re
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gatecast import Broadcast, Publisher, frames
from gatecast.emulator.integration import Route
from gatecast.emulator.server import Gateway
from gatecast.frames import Message
from local.backend import prepare_backend
from local.ministack import Ministack
from local.route_table import PING
from local.stack import Stack
from tests.gateway_doubles import call, management_client, until

SCRIPT = Path(__file__).parents[2] / "local" / "page" / "page.js"
DOCUMENT = """
const print = (kind, text) => console.log(JSON.stringify([kind, text]));
const button = { disabled: true };
class Element {
  children = [];
  listeners = {};
  value = "";
  set textContent(text) { this.text = text; if (this.id === "state") print("state", text); }
  prepend(child) { this.children.unshift(child); print(child.className, child.text); }
  get childElementCount() { return this.children.length; }
  querySelector() { return button; }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  focus() {}
}
const elements = {};
globalThis.document = {
  getElementById: (id) => (elements[id] ??= Object.assign(new Element(), { id })),
  createElement: () => new Element(),
};
globalThis.location = { host: process.argv[1] };
require("node:readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const [form, field, value] = JSON.parse(line);
  document.getElementById(field).value = value;
  document.getElementById(form).listeners.submit({ preventDefault() {} });
});
"""
FIRST = 1_795_000_000_000
"""The offset before the first message."""


class Page:
    """The page in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._shown: defaultdict[str, list[str]] = defaultdict(list)

    async def submit(self, form: str, field: str, value: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{json.dumps([form, field, value])}\n".encode())
        await self._process.stdin.drain()

    async def shown(self, kind: str) -> str:
        """The next text of this kind: state, message or note."""
        assert self._process.stdout
        while not self._shown[kind]:
            line = await asyncio.wait_for(self._process.stdout.readline(), 30)
            assert line, "the page has ended"
            found, text = json.loads(line)
            self._shown[found].append(text)
        return self._shown[kind].pop(0)


@asynccontextmanager
async def opened(gateway: Gateway, **constants: int) -> AsyncIterator[Page]:
    """The page of this gateway, with these constants changed. Skips the test if Node has no WebSocket."""
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    flag = "--experimental-websocket"
    allowed = await asyncio.create_subprocess_exec("node", flag, "-e", "", stderr=asyncio.subprocess.DEVNULL)
    flags = [] if await allowed.wait() else [flag]
    has = await asyncio.create_subprocess_exec("node", *flags, "-e", "WebSocket", stderr=asyncio.subprocess.DEVNULL)
    if await has.wait():
        pytest.skip("this Node has no WebSocket")
    script = SCRIPT.read_text()
    for name, value in {"RETRY_MS": 50, **constants}.items():
        script, found = re.subn(rf"^const {name} = [^;]+;", f"const {name} = {value};", script, flags=re.MULTILINE)
        assert found == 1
    process = await asyncio.create_subprocess_exec(
        "node", *flags, "-e", DOCUMENT + script, f"127.0.0.1:{gateway.port}",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Page(process)
    finally:
        process.kill()
        await process.wait()


class Room:
    """The routes of one room. `requests` are what the page sent; `messages` is its history, None for none."""

    def __init__(self, messages: list[str] | None = None) -> None:
        self.requests: list[dict[str, Any]] = []
        self.messages = messages
        self.lost = 0
        """How many of the messages are no longer in the history."""
        self.page_size = 100

    def __call__(self, event: Any, _context: Any) -> Mapping[str, Any]:
        if event["requestContext"]["routeKey"] == "$connect":
            return {"statusCode": 200, "headers": {"Sec-WebSocket-Protocol": "gatecast.v2"}}
        request = json.loads(event["body"])
        self.requests.append(request)
        response = {"type": "ok", "action": request["action"], "room": request["room"], **self._resumed(request)}
        return {"statusCode": 200, "body": json.dumps(response)}

    def _resumed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self.messages is None or request["action"] == "publish":
            return {}
        since = request.get("since", FIRST + max(0, len(self.messages) - request.get("last", 0))) - FIRST
        start = max(since, self.lost)
        end = min(start + self.page_size, len(self.messages))
        return {
            "offset": FIRST + end,
            "recovered": since >= self.lost,
            "messages": [json.loads(bytes(self.message(number).encode())) for number in range(start + 1, end + 1)],
            "more": end < len(self.messages),
        }

    def message(self, number: int) -> Message:
        data = (self.messages or [])[number - 1]
        return Message(id=f"m{number}", from_="ann", offset=FIRST + number, published_at_ms=FIRST, data=data)

    def frame(self, *numbers: int) -> bytes:
        return frames.messages("lobby", [self.message(number).encode() for number in numbers])

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Gateway]:
        routes = {key: Route(self, response=True) for key in ("$connect", "join", "history", "publish")}
        async with Gateway({**routes, "ping": Route(PING, response=True)}) as gateway:
            yield gateway


async def post(gateway: Gateway, data: bytes) -> None:
    (connection_id,) = gateway.connections
    with management_client(gateway) as client:
        await call(client.post_to_connection, ConnectionId=connection_id, Data=data)


async def joined(page: Page) -> None:
    await page.submit("connect", "room", "lobby")
    while await page.shown("state") != "A member of lobby.":
        pass


async def test_a_room_without_history_shows_messages_as_they_come() -> None:
    room = Room()
    async with room.served() as gateway, opened(gateway) as page:
        await joined(page)
        await page.submit("publish", "data", "hello")
        await until(lambda: len(room.requests) == 2)
        assert room.requests == [
            {"action": "join", "room": "lobby", "frames": 2, "last": 20},
            {"action": "publish", "room": "lobby", "data": "hello"},
        ]
        for payload, text in (({"data": "plain"}, "plain"), ({"json": {"price": 12.5}}, '{"price":12.5}')):
            message = {"id": "a", "from": "ann", "published_at_ms": FIRST, **payload}
            await post(gateway, json.dumps({"type": "messages", "room": "lobby", "messages": [message]}).encode())
            assert await page.shown("message") == f"ann: {text}"
        room.messages = ["now there is a history"]
        await post(gateway, room.frame(1))
        assert await page.shown("message") == "ann: now there is a history"


async def test_after_a_lost_connection_each_message_is_shown_once_and_in_order() -> None:
    room = Room(["one", "two"])
    async with room.served() as gateway, opened(gateway) as page:
        await joined(page)
        room.messages = ["one", "two", "three", "four", "five"]
        await post(gateway, room.frame(3))
        await post(gateway, room.frame(2, 3))
        room.page_size = 1
        for connection_id in list(gateway.connections):
            gateway.drop(connection_id)
        assert [await page.shown("message") for _ in range(5)] == [f"ann: {each}" for each in room.messages]
        assert room.requests[1:] == [
            {"action": "join", "room": "lobby", "frames": 2, "since": FIRST + 3},
            {"action": "history", "room": "lobby", "since": FIRST + 4},
        ]


async def test_the_latest_messages_are_shown_even_if_they_take_several_responses() -> None:
    room = Room([str(number) for number in range(30)])
    room.page_size = 8
    async with room.served() as gateway, opened(gateway, GAP_MS=60_000) as page:
        await joined(page)
        assert [await page.shown("message") for _ in range(20)] == [f"ann: {number}" for number in range(10, 30)]
        assert room.requests[1:] == [
            {"action": "history", "room": "lobby", "since": FIRST + since} for since in (18, 26)
        ]


async def test_messages_out_of_order_are_shown_in_order_without_a_request() -> None:
    room = Room(["one", "two", "three"])
    async with room.served() as gateway, opened(gateway, GAP_MS=60_000) as page:
        await joined(page)
        room.messages = ["one", "two", "three", "four", "five", "six", "seven"]
        await post(gateway, room.frame(5))
        await post(gateway, room.frame(7))
        await post(gateway, room.frame(4))
        await post(gateway, frames.messages("lobby", [], [(FIRST + 6, FIRST + 6)]))
        assert [(await page.shown("message"))[5:] for _ in range(6)] == ["one", "two", "three", "four", "five", "seven"]
        assert len(room.requests) == 1


async def test_a_gap_that_stays_is_asked_about() -> None:
    room = Room(["one"])
    async with room.served() as gateway, opened(gateway, GAP_MS=50) as page:
        await joined(page)
        room.messages = ["one", "two", "three"]
        await post(gateway, room.frame(3))
        assert [(await page.shown("message"))[5:] for _ in range(3)] == ["one", "two", "three"]
        assert room.requests[1:] == [{"action": "history", "room": "lobby", "since": FIRST + 1}]


async def test_what_is_missing_is_reported() -> None:
    room = Room(["one"])
    async with room.served() as gateway, opened(gateway) as page:
        await joined(page)
        room.messages, room.lost = ["one", "two", "three"], 2
        for connection_id in list(gateway.connections):
            gateway.drop(connection_id)
        assert "missing" in await page.shown("note")
        assert [await page.shown("message") for _ in range(2)] == ["ann: one", "ann: three"]


async def test_presence_and_the_end_of_a_connection_are_shown() -> None:
    room = Room()
    async with room.served() as gateway, opened(gateway) as page:
        await joined(page)
        await post(gateway, frames.presence("lobby", joined=["ann", "bob"], at_ms=FIRST))
        assert await page.shown("note") == "ann, bob joined"
        await post(gateway, frames.presence("lobby", departed=["bob"], at_ms=FIRST))
        assert await page.shown("note") == "bob departed"
        await post(gateway, frames.closed("token_expired", retry=False))
        assert "token_expired" in await page.shown("note")
        for connection_id in list(gateway.connections):
            gateway.drop(connection_id)
        assert "Not connected" in await page.shown("state")


async def test_a_ping_keeps_the_connection_open_without_a_function() -> None:
    room = Room()
    async with room.served() as gateway, opened(gateway, KEEP_ALIVE_MS=50) as page:
        await joined(page)
        await until(lambda: gateway.counters.mocks["ping"] >= 3)
        assert gateway.counters.routes == {"$connect": 1, "join": 1}


async def test_in_the_real_stack_what_is_published_meanwhile_is_shown_after_a_lost_connection(
    ministack: Ministack, unique_name: str
) -> None:
    base = prepare_backend(ministack, table=unique_name, queue=unique_name)
    async with Stack.running(on=base, room_settings={"history_seconds": 60}) as stack:
        gateway = stack.gateway
        async with opened(gateway, RETRY_MS=3_000) as page:
            await joined(page)
            await page.submit("publish", "data", "one")
            assert await page.shown("message") == "one"
            for connection_id in list(gateway.connections):
                gateway.drop(connection_id)
            with base.client("sqs") as sqs:
                publisher = Publisher(sqs, base.queues.url)
                for data in ("two", "three"):
                    await asyncio.to_thread(publisher.publish, Broadcast(id=data, room="lobby", data=data))
            # a standard queue keeps no order
            assert {await page.shown("message") for _ in range(2)} == {"two", "three"}
            await page.submit("publish", "data", "four")
            assert await page.shown("message") == "four"
            assert gateway.counters.routes["$connect"] == 2
