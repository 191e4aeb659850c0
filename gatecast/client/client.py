"""The client: rooms, requests and connections. Nothing that it runs outlives its `async with` block."""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Final, Self

from msgspec import UNSET

from gatecast.client import wire
from gatecast.client.buffer import Buffer
from gatecast.client.connections import Connections, TokenSource
from gatecast.client.errors import ClientError, ConnectionClosed
from gatecast.client.events import Closed, Connected, Connecting, Recovered, RoomEvent, State
from gatecast.client.joining import Joining
from gatecast.client.options import Options
from gatecast.client.requesting import Requests
from gatecast.client.room import JoinedRoom
from gatecast.client.rooms import Events, Room
from gatecast.client.sequence import RecentIds, RoomSequence
from gatecast.client.session import Session
from gatecast.client.signal import Gate, Signal
from gatecast.client.transport import Opener, open_websocket

_CLOSED: Final = "closed"
_log: Final = logging.getLogger("gatecast.client")


class Client:
    """`async with gatecast.client.connect(url, token=…) as client`. For one event loop; used once."""

    def __init__(
        self,
        url: str,
        token: TokenSource = None,
        options: Options | None = None,
        *,
        opener: Opener = open_websocket,
        chance: Callable[[], float] = random.random,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._options = options = options or Options()
        self._chance = chance
        self._signal, self._gate = signal, gate = Signal(), Gate()
        self._rooms: dict[str, JoinedRoom] = {}
        joining = Joining(
            self._rooms, options, signal=signal, token_changes=callable(token), chance=chance, wall_clock=wall_clock
        )
        self._connections = Connections(
            url,
            token,
            options,
            opener=opener,
            joining=joining,
            signal=signal,
            gate=gate,
            handle=self._handle,
            on_end=self._on_end,
            on_state=self._on_state,
            chance=chance,
        )
        self._requests = Requests(self._connections, self._rooms, options, signal=signal, chance=chance)
        self._direct: Buffer[RoomEvent] | None = None
        self._direct_ids: dict[str | None, RecentIds] = {}
        self._state: State = Connecting()
        self._tasks: asyncio.TaskGroup | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False

    async def __aenter__(self) -> Self:
        """Returns when the first connection is open. Raises ConnectionFailed; its cause says why."""
        if self._task is not None:
            raise RuntimeError("a client is used once")
        self._task = asyncio.create_task(self._run())
        try:
            await self._signal.until(
                lambda: self._connections.current is not None or self._requests.failure is not None
            )
            self._requests.check_open()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    @property
    def state(self) -> State:
        return self._state

    @property
    def connection_id(self) -> str | None:
        """The id of the current connection, known after a join. It changes with each renewal."""
        return self._connections.current.connection_id if self._connections.current else None

    async def states(self) -> AsyncIterator[State]:
        """The state now, and each one that follows. One that has passed before it is read is left out."""
        state = self._state
        while True:
            yield state
            if isinstance(state, Closed):
                return
            state = await self._state_after(state)

    async def join(self, room: str, *, since: int | None = None, last: int = 0, listen: bool = True) -> Room:
        """Joins a room; the client stays in it across reconnects until it leaves it.

        In a room with history its messages begin after the offset `since`, or with the `last` ones (at most 100).
        Without `listen` the room has no events: for a program that only publishes. Raises RequestFailed,
        ConnectionClosed, or ValueError if the client is in the room already.
        """
        if room in self._rooms:
            raise ValueError("the client is in this room already")
        if since is not None and last:
            raise ValueError("`since` and `last` exclude each other")
        self._requests.check_open()
        joined = self._rooms[room] = self._new_room(room, since, last, listens=listen)
        self._signal.notify()
        try:
            await asyncio.shield(joined.first_join)
        except BaseException:
            self._forget(joined)
            raise
        return Room(self, joined, self._requests)

    async def leave(self, room: str) -> None:
        """Leaves a room: its events end. Raises RequestFailed if the connection remains a member until it ends."""
        joined = self._rooms.get(room)
        if joined is None or joined.is_left:
            return
        joined.stop()
        try:
            await self._requests.leave(joined)
        finally:
            self._forget(joined)

    async def publish(
        self,
        room: str,
        *,
        data: str | None = None,
        json: Any = UNSET,
        id: str | None = None,  # noqa: A002 - the protocol's name for it
        echo: bool = True,
    ) -> str:
        """Publishes to a room that the client is in. Returns the message's id once the server has stored it.

        Exactly one of `data` (text) and `json` (any value; `msgspec.Raw` passes as its bytes) is given. It waits for a
        connection, and is repeated with the same id (a new one if none is given) after a reconnect. Without a token the
        server takes a new connection for another publisher, and a repeat may arrive twice. `asyncio.timeout` bounds it.
        Raises RequestFailed, ConnectionClosed, or Disconnected if ten connections ended before their response.
        """
        if (data is None) == (json is UNSET):
            raise ValueError("exactly one of `data` and `json` must be given")
        payload = {"json": wire.json_value(json)} if data is None else {"data": data}
        own_id = uuid.uuid4().hex if id is None else id
        fields = {"action": "publish", "room": room, "id": own_id, **payload, **({} if echo else {"echo": False})}
        message_id = (await self._requests.send(fields)).id or own_id
        if not echo and (joined := self._rooms.get(room)):
            joined.sequence.exclude(message_id)
        return message_id

    def direct(self) -> Events:
        """Messages of no room that was joined: to this connection, its user (`@user/…`), or everyone (`@all`).

        They are kept from the first call on, each id once, in no particular order. What is sent to them while no
        connection is open is lost: `Recovered(recovered=False)` reports each reconnect.
        """
        if self._direct is None:
            self._direct = Buffer(self._options.max_buffered, self._gate)
            if self._requests.failure is not None:
                self._direct.close(self._reason_for_readers())
        return Events(self._direct)

    async def _state_after(self, state: State) -> State:
        await self._signal.until(lambda: self._state is not state)
        return self._state

    def _new_room(self, room: str, since: int | None, last: int, *, listens: bool) -> JoinedRoom:
        if self._tasks is None:
            raise RuntimeError("use the client in an `async with` block")
        options = self._options
        return JoinedRoom(
            room,
            RoomSequence(room, since=since, last=last, max_held=options.max_held, max_ids=options.max_ids),
            options,
            signal=self._signal,
            gate=self._gate,
            history=self._requests.history,
            tasks=self._tasks,
            listens=listens,
            chance=self._chance,
        )

    def _forget(self, joined: JoinedRoom) -> None:
        joined.stop()
        if self._rooms.get(joined.name) is joined:
            del self._rooms[joined.name]

    def _handle(self, frame: wire.Messages | wire.PresenceFrame) -> None:
        room = self._rooms.get(frame.room) if frame.room is not None else None
        if isinstance(frame, wire.PresenceFrame):
            if room:
                room.receive_presence(frame)
        elif room:
            room.receive(frame)
        elif self._direct is not None and (frame.room is None or frame.room.startswith("@")):
            self._receive_direct(frame, self._direct)

    def _receive_direct(self, frame: wire.Messages, buffer: Buffer[RoomEvent]) -> None:
        ids = self._direct_ids.setdefault(frame.room, RecentIds(self._options.max_ids))
        for each in frame.messages:
            message = wire.to_message(each, frame.room)
            if buffer.is_over:
                self._report_direct(buffer)
            elif ids.add(message):
                buffer.append(message)

    def _report_direct(self, buffer: Buffer[RoomEvent]) -> None:
        if not isinstance(buffer.latest, Recovered):
            buffer.append(Recovered(room=None, recovered=False))

    def _on_end(self, session: Session) -> None:
        for room in self._rooms.values():
            room.sessions.discard(session)

    def _on_state(self, state: State) -> None:
        if self._is_stopping:
            return
        if isinstance(state, Connected):
            if isinstance(self._state, Connected):
                return  # a renewal
            if self._direct is not None:
                self._report_direct(self._direct)
        self._state = state
        self._signal.notify()

    async def _run(self) -> None:
        """Ends by cancellation, or for good. Then all who wait get the reason, before connections are closed."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                try:
                    await self._connections.run(self._tasks)
                except ClientError as error:
                    self._fail(error)
                except asyncio.CancelledError:
                    if self._is_stopping:
                        self._fail(ConnectionClosed(_CLOSED, "the client has been closed"))
                    raise
                self._connections.end()
        except* Exception as errors:  # noqa: BLE001 - an error of this program; every reader gets it
            _log.exception("client.failed")
            self._fail(_first(errors))

    def _fail(self, failure: Exception) -> None:
        if self._requests.failure is not None:
            return
        self._requests.failure = failure
        self._state = Closed(failure.code if isinstance(failure, ConnectionClosed) else "failed")
        for room in list(self._rooms.values()):
            if not room.first_join.done():
                room.fail(failure)
            room.stop(self._reason_for_readers())
        if self._direct is not None:
            self._direct.close(self._reason_for_readers())
        self._signal.notify()

    def _reason_for_readers(self) -> Exception | None:
        """None after the program itself has closed the client: then iterators simply end."""
        failure = self._requests.failure
        return None if isinstance(failure, ConnectionClosed) and failure.code == _CLOSED else failure

    async def _stop(self) -> None:
        self._is_stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _first(errors: BaseExceptionGroup[Exception]) -> Exception:
    """One of the errors in a group, which may be nested."""
    error: Exception | BaseExceptionGroup[Exception] = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
