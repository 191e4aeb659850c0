"""Joins the client's rooms on a connection: those that are new, and all of them after a reconnect or a renewal.

Up to 25 rooms share a request, one request at a time. A room that is rejected for now is joined again later without
holding up the others; one that is rejected for good reports the error to its reader.
"""

import asyncio
import random
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Final

from gatecast.client import wire
from gatecast.client.errors import Disconnected, RequestFailed
from gatecast.client.options import Options
from gatecast.client.room import NO_HISTORY, JoinedRoom
from gatecast.client.sequence import Ask
from gatecast.client.session import Session
from gatecast.client.signal import Signal

RETRIED: Final = ("unavailable", "rate_limited")
RECONNECT: Final = ("token_expired", "not_connected")
"""Codes that another connection, with another token, may help with."""
MAX_ATTEMPTS: Final = 5
"""Of a room's first join, and of other requests, while the server is unavailable: then the caller gets the error."""


class Joining:
    """Keeps `rooms` joined on each of the client's sessions."""

    def __init__(
        self,
        rooms: MutableMapping[str, JoinedRoom],
        options: Options,
        *,
        signal: Signal,
        token_changes: bool,
        chance: Callable[[], float] = random.random,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._rooms = rooms
        self._options = options
        self._signal = signal
        self._token_changes = token_changes
        self._chance = chance
        self._wall_clock = wall_clock

    async def keep_joined(self, session: Session) -> None:
        """Returns when the session has ended."""
        while session.ended is None:
            missing = [room for room in self._rooms.values() if self._is_missing(room, session)]
            now = asyncio.get_running_loop().time()
            due = [room for room in missing if room.retry_at <= now]
            if due:
                await self._join(session, due[: wire.MAX_ROOMS])
                continue
            session.settled = not missing
            self._signal.notify()
            await self._changed(session, missing, now)

    async def _changed(self, session: Session, missing: list[JoinedRoom], now: float) -> None:
        """Waits until a room is due, or the rooms or the session have changed."""
        before = set(missing)

        def changed() -> bool:
            missing_now = {room for room in self._rooms.values() if self._is_missing(room, session)}
            return session.ended is not None or bool(missing_now - before)

        delay = min((room.retry_at - now for room in missing), default=None)
        try:
            async with asyncio.timeout(delay):
                await self._signal.until(changed)
        except TimeoutError:
            pass

    def _is_missing(self, room: JoinedRoom, session: Session) -> bool:
        return not room.is_left and session not in room.sessions

    async def _join(self, session: Session, rooms: list[JoinedRoom]) -> None:
        asks = {room.name: room.sequence.ask() for room in rooms}
        try:
            ok = await session.request(wire.join(list(asks.items())))
        except Disconnected:
            return
        except RequestFailed as error:
            for room in rooms:
                self._rejected(session, room, asks[room.name], error)
            return
        if ok.expires_at_ms is not None:
            session.expires(ok.expires_at_ms / 1000 - self._wall_clock(), renewable=self._token_changes)
        results = {each.room: each for each in ok.rooms} if len(rooms) > 1 else {rooms[0].name: ok}
        for room in rooms:
            await self._settle(session, room, asks[room.name], results.get(room.name))
        self._signal.notify()

    async def _settle(self, session: Session, room: JoinedRoom, ask: Ask, result: wire.RoomResult | None) -> None:
        if result is None:
            self._rejected(session, room, ask, RequestFailed("unavailable", "the response lacks the room"))
        elif result.error is not None:
            self._rejected(session, room, ask, result.error.to_exception())
        elif room.is_left:
            await leave_on(session, room.name)
        else:
            room.joined(session, ask, result)

    def _rejected(self, session: Session, room: JoinedRoom, ask: Ask, error: RequestFailed) -> None:
        if room.is_left:
            return
        if error.code in RECONNECT:
            session.end(error.code)
            return
        room.failures += 1
        is_first = not room.first_join.done()
        if error.code == NO_HISTORY and ask.since is not None and room.sequence.rejected():
            return  # joined again at once, without the position
        if error.code in RETRIED and not (is_first and (error.code != "unavailable" or room.failures >= MAX_ATTEMPTS)):
            backoff = self._options.backoff(room.failures - 1, self._chance())
            room.retry_at = asyncio.get_running_loop().time() + (error.retry_after_seconds or 0) + backoff
            return
        room.fail(error)
        if self._rooms.get(room.name) is room:
            del self._rooms[room.name]


async def leave_on(session: Session, room: str) -> None:
    """Leaves a room that a late response has joined. At worst the connection stays a member until it ends."""
    with suppress(Disconnected, RequestFailed):
        await session.request({"action": "leave", "room": room})
