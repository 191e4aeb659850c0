"""The examples in the documents run as they stand, and the package works without the rest of the checkout."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import websockets

from gatecast import Broadcast, Publisher, decode
from gatecast.emulator.integration import Route
from gatecast.emulator.limits import Limits
from gatecast.emulator.server import Gateway
from local.resources import Queues
from local.stack import Stack
from tests.worker_fixtures import Launch
from tests.worker_process import eventually

ROOT = Path(__file__).parents[2]
Names = dict[str, Any]


def example(document: str, language: str, containing: str) -> str:
    """The one code block of a document that contains this text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    return str(found)


def loaded(containing: str) -> Names:
    """The names that a Python example of docs/migrating.md defines."""
    names: Names = {}
    exec(compile(example("docs/migrating.md", "python", containing), "docs/migrating.md", "exec"), names)  # noqa: S102
    return names


# From a loop to Gatecast


@pytest.fixture
def connections(dynamodb: Any, unique_name: str, queues: Queues, monkeypatch: pytest.MonkeyPatch) -> str:
    """A table of connection ids as programs with a loop have it, and the variables that the examples read."""
    name = f"{unique_name}-connections"
    dynamodb.create_table(
        TableName=name,
        AttributeDefinitions=[{"AttributeName": "connection_id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "connection_id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    dynamodb.get_waiter("table_exists").wait(TableName=name, WaiterConfig={"Delay": 1})
    monkeypatch.setenv("CONNECTIONS_TABLE", name)
    monkeypatch.setenv("GATECAST_QUEUE_URL", queues.url)
    return name


def put_connections(dynamodb: Any, table: str, connection_ids: list[str]) -> None:
    for connection_id in connection_ids:
        dynamodb.put_item(TableName=table, Item={"connection_id": {"S": connection_id}})


@asynccontextmanager
async def two_clients(load: Callable[[], Any]) -> AsyncIterator[tuple[Gateway, list[websockets.ClientConnection]]]:
    """A gateway whose route `send` is the handler that `load` returns at its first call, and two clients."""
    handlers: list[Any] = []

    def send(event: Any, context: Any) -> Any:
        handlers[:] = handlers or [load()]
        return handlers[0](event, context)

    async with (
        Gateway({"send": Route(send)}) as gateway,
        websockets.connect(gateway.url) as one,
        websockets.connect(gateway.url) as two,
    ):
        yield gateway, [one, two]


async def test_the_loop_before_reaches_its_clients_and_forgets_those_that_are_gone(
    dynamodb: Any, connections: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_clients(lambda: loaded("connections.scan()")["send"]) as (gateway, clients):
        monkeypatch.setenv("CALLBACK_URL", gateway.endpoint)
        await asyncio.to_thread(put_connections, dynamodb, connections, [*gateway.connections, "gone="])
        await clients[0].send('{"action": "send", "data": "hello"}')
        assert [await client.recv() for client in clients] == ["hello", "hello"]
        await eventually(lambda: dynamodb.scan(TableName=connections)["Count"] == 2)


async def test_the_loop_s_replacement_reaches_them_through_a_worker_and_gone_ones_are_no_dead_letters(
    sqs: Any, dynamodb: Any, connections: str, queues: Queues, launch: Launch
) -> None:
    async with two_clients(lambda: loaded("MAX_CONNECTIONS")["send"]) as (gateway, clients):
        worker = launch(GATECAST_CONNECTIONS_ENDPOINT=gateway.endpoint)
        await worker.ready()
        await asyncio.to_thread(put_connections, dynamodb, connections, [*gateway.connections, "gone="])
        await clients[0].send('{"action": "send", "data": "hello"}')
        assert [await client.recv() for client in clients] == ["hello", "hello"]
        await eventually(lambda: worker.events("broadcast.completed"))
        assert await worker.metric('gatecast_deliveries_total{outcome="gone"}') == 1
        depth = sqs.get_queue_attributes(QueueUrl=queues.dead_letter_url, AttributeNames=["All"])["Attributes"]
        assert depth["ApproximateNumberOfMessages"] == "0"
    assert dynamodb.scan(TableName=connections)["Count"] == 3, "the worker leaves tables of others alone"


class Published(list[Broadcast]):
    """Takes the place of a Publisher."""

    def publish(self, broadcast: Broadcast) -> None:
        self.append(broadcast)


@pytest.mark.usefixtures("connections")
def test_chunks_name_every_connection_once_and_a_retry_leaves_out_none() -> None:
    names = loaded("MAX_CONNECTIONS")
    first, again, changed = Published(), Published(), Published()
    ids = {f"c{number:05}=" for number in range(2_500)}
    for publisher, target in ((first, ids), (again, set(ids)), (changed, ids - {"c00000="})):
        names["publisher"] = publisher
        names["publish"]("message", target, "hello")
        assert sorted(each for broadcast in publisher for each in broadcast.connections or ()) == sorted(target)
    assert [len(broadcast.connections or ()) for broadcast in first] == [1_000, 1_000, 500]
    assert first == again
    of = {broadcast.id: broadcast.connections for broadcast in first}
    assert len(of) == 3
    for broadcast in changed:  # an id that was used already would deliver to none of these
        assert of.get(broadcast.id, broadcast.connections) == broadcast.connections


async def test_the_example_for_rooms_publishes_to_every_connection(
    sqs: Any, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATECAST_QUEUE_URL", queues.url)
    loaded('room="@all"')["publish"]("42", "hello")
    (message,) = sqs.receive_message(QueueUrl=queues.url)["Messages"]
    assert decode(message["Body"]) == Broadcast(id="42", room="@all", data="hello")


# The client in JavaScript


class Browser:
    """The example client in Node, in one room. `lines` are what it prints; each line of `publish` is published."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []

    async def line(self) -> str:
        assert self._process.stdout
        line = (await asyncio.wait_for(self._process.stdout.readline(), 30)).decode().strip()
        assert line, "the client has ended"
        return line

    async def publish(self, *lines: str) -> None:
        assert self._process.stdin
        self._process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        await self._process.stdin.drain()


DRIVER = """
const room = stayInRoom({
  url: process.argv[1],
  room: "lobby",
  last: Number(process.argv[2]),
  onMessage: ({ json }) => console.log(`message ${json}`),
  onGap: () => console.log("gap"),
  onStop: ({ code }) => console.log(`stopped ${code}`),
});
require("node:readline").createInterface({ input: process.stdin }).on("line", (line) =>
  room.publish(line).catch((error) => console.log(`error ${error.code}`)));
"""


@asynccontextmanager
async def browser(url: str, *, last: int = 0, **constants: int) -> AsyncIterator[Browser]:
    """The client with these of its constants changed. Skips the test if Node has no WebSocket."""
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    flag = "--experimental-websocket"
    allowed = await asyncio.create_subprocess_exec("node", flag, "-e", "", stderr=asyncio.subprocess.DEVNULL)
    flags = [] if await allowed.wait() else [flag]
    has = await asyncio.create_subprocess_exec("node", *flags, "-e", "WebSocket", stderr=asyncio.subprocess.DEVNULL)
    if await has.wait():
        pytest.skip("this Node has no WebSocket")
    program = example("docs/reference-clients.md", "js", "function stayInRoom(")
    for name, value in constants.items():
        program, found = re.subn(rf"^const {name} = [^;]+;", f"const {name} = {value};", program, flags=re.MULTILINE)
        assert found == 1
    process = await asyncio.create_subprocess_exec(
        "node", *flags, "-e", program + DRIVER, url, str(last),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Browser(process)
    finally:
        process.kill()
        await process.wait()


async def test_the_client_publishes_in_order_and_resumes_after_a_lost_connection() -> None:
    numbers = [str(number) for number in range(10)]
    history = {"history_seconds": 3600}
    async with Stack.running(fifo=True, room_settings=history) as stack, browser(stack.gateway.url) as client:
        await client.publish(*numbers)  # without waiting: the client itself waits for each response
        assert [await client.line() for _ in numbers] == [f"message {number}" for number in numbers]
        for connection_id in list(stack.gateway.connections):
            stack.gateway.drop(connection_id)
        with stack.backend.client("sqs") as sqs:
            missed = Broadcast(id="missed", room="lobby", json=msgspec.Raw(b'"missed"'))
            await asyncio.to_thread(Publisher(sqs, stack.backend.queues.url).publish, missed)
        await client.publish("after")
        assert [await client.line() for _ in range(2)] == ["message missed", "message after"]


def connect(_event: Any, _context: Any) -> Any:
    return {"statusCode": 200, "headers": {"Sec-WebSocket-Protocol": "gatecast.v2"}}


def ok(event: Any, **fields: Any) -> Any:
    """The response to a request in a room with history; by default it holds no messages."""
    request = json.loads(event["body"])
    page = {"offset": 10, "recovered": True, "messages": [], "more": False}
    body = {"type": "ok", "action": request["action"], "ref": request["ref"], "room": "lobby", **page, **fields}
    return {"statusCode": 200, "body": json.dumps(body)}


def message(offset: int) -> dict[str, Any]:
    return {"id": f"id-{offset}", "offset": offset, "published_at_ms": 1_700_000_000_000, "json": offset}


async def test_the_client_reads_from_the_history_what_stays_out() -> None:
    asked: list[int] = []

    def publish(_event: Any, _context: Any) -> Any:
        frame = {"type": "messages", "room": "lobby", "messages": [message(12)]}
        return {"statusCode": 200, "body": json.dumps(frame)}

    def history(event: Any, _context: Any) -> Any:
        asked.append(json.loads(event["body"])["since"])
        if len(asked) == 1:
            return ok(event, offset=12, messages=[message(11), message(12)], more=True)
        return ok(event, offset=20, messages=[message(20)], recovered=False)

    routes = {"$connect": connect, "join": lambda event, _: ok(event), "publish": publish, "history": history}
    async with (
        Gateway({name: Route(handler, response=True) for name, handler in routes.items()}) as gateway,
        browser(gateway.url, GAP_MS=100) as client,
    ):
        await client.publish("anything")
        lines = [await client.line() for _ in range(4)]
        assert lines == ["message 11", "message 12", "gap", "message 20"]
        assert asked == [10, 12]


async def test_the_client_begins_with_the_last_messages_and_reads_on_if_they_do_not_fit() -> None:
    asked: list[dict[str, Any]] = []

    def respond(event: Any, _context: Any) -> Any:
        asked.append(json.loads(event["body"]))
        if len(asked) == 1:
            return ok(event, offset=12, messages=[message(11), message(12)], more=True)
        if len(asked) == 2:
            return ok(event, offset=13, messages=[message(13)])
        return ok(event, offset=14, messages=[message(14)])

    async with (
        Gateway(
            {"$connect": Route(connect), **{name: Route(respond, response=True) for name in ("join", "history")}}
        ) as gateway,
        browser(gateway.url, last=3) as client,
    ):
        assert [await client.line() for _ in range(3)] == ["message 11", "message 12", "message 13"]
        for connection_id in list(gateway.connections):
            gateway.drop(connection_id)
        assert await client.line() == "message 14"
        assert [(each.get("last"), each.get("since")) for each in asked] == [(3, None), (None, 12), (None, 13)]


async def test_the_client_is_never_idle_for_as_long_as_api_gateway_allows() -> None:
    received: list[str] = []

    def ping(event: Any, _context: Any) -> Any:
        received.append(event["requestContext"]["connectionId"])
        return {"statusCode": 200, "body": json.dumps({"type": "pong", "ref": json.loads(event["body"])["ref"]})}

    limits = Limits(idle_seconds=3.0)
    routes = {"$connect": connect, "join": lambda event, _: ok(event), "ping": ping}
    async with (
        Gateway({name: Route(handler, response=True) for name, handler in routes.items()}, limits=limits) as gateway,
        browser(gateway.url, PING_MS=300),
    ):
        await eventually(lambda: len(received) >= 15)  # after 4 seconds; without these messages it is closed after 3
        assert len(set(received)) == 1


async def test_the_client_replaces_a_connection_that_does_not_join_and_stops_where_it_may_not() -> None:
    received: list[str] = []

    def join(event: Any, _context: Any) -> Any:
        received.append(event["requestContext"]["connectionId"])
        code = {1: "token_expired", 2: "unavailable", 4: "forbidden_room"}.get(len(received))
        return ok(event, **({"type": "error", "code": code} if code else {}))

    async with (
        Gateway({"$connect": Route(connect), "join": Route(join, response=True)}) as gateway,
        browser(gateway.url, MAX_DELAY_MS=50) as client,
    ):
        await eventually(lambda: len(received) == 3 and len(gateway.connections) == 1)
        gateway.drop(received[-1])
        assert await client.line() == "stopped forbidden_room"
        assert len(set(received)) == 4
        await eventually(lambda: not gateway.connections)


def test_the_intervals_of_the_client_are_those_of_api_gateway() -> None:
    program = example("docs/reference-clients.md", "js", "function stayInRoom(")
    found = dict(re.findall(r"^const ([A-Z_]+_MS) = ([\d_ *]+);", program, re.MULTILINE))
    value = {name: eval(text) / 1000 for name, text in found.items()}  # noqa: S307 - numbers and stars
    limits = Limits()
    assert value["PING_MS"] == 0.9 * limits.idle_seconds
    assert limits.integration_timeout_seconds < value["RESPONSE_MS"] < 2 * limits.integration_timeout_seconds


# The package by itself


def test_the_package_works_with_nothing_else_of_the_checkout_installed(tmp_path: Path) -> None:
    """What the wheel contains, and the packages that it depends on, in a Python without any others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contents = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    requirements = [re.split(r"[<>=~]", each)[0] for each in project["project"]["dependencies"]]
    assert requirements == [msgspec.__name__]
    for name in contents:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "msgspec").symlink_to(Path(msgspec.__file__).parent)
    program = (
        f"import sys; sys.path.append({str(tmp_path)!r}); import gatecast, gatecast.table;"
        "print(gatecast.__file__);"
        "gatecast.Publisher(type('Sqs', (), {'send_message': lambda _, **kwargs: print(kwargs['MessageBody'])})(), 'q')"
        ".publish(gatecast.Broadcast(id='1', room='lobby', data='hello'))"
    )
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    file, body = ran.stdout.splitlines()
    assert Path(file).is_relative_to(tmp_path)
    assert decode(body) == Broadcast(id="1", room="lobby", data="hello")
    assert (tmp_path / "gatecast/py.typed").exists()
