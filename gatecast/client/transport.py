"""A WebSocket as three calls. The only module that imports `websockets`."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

try:
    from websockets.asyncio.client import ClientConnection, connect
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, NegotiationError
    from websockets.typing import Subprotocol
except ModuleNotFoundError as error:  # pragma: no cover - without the extra
    raise ModuleNotFoundError("gatecast.client needs websockets: install gatecast[client]") from error

from gatecast.client.errors import ConnectionFailed, ConnectionRejected, WrongDialect

SUBPROTOCOL: Final = "gatecast.v2"
MAX_FRAME_BYTES: Final = 32_000
"""API Gateway accepts frames of 32 KB, and a longer message in several of them."""
_FRAME_CHARACTERS: Final = MAX_FRAME_BYTES // 4
"""Of each frame, for no character has more than 4 bytes."""
MAX_RECEIVED_BYTES: Final = 1024 * 1024
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""What may stand in a list of subprotocols; every JWT does."""


class TransportClosed(Exception):
    """The socket is closed. `code` is the close code; 1006 if there was none."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the connection was closed with code {code}")
        self.code = code


class SupportsTransport(Protocol):
    """An open WebSocket. Both calls raise TransportClosed once it is closed."""

    async def send(self, text: str) -> None: ...

    async def receive(self) -> str | bytes: ...

    async def close(self) -> None:
        """Closes it. Raises nothing, and takes a few seconds at most."""


Opener = Callable[[str, str | None], Awaitable[SupportsTransport]]
"""Opens a WebSocket to a URL with a token. Raises ConnectionFailed."""


async def open_websocket(url: str, token: str | None, **settings: Any) -> SupportsTransport:
    """A connection in the dialect v2; the token stands beside it. `settings` are those of `websockets.connect`.

    Raises ConnectionRejected, WrongDialect, or ConnectionFailed with the error as its cause.
    """
    if token is not None and not _TOKEN.fullmatch(token):
        raise ConnectionFailed("the token has characters that no JWT has")
    offered = [Subprotocol(each) for each in (SUBPROTOCOL, token) if each]
    fixed = {"subprotocols": offered, "compression": None, "ping_interval": None, "max_size": MAX_RECEIVED_BYTES}
    try:
        socket = await connect(url, **{"close_timeout": 2, **settings, **fixed})
    except InvalidStatus as error:
        raise ConnectionRejected(error.response.status_code) from error
    except NegotiationError:
        raise WrongDialect("another one") from None
    except (InvalidHandshake, OSError, EOFError, TimeoutError) as error:
        raise ConnectionFailed(f"no connection: {error}") from error
    if socket.subprotocol != SUBPROTOCOL:
        await socket.close()
        # another choice may be the token, which is in no message
        raise WrongDialect(socket.subprotocol if socket.subprotocol != token else "token")
    return _WebSocket(socket)


def opener(**settings: Any) -> Opener:
    """An opener with settings of `websockets.connect`, for example `ssl` or `proxy`."""
    return partial(open_websocket, **settings)


class _WebSocket:
    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def send(self, text: str) -> None:
        try:
            if not is_long(text):
                await self._socket.send(text)
            else:
                # cancelled between two frames, the message would be half sent, and the connection useless
                await asyncio.shield(self._send_in_frames(text))
        except ConnectionClosed as error:
            raise TransportClosed(_close_code(error)) from error

    async def _send_in_frames(self, text: str) -> None:
        starts = range(0, len(text), _FRAME_CHARACTERS)
        await self._socket.send([text[start : start + _FRAME_CHARACTERS] for start in starts])

    async def receive(self) -> str | bytes:
        try:
            return await self._socket.recv()
        except ConnectionClosed as error:
            raise TransportClosed(_close_code(error)) from error

    async def close(self) -> None:
        with suppress(Exception):
            await self._socket.close()


def is_long(text: str) -> bool:
    """Whether a message does not fit into one frame."""
    return len(text) > _FRAME_CHARACTERS and len(text.encode()) > MAX_FRAME_BYTES


def _close_code(error: ConnectionClosed) -> int:
    return error.rcvd.code if error.rcvd else 1006
