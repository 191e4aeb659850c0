"""Requests that outlive connections."""

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from gatecast.client import wire
from gatecast.client.connections import Connections
from gatecast.client.errors import ClientError, ConnectionClosed, Disconnected, RequestFailed
from gatecast.client.joining import MAX_ATTEMPTS, RECONNECT
from gatecast.client.options import Options
from gatecast.client.room import NOT_A_MEMBER, JoinedRoom
from gatecast.client.session import Session
from gatecast.client.signal import Signal

MAX_SENT: Final = 10
"""How often a request is sent whose connections end before its response: it may be what ends them."""


class Requests:
    """Sends requests on the current connection; they wait for one, and are repeated where that is harmless and helps.

    All requests of the protocol may be repeated: a message is published once under one id. `failure` is set when the
    client stops.
    """

    def __init__(
        self,
        connections: Connections,
        rooms: Mapping[str, JoinedRoom],
        options: Options,
        *,
        signal: Signal,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._connections = connections
        self._rooms = rooms
        self._options = options
        self._signal = signal
        self._chance = chance
        self.failure: Exception | None = None

    async def send(self, fields: Mapping[str, Any]) -> wire.Ok:
        """In a room that the client is in the request waits until the room has been joined on the connection.

        Raises RequestFailed (`unavailable` after MAX_ATTEMPTS), Disconnected (after MAX_SENT) or ConnectionClosed.
        """
        sent = failures = 0
        while True:
            session = await self._session_for(fields["room"])
            try:
                return await session.request(fields)
            except Disconnected:
                sent += 1
                if sent >= MAX_SENT:
                    raise
            except RequestFailed as error:
                failures += 1
                if failures >= MAX_ATTEMPTS or not self._may_help(error, session, fields["room"]):
                    raise
                await asyncio.sleep(self._options.backoff(failures - 1, self._chance()))

    async def history(self, room: str, since: int) -> wire.Ok:
        return await self.send({"action": "history", "room": room, "since": since})

    async def leave(self, room: JoinedRoom) -> None:
        """Leaves the room on every connection. Raises RequestFailed if one remains a member until it ends."""
        for session in [each for each in room.sessions if each.ended is None]:
            await self._leave_on(session, room.name)

    def check_open(self) -> None:
        """Raises the reason for which the client has stopped, if it has."""
        if isinstance(self.failure, ClientError):
            raise self.failure
        if self.failure is not None:
            raise ConnectionClosed("failed", type(self.failure).__name__) from self.failure

    def _may_help(self, error: RequestFailed, session: Session, name: str) -> bool:
        """Whether to repeat a rejected request, after what makes that useful has been begun."""
        if error.code in RECONNECT:
            session.end(error.code)
            return True
        room = self._rooms.get(name)
        if error.code == NOT_A_MEMBER and room and not room.is_left:
            room.join_again()
            return True
        return error.code == "unavailable"

    async def _session_for(self, name: str) -> Session:
        room = self._rooms.get(name)

        def is_joined(session: Session) -> bool:
            return room is None or room.is_left or session in room.sessions

        while True:
            self.check_open()
            session = self._connections.current
            if session is not None and is_joined(session):
                return session
            await self._signal.changed()

    async def _leave_on(self, session: Session, room: str) -> None:
        failures = 0
        while True:
            try:
                await session.request({"action": "leave", "room": room})
            except Disconnected:
                return  # the membership ends with the connection
            except RequestFailed as error:
                failures += 1
                if error.code in RECONNECT:
                    return
                if failures >= MAX_ATTEMPTS or error.code != "unavailable":
                    raise
                await asyncio.sleep(self._options.backoff(failures - 1, self._chance()))
            else:
                return
