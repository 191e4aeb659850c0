"""What the program holds: a room that it is in, and the messages of no room."""

from typing import Any, Protocol, Self

from msgspec import UNSET

from gatecast.client.buffer import Buffer
from gatecast.client.errors import RequestFailed
from gatecast.client.events import Count, History, Member, Members, Message, Recovered, RoomEvent
from gatecast.client.requesting import Requests
from gatecast.client.room import JoinedRoom


class SupportsRooms(Protocol):
    """What a room needs of its client."""

    async def publish(
        self,
        room: str,
        *,
        data: str | None = None,
        json: Any = UNSET,
        id: str | None = None,  # noqa: A002 - the protocol's name for it
        echo: bool = True,
    ) -> str: ...

    async def leave(self, room: str) -> None: ...


class Events:
    """An asynchronous iterator over events, in their order. It may be left and taken up again."""

    def __init__(self, buffer: Buffer[RoomEvent]) -> None:
        self._buffer = buffer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RoomEvent:
        """Ends when the room is left, or the client closed. Raises ConnectionClosed, or RequestFailed of a join."""
        return await self._buffer.get()


class Room(Events):
    """A room that the client is in. Iterating over it gives `Message`, `Recovered` and `Presence`.

    A program that does not read lets at most `max_buffered` events wait, then the socket is not read. What arrives
    nevertheless, beside a response, is read from the history later, or else reported as possibly missing.
    """

    def __init__(self, client: SupportsRooms, joined: JoinedRoom, requests: Requests) -> None:
        super().__init__(joined.buffer)
        self._client = client
        self._joined = joined
        self._requests = requests

    @property
    def name(self) -> str:
        return self._joined.name

    @property
    def offset(self) -> int | None:
        """Where the program is, before the next event that it reads: `since` for a later join. None without history."""
        positions = map(_position_before, self._joined.buffer)
        return next((each for each in positions if each is not None), self._joined.sequence.position)

    async def publish(
        self,
        *,
        data: str | None = None,
        json: Any = UNSET,
        id: str | None = None,  # noqa: A002 - the protocol's name for it
        echo: bool = True,
    ) -> str:
        """As `Client.publish`."""
        return await self._client.publish(self.name, data=data, json=json, id=id, echo=echo)

    async def leave(self) -> None:
        """As `Client.leave`."""
        await self._client.leave(self.name)

    async def members(self) -> Members:
        """The users who are in the room now, in a room with presence. Raises RequestFailed.

        The events of this room are independent of it: `Members` says which of them are older.
        """
        found: list[Member] = []
        times: list[int] = []
        fields: dict[str, Any] = {"action": "members", "room": self.name}
        while True:
            page = await self._requests.send(fields)
            found += [Member(each.user, each.connections) for each in page.users]
            times.append(page.at_ms or 0)
            if not page.after:
                return Members(tuple(found), min(times))
            fields["after"] = page.after

    async def count(self) -> Count:
        """How many connections are members, as last counted. Raises RequestFailed."""
        response = await self._requests.send({"action": "count", "room": self.name})
        return Count(response.members or 0, response.counted_at_ms or 0)

    async def history(self, since: int, limit: int | None = None) -> History:
        """The messages after an offset, at most `limit`, independent of this room's events.

        Raises RequestFailed, `bad_request` if the room has no history or `since` is beyond its latest message.
        """
        limited = {} if limit is None else {"limit": limit}
        response = await self._requests.send({"action": "history", "room": self.name, "since": since, **limited})
        page = response.page(self.name)
        if page is None:
            raise RequestFailed("bad_request", "the room has no history")
        return History(messages=tuple(page.messages), offset=page.offset, recovered=page.recovered, more=page.more)


def _position_before(event: RoomEvent) -> int | None:
    """The position of a program that reads this event next; None if the event does not tell."""
    match event:
        case Message(offset=int(offset)):
            return offset - 1
        case Recovered(after=after):
            return after
    return None
