"""The reference client, for asyncio: `pip install gatecast[client]`.

    async with gatecast.client.connect("wss://…", token=get_token) as client:
        room = await client.join("lobby")
        async for event in room:
            match event:
                case Message():
                    print(event.offset, event.data)
                case Recovered(recovered=False):
                    ...  # messages may be missing here

It does everything that the protocol asks of a client: messages in order and once, or a report that some may be missing;
reconnects, renewals without a gap, and publishing that is repeated safely.
"""

from gatecast.client.client import Client
from gatecast.client.connections import TokenSource
from gatecast.client.errors import (
    ClientError,
    ConnectionClosed,
    ConnectionFailed,
    ConnectionRejected,
    Disconnected,
    RequestFailed,
    WrongDialect,
)
from gatecast.client.events import (
    Closed,
    Connected,
    Connecting,
    Count,
    History,
    Member,
    Members,
    Message,
    Presence,
    Recovered,
    Reference,
    RoomEvent,
    State,
)
from gatecast.client.options import Options
from gatecast.client.rooms import Events, Room
from gatecast.client.transport import Opener, open_websocket, opener

__all__ = [
    "Client",
    "ClientError",
    "Closed",
    "Connected",
    "Connecting",
    "ConnectionClosed",
    "ConnectionFailed",
    "ConnectionRejected",
    "Count",
    "Disconnected",
    "Events",
    "History",
    "Member",
    "Members",
    "Message",
    "Opener",
    "Options",
    "Presence",
    "Recovered",
    "Reference",
    "RequestFailed",
    "Room",
    "RoomEvent",
    "State",
    "TokenSource",
    "WrongDialect",
    "connect",
    "open_websocket",
    "opener",
]


def connect(
    url: str, token: TokenSource = None, *, options: Options | None = None, opener: Opener = open_websocket
) -> Client:
    """A client of the WebSocket API at `url` (`wss://…`), to be used in `async with`.

    `token` is a JWT, or an asynchronous function that returns one: it is called for each connection, so that the client
    outlives a token. `opener(ssl=…, proxy=…)` passes settings to `websockets.connect`. Raises ValueError.
    """
    if not url.startswith(("ws://", "wss://")):
        raise ValueError("the URL of a WebSocket begins with wss:// (or ws://)")
    return Client(url, token, options, opener=opener)
