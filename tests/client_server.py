"""A server that speaks the dialect `gatecast.v2`, in memory: rooms, history, presence, and faults on demand.

It follows the contract and shares no code with the routes and the worker. Its clients are connections with a queue of
texts each; `opener` makes transports for `gatecast.client` of them, and a WebSocket server can put them on sockets.
"""

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from gatecast.client import Client, Message, Options, Recovered, Room, RoomEvent, TokenSource
from gatecast.client.errors import ConnectionFailed
from gatecast.client.transport import TransportClosed
from tests.simulation import VirtualTimeLoop

FIRST_OFFSET = 1_000
PAGE = 5
"""Messages per response."""
ALICE = "alice"
Fields = dict[str, Any]
Script = Callable[["Connection", Fields], Fields | None]
"""The response to a request in place of the server's own; None: no response."""


@dataclass(eq=False)
class Connection:
    """One client's connection, as the server has it. `texts` are on the client's side of the network."""

    id: str
    token: str | None
    texts: asyncio.Queue[str | int] = field(default_factory=asyncio.Queue)
    """Frames and responses; at the end the close code."""
    close_code: int | None = None
    requests: list[Fields] = field(default_factory=list)

    def close(self, code: int) -> None:
        if self.close_code is None:
            self.close_code = code
            self.texts.put_nowait(code)


@dataclass(eq=False)
class RoomState:
    """A room. `entries` are the messages that can be read; a room without history has no `head`."""

    members: set[Connection] = field(default_factory=set)
    head: int | None = None
    entries: dict[int, Fields] = field(default_factory=dict)


class Server:
    """`latency` gives the seconds that each text takes; with a random one, texts overtake each other."""

    def __init__(self, latency: Callable[[], float] = lambda: 0.01) -> None:
        self.latency = latency
        self.rooms: dict[str, RoomState] = {}
        self.connections: list[Connection] = []
        self.failures: list[Exception] = []
        """Raised by the next attempts to connect."""
        self.scripts: dict[str, list[Script]] = {}
        """For the next requests, by action."""
        self.lifetime_ms: Callable[[Connection], int | None] = lambda _connection: None
        """For how long from now a connection may live, for the responses to joins."""
        self.published: Counter[str] = Counter()
        self._ids = itertools.count(1)
        self._order = itertools.count()

    @property
    def open(self) -> list[Connection]:
        return [each for each in self.connections if each.close_code is None]

    @property
    def requests(self) -> list[Fields]:
        return [request for connection in self.connections for request in connection.requests]

    def room(self, name: str) -> RoomState:
        return self.rooms.setdefault(name, RoomState())

    def keep_history(self, *names: str) -> None:
        for name in names:
            self.room(name).head = FIRST_OFFSET

    def script(self, action: str, *scripts: Script) -> None:
        self.scripts.setdefault(action, []).extend(scripts)

    async def opener(self, url: str, token: str | None) -> "MemoryTransport":
        await asyncio.sleep(self.latency())
        if self.failures:
            raise self.failures.pop(0)
        assert url.startswith("ws")
        return MemoryTransport(self, self.connect(token))

    def _delay(self) -> float:
        """With equal latencies the order is kept: of equal times the loop picks any."""
        return self.latency() + next(self._order) * 1e-7

    def connect(self, token: str | None) -> Connection:
        connection = Connection(f"c{next(self._ids)}=", token)
        self.connections.append(connection)
        return connection

    def cut(self, connections: Iterable[Connection], code: int = 1006) -> None:
        """Ends connections; what is on its way to them is lost."""
        for connection in list(connections):
            connection.close(code)
            for room in self.rooms.values():
                room.members.discard(connection)

    def send(self, connection: Connection, /, **fields: Any) -> None:
        """Reaches the client after the latency, if the connection is still open then."""
        text = json.dumps(fields)

        def arrive() -> None:
            if connection.close_code is None:
                connection.texts.put_nowait(text)

        asyncio.get_running_loop().call_later(self._delay(), arrive)

    def publish(
        self,
        name: str,
        data: Any,
        *,
        kind: str = "data",
        message_id: str | None = None,
        excluded: Connection | None = None,
        lose: bool = False,
    ) -> Fields:
        """One broadcast. `lose`: its posts get lost, as if they were retried for very long."""
        room = self.room(name)
        message: Fields = {"id": message_id or f"m{next(self._ids)}", "published_at_ms": 1, kind: data}
        if room.head is not None:
            room.head += 1
            message["offset"] = room.head
            room.entries[room.head] = message
        for member in () if lose else list(room.members):
            if member is not excluded:
                self.send(member, type="messages", room=name, messages=[message])
            elif room.head is not None:
                self.send(member, type="messages", room=name, messages=[], skipped=[[room.head, room.head]])
        return message

    def expire(self, name: str, count: int | None = None) -> None:
        """The oldest entries, or all, cannot be read any more."""
        entries = self.room(name).entries
        for offset in sorted(entries)[:count]:
            del entries[offset]

    def receive(self, connection: Connection, text: str) -> None:
        """A client's request has been sent."""
        request = json.loads(text)
        connection.requests.append(request)
        asyncio.get_running_loop().call_later(self._delay(), self._handle, connection, request)

    def _handle(self, connection: Connection, request: Fields) -> None:
        if connection.close_code is not None:
            return
        scripts = self.scripts.get(request["action"])
        response = scripts.pop(0)(connection, request) if scripts else self.respond(connection, request)
        if response is not None:
            self.send(connection, **{"ref": request["ref"], **response})

    def respond(self, connection: Connection, request: Fields) -> Fields:  # noqa: PLR0911 - one per action
        action, name = request["action"], request.get("room", "")
        ok = {"type": "ok", "action": action, "room": name}
        match action:
            case "ping":
                return {"type": "pong"}
            case "join":
                return self._join(connection, request)
            case "leave":
                self.room(name).members.discard(connection)
                return ok
            case _ if connection not in self.room(name).members:
                return error(action, "not_a_member")
            case "publish":
                return ok | {"id": self._publish(connection, request)}
            case "history":
                return ok | self._page(name, request["since"])
            case "members":
                users = sorted({str(each.token) for each in self.room(name).members if each.token})
                page = [user for user in users if user > request.get("after", "")][:PAGE]
                after = page[-1] if page and page[-1] != users[-1] else None
                return ok | {"users": [{"user": each, "connections": 1} for each in page], "after": after}
            case "count":
                return ok | {"members": len(self.room(name).members), "counted_at_ms": 1}
        return error(action, "unknown_action")

    def _publish(self, connection: Connection, request: Fields) -> str:
        """Repeats of an id by one user are one broadcast."""
        message_id = f"@{connection.token}/{request['id']}"
        self.published[message_id] += 1
        if self.published[message_id] == 1:
            excluded = None if request.get("echo", True) else connection
            kind = "json" if "json" in request else "data"
            self.publish(request["room"], request[kind], kind=kind, message_id=message_id, excluded=excluded)
        return message_id

    def _join(self, connection: Connection, request: Fields) -> Fields:
        results = [self._join_room(connection, each) for each in request.get("rooms", [request])]
        about: Fields = {"type": "ok", "action": "join", "connection": connection.id}
        if (lifetime_ms := self.lifetime_ms(connection)) is not None:
            about["expires_at_ms"] = int(asyncio.get_running_loop().time() * 1000) + lifetime_ms
        if "rooms" in request:
            return about | {"rooms": results}
        return results[0] | about if "type" not in results[0] else results[0]

    def _join_room(self, connection: Connection, request: Fields) -> Fields:
        name = request["room"]
        room = self.room(name)
        since = request.get("since")
        if since is not None and room.head is not None and since > room.head:
            return _within(error("join", "bad_request"), name)
        room.members.add(connection)
        if room.head is None:
            return {"room": name}
        if since is None:
            since = room.head - min(len(_latest_run(room)), request.get("last", 0))
        return {"room": name, **self._page(name, since)}

    def _page(self, name: str, since: int) -> Fields:
        room = self.room(name)
        if room.head is None:
            return error("history", "bad_request")
        following = list(range(since + 1, room.head + 1))
        if all(offset in room.entries for offset in following):
            page = following[:PAGE]
            return _page(room, page, page[-1] if page else room.head, more=len(following) > PAGE)
        return _page(room, sorted(_latest_run(room)[:PAGE]), room.head, recovered=False)


class MemoryTransport:
    """The client's end of a connection."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self._server = server
        self.connection = connection
        self.reads = 0

    async def send(self, text: str) -> None:
        await asyncio.sleep(0)
        if self.connection.close_code is not None:
            raise TransportClosed(self.connection.close_code)
        self._server.receive(self.connection, text)

    async def receive(self) -> str | bytes:
        if self.connection.close_code is not None and self.connection.texts.qsize() <= 1:
            raise TransportClosed(self.connection.close_code)
        received = await self.connection.texts.get()
        if isinstance(received, int):
            raise TransportClosed(received)
        self.reads += 1
        return received

    async def close(self) -> None:
        self._server.cut([self.connection], 1000)


def client_of(server: Server, token: TokenSource = ALICE, *, seed: int = 0, **options: float) -> Client:
    """A client of this server, on the loop's clock, with randomness of its own."""
    made = Options(**options)  # type: ignore[arg-type]  # some are whole numbers
    loop = asyncio.get_running_loop()
    rng = random.Random(seed)
    return Client("ws://server", token, made, opener=server.opener, chance=rng.random, wall_clock=loop.time)


def in_virtual_time(scenario: Coroutine[Any, Any, None]) -> None:
    """Runs it on a clock that jumps. After a day, which takes a moment, it has failed."""

    problems: list[dict[str, Any]] = []

    async def bounded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: problems.append(context))
        async with asyncio.timeout(24 * 3600):
            await scenario

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(bounded())
    assert not problems


async def until(condition: Callable[[], bool]) -> None:
    """Returns when the condition holds, which is checked ten times per second of a clock that jumps."""
    while not condition():  # noqa: ASYNC110 - tests wait for state that has no event
        await asyncio.sleep(0.1)


async def read(room: Room, count: int) -> list[RoomEvent]:
    """The next events of a room."""
    return [await anext(room) for _ in range(count)]


def shown(events: Iterable[RoomEvent]) -> list[object]:
    """What a test compares: the text of a message, and whether an interruption was recovered."""
    return [each.data if isinstance(each, Message) else _shown(each) for each in events]


def _shown(event: RoomEvent) -> object:
    return event.recovered if isinstance(event, Recovered) else event


def error(action: str, code: str, **fields: Any) -> Fields:
    return {"type": "error", "action": action, "code": code, "message": "made for a test", **fields}


def fails(code: str, **fields: Any) -> Script:
    """A script: the request fails with this code."""
    return lambda _connection, request: error(request["action"], code, **fields)


def silent(_connection: Connection, _request: Fields) -> None:
    """A script: no response."""


def no_connection() -> ConnectionFailed:
    return ConnectionFailed("no connection: made for a test")


def reordering(rng: random.Random, seconds: float = 1.0) -> Callable[[], float]:
    """A latency with which texts overtake each other."""
    return lambda: rng.random() * seconds


def _latest_run(room: RoomState) -> list[int]:
    """The offsets from the head down to the first without an entry."""
    return list(itertools.takewhile(lambda offset: offset in room.entries, range(room.head or 0, 0, -1)))


def _page(room: RoomState, offsets: list[int], end: int, *, recovered: bool = True, more: bool = False) -> Fields:
    messages = [room.entries[offset] for offset in offsets]
    return {"offset": end, "recovered": recovered, "messages": messages, "more": more}


def _within(response: Fields, room: str) -> Fields:
    """An error of a single room in a join of several has the form of a field; alone it is the response."""
    return {**response, "room": room, "error": {"code": response["code"], "message": response["message"]}}
